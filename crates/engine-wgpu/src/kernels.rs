//! Device kernels, one per opcode.
//!
//! Every kernel computes one operator for a batch of positions. Elements are one 32-bit word each, whatever type is
//! committed; only weights are packed. A row of the batch holds one position's tensor in exactly the layout that the
//! program declares, so nothing here depends on which operator wrote an operand. `ctx` holds the first position of the
//! batch, then its tokens.

// Kernels are written in a subset of Rust: `checked_div`, `clamp`, `div_ceil`, chained conditions and assignment by some operators are not in it, and
// operands are separate arguments.
#![allow(
    clippy::assign_op_pattern,
    clippy::collapsible_if,
    clippy::int_plus_one,
    clippy::manual_checked_ops,
    clippy::manual_clamp,
    clippy::manual_div_ceil,
    clippy::too_many_arguments
)]

pub(crate) mod arith;
pub(crate) mod attention;
pub(crate) mod elementwise;
pub(crate) mod fused;
pub(crate) mod keccak;
pub(crate) mod matrix;
pub(crate) mod norm;

use cubecl::prelude::*;

/// Units of a cube of the elementwise kernels.
pub(crate) const UNITS: u32 = 64;
/// Units that share a reduction.
pub(crate) const FOLD: u32 = 32;

/// Where a batch's rows of one tensor lie in their buffer, in words.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(crate) struct Rows {
    /// From one row to the next.
    pub(crate) stride: u32,
    /// Before the first row.
    pub(crate) offset: u32,
    /// 1: the buffer holds every position of the sequence, 0: those of the batch.
    pub(crate) absolute: u32,
    /// Positions per slab of a running reduction of which the last slab is meant; otherwise 2^32 − 1.
    pub(crate) slab: u32,
    /// Elements of a slab.
    pub(crate) slab_len: u32,
}

/// The first word of row `r`, which is position `t`.
#[cube]
pub(crate) fn start(rows: &Rows, r: u32, t: u32) -> u32 {
    rows.offset + (r + rows.absolute * (t - r)) * rows.stride + t / rows.slab * rows.slab_len
}

/// Copies `n` words, for buffers that grow.
#[cube(launch_unchecked)]
pub(crate) fn copy(from: &[i32], to: &mut [i32], n: u32) {
    // Two dimensions, since one holds at most 65,535 cubes.
    let i = CUBE_POS_Y * (CUBE_COUNT_X * CUBE_DIM_X) + ABSOLUTE_POS_X;
    if i < n {
        to[i as usize] = from[i as usize];
    }
}
