//! The bytes that answer a demand.

use sworn_bindings::{Target, TargetKind};
use sworn_commit::{Hash, TraceTree, tensor};

/// What a target is answered from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opened {
    /// The trace's trees.
    Trace,
    /// The operators of a row.
    Ops,
    /// The prompt or the answer itself.
    Tokens,
}

impl Opened {
    /// What answers this target; `None` for no target.
    pub(crate) fn of(target: &Target) -> Option<Self> {
        match target.kind {
            TargetKind::Layers | TargetKind::Positions => Some(Opened::Trace),
            TargetKind::OpList | TargetKind::Pages | TargetKind::Page => Some(Opened::Ops),
            TargetKind::Tokens => Some(Opened::Tokens),
            TargetKind::__Invalid => None,
        }
    }
}

/// Answers a demand for a node of the trace's trees; `None` if they have no such node.
pub(crate) fn from_trace(target: &Target, tree: &TraceTree) -> Option<Vec<u8>> {
    let tree = match target.kind {
        TargetKind::Layers => tree.top(),
        TargetKind::Positions => tree.layers().get(target.layer as usize)?,
        _ => return None,
    };
    let level = u32::from(target.level);
    let inside = level >= 1 && level <= tree.depth() && u64::from(target.index) < 1 << (tree.depth() - level);
    inside.then(|| tree.descendants(level, target.index.into()).concat())
}

/// Answers a demand for an operator list, page hashes or a page; `None` if the row has no such thing.
pub(crate) fn from_ops(target: &Target, ops: &[Vec<u8>]) -> Option<Vec<u8>> {
    match target.kind {
        TargetKind::OpList => Some(roots(ops).concat()),
        TargetKind::Pages => {
            let tree = tensor::tensor_tree(ops.get(target.op as usize)?);
            let level = u32::from(target.level);
            let inside = level >= 1 && level <= tree.depth() && u64::from(target.index) < 1 << (tree.depth() - level);
            inside.then(|| tree.descendants(level, target.index.into()).concat())
        }
        TargetKind::Page => {
            ops.get(target.op as usize)?.chunks(tensor::PAGE).nth(target.index as usize).map(<[u8]>::to_vec)
        }
        _ => None,
    }
}

fn roots(ops: &[Vec<u8>]) -> Vec<Hash> {
    ops.iter().map(|op| tensor::tensor_root(op)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sworn_commit::{TraceTree, tree};

    fn hashes(n: u32) -> Vec<Hash> {
        (0..n).map(|i| sworn_commit::keccak(&[&i.to_be_bytes()])).collect()
    }

    fn words(data: &[u8]) -> Vec<Hash> {
        data.as_chunks::<32>().0.to_vec()
    }

    #[test]
    fn nodes_of_the_trace() {
        let trace = TraceTree::new(vec![hashes(100), hashes(100), hashes(3)]);
        let top = from_trace(&Target::layers(2, 0), &trace).unwrap();
        assert_eq!(words(&top), [trace.layer(0).root(), trace.layer(1).root(), trace.layer(2).root(), tree::empty(0)]);
        let all = from_trace(&Target::positions(1, 7, 0), &trace).unwrap();
        assert_eq!(words(&all), trace.layer(1).descendants(7, 0));
        assert_eq!(words(&from_trace(&Target::positions(1, 1, 49), &trace).unwrap()), hashes(100)[98..]);
        for bad in [
            Target::layers(0, 0),
            Target::layers(3, 0),
            Target::layers(2, 1),
            Target::positions(3, 1, 0),
            Target::positions(1, 1, 64),
            Target::op_list(0, 0),
        ] {
            assert_eq!(from_trace(&bad, &trace), None, "{bad}");
        }
    }

    #[test]
    fn parts_of_a_row() {
        let ops = vec![vec![1; 10], vec![2; 2_500]];
        let list = from_ops(&Target::op_list(1, 0), &ops).unwrap();
        assert_eq!(words(&list), [tensor::tensor_root(&ops[0]), tensor::tensor_root(&ops[1])]);
        assert_eq!(from_ops(&Target::page(1, 0, 0, 0), &ops).unwrap(), ops[0]);
        assert_eq!(from_ops(&Target::page(1, 0, 1, 2), &ops).unwrap().len(), 2_500 - 2_048);
        assert_eq!(from_ops(&Target::pages(1, 0, 1, 2, 0), &ops).unwrap().len(), 128);
        for bad in [
            Target::page(1, 0, 1, 3),
            Target::page(1, 0, 2, 0),
            Target::pages(1, 0, 0, 1, 0),
            Target::pages(1, 0, 1, 2, 1),
            Target::layers(1, 0),
        ] {
            assert_eq!(from_ops(&bad, &ops), None, "{bad}");
        }
    }
}
