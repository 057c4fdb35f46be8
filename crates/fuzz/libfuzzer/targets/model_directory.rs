#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sworn_fuzz::targets::model_directory(data));
