//! libFuzzer with one check, which `ISOPOD_FUZZ` names. Arguments are libFuzzer's.

#![no_main]
// The macro exports the function that libFuzzer calls.
#![allow(unsafe_code)]

use isopod_e2e_fuzz::Target;
use std::sync::LazyLock;

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("ISOPOD_FUZZ").unwrap_or_default();
    let all: Vec<&str> = isopod_e2e_fuzz::TARGETS.iter().map(|t| t.name).collect();
    isopod_e2e_fuzz::target(&name).unwrap_or_else(|| {
        eprintln!("ISOPOD_FUZZ={name:?} is no target; there are {}", all.join(", "));
        std::process::exit(2);
    })
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| (TARGET.check)(data));
