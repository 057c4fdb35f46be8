//! Token sequences.

use crate::{Hash, Tree, keccak, tag, tensor};

/// Tokens as big-endian u32, as in calldata.
pub fn encode(tokens: &[u32]) -> Vec<u8> {
    tokens.iter().flat_map(|t| t.to_be_bytes()).collect()
}

/// Reads what [`encode`] wrote; `None` if the length is no multiple of four.
pub fn decode(bytes: &[u8]) -> Option<Vec<u32>> {
    let words = bytes.chunks_exact(4);
    words.remainder().is_empty().then(|| words.map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]])).collect())
}

/// The commitment to a sequence.
pub fn hash(tokens: &[u32]) -> Hash {
    hash_root(tokens.len() as u32, &tree(tokens).root())
}

/// The commitment from its page root.
pub fn hash_root(count: u32, root: &Hash) -> Hash {
    keccak(&[&[tag::SEQUENCE], &count.to_be_bytes(), root])
}

/// The tree over a sequence's pages.
pub fn tree(tokens: &[u32]) -> Tree {
    tensor::tensor_tree(&encode(tokens))
}
