//! One wrong element, propagated: what a dishonest executor commits to.

use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sworn_commit::TraceDims;
use sworn_engine::{
    Audit, Backend, Cpu, EngineError, Generation, HookFactory, OpHook, OpTensor, Request, audit, generate,
};
use sworn_isa::{Descriptor, Opcode, Program, SectionKind, fixed::CL};
use sworn_model::Model;

/// Where an element is wrong; what is not given is chosen by the seed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// layer
    pub layer: Option<u16>,
    /// position in the sequence
    pub position: Option<u32>,
    /// element of the operator's output
    pub element: Option<u64>,
}

/// A chosen element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// layer
    pub layer: u16,
    /// position in the sequence
    pub position: u32,
    /// operator of the layer's section
    pub op: usize,
    /// element; `None`: chosen by the seed when the output's size is known
    pub element: Option<u64>,
    /// chooses the element and the size of the error
    pub seed: u64,
}

/// Another value than `right`, chosen by `attempt`, within the ranges that later operators rely on, so that everything after
/// the wrong element is computed as the opcodes define it.
pub fn wrong_value(d: &Descriptor, element: u64, right: i64, attempt: u32, rng: &mut impl Rng) -> i64 {
    use Opcode::*;
    let grow = 1i64 << (2 * attempt.min(6));
    let toward_zero = |by: i64| if right > 0 { right - by } else { right + by };
    let mantissa = |step: i64| if right + step < 1 << 16 { right + step } else { right - step };
    match d.opcode {
        Embed | Gain | Linear | Rope | SiluMul | Add | GeluMul | Dequant | SoftCap | Temper => {
            toward_zero((6000 * grow).min(CL as i64 / 2))
        }
        // A maximum that is too small would let quantisers overflow.
        MaxAbs => (right * 2 * grow).min(i32::MAX as i64 / 2).max(right + 1),
        SumSq if element.is_multiple_of(2) => (right + right / 2 + 1).min((1 << 27) - 1),
        SumSq => right ^ 0x8000,
        Rms | QuantScale | NormScale | ScaleQ if element.is_multiple_of(2) => mantissa((200 * grow).min(8000)),
        Rms | QuantScale | NormScale | ScaleQ => right + 1,
        Quant => toward_zero(1 << (d.bits - 2)),
        ToFixed => toward_zero((2000 * grow).min(16000)),
        Scores | Window => toward_zero((20_000 * grow).min(CL as i64 / 2)),
        // Below the true maximum, differences would be negative.
        RowMax => (right + 9000 * grow).min(CL as i64),
        // A row's largest exponential must stay what it is, or the sum loses its lower bound.
        Exp => (right + 8192).min(40_960),
        RowSum => right + (right / 2).max(1),
        Prob => {
            if right < 16_384 {
                right + 8192
            } else {
                right - 8192
            }
        }
        Mix => toward_zero((1 << 20) * grow.min(64)),
        Max => (right + 9000 * grow).min(CL as i64),
        // More than any rank asks for, and more than a token's mass.
        Histogram | Sum => right + 4096 * grow,
        // Only the likeliest bin, or one more.
        Cut if element == 0 => i64::from(right == 0),
        Cut => right + grow,
        // Shuts tokens out that may be drawn; letting more in seldom shows.
        Threshold => (right + 5000 * grow).min(CL as i64),
        // More than there is, so that no logit is above the sum.
        Mass => (right + (1 << 18) * grow).min(1 << 30),
        LogSum => right + 5000 * grow,
        LogProb => right - 5000 * grow,
        Select | Sample | Top => {
            let vocabulary = i64::from(d.params[0].max(2));
            (right + rng.random_range(1..vocabulary)) % vocabulary
        }
    }
}

struct Hook {
    place: Place,
    attempt: u32,
    descriptor: Descriptor,
}

impl OpHook for Hook {
    fn wants(&self, layer: u16, position: u32) -> bool {
        (layer, position) == (self.place.layer, self.place.position)
    }

    fn after(&mut self, _: u16, _: u32, op: usize, out: &mut OpTensor) {
        if op != self.place.op || out.is_empty() {
            return;
        }
        let d = &self.descriptor;
        let mut rng = StdRng::seed_from_u64(self.place.seed);
        let (n, inner) = (out.len() as u64, u64::from(d.inner.max(1)));
        let running = matches!(d.opcode, Opcode::RowMax | Opcode::RowSum | Opcode::Mix);
        let element = match self.place.element {
            Some(e) => e.min(n - 1),
            // Later operators read the last slab.
            None if running => n - inner + rng.random_range(0..inner),
            None if matches!(d.opcode, Opcode::SumSq) => rng.random_range(0..n) & !1,
            // Where tokens are that may be drawn.
            None if matches!(d.opcode, Opcode::Histogram | Opcode::Sum) => rng.random_range(0..n.min(8 * inner)),
            None if d.opcode == Opcode::Cut => 0,
            None => rng.random_range(0..n),
        };
        let right = out.get(element as usize).unwrap_or(0);
        let wrong = wrong_value(d, element, right, self.attempt, &mut rng);
        out.set(element as usize, wrong);
        if running {
            // The slabs after a wrong one go on from it.
            for later in (element + inner..n).step_by(inner as usize) {
                let v = out.get(later as usize).unwrap_or(0);
                let v = if d.opcode == Opcode::RowMax { v.max(wrong) } else { v + wrong - right };
                out.set(later as usize, v);
            }
        }
    }
}

/// The hook that makes the element wrong; `None` if the program has no such operator.
pub fn hook(model: &Model, place: Place, attempt: u32) -> Option<Box<dyn OpHook>> {
    let section = model.program().section(SectionKind::of_layer(place.layer, model.layers())?);
    let descriptor = *section.ops.get(place.op)?;
    Some(Box::new(Hook { place, attempt, descriptor }))
}

/// Touches nothing.
struct Honest;

impl OpHook for Honest {
    fn wants(&self, _: u16, _: u32) -> bool {
        false
    }

    fn after(&mut self, _: u16, _: u32, _: usize, _: &mut OpTensor) {}
}

/// The backend with one element made wrong.
pub fn tampered(cpu: &Cpu, place: Place, attempt: u32) -> Cpu {
    let model = cpu.model().clone();
    let factory: HookFactory = Arc::new(move || hook(&model, place, attempt).unwrap_or(Box::new(Honest)));
    cpu.with_hook(factory)
}

/// The operators of this opcode, as (section, operator).
pub fn operators(program: &Program, opcode: Opcode) -> Vec<(SectionKind, usize)> {
    let kinds = [SectionKind::Embedding, SectionKind::Block, SectionKind::Head];
    let ops =
        kinds.into_iter().flat_map(|k| program.section(k).ops.iter().enumerate().map(move |(i, d)| (k, i, d.opcode)));
    ops.filter(|(_, _, o)| *o == opcode).map(|(k, i, _)| (k, i)).collect()
}

/// Chooses a place for a wrong element of `opcode` in a run of `n_in` prompt and at most `max_new` output tokens.
pub fn choose(
    program: &Program,
    layers: u16,
    opcode: Opcode,
    wanted: Wanted,
    (n_in, max_new): (u32, u32),
    seed: u64,
) -> Option<Place> {
    let mut rng = StdRng::seed_from_u64(seed);
    let kind_of = |layer| SectionKind::of_layer(layer, layers);
    let mut all = operators(program, opcode);
    if let Some(layer) = wanted.layer {
        all.retain(|(k, _)| Some(*k) == kind_of(layer));
    }
    if all.is_empty() {
        return None;
    }
    let (kind, op) = all[rng.random_range(0..all.len())];
    let layer = wanted.layer.unwrap_or(match kind {
        SectionKind::Embedding => 0,
        SectionKind::Block => rng.random_range(1..=layers),
        SectionKind::Head => layers + 1,
    });
    let first = if kind == SectionKind::Head { n_in - 1 } else { 0 };
    // An answer may end early: the first few positions of it exist in most.
    let last = n_in - 1 + (max_new - 1).min(3);
    let position = wanted.position.unwrap_or_else(|| rng.random_range(first..=last.max(first)));
    Some(Place { layer, position, op, element: wanted.element, seed: rng.random() })
}

/// An answer with a wrong element in its commitment, and what an honest node would have committed to for the same tokens.
#[derive(Debug)]
pub struct Lied {
    /// the dishonest run
    pub generation: Generation,
    /// the honest one
    pub honest: Audit,
    /// the backend that repeats the dishonest run
    pub cpu: Cpu,
    /// where the element is
    pub place: Place,
}

/// Answers with a wrong element of `opcode`; tries places and errors until the commitment really contains it.
///
/// # Errors
/// The program has no such operator at the wanted layer, no attempt leaves a trace, or the execution fails.
pub fn lie(cpu: &Cpu, request: &Request<'_>, opcode: Opcode, wanted: Wanted, seed: u64) -> Result<Lied, EngineError> {
    let model = cpu.model();
    let size = (request.prompt.len() as u32, request.max_new);
    for attempt in 0..24u32 {
        let seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(u64::from(attempt));
        let place = choose(model.program(), model.layers(), opcode, wanted, size, seed)
            .ok_or_else(|| EngineError::Request(format!("no {opcode} to tamper with at that layer")))?;
        // Each place is tried with a small error first: attempts 0, 1, 2 and so on grow it.
        let dishonest = tampered(cpu, place, attempt / 2);
        let generation = generate(&dishonest, request, &mut |_| {})?;
        let honest = audit(cpu, request.prompt, &generation.tokens, &request.run, None)?;
        if honest.trace.root != generation.trace.root || honest.first_wrong_token(&generation.tokens).is_some() {
            return Ok(Lied { generation, honest, cpu: dishonest, place });
        }
    }
    Err(EngineError::Request(format!(
        "no wrong element of {opcode} left a trace: give another layer, position, element or seed"
    )))
}

/// The row of a place in a finished run; `None` if the run ended before it.
pub fn row_of(dims: &TraceDims, place: &Place) -> Option<u32> {
    dims.row(place.layer, place.position)
}
