//! Device kernels, one per opcode.
//!
//! Every kernel computes one operator for a batch of positions. Elements are one 32-bit word each, whatever type is
//! committed; only weights are packed. A row of the batch holds one position's tensor in exactly the layout that the
//! program declares, so nothing here depends on which operator wrote an operand. Rows may belong to different sequences: `ctx`
//! tells of each what [`Line`] holds, and its token.

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
pub(crate) mod dot;
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

/// Words of `ctx` for a row: position, token, the first slot of its sequence in the caches, and the row that stands for it in
/// the outputs of a layer before, where those hold more rows than the batch.
pub(crate) const ROW_WORDS: usize = 4;

/// A row of the batch.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Line {
    /// Its number.
    pub(crate) r: u32,
    /// Its position.
    pub(crate) t: u32,
    /// The slot of its sequence's position 0 in the caches.
    pub(crate) first: u32,
    /// Its number among the rows of the layer before.
    pub(crate) source: u32,
}

/// Row `r` of the batch.
#[cube]
pub(crate) fn line(ctx: &[u32], r: u32) -> Line {
    let at = 4u32 * r;
    Line { r, t: ctx[at as usize], first: ctx[(at + 2u32) as usize], source: ctx[(at + 3u32) as usize] }
}

/// How the rows of a tensor are numbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Numbering {
    /// As in the batch.
    Batch = 0,
    /// By slot: the tensor is kept for every position of every sequence.
    Slot = 1,
    /// As in the batch of the layer before.
    Source = 2,
}

/// Where a batch's rows of one tensor lie in their buffer, in words.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(crate) struct Rows {
    /// From one row to the next.
    pub(crate) stride: u32,
    /// Before the first row.
    pub(crate) offset: u32,
    /// A [`Numbering`].
    pub(crate) numbering: u32,
    /// Positions per slab of a running reduction of which the last slab is meant; otherwise 2^32 − 1.
    pub(crate) slab: u32,
    /// Elements of a slab.
    pub(crate) slab_len: u32,
}

/// The first word of a row.
#[cube]
pub(crate) fn start(rows: &Rows, line: &Line) -> u32 {
    let mut k = line.r;
    if rows.numbering == 1u32 {
        k = line.first + line.t;
    } else if rows.numbering == 2u32 {
        k = line.source;
    }
    rows.offset + k * rows.stride + line.t / rows.slab * rows.slab_len
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

/// Copies `n` words to another place in the same buffer, which does not overlap.
#[cube(launch_unchecked)]
pub(crate) fn copy_within(data: &mut [i32], from: u32, to: u32, n: u32) {
    let i = CUBE_POS_Y * (CUBE_COUNT_X * CUBE_DIM_X) + ABSOLUTE_POS_X;
    if i < n {
        data[(to + i) as usize] = data[(from + i) as usize];
    }
}
