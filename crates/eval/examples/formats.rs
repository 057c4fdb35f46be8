//! Perplexity of each way to store weights: `cargo run -p sworn-eval --example formats -- GGUF [TOKENS]`, on [`sworn_eval::TEXT`].
#![allow(clippy::print_stdout, reason = "this is what it is for")]

use std::sync::Arc;

use sworn_engine::Cpu;
use sworn_eval::{Options, TEXT, evaluate, unwrap_lines};
use sworn_model::{ImportOptions, WeightFormats, import};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [source, rest @ ..] = &args[..] else { return Err("GGUF [TOKENS]".into()) };
    let max_tokens = rest.first().map_or(Ok(4608), |n| n.parse())?;
    let options = Options { max_tokens, ..Options::default() };
    for weights in [WeightFormats::Int8, WeightFormats::Auto] {
        let dir = tempfile::tempdir()?;
        let import_options = ImportOptions { weights, sampling: true, ..ImportOptions::default() };
        let model = import(source, dir.path().join("model"), &import_options, &mut |_| {})?;
        let bytes: u64 = model.index().weights.iter().map(|m| m.bytes()).sum();
        println!("{weights:?}: id {}, {bytes} bytes of weights", model.description().model_id);
        let tokens = model.encode_text(&unwrap_lines(TEXT))?;
        let cpu = Cpu::new(Arc::new(model))?;
        let e = evaluate(&cpu, source.as_ref(), &tokens, &options, &mut |p| eprintln!("{}/{}", p.done, p.total))?;
        println!("{e:#?}");
    }
    Ok(())
}
