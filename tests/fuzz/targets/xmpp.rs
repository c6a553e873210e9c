#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| invited::fuzz::xmpp(bytes));
