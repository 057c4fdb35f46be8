//! Tensors in pages.

use crate::{Hash, Tree, keccak, tag, tree};

/// Bytes of a page.
pub const PAGE: usize = 1024;

/// Pages of a tensor of `bytes` bytes.
pub const fn pages(bytes: u64) -> u64 {
    bytes.div_ceil(PAGE as u64)
}

/// Hash of one page; a page shorter than [`PAGE`] is padded with zeros.
pub fn page_hash(page: &[u8]) -> Hash {
    const ZERO: [u8; PAGE] = [0; PAGE];
    keccak(&[&[tag::PAGE], page, &ZERO[page.len().min(PAGE)..]])
}

/// The tree over a tensor's pages.
pub fn tensor_tree(bytes: &[u8]) -> Tree {
    Tree::new(bytes.chunks(PAGE).map(page_hash).collect())
}

/// Root of [`tensor_tree`].
pub fn tensor_root(bytes: &[u8]) -> Hash {
    if bytes.len() <= PAGE && !bytes.is_empty() { page_hash(bytes) } else { tensor_tree(bytes).root() }
}

/// The pages that hold bytes `[start, start + len)`: their range proof and their bytes.
pub fn open_range(bytes: &[u8], pages: &Tree, start: u64, len: u64) -> (Vec<u8>, Vec<Hash>) {
    let (first, last) = (start / PAGE as u64, (start + len.max(1) - 1) / PAGE as u64);
    let end = (((last + 1) * PAGE as u64) as usize).min(bytes.len());
    (bytes[first as usize * PAGE..end].to_vec(), pages.prove(first, last - first + 1))
}

/// Depth of the page tree of a tensor of `bytes` bytes.
pub const fn depth(bytes: u64) -> u32 {
    tree::depth(pages(bytes))
}
