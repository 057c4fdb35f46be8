//! Perplexity of the integer model against the float reading: `cargo run -p sworn-eval --example eval -- MODEL GGUF TEXT [TOKENS]`.
#![allow(clippy::print_stdout, reason = "this is what it is for")]

use std::sync::Arc;

use sworn_engine::Cpu;
use sworn_eval::{Options, evaluate, unwrap_lines};
use sworn_model::ModelStore;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [name, gguf, text, rest @ ..] = &args[..] else { return Err("MODEL GGUF TEXT [TOKENS]".into()) };
    let model = Arc::new(ModelStore::from_env()?.load(name)?);
    let tokens = model.encode_text(&unwrap_lines(&std::fs::read_to_string(text)?))?;
    let max_tokens = rest.first().map_or(Ok(4608), |n| n.parse())?;
    let options = Options { max_tokens, ..Options::default() };
    let cpu = Cpu::new(model)?;
    let e = evaluate(&cpu, gguf.as_ref(), &tokens, &options, &mut |p| eprintln!("{}/{}", p.done, p.total))?;
    println!("{e:#?}");
    Ok(())
}
