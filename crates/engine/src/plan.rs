//! How the sections of a program are executed in batches.

use std::collections::HashSet;

use sworn_isa::{Descriptor, Dtype, Opcode, OperandKind, RowFormat, SectionKind};
use sworn_model::Model;

use crate::sampling::Tail;
use crate::tensor::OpTensor;

/// Everything about a model that the executor derives once.
pub(crate) struct Plan {
    sections: [SectionPlan; 3],
    tables: Vec<OpTensor>,
}

/// One section.
pub(crate) struct SectionPlan {
    /// The operators.
    pub(crate) ops: Vec<Descriptor>,
    /// Export number e is operator `exports[e]`.
    pub(crate) exports: Vec<usize>,
    /// Which exports are read at later positions.
    pub(crate) cached: Vec<bool>,
    /// In the head: the operator whose output is the logits.
    pub(crate) logits: Option<usize>,
    /// How a batch of positions runs; `None` where attention has no shape that is known here: then every position runs alone.
    pub(crate) steps: Option<Vec<Step>>,
}

/// Part of a section that runs over a batch.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Operators that read nothing but their own position.
    Local(Vec<usize>),
    /// `LINEAR`s that do not read one another.
    Linear(Linears),
    /// A whole attention.
    Attend(Attention),
    /// Everything after the logits.
    Choose(Tail),
}

/// `LINEAR`s in a row.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Linears {
    /// Operators, one after another, each with the number of its activations in [`Self::sources`].
    pub(crate) ops: Vec<(usize, usize)>,
    /// The different activations that they read.
    pub(crate) sources: Vec<Source>,
}

/// Activations of one or more `LINEAR`s.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Source {
    /// The operator that wrote them.
    pub(crate) op: usize,
    /// How many elements, the last of its output, are read.
    pub(crate) columns: usize,
}

impl Linears {
    fn push(&mut self, k: usize, d: &Descriptor) -> Option<()> {
        let (op, columns) = (d.operands[0].index as usize, d.operand_elements(0, 0)? as usize);
        RowFormat::from_code(d.params[3])?;
        let at = self.sources.iter().position(|s| (s.op, s.columns) == (op, columns));
        let at = at.unwrap_or_else(|| {
            self.sources.push(Source { op, columns });
            self.sources.len() - 1
        });
        self.ops.push((k, at));
        Some(())
    }

    /// Whether operator `k` can run with these.
    fn takes(&self, k: usize, d: &Descriptor) -> bool {
        let reads = |i: usize| self.ops.iter().any(|(op, _)| *op == d.operands[i].index as usize);
        self.ops.last().is_some_and(|(last, _)| last + 1 == k) && !reads(0) && !reads(1)
    }
}

/// The operators of one attention, from `SCORES` to `MIX`, of which only the last slab of `MIX` is read by others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attention {
    pub(crate) scores: usize,
    /// `SOFT_CAP` of the scores.
    pub(crate) cap: Option<usize>,
    /// `WINDOW` of the scores, after their cap.
    pub(crate) window: Option<usize>,
    pub(crate) exp: usize,
    pub(crate) mix: usize,
}

impl Plan {
    pub(crate) fn new(model: &Model) -> Self {
        let kinds = [SectionKind::Embedding, SectionKind::Block, SectionKind::Head];
        let sections = kinds.map(|kind| SectionPlan::new(&model.program().section(kind).ops));
        let tables = (0..model.index().tables.len()).map(|i| {
            let t = model.table(i);
            OpTensor::from_bytes(t.dtype, &t.bytes)
        });
        Plan { sections, tables: tables.collect() }
    }

    pub(crate) fn section(&self, kind: SectionKind) -> &SectionPlan {
        &self.sections[kind as usize]
    }

    pub(crate) fn table(&self, index: u32) -> Option<&OpTensor> {
        self.tables.get(index as usize)
    }
}

impl SectionPlan {
    pub(crate) fn new(ops: &[Descriptor]) -> Self {
        let exports: Vec<usize> = (0..ops.len()).filter(|k| ops[*k].export).collect();
        let mut cached = vec![false; exports.len()];
        for o in ops.iter().flat_map(|d| d.operands).filter(|o| o.kind == OperandKind::Cache) {
            if let Some(c) = cached.get_mut(o.index as usize) {
                *c = true;
            }
        }
        let selected = exports.first().and_then(|select| source(&ops[*select], 0, false));
        let logits = selected.and_then(|z| match ops[z].opcode {
            Opcode::Temper => source(&ops[z], 0, false),
            _ => Some(z),
        });
        SectionPlan { ops: ops.to_vec(), exports, cached, logits, steps: steps(ops) }
    }

    /// Element type of a cached export.
    pub(crate) fn export_dtype(&self, export: usize) -> Dtype {
        self.ops[self.exports[export]].dtype
    }
}

/// The operator that operand `k` of `d` reads at the same position.
fn source(d: &Descriptor, k: usize, tail: bool) -> Option<usize> {
    let o = d.operands[k];
    (o.kind == OperandKind::Op && o.tail == tail).then_some(o.index as usize)
}

/// Follows the operands of `MIX` back to `SCORES`; also all operators on the way.
fn attention(ops: &[Descriptor], mix: usize) -> Option<(Attention, Vec<usize>)> {
    let is = |at: Option<usize>, opcode| at.filter(|at| ops.get(*at).is_some_and(|d| d.opcode == opcode));
    let prob = is(source(&ops[mix], 0, false), Opcode::Prob)?;
    let exp = is(source(&ops[prob], 0, false), Opcode::Exp)?;
    let sum = is(source(&ops[prob], 1, true), Opcode::RowSum)?;
    let max = is(source(&ops[exp], 1, true), Opcode::RowMax)?;
    let weighed = source(&ops[exp], 0, false);
    let window = is(weighed, Opcode::Window);
    let seen = window.map_or(weighed, |w| source(&ops[w], 0, false));
    let cap = is(seen, Opcode::SoftCap);
    let scores = is(cap.map_or(seen, |c| source(&ops[c], 0, false)), Opcode::Scores)?;
    let (s, m) = (&ops[scores], &ops[mix]);
    let agree = source(&ops[sum], 0, false) == Some(exp)
        && source(&ops[max], 0, false) == weighed
        // One score per head and position all the way.
        && [cap, window].into_iter().flatten().all(|k| ops[k].outer == s.outer && ops[k].div == s.div)
        // The heads of queries and values are grouped in the same way.
        && u64::from(m.inner) == u64::from(s.outer) * m.params[0].max(0) as u64
        && s.params[1] == m.params[1];
    let members = [scores, max, exp, sum, prob, mix].into_iter().chain(cap).chain(window).collect();
    agree.then_some((Attention { scores, cap, window, exp, mix }, members))
}

fn steps(ops: &[Descriptor]) -> Option<Vec<Step>> {
    let mut inside = HashSet::new();
    let mut attentions = Vec::new();
    for mix in (0..ops.len()).filter(|k| ops[*k].opcode == Opcode::Mix) {
        let (attention, members) = attention(ops, mix)?;
        if members.iter().any(|m| !inside.insert(*m) || ops[*m].export) {
            return None;
        }
        attentions.push((attention, members));
    }
    // Nobody else may read what the fused form never writes.
    for (k, d) in ops.iter().enumerate() {
        if d.div != 0 && !inside.contains(&k) {
            return None;
        }
        for o in d.operands.iter().filter(|o| o.kind == OperandKind::Op && inside.contains(&(o.index as usize))) {
            let within = attentions.iter().any(|(_, m)| m.contains(&k) && m.contains(&(o.index as usize)));
            let tail_of_mix = o.tail && ops[o.index as usize].opcode == Opcode::Mix;
            if !within && !tail_of_mix {
                return None;
            }
        }
    }
    let tail = Tail::find(ops);
    let mut steps: Vec<Step> = Vec::new();
    for (k, d) in ops.iter().enumerate() {
        if d.opcode == Opcode::Mix {
            steps.push(Step::Attend(attentions.iter().find(|(a, _)| a.mix == k)?.0));
        } else if inside.contains(&k) || tail.is_some_and(|t| t.has(k)) {
        } else if let Some(tail) = tail.filter(|t| t.sample == k) {
            steps.push(Step::Choose(tail));
        } else if d.opcode == Opcode::Linear {
            match steps.last_mut() {
                Some(Step::Linear(group)) if group.takes(k, d) => group.push(k, d)?,
                _ => {
                    let mut group = Linears::default();
                    group.push(k, d)?;
                    steps.push(Step::Linear(group));
                }
            }
        } else {
            match steps.last_mut() {
                Some(Step::Local(group)) => group.push(k),
                _ => steps.push(Step::Local(vec![k])),
            }
        }
    }
    Some(steps)
}

#[cfg(test)]
mod tests {
    use sworn_model::small::{Family, Layout, write};

    use super::*;

    #[test]
    fn every_familys_attention_runs_in_batches() {
        for family in Family::ALL {
            let dir = tempfile::tempdir().unwrap();
            let file = write(family, Layout::Blocks, 1, dir.path()).unwrap();
            let model = sworn_model::import(file, dir.path().join("model"), &Default::default(), &mut |_| {}).unwrap();
            let plan = Plan::new(&model);
            let steps = plan.section(SectionKind::Block).steps.as_ref();
            let attentions: Vec<_> = steps
                .into_iter()
                .flatten()
                .filter_map(|s| match s {
                    Step::Attend(a) => Some((a.cap.is_some(), a.window.is_some())),
                    _ => None,
                })
                .collect();
            let wanted = (family == Family::Gemma2, matches!(family, Family::Gemma2 | Family::Mistral));
            assert_eq!(attentions, [wanted], "{}", family.name());
        }
    }

    #[test]
    fn an_attention_that_others_look_into_runs_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = write(Family::Gemma2, Layout::Blocks, 1, dir.path()).unwrap();
        let model = sworn_model::import(file, dir.path().join("model"), &Default::default(), &mut |_| {}).unwrap();
        let ops = &model.program().section(SectionKind::Block).ops;
        assert!(steps(ops).is_some());
        let at = |opcode| ops.iter().position(|d| d.opcode == opcode).unwrap();
        // Weighed by other scores than those of which the largest is known.
        let mut changed = ops.clone();
        changed[at(Opcode::Exp)].operands[0].index = at(Opcode::SoftCap) as u32;
        assert!(steps(&changed).is_none());
        let mut changed = ops.clone();
        changed[at(Opcode::Window)].export = true;
        assert!(steps(&changed).is_none());
    }
}
