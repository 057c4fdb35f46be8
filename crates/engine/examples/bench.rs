//! Speed of the `cpu` backend: `cargo run -p sworn-engine --example bench -- MODEL [PROMPT_TOKENS] [NEW_TOKENS] [THREADS]`.
#![allow(clippy::print_stdout, reason = "this is what it is for")]

use std::sync::Arc;
use std::time::Instant;

use sworn_engine::{Backend, Cpu, NoExports, Request};
use sworn_model::ModelStore;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: u32| args.get(i).and_then(|a| a.parse().ok()).unwrap_or(default);
    let name = args.first().ok_or("name a model of the store")?;
    let model = Arc::new(ModelStore::from_env()?.load(name)?);
    let (n_in, max_new) = (number(1, 128), number(2, 64));
    let cpu = Cpu::with_threads(model.clone(), number(3, 0) as usize)?;
    let vocab = model.manifest().vocab;
    let prompt: Vec<u32> = (0..n_in).map(|i| i.wrapping_mul(2654435761) % vocab).collect();
    println!("{}", cpu.adapter());
    for _ in 0..2 {
        let request = Request { prompt: &prompt, max_new, stop: &[], run: Default::default(), cancel: None };
        let g = sworn_engine::generate(&cpu, &request, &mut |_| {})?;
        println!("with trace:    prefill {:7.1} tok/s  decode {:6.1} tok/s", g.prefill_tok_s, g.decode_tok_s);
        let a = sworn_engine::audit(&cpu, &prompt, &g.tokens, &Default::default(), None)?;
        println!("audit:                {:7.1} tok/s  equal: {}", a.tok_s, a.trace == g.trace);
    }
    // On a machine that does other things as well the best of several says most.
    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let mut session = cpu.session(n_in + max_new)?;
        let start = Instant::now();
        let mut next = session.extend(&prompt, n_in - 1, &mut NoExports)?;
        prefill.push(start.elapsed().as_secs_f64() / f64::from(n_in));
        for _ in 1..max_new {
            let start = Instant::now();
            next = session.extend(&next, session.len(), &mut NoExports)?;
            decode.push(start.elapsed().as_secs_f64());
        }
    }
    prefill.sort_by(f64::total_cmp);
    decode.sort_by(f64::total_cmp);
    let mean = decode.iter().sum::<f64>() / decode.len() as f64;
    println!(
        "without trace: prefill {:7.1} tok/s at best  decode {:6.1} tok/s (median {:6.1}, best {:6.1})",
        1.0 / prefill[0],
        1.0 / mean,
        1.0 / decode[decode.len() / 2],
        1.0 / decode[0]
    );
    Ok(())
}
