use proptest::prelude::*;
use sworn_isa::{GROUP, GROUP_SCALE_MAX};

use super::*;
use crate::activation::Forms;
use crate::linear::{Matrix, Scale};
use crate::packed::Packed;
use crate::team::Team;
use crate::tensor::View;

const COLS: usize = 4;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Uniform, or one of the ends.
    fn within(&mut self, lo: i64, hi: i64, extreme: bool) -> i64 {
        let n = self.next();
        match n % 4 {
            0 if extreme => lo,
            1 | 2 if extreme => hi,
            _ => lo + ((n >> 8) % (hi - lo + 1) as u64) as i64,
        }
    }
}

fn check<const R: usize, const C: usize>(w: &[Vec<i8>], a: &[Vec<i16>]) -> Result<(), TestCaseError> {
    let rows: [&[i8]; R] = std::array::from_fn(|r| &w[r][..]);
    let cols: [&[i16]; C] = std::array::from_fn(|c| &a[c][..]);
    let mut want = [[0; C]; R];
    Simd::SCALAR.tile(rows, cols, &mut want);
    for simd in Simd::all() {
        let mut got = [[1; C]; R];
        simd.tile(rows, cols, &mut got);
        prop_assert_eq!(got, want, "{}", simd.name());
    }
    Ok(())
}

/// A matrix of any format; with `extreme` mostly of the largest magnitudes, all of one sign.
fn matrix(format: RowFormat, rows: usize, k: usize, extreme: bool, r: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::new();
    let groups = k / GROUP;
    let top = i64::from(GROUP_SCALE_MAX);
    for _ in 0..rows {
        bytes.extend([0x80 | r.next() as u8, r.next() as u8, 0, (r.next() % 40) as u8]);
        let sign = if r.next().is_multiple_of(2) { 1 } else { -1 };
        let mut words = |n: usize, top: i64, r: &mut Random| {
            for _ in 0..n {
                let w = if extreme { sign * top } else { r.within(-top, top, true) };
                bytes.extend((w as i16).to_be_bytes());
            }
        };
        match format {
            RowFormat::I8 => {}
            RowFormat::Q4 => {
                words(groups, top, r);
                words(groups, 32767, r);
            }
            RowFormat::Q8 => words(groups, top, r),
        }
        let n = if format == RowFormat::Q4 { k / 2 } else { k };
        let lowest = if r.next().is_multiple_of(2) { -128 } else { 127 };
        bytes.extend((0..n).map(|_| match (extreme, format) {
            (true, RowFormat::Q4) => 0xff,
            (true, _) => lowest as u8,
            _ => r.next() as u8,
        }));
    }
    bytes
}

fn activation(k: usize, narrow: bool, extreme: Option<i16>, r: &mut Random) -> Activation {
    let (lo, hi) = if narrow { (-128, 127) } else { (-32768, 32767) };
    let a: Vec<i16> = (0..k)
        .map(|_| match extreme {
            Some(e) => (i64::from(e)).clamp(lo, hi) as i16,
            None => r.within(lo, hi, r.0 & 64 == 0) as i16,
        })
        .collect();
    let mut act = Activation::default();
    let forms = Forms { q4: true, q8: true, sums: true };
    // A longer vector before leaves nothing behind.
    act.set(View::I16(&vec![-1; k + 200]), k + 200, forms).unwrap();
    if narrow {
        let a: Vec<i8> = a.iter().map(|a| *a as i8).collect();
        act.set(View::I8(&a), k, forms).unwrap();
    } else {
        act.set(View::I16(&a), k, forms).unwrap();
    }
    act
}

/// Σ w·a by the definition of the formats.
fn sums(m: &Matrix<'_>, a: &Activation) -> Vec<i64> {
    let mut w = vec![0; m.columns()];
    let rows = (0..m.rows()).map(|i| {
        m.weights(i, &mut w).unwrap();
        let sum: i64 = w.iter().zip(&a.wide).map(|(w, a)| i64::from(*w) * i64::from(*a)).sum();
        if m.format() == RowFormat::I8 { i64::from(sum as i32) } else { sum }
    });
    rows.collect()
}

/// `fixed::narrow` and `fixed::smulrs` of the sums, for values in any range.
fn requantised(m: &Matrix<'_>, sums: &[i64], a: Scale) -> Vec<i32> {
    let r = m.format().shift();
    let rows = sums.iter().enumerate().map(|(i, sum)| {
        let Scale { m, e } = m.scale(i).unwrap();
        let half = if r == 0 { 0 } else { 1u64 << (r - 1) };
        let x = (sum.unsigned_abs().wrapping_add(half) >> r) as u32;
        sworn_isa::fixed::signed(*sum < 0, sworn_isa::fixed::mulrs(x, a.m.wrapping_mul(m), e - a.e))
    });
    rows.collect()
}

/// Every number of vectors at once.
fn blocks(m: &Matrix<'_>, acts: &[Activation], r: &mut Random) -> Result<(), TestCaseError> {
    let packed = Packed::new(m, &Team::new(2).unwrap(), Simd::detect());
    let scales: Vec<Scale> =
        acts.iter().map(|_| Scale { m: r.within(0, 65535, true) as u32, e: r.within(-60, 30, false) as i32 }).collect();
    let want: Vec<Vec<i32>> = acts.iter().zip(&scales).map(|(a, s)| requantised(m, &sums(m, a), *s)).collect();
    for simd in Simd::all().into_iter().filter(|s| s.has_blocks()) {
        for n in 1..=acts.len() {
            let mut got = vec![vec![7; m.rows()]; n];
            let mut outs: Vec<&mut [i32]> = got.iter_mut().map(|g| &mut g[..]).collect();
            let acts: Vec<&Activation> = acts[..n].iter().collect();
            crate::linear::blocks(&packed, 0, &acts, &scales[..n], &mut outs, simd);
            prop_assert_eq!(&got, &want[..n], "{} {:?} {}", simd.name(), m.format(), n);
        }
    }
    Ok(())
}

fn low(format: RowFormat, sum: i64) -> i64 {
    if format == RowFormat::I8 { i64::from(sum as i32) } else { sum }
}

fn all_kernels(m: &Matrix<'_>, acts: &[Activation]) -> Result<(), TestCaseError> {
    let want: Vec<Vec<i64>> = acts.iter().map(|a| sums(m, a)).collect();
    let row = |i: usize| m.data(i).unwrap();
    for simd in Simd::all() {
        for (a, want) in acts.iter().zip(&want) {
            let mut got = Vec::new();
            while got.len() + 4 <= m.rows() {
                got.extend(simd.dots::<4>(m.format(), std::array::from_fn(|i| row(got.len() + i)), m.columns(), a));
            }
            while got.len() < m.rows() {
                got.extend(simd.dots::<1>(m.format(), [row(got.len())], m.columns(), a));
            }
            prop_assert_eq!(&got, want, "{} {:?}", simd.name(), m.format());
        }
        let mut panel = Panel::default();
        // Another matrix before leaves nothing behind.
        let bytes = [0x7f; 4 + 64];
        panel.load(&Matrix::with_format(&bytes, 1, 64, 1, 0, RowFormat::I8).unwrap(), 0, simd);
        for first in (0..m.rows()).step_by(BLOCK) {
            panel.load(m, first, simd);
            for r in first..(first + BLOCK).min(m.rows()) {
                let at = |a: &[[i64; BLOCK]], i: usize| low(m.format(), a[i][r - first]);
                for width in [1, 2, 4, 8usize] {
                    let mut out = [[7; BLOCK]; 8];
                    let take = |f: fn(&Activation) -> &[i16]| -> [&[i16]; 8] {
                        std::array::from_fn(|i| f(&acts[i % acts.len()]))
                    };
                    let (w, c, f) = (take(|a| &a.wide), take(|a| &a.coarse), take(|a| &a.fine));
                    macro_rules! times {
                        ($n:literal) => {
                            panel.times::<$n>(
                                *w.first_chunk().unwrap(),
                                *c.first_chunk().unwrap(),
                                *f.first_chunk().unwrap(),
                                out.first_chunk_mut().unwrap(),
                                simd,
                            )
                        };
                    }
                    match width {
                        1 => times!(1),
                        2 => times!(2),
                        4 => times!(4),
                        _ => times!(8),
                    }
                    for i in 0..width {
                        let want = want[i % acts.len()][r];
                        prop_assert_eq!(at(&out, i), want, "{} {:?} panel {}", simd.name(), m.format(), width);
                    }
                }
            }
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn every_level_gives_the_scalar_sums(k in 0usize..200, seed: u64, extreme: bool) {
        let mut r = Random(seed | 1);
        let w: Vec<Vec<i8>> = (0..ROWS).map(|_| (0..k).map(|_| if extreme { -128 } else { r.next() as i8 }).collect()).collect();
        let a: Vec<Vec<i16>> = (0..COLS).map(|_| (0..k).map(|_| if extreme { i16::MIN } else { r.next() as i16 }).collect()).collect();
        check::<ROWS, COLS>(&w, &a)?;
        check::<ROWS, 1>(&w, &a)?;
        check::<1, COLS>(&w, &a)?;
        check::<1, 3>(&w, &a)?;
        check::<1, 1>(&w, &a)?;
    }

    #[test]
    fn every_level_multiplies_every_format_as_defined(
        format in 0i32..3, k in 1usize..300, rows in 1usize..20, seed: u64, extreme: bool, narrow: bool,
    ) {
        let format = RowFormat::from_code(format).unwrap();
        let k = if format == RowFormat::I8 { k } else { k.next_multiple_of(GROUP) };
        let mut r = Random(seed | 1);
        let bytes = matrix(format, rows, k, extreme, &mut r);
        let m = Matrix::with_format(&bytes, rows, k, 1, 0, format).unwrap();
        let acts: Vec<_> = (0..3).map(|_| activation(k, narrow, None, &mut r)).collect();
        all_kernels(&m, &acts)?;
        let acts: Vec<_> = (0..1 + r.next() % 20).map(|_| activation(k, narrow, None, &mut r)).collect();
        blocks(&m, &acts, &mut r)?;
    }
}

#[test]
fn the_longest_rows_of_the_largest_values_are_exact() {
    let mut r = Random(5);
    for format in RowFormat::ALL {
        for k in [2048, 2048 + 32, 4096 + 96, 36_864] {
            let bytes = matrix(format, 5, k, true, &mut r);
            let m = Matrix::with_format(&bytes, 5, k, 1, 0, format).unwrap();
            for narrow in [false, true] {
                let acts = [i16::MIN, i16::MAX, 255, -256, -1].map(|e| activation(k, narrow, Some(e), &mut r));
                all_kernels(&m, &acts).unwrap();
                blocks(&m, &acts, &mut r).unwrap();
            }
        }
    }
}

fn exp_table() -> Vec<u16> {
    (0..257).map(|j| (32768.0 * (-f64::from(j) / 256.0).exp2() + 0.5) as u16).collect()
}

/// Every magnitude from one bit to all, around the powers of two.
fn word(r: &mut Random) -> i32 {
    let shift = r.next() % 33;
    let base = if shift == 32 { 0 } else { 1i64 << shift };
    (base + r.within(-3, 3, false)) as i32 >> (r.next() % 2) << (r.next() % 2)
}

proptest! {
    #[test]
    fn every_level_gives_the_scalar_exponentials(n in 0usize..200, seed: u64) {
        let (mut r, table) = (Random(seed | 1), exp_table());
        let g: Vec<i32> = (0..n).map(|_| if r.next().is_multiple_of(2) { word(&mut r) } else { r.within(-300_000, 300_000, false) as i32 }).collect();
        let u: Vec<i32> = (0..n).map(|_| if r.next().is_multiple_of(2) { word(&mut r) } else { r.next() as i32 }).collect();
        let max = if r.next().is_multiple_of(2) { g.iter().copied().max().unwrap_or(0) } else { r.next() as i32 };
        let (mut want, mut want_exp) = (vec![0; n], vec![0; n]);
        scalar::silu_mul(&g, &u, &table, &mut want);
        scalar::exp(&g, max, &table, &mut want_exp);
        let want_mass = scalar::mass(&g, max, &table);
        for simd in Simd::all() {
            let (mut got, mut got_exp) = (vec![1; n], vec![1; n]);
            simd.silu_mul(&g, &u, &table, &mut got);
            simd.exp(&g, max, &table, &mut got_exp);
            prop_assert_eq!(&got, &want, "{}", simd.name());
            prop_assert_eq!(&got_exp, &want_exp, "{}", simd.name());
            prop_assert_eq!(simd.mass(&g, max, &table), want_mass, "{}", simd.name());
        }
    }

    #[test]
    fn every_level_mixes_alike(n in prop_oneof![3 => 1usize..40, 1 => 250usize..270], width in 1usize..150, heads in 1usize..15, kv in 1usize..3, top in 0usize..3, seed: u64) {
        let mut r = Random(seed | 1);
        let top = [0x7fff, 0x8000, 0xffff][top];
        let p: Vec<u16> = (0..heads * n).map(|_| r.within(0, top, true) as u16).collect();
        let stride = kv * width;
        let values: Vec<i16> = (0..n * stride).map(|_| r.within(-32768, 32767, true) as i16).collect();
        let mut want = vec![0i32; heads * width];
        for (i, w) in want.iter_mut().enumerate() {
            let (h, d) = (i / width, i % width);
            for j in 0..n {
                *w = w.wrapping_add(i32::from(p[h * n + j]).wrapping_mul(i32::from(values[j * stride + d])));
            }
        }
        for simd in Simd::all() {
            let mut got = vec![5; heads * width];
            simd.mix(&p, n, &values, stride, width, &mut got);
            prop_assert_eq!(&got, &want, "{}", simd.name());
        }
    }
}

/// The gated activation at every sigmoid that there is.
#[test]
fn every_quotient_of_the_gate_is_right() {
    let table = exp_table();
    let g: Vec<i32> = (-420_000..420_000).collect();
    let u = vec![1 << 20; g.len()];
    let mut want = vec![0; g.len()];
    scalar::silu_mul(&g, &u, &table, &mut want);
    for simd in Simd::all() {
        let mut got = vec![0; g.len()];
        simd.silu_mul(&g, &u, &table, &mut got);
        assert!(got == want, "{}", simd.name());
    }
}

proptest! {
    #[test]
    fn every_level_scores_alike(
        rows in 1usize..20, n in 1usize..70, width in 1usize..200, kv in 1usize..3, extreme: bool, seed: u64,
    ) {
        let mut r = Random(seed | 1);
        let padded = width.next_multiple_of(PAD);
        let mut int8 = |n: usize| -> Vec<i8> { (0..n).map(|_| r.within(-128, 127, extreme) as i8).collect() };
        let mut q = int8(rows * padded);
        q.chunks_exact_mut(padded).for_each(|q| q[width..].fill(0));
        let keys = int8(n * kv * width);
        let stride = kv * width;
        let mut want = vec![0i32; rows * n];
        for (i, w) in want.iter_mut().enumerate() {
            let key = &keys[(i % n) * stride..][..width];
            *w = q[i / n * padded..].iter().zip(key).map(|(q, k)| i32::from(*q) * i32::from(*k)).sum();
        }
        let km: Vec<u32> = (0..n).map(|_| r.next() as u32 >> (r.next() % 20)).collect();
        let ke: Vec<i32> = (0..n).map(|_| r.within(-70, 10, false) as i32).collect();
        let scale = [r.within(0, 65535, true) as i32, r.within(-10, 10, false) as i32];
        let mut scaled = want.clone();
        scaled.chunks_exact_mut(n).for_each(|s| scalar::scale(s, scale, &km, &ke));
        for simd in Simd::all() {
            let mut got = vec![3; rows * n];
            simd.products(&q, &keys, stride, width, &mut got);
            prop_assert_eq!(&got, &want, "{}", simd.name());
            got.chunks_exact_mut(n).for_each(|s| simd.scale(s, scale, &km, &ke));
            prop_assert_eq!(&got, &scaled, "{}", simd.name());
        }
    }

    #[test]
    fn every_level_interleaves_alike(n in 1usize..300, rows in 0usize..17, seed: u64) {
        let mut r = Random(seed | 1);
        let bytes: Vec<Vec<u8>> = (0..rows).map(|_| (0..n).map(|_| r.next() as u8).collect()).collect();
        let rows = std::array::from_fn(|i| bytes.get(i).map_or(&[][..], |b| b));
        let all = n.div_ceil(4) * 4 * BLOCK;
        let want: Vec<u8> = (0..all).map(|i| rows[i / 4 % BLOCK].get(i / 64 * 4 + i % 4).copied().unwrap_or(0)).collect();
        for simd in Simd::all() {
            let mut got = vec![1; all];
            simd.interleave(rows, &mut got);
            prop_assert_eq!(&got, &want, "{}", simd.name());
        }
    }

    #[test]
    fn scores_of_any_size_are_scaled_alike(s in proptest::collection::vec(any::<i32>(), 1..40), seed: u64) {
        let mut r = Random(seed | 1);
        let km: Vec<u32> = s.iter().map(|_| r.next() as u32).collect();
        let ke: Vec<i32> = s.iter().map(|_| word(&mut r)).collect();
        let scale = [word(&mut r), word(&mut r)];
        let mut want = s.clone();
        scalar::scale(&mut want, scale, &km, &ke);
        for simd in Simd::all() {
            let mut got = s.clone();
            simd.scale(&mut got, scale, &km, &ke);
            prop_assert_eq!(&got, &want, "{}", simd.name());
        }
    }

    /// A table that is no power's is read as it is.
    #[test]
    fn every_level_reads_any_table(top in 0u64..3, n in 1usize..200, seed: u64) {
        let mut r = Random(seed | 1);
        let table: Vec<u16> = (0..257).map(|j| match top {
            0 => r.next() as u16,
            1 => 32768 - 100 * j,
            _ => 65535 - j,
        }).collect();
        let s: Vec<i32> = (0..n).map(|_| word(&mut r)).collect();
        let max = word(&mut r);
        let mut want = vec![0; n];
        scalar::exp(&s, max, &table, &mut want);
        for simd in Simd::all() {
            let mut got = vec![1; n];
            simd.exp(&s, max, &table, &mut got);
            prop_assert_eq!(&got, &want, "{}", simd.name());
        }
    }
}
