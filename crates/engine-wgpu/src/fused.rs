//! Finds runs of operators that one kernel computes. Nothing is assumed about the model: a run is taken only where the
//! descriptors read each other as the kernel does, and nothing else reads what the kernel does not write.

use cubecl::prelude::{CubeCount, CubeDim};
use sworn_isa::{Descriptor, Opcode, Operand, OperandKind, Section};

use crate::GpuError;
use crate::gpu::{Call, Gpu};
use crate::kernels::{UNITS, fused};

/// A run that begins at some operator. Numbers are operators of the section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Run {
    /// One operator.
    Single,
    /// Seven: norm, gain and quantiser.
    Norm,
    /// Three: quantiser and scale.
    Quantise,
    /// Five: scores to probabilities.
    Probabilities,
}

impl Run {
    /// Operators in it.
    pub(crate) const fn len(self) -> usize {
        match self {
            Run::Single => 1,
            Run::Norm => 7,
            Run::Quantise => 3,
            Run::Probabilities => 5,
        }
    }

    /// The longest run that begins at operator `at`.
    pub(crate) fn find(section: &Section, at: usize) -> Run {
        let found = [(Run::Norm, is_norm as Matcher), (Run::Quantise, is_quantise), (Run::Probabilities, is_probabilities)];
        let found = found.into_iter().find(|(run, matches)| {
            section.ops.get(at..at + run.len()).is_some_and(|ops| matches(ops, at as u32, section))
        });
        found.map_or(Run::Single, |(run, _)| run)
    }
}

type Matcher = fn(&[Descriptor], u32, &Section) -> bool;

fn opcodes(ops: &[Descriptor], wanted: &[Opcode]) -> bool {
    ops.iter().map(|d| d.opcode).eq(wanted.iter().copied())
}

/// Whether `o` reads operator `op` as a whole.
fn reads(o: &Operand, op: u32) -> bool {
    o.kind == OperandKind::Op && o.index == op && !o.tail
}

/// Whether `o` reads the last slab of operator `op`.
fn reads_tail(o: &Operand, op: u32) -> bool {
    o.kind == OperandKind::Op && o.index == op && o.tail
}

/// Whether only operators of the run read operator `op`, which is not exported.
fn private(section: &Section, run: std::ops::Range<usize>, op: usize) -> bool {
    let outside = section.ops.iter().enumerate().filter(|(k, _)| !run.contains(k));
    let read = outside.flat_map(|(_, d)| d.operands).any(|o| o.kind == OperandKind::Op && o.index as usize == op);
    !section.ops[op].export && !read
}

fn is_norm(ops: &[Descriptor], at: u32, section: &Section) -> bool {
    use Opcode::{Gain, MaxAbs, NormScale, Quant, Rms, SumSq};
    if !opcodes(ops, &[MaxAbs, SumSq, Rms, Gain, MaxAbs, Quant, NormScale]) {
        return false;
    }
    let [max, ss, rms, gain, v_max, quant, scale] = ops else { return false };
    let n = gain.params[0];
    let x = max.operands[0];
    let one_group = max.params[1] == n
        && ss.params[0] == n
        && rms.params[1] == 1
        && v_max.params[1] == n
        && quant.params[0] == n
        && scale.params[0] == n
        && [max, v_max].iter().all(|d| d.count(0) == 1)
        && ss.count(0) == 2
        && [gain, quant].iter().all(|d| d.count(0) == n as u64);
    let run = at as usize..at as usize + 7;
    one_group
        && ss.operands[0] == x
        && reads(&ss.operands[1], at)
        && reads(&rms.operands[0], at + 1)
        && reads(&rms.operands[1], at)
        && gain.operands[0] == x
        && reads(&v_max.operands[0], at + 3)
        && reads(&quant.operands[0], at + 3)
        && reads(&quant.operands[1], at + 4)
        && reads(&scale.operands[0], at + 4)
        && reads(&scale.operands[1], at + 2)
        && scale.operands[2] == gain.operands[1]
        && (run.start..run.start + 5).all(|op| private(section, run.clone(), op))
}

fn is_quantise(ops: &[Descriptor], at: u32, section: &Section) -> bool {
    let [max, quant, scale] = ops else { return false };
    let kinds = max.opcode == Opcode::MaxAbs
        && quant.opcode == Opcode::Quant
        && matches!(scale.opcode, Opcode::QuantScale | Opcode::ScaleQ);
    let groups = max.count(0);
    let run = at as usize..at as usize + 3;
    kinds
        && max.params[1] == quant.params[0]
        && scale.count(0) == 2 * groups
        && quant.operands[0] == max.operands[0]
        && reads(&quant.operands[1], at)
        && reads(&scale.operands[0], at)
        && private(section, run.clone(), run.start)
}

fn is_probabilities(ops: &[Descriptor], at: u32, section: &Section) -> bool {
    use Opcode::{Exp, Prob, RowMax, RowSum, Scores};
    if !opcodes(ops, &[Scores, RowMax, Exp, RowSum, Prob]) {
        return false;
    }
    let [_, max, exp, sum, prob] = ops else { return false };
    let run = at as usize..at as usize + 5;
    reads(&max.operands[0], at)
        && reads(&exp.operands[0], at)
        && reads_tail(&exp.operands[1], at + 1)
        && reads(&sum.operands[0], at + 2)
        && reads(&prob.operands[0], at + 2)
        && reads_tail(&prob.operands[1], at + 3)
        && (run.start..run.start + 4).all(|op| private(section, run.clone(), op))
}

impl Gpu {
    /// Queues the operators of a run.
    ///
    /// # Errors
    /// As [`Gpu::launch`].
    pub(crate) fn launch_run(&self, run: Run, calls: &[Call<'_>]) -> Result<(), GpuError> {
        let [first, .., last] = calls else { return calls.iter().try_for_each(|c| self.launch(c)) };
        let batch = first.batch;
        let ctx = first.ctx.arg();
        let (scale, sr) = (last.out.arg(), last.place.launch());
        let units = CubeDim::new_1d(UNITS);
        let p = |k: usize| calls[k].descriptor.params;
        let bits = |k: usize| u32::from(calls[k].descriptor.bits);
        match run {
            Run::Single => return calls.iter().try_for_each(|c| self.launch(c)),
            Run::Norm => {
                let ((x, xr), gain) = (first.rows(0)?, calls[3].table(1)?);
                let (out, or) = (calls[5].out.arg(), calls[5].place.launch());
                let count = CubeCount::Static(batch, 1, 1);
                let (n, epsilon) = (p(3)[0] as u32, p(2)[0] as u32);
                let (floor, v_floor) = (p(0)[0] as u32, p(4)[0] as u32);
                // SAFETY: as in `Gpu::launch`; the kernel touches the elements that the run's operators would.
                unsafe {
                    fused::norm::launch_unchecked(
                        self.client(), count, units, ctx, x, gain, out, scale, xr, or, sr, n, floor, epsilon, v_floor,
                        bits(5), bits(6), UNITS,
                    )
                }
            }
            Run::Quantise => {
                let (x, xr) = first.rows(0)?;
                let (out, or) = (calls[1].out.arg(), calls[1].place.launch());
                let count = CubeCount::Static(first.descriptor.count(0) as u32, batch, 1);
                let constant = last.descriptor.opcode == Opcode::ScaleQ;
                let scale_bits = if constant { 8 } else { bits(2) };
                let ([floor, group, ..], [e, c_m, c_e, _]) = (p(0), p(2));
                // SAFETY: as above.
                unsafe {
                    fused::quantise::launch_unchecked(
                        self.client(), count, units, ctx, x, out, scale, xr, or, sr, group as u32, floor as u32, bits(1),
                        scale_bits, e, c_m as u32, c_e, UNITS, constant,
                    )
                }
            }
            Run::Probabilities => {
                let ((q, qr), (qs, qsr)) = (first.rows(0)?, first.rows(1)?);
                let ((k, k_stride), (ks, ks_stride)) = (first.cache(2)?, first.cache(3)?);
                let table = calls[2].table(2)?;
                let count = CubeCount::Static(first.descriptor.outer, batch, 1);
                let (group, shared_by) = (p(0)[0] as u32, p(0)[1] as u32);
                // SAFETY: as above; the last operator's output is as large as the scores.
                unsafe {
                    fused::probabilities::launch_unchecked(
                        self.client(), count, units, ctx, q, qs, k, ks, table, scale, qr, qsr, k_stride, ks_stride, sr, group,
                        shared_by, UNITS,
                    )
                }
            }
        }
        Ok(())
    }
}
