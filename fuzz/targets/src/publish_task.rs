//! `fuzz::publish_task` for libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    fuzz::publish_task(data);
});
