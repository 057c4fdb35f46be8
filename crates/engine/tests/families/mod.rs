//! Small models of the families that people run, weights in the files' own blocks or rounded at the import.

use std::sync::{Arc, OnceLock};

use sworn_commit::RunParams;
use sworn_isa::Sampling;
use sworn_model::small::{Family, Layout, write};
use sworn_model::{ImportOptions, Model, import};

/// Every family once in blocks, some in floats too; imported once in a process.
pub(crate) fn models() -> &'static [(String, Arc<Model>)] {
    static MODELS: OnceLock<Vec<(String, Arc<Model>)>> = OnceLock::new();
    MODELS.get_or_init(|| {
        let blocks = Family::ALL.map(|f| (f, Layout::Blocks));
        let floats = [(Family::Gemma2, Layout::HuggingFace), (Family::Llama3, Layout::Gguf)];
        let load = |(i, (family, layout)): (usize, (Family, Layout))| {
            let dir = tempfile::tempdir().unwrap();
            let file = write(family, layout, i as u64, dir.path()).unwrap();
            let model = import(file, dir.path().join("model"), &ImportOptions::default(), &mut |_| {}).unwrap();
            (format!("{} {layout:?}", family.name()), Arc::new(model))
        };
        blocks.into_iter().chain(floats).enumerate().map(load).collect()
    })
}

/// A run that uses every parameter.
pub(crate) fn sampled(seed: u8) -> RunParams {
    let sampling =
        Sampling { inverse_temperature: 5000, top_k: 60, top_p: 62_000, min_distance: 90_000, penalty: 4500 };
    RunParams { sampling, seed: [seed; 32] }
}
