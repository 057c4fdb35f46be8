//! What the head commits to besides the token: the likeliest tokens of every row and their log-probabilities, opened down from a trace's layers root.
//!
//! A row's leaf is the hash of its exports' roots, and all three exports are short. So whoever has the layers root from the chain and the output's tokens
//! checks all rows at once: it computes every leaf from what is served, the head's root from the leaves, and the layers root by one path.

use sworn_isa::SectionKind;
use sworn_isa::logprob::MOST;
use thiserror::Error;

use crate::{Hash, TraceDims, TraceTree, Tree, tensor, trace};

/// Log-probabilities of one output token: of the logits as they are, before penalty, temperature and cuts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadRow {
    /// The likeliest tokens, the likeliest first.
    pub top: Vec<u32>,
    /// Q14 in natural-logarithm units: of the token that came out, then of each of [`Self::top`].
    pub log_probs: Vec<i32>,
}

impl HeadRow {
    /// From a head row's exports in program order, encoded: token, `TOP`, `LOG_PROB`. `None` if a model's head exports something else.
    pub fn from_exports(tensors: &[&[u8]]) -> Option<Self> {
        let [_, top, log_probs] = tensors else { return None };
        let words = |b: &[u8]| -> Vec<u32> { b.as_chunks::<4>().0.iter().map(|w| u32::from_be_bytes(*w)).collect() };
        let row = HeadRow { top: words(top), log_probs: words(log_probs).into_iter().map(|w| w as i32).collect() };
        (!row.top.is_empty() && row.log_probs.len() == row.top.len() + 1).then_some(row)
    }

    /// The log-probability of the token that came out, in Q14.
    pub fn chosen(&self) -> i32 {
        self.log_probs.first().copied().unwrap_or(0)
    }

    /// The likeliest tokens with their log-probabilities in Q14.
    pub fn likeliest(&self) -> impl Iterator<Item = (u32, i32)> {
        self.top.iter().copied().zip(self.log_probs.iter().copied().skip(1))
    }

    fn encode(&self, out: &mut Vec<u8>) -> usize {
        self.top.iter().for_each(|t| out.extend(t.to_be_bytes()));
        let at = out.len();
        self.log_probs.iter().for_each(|p| out.extend(p.to_be_bytes()));
        at
    }

    /// The exports of a row in which `token` came out, in program order: what [`Self::from_exports`] takes.
    pub fn exports<T>(&self, token: u32, then: impl FnOnce([&[u8]; 3]) -> T) -> T {
        let mut bytes = Vec::new();
        let at = self.encode(&mut bytes);
        let (top, log_probs) = bytes.split_at(at);
        then([&token.to_be_bytes(), top, log_probs])
    }

    /// The leaf of a row in which `token` came out.
    pub fn leaf(&self, token: u32) -> Hash {
        self.exports(token, |tensors| trace::leaf(&tensors.map(tensor::tensor_root)))
    }
}

/// Every row of a head with the path to the layers root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadOpening {
    /// One per output token.
    pub rows: Vec<HeadRow>,
    /// From the head's root to the layers root.
    pub path: Vec<Hash>,
}

/// An opening that is not what was committed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HeadError {
    /// wrong sizes
    #[error("the opened log-probabilities have another shape than the answer")]
    Shape,
    /// wrong bytes
    #[error("the opened log-probabilities are not the ones that the answer commits to")]
    Root,
}

impl HeadOpening {
    /// Opens the head of a finished trace.
    pub fn new(tree: &TraceTree, rows: Vec<HeadRow>) -> Self {
        let head = tree.layers().len() as u64 - 1;
        HeadOpening { rows, path: tree.top().path(0, head) }
    }

    /// Bytes of an opening for a model whose `TOP` has `n` tokens.
    pub fn encoded_len(dims: &TraceDims, n: usize) -> u64 {
        32 * u64::from(crate::tree::depth(u64::from(dims.layer_count())))
            + u64::from(dims.n_out) * 4 * (2 * n as u64 + 1)
    }

    /// The path, then the rows: what a node serves.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.path.concat();
        for row in &self.rows {
            row.encode(&mut out);
        }
        out
    }

    /// Reads what [`Self::encode`] wrote and believes it only if it is what the layers root commits to, for an answer of the tokens `output` by a model
    /// whose `TOP` has `n` tokens.
    ///
    /// # Errors
    /// Another length than there must be, or other bytes than were committed to.
    pub fn verify(
        bytes: &[u8],
        dims: &TraceDims,
        n: usize,
        output: &[u32],
        layers_root: &Hash,
    ) -> Result<Self, HeadError> {
        let (depth, row) = (crate::tree::depth(u64::from(dims.layer_count())) as usize, 4 * (2 * n + 1));
        let shaped = (1..=MOST as usize).contains(&n) && output.len() == dims.n_out as usize && !output.is_empty();
        if !shaped || bytes.len() as u64 != Self::encoded_len(dims, n) {
            return Err(HeadError::Shape);
        }
        let (path, rows) = bytes.split_at(32 * depth);
        let path: Vec<Hash> = path.as_chunks::<32>().0.to_vec();
        let rows: Vec<HeadRow> = rows
            .chunks_exact(row)
            .filter_map(|row| HeadRow::from_exports(&[&[], &row[..4 * n], &row[4 * n..]]))
            .collect();
        let opening = HeadOpening { rows, path };
        if opening.layers_root(dims, output) == *layers_root { Ok(opening) } else { Err(HeadError::Root) }
    }

    fn layers_root(&self, dims: &TraceDims, output: &[u32]) -> Hash {
        let leaves = self.rows.iter().zip(output).map(|(row, token)| row.leaf(*token)).collect();
        let mut index = u64::from(dims.layer_count()) - 1;
        debug_assert_eq!(SectionKind::of_layer(index as u16, dims.layers), Some(SectionKind::Head));
        self.path.iter().fold(Tree::new(leaves).root(), |node, sibling| {
            let right = index & 1 == 1;
            index >>= 1;
            if right { crate::tree::node(sibling, &node) } else { crate::tree::node(&node, sibling) }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn opened(layers: u16, n: usize, output: &[u32], seed: u32) -> (TraceDims, TraceTree, HeadOpening) {
        let dims = TraceDims { layers, n_in: 3, n_out: output.len() as u32 };
        let mut word = seed;
        let mut next = || {
            word = word.wrapping_mul(0x9e37_79b1).wrapping_add(12345);
            word
        };
        let rows: Vec<HeadRow> = output
            .iter()
            .map(|_| HeadRow {
                top: (0..n).map(|_| next() >> 16).collect(),
                log_probs: (0..=n).map(|_| -((next() >> 12) as i32)).collect(),
            })
            .collect();
        let mut leaves: Vec<Vec<Hash>> =
            (0..=layers).map(|l| (0..dims.rows(l)).map(|r| [(l * 31) as u8 ^ r as u8; 32]).collect()).collect();
        leaves.push(rows.iter().zip(output).map(|(row, token)| row.leaf(*token)).collect());
        let tree = TraceTree::new(leaves);
        let opening = HeadOpening::new(&tree, rows);
        (dims, tree, opening)
    }

    #[test]
    fn a_rows_leaf_is_that_of_its_tensors() {
        let row = HeadRow { top: vec![7, 9], log_probs: vec![-5, -1, -2] };
        let tensors: [&[u8]; 3] =
            [&[0, 0, 0, 8], &[0, 0, 0, 7, 0, 0, 0, 9], &[255, 255, 255, 251, 255, 255, 255, 255, 255, 255, 255, 254]];
        assert_eq!(row.leaf(8), trace::leaf(&tensors.map(tensor::tensor_root)));
        assert_eq!(HeadRow::from_exports(&tensors), Some(row.clone()));
        assert_eq!((row.chosen(), row.likeliest().collect::<Vec<_>>()), (-5, vec![(7, -1), (9, -2)]));
        assert_eq!(HeadRow::from_exports(&tensors[..1]), None);
        assert_eq!(HeadRow::from_exports(&[tensors[0], tensors[1], tensors[1]]), None);
    }

    #[test]
    fn every_changed_byte_is_refused() {
        let output = [5, 6, 7, 8, 9];
        let (dims, tree, opening) = opened(4, 3, &output, 1);
        let (bytes, root) = (opening.encode(), tree.layers_root());
        let verify = |bytes: &[u8], output: &[u32]| HeadOpening::verify(bytes, &dims, 3, output, &root);
        assert_eq!(verify(&bytes, &output), Ok(opening));
        for i in 0..bytes.len() {
            for bit in 0..8 {
                let mut other = bytes.clone();
                other[i] ^= 1 << bit;
                assert_eq!(verify(&other, &output), Err(HeadError::Root), "byte {i}");
            }
        }
        // Other tokens, other lengths, another width, another root.
        assert_eq!(verify(&bytes, &[5, 6, 7, 8, 10]), Err(HeadError::Root));
        assert_eq!(verify(&bytes, &output[..4]), Err(HeadError::Shape));
        for cut in [&bytes[1..], &bytes[..bytes.len() - 1], &[], &[&bytes[..], &[0]].concat()] {
            assert_eq!(verify(cut, &output), Err(HeadError::Shape));
        }
        assert_eq!(HeadOpening::verify(&bytes, &dims, 2, &output, &root), Err(HeadError::Shape));
        assert_eq!(HeadOpening::verify(&bytes, &dims, 0, &output, &root), Err(HeadError::Shape));
        assert_eq!(HeadOpening::verify(&bytes, &dims, 3, &output, &[0; 32]), Err(HeadError::Root));
    }

    proptest! {
        #[test]
        fn openings_of_any_size_verify(layers in 1u16..40, n in 1usize..21, output in proptest::collection::vec(any::<u32>(), 1..70), seed: u32) {
            let (dims, tree, opening) = opened(layers, n, &output, seed);
            let bytes = opening.encode();
            prop_assert_eq!(bytes.len() as u64, HeadOpening::encoded_len(&dims, n));
            prop_assert_eq!(HeadOpening::verify(&bytes, &dims, n, &output, &tree.layers_root()), Ok(opening));
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), n in 0usize..30, layers in 0u16..9) {
            let dims = TraceDims { layers, n_in: 1, n_out: 2 };
            prop_assert!(HeadOpening::verify(&bytes, &dims, n, &[1, 2], &[0; 32]).is_err());
        }
    }
}
