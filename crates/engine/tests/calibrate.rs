//! Import with error-compensated rounding: reproducible, another model than rounding to nearest gives, and a valid one.

use std::path::Path;
use std::sync::Arc;

use sworn_engine::{Cpu, Request, audit, calibrate::Calibrator, generate};
use sworn_model::small::{Family, Layout, write};
use sworn_model::{ImportOptions, Model, ModelError, WeightFormats, import, import_calibrated};

fn options() -> ImportOptions {
    ImportOptions { weights: WeightFormats::Int8, ..ImportOptions::default() }
}

fn calibrated(source: &Path, out: &Path, tokens: &[u32], threads: usize, budget: u64) -> Model {
    let nearest = import(source, out.join("nearest"), &options(), &mut |_| {}).unwrap();
    let cpu = Cpu::with_threads(Arc::new(nearest), threads).unwrap();
    let mut calibrator = Calibrator::new(cpu, tokens, 25, budget);
    let mut compensation = |matrix| {
        let result = calibrator.compensation(matrix, &mut |_, _, _| Ok(()));
        result.map_err(|e| ModelError::Argument(e.to_string()))
    };
    import_calibrated(source, out.join("calibrated"), &options(), &mut compensation, &mut |_| {}).unwrap()
}

#[test]
fn calibration_is_reproducible_and_changes_the_weights_only() {
    let dir = tempfile::tempdir().unwrap();
    let source = write(Family::SmolLm2, Layout::HuggingFace, 3, dir.path()).unwrap();
    let nearest = import(&source, dir.path().join("plain"), &options(), &mut |_| {}).unwrap();
    let vocab = nearest.manifest().vocab;
    let tokens: Vec<u32> = (0..60u32).map(|i| (i * i * 7 + i / 3) % vocab).collect();
    // All layers in one run on three threads, and a layer at a time on one.
    let one = calibrated(&source, &dir.path().join("a"), &tokens, 3, u64::MAX);
    let other = calibrated(&source, &dir.path().join("b"), &tokens, 1, 0);
    assert_eq!(one.id(), other.id());
    assert_ne!(one.id(), nearest.id());
    assert_eq!(one.program(), nearest.program());
    let cpu = Cpu::with_threads(Arc::new(one), 1).unwrap();
    let request = Request { prompt: &tokens[..9], max_new: 5, stop: &[], run: Default::default(), cancel: None };
    let g = generate(&cpu, &request, &mut |_| {}).unwrap();
    assert_eq!(audit(&cpu, &tokens[..9], &g.tokens, &Default::default(), None).unwrap().trace, g.trace);
}
