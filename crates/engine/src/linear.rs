//! `LINEAR`: rows of integer weights times a batch of activation vectors.

use std::cell::RefCell;
use std::ops::Range;

use sworn_isa::RowFormat;
use sworn_isa::fixed::{CL, signed};

use crate::activation::{Activation, Kernel};
use crate::packed::Packed;
use crate::panel::{BLOCK, Panel, WIDTH};
use crate::simd::{ROWS, Simd};
use crate::team::Team;

/// From how many activation vectors on unpacking the weights pays.
const PANEL_FROM: usize = 4;
/// Rows that are multiplied before their sums are requantised together; a multiple of [`ROWS`] and [`BLOCK`].
const STRIP: usize = 64;
/// How many bytes ahead of the rows at hand memory is asked for.
const AHEAD: usize = 4096;

/// A scale pair: for activations m·2^e, for a weight row m·2^(−e).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// mantissa
    pub m: u32,
    /// exponent, of a weight row: right shift
    pub e: i32,
}

/// A weight matrix as stored: row after row, scale pairs (m u16, shift i16, big-endian) and then the elements in the matrix's
/// format.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    bytes: &'a [u8],
    rows: usize,
    columns: usize,
    pairs: usize,
    pair: usize,
    format: RowFormat,
    /// Bytes of a row.
    stride: usize,
}

impl<'a> Matrix<'a> {
    /// `rows` rows of `pairs` scale pairs and `columns` elements in `format`, read with scale pair `pair`; `None` if `bytes` is not
    /// that long, there is no such pair, or such rows cannot have `columns` elements.
    pub fn with_format(
        bytes: &'a [u8],
        rows: usize,
        columns: usize,
        pairs: usize,
        pair: usize,
        format: RowFormat,
    ) -> Option<Self> {
        if !format.fits(columns) || pair >= pairs {
            return None;
        }
        let stride = pairs.checked_mul(4)?.checked_add(format.bytes(columns))?;
        let whole = bytes.len() == stride.checked_mul(rows)?;
        whole.then_some(Matrix { bytes, rows, columns, pairs, pair, format, stride })
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements of a row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The scale pair that rows are read with.
    pub(crate) fn pair(&self) -> usize {
        self.pair
    }

    /// How a row stores its elements.
    pub fn format(&self) -> RowFormat {
        self.format
    }

    #[inline]
    fn stored(&self, i: usize) -> Option<&'a [u8]> {
        if i >= self.rows {
            return None;
        }
        Some(&self.bytes[i * self.stride..][..self.stride])
    }

    /// What row `i` holds after its scale pairs.
    #[inline]
    pub fn data(&self, i: usize) -> Option<&'a [u8]> {
        self.stored(i)?.get(4 * self.pairs..)
    }

    /// The integer weights of row `i` into `out`, as many as it has columns; `None` if there is no such row or `out` has
    /// another length.
    pub fn weights(&self, i: usize, out: &mut [i32]) -> Option<()> {
        let row = self.data(i)?;
        if out.len() != self.columns {
            return None;
        }
        match self.format {
            RowFormat::I8 => out.iter_mut().zip(row).for_each(|(o, w)| *o = i32::from(*w as i8)),
            format => {
                let n = self.columns;
                for (k, o) in out.iter_mut().enumerate() {
                    *o = format.weight(row, n, k);
                }
            }
        }
        Some(())
    }

    /// The scale of row `i`.
    #[inline]
    pub fn scale(&self, i: usize) -> Option<Scale> {
        let b = &self.stored(i)?[4 * self.pair..];
        let (m, e) = (u16::from_be_bytes([b[0], b[1]]), i16::from_be_bytes([b[2], b[3]]));
        Some(Scale { m: u32::from(m), e: i32::from(e) })
    }
}

/// The scales of up to [`STRIP`] rows.
struct Scales {
    m: [u32; STRIP],
    e: [i32; STRIP],
    format: RowFormat,
}

impl Scales {
    fn new(format: RowFormat) -> Self {
        Scales { m: [0; STRIP], e: [0; STRIP], format }
    }

    /// Puts the scales of rows `first…` at `at…at + n − 1`.
    #[inline(always)]
    fn read(&mut self, m: &Matrix<'_>, first: usize, at: usize, n: usize) {
        for (i, (sm, se)) in self.m[at..].iter_mut().zip(&mut self.e[at..]).take(n).enumerate() {
            if let Some(Scale { m, e }) = m.scale(first + i) {
                (*sm, *se) = (m, e);
            }
        }
    }

    /// `fixed::narrow` and `fixed::smulrs` of the sums of rows `from…` of these, without branches.
    #[inline(always)]
    fn requantise(&self, acc: &[i64], a: Scale, out: &mut [i32]) {
        let r = self.format.shift();
        let half = if r == 0 { 0 } else { 1u64 << (r - 1) };
        let i8_rows = self.format == RowFormat::I8;
        for (((o, acc), m), e) in out.iter_mut().zip(acc).zip(&self.m).zip(&self.e) {
            // I8 sums are defined modulo 2^32.
            let acc = if i8_rows { i64::from(*acc as i32) } else { *acc };
            let x = (acc.unsigned_abs().wrapping_add(half) >> r) as u32;
            let b = a.m.wrapping_mul(*m);
            let s = e.wrapping_sub(a.e);
            let shift = s.clamp(1, 63) as u32;
            let y = (u64::from(x) * u64::from(b)).wrapping_add(1 << (shift - 1)) >> shift;
            let y = y.min(CL as u64) as u32;
            let least = if x == 0 { 0 } else { CL as u32 };
            *o = signed(acc < 0, if s < 1 { least } else { y });
        }
    }
}

/// Rows `[first, first + outs[0].len())` of `m` times each of `acts`, requantised. The activations have the forms that the
/// matrix's format needs, see [`Kernel::of`].
pub(crate) fn rows(
    m: &Matrix<'_>,
    first: usize,
    acts: &[&Activation],
    scales: &[Scale],
    outs: &mut [&mut [i32]],
    simd: Simd,
) {
    if acts.len() >= PANEL_FROM {
        return panels(m, first, acts, scales, outs, simd);
    }
    let n = outs.first().map_or(0, |o| o.len());
    for from in (0..n).step_by(STRIP) {
        let len = STRIP.min(n - from);
        let mut rows = Scales::new(m.format);
        for ((a, scale), out) in acts.iter().zip(scales).zip(outs.iter_mut()) {
            let mut acc = [0i64; STRIP];
            let mut r = 0;
            while r < len {
                let at = first + from + r;
                let row = |i: usize| m.data(at + i).unwrap_or_default();
                if r + ROWS <= len {
                    // What processors fetch by themselves ends at page borders and takes a while to start again.
                    simd.prefetch(m.bytes, at * m.stride + AHEAD, ROWS * m.stride);
                    rows.read(m, at, r, ROWS);
                    let sums = simd.dots::<ROWS>(m.format, std::array::from_fn(row), m.columns, a);
                    acc[r..r + ROWS].copy_from_slice(&sums);
                    r += ROWS;
                } else {
                    rows.read(m, at, r, 1);
                    [acc[r]] = simd.dots(m.format, [row(0)], m.columns, a);
                    r += 1;
                }
            }
            let out = &mut out[from..from + len];
            simd.run(|| rows.requantise(&acc[..len], *scale, out));
        }
    }
}

thread_local! {
    static PANEL: RefCell<Panel> = RefCell::new(Panel::default());
}

fn panels(m: &Matrix<'_>, first: usize, acts: &[&Activation], scales: &[Scale], outs: &mut [&mut [i32]], simd: Simd) {
    let n = outs.first().map_or(0, |o| o.len());
    let width = simd.panel_width();
    PANEL.with_borrow_mut(|panel| {
        for from in (0..n).step_by(BLOCK) {
            let len = BLOCK.min(n - from);
            panel.load(m, first + from, simd);
            let mut rows = Scales::new(m.format);
            rows.read(m, first + from, 0, len);
            let mut c = 0;
            while c < acts.len() {
                let mut acc = [[0; BLOCK]; WIDTH];
                let (a, out) = (&acts[c..], &mut acc);
                let done = match width.min(acts.len() - c) {
                    8.. => times::<8>(panel, a, out, simd),
                    4.. => times::<4>(panel, a, out, simd),
                    2.. => times::<2>(panel, a, out, simd),
                    _ => times::<1>(panel, a, out, simd),
                };
                for (i, acc) in acc.iter().enumerate().take(done) {
                    let out = &mut outs[c + i][from..from + len];
                    simd.run(|| rows.requantise(&acc[..len], scales[c + i], out));
                }
                c += done;
            }
        }
    });
}

/// Rows `[first, first + outs[0].len())` of a rearranged matrix times each of `acts`; `first` is a multiple of the rows of a block.
pub(crate) fn blocks(
    m: &Packed,
    first: usize,
    acts: &[&Activation],
    scales: &[Scale],
    outs: &mut [&mut [i32]],
    simd: Simd,
) {
    let n = outs.first().map_or(0, |o| o.len());
    for from in (0..n).step_by(BLOCK) {
        let block = m.block((first + from) / BLOCK);
        let part = from..n.min(from + BLOCK);
        let mut c = 0;
        while c < acts.len() {
            let (a, s, o) = (&acts[c..], &scales[c..], &mut outs[c..]);
            c += match a.len() {
                8.. => block_times::<8>(m, block, a, s, o, part.clone(), simd),
                4.. => block_times::<4>(m, block, a, s, o, part.clone(), simd),
                3 => block_times::<3>(m, block, a, s, o, part.clone(), simd),
                2 => block_times::<2>(m, block, a, s, o, part.clone(), simd),
                _ => block_times::<1>(m, block, a, s, o, part.clone(), simd),
            };
        }
    }
}

/// A block times the first P vectors; returns P.
#[inline]
fn block_times<const P: usize>(
    m: &Packed,
    block: &[u8],
    acts: &[&Activation],
    scales: &[Scale],
    outs: &mut [&mut [i32]],
    part: Range<usize>,
    simd: Simd,
) -> usize {
    let mut outs = outs.iter_mut();
    let outs = std::array::from_fn(|_| outs.next().map_or(&mut [][..], |o| &mut o[part.clone()]));
    let (acts, scales) = (std::array::from_fn(|i| acts[i]), std::array::from_fn(|i| scales[i]));
    simd.block::<P>(block, &m.layout, acts, scales, outs);
    P
}

/// A panel times the first P vectors; returns P.
fn times<const P: usize>(panel: &Panel, acts: &[&Activation], out: &mut [[i64; BLOCK]; WIDTH], simd: Simd) -> usize {
    let forms = |f: fn(&Activation) -> &[i16]| std::array::from_fn(|i| f(acts[i]));
    if let Some((out, _)) = out.split_first_chunk_mut::<P>() {
        panel.times::<P>(forms(|a| &a.wide), forms(|a| &a.coarse), forms(|a| &a.fine), out, simd);
    }
    P
}

/// One `LINEAR` over a batch: `outs[p]` receives all rows times `acts[p]`.
pub(crate) struct Job<'a, 'o> {
    pub(crate) matrix: Matrix<'a>,
    /// The same rearranged, where there are instructions for it.
    pub(crate) packed: Option<&'a Packed>,
    pub(crate) acts: Vec<&'o Activation>,
    pub(crate) scales: Vec<Scale>,
    pub(crate) outs: Vec<&'o mut [i32]>,
}

impl Kernel {
    /// How a batch of this size is multiplied, which decides the forms of its activations.
    pub(crate) fn of(packed: bool, batch: usize) -> Self {
        match batch {
            _ if packed => Kernel::Blocks,
            PANEL_FROM.. => Kernel::Panels,
            _ => Kernel::Rows,
        }
    }
}

/// Runs independent jobs, split by rows over a team: a weight row is read once for the whole batch.
pub(crate) fn run(jobs: Vec<Job<'_, '_>>, team: &Team, simd: Simd) {
    struct Task<'a, 'j, 'o> {
        matrix: Matrix<'a>,
        packed: Option<&'a Packed>,
        first: usize,
        acts: &'j [&'o Activation],
        scales: &'j [Scale],
        outs: Vec<&'o mut [i32]>,
    }
    // Enough tasks that threads finish together, few enough that a row block is worth handing over.
    let total: usize = jobs.iter().map(|j| j.matrix.rows).sum();
    let block = (total / (4 * team.threads())).clamp(STRIP / 2, 4096).next_multiple_of(BLOCK);
    let mut acts = Vec::with_capacity(jobs.len());
    let mut parts = Vec::with_capacity(jobs.len());
    for job in jobs {
        acts.push((job.acts, job.scales));
        parts.push((job.matrix, job.packed, job.outs));
    }
    let mut tasks: Vec<Task<'_, '_, '_>> = Vec::with_capacity(total / block + parts.len());
    for ((matrix, packed, outs), (acts, scales)) in parts.into_iter().zip(&acts) {
        let from = tasks.len();
        for out in outs {
            for (i, part) in out.chunks_mut(block).enumerate() {
                if from + i == tasks.len() {
                    let outs = Vec::with_capacity(acts.len());
                    tasks.push(Task { matrix, packed, first: i * block, acts, scales, outs });
                }
                tasks[from + i].outs.push(part);
            }
        }
    }
    team.each(tasks, |mut t| match t.packed {
        Some(packed) => blocks(packed, t.first, t.acts, t.scales, &mut t.outs, simd),
        None => rows(&t.matrix, t.first, t.acts, t.scales, &mut t.outs, simd),
    });
}
