//! Binary hash trees whose depth follows from the leaf count, and range proofs.

use std::sync::OnceLock;

use crate::{Hash, Message, keccak, keccak_many, tag};

/// Deepest tree there is.
pub const MAX_DEPTH: usize = 40;

/// Hash of an inner node.
pub fn node(left: &Hash, right: &Hash) -> Hash {
    keccak(&[&[tag::NODE], left, right])
}

/// Appends the nodes above consecutive pairs.
fn nodes(pairs: &[Hash], out: &mut Vec<Hash>) {
    let pairs = pairs.as_chunks::<2>().0;
    keccak_many(pairs.iter().map(|pair| Message::new(&[tag::NODE], pair.as_flattened())), out);
}

/// The roots of many trees: `leaves` holds the leaves of the first, `counts[0]` of them, then those of the second, …
/// Missing leaves are the empty one, surplus leaves ignored.
pub fn roots(mut leaves: Vec<Hash>, counts: &[usize]) -> Vec<Hash> {
    leaves.resize(counts.iter().sum(), empty(0));
    let mut roots = vec![empty(0); counts.len()];
    let mut row = leaves;
    // What has more than one leaf left: its number and how many.
    let mut open: Vec<(usize, usize)> = counts.iter().copied().enumerate().collect();
    let mut pairs = Vec::new();
    for level in 0.. {
        let mut at = 0;
        pairs.clear();
        open.retain_mut(|(tree, count)| {
            let hashes = &row[at..at + *count];
            at += *count;
            match hashes {
                [] => false,
                [root] => {
                    roots[*tree] = *root;
                    false
                }
                _ => {
                    pairs.extend_from_slice(hashes);
                    if hashes.len() % 2 == 1 {
                        pairs.push(empty(level));
                    }
                    *count = count.div_ceil(2);
                    true
                }
            }
        });
        if open.is_empty() {
            break;
        }
        row.clear();
        nodes(&pairs, &mut row);
    }
    roots
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
        let mut tree = Tree { levels: vec![leaves] };
        grow(std::slice::from_mut(&mut tree));
        tree
    }

    /// [`Self::new`] of many: narrow trees are hashed together.
    pub fn forest(leaves: Vec<Vec<Hash>>) -> Vec<Self> {
        let mut trees: Vec<Tree> = leaves.into_iter().map(|leaves| Tree { levels: vec![leaves] }).collect();
        grow(&mut trees);
        trees
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

/// Adds the levels above the leaves.
fn grow(trees: &mut [Tree]) {
    for tree in trees.iter_mut().filter(|t| t.levels[0].is_empty()) {
        tree.levels[0].push(empty(0));
    }
    let (mut pairs, mut above) = (Vec::new(), Vec::new());
    for level in 0.. {
        pairs.clear();
        above.clear();
        let open = |t: &Tree| t.levels.get(level).is_some_and(|row| row.len() > 1);
        for tree in trees.iter().filter(|t| open(t)) {
            pairs.extend_from_slice(&tree.levels[level]);
            if tree.levels[level].len() % 2 == 1 {
                pairs.push(empty(level as u32));
            }
        }
        if pairs.is_empty() {
            return;
        }
        nodes(&pairs, &mut above);
        let mut rest = &above[..];
        for tree in trees.iter_mut().filter(|t| open(t)) {
            let (row, later) = rest.split_at(tree.levels[level].len().div_ceil(2));
            tree.levels.push(row.to_vec());
            rest = later;
        }
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
        let mut above = Vec::with_capacity(row.len() / 2);
        nodes(&row, &mut above);
        row = above;
        lo >>= 1;
    }
    Some((row[0], used))
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
        let counts: Vec<usize> = (0..140).chain([1, 0, 257]).collect();
        let all: Vec<Vec<Hash>> = counts.iter().map(|n| leaves(*n as u64)).collect();
        let forest = Tree::forest(all.clone());
        assert_eq!(roots(all.concat(), &counts), forest.iter().map(Tree::root).collect::<Vec<_>>());
        for (leaves, tree) in all.into_iter().zip(forest) {
            let n = leaves.len() as u64;
            assert_eq!(tree, Tree::new(leaves.clone()), "{n}");
            assert_eq!(tree.root(), naive(leaves), "{n}");
            assert_eq!(tree.depth(), depth(n));
        }
        assert_eq!(Tree::forest(Vec::new()), Vec::new());
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
