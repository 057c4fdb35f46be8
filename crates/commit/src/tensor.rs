//! Tensors in pages.

use std::cmp::Reverse;

use crate::{Hash, Message, Tree, keccak_many, tag, tree};

/// Bytes of a page.
pub const PAGE: usize = 1024;

/// Pages of a tensor of `bytes` bytes.
pub const fn pages(bytes: u64) -> u64 {
    bytes.div_ceil(PAGE as u64)
}

/// The pages of tensors, ready to be hashed; the last of each is as long as what remains.
fn messages<'a>(tensors: &[&'a [u8]]) -> impl Iterator<Item = Message<'a>> {
    let pages = tensors.iter().flat_map(|t| t.chunks(PAGE));
    pages.map(|page| Message::new(&[tag::PAGE], page))
}

/// Hash of one page: its bytes as they are.
///
/// How many they are follows from the tensor's shape. Whoever compares this hash with a committed one has checked that
/// first, or a page of another length would be as good as any.
pub fn page_hash(page: &[u8]) -> Hash {
    Message::new(&[tag::PAGE], page).hash()
}

fn page_hashes(bytes: &[u8]) -> Vec<Hash> {
    let mut hashes = Vec::with_capacity(bytes.len().div_ceil(PAGE));
    keccak_many(messages(&[bytes]), &mut hashes);
    hashes
}

/// The tree over a tensor's pages.
pub fn tensor_tree(bytes: &[u8]) -> Tree {
    Tree::new(page_hashes(bytes))
}

/// Root of [`tensor_tree`].
pub fn tensor_root(bytes: &[u8]) -> Hash {
    tree::roots(page_hashes(bytes), &[bytes.len().div_ceil(PAGE)])[0]
}

/// [`tensor_root`] of many tensors, in order: several times faster than one by one.
pub fn tensor_roots(tensors: &[&[u8]]) -> Vec<Hash> {
    let counts: Vec<usize> = tensors.iter().map(|t| t.len().div_ceil(PAGE)).collect();
    // Pages of all lengths: full ones before scales of a few bytes, so that the hash function's lanes run dry together.
    let mut pages: Vec<_> = messages(tensors).enumerate().collect();
    pages.sort_by_key(|(_, page)| Reverse(page.len()));
    let mut hashes = Vec::with_capacity(pages.len());
    keccak_many(pages.iter().map(|(_, page)| *page), &mut hashes);
    let mut leaves = vec![[0; 32]; pages.len()];
    for ((i, _), hash) in pages.iter().zip(hashes) {
        leaves[*i] = hash;
    }
    tree::roots(leaves, &counts)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{keccak, tree::node};

    /// The definition, page by page.
    fn plain(bytes: &[u8]) -> Hash {
        let mut row: Vec<Hash> = bytes.chunks(PAGE).map(|page| keccak(&[&[tag::PAGE], page])).collect();
        row.resize(row.len().next_power_of_two(), tree::empty(0));
        while row.len() > 1 {
            row = row.chunks(2).map(|p| node(&p[0], &p[1])).collect();
        }
        row[0]
    }

    #[test]
    fn roots_of_many_are_the_roots_of_each() {
        let sizes = [0, 1, 24, 192, 1023, 1024, 1025, 2304, 4096, 4097, 5121, 0, 9000, 384];
        let tensors: Vec<Vec<u8>> = sizes
            .iter()
            .enumerate()
            .map(|(i, n)| (0..*n).map(|k| (k * 31 + i * 7 + k / 256) as u8).collect())
            .collect();
        let want: Vec<Hash> = tensors.iter().map(|t| plain(t)).collect();
        assert_eq!(tensor_roots(&tensors.iter().map(Vec::as_slice).collect::<Vec<_>>()), want);
        assert_eq!(tensor_roots(&[]), Vec::<Hash>::new());
        for (t, want) in tensors.iter().zip(want) {
            assert_eq!(tensor_root(t), want);
            assert_eq!(tensor_tree(t).root(), want);
            assert!(t.chunks(PAGE).zip(tensor_tree(t).leaves()).all(|(page, leaf)| page_hash(page) == *leaf));
        }
    }
}
