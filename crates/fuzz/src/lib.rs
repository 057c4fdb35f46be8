//! Decoders of what strangers send, as fuzz targets.
//!
//! **Owns** the targets ([`TARGETS`]), the seeds that each begins from, and a mutator for the short run of `make test`; `make fuzz` runs the
//! same targets under libFuzzer (`libfuzzer/`, outside the workspace). **May depend on** every crate that reads such bytes. **Must never**
//! be a dependency of one of them.
//!
//! A target takes any bytes. It may find that they are nothing, and must then find so without a panic, without an overflow, and without
//! memory that the input's length does not justify; what it takes for valid it checks: what was read, written again, is the same.
#![forbid(unsafe_code)]

pub mod files;
pub mod mutate;
pub mod seeds;
pub mod targets;

/// Something that reads bytes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// Reads.
    pub run: fn(&[u8]),
    /// Valid inputs, to be mutated.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Inputs of a short run: the slow ones try fewer.
    pub short: u64,
}

/// All of them.
pub const TARGETS: [Target; 10] = [
    Target { name: "gguf", run: targets::gguf, seeds: seeds::gguf, short: 20_000 },
    Target { name: "safetensors", run: targets::safetensors, seeds: seeds::safetensors, short: 5_000 },
    Target { name: "model_directory", run: targets::model_directory, seeds: seeds::model_directory, short: 20_000 },
    Target { name: "manifest", run: targets::manifest, seeds: seeds::manifest, short: 100_000 },
    Target { name: "program", run: targets::program, seeds: seeds::program, short: 100_000 },
    Target { name: "tokenizer", run: targets::tokenizer, seeds: seeds::tokenizer, short: 20_000 },
    Target { name: "trace", run: targets::trace, seeds: seeds::trace, short: 100_000 },
    Target { name: "proof", run: targets::proof, seeds: seeds::proof, short: 100_000 },
    Target { name: "calldata", run: targets::calldata, seeds: seeds::calldata, short: 50_000 },
    Target { name: "http", run: targets::http, seeds: seeds::http, short: 100_000 },
];
