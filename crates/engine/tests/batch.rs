//! Requests that are answered together: each answer, token for token and leaf for leaf, is what it would be alone.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use sworn_commit::{HeadRow, RunParams};
use sworn_engine::{Backend, Cpu, EngineError, Limits, Request, Scheduler, audit, generate, generate_until};
use sworn_isa::{Opcode, Sampling, SectionKind};
use sworn_model::{Model, SyntheticSpec, synthetic};

fn model(seed: u64) -> (tempfile::TempDir, Arc<Model>) {
    let dir = tempfile::tempdir().unwrap();
    let spec = SyntheticSpec { seed, layers: 2, context: 256, ..SyntheticSpec::default() };
    let model = synthetic(&spec, dir.path().join("model")).unwrap();
    (dir, Arc::new(model))
}

fn never() -> Arc<AtomicBool> {
    Arc::default()
}

#[derive(Clone, Debug)]
struct Asked {
    /// Whose conversation it goes on with: requests of one have a common beginning.
    conversation: u32,
    prompt: usize,
    max_new: u32,
    temperature: u32,
    delay_us: u64,
}

fn asked() -> impl Strategy<Value = Asked> {
    (0u32..3, 1usize..90, 1u32..20, prop_oneof![Just(0u32), 2048u32..8192], 0u64..3000).prop_map(
        |(conversation, prompt, max_new, temperature, delay_us)| Asked {
            conversation,
            prompt,
            max_new,
            temperature,
            delay_us,
        },
    )
}

fn prompt(of: &Asked, vocab: u32) -> Vec<u32> {
    (0..of.prompt as u32).map(|i| (i * i + 7 * of.conversation + i) % vocab).collect()
}

fn run(of: &Asked, samples: bool) -> RunParams {
    let inverse_temperature = if samples { of.temperature } else { 0 };
    let sampling = Sampling { inverse_temperature, ..Sampling::GREEDY };
    RunParams { sampling, seed: [of.conversation as u8; 32] }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn an_answer_does_not_depend_on_the_company(
        seed in 0u64..50,
        all in proptest::collection::vec(asked(), 1..10),
        sequences in 1usize..5,
        positions in 1usize..40,
        kept in 0usize..3,
    ) {
        let (_dir, model) = model(seed);
        let vocab = model.manifest().vocab;
        let samples = model.program().section(SectionKind::Head).ops.iter().any(|d| d.opcode == Opcode::Sample);
        let cpu = Cpu::with_threads(model, 2).unwrap();
        let limits = Limits { sequences, positions, waiting: 100, kept };
        let scheduler = Scheduler::new(Arc::new(cpu.clone()), limits).unwrap();
        let answers: Vec<_> = std::thread::scope(|s| {
            let ask = |a: Asked| {
                let scheduler = &scheduler;
                s.spawn(move || {
                    std::thread::sleep(Duration::from_micros(a.delay_us));
                    let prompt = prompt(&a, vocab);
                    let request =
                        Request { prompt: &prompt, max_new: a.max_new, stop: &[3], run: run(&a, samples), cancel: None };
                    let mut seen = Vec::new();
                    let g = scheduler.generate(&request, never(), &mut |t| seen.push(t)).unwrap();
                    assert_eq!(seen, g.tokens);
                    (a, g)
                })
            };
            let threads: Vec<_> = all.into_iter().map(ask).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        for (a, g) in answers {
            let prompt = prompt(&a, vocab);
            let request = Request { prompt: &prompt, max_new: a.max_new, stop: &[3], run: run(&a, samples), cancel: None };
            let alone = generate(&cpu, &request, &mut |_| {}).unwrap();
            prop_assert_eq!(&g.tokens, &alone.tokens);
            prop_assert_eq!(&g.trace, &alone.trace);
        }
    }
}

#[test]
fn a_longer_conversation_takes_over_what_was_read() {
    let (_dir, model) = model(3);
    let vocab = model.manifest().vocab;
    let cpu = Cpu::with_threads(model, 1).unwrap();
    let scheduler = Scheduler::new(Arc::new(cpu.clone()), Limits::default()).unwrap();
    let mut prompt: Vec<u32> = (0..40).map(|i| i * 5 % vocab).collect();
    for turn in 0..3 {
        let request = Request { prompt: &prompt, max_new: 8, stop: &[], run: RunParams::default(), cancel: None };
        let g = scheduler.generate(&request, never(), &mut |_| {}).unwrap();
        let alone = generate(&cpu, &request, &mut |_| {}).unwrap();
        assert_eq!((g.tokens.clone(), g.trace), (alone.tokens, alone.trace), "turn {turn}");
        prompt.extend(g.tokens);
        prompt.extend([1, 2, turn]);
    }
}

/// Ended by whoever asked, at any token: the same as if so many had been asked for, though the thread may have gone on meanwhile.
#[test]
fn an_answer_ends_where_it_is_enough() {
    let (_dir, model) = model(5);
    let cpu = Cpu::with_threads(model, 1).unwrap();
    let scheduler = Scheduler::new(Arc::new(cpu.clone()), Limits::default()).unwrap();
    let prompt: Vec<u32> = (1..20).collect();
    let request = |max_new| Request { prompt: &prompt, max_new, stop: &[], run: RunParams::default(), cancel: None };
    let whole = generate(&cpu, &request(12), &mut |_| {}).unwrap();
    for wanted in 1..=12 {
        let (mut seen, mut rows) = (Vec::new(), Vec::new());
        let mut on_token = |token, row: Option<&HeadRow>| {
            seen.push(token);
            rows.extend(row.cloned());
            // Lets the thread run ahead.
            std::thread::sleep(Duration::from_millis(2));
            if seen.len() == wanted { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let g = scheduler.generate_until(&request(12), never(), &mut on_token).unwrap();
        let alone = generate_until(&cpu, &request(wanted as u32), &mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!((&seen, &rows), (&g.tokens, &g.trace.log_probs));
        assert_eq!(rows.len(), wanted, "the model commits to them");
        assert_eq!((&g.tokens, &g.trace), (&alone.tokens, &alone.trace), "{wanted}");
        assert_eq!(audit(&cpu, &prompt, &g.tokens, &RunParams::default(), None).unwrap().trace, g.trace);
        let mut cut = whole.clone();
        cut.cut(&cpu.model().id(), &prompt, wanted).unwrap();
        assert_eq!((cut.tokens, cut.trace), (g.tokens, g.trace), "{wanted}");
    }
    let mut same = whole.clone();
    same.cut(&cpu.model().id(), &prompt, 13).unwrap();
    assert_eq!(same.trace, whole.trace);
    assert!(whole.trace.cut(&cpu.model().id(), &prompt, &[0; 13]).is_err());
    assert!(whole.trace.cut(&cpu.model().id(), &[], &[0; 13]).is_err());
}

#[test]
fn too_many_bad_and_cancelled_requests_are_errors_of_their_own() {
    let (_dir, model) = model(4);
    let vocab = model.manifest().vocab;
    let cpu = Cpu::with_threads(model, 1).unwrap();
    let limits = Limits { sequences: 1, positions: 4, waiting: 0, kept: 0 };
    let scheduler = Scheduler::new(Arc::new(cpu.clone()), limits).unwrap();
    let request = |prompt| Request { prompt, max_new: 4, stop: &[], run: RunParams::default(), cancel: None };
    let full = scheduler.generate(&request(&[1, 2]), never(), &mut |_| {});
    assert!(matches!(full, Err(EngineError::Request(m)) if m.contains("wait")));

    let scheduler = Scheduler::new(Arc::new(cpu.clone()), Limits { waiting: 8, ..limits }).unwrap();
    let beyond = [1, vocab];
    let unknown = scheduler.generate(&request(&beyond), never(), &mut |_| {});
    assert!(matches!(unknown, Err(EngineError::Token { .. })));
    assert!(matches!(scheduler.generate(&request(&[]), never(), &mut |_| {}), Err(EngineError::Request(_))));
    // One that is cancelled before it runs, and one that is cancelled by its first token. The latter may be answered in full before
    // its flag is seen, so it is asked until the flag was in time.
    let cancelled = |r: &Result<_, EngineError>| matches!(r, Err(EngineError::Sink(m)) if m == "cancelled");
    let early = never();
    early.store(true, Ordering::Relaxed);
    assert!(cancelled(&scheduler.generate(&request(&[1, 2, 3, 4, 5]), early, &mut |_| {})));
    let long = Request { max_new: 200, ..request(&[1, 2, 3, 4, 5]) };
    let in_time = (0..50).any(|_| {
        let cancel = never();
        let answer = scheduler.generate(&long, cancel.clone(), &mut |_| cancel.store(true, Ordering::Relaxed));
        assert!(cancelled(&answer) || answer.is_ok());
        cancelled(&answer)
    });
    assert!(in_time);
    // It still answers.
    let g = scheduler.generate(&request(&[1, 2]), never(), &mut |_| {}).unwrap();
    assert_eq!(g.tokens, generate(&cpu, &request(&[1, 2]), &mut |_| {}).unwrap().tokens);
    assert_eq!(scheduler.load(), (0, 0));
}
