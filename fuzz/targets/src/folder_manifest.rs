//! `fuzz::folder_manifest` for libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    fuzz::folder_manifest(data);
});
