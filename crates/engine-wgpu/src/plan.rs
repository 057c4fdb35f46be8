//! Finds runs of operators that few kernels compute together. Nothing is assumed about the model: a run is taken only where
//! the descriptors read each other as the kernels do, and nothing else reads what the kernels do not write.

use std::ops::Range;

use sworn_isa::{Descriptor, Opcode, Operand, OperandKind, Section};

/// Longest vector that the norm's kernel sums in 32-bit words.
const NORM_MOST: u64 = 1 << 15;
/// Longest vector that one cube quantises; longer ones are spread over many.
const QUANTISE_MOST: u64 = 8192;

/// What some consecutive operators are. Numbers count from the run's first operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Run {
    /// One operator.
    Single,
    /// `MAX_ABS`…, `SUM_SQ`, `RMS`, `GAIN`, `MAX_ABS`…, `QUANT`, `NORM_SCALE`: of a whole vector.
    Norm {
        /// The gain.
        gain: usize,
        /// Floors of the maxima of the vector and of its product with the gains.
        floors: [i32; 2],
    },
    /// `MAX_ABS`…, `QUANT` and `QUANT_SCALE` or `SCALE_Q`.
    Quantise {
        /// Elements of a group.
        group: u32,
        /// Floor of the maxima.
        floor: i32,
    },
    /// `MAX_ABS`…, `QUANT`, `QUANT_SCALE` of a vector too long for one cube; or of a gated activation, which comes first.
    Long {
        /// Whether it begins with `SILU_MUL` or `GELU_MUL`.
        gate: bool,
        /// Floor of the maxima.
        floor: i32,
    },
    /// `ROPE` of q and k, their quantisers, and `TO_FIXED` of v.
    Heads,
    /// `SCORES`, `SOFT_CAP`?, `WINDOW`?, `ROW_MAX`, `EXP`, `ROW_SUM`, `PROB`.
    Probabilities {
        /// The cap.
        cap: Option<usize>,
        /// The window.
        window: Option<usize>,
    },
    /// `MIX` of which only the sum over all positions is read.
    Mix,
    /// Several `LINEAR` of one vector.
    Project,
    /// `LINEAR` and the `ADD` of its product to the operand of this number.
    Sum {
        /// The other operand.
        addend: usize,
    },
}

/// Consecutive operators of a section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) run: Run,
    pub(crate) ops: Range<usize>,
}

/// Splits a section into runs. `bindings` is how many buffers a kernel may use.
pub(crate) fn plan(section: &Section, bindings: u32) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut at = 0;
    while at < section.ops.len() {
        let step = Finder { section, at }.find(bindings);
        at = step.ops.end;
        steps.push(step);
    }
    steps
}

/// Bytes per element of each operator's output where it is packed for dot products: of a `QUANT` that only `LINEAR` reads, as
/// its activations, and that a run computes whose kernel packs. 0 for every other.
pub(crate) fn packed(section: &Section, steps: &[Step]) -> Vec<u32> {
    let mut planes = vec![0; section.ops.len()];
    for step in steps {
        let groups = match step.run {
            Run::Norm { .. } | Run::Long { .. } => 1,
            Run::Quantise { group, .. } => section.ops[step.ops.end - 2].count(0) / u64::from(group.max(1)),
            _ => continue,
        };
        let op = step.ops.end - 2;
        let d = &section.ops[op];
        let group = d.count(0) / groups.max(1);
        let mut readers = section.ops.iter().flat_map(|d| d.operands.iter().enumerate().map(move |(k, o)| (d, k, o)));
        let only_products = readers.all(|(d, k, o)| {
            o.kind != OperandKind::Op || o.index as usize != op || (d.opcode == Opcode::Linear && k == 0)
        });
        if !d.export && only_products && (groups == 1 || group.is_multiple_of(4)) {
            planes[op] = if d.bits == 8 { 1 } else { 2 };
        }
    }
    planes
}

/// Whether `o` reads operator `op` as a whole.
fn reads(o: &Operand, op: usize) -> bool {
    o.kind == OperandKind::Op && o.index as usize == op && !o.tail
}

/// Whether `o` reads the last slab of operator `op`.
fn reads_tail(o: &Operand, op: usize) -> bool {
    o.kind == OperandKind::Op && o.index as usize == op && o.tail
}

/// Levels of `MAX_ABS`, each of the one before.
struct Maxima {
    end: usize,
    x: Operand,
    floor: i32,
    /// Elements of x.
    elements: u64,
    /// Maxima in the end.
    groups: u64,
}

/// Looks for runs that begin at one operator.
struct Finder<'a> {
    section: &'a Section,
    at: usize,
}

impl Finder<'_> {
    fn find(&self, bindings: u32) -> Step {
        let heads = || if bindings >= 16 { self.heads() } else { None };
        let found = heads()
            .or_else(|| self.norm())
            .or_else(|| self.quantise())
            .or_else(|| self.gate())
            .or_else(|| self.probabilities())
            .or_else(|| self.mix())
            .or_else(|| self.project())
            .or_else(|| self.sum());
        let (run, end) = found.unwrap_or((Run::Single, self.at + 1));
        Step { run, ops: self.at..end }
    }

    fn op(&self, op: usize) -> Option<&Descriptor> {
        self.section.ops.get(op)
    }

    fn is(&self, op: usize, opcode: Opcode) -> Option<&Descriptor> {
        self.op(op).filter(|d| d.opcode == opcode)
    }

    /// Whether only operators before `end` read operator `op`, which is not exported.
    fn private(&self, op: usize, end: usize) -> bool {
        let later = self.section.ops.iter().skip(end).flat_map(|d| d.operands);
        !self.section.ops[op].export && !later.into_iter().any(|o| o.kind == OperandKind::Op && o.index as usize == op)
    }

    /// The levels of `MAX_ABS` from operator `op` on.
    fn maxima(&self, op: usize) -> Option<Maxima> {
        let first = self.is(op, Opcode::MaxAbs)?;
        let mut found = Maxima {
            end: op + 1,
            x: first.operands[0],
            floor: first.params[0],
            elements: first.count(0) * first.params[1] as u64,
            groups: first.count(0),
        };
        while let Some(next) = self.is(found.end, Opcode::MaxAbs).filter(|d| reads(&d.operands[0], found.end - 1)) {
            found =
                Maxima { end: found.end + 1, floor: found.floor.max(next.params[0]), groups: next.count(0), ..found };
        }
        Some(found)
    }

    fn norm(&self) -> Option<(Run, usize)> {
        let max = self.maxima(self.at)?;
        let n = max.elements;
        let (x, x_max) = (max.x, max.end - 1);
        let ss = self.is(max.end, Opcode::SumSq)?;
        let rms = self.is(max.end + 1, Opcode::Rms)?;
        let gain_at = max.end + 2;
        let gain = self.is(gain_at, Opcode::Gain)?;
        let v = self.maxima(gain_at + 1)?;
        let quant = self.is(v.end, Opcode::Quant)?;
        let scale = self.is(v.end + 1, Opcode::NormScale)?;
        let whole = max.groups == 1
            && v.groups == 1
            && n <= NORM_MOST
            && v.elements == n
            && ss.count(0) / 2 * ss.params[0] as u64 == n
            && ss.params[1] == 0
            && rms.count(0) == 2
            && rms.params[1] as u64 == ss.count(0) / 2
            && [gain, quant].iter().all(|d| d.count(0) == n && d.params[0] as u64 == n)
            && scale.count(0) == 2
            && scale.params[0] as u64 == n;
        let linked = ss.operands[0] == x
            && reads(&ss.operands[1], x_max)
            && reads(&rms.operands[0], max.end)
            && reads(&rms.operands[1], x_max)
            && gain.operands[0] == x
            && reads(&v.x, gain_at)
            && reads(&quant.operands[0], gain_at)
            && reads(&quant.operands[1], v.end - 1)
            && reads(&scale.operands[0], v.end - 1)
            && reads(&scale.operands[1], max.end + 1)
            && scale.operands[2] == gain.operands[1];
        let end = v.end + 2;
        let ok = whole && linked && (self.at..v.end).all(|op| self.private(op, end));
        ok.then(|| (Run::Norm { gain: gain_at - self.at, floors: [max.floor, v.floor] }, end))
    }

    /// The quantiser of `max`, with its scale; and whether that is a constant times another.
    fn quantiser(&self, max: &Maxima, x: &Operand) -> Option<bool> {
        let quant = self.is(max.end, Opcode::Quant)?;
        let scale = self.op(max.end + 1)?;
        let constant = scale.opcode == Opcode::ScaleQ;
        let ok = (constant || scale.opcode == Opcode::QuantScale)
            && quant.count(0) == max.elements
            && quant.params[0] as u64 * max.groups == max.elements
            && scale.count(0) == 2 * max.groups
            && quant.operands[0] == *x
            && reads(&quant.operands[1], max.end - 1)
            && reads(&scale.operands[0], max.end - 1);
        ok.then_some(constant)
    }

    fn quantise(&self) -> Option<(Run, usize)> {
        let max = self.maxima(self.at)?;
        let constant = self.quantiser(&max, &max.x)?;
        let end = max.end + 2;
        let private = (self.at..max.end).all(|op| self.private(op, end));
        let group = max.elements / max.groups;
        if group <= QUANTISE_MOST {
            return private.then_some((Run::Quantise { group: group as u32, floor: max.floor }, end));
        }
        let ok = private && !constant && max.groups == 1;
        ok.then_some((Run::Long { gate: false, floor: max.floor }, end))
    }

    fn gate(&self) -> Option<(Run, usize)> {
        self.op(self.at).filter(|d| matches!(d.opcode, Opcode::SiluMul | Opcode::GeluMul))?;
        let max = self.maxima(self.at + 1)?;
        let constant = self.quantiser(&max, &max.x)?;
        let end = max.end + 2;
        let ok = reads(&max.x, self.at)
            && !constant
            && max.groups == 1
            && (self.at..max.end).all(|op| self.private(op, end));
        ok.then_some((Run::Long { gate: true, floor: max.floor }, end))
    }

    fn heads(&self) -> Option<(Run, usize)> {
        use Opcode::{MaxAbs, Quant, QuantScale, Rope, ScaleQ, ToFixed};
        let wanted = [Rope, Rope, MaxAbs, Quant, ScaleQ, MaxAbs, Quant, QuantScale, ToFixed];
        let at = self.at;
        let end = at + wanted.len();
        let ops = self.section.ops.get(at..end)?;
        if !ops.iter().map(|d| d.opcode).eq(wanted) {
            return None;
        }
        let group = ops[0].params[0];
        let turn = |rope: usize, max: usize| {
            let chain = self.maxima(at + max)?;
            let ok = chain.end == at + max + 1
                && reads(&chain.x, at + rope)
                && ops[max].params[1] == group
                && ops[max + 1].bits == 8
                && (ops[max + 2].opcode == ScaleQ || ops[max + 2].bits == 8)
                && ops[rope].count(0) == chain.elements
                && [rope, max].iter().all(|k| self.private(at + k, end));
            self.quantiser(&chain, &chain.x).filter(|_| ok)
        };
        let ok = turn(0, 2)?
            && !turn(1, 5)?
            && ops[0].params[..2] == ops[1].params[..2]
            && ops[0].operands[1..3] == ops[1].operands[1..3]
            // The kernel writes all of it while it reads q, k and v.
            && !ops.iter().flat_map(|d| d.operands).any(|o| [3, 4, 6, 7, 8].iter().any(|k| reads(&o, at + k)));
        ok.then_some((Run::Heads, end))
    }

    fn probabilities(&self) -> Option<(Run, usize)> {
        let at = self.at;
        self.is(at, Opcode::Scores)?;
        let mut last = at;
        let mut after = |opcode: Opcode| {
            let found = self.is(last + 1, opcode).filter(|d| reads(&d.operands[0], last))?;
            last += 1;
            Some((last - at, found))
        };
        let cap = after(Opcode::SoftCap);
        let window = after(Opcode::Window);
        let max = self.is(last + 1, Opcode::RowMax)?;
        let exp = self.is(last + 2, Opcode::Exp)?;
        let sum = self.is(last + 3, Opcode::RowSum)?;
        let prob = self.is(last + 4, Opcode::Prob)?;
        let end = last + 5;
        let ok = reads(&max.operands[0], last)
            && reads(&exp.operands[0], last)
            && reads_tail(&exp.operands[1], last + 1)
            && reads(&sum.operands[0], last + 2)
            && reads(&prob.operands[0], last + 2)
            && reads_tail(&prob.operands[1], last + 3)
            && cap.is_none_or(|(_, d)| d.operands[1] == exp.operands[2])
            && (at..last + 4).all(|op| self.private(op, end));
        ok.then_some((Run::Probabilities { cap: cap.map(|c| c.0), window: window.map(|w| w.0) }, end))
    }

    fn mix(&self) -> Option<(Run, usize)> {
        let d = self.is(self.at, Opcode::Mix)?;
        let mut readers = self.section.ops.iter().skip(self.at + 1).flat_map(|d| d.operands);
        let whole = readers.any(|o| reads(&o, self.at));
        (!d.export && !whole).then_some((Run::Mix, self.at + 1))
    }

    fn project(&self) -> Option<(Run, usize)> {
        let first = self.is(self.at, Opcode::Linear).filter(|d| !d.export)?;
        let alike = |d: &Descriptor| {
            d.operands[..2] == first.operands[..2] && d.params == first.params && d.operands[2] != first.operands[2]
        };
        let mut end = self.at + 1;
        while self.is(end, Opcode::Linear).is_some_and(|d| alike(d) && !d.export) {
            end += 1;
        }
        (end > self.at + 1).then_some((Run::Project, end))
    }

    fn sum(&self) -> Option<(Run, usize)> {
        self.is(self.at, Opcode::Linear)?;
        let add = self.is(self.at + 1, Opcode::Add)?;
        let end = self.at + 2;
        let product = (0..2).find(|k| reads(&add.operands[*k], self.at))?;
        let addend = 1 - product;
        let ok = !reads(&add.operands[addend], self.at) && self.private(self.at, end);
        ok.then_some((Run::Sum { addend }, end))
    }
}

#[cfg(test)]
mod tests {
    use sworn_isa::Dtype;
    use sworn_model::{SyntheticSpec, synthetic};

    use super::*;

    fn kinds(section: &Section) -> Vec<&'static str> {
        let steps = plan(section, 32);
        assert_eq!(steps.iter().map(|s| s.ops.len()).sum::<usize>(), section.ops.len());
        let name = |s: &Step| match s.run {
            Run::Single => section.ops[s.ops.start].opcode.name(),
            Run::Norm { .. } => "norm",
            Run::Quantise { .. } => "quantise",
            Run::Long { gate: true, .. } => "gate",
            Run::Long { gate: false, .. } => "long",
            Run::Heads => "heads",
            Run::Probabilities { .. } => "probabilities",
            Run::Mix => "mix",
            Run::Project => "project",
            Run::Sum { .. } => "sum",
        };
        steps.iter().map(name).collect()
    }

    fn block(spec: &SyntheticSpec) -> Section {
        let dir = tempfile::tempdir().unwrap();
        synthetic(spec, dir.path().join("model")).unwrap().program().sections[1].clone()
    }

    const BLOCK: [&str; 10] =
        ["norm", "project", "heads", "probabilities", "mix", "quantise", "sum", "norm", "project", "gate"];

    #[test]
    fn a_block_is_eleven_runs() {
        // Vectors of more than one level of maxima are no longer.
        for (hidden, ffn) in [(48, 112), (2304, 2100)] {
            let section = block(&SyntheticSpec { hidden, ffn, layers: 1, ..SyntheticSpec::default() });
            let mut want = BLOCK.to_vec();
            want.push("sum");
            assert_eq!(kinds(&section), want);
        }
    }

    #[test]
    fn a_run_is_taken_only_where_nothing_else_reads_its_inside() {
        let section = block(&SyntheticSpec::default());
        // An exported maximum must be written.
        let mut exported = section.clone();
        exported.ops[0].export = true;
        let found = kinds(&exported);
        assert_eq!(found[..3], ["MAX_ABS", "SUM_SQ", "RMS"]);
        assert_eq!(found[found.len() - 10..], kinds(&section)[1..]);
        // So must one that a later operator reads.
        let mut read = section.clone();
        let last = read.ops.len() - 1;
        read.ops[last].operands[1] = Operand::op(3, Dtype::I32);
        assert_eq!(kinds(&read)[0], "MAX_ABS");
        // And a mix whose slabs are read.
        let mut read = section;
        let mix = read.ops.iter().position(|d| d.opcode == Opcode::Mix).unwrap();
        read.ops[last].operands[1] = Operand::op(mix as u32, Dtype::I32);
        assert!(kinds(&read).contains(&"MIX"));
    }

    #[test]
    fn few_bindings_make_more_runs() {
        let section = block(&SyntheticSpec::default());
        let heads = |bindings| plan(&section, bindings).iter().any(|s| s.run == Run::Heads);
        assert!(heads(16) && !heads(12));
    }
}
