//! Stored rows in their own blocks: what a file says of its weights, before any rounding.

use super::{
    dequantise::{fives, half, scale_and_minimum},
    types::{BLOCK, TensorType},
};
use crate::source::RowBlocks;

/// A row in groups of 32, for the types that have such groups.
pub(super) fn row(dtype: TensorType, bytes: &[u8]) -> Option<RowBlocks> {
    let units = || bytes.chunks_exact(dtype.unit().1);
    Some(match dtype {
        TensorType::Q4_0 => RowBlocks::Q4 {
            groups: units().map(scale).map(|d| (d, -8.0 * d)).collect(),
            q: units().flat_map(|b| nibbles(&b[2..])).collect(),
        },
        TensorType::Q4_1 => RowBlocks::Q4 {
            groups: units().map(|b| (scale(b), scale(&b[2..]))).collect(),
            q: units().flat_map(|b| nibbles(&b[4..])).collect(),
        },
        TensorType::Q4K => RowBlocks::Q4 {
            groups: units().flat_map(pairs).collect(),
            q: units().flat_map(|b| b[16..].chunks_exact(BLOCK).flat_map(nibbles)).collect(),
        },
        TensorType::Q8_0 => RowBlocks::Q8 {
            groups: units().map(scale).collect(),
            q: units().flat_map(|b| b[2..].iter().map(|q| *q as i8)).collect(),
        },
        TensorType::Q5_0 => RowBlocks::Q8 {
            groups: units().map(scale).collect(),
            q: units().flat_map(|b| fives(&b[2..]).map(|q| q as i8 - 16)).collect(),
        },
        _ => return None,
    })
}

fn scale(b: &[u8]) -> f64 {
    f64::from(half(b))
}

/// The low nibbles, then the high ones.
fn nibbles(b: &[u8]) -> impl Iterator<Item = u8> {
    b.iter().map(|q| q & 15).chain(b.iter().map(|q| q >> 4))
}

/// Scales and minima of a block of Q4_K: eleven bits times six, so the products are exact.
fn pairs(b: &[u8]) -> [(f64, f64); 8] {
    let (d, dmin) = (scale(b), scale(&b[2..]));
    std::array::from_fn(|j| {
        let (sc, m) = scale_and_minimum(&b[4..16], j);
        (d * f64::from(sc), -dmin * f64::from(m))
    })
}
