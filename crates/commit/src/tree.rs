//! Binary hash trees whose depth follows from the leaf count, and range proofs.

use std::sync::OnceLock;

use crate::{Hash, keccak, tag};

/// Deepest tree there is.
pub const MAX_DEPTH: usize = 40;

/// Hash of an inner node.
pub fn node(left: &Hash, right: &Hash) -> Hash {
    keccak(&[&[tag::NODE], left, right])
}

/// ⌈log2 n⌉; 0 for n ≤ 1.
pub const fn depth(leaves: u64) -> u32 {
    if leaves <= 1 { 0 } else { 64 - (leaves - 1).leading_zeros() }
}

/// Root of an empty subtree of `level` levels.
pub fn empty(level: u32) -> Hash {
    static EMPTY: OnceLock<Vec<Hash>> = OnceLock::new();
    EMPTY.get_or_init(|| {
        let mut v = vec![keccak(&[&[0xFF]])];
        for i in 0..MAX_DEPTH {
            v.push(node(&v[i], &v[i]));
        }
        v
    })[(level as usize).min(MAX_DEPTH)]
}

/// A whole tree in memory: every level without its padding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    levels: Vec<Vec<Hash>>,
}

impl Tree {
    /// The tree over `leaves`; no leaves count as one empty leaf.
    pub fn new(leaves: Vec<Hash>) -> Self {
        let leaves = if leaves.is_empty() { vec![empty(0)] } else { leaves };
        let mut levels = vec![leaves];
        while levels[levels.len() - 1].len() > 1 {
            let level = levels.len() as u32 - 1;
            let below = &levels[level as usize];
            let above = below.chunks(2).map(|p| node(&p[0], p.get(1).unwrap_or(&empty(level)))).collect();
            levels.push(above);
        }
        Tree { levels }
    }

    /// Leaves without padding.
    pub fn leaves(&self) -> &[Hash] {
        &self.levels[0]
    }

    /// Levels above the leaves.
    pub fn depth(&self) -> u32 {
        self.levels.len() as u32 - 1
    }

    /// The root.
    pub fn root(&self) -> Hash {
        self.levels[self.levels.len() - 1][0]
    }

    /// The node `index` of `level` (0 = leaves), padding included.
    pub fn node(&self, level: u32, index: u64) -> Hash {
        match self.levels.get(level as usize).and_then(|l| l.get(usize::try_from(index).unwrap_or(usize::MAX))) {
            Some(h) => *h,
            None => empty(level),
        }
    }

    /// The 2^min(6, level) descendants of a node at level max(level − 6, 0): what answers a demand for it.
    pub fn descendants(&self, level: u32, index: u64) -> Vec<Hash> {
        let down = level.min(6);
        (0..1u64 << down).map(|i| self.node(level - down, (index << down) + i)).collect()
    }

    /// Siblings on the way from a node to the root.
    pub fn path(&self, level: u32, index: u64) -> Vec<Hash> {
        (level..self.depth()).map(|l| self.node(l, (index >> (l - level)) ^ 1)).collect()
    }

    /// Range proof for leaves `[first, first + count)`, count ≥ 1.
    pub fn prove(&self, first: u64, count: u64) -> Vec<Hash> {
        range_siblings(self.depth(), first, count).map(|(level, index)| self.node(level, index)).collect()
    }
}

/// The nodes that a range proof lists, as (level, index), in order.
pub fn range_siblings(depth: u32, first: u64, count: u64) -> impl Iterator<Item = (u32, u64)> {
    let last = first + count.max(1) - 1;
    (0..depth).flat_map(move |level| {
        let (lo, hi) = (first >> level, last >> level);
        let left = (lo & 1 == 1).then(|| (level, lo - 1));
        let right = (hi & 1 == 0).then_some((level, hi + 1));
        left.into_iter().chain(right)
    })
}

/// The root that a range proof yields for `leaves` at `first` in a tree of `depth` levels, and how many siblings it used;
/// `None` if the proof is too short or the range does not fit.
pub fn range_root(leaves: &[Hash], first: u64, depth: u32, proof: &[Hash]) -> Option<(Hash, usize)> {
    if leaves.is_empty() || depth as usize > MAX_DEPTH || first.checked_add(leaves.len() as u64)? > 1 << depth {
        return None;
    }
    let mut row = leaves.to_vec();
    let mut lo = first;
    let mut used = 0;
    for _ in 0..depth {
        let mut next = || {
            used += 1;
            proof.get(used - 1).copied()
        };
        if lo & 1 == 1 {
            row.insert(0, next()?);
        }
        if row.len() % 2 == 1 {
            row.push(next()?);
        }
        row = row.chunks_exact(2).map(|p| node(&p[0], &p[1])).collect();
        lo >>= 1;
    }
    Some((row[0], used))
}

/// A tree that grows leaf by leaf and remembers only its right edge.
#[derive(Clone, Debug, Default)]
pub struct Accumulator {
    /// `edge[l]`: the root of the last complete subtree of 2^l leaves that has no partner yet
    edge: Vec<Option<Hash>>,
    len: u64,
}

impl Accumulator {
    /// Adds a leaf.
    pub fn push(&mut self, leaf: Hash) {
        let mut carry = leaf;
        let mut level = 0;
        loop {
            if level == self.edge.len() {
                self.edge.push(None);
            }
            match self.edge[level].take() {
                Some(left) => carry = node(&left, &carry),
                None => break self.edge[level] = Some(carry),
            }
            level += 1;
        }
        self.len += 1;
    }

    /// Leaves so far.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The root of the tree over the leaves so far.
    pub fn root(&self) -> Hash {
        let depth = depth(self.len) as usize;
        let mut carry: Option<Hash> = None;
        for level in 0..depth {
            let edge = self.edge.get(level).copied().flatten();
            carry = match (edge, carry) {
                (Some(left), Some(right)) => Some(node(&left, &right)),
                (Some(left), None) => Some(node(&left, &empty(level as u32))),
                (None, Some(c)) => Some(node(&c, &empty(level as u32))),
                (None, None) => None,
            };
        }
        carry.or_else(|| self.edge.get(depth).copied().flatten()).unwrap_or_else(|| empty(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn leaves(n: u64) -> Vec<Hash> {
        (0..n).map(|i| keccak(&[&i.to_be_bytes()])).collect()
    }

    /// The definition, padded in full.
    fn naive(mut row: Vec<Hash>) -> Hash {
        row.resize(row.len().next_power_of_two(), empty(0));
        while row.len() > 1 {
            row = row.chunks(2).map(|p| node(&p[0], &p[1])).collect();
        }
        row[0]
    }

    #[test]
    fn small_trees() {
        assert_eq!([depth(1), depth(2), depth(3), depth(4), depth(5), depth(8192)], [0, 1, 2, 2, 3, 13]);
        let mut acc = Accumulator::default();
        for n in 1..140 {
            acc.push(leaves(n)[n as usize - 1]);
            let tree = Tree::new(leaves(n));
            assert_eq!(tree.root(), naive(leaves(n)), "{n}");
            assert_eq!(acc.root(), tree.root(), "{n}");
            assert_eq!(tree.depth(), depth(n));
        }
    }

    proptest! {
        #[test]
        fn range_proofs_hold_and_break(n in 1u64..200, a: u64, b: u64, at: usize) {
            let tree = Tree::new(leaves(n));
            let first = a % n;
            let count = b % (n - first) + 1;
            let mut proof = tree.prove(first, count);
            let range = &tree.leaves()[first as usize..(first + count) as usize];
            prop_assert_eq!(range_root(range, first, tree.depth(), &proof), Some((tree.root(), proof.len())));
            if !proof.is_empty() {
                let i = at % proof.len();
                proof[i][at % 32] ^= 1;
                prop_assert_ne!(range_root(range, first, tree.depth(), &proof).unwrap().0, tree.root());
                proof.pop();
                prop_assert_eq!(range_root(range, first, tree.depth(), &proof), None);
            }
        }

        #[test]
        fn descendants_reproduce_their_node(n in 1u64..300, level: u32, index: u64) {
            let tree = Tree::new(leaves(n));
            let level = level % (tree.depth() + 1);
            let index = index % (1 << (tree.depth() - level));
            prop_assert_eq!(naive(tree.descendants(level, index)), tree.node(level, index));
            let path = tree.path(level, index);
            let (root, used) = range_root(&[tree.node(level, index)], index, tree.depth() - level, &path).unwrap();
            prop_assert_eq!((root, used), (tree.root(), path.len()));
        }
    }
}
