//! See [`conformance_fuzz::decoder`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| conformance_fuzz::decoder(data));
