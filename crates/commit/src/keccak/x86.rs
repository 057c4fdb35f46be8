//! Four states with AVX2, eight with AVX-512.
//!
//! A value of [`Avx2`] or [`Avx512`] exists only where the processor was found to have the instructions; that is what makes
//! calling them sound.

use std::arch::x86_64::*;

use super::{Block, Permute, RATE, States, WORDS};

/// The constants of the rounds' last step.
const ROUNDS: [u64; 24] = [
    0x0000_0000_0000_0001,
    0x0000_0000_0000_8082,
    0x8000_0000_0000_808a,
    0x8000_0000_8000_8000,
    0x0000_0000_0000_808b,
    0x0000_0000_8000_0001,
    0x8000_0000_8000_8081,
    0x8000_0000_0000_8009,
    0x0000_0000_0000_008a,
    0x0000_0000_0000_0088,
    0x0000_0000_8000_8009,
    0x0000_0000_8000_000a,
    0x0000_0000_8000_808b,
    0x8000_0000_0000_008b,
    0x8000_0000_0000_8089,
    0x8000_0000_0000_8003,
    0x8000_0000_0000_8002,
    0x8000_0000_0000_0080,
    0x0000_0000_0000_800a,
    0x8000_0000_8000_000a,
    0x8000_0000_8000_8081,
    0x8000_0000_0000_8080,
    0x0000_0000_8000_0001,
    0x8000_0000_8000_8008,
];

/// The 24 rounds on the vectors of `$a`, by the functions `xor`, `xor3`, `rol`, `chi` and `splat` in scope.
///
/// A row of the result takes one word from each column and row of the state (the steps ρ and π name them), so the rows are
/// made one by one and few words are alive beside the state.
macro_rules! keccak_f {
    ($a:ident) => {
        for constant in ROUNDS {
            let c: [_; 5] = [
                xor3(xor3($a[0], $a[5], $a[10]), $a[15], $a[20]),
                xor3(xor3($a[1], $a[6], $a[11]), $a[16], $a[21]),
                xor3(xor3($a[2], $a[7], $a[12]), $a[17], $a[22]),
                xor3(xor3($a[3], $a[8], $a[13]), $a[18], $a[23]),
                xor3(xor3($a[4], $a[9], $a[14]), $a[19], $a[24]),
            ];
            let d = [
                xor(c[4], rol::<1>(c[1])),
                xor(c[0], rol::<1>(c[2])),
                xor(c[1], rol::<1>(c[3])),
                xor(c[2], rol::<1>(c[4])),
                xor(c[3], rol::<1>(c[0])),
            ];
            macro_rules! row {
                ($s0:literal $r0:literal $s1:literal $r1:literal $s2:literal $r2:literal $s3:literal $r3:literal $s4:literal $r4:literal) => {{
                    let b0 = rol::<$r0>(xor($a[$s0], d[$s0 % 5]));
                    let b1 = rol::<$r1>(xor($a[$s1], d[$s1 % 5]));
                    let b2 = rol::<$r2>(xor($a[$s2], d[$s2 % 5]));
                    let b3 = rol::<$r3>(xor($a[$s3], d[$s3 % 5]));
                    let b4 = rol::<$r4>(xor($a[$s4], d[$s4 % 5]));
                    [chi(b0, b1, b2), chi(b1, b2, b3), chi(b2, b3, b4), chi(b3, b4, b0), chi(b4, b0, b1)]
                }};
            }
            let [e0, e1, e2, e3, e4] = row!(0 0 6 44 12 43 18 21 24 14);
            let [e5, e6, e7, e8, e9] = row!(3 28 9 20 10 3 16 45 22 61);
            let [e10, e11, e12, e13, e14] = row!(1 1 7 6 13 25 19 8 20 18);
            let [e15, e16, e17, e18, e19] = row!(4 27 5 36 11 10 17 15 23 56);
            let [e20, e21, e22, e23, e24] = row!(2 62 8 55 14 39 15 41 21 2);
            $a = [
                xor(e0, splat(constant)), e1, e2, e3, e4, e5, e6, e7, e8, e9, e10, e11, e12, e13, e14, e15, e16, e17, e18,
                e19, e20, e21, e22, e23, e24,
            ];
        }
    };
}

/// The word of every block that the vectors of the others leave over.
#[inline(always)]
fn last_words<const N: usize>(blocks: &[&Block; N]) -> [u64; N] {
    let mut words = [0; N];
    for (word, block) in words.iter_mut().zip(blocks) {
        if let Some(bytes) = block.last_chunk() {
            *word = u64::from_le_bytes(*bytes);
        }
    }
    words
}

/// The processor has AVX-512 F.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Avx512(());

impl Avx512 {
    pub(super) fn detect() -> Option<Self> {
        is_x86_feature_detected!("avx512f").then_some(Avx512(()))
    }
}

impl Permute<8> for Avx512 {
    fn absorb(self, states: &mut States<8>, blocks: [&Block; 8], fresh: u8) {
        // SAFETY: `detect` found AVX-512 F, or there would be no `self`.
        unsafe { avx512::run(states, Some(blocks), fresh) }
    }

    fn permute(self, states: &mut States<8>) {
        // SAFETY: as above.
        unsafe { avx512::run(states, None, 0) }
    }
}

mod avx512 {
    use super::*;

    type V = __m512i;

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load(words: [u64; 8]) -> V {
        // SAFETY: both are 64 bytes, of which every pattern is a value.
        unsafe { std::mem::transmute(words) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn store(v: V) -> [u64; 8] {
        // SAFETY: both are 64 bytes, of which every pattern is a value.
        unsafe { std::mem::transmute(v) }
    }

    /// Bytes `AT` … `AT + 63`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load_at<const AT: usize>(block: &Block) -> V {
        let bytes: [u8; 64] = *block[AT..].first_chunk().unwrap_or(&[0; 64]);
        // SAFETY: both are 64 bytes, of which every pattern is a value.
        unsafe { std::mem::transmute(bytes) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn xor(a: V, b: V) -> V {
        _mm512_xor_si512(a, b)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn xor3(a: V, b: V, c: V) -> V {
        _mm512_ternarylogic_epi64::<0x96>(a, b, c)
    }

    /// a ^ (!b & c)
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn chi(a: V, b: V, c: V) -> V {
        _mm512_ternarylogic_epi64::<0xD2>(a, b, c)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn rol<const R: i32>(v: V) -> V {
        _mm512_rol_epi64::<R>(v)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn splat(word: u64) -> V {
        _mm512_set1_epi64(word as i64)
    }

    /// The eight words from byte `AT` on of eight blocks: a vector for each word, a lane for each block.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn transposed<const AT: usize>(blocks: &[&Block; 8]) -> [V; 8] {
        let mut even = [_mm512_setzero_si512(); 4];
        let mut odd = even;
        for pair in 0..4 {
            let (a, b) = (load_at::<AT>(blocks[2 * pair]), load_at::<AT>(blocks[2 * pair + 1]));
            even[pair] = _mm512_unpacklo_epi64(a, b);
            odd[pair] = _mm512_unpackhi_epi64(a, b);
        }
        let [w0, w2, w4, w6] = quarters(even);
        let [w1, w3, w5, w7] = quarters(odd);
        [w0, w1, w2, w3, w4, w5, w6, w7]
    }

    /// Quarter q of each of the four vectors, for every q.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn quarters(v: [V; 4]) -> [V; 4] {
        let low = [_mm512_shuffle_i64x2::<0x44>(v[0], v[1]), _mm512_shuffle_i64x2::<0x44>(v[2], v[3])];
        let high = [_mm512_shuffle_i64x2::<0xEE>(v[0], v[1]), _mm512_shuffle_i64x2::<0xEE>(v[2], v[3])];
        [
            _mm512_shuffle_i64x2::<0x88>(low[0], low[1]),
            _mm512_shuffle_i64x2::<0xDD>(low[0], low[1]),
            _mm512_shuffle_i64x2::<0x88>(high[0], high[1]),
            _mm512_shuffle_i64x2::<0xDD>(high[0], high[1]),
        ]
    }

    /// Clears the lanes in `fresh`, absorbs `blocks` if there are any, and permutes: one function, so that the state is in
    /// registers from the first step to the last.
    #[target_feature(enable = "avx512f")]
    pub(super) fn run(states: &mut States<8>, blocks: Option<[&Block; 8]>, fresh: u8) {
        let mut a = [_mm512_setzero_si512(); WORDS];
        for (a, words) in a.iter_mut().zip(&states.0) {
            *a = _mm512_maskz_mov_epi64(!fresh, load(*words));
        }
        if let Some(blocks) = blocks {
            let (first, second) = (transposed::<0>(&blocks), transposed::<64>(&blocks));
            for i in 0..8 {
                a[i] = xor(a[i], first[i]);
                a[8 + i] = xor(a[8 + i], second[i]);
            }
            a[16] = xor(a[16], load(last_words(&blocks)));
        }
        keccak_f!(a);
        for (words, a) in states.0.iter_mut().zip(a) {
            *words = store(a);
        }
    }
}

/// The processor has AVX2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Avx2(());

impl Avx2 {
    pub(super) fn detect() -> Option<Self> {
        is_x86_feature_detected!("avx2").then_some(Avx2(()))
    }
}

impl Permute<4> for Avx2 {
    fn absorb(self, states: &mut States<4>, blocks: [&Block; 4], fresh: u8) {
        // SAFETY: `detect` found AVX2, or there would be no `self`.
        unsafe { avx2::run(states, Some(blocks), fresh) }
    }

    fn permute(self, states: &mut States<4>) {
        // SAFETY: as above.
        unsafe { avx2::run(states, None, 0) }
    }
}

mod avx2 {
    use super::*;

    type V = __m256i;

    #[inline]
    #[target_feature(enable = "avx2")]
    fn load(words: [u64; 4]) -> V {
        // SAFETY: both are 32 bytes, of which every pattern is a value.
        unsafe { std::mem::transmute(words) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn store(v: V) -> [u64; 4] {
        // SAFETY: both are 32 bytes, of which every pattern is a value.
        unsafe { std::mem::transmute(v) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn xor(a: V, b: V) -> V {
        _mm256_xor_si256(a, b)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn xor3(a: V, b: V, c: V) -> V {
        xor(xor(a, b), c)
    }

    /// a ^ (!b & c)
    #[inline]
    #[target_feature(enable = "avx2")]
    fn chi(a: V, b: V, c: V) -> V {
        xor(a, _mm256_andnot_si256(b, c))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn rol<const R: i32>(v: V) -> V {
        match R {
            0 => v,
            // Whole bytes move in one instruction instead of three.
            8 => _mm256_shuffle_epi8(v, bytes([7, 0, 1, 2, 3, 4, 5, 6])),
            56 => _mm256_shuffle_epi8(v, bytes([1, 2, 3, 4, 5, 6, 7, 0])),
            _ => _mm256_or_si256(
                _mm256_sll_epi64(v, _mm_cvtsi32_si128(R)),
                _mm256_srl_epi64(v, _mm_cvtsi32_si128(64 - R)),
            ),
        }
    }

    /// The shuffle that takes byte i of every word from `order[i]` of it.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn bytes(order: [u8; 8]) -> V {
        let low = u64::from_le_bytes(order) as i64;
        let high = low | 0x0808_0808_0808_0808;
        _mm256_set_epi64x(high, low, high, low)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn splat(word: u64) -> V {
        _mm256_set1_epi64x(word as i64)
    }

    /// As its namesake for AVX-512.
    #[target_feature(enable = "avx2")]
    pub(super) fn run(states: &mut States<4>, blocks: Option<[&Block; 4]>, fresh: u8) {
        let mut a = [_mm256_setzero_si256(); WORDS];
        for (a, words) in a.iter_mut().zip(&states.0) {
            *a = load(*words);
        }
        if fresh != 0 {
            let keep = load([0, 1, 2, 3].map(|l| if fresh >> l & 1 == 1 { 0 } else { u64::MAX }));
            for a in &mut a {
                *a = _mm256_and_si256(*a, keep);
            }
        }
        if let Some(blocks) = blocks {
            let mut new = States::<4>::ZERO;
            for (l, block) in blocks.into_iter().enumerate() {
                for (words, bytes) in new.0.iter_mut().zip(block.as_chunks().0) {
                    words[l] = u64::from_le_bytes(*bytes);
                }
            }
            for (a, words) in a[..RATE / 8].iter_mut().zip(&new.0) {
                *a = xor(*a, load(*words));
            }
        }
        keccak_f!(a);
        for (words, a) in states.0.iter_mut().zip(a) {
            *words = store(a);
        }
    }
}
