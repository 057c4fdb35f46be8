//! Synthetic models, and what holds of every model directory.

mod support;

use std::{collections::HashSet, fs, path::Path};

use support::interpreter::Interpreter;
use sworn_model::{Message, Model, SyntheticSpec, synthetic};

fn specs() -> Vec<SyntheticSpec> {
    let d = SyntheticSpec::default();
    vec![
        d,
        SyntheticSpec { tied: false, seed: 2, ..d },
        SyntheticSpec {
            layers: 1,
            hidden: 30,
            heads: 3,
            kv_heads: 3,
            head_dim: 10,
            ffn: 50,
            vocab: 1000,
            seed: 3,
            ..d
        },
        SyntheticSpec {
            layers: 2,
            hidden: 576,
            heads: 9,
            kv_heads: 1,
            head_dim: 64,
            ffn: 700,
            vocab: 600,
            seed: 4,
            ..d
        },
    ]
}

#[test]
fn the_same_specification_is_the_same_model() {
    let dir = tempfile::tempdir().unwrap();
    let mut ids = HashSet::new();
    for (i, spec) in specs().iter().enumerate() {
        let a = synthetic(spec, dir.path().join(format!("a{i}"))).unwrap();
        let b = synthetic(spec, dir.path().join(format!("b/{i}"))).unwrap();
        for file in fs::read_dir(a.path()).unwrap() {
            let name = file.unwrap().file_name();
            assert_eq!(fs::read(a.path().join(&name)).unwrap(), fs::read(b.path().join(&name)).unwrap(), "{name:?}");
        }
        assert_eq!(a.verify(&mut |_| {}).unwrap(), b.id());
        ids.insert(a.id());
        let other = synthetic(&SyntheticSpec { seed: 99, ..*spec }, dir.path().join(format!("c{i}"))).unwrap();
        ids.insert(other.id());
    }
    assert_eq!(ids.len(), 2 * specs().len());
}

#[test]
fn they_answer_in_more_than_one_token() {
    let dir = tempfile::tempdir().unwrap();
    for (i, spec) in specs().iter().take(3).enumerate() {
        let model = synthetic(spec, dir.path().join(i.to_string())).unwrap();
        let mut run = Interpreter::new(&model, model.layers());
        let prompt = model.encode_chat(&[Message::new("user", "hi 42")]).unwrap();
        prompt.iter().for_each(|id| run.push(*id));
        let mut out = Vec::new();
        while out.len() < 24 {
            let (logits, token) = run.head();
            assert_eq!(logits.len(), spec.vocab as usize);
            out.push(token);
            run.push(token);
        }
        let different: HashSet<_> = out.iter().collect();
        eprintln!("{spec:?}: {out:?}");
        assert!(different.len() >= 8, "{out:?}");
    }
}

#[test]
fn rows_scales_and_trees() {
    let dir = tempfile::tempdir().unwrap();
    let model = synthetic(&SyntheticSpec::default(), dir.path().join("m")).unwrap();
    assert_eq!(model.index().weights.len(), 1 + 7 * 3);
    assert_eq!(model.index().tables.len(), 3 + 2 * 3 + 2);
    let e = model.weight(0);
    assert_eq!((e.rows, e.cols, e.scales), (331, 48, 2));
    assert_eq!(e.row(5).len(), 2 * 4 + 48);
    for i in 0..model.index().weights.len() {
        let m = model.weight(i);
        for r in 0..m.rows {
            assert!((0..m.scales).all(|c| m.scale(r, c).0 >= 1 << 15));
            assert!(m.weights(r).iter().any(|q| q.unsigned_abs() == 127), "rows use their whole grid");
        }
        assert_eq!(model.row_tree(i).root(), model.index().weights[i].root);
        assert_eq!(model.weights_tree().leaves()[i], model.index().weights[i].root);
        assert_eq!(model.row_tree(i).leaves()[0], sworn_commit::row_leaf(m.row(0)));
    }
    for i in 0..model.index().tables.len() {
        assert_eq!(model.table_tree(i).root(), model.tables_tree().leaves()[i]);
    }
    assert!(model.is_stop(2) && !model.is_stop(3));
}

#[test]
fn sizes_outside_of_the_instruction_set_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let d = SyntheticSpec::default();
    for spec in [
        SyntheticSpec { vocab: 100, ..d },
        SyntheticSpec { vocab: 1 << 20, ..d },
        SyntheticSpec { head_dim: 7, ..d },
        SyntheticSpec { heads: 5, ..d },
        SyntheticSpec { layers: 0, ..d },
        SyntheticSpec { context: 9000, ..d },
    ] {
        synthetic(&spec, dir.path().join("x")).unwrap_err();
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "a refused model leaves nothing behind");
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

#[test]
fn every_damaged_byte_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let spec = SyntheticSpec {
        layers: 1,
        hidden: 16,
        heads: 2,
        kv_heads: 1,
        head_dim: 4,
        ffn: 16,
        context: 16,
        vocab: 260,
        ..SyntheticSpec::default()
    };
    let model = synthetic(&spec, dir.path().join("m")).unwrap();
    let (id, work) = (model.id(), dir.path().join("work"));
    copy(model.path(), &work);
    // Hashed files: any byte. The same model is found again afterwards.
    for name in ["manifest.bin", "program.bin", "weights.bin", "tables.bin", "tokenizer.json", "chat_template.jinja"] {
        let file = work.join(name);
        let good = fs::read(&file).unwrap();
        let step = (good.len() / 150).max(1);
        for at in (0..good.len()).step_by(step) {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            fs::write(&file, &bad).unwrap();
            let noticed = match Model::load(&work) {
                Err(_) => true,
                Ok(m) => m.verify(&mut |_| {}).map_or(true, |found| found != id),
            };
            assert!(noticed, "{name}, byte {at}");
        }
        for n in [0, 1, good.len() / 2, good.len() - 1] {
            fs::write(&file, &good[..n]).unwrap();
            assert!(Model::load(&work).is_err(), "{name} cut to {n}");
        }
        fs::write(&file, good.iter().chain(&[0]).copied().collect::<Vec<_>>()).unwrap();
        assert!(Model::load(&work).is_err(), "{name} with a byte more");
        fs::remove_file(&file).unwrap();
        assert!(Model::load(&work).is_err(), "without {name}");
        fs::write(&file, &good).unwrap();
    }
    assert_eq!(Model::load(&work).unwrap().id(), id);
    // Files for people and the index: damage is an error or harmless, never a panic or another id.
    for name in ["index.json", "model.json"] {
        let file = work.join(name);
        let good = fs::read(&file).unwrap();
        for at in (0..good.len()).step_by((good.len() / 150).max(1)) {
            let mut bad = good.clone();
            bad[at] = bad[at].wrapping_add(1);
            fs::write(&file, &bad).unwrap();
            if let Ok(m) = Model::load(&work) {
                assert_eq!(m.id(), id);
                let _ = m.verify(&mut |_| {});
            }
        }
        fs::write(&file, good).unwrap();
    }
}

#[test]
fn only_models_are_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let spec = SyntheticSpec { layers: 1, ..SyntheticSpec::default() };
    let target = dir.path().join("m");
    fs::create_dir(&target).unwrap();
    synthetic(&spec, &target).unwrap();
    let other = synthetic(&SyntheticSpec { seed: 5, ..spec }, &target).unwrap();
    assert_eq!(Model::load(&target).unwrap().id(), other.id());
    fs::write(dir.path().join("precious"), "data").unwrap();
    for bad in
        [dir.path().to_path_buf(), dir.path().join("precious"), dir.path().join("precious/m"), dir.path().join("..")]
    {
        synthetic(&spec, &bad).unwrap_err();
    }
    assert_eq!(fs::read_to_string(dir.path().join("precious")).unwrap(), "data");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "no temporary directory is left");
}
