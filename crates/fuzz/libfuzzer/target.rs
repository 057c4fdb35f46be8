//! One of [`sworn_fuzz::TARGETS`] under libFuzzer: the one that `SWORN_FUZZ_TARGET` names.
#![no_main]

use std::sync::OnceLock;

use sworn_fuzz::{TARGETS, Target};

static CHOSEN: OnceLock<Target> = OnceLock::new();

fn chosen() -> Target {
    let name = std::env::var("SWORN_FUZZ_TARGET").unwrap_or_default();
    let found = TARGETS.into_iter().find(|t| t.name == name);
    found.unwrap_or_else(|| panic!("SWORN_FUZZ_TARGET={name}: there is {}", TARGETS.map(|t| t.name).join(", ")))
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| (CHOSEN.get_or_init(chosen).run)(data));
