//! Perplexity of each way to store weights, on [`sworn_eval::TEXT`]:
//! `cargo run -p sworn-eval --example formats -- GGUF [TOKENS [CALIBRATION_TEXT]]`. With a text to calibrate on, which should not be the
//! one that is measured, also of int8 rows with error-compensated rounding.
#![allow(clippy::print_stdout, reason = "this is what it is for")]

use std::sync::Arc;

use sworn_engine::{Cpu, calibrate::Calibrator};
use sworn_eval::{Options, TEXT, evaluate, unwrap_lines};
use sworn_model::{ImportOptions, Model, ModelError, WeightFormats, import, import_calibrated};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [source, rest @ ..] = &args[..] else { return Err("GGUF [TOKENS [CALIBRATION_TEXT]]".into()) };
    let max_tokens = rest.first().map_or(Ok(4608), |n| n.parse())?;
    let options = Options { max_tokens, ..Options::default() };
    let calibration = rest.get(1).map(std::fs::read_to_string).transpose()?;
    let ways = [(WeightFormats::Int8, None), (WeightFormats::Auto, None), (WeightFormats::Int8, calibration)];
    for (weights, calibration) in ways.into_iter().take(2 + usize::from(rest.len() > 1)) {
        let dir = tempfile::tempdir()?;
        let import_options = ImportOptions { weights, ..ImportOptions::default() };
        let mut model = import(source, dir.path().join("model"), &import_options, &mut |_| {})?;
        if let Some(text) = calibration {
            model = calibrated(source, dir.path(), model, &unwrap_lines(&text), &import_options)?;
        }
        let bytes: u64 = model.index().weights.iter().map(|m| m.bytes()).sum();
        println!("{weights:?}: id {}, {bytes} bytes of weights", model.description().model_id);
        let tokens = model.encode_text(&unwrap_lines(TEXT))?;
        let cpu = Cpu::new(Arc::new(model))?;
        let e = evaluate(&cpu, source.as_ref(), &tokens, &options, &mut |p| eprintln!("{}/{}", p.done, p.total))?;
        println!("{e:#?}");
    }
    Ok(())
}

fn calibrated(
    source: &str,
    dir: &std::path::Path,
    nearest: Model,
    text: &str,
    options: &ImportOptions,
) -> Result<Model, Box<dyn std::error::Error>> {
    let tokens = nearest.encode_text(text)?;
    let mut calibrator = Calibrator::new(Cpu::new(Arc::new(nearest))?, &tokens, 512, 2 << 30);
    let mut compensation = |matrix| {
        let shown = calibrator.compensation(matrix, &mut |first, last, done| {
            eprintln!("layers {first} to {last}: {done}");
            Ok(())
        });
        shown.map_err(|e| ModelError::Argument(e.to_string()))
    };
    Ok(import_calibrated(source, dir.join("calibrated"), options, &mut compensation, &mut |_| {})?)
}
