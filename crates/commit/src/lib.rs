//! Commitments: what is hashed, and how.
//!
//! **Owns** the hash trees and range proofs ([`tree`]), the commitments to tensors, token sequences, weight rows, programs
//! and manifests, the layer-major [`trace`], the [`witness`] that opens one element's inputs, and the opening of a [`head`]. **May depend on** `isa`
//! and a keccak crate. **Must never** do I/O or know of a chain, a file or a GPU. Its only `unsafe` is in `keccak/x86.rs`.
#![deny(unsafe_code)]

pub mod head;
mod keccak;
pub mod manifest;
mod run;
pub mod sequence;
pub mod tensor;
pub mod trace;
pub mod tree;
pub mod witness;

pub use head::{HeadOpening, HeadRow};
pub use keccak::{Lanes, Message, keccak, keccak_many, keccak_words};
pub use manifest::{Manifest, ManifestError};
pub use run::RunParams;
pub use trace::{TraceBuilder, TraceDims, TraceTree};
pub use tree::Tree;

/// A keccak256 digest.
pub type Hash = [u8; 32];

/// First byte of every preimage.
pub(crate) mod tag {
    pub(crate) const PAGE: u8 = 0x00;
    pub(crate) const NODE: u8 = 0x01;
    pub(crate) const LEAF: u8 = 0x02;
    pub(crate) const OP_LIST: u8 = 0x03;
    pub(crate) const ROW: u8 = 0x04;
    pub(crate) const TRACE: u8 = 0x05;
    pub(crate) const DESCRIPTOR: u8 = 0x06;
    pub(crate) const MANIFEST: u8 = 0x07;
    pub(crate) const SEQUENCE: u8 = 0x08;
}

/// Leaf of a weight row: `scales` pairs and elements as stored.
pub fn row_leaf(row: &[u8]) -> Hash {
    keccak(&[&[tag::ROW], row])
}

/// [`row_leaf`] of many rows, in order: several times faster than one by one.
pub fn row_leaves<'a>(rows: impl IntoIterator<Item = &'a [u8]>) -> Vec<Hash> {
    let mut leaves = Vec::new();
    keccak_many(rows.into_iter().map(|row| Message::new(&[tag::ROW], row)), &mut leaves);
    leaves
}

/// Leaf of a program descriptor.
pub fn descriptor_leaf(descriptor: &sworn_isa::Descriptor) -> Hash {
    keccak(&[&[tag::DESCRIPTOR], &descriptor.encode()])
}

/// The tree over a section's descriptors.
pub fn section_tree(section: &sworn_isa::Section) -> Tree {
    Tree::new(section.ops.iter().map(descriptor_leaf).collect())
}
