//! The layer-major trace of one job.

use sworn_isa::SectionKind;

use crate::{Hash, Message, Tree, keccak, keccak_many, tag, tensor, tree};

/// Hash of the tensors one layer exports at one position.
pub fn leaf(roots: &[Hash]) -> Hash {
    keccak(&[&[tag::LEAF], roots.as_flattened()])
}

/// Appends the leaves of many rows to `out`, in order: row i exports the next `counts[i]` of `tensors`. Rows from which on
/// there are too few tensors have what there is.
pub fn leaves(tensors: &[&[u8]], counts: &[usize], out: &mut Vec<Hash>) {
    let roots = tensor::tensor_roots(tensors);
    let mut rest = &roots[..];
    let rows = counts.iter().map(|n| {
        let (row, later) = rest.split_at((*n).min(rest.len()));
        rest = later;
        Message::new(&[tag::LEAF], row.as_flattened())
    });
    keccak_many(rows, out);
}

/// Hash of the operator list of one (layer, row).
pub fn op_list(roots: &[Hash]) -> Hash {
    let count = (roots.len() as u16).to_be_bytes();
    keccak(&[&[tag::OP_LIST], &count, roots.as_flattened()])
}

/// The trace root of a job.
pub fn trace_root(model: &Hash, input: &Hash, output: &Hash, positions: u32, layers_root: &Hash) -> Hash {
    keccak(&[&[tag::TRACE], model, input, output, &positions.to_be_bytes(), layers_root])
}

/// The public sizes of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceDims {
    /// block layers L
    pub layers: u16,
    /// prompt tokens, ≥ 1
    pub n_in: u32,
    /// output tokens, ≥ 1
    pub n_out: u32,
}

impl TraceDims {
    /// Positions that run: nIn + nOut − 1.
    pub const fn positions(&self) -> u32 {
        self.n_in + self.n_out - 1
    }

    /// Layers, embedding and head included.
    pub const fn layer_count(&self) -> u16 {
        self.layers + 2
    }

    /// Rows of a layer; 0 for a layer that does not exist.
    pub const fn rows(&self, layer: u16) -> u32 {
        match SectionKind::of_layer(layer, self.layers) {
            Some(SectionKind::Head) => self.n_out,
            Some(_) => self.positions(),
            None => 0,
        }
    }

    /// Position of a row.
    pub const fn position(&self, layer: u16, row: u32) -> u32 {
        if layer == self.layers + 1 { self.n_in - 1 + row } else { row }
    }

    /// Row of a position, if the layer has one there.
    pub const fn row(&self, layer: u16, position: u32) -> Option<u32> {
        let first = self.position(layer, 0);
        if position >= first && position - first < self.rows(layer) { Some(position - first) } else { None }
    }
}

/// Collects leaves while the tokens come, layer by layer in rising rows; keeps every leaf (32 bytes each).
#[derive(Clone, Debug, Default)]
pub struct TraceBuilder {
    layers: Vec<Vec<Hash>>,
}

impl TraceBuilder {
    /// An empty trace of a model with `layers` blocks.
    pub fn new(layers: u16) -> Self {
        TraceBuilder { layers: vec![Vec::new(); layers as usize + 2] }
    }

    /// Adds the next row of a layer. Rows of one layer come in order; layers in any order.
    pub fn push(&mut self, layer: u16, leaf: Hash) {
        self.layers[layer as usize].push(leaf);
    }

    /// Rows of a layer so far.
    pub fn rows(&self, layer: u16) -> u32 {
        self.layers[layer as usize].len() as u32
    }

    /// Root over the layers' roots so far: a pass over all leaves.
    pub fn layers_root(&self) -> Hash {
        let counts: Vec<usize> = self.layers.iter().map(Vec::len).collect();
        let roots = tree::roots(self.layers.concat(), &counts);
        Tree::new(roots).root()
    }

    /// The finished trees.
    pub fn finish(self) -> TraceTree {
        TraceTree::new(self.layers)
    }
}

/// All trees of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceTree {
    layers: Vec<Tree>,
    top: Tree,
}

impl TraceTree {
    /// From every layer's leaves.
    pub fn new(leaves: Vec<Vec<Hash>>) -> Self {
        let layers = Tree::forest(leaves);
        let top = Tree::new(layers.iter().map(Tree::root).collect());
        TraceTree { layers, top }
    }

    /// The tree over layer roots.
    pub fn top(&self) -> &Tree {
        &self.top
    }

    /// The tree over a layer's leaves.
    pub fn layer(&self, layer: u16) -> &Tree {
        &self.layers[layer as usize]
    }

    /// Every layer's tree.
    pub fn layers(&self) -> &[Tree] {
        &self.layers
    }

    /// Root over the layers' roots.
    pub fn layers_root(&self) -> Hash {
        self.top.root()
    }

    /// Path from leaf(layer, row) — or from a higher node of the layer's tree — to the layers root.
    pub fn path(&self, layer: u16, level: u32, index: u64) -> Vec<Hash> {
        let mut path = self.layer(layer).path(level, index);
        path.extend(self.top.path(0, layer as u64));
        path
    }

    /// The trace of a shorter run that began with the same tokens: a leaf depends on the tokens up to its position only. `None` if
    /// this trace has not as many rows.
    pub fn cut(&self, dims: &TraceDims) -> Option<Self> {
        let rows = |(l, tree): (usize, &Tree)| {
            let rows = dims.rows(u16::try_from(l).ok()?) as usize;
            tree.leaves().get(..rows).map(<[Hash]>::to_vec)
        };
        if self.layers.len() != usize::from(dims.layers) + 2 {
            return None;
        }
        Some(TraceTree::new(self.layers.iter().enumerate().map(rows).collect::<Option<_>>()?))
    }

    /// The leaves, layer-major: what a node serves.
    pub fn encode(&self) -> Vec<u8> {
        self.layers.iter().flat_map(|t| t.leaves().concat()).collect()
    }

    /// Reads what [`Self::encode`] wrote; `None` if the length does not fit `dims`.
    pub fn decode(bytes: &[u8], dims: &TraceDims) -> Option<Self> {
        let (hashes, rest) = bytes.as_chunks::<32>();
        let total: u64 = (0..dims.layer_count()).map(|l| dims.rows(l) as u64).sum();
        if !rest.is_empty() || hashes.len() as u64 != total {
            return None;
        }
        let mut at = 0;
        let leaves = (0..dims.layer_count()).map(|l| {
            let n = dims.rows(l) as usize;
            at += n;
            hashes[at - n..at].to_vec()
        });
        Some(TraceTree::new(leaves.collect()))
    }

    /// The first (layer, row), in the trace's order, where the two traces of equal dimensions differ.
    pub fn first_difference(&self, other: &TraceTree) -> Option<(u16, u32)> {
        self.layers.iter().zip(&other.layers).enumerate().find_map(|(layer, (a, b))| {
            let row = a.leaves().iter().zip(b.leaves()).position(|(x, y)| x != y)?;
            Some((layer as u16, row as u32))
        })
    }
}

/// Depth of the position tree of `rows` rows.
pub const fn rows_depth(rows: u32) -> u32 {
    tree::depth(rows as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn leaves_of_many_rows_are_the_leaves_of_each() {
        let tensors: Vec<Vec<u8>> = (0..23usize).map(|i| vec![i as u8; i * i * 17]).collect();
        let counts = [1, 4, 4, 0, 4, 1, 9];
        let mut at = 0;
        let want: Vec<Hash> = counts
            .iter()
            .map(|n| {
                at += n;
                leaf(&tensors[at - n..at].iter().map(|t| tensor::tensor_root(t)).collect::<Vec<_>>())
            })
            .collect();
        let mut got = vec![[1; 32]];
        leaves(&tensors.iter().map(Vec::as_slice).collect::<Vec<_>>(), &counts, &mut got);
        assert_eq!(got[1..], want);
        assert_eq!(want[3], keccak(&[&[tag::LEAF]]));
        let roots = [[1; 32], [2; 32]];
        assert_eq!(leaf(&roots), keccak(&[&[2], &roots[0], &roots[1]]));
        assert_eq!(op_list(&roots), keccak(&[&[3, 0, 2], &roots[0], &roots[1]]));
    }

    proptest! {
        #[test]
        fn builder_tree_and_codec_agree(layers in 1u16..6, n_in in 1u32..20, n_out in 1u32..20) {
            let dims = TraceDims { layers, n_in, n_out };
            let mut b = TraceBuilder::new(layers);
            for l in 0..dims.layer_count() {
                for r in 0..dims.rows(l) {
                    prop_assert_eq!(dims.row(l, dims.position(l, r)), Some(r));
                    b.push(l, keccak(&[&l.to_be_bytes(), &r.to_be_bytes()]));
                }
            }
            let root = b.layers_root();
            let t = b.finish();
            prop_assert_eq!(root, t.layers_root());
            let bytes = t.encode();
            prop_assert_eq!(TraceTree::decode(&bytes, &dims), Some(t.clone()));
            prop_assert_eq!(TraceTree::decode(&bytes[1..], &dims), None);
            let mut other = bytes.clone();
            let last = other.len() - 1;
            other[last] ^= 1;
            let other = TraceTree::decode(&other, &dims).unwrap();
            prop_assert_eq!(t.first_difference(&other), Some((layers + 1, n_out - 1)));
        }
    }
}
