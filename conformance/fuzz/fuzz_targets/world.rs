//! See [`conformance_fuzz::world`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| conformance_fuzz::world(data));
