//! Whole models: every exported byte, every logit and every selected token equal those of the `cpu` backend, however the
//! sequence is cut into calls.
//!
//! Needs a Vulkan adapter; `script/mesa` gets a software one.

use std::collections::BTreeMap;
use std::sync::Arc;

use sworn_engine::{Backend, Cpu, EngineError, ExportSink, NoExports};
use sworn_engine_wgpu::{Selection, WgpuBackend};
use sworn_model::{Model, SyntheticSpec, synthetic};

/// Keeps everything a run gives.
#[derive(Default, PartialEq)]
struct Everything {
    exports: BTreeMap<(u16, u32), Vec<Vec<u8>>>,
    logits: BTreeMap<u32, Vec<i32>>,
    tokens: Vec<u32>,
}

impl ExportSink for Everything {
    fn export(&mut self, layer: u16, position: u32, tensors: &[&[u8]]) -> sworn_engine::Result<()> {
        let own = tensors.iter().map(|t| t.to_vec()).collect();
        assert!(self.exports.insert((layer, position), own).is_none(), "layer {layer}, position {position} came twice");
        Ok(())
    }

    fn wants_logits(&self) -> bool {
        true
    }

    fn logits(&mut self, position: u32, logits: &[i32]) -> sworn_engine::Result<()> {
        self.logits.insert(position, logits.to_vec());
        Ok(())
    }
}

impl Everything {
    fn bytes(&self) -> usize {
        self.exports.values().flatten().map(Vec::len).sum()
    }

    /// Names the first difference.
    fn assert_same(&self, other: &Everything, what: &str) {
        assert_eq!(self.tokens, other.tokens, "{what}: selected tokens");
        assert!(self.logits == other.logits, "{what}: logits");
        assert_eq!(self.exports.len(), other.exports.len(), "{what}: number of exports");
        for ((at, a), (_, b)) in self.exports.iter().zip(&other.exports) {
            for (e, (a, b)) in a.iter().zip(b).enumerate() {
                assert!(a == b, "{what}: export {e} of layer {}, position {} differs", at.0, at.1);
            }
        }
        assert!(self == other, "{what}");
    }
}

/// Runs `tokens` in calls of the given sizes; the head from `head_from` on.
fn run(backend: &dyn Backend, tokens: &[u32], cuts: &[usize], head_from: u32) -> Everything {
    let mut session = backend.session(backend.model().manifest().max_positions).unwrap();
    let mut all = Everything::default();
    let mut rest = tokens;
    for n in cuts.iter().copied().chain(std::iter::repeat(usize::MAX)) {
        if rest.is_empty() {
            break;
        }
        let (now, later) = rest.split_at(n.min(rest.len()));
        let selected = session.extend(now, head_from, &mut all).unwrap();
        all.tokens.extend(selected);
        rest = later;
    }
    assert_eq!(session.len() as usize, tokens.len());
    all
}

fn wgpu(model: &Arc<Model>) -> WgpuBackend {
    WgpuBackend::new(model.clone(), &Selection::Best).unwrap_or_else(|e| panic!("{e}"))
}

fn tokens(n: usize, vocab: u32, seed: u32) -> Vec<u32> {
    (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761) ^ seed.wrapping_mul(40_503)) % vocab).collect()
}

#[test]
fn synthetic_models_give_every_byte_of_the_cpu_backend() {
    let base = SyntheticSpec::default();
    let specs = [
        base,
        // Sizes that fill no word and no cube, untied, one head per key/value head.
        SyntheticSpec {
            layers: 1,
            hidden: 50,
            heads: 5,
            kv_heads: 5,
            head_dim: 10,
            ffn: 77,
            tied: false,
            seed: 2,
            ..base
        },
        SyntheticSpec {
            layers: 2,
            hidden: 64,
            heads: 8,
            kv_heads: 1,
            head_dim: 32,
            ffn: 130,
            vocab: 1000,
            seed: 3,
            ..base
        },
        // Vectors longer than one reduction group.
        SyntheticSpec { layers: 1, hidden: 2304, heads: 2, kv_heads: 1, head_dim: 64, ffn: 2100, seed: 4, ..base },
    ];
    let mut bytes = 0;
    for spec in specs {
        let dir = tempfile::tempdir().unwrap();
        let model = Arc::new(synthetic(&spec, dir.path().join("model")).unwrap());
        let (cpu, gpu) = (Cpu::new(model.clone()).unwrap(), wgpu(&model));
        let tokens = tokens(70, spec.vocab, 7);
        let want = run(&cpu, &tokens, &[], 0);
        // At once, token by token across a block of sixteen, and in odd pieces.
        let ones = [1; 20];
        for (name, cuts) in [("prefill", &[][..]), ("decode", &ones), ("pieces", &[3, 1, 16, 31, 2])] {
            let got = run(&gpu, &tokens, cuts, 0);
            got.assert_same(&want, &format!("{spec:?}, {name}"));
            bytes += got.bytes();
        }
        let want = run(&cpu, &tokens, &[66], 67);
        run(&gpu, &tokens, &[60, 6], 67).assert_same(&want, "head for the last positions only");
    }
    eprintln!("synthetic models: {bytes} exported bytes equal");
}

#[test]
fn sequences_longer_than_a_step_of_the_cache_keep_their_past() {
    let spec = SyntheticSpec { layers: 2, seed: 5, ..SyntheticSpec::default() };
    let dir = tempfile::tempdir().unwrap();
    let model = Arc::new(synthetic(&spec, dir.path().join("model")).unwrap());
    let tokens = tokens(512, spec.vocab, 9);
    let want = run(&Cpu::new(model.clone()).unwrap(), &tokens, &[], 500);
    run(&wgpu(&model), &tokens, &[250, 1, 4, 1, 1], 500).assert_same(&want, "512 positions");
}

#[test]
fn sessions_are_independent_and_errors_leave_them_usable() {
    let spec = SyntheticSpec::default();
    let dir = tempfile::tempdir().unwrap();
    let model = Arc::new(synthetic(&spec, dir.path().join("model")).unwrap());
    let gpu = wgpu(&model);
    assert_eq!(gpu.name(), "wgpu");
    assert!(!gpu.adapter().is_empty());
    assert!(matches!(gpu.session(513), Err(EngineError::Capacity { wanted: 513, capacity: 512 })));
    let mut a = gpu.session(4).unwrap();
    let mut b = gpu.session(64).unwrap();
    let first = a.extend(&[5, 6], 0, &mut NoExports).unwrap();
    assert!(matches!(a.extend(&[1, 2, 3], 0, &mut NoExports), Err(EngineError::Capacity { wanted: 5, capacity: 4 })));
    assert!(matches!(a.extend(&[331], 0, &mut NoExports), Err(EngineError::Token { token: 331, vocab: 331 })));
    assert_eq!(b.extend(&[5, 6], 0, &mut NoExports).unwrap(), first);
    assert_eq!(a.extend(&[7], 0, &mut NoExports).unwrap(), b.extend(&[7], 0, &mut NoExports).unwrap());
    assert_eq!((a.len(), b.len()), (3, 3));
    assert!(a.extend(&[8], u32::MAX, &mut NoExports).unwrap().is_empty());
    // Sessions work from any thread, and outlive the backend that made them.
    drop(gpu);
    std::thread::spawn(move || b.extend(&[8], 0, &mut NoExports).unwrap()).join().unwrap();
}

#[test]
fn an_adapter_that_does_not_exist_is_an_error_with_its_cure() {
    let dir = tempfile::tempdir().unwrap();
    let model = Arc::new(synthetic(&SyntheticSpec::default(), dir.path().join("model")).unwrap());
    let error = WgpuBackend::new(model, &Selection::Named("no such card".into())).unwrap_err().to_string();
    assert!(error.contains("no such card") && error.contains("script/mesa"), "{error}");
}
