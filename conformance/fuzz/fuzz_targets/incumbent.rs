//! See [`conformance_fuzz::incumbent`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| conformance_fuzz::incumbent(data));
