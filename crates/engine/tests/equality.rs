//! However a sequence is executed, it gives the same bits; and they are those of the scalar reference.

use std::collections::HashMap;
use std::sync::Arc;

use proptest::prelude::*;
use sworn_commit::witness::Inputs;
use sworn_commit::{RunParams, tensor, trace};
use sworn_engine::{
    Backend, Cpu, EngineError, ExportSink, OpHook, OpTensor, Replay, Request, Simd, Trace, audit, generate, replay,
};
use sworn_isa::{Descriptor, Opcode, OperandKind, RowData, RowFormat, Sampling, SectionKind, StepReader, element};
use sworn_model::{Model, SyntheticSpec, synthetic};

mod families;

/// Odd sizes, so that no kernel meets only whole tiles.
fn spec(seed: u64) -> SyntheticSpec {
    let (kv_heads, shared) = [(1, 1), (2, 3), (3, 2), (1, 5), (2, 1)][seed as usize % 5];
    SyntheticSpec {
        layers: 1 + (seed % 3) as u16,
        hidden: [30, 48, 66][seed as usize % 3],
        heads: kv_heads * shared,
        kv_heads,
        head_dim: [6, 8, 34][seed as usize / 3 % 3],
        ffn: [50, 112][seed as usize % 2],
        vocab: 300 + (seed % 40) as u32,
        context: 256,
        seed,
        tied: seed.is_multiple_of(2),
    }
}

fn model(seed: u64) -> (tempfile::TempDir, Arc<Model>) {
    let dir = tempfile::tempdir().unwrap();
    let model = synthetic(&spec(seed), dir.path().join("model")).unwrap();
    (dir, Arc::new(model))
}

fn tokens(n: usize, vocab: u32, seed: u64) -> Vec<u32> {
    (0..n as u64)
        .map(|i| ((i + 1).wrapping_mul(seed | 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33) as u32 % vocab)
        .collect()
}

type Export = (u16, u32);

#[derive(Default, PartialEq, Eq, Debug)]
struct Everything {
    exports: HashMap<Export, Vec<Vec<u8>>>,
    logits: HashMap<u32, Vec<i32>>,
}

impl ExportSink for Everything {
    fn export(&mut self, layer: u16, position: u32, tensors: &[&[u8]]) -> Result<(), EngineError> {
        let tensors = tensors.iter().map(|t| t.to_vec()).collect();
        assert!(self.exports.insert((layer, position), tensors).is_none(), "twice");
        Ok(())
    }

    fn wants_logits(&self) -> bool {
        true
    }

    fn logits(&mut self, position: u32, logits: &[i32]) -> Result<(), EngineError> {
        self.logits.insert(position, logits.to_vec());
        Ok(())
    }
}

/// Runs `tokens` in pieces of the given sizes (repeated) with the head everywhere.
fn run(cpu: &Cpu, tokens: &[u32], pieces: &[usize]) -> (Everything, Vec<u32>) {
    run_with(cpu, &RunParams::default(), tokens, pieces)
}

fn run_with(cpu: &Cpu, params: &RunParams, tokens: &[u32], pieces: &[usize]) -> (Everything, Vec<u32>) {
    let mut session = cpu.session(tokens.len() as u32).unwrap();
    session.set_run(*params).unwrap();
    let (mut all, mut selected) = (Everything::default(), Vec::new());
    let mut rest = tokens;
    for piece in pieces.iter().cycle() {
        let (now, later) = rest.split_at((*piece).clamp(1, rest.len()));
        selected.extend(session.extend(now, 0, &mut all).unwrap());
        rest = later;
        if rest.is_empty() {
            break;
        }
    }
    assert_eq!(session.len() as usize, tokens.len());
    (all, selected)
}

/// So long a context that an attention's positions are split over threads where one token comes at a time, and blocks of queries
/// that begin and end anywhere.
#[test]
fn a_long_context_gives_the_same_bits_token_by_token() {
    let dir = tempfile::tempdir().unwrap();
    let spec = SyntheticSpec { context: 1200, layers: 2, ..spec(1) };
    let model = Arc::new(synthetic(&spec, dir.path().join("model")).unwrap());
    let tokens = tokens(1061, spec.vocab, 7);
    let cpu = Cpu::with_threads(model.clone(), 2).unwrap();
    let last = |cpu: &Cpu, pieces: &[usize]| {
        let mut session = cpu.session(spec.context).unwrap();
        let (first, mut rest) = tokens.split_at(1018);
        session.extend(first, u32::MAX, &mut sworn_engine::NoExports).unwrap();
        let (mut all, mut selected) = (Everything::default(), Vec::new());
        for piece in pieces.iter().cycle() {
            let (now, later) = rest.split_at((*piece).min(rest.len()));
            selected.extend(session.extend(now, 0, &mut all).unwrap());
            rest = later;
            if rest.is_empty() {
                return (all, selected);
            }
        }
        unreachable!("pieces are not empty")
    };
    let whole = last(&cpu.with_simd(Simd::SCALAR), &[100]);
    for pieces in [&[1][..], &[43], &[1, 2, 3, 5], &[17, 1]] {
        for simd in Simd::all() {
            assert!(last(&cpu.with_simd(simd), pieces) == whole, "{} {pieces:?}", simd.name());
        }
        let alone = Cpu::with_threads(model.clone(), 1).unwrap();
        assert!(last(&alone, pieces) == whole, "{pieces:?}");
    }
}

/// Wants the positions of a bit pattern and changes nothing.
struct Watch(u64);

impl OpHook for Watch {
    fn wants(&self, _: u16, position: u32) -> bool {
        self.0 >> (position % 64) & 1 == 1
    }

    fn after(&mut self, _: u16, _: u32, _: usize, _: &mut OpTensor) {}
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_chunking_threads_instructions_and_hooks_give_the_same_bits(
        seed in 0u64..1000,
        n in 1usize..150,
        pieces in proptest::collection::vec(1usize..90, 1..5),
        watched: u64,
    ) {
        let (_dir, model) = model(seed);
        let tokens = tokens(n, model.manifest().vocab, seed);
        let cpu = Cpu::with_threads(model.clone(), 2).unwrap();
        let whole = run(&cpu, &tokens, &[n]);
        prop_assert_eq!(whole.1.len(), n);
        prop_assert_eq!(&run(&cpu, &tokens, &pieces), &whole, "pieces {:?}", pieces);
        prop_assert_eq!(&run(&cpu, &tokens, &[1]), &whole, "one by one");
        // Positions alone, with every operator's output in full, are another code path.
        let hooked = cpu.with_hook(Arc::new(move || Box::new(Watch(watched))));
        prop_assert_eq!(&run(&hooked, &tokens, &pieces), &whole, "watched");
        for simd in Simd::all() {
            let other = Cpu::with_threads(model.clone(), 1).unwrap().with_simd(simd);
            prop_assert_eq!(&run(&other, &tokens, &pieces), &whole, "{}", simd.name());
        }
    }
}

/// Serves the scalar reference from a replay.
struct Reader<'a> {
    replay: &'a Replay,
    d: &'a Descriptor,
    own: &'a [i64],
    best: u32,
    exports: &'a [usize],
}

impl Reader<'_> {
    fn slice(&self, operand: usize, bytes: &[u8], start: u64, len: u64) -> Result<Vec<i64>, String> {
        let dtype = self.d.operands[operand].dtype;
        let all: Vec<i64> = bytes.chunks(dtype.width()).map(|b| dtype.decode(b)).collect();
        let n = self.d.operand_elements(operand, self.replay.position).ok_or("elements")? as usize;
        let all = &all[all.len() - n..];
        all.get(start as usize..(start + len) as usize)
            .map(<[i64]>::to_vec)
            .ok_or(format!("operand {operand}: {start}"))
    }
}

impl StepReader for Reader<'_> {
    type Error = String;

    fn read(&mut self, operand: usize, start: u64, len: u64) -> Result<Vec<i64>, String> {
        let o = self.d.operands[operand];
        let bytes = match o.kind {
            OperandKind::Op => self.replay.ops[o.index as usize].clone(),
            OperandKind::Prev => self.replay.previous().into_iter().rev().nth(o.index as usize).ok_or("prev")?,
            _ => self.replay.table(o.resolve(self.replay.layer)).ok_or("table")?.0,
        };
        self.slice(operand, &bytes, start, len)
    }

    fn cache(&mut self, operand: usize, first: u32, positions: u32, start: u64, len: u64) -> Result<Vec<i64>, String> {
        let index = self.d.operands[operand].index as usize;
        let mut all = Vec::new();
        for p in first..first + positions {
            let own = || self.replay.ops[self.exports[index]].clone();
            let bytes = if p == self.replay.position { own() } else { self.replay.cached(p).swap_remove(index) };
            all.extend(self.slice(operand, &bytes, start, len)?);
        }
        Ok(all)
    }

    fn row(&mut self, operand: usize, row: u32, column: u32) -> Result<RowData, String> {
        let (bytes, _) =
            self.replay.weight_row(self.d.operands[operand].resolve(self.replay.layer), row).ok_or("row")?;
        let columns = self.d.params[2] as usize;
        let s = &bytes[4 * column as usize..];
        let format = RowFormat::from_code(self.d.params[3]).ok_or("format")?;
        let weights = format.weights(&bytes[4 * columns..]).ok_or("weights")?;
        Ok(RowData { m: u16::from_be_bytes([s[0], s[1]]), sh: i16::from_be_bytes([s[2], s[3]]), weights })
    }

    fn token(&mut self, operand: usize) -> Result<u32, String> {
        let at = (self.replay.position + self.d.operands[operand].index) as usize;
        Ok([self.replay.prompt(), self.replay.output()].concat()[at])
    }

    fn tokens(&mut self, _: usize, first: u32, len: u32) -> Result<Vec<u32>, String> {
        let all = [self.replay.prompt(), self.replay.output()].concat();
        all.get(first as usize..(first + len) as usize).map(<[u32]>::to_vec).ok_or("tokens".into())
    }

    fn sampling(&mut self) -> Sampling {
        self.replay.run().sampling
    }

    fn noise(&mut self, position: u32, token: u32) -> u32 {
        self.replay.run().noise(position, token)
    }

    fn own(&mut self, index: u64) -> Result<i64, String> {
        Ok(self.own[index as usize])
    }

    fn claimed(&mut self) -> Result<i64, String> {
        Ok(i64::from(self.best))
    }

    fn hint(&mut self) -> u32 {
        self.best
    }
}

/// Replays some rows of a layer: the trace has them, and every element is the scalar reference's.
fn check_rows(cpu: &Cpu, prompt: &[u32], output: &[u32], run: &RunParams, t: &Trace, layer: u16, rows: &[u32]) {
    let model = cpu.model();
    let kind = SectionKind::of_layer(layer, model.layers()).unwrap();
    let section = model.program().section(kind);
    let exports = section.exports();
    for row in rows {
        let r = replay(cpu, prompt, output, run, layer, *row).unwrap();
        assert_eq!(r.ops.len(), section.ops.len());
        // The replayed exports are those of the trace.
        let roots = r.op_roots();
        let leaf = trace::leaf(&exports.iter().map(|k| roots[*k]).collect::<Vec<_>>());
        assert_eq!(leaf, t.tree.layer(layer).leaves()[*row as usize]);
        if layer > 0 {
            let roots: Vec<_> = r.previous().iter().map(|t| tensor::tensor_root(t)).collect();
            assert_eq!(trace::leaf(&roots), t.tree.layer(layer - 1).leaves()[r.position as usize]);
        }
        if kind == SectionKind::Block {
            for p in 0..r.position {
                let roots: Vec<_> = r.cached(p).iter().map(|t| tensor::tensor_root(t)).collect();
                assert_eq!(trace::leaf(&roots), t.tree.layer(layer).leaves()[p as usize]);
            }
        }
        for (k, d) in section.ops.iter().enumerate() {
            let bytes = &r.ops[k];
            assert_eq!(bytes.len() as u64, d.bytes(r.position));
            let values: Vec<i64> = bytes.chunks(d.dtype.width()).map(|b| d.dtype.decode(b)).collect();
            for (i, v) in values.iter().enumerate() {
                let claims = matches!(d.opcode, Opcode::Select | Opcode::Sample | Opcode::Top);
                let best = if claims { *v as u32 } else { 0 };
                let mut reader = Reader { replay: &r, d, own: &values[..i], best, exports: &exports };
                let want = element(d, r.position, i as u64, &mut reader);
                assert_eq!(want, Ok(*v), "layer {layer} row {row} operator {k} ({}) element {i}", d.opcode);
            }
        }
    }
}

#[test]
fn every_element_of_a_replayed_row_is_the_scalar_references() {
    for seed in 0..6 {
        let (_dir, model) = model(seed);
        let cpu = Cpu::with_threads(model.clone(), 2).unwrap();
        let prompt = tokens(30, model.manifest().vocab, seed);
        let run = RunParams::default();
        let request = Request { prompt: &prompt, max_new: 9, stop: &[], run, cancel: None };
        let g = generate(&cpu, &request, &mut |_| {}).unwrap();
        for layer in 0..=model.layers() + 1 {
            let rows = [0, 3, g.trace.dims.rows(layer) - 1];
            check_rows(&cpu, &prompt, &g.tokens, &run, &g.trace, layer, &rows);
        }
    }
}

#[test]
fn every_family_gives_the_same_bits_however_it_runs() {
    for (i, (name, model)) in families::models().iter().enumerate() {
        let params = families::sampled(i as u8);
        let tokens = tokens(41 + 5 * i, model.manifest().vocab, i as u64);
        let cpu = Cpu::with_threads(model.clone(), 2).unwrap();
        let whole = run_with(&cpu, &params, &tokens, &[tokens.len()]);
        assert_ne!(whole.1, run(&cpu, &tokens, &[tokens.len()]).1, "{name}: sampling has no effect");
        for pieces in [&[1][..], &[17, 3, 6]] {
            assert_eq!(run_with(&cpu, &params, &tokens, pieces), whole, "{name} {pieces:?}");
            let hooked = cpu.with_hook(Arc::new(move || Box::new(Watch(0x3_5A1C_99F0_0FF7 << i))));
            assert_eq!(run_with(&hooked, &params, &tokens, pieces), whole, "{name} {pieces:?} watched");
        }
        for simd in Simd::all() {
            let other = Cpu::with_threads(model.clone(), 1).unwrap().with_simd(simd);
            for pieces in [&[tokens.len()][..], &[1], &[9, 2, 4]] {
                assert_eq!(run_with(&other, &params, &tokens, pieces), whole, "{name} {pieces:?} {}", simd.name());
            }
        }
    }
}

#[test]
fn every_familys_runs_are_audited_and_replayed_as_the_scalar_reference_has_them() {
    for (i, (name, model)) in families::models().iter().enumerate() {
        let cpu = Cpu::with_threads(model.clone(), 2).unwrap();
        let prompt = tokens(19 + i, model.manifest().vocab, i as u64);
        for run in [RunParams::default(), families::sampled(i as u8)] {
            let request = Request { prompt: &prompt, max_new: 12, stop: &[], run, cancel: None };
            let g = generate(&cpu, &request, &mut |_| {}).unwrap();
            let audited = audit(&cpu, &prompt, &g.tokens, &run, None).unwrap();
            assert_eq!((&audited.trace, audited.first_wrong_token(&g.tokens)), (&g.trace, None), "{name}");
            for layer in 0..=model.layers() + 1 {
                // One of the last rows, which see more than a window, or any.
                let rows = g.trace.dims.rows(layer);
                let row = if run == RunParams::default() { rows - 1 - i as u32 % 4 } else { 7 * i as u32 % rows };
                check_rows(&cpu, &prompt, &g.tokens, &run, &g.trace, layer, &[row]);
            }
        }
    }
}

/// Changes one element of one operator at one (layer, position).
struct Lie {
    layer: u16,
    position: u32,
    op: usize,
}

impl OpHook for Lie {
    fn wants(&self, layer: u16, position: u32) -> bool {
        (layer, position) == (self.layer, self.position)
    }

    fn after(&mut self, _: u16, _: u32, op: usize, out: &mut OpTensor) {
        if op == self.op {
            let v = out.get(0).unwrap();
            out.set(0, v ^ 1);
        }
    }
}

#[test]
fn a_tampered_element_is_committed_to_and_replayed_and_nothing_before_it_changes() {
    let (_dir, model) = model(1);
    let cpu = Cpu::with_threads(model.clone(), 2).unwrap();
    let prompt = tokens(20, model.manifest().vocab, 5);
    let request = Request { prompt: &prompt, max_new: 6, stop: &[], run: RunParams::default(), cancel: None };
    let (layer, position) = (1, 7);
    let ops = &model.program().section(SectionKind::Block).ops;
    for op in 0..ops.len() {
        let liar = cpu.with_hook(Arc::new(move || Box::new(Lie { layer, position, op })));
        let g = generate(&liar, &request, &mut |_| {}).unwrap();
        let honest = audit(&cpu, &prompt, &g.tokens, &RunParams::default(), None).unwrap();
        // The lie itself, which an export need not show.
        let told = replay(&liar, &prompt, &g.tokens, &RunParams::default(), layer, position).unwrap();
        let right = replay(&cpu, &prompt, &g.tokens, &RunParams::default(), layer, position).unwrap();
        let wrong: Vec<usize> = (0..ops.len()).filter(|k| told.ops[*k] != right.ops[*k]).collect();
        assert_eq!(wrong.first(), Some(&op), "{}", ops[op].opcode);
        let roots = told.op_roots();
        let exports = model.program().section(SectionKind::Block).exports();
        let leaf = trace::leaf(&exports.iter().map(|k| roots[*k]).collect::<Vec<_>>());
        assert_eq!(leaf, g.trace.tree.layer(layer).leaves()[position as usize]);
        if let Some(first) = g.trace.tree.first_difference(&honest.trace.tree) {
            assert_eq!(first, (layer, position), "{}", ops[op].opcode);
        }
        assert_eq!(
            audit(&liar, &prompt, &g.tokens, &RunParams::default(), None).unwrap().trace,
            g.trace,
            "a liar's story is consistent"
        );
    }
}

#[test]
fn an_audit_gives_the_generations_trace_and_finds_a_foreign_token() {
    let (_dir, model) = model(4);
    let cpu = Cpu::new(model.clone()).unwrap();
    let prompt = tokens(70, model.manifest().vocab, 3);
    let mut seen = Vec::new();
    let request = Request { prompt: &prompt, max_new: 80, stop: &[], run: RunParams::default(), cancel: None };
    let g = generate(&cpu, &request, &mut |t| seen.push(t)).unwrap();
    assert_eq!((seen.len(), &seen), (80, &g.tokens));
    let a = audit(&cpu, &prompt, &g.tokens, &RunParams::default(), None).unwrap();
    assert_eq!((&a.trace, a.first_wrong_token(&g.tokens)), (&g.trace, None));
    let mut output = g.tokens.clone();
    output[40] = (output[40] + 1) % model.manifest().vocab;
    let a = audit(&cpu, &prompt, &output, &RunParams::default(), None).unwrap();
    assert_eq!(a.first_wrong_token(&output), Some(40));
    assert_ne!(a.trace.root, g.trace.root);

    let stop = Request { stop: &g.tokens[10..11], ..request };
    let short = generate(&cpu, &stop, &mut |_| {}).unwrap();
    let at = g.tokens.iter().position(|t| *t == g.tokens[10]).unwrap();
    assert_eq!(short.tokens, g.tokens[..=at]);
}

#[test]
fn requests_that_cannot_be_run_are_errors() {
    let (_dir, model) = model(2);
    let cpu = Cpu::new(model.clone()).unwrap();
    let vocab = model.manifest().vocab;
    let ask = |prompt: &[u32], max_new| {
        generate(&cpu, &Request { prompt, max_new, stop: &[], run: RunParams::default(), cancel: None }, &mut |_| {})
            .unwrap_err()
    };
    assert!(matches!(ask(&[], 4), EngineError::Request(_)));
    assert!(matches!(ask(&[1], 0), EngineError::Request(_)));
    assert!(matches!(ask(&[1], 4000), EngineError::Capacity { wanted: 4000, capacity: 256 }));
    assert!(matches!(ask(&[1, vocab], 4), EngineError::Token { token, .. } if token == vocab));
    let stop = std::sync::atomic::AtomicBool::new(true);
    let cancelled = Request { prompt: &[1], max_new: 4, stop: &[], run: RunParams::default(), cancel: Some(&stop) };
    assert!(matches!(generate(&cpu, &cancelled, &mut |_| {}), Err(EngineError::Sink(_))));
    assert!(matches!(audit(&cpu, &[1], &[], &RunParams::default(), None), Err(EngineError::Request(_))));
    assert!(matches!(audit(&cpu, &[1], &[vocab, 1], &RunParams::default(), None), Err(EngineError::Token { .. })));
    assert!(matches!(replay(&cpu, &[1], &[2, 3], &RunParams::default(), 0, 2), Err(EngineError::Request(_))));
    assert!(matches!(
        replay(&cpu, &[1], &[2, 3], &RunParams::default(), model.layers() + 2, 0),
        Err(EngineError::Request(_))
    ));
    assert!(matches!(cpu.session(257).err(), Some(EngineError::Capacity { .. })));
    let mut session = cpu.session(2).unwrap();
    let full = session.extend(&[1, 2, 3], u32::MAX, &mut sworn_engine::NoExports);
    assert!(matches!(full, Err(EngineError::Capacity { wanted: 3, capacity: 2 })));
    assert_eq!(session.extend(&[1, 2], u32::MAX, &mut sworn_engine::NoExports).unwrap(), Vec::<u32>::new());
}

/// Refuses everything from one layer on.
struct Full(u16);

impl ExportSink for Full {
    fn export(&mut self, layer: u16, _: u32, _: &[&[u8]]) -> Result<(), EngineError> {
        if layer >= self.0 { Err(EngineError::Sink("disk full".into())) } else { Ok(()) }
    }
}

#[test]
fn a_session_whose_sink_failed_goes_on_where_it_was() {
    let (_dir, model) = model(3);
    let cpu = Cpu::new(model.clone()).unwrap();
    let tokens = tokens(90, model.manifest().vocab, 1);
    let whole = run(&cpu, &tokens, &[90]);
    let mut session = cpu.session(90).unwrap();
    let mut all = Everything::default();
    session.extend(&tokens[..20], 0, &mut all).unwrap();
    for layer in [0, 1, model.layers() + 1] {
        assert!(matches!(session.extend(&tokens[20..30], 0, &mut Full(layer)), Err(EngineError::Sink(_))));
        assert_eq!(session.len(), 20);
    }
    session.extend(&tokens[20..], 0, &mut all).unwrap();
    assert_eq!(all, whole.0);
}
