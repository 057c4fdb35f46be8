//! Every family in the file's own blocks, some in int8 rows: what is generated, audited and exported equals that of the `cpu`
//! backend, greedy and sampled, also for sessions that were shortened and for several at once.
//!
//! Needs a Vulkan adapter; `script/mesa` gets a software one.

use std::collections::BTreeMap;
use std::sync::Arc;

use sworn_commit::{Hash, RunParams, tensor, trace};
use sworn_engine::{Backend, Cpu, EngineError, ExportSink, Request, Work, audit, generate};
use sworn_engine_wgpu::{Products, Selection, WgpuBackend};
use sworn_isa::Sampling;
use sworn_model::small::{Family, Layout, write};
use sworn_model::{ImportOptions, Model, import};

fn imported(family: Family, layout: Layout) -> Arc<Model> {
    let dir = tempfile::tempdir().unwrap();
    let path = write(family, layout, 5, dir.path()).unwrap();
    Arc::new(import(path, dir.path().join("model"), &ImportOptions::default(), &mut |_| {}).unwrap())
}

fn wgpu(model: &Arc<Model>) -> WgpuBackend {
    wgpu_with(model, Products::Words)
}

fn wgpu_with(model: &Arc<Model>, products: Products) -> WgpuBackend {
    WgpuBackend::with_products(model.clone(), &Selection::Best, Some(products)).unwrap_or_else(|e| panic!("{e}"))
}

/// Longer than the windows of the families that have one.
fn tokens() -> Vec<u32> {
    (0..40u32).map(|i| 3 + (i * i * 7 + i * 31) % 317).collect()
}

/// Every parameter in use.
fn sampled(seed: u8) -> RunParams {
    let sampling =
        Sampling { inverse_temperature: 3000, top_k: 60, top_p: 62_000, min_distance: 90_000, penalty: 4600 };
    RunParams { sampling, seed: [seed; 32] }
}

/// Everything that a session gives; a position that is executed again replaces itself.
#[derive(Default, PartialEq)]
struct Everything {
    exports: BTreeMap<(u16, u32), Vec<u8>>,
    logits: BTreeMap<u32, Vec<i32>>,
}

impl ExportSink for Everything {
    fn export(&mut self, layer: u16, position: u32, tensors: &[&[u8]]) -> sworn_engine::Result<()> {
        self.exports.insert((layer, position), tensors.concat());
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
    /// Names the first difference.
    fn assert_same(&self, other: &Everything, what: &str) {
        for (at, own) in &self.exports {
            assert!(other.exports.get(at) == Some(own), "{what}: layer {}, position {}", at.0, at.1);
        }
        assert!(self.logits == other.logits, "{what}: logits");
        assert!(self == other, "{what}");
    }
}

/// The tokens after each of the last positions, by calls of these sizes.
fn run(backend: &dyn Backend, run: RunParams, cuts: &[usize]) -> (Vec<u32>, Everything) {
    let (tokens, mut all, mut selected) = (tokens(), Everything::default(), Vec::new());
    let mut session = backend.session(tokens.len() as u32).unwrap();
    session.set_run(run).unwrap();
    let mut rest = &tokens[..];
    for n in cuts.iter().copied().chain([usize::MAX]) {
        let (now, later) = rest.split_at(n.min(rest.len()));
        selected.extend(session.extend(now, 5, &mut all).unwrap());
        rest = later;
    }
    (selected, all)
}

fn check(family: Family, layout: Layout) {
    let model = imported(family, layout);
    let cpu = Cpu::new(model.clone()).unwrap();
    let what = |how: &str| format!("{} {layout:?}, {how}", family.name());
    let ways = [
        ("greedy, word by word", RunParams::default(), Products::Words),
        ("sampled, by dot products", sampled(9), Products::Dots),
    ];
    for (how, params, products) in ways {
        let gpu = wgpu_with(&model, products);
        let (tokens, all) = run(&cpu, params, &[]);
        // At once; token by token after a prefill; in pieces that fill no tile.
        for cuts in [&[][..], &[31, 1, 1, 1, 1, 1, 1, 1, 1], &[3, 17, 1]] {
            let (same, got) = run(&gpu, params, cuts);
            assert_eq!(same, tokens, "{}", what(how));
            got.assert_same(&all, &what(how));
        }

        let prompt = &self::tokens()[..11];
        let request = Request { prompt, max_new: 12, stop: &[], run: params, cancel: None };
        let [want, got] = [&cpu as &dyn Backend, &gpu].map(|b| generate(b, &request, &mut |_| ()).unwrap());
        assert_eq!(got.tokens, want.tokens, "{}", what(how));
        assert_eq!(got.trace.root, want.trace.root, "{}", what(how));
        let audited = audit(&gpu, prompt, &want.tokens, &params, None).unwrap();
        assert_eq!(audited.first_wrong_token(&want.tokens), None, "{}", what(how));
        assert_eq!(audited.trace.root, want.trace.root, "{}", what(how));
    }
}

#[test]
fn families_in_blocks_give_every_byte_of_the_cpu_backend() {
    Family::ALL.iter().for_each(|f| check(*f, Layout::Blocks));
}

#[test]
fn some_families_in_int8_rows_give_every_byte_of_the_cpu_backend() {
    // What the formats of rows meet: biases and a separate head; norms of heads; caps and windows.
    [Family::Qwen2, Family::Qwen3, Family::Gemma2].iter().for_each(|f| check(*f, Layout::HuggingFace));
}

#[test]
fn a_shortened_session_continues_as_one_that_never_went_on() {
    let model = imported(Family::Gemma2, Layout::Blocks);
    let (cpu, gpu) = (Cpu::new(model.clone()).unwrap(), wgpu(&model));
    let tokens = tokens();
    let other: Vec<u32> = tokens.iter().rev().copied().collect();
    for params in [RunParams::default(), sampled(3)] {
        let [want, got] = [&cpu as &dyn Backend, &gpu].map(|backend| {
            let (mut session, mut all) = (backend.session(64).unwrap(), Everything::default());
            session.set_run(params).unwrap();
            let mut selected = Vec::new();
            for (keep, tokens) in
                [(0, &tokens[..30]), (13, &other[..9]), (13, &tokens[..1]), (99, &other[..4]), (0, &other)]
            {
                session.truncate(keep).unwrap();
                assert!(session.len() <= keep);
                selected.push(session.extend(tokens, 0, &mut all).unwrap());
            }
            assert_eq!(session.len() as usize, other.len());
            (selected, all)
        });
        assert_eq!(got.0, want.0);
        got.1.assert_same(&want.1, "shortened");
    }
}

#[test]
fn several_sessions_at_once_get_what_each_would_alone() {
    let model = imported(Family::Qwen3, Layout::Blocks);
    let (cpu, gpu) = (Cpu::new(model.clone()).unwrap(), wgpu(&model));
    let tokens = tokens();
    // A prefill, one token, nothing for the head, and another run.
    let work = [(&tokens[..20], 0), (&tokens[3..4], 0), (&tokens[5..9], u32::MAX), (&tokens[7..12], 2)];
    let [want, got] = [&cpu as &dyn Backend, &gpu].map(|backend| {
        let mut sessions: Vec<_> = work.iter().map(|_| backend.session(64).unwrap()).collect();
        let mut sinks: Vec<_> = work.iter().map(|_| Everything::default()).collect();
        let mut selected = Vec::new();
        for session in sessions.iter_mut().skip(2) {
            session.set_run(sampled(8)).unwrap();
        }
        for _ in 0..3 {
            let parts = sessions.iter_mut().zip(&mut sinks).zip(&work);
            let mut parts: Vec<Work<'_>> = parts
                .map(|((session, sink), (tokens, head_from))| Work {
                    session: &mut **session,
                    tokens,
                    head_from: *head_from,
                    sink,
                })
                .collect();
            selected.push(backend.extend_many(&mut parts).into_iter().map(Result::unwrap).collect::<Vec<_>>());
        }
        (selected, sinks)
    });
    assert_eq!(got.0, want.0);
    for (k, (got, want)) in got.1.iter().zip(&want.1).enumerate() {
        got.assert_same(want, &format!("session {k}"));
    }
}

/// Keeps leaves, hashed here where the backend gives tensors, and can fail.
struct Leaves {
    hashed: bool,
    fails: bool,
    leaves: BTreeMap<(u16, u32), Hash>,
}

impl ExportSink for Leaves {
    fn export(&mut self, layer: u16, position: u32, tensors: &[&[u8]]) -> sworn_engine::Result<()> {
        let roots: Vec<Hash> = tensors.iter().map(|t| tensor::tensor_root(t)).collect();
        self.leaf(layer, position, trace::leaf(&roots))
    }

    fn wants_leaves(&self) -> bool {
        self.hashed
    }

    fn leaf(&mut self, layer: u16, position: u32, leaf: Hash) -> sworn_engine::Result<()> {
        if self.fails && layer == 1 {
            return Err(EngineError::Request("this sink is full".into()));
        }
        self.leaves.insert((layer, position), leaf);
        Ok(())
    }
}

#[test]
fn one_batch_serves_sinks_of_every_kind_and_survives_one_that_fails() {
    let model = imported(Family::Llama3, Layout::Blocks);
    let (cpu, gpu) = (Cpu::new(model.clone()).unwrap(), wgpu_with(&model, Products::Dots));
    let tokens = tokens();
    // Tensors, leaves, nothing but a failure, leaves.
    let kinds = [(false, false), (true, false), (false, true), (true, false)];
    let [want, got] = [&cpu as &dyn Backend, &gpu].map(|backend| {
        let mut sessions: Vec<_> = kinds.iter().map(|_| backend.session(64).unwrap()).collect();
        let sink = |(hashed, fails): &(bool, bool)| Leaves { hashed: *hashed, fails: *fails, leaves: BTreeMap::new() };
        let mut sinks: Vec<_> = kinds.iter().map(sink).collect();
        let mut selected = Vec::new();
        for part in [&tokens[..11], &tokens[11..12], &tokens[12..14]] {
            let mut work: Vec<Work<'_>> = Vec::new();
            for (session, sink) in sessions.iter_mut().zip(&mut sinks) {
                work.push(Work { session: &mut **session, tokens: part, head_from: 3, sink });
            }
            selected.push(backend.extend_many(&mut work).into_iter().map(|r| r.ok()).collect::<Vec<_>>());
        }
        assert_eq!(sessions.iter().map(|s| s.len()).collect::<Vec<_>>(), [14, 14, 0, 14]);
        // The session whose sink failed can be used on, and others can come and go.
        sessions.truncate(3);
        let mut all = Everything::default();
        selected.push(vec![Some(sessions[2].extend(&tokens, 0, &mut all).unwrap())]);
        (selected, sinks.into_iter().filter(|s| !s.fails).map(|s| s.leaves).collect::<Vec<_>>(), all)
    });
    assert!(want.0[0][2].is_none() && want.1[0] == want.1[1] && want.1[0] == want.1[2] && !want.1[0].is_empty());
    assert_eq!(got.0, want.0);
    assert_eq!(got.1, want.1);
    got.2.assert_same(&want.2, "after a failure");
}
