//! See [`conformance_fuzz::successor`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| conformance_fuzz::successor(data));
