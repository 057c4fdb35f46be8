//! The imported SmolLM2 against the float reading of its file, on a few lines; the figures of record take a longer text.
#![allow(clippy::print_stdout, reason = "the figures are the report")]

use std::sync::Arc;

use sworn_engine::{Cpu, EngineError};
use sworn_eval::{Options, Progress, evaluate, unwrap_lines};
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

    let few = evaluate(&cpu, &gguf, &tokens[..47], &options, &mut |_| {});
    assert!(matches!(few, Err(EngineError::Request(_))));
    let other = evaluate(&cpu, file!().as_ref(), &tokens, &options, &mut |_| {});
    assert!(matches!(other, Err(EngineError::Reference(_))));
}
