//! The manifest: everything a model's id binds.

use sworn_isa::ISA_VERSION;
use thiserror::Error;

use crate::{Hash, keccak, tag};

/// Most stop tokens of a model.
pub const MAX_STOPS: usize = 32;
const FIXED: usize = 2 + 2 + 4 + 4 + 6 + 96 + 36 + 36 + 64 + 1;

/// What [`Manifest::encode`] packs; field meanings in the protocol's page.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are the packed manifest of docs/protocol.md, in order")]
pub struct Manifest {
    pub layers: u16,
    pub vocab: u32,
    pub max_positions: u32,
    pub op_counts: [u16; 3],
    pub section_roots: [Hash; 3],
    pub weights: u32,
    pub weights_root: Hash,
    pub tables: u32,
    pub tables_root: Hash,
    pub tokenizer_hash: Hash,
    pub chat_template_hash: Hash,
    pub stop_tokens: Vec<u32>,
}

/// Bytes that are no manifest.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ManifestError {
    /// wrong length
    #[error("a manifest with {stops} stop tokens has {expected} bytes, not {actual}: the file is truncated or damaged")]
    Length {
        /// as counted in it
        stops: usize,
        /// bytes it must have
        expected: usize,
        /// bytes it has
        actual: usize,
    },
    /// another instruction set
    #[error("the manifest is for instruction set {0}; this build knows 1: import the model again with this version")]
    Version(u16),
    /// a field outside its range
    #[error("manifest field {0} is outside its range")]
    Field(&'static str),
}

impl Manifest {
    /// The packed bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut b = Vec::with_capacity(FIXED + 4 * self.stop_tokens.len());
        b.extend(ISA_VERSION.to_be_bytes());
        b.extend(self.layers.to_be_bytes());
        b.extend(self.vocab.to_be_bytes());
        b.extend(self.max_positions.to_be_bytes());
        b.extend(self.op_counts.iter().flat_map(|c| c.to_be_bytes()));
        b.extend(self.section_roots.concat());
        b.extend(self.weights.to_be_bytes());
        b.extend(self.weights_root);
        b.extend(self.tables.to_be_bytes());
        b.extend(self.tables_root);
        b.extend(self.tokenizer_hash);
        b.extend(self.chat_template_hash);
        b.push(self.stop_tokens.len() as u8);
        b.extend(self.stop_tokens.iter().flat_map(|t| t.to_be_bytes()));
        b
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// A wrong length, another instruction set or an impossible field.
    pub fn decode(b: &[u8]) -> Result<Self, ManifestError> {
        let stops = b.get(FIXED - 1).copied().unwrap_or(0) as usize;
        let expected = FIXED + 4 * stops;
        if b.len() != expected {
            return Err(ManifestError::Length { stops, expected, actual: b.len() });
        }
        let mut at = 0;
        let mut take = |n: usize| {
            at += n;
            &b[at - n..at]
        };
        fn u16_of(b: &[u8]) -> u16 {
            u16::from_be_bytes([b[0], b[1]])
        }
        fn u32_of(b: &[u8]) -> u32 {
            u32::from_be_bytes([b[0], b[1], b[2], b[3]])
        }
        fn hash_of(b: &[u8]) -> Hash {
            let mut h = [0; 32];
            h.copy_from_slice(b);
            h
        }
        let version = u16_of(take(2));
        if version != ISA_VERSION {
            return Err(ManifestError::Version(version));
        }
        let manifest = Manifest {
            layers: u16_of(take(2)),
            vocab: u32_of(take(4)),
            max_positions: u32_of(take(4)),
            op_counts: [u16_of(take(2)), u16_of(take(2)), u16_of(take(2))],
            section_roots: [hash_of(take(32)), hash_of(take(32)), hash_of(take(32))],
            weights: u32_of(take(4)),
            weights_root: hash_of(take(32)),
            tables: u32_of(take(4)),
            tables_root: hash_of(take(32)),
            tokenizer_hash: hash_of(take(32)),
            chat_template_hash: hash_of(take(32)),
            stop_tokens: {
                take(1);
                (0..stops).map(|_| u32_of(take(4))).collect()
            },
        };
        for (bad, field) in [
            (manifest.layers == 0 || manifest.layers > u16::MAX - 2, "layers"),
            (manifest.vocab == 0, "vocab"),
            (manifest.max_positions == 0 || manifest.max_positions > sworn_isa::MAX_POSITIONS, "maxPositions"),
            (manifest.weights == 0, "weights"),
            (manifest.tables == 0, "tables"),
            (stops > MAX_STOPS || manifest.stop_tokens.iter().any(|t| *t >= manifest.vocab), "stop tokens"),
        ] {
            if bad {
                return Err(ManifestError::Field(field));
            }
        }
        Ok(manifest)
    }

    /// The model's id.
    pub fn id(&self) -> Hash {
        keccak(&[&[tag::MANIFEST], &self.encode()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn codec(layers in 1u16..200, vocab in 1u32..200_000, stops in proptest::collection::vec(any::<u32>(), 0..5), h: [u8; 32]) {
            let m = Manifest {
                layers, vocab, max_positions: 8192, op_counts: [1, 45, 9], section_roots: [h, h, h], weights: 3,
                weights_root: h, tables: 2, tables_root: h, tokenizer_hash: h, chat_template_hash: h,
                stop_tokens: stops.iter().map(|s| s % vocab).collect(),
            };
            let bytes = m.encode();
            prop_assert_eq!(Manifest::decode(&bytes), Ok(m));
            for n in 0..bytes.len() { prop_assert!(Manifest::decode(&bytes[..n]).is_err()); }
        }

        #[test]
        fn garbage_is_an_error(b in proptest::collection::vec(any::<u8>(), 0..400)) { let _ = Manifest::decode(&b); }
    }
}
