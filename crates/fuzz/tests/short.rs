//! Every target on its seeds and on what a mutator makes of them. `SWORN_FUZZ` multiplies how many; `SWORN_SEED` says where to begin. What
//! fails is kept as a file.

use std::panic::catch_unwind;
use std::path::Path;

use rand::SeedableRng;
use rand::rngs::StdRng;
use sworn_fuzz::mutate::mutated;
use sworn_fuzz::{TARGETS, Target};
use sworn_testkit::tried::{times, tried};

fn fails(target: &Target, input: &[u8], failures: &mut u64) {
    if catch_unwind(|| (target.run)(input)).is_ok() {
        return;
    }
    *failures += 1;
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{failures}", target.name));
    std::fs::write(&path, input).unwrap();
    eprintln!("{} fails on {} ({} bytes)", target.name, path.display(), input.len());
}

fn short(name: &str) {
    let target = TARGETS.iter().find(|t| t.name == name).unwrap();
    let seeds = (target.seeds)();
    let (runs, first) = (target.short * times("SWORN_FUZZ", 1), times("SWORN_SEED", 1));
    let mut failures = 0;
    for seed in &seeds {
        fails(target, seed, &mut failures);
    }
    let mut rng = StdRng::seed_from_u64(first);
    for _ in 0..runs {
        fails(target, &mutated(&seeds, &mut rng), &mut failures);
        assert!(failures < 10, "{name} fails too often");
    }
    tried(&format!("inputs of {name}, mutated"), runs, failures, format!("{} seeds", seeds.len()));
    assert_eq!(failures, 0, "{name}: the inputs are kept in {}", env!("CARGO_TARGET_TMPDIR"));
}

macro_rules! tests {
    ($($name:ident)*) => {
        $(#[test] fn $name() { short(stringify!($name)); })*

        #[test]
        fn every_target_is_tested() {
            let tested = [$(stringify!($name)),*];
            assert_eq!(TARGETS.map(|t| t.name), tested);
        }
    };
}

tests!(gguf safetensors model_directory manifest program tokenizer trace proof calldata http);

/// Seeds that a target refuses at once would test its refusals only.
#[test]
fn seeds_are_valid() {
    use sworn_commit::Manifest;
    use sworn_model::{Gguf, Tokenizer};
    assert!(sworn_fuzz::seeds::gguf().into_iter().all(|s| Gguf::from_bytes(s).is_ok()));
    assert!(sworn_fuzz::seeds::manifest().iter().all(|s| Manifest::decode(s).is_ok()));
    assert!(sworn_fuzz::seeds::tokenizer().iter().all(|s| Tokenizer::from_json(s).is_ok()));
    let asks = sworn_fuzz::seeds::http();
    let ask = serde_json::from_slice::<sworn_receipts::wire::Ask>(&asks[0]);
    assert!(ask.is_ok(), "{ask:?}");
}
