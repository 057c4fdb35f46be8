//! The imported SmolLM2 against the float reading of its file, on a few lines; the figures of record take a longer text.

use std::sync::Arc;

use sworn_engine::{Cpu, EngineError, eval};
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
    let tokens = model.encode_text(&eval::unwrap_lines(TEXT)).unwrap();
    let options = eval::Options { window: 64, max_tokens: 0 };
    let cpu = Cpu::new(model).unwrap();
    let mut last = None;
    let e = eval::evaluate(&cpu, &gguf, &tokens, &options, &mut |p| last = Some(p)).unwrap();
    println!("{e:?}");
    assert!(e.tokens >= 128 && last == Some(eval::Progress { done: e.tokens, total: e.tokens }));
    assert!(e.ppl_float > 1.0 && e.ppl_float < 200.0);
    assert!(e.ppl_delta_percent.abs() < 4.0 && e.kl < 0.02 && e.top1_agreement > 0.9);

    let few = eval::evaluate(&cpu, &gguf, &tokens[..63], &options, &mut |_| {});
    assert!(matches!(few, Err(EngineError::Request(_))));
    let other = eval::evaluate(&cpu, file!().as_ref(), &tokens, &options, &mut |_| {});
    assert!(matches!(other, Err(EngineError::Reference(_))));
}
