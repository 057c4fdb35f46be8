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
        let found =
            [(Run::Norm, is_norm as Matcher), (Run::Quantise, is_quantise), (Run::Probabilities, is_probabilities)];
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
                        self.client(),
                        count,
                        units,
                        ctx,
                        x,
                        gain,
                        out,
                        scale,
                        xr,
                        or,
                        sr,
                        n,
                        floor,
                        epsilon,
                        v_floor,
                        bits(5),
                        bits(6),
                        UNITS,
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
                        self.client(),
                        count,
                        units,
                        ctx,
                        x,
                        out,
                        scale,
                        xr,
                        or,
                        sr,
                        group as u32,
                        floor as u32,
                        bits(1),
                        scale_bits,
                        e,
                        c_m as u32,
                        c_e,
                        UNITS,
                        constant,
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
                        self.client(),
                        count,
                        units,
                        ctx,
                        q,
                        qs,
                        k,
                        ks,
                        table,
                        scale,
                        qr,
                        qsr,
                        k_stride,
                        ks_stride,
                        sr,
                        group,
                        shared_by,
                        UNITS,
                    )
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rand::prelude::*;
    use sworn_isa::{Dtype, fixed::CL};
    use sworn_model::family::{ActivationBits, Formats};

    use super::*;
    use crate::adapter::Selection;
    use crate::gpu::{Buffer, Place, Source};

    fn op(opcode: Opcode, inner: u32, dtype: Dtype, params: [i32; 4], operands: &[Operand]) -> Descriptor {
        let mut all = [Operand::NONE; 4];
        all[..operands.len()].copy_from_slice(operands);
        Descriptor { opcode, dtype, export: false, bits: 0, outer: 1, div: 0, inner, params, operands: all }
    }

    /// What the operators outside a run supply: PREV, TABLE and CACHE operands by number, with a row's (or position's) length.
    struct Inputs {
        prev: Vec<(Buffer, u32)>,
        tables: Vec<Buffer>,
        caches: Vec<(Buffer, u32)>,
    }

    /// Runs a section's operators one by one or as one run; the outputs of `compare`, cut to each row's elements.
    fn outputs(
        gpu: &Gpu,
        ops: &[Descriptor],
        run: Run,
        inputs: &Inputs,
        first: u32,
        batch: u32,
        compare: &[usize],
    ) -> Vec<Vec<i32>> {
        let last = first + batch - 1;
        let strides: Vec<u32> = ops.iter().map(|d| d.count(last) as u32).collect();
        let buffers: Vec<Buffer> = strides.iter().map(|s| gpu.empty((batch * s) as usize).unwrap()).collect();
        let ctx = gpu.upload(std::iter::once(first as i32).chain((0..batch).map(|_| 0)).collect()).unwrap();
        let calls: Vec<Call<'_>> = ops
            .iter()
            .enumerate()
            .map(|(k, d)| {
                let mut operands = [Source::None; 4];
                for (source, o) in operands.iter_mut().zip(&d.operands) {
                    let i = o.index as usize;
                    *source = match o.kind {
                        OperandKind::Op => {
                            let tail = o.tail.then(|| (u32::from(o.stride), ops[i].inner));
                            Source::Rows(&buffers[i], Place { tail, ..Place::batch(strides[i]) })
                        }
                        OperandKind::Prev => Source::Rows(&inputs.prev[i].0, Place::batch(inputs.prev[i].1)),
                        OperandKind::Cache => Source::Cache(&inputs.caches[i].0, inputs.caches[i].1),
                        OperandKind::Table => Source::Table(&inputs.tables[i]),
                        _ => Source::None,
                    };
                }
                Call {
                    descriptor: d,
                    ctx: &ctx,
                    batch,
                    last,
                    operands,
                    out: &buffers[k],
                    place: Place::batch(strides[k]),
                }
            })
            .collect();
        gpu.launch_run(run, &calls).unwrap();
        let read =
            gpu.read(compare.iter().map(|k| buffers[*k].slice(0, (batch * strides[*k]) as usize)).collect()).unwrap();
        gpu.check(compare.iter().map(|k| &buffers[*k])).unwrap();
        let rows = |(k, words): (&usize, Vec<i32>)| -> Vec<i32> {
            let rows = words.chunks_exact(strides[*k] as usize).zip(first..);
            rows.flat_map(|(row, t)| row[..ops[*k].count(t) as usize].to_vec()).collect()
        };
        compare.iter().zip(read).map(rows).collect()
    }

    /// Vectors of every magnitude, of one magnitude, constant at a bound, and zero.
    fn vector(rng: &mut StdRng, n: usize, limit: i32) -> Vec<i32> {
        let top = limit >> rng.random_range(0..31);
        match rng.random_range(0..6) {
            0 => vec![if rng.random() { limit } else { -limit }; n],
            1 => vec![0; n],
            2 => (0..n).map(|_| (limit >> rng.random_range(0..31)) * if rng.random() { 1 } else { -1 }).collect(),
            _ => (0..n).map(|_| rng.random_range(-top..=top)).collect(),
        }
    }

    fn rows(rng: &mut StdRng, batch: u32, n: u32, limit: i32) -> Vec<i32> {
        (0..batch).flat_map(|_| vector(rng, n as usize, limit)).collect()
    }

    #[test]
    fn runs_give_the_bits_of_their_operators() {
        let gpu = Gpu::open(&Selection::Best).unwrap_or_else(|e| panic!("{e}"));
        let mut rng = StdRng::seed_from_u64(11);
        let (mut norms, mut quantisers, mut attention) = (0, 0, 0);
        let own = |k: u32| Operand::op(k, Dtype::I32);
        let x = Operand::prev(0, Dtype::I32);
        let batch = 24;
        for _ in 0..120 {
            let n = *[1, 2, 63, 64, 65, 300, 2048].choose(&mut rng).unwrap();
            let epsilon = rng.random_range(1..1 << 20);
            let floor = if rng.random() { epsilon } else { rng.random_range(epsilon..1 << 21) };
            let (bits, m) = (rng.random_range(8..=16u8), n as i32);
            let table = Operand::table(0, 0, Dtype::I16);
            let mut ops = vec![
                op(Opcode::MaxAbs, 1, Dtype::I32, [floor, m, 0, 0], &[x]),
                op(Opcode::SumSq, 2, Dtype::I32, [m, 0, 0, 0], &[x, own(0)]),
                op(Opcode::Rms, 2, Dtype::I32, [epsilon, 1, 0, 0], &[own(1), own(0)]),
                op(Opcode::Gain, n, Dtype::I32, [m, 0, 0, 0], &[x, table]),
                op(Opcode::MaxAbs, 1, Dtype::I32, [1, m, 0, 0], &[own(3)]),
                op(Opcode::Quant, n, Dtype::I16, [m, 0, 0, 0], &[own(3), own(4)]),
                op(Opcode::NormScale, 2, Dtype::I32, [m, 0, 0, 0], &[own(4), own(2), table]),
            ];
            (ops[5].bits, ops[6].bits) = (bits, bits);
            let mut gain = vector(&mut rng, n as usize, 32767);
            gain.push(rng.random_range(-100..100));
            let inputs = Inputs {
                prev: vec![(gpu.upload(rows(&mut rng, batch, n, CL)).unwrap(), n)],
                tables: vec![gpu.upload(gain).unwrap()],
                caches: Vec::new(),
            };
            let section = Section { ops: ops.clone() };
            assert_eq!(Run::find(&section, 0), Run::Norm);
            let each = |run| outputs(&gpu, &ops, run, &inputs, 5, batch, &[5, 6]);
            assert_eq!(each(Run::Norm), each(Run::Single), "norm of {n}, {bits} bits");
            norms += batch * (n + 2);

            let (groups, g) = (rng.random_range(1..6), *[1u32, 7, 64, 100].choose(&mut rng).unwrap());
            let constant: bool = rng.random();
            let scale = if constant {
                let c = [rng.random_range(-99..99), rng.random_range(1 << 15..1 << 16), rng.random_range(-99..99), 0];
                op(Opcode::ScaleQ, 2 * groups, Dtype::I32, c, &[own(0)])
            } else {
                op(Opcode::QuantScale, 2 * groups, Dtype::I32, [rng.random_range(-99..99), 0, 0, 0], &[own(0)])
            };
            let mut ops = vec![
                op(Opcode::MaxAbs, groups, Dtype::I32, [1, g as i32, 0, 0], &[x]),
                op(Opcode::Quant, groups * g, Dtype::I16, [g as i32, 0, 0, 0], &[x, own(0)]),
                scale,
            ];
            (ops[1].bits, ops[2].bits) = (bits, if constant { 0 } else { bits });
            let n = groups * g;
            let values: Vec<i32> = (0..batch * groups).flat_map(|_| vector(&mut rng, g as usize, i32::MAX)).collect();
            let inputs =
                Inputs { prev: vec![(gpu.upload(values).unwrap(), n)], tables: Vec::new(), caches: Vec::new() };
            assert_eq!(Run::find(&Section { ops: ops.clone() }, 0), Run::Quantise);
            let each = |run| outputs(&gpu, &ops, run, &inputs, 0, batch, &[1, 2]);
            assert_eq!(each(Run::Quantise), each(Run::Single), "quantiser of {groups} × {g}, {bits} bits");
            quantisers += batch * (n + 2 * groups);
        }
        let exp: Vec<i32> = (0..=256).map(|j| (32768.0 * (-f64::from(j) / 256.0).exp2()).round() as i32).collect();
        for _ in 0..60 {
            let (kv, by, g) =
                (rng.random_range(1..4), rng.random_range(1..4), *[1u32, 8, 64].choose(&mut rng).unwrap());
            let heads = kv * by;
            let first = *[0, 40, 250, 600].choose(&mut rng).unwrap();
            let block = *[16u16, 256].choose(&mut rng).unwrap();
            let rows_of = |d: Descriptor| Descriptor { outer: heads, div: 1, inner: 1, ..d };
            let running = |d: Descriptor| Descriptor { div: u32::from(block), ..d };
            let (q, qs) = (Operand::prev(0, Dtype::I8), Operand::prev(1, Dtype::I32));
            let (k, ks) = (Operand::cache(0, Dtype::I8), Operand::cache(1, Dtype::I32));
            let (b, h) = (i32::from(block), heads as i32);
            let ops = vec![
                rows_of(op(Opcode::Scores, 1, Dtype::I32, [g as i32, by as i32, 0, 0], &[q, qs, k, ks])),
                running(op(Opcode::RowMax, heads, Dtype::I32, [b, 0, 0, 0], &[own(0)])),
                rows_of(op(
                    Opcode::Exp,
                    1,
                    Dtype::U16,
                    [h, 0, 0, 0],
                    &[own(0), Operand::tail(1, Dtype::I32, block), Operand::table(0, 0, Dtype::U16)],
                )),
                running(op(Opcode::RowSum, heads, Dtype::I32, [b, 0, 0, 0], &[Operand::op(2, Dtype::U16)])),
                rows_of(op(
                    Opcode::Prob,
                    1,
                    Dtype::U16,
                    [h, 0, 0, 0],
                    &[Operand::op(2, Dtype::U16), Operand::tail(3, Dtype::I32, block)],
                )),
            ];
            let positions = first + batch;
            let shift = rng.random_range(-40..0);
            let mut scales = |n: u32| -> Vec<i32> {
                (0..n).flat_map(|_| [rng.random_range(1 << 15..1 << 16), shift / 2 + rng.random_range(-3..3)]).collect()
            };
            let (q_scales, k_scales) = (scales(batch * heads), scales(positions * kv));
            let inputs = Inputs {
                prev: vec![
                    (gpu.upload(rows(&mut rng, batch, heads * g, 127)).unwrap(), heads * g),
                    (gpu.upload(q_scales).unwrap(), 2 * heads),
                ],
                tables: vec![gpu.upload(exp.clone()).unwrap()],
                caches: vec![
                    (gpu.upload(rows(&mut rng, positions, kv * g, 127)).unwrap(), kv * g),
                    (gpu.upload(k_scales).unwrap(), 2 * kv),
                ],
            };
            assert_eq!(Run::find(&Section { ops: ops.clone() }, 0), Run::Probabilities);
            let each = |run| outputs(&gpu, &ops, run, &inputs, first, batch, &[4]);
            let fused = each(Run::Probabilities);
            assert_eq!(fused, each(Run::Single), "{heads} heads of {g} from position {first}");
            attention += fused[0].len();
        }
        eprintln!("fused runs: {norms} norm, {quantisers} quantiser, {attention} attention elements equal");
        assert!(norms > 10_000 && quantisers > 10_000 && attention > 10_000);
    }

    #[test]
    fn a_run_is_taken_only_where_nothing_else_reads_its_inside() {
        let config = sworn_model::SyntheticSpec::default().config();
        let mut section = config.program(ActivationBits::default(), &Formats::default()).unwrap().sections[1].clone();
        let count = |s: &Section| {
            let (mut op, mut runs) = (0, Vec::new());
            while op < s.ops.len() {
                let run = Run::find(s, op);
                op += run.len();
                runs.extend((run != Run::Single).then_some(run));
            }
            runs
        };
        use Run::{Norm, Probabilities, Quantise};
        assert_eq!(count(&section), [Norm, Quantise, Quantise, Probabilities, Quantise, Norm, Quantise]);
        // An exported maximum must be written.
        section.ops[0].export = true;
        assert_eq!(count(&section), [Quantise, Quantise, Probabilities, Quantise, Norm, Quantise]);
        // So must one that a later operator reads.
        section.ops[0].export = false;
        let last = section.ops.len() - 1;
        section.ops[last].operands[1] = Operand::op(3, Dtype::I32);
        assert_eq!(count(&section), [Quantise, Quantise, Probabilities, Quantise, Norm, Quantise]);
    }
}
