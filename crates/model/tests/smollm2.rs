//! The default model, from its publisher to a verified directory. Needs the network once; afterwards `$SWORN_HOME` has it.

use std::time::Instant;

use sworn_model::{ImportOptions, Message, Model, ModelStore, import_gguf, pull, store::sworn_home};

fn model() -> Model {
    pull("smollm2-135m", sworn_home().unwrap(), &mut |_| {}).expect("pulling the default model needs the network once")
}

#[test]
fn pull_import_verify() {
    let t = Instant::now();
    let model = model();
    eprintln!("pull {:?}", t.elapsed());
    let t = Instant::now();
    let store = ModelStore::from_env().unwrap();
    let again = store.load("smollm2-135m").unwrap();
    eprintln!("load {:?}", t.elapsed());
    let t = Instant::now();
    assert_eq!(again.verify(&mut |_| {}).unwrap(), model.id());
    eprintln!("verify {:?} id {}", t.elapsed(), hex::encode(model.id()));
    let dir = tempfile::tempdir().unwrap();
    let t = Instant::now();
    let out = dir.path().join("elsewhere/other-name");
    let second = import_gguf(store.source_file("smollm2-135m").unwrap(), &out, &ImportOptions::default(), &mut |_| {}).unwrap();
    eprintln!("import {:?}", t.elapsed());
    assert_eq!(second.id(), model.id());
    let t = Instant::now();
    second.tokenizer().unwrap();
    eprintln!("tokenizer {:?}", t.elapsed());
    let ids = second.encode_chat(&[Message::new("user", "What is the capital of France?")]).unwrap();
    eprintln!("{ids:?}");
}
