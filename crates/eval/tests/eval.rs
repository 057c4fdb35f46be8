//! The imported SmolLM2 against the float reading of its file, on a few lines; the figures of record take a longer text.
#![allow(clippy::print_stdout, reason = "the figures are the report")]

use std::sync::Arc;

use sworn_engine::{Cpu, EngineError};
use sworn_eval::{CandlePeer, Options, Progress, bytes_per_token, evaluate, evaluate_windows, unwrap_lines};
use sworn_model::ModelStore;

const TEXT: &str = "Sir Walter Elliot, of Kellynch Hall, in Somersetshire, was a man who, for his own amusement, never took up\n\
any book but the Baronetage; there he found occupation for an idle hour, and consolation in a distressed one; there his\n\
faculties were roused into admiration and respect, by contemplating the limited remnant of the earliest patents; there\n\
any unwelcome sensations, arising from domestic affairs changed naturally into pity and contempt as he turned over the\n\
almost endless creations of the last century; and there, if every other leaf were powerless, he could read his own\n\
history with an interest which never failed.";

#[test]
fn smollm2_predicts_what_its_float_reading_predicts() {
    let store = ModelStore::from_env().unwrap();
    let model = Arc::new(sworn_model::pull("smollm2-135m", store.home(), &mut |_| {}).unwrap());
    let gguf = store.source_file("smollm2-135m").unwrap();
    let tokens = model.encode_text(&unwrap_lines(TEXT)).unwrap();
    let options = Options { window: 48, max_tokens: 0 };
    let cpu = Cpu::new(model).unwrap();
    let mut last = None;
    let e = evaluate(&cpu, &gguf, &tokens, &options, &mut |p| last = Some(p)).unwrap();
    println!("{e:?}");
    assert!(e.tokens >= 96 && last == Some(Progress { done: e.tokens, total: e.tokens }));
    assert!(e.ppl_float > 1.0 && e.ppl_float < 500.0);
    // A hundred tokens only tell the same model from another one.
    assert!(e.ppl_delta_percent.abs() < 4.0 * e.standard_error && e.kl < 0.02 && e.top1_agreement > 0.85);

    let (all, each) = evaluate_windows(&cpu, &gguf, &tokens, &options, &mut |_| {}).unwrap();
    assert!(all == e && each.len() as u32 == e.tokens / 48 && each.iter().all(|w| w.tokens == 48));
    let mean = each.iter().map(|w| w.ppl_integer.ln()).sum::<f64>() / each.len() as f64;
    assert!((mean - e.ppl_integer.ln()).abs() < 1e-9, "windows of one length weigh the same");

    let few = evaluate(&cpu, &gguf, &tokens[..47], &options, &mut |_| {});
    assert!(matches!(few, Err(EngineError::Request(_))));
    let other = evaluate(&cpu, file!().as_ref(), &tokens, &options, &mut |_| {});
    assert!(matches!(other, Err(EngineError::Reference(_))));
}

#[test]
fn smollm2_in_candle_continues_the_text() {
    let store = ModelStore::from_env().unwrap();
    let model = sworn_model::pull("smollm2-135m", store.home(), &mut |_| {}).unwrap();
    let gguf = store.source_file("smollm2-135m").unwrap();
    // Its head is its embedding, so only names and metadata of the file are not read.
    let (file, read) = (gguf.metadata().unwrap().len(), bytes_per_token(&gguf).unwrap());
    assert!(read < file && file - read < 4 << 20, "{read} of {file}");
    let mut peer = CandlePeer::open(&gguf).unwrap();
    let tokens = model.encode_text("one two three four five six seven eight").unwrap();
    let next = peer.extend(&tokens).unwrap();
    assert_eq!(model.encode_text(" nine").unwrap(), [next]);
    peer.clear();
    assert_eq!(tokens.iter().map(|t| peer.extend(&[*t]).unwrap()).last(), Some(next));
    let too_many = vec![0; 1 << 13];
    assert!(matches!(peer.extend(&too_many), Err(EngineError::Reference(_))));
    assert!(matches!(CandlePeer::open(file!().as_ref()), Err(EngineError::Reference(_))));
}
