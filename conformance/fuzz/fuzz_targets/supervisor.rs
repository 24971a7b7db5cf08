//! See [`conformance_fuzz::supervisor`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| conformance_fuzz::supervisor(data));
