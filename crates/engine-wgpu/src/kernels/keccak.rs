//! Exports as they are committed: packed to their width, and their pages hashed with keccak-256. The 64-bit lanes of the
//! permutation are pairs of 32-bit words.

use cubecl::prelude::*;

use super::{Rows, line, start};

/// The constants of keccak-f's 24 rounds.
pub(crate) const ROUND_CONSTANTS: [u64; 24] = round_constants();

/// By the linear feedback shift register that defines them.
const fn round_constants() -> [u64; 24] {
    let mut out = [0; 24];
    let mut state = 1u32;
    let mut round = 0;
    while round < 24 {
        let mut j = 0;
        while j < 7 {
            out[round] |= ((state & 1) as u64) << ((1u32 << j) - 1);
            state <<= 1;
            if state & 0x100 != 0 {
                state ^= 0x171;
            }
            j += 1;
        }
        round += 1;
    }
    out
}

/// By how much lane (x, y), number x + 5·y, is rotated.
const fn rotation(lane: u32) -> u32 {
    let (mut x, mut y) = (1, 0);
    let mut t = 0;
    while t < 24 {
        if x + 5 * y == lane {
            return (t + 1) * (t + 2) / 2 % 64;
        }
        (x, y) = (y, (2 * x + 3 * y) % 5);
        t += 1;
    }
    0
}

/// Where lane number `lane` goes: (x, y) to (y, 2x + 3y).
const fn destination(lane: u32) -> u32 {
    let (x, y) = (lane % 5, lane / 5);
    y + 5 * ((2 * x + 3 * y) % 5)
}

/// The low word of (low, high) rotated left by `n`; with the words exchanged, the high one.
#[cube]
fn rotated_low(low: u32, high: u32, #[comptime] n: u32) -> u32 {
    if comptime!(n == 0) {
        low
    } else if comptime!(n < 32) {
        (low << n) | (high >> comptime!(32 - n))
    } else if comptime!(n == 32) {
        high
    } else {
        (high << comptime!(n - 32)) | (low >> comptime!(64 - n))
    }
}

/// keccak-f[1600] on 25 lanes.
#[cube]
fn permute(low: &mut Array<u32>, high: &mut Array<u32>, constants: &[u32]) {
    let mut parity_low = Array::<u32>::new(5usize);
    let mut parity_high = Array::<u32>::new(5usize);
    let mut moved_low = Array::<u32>::new(25usize);
    let mut moved_high = Array::<u32>::new(25usize);
    for round in 0..24u32 {
        #[unroll]
        for x in 0..5u32 {
            let (a, b, c) = (comptime!(x as usize), comptime!((x + 5) as usize), comptime!((x + 10) as usize));
            let (d, e) = (comptime!((x + 15) as usize), comptime!((x + 20) as usize));
            parity_low[a] = low[a] ^ low[b] ^ low[c] ^ low[d] ^ low[e];
            parity_high[a] = high[a] ^ high[b] ^ high[c] ^ high[d] ^ high[e];
        }
        #[unroll]
        for x in 0..5u32 {
            let (before, after) = (comptime!(((x + 4) % 5) as usize), comptime!(((x + 1) % 5) as usize));
            let change_low = parity_low[before] ^ rotated_low(parity_low[after], parity_high[after], 1u32);
            let change_high = parity_high[before] ^ rotated_low(parity_high[after], parity_low[after], 1u32);
            #[unroll]
            for y in 0..5u32 {
                let from = comptime!((x + 5 * y) as usize);
                let to = comptime!(destination(x + 5 * y) as usize);
                let n = comptime!(rotation(x + 5 * y));
                let l = low[from] ^ change_low;
                let h = high[from] ^ change_high;
                moved_low[to] = rotated_low(l, h, n);
                moved_high[to] = rotated_low(h, l, n);
            }
        }
        #[unroll]
        for y in 0..5u32 {
            #[unroll]
            for x in 0..5u32 {
                let at = comptime!((x + 5 * y) as usize);
                let next = comptime!(((x + 1) % 5 + 5 * y) as usize);
                let third = comptime!(((x + 2) % 5 + 5 * y) as usize);
                low[at] = moved_low[at] ^ ((moved_low[next] ^ 0xFFFF_FFFFu32) & moved_low[third]);
                high[at] = moved_high[at] ^ ((moved_high[next] ^ 0xFFFF_FFFFu32) & moved_high[third]);
            }
        }
        low[0usize] = low[0usize] ^ constants[(2u32 * round) as usize];
        high[0usize] = high[0usize] ^ constants[(2u32 * round + 1u32) as usize];
    }
}

/// Word `w` of a page that begins at `at` and holds `words`; zero behind it, and before it.
#[cube]
fn page_word(tensors: &[u32], at: u32, words: u32, w: u32) -> u32 {
    let mut value = 0u32;
    if w < words {
        value = tensors[(at + w) as usize];
    }
    value
}

/// The hashes of pages: keccak-256 of a zero byte and the page. One unit per page. `table` holds each page's first word, its
/// number of bytes and the number of its hash, `constants` the rounds' constants as pairs. What of a page's last word is no
/// longer the page is zero.
#[cube(launch_unchecked)]
pub(crate) fn pages(tensors: &[u32], table: &[u32], constants: &[u32], hashes: &mut [u32], n: u32) {
    // Two dimensions, since one holds at most 65,535 cubes.
    let i = CUBE_POS_Y * (CUBE_COUNT_X * CUBE_DIM_X) + ABSOLUTE_POS_X;
    if i < n {
        let at = table[(3u32 * i) as usize];
        let bytes = table[(3u32 * i + 1u32) as usize];
        let hash = table[(3u32 * i + 2u32) as usize];
        let words = (bytes + 3u32) / 4u32;
        let mut low = Array::<u32>::new(25usize);
        let mut high = Array::<u32>::new(25usize);
        #[unroll]
        for lane in 0..25u32 {
            low[comptime!(lane as usize)] = 0u32;
            high[comptime!(lane as usize)] = 0u32;
        }
        // The message is a byte longer than the page, so its word w holds the last byte of the page's word w − 1 and the
        // first three of word w. Behind it comes the byte 1, and 128 is the last one of the last block.
        let blocks = (bytes + 1u32) / 136u32 + 1u32;
        let end = (bytes + 1u32) / 4u32;
        let one = 1u32 << (8u32 * ((bytes + 1u32) % 4u32));
        let mut before = 0u32;
        for block in 0..blocks {
            #[unroll]
            for lane in 0..17u32 {
                let w = block * 34u32 + comptime!(2 * lane);
                let first = page_word(tensors, at, words, w);
                let second = page_word(tensors, at, words, w + 1u32);
                let mut a = (before >> 24u32) | (first << 8u32);
                let mut b = (first >> 24u32) | (second << 8u32);
                before = second;
                if w == end {
                    a = a | one;
                }
                if w + 1u32 == end {
                    b = b | one;
                }
                if comptime!(lane == 16) {
                    if block == blocks - 1u32 {
                        b = b | 0x8000_0000u32;
                    }
                }
                let l = comptime!(lane as usize);
                low[l] = low[l] ^ a;
                high[l] = high[l] ^ b;
            }
            permute(&mut low, &mut high, constants);
        }
        #[unroll]
        for lane in 0..4u32 {
            let l = comptime!(lane as usize);
            hashes[(8u32 * hash + comptime!(2 * lane)) as usize] = low[l];
            hashes[(8u32 * hash + comptime!(2 * lane + 1)) as usize] = high[l];
        }
    }
}

/// One exported tensor's way into the record of its row.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(crate) struct Cut {
    /// Elements.
    pub(crate) elements: u32,
    /// Bytes of one as it is committed.
    pub(crate) width: u32,
    /// Its first word in the first row's record.
    pub(crate) at: u32,
    /// Words of a record.
    pub(crate) record: u32,
}

/// Packs up to four exported tensors big-endian to their width; bytes behind the last element are zero. Cubes: words × rows ×
/// tensors.
#[cube(launch_unchecked)]
pub(crate) fn pack(
    ctx: &[u32],
    a: &[i32],
    b: &[i32],
    c: &[i32],
    d: &[i32],
    out: &mut [u32],
    ar: Rows,
    br: Rows,
    cr: Rows,
    dr: Rows,
    ac: Cut,
    bc: Cut,
    cc: Cut,
    dc: Cut,
) {
    let (w, r, which) = (ABSOLUTE_POS_X, CUBE_POS_Y, CUBE_POS_Z);
    let line = line(ctx, r);
    if which == 0u32 {
        pack_word(a, out, start(&ar, &line), &ac, r, w);
    } else if which == 1u32 {
        pack_word(b, out, start(&br, &line), &bc, r, w);
    } else if which == 2u32 {
        pack_word(c, out, start(&cr, &line), &cc, r, w);
    } else {
        pack_word(d, out, start(&dr, &line), &dc, r, w);
    }
}

#[cube]
fn pack_word(from: &[i32], out: &mut [u32], first: u32, cut: &Cut, r: u32, w: u32) {
    let per_word = 4u32 / cut.width;
    let begin = w * per_word;
    if begin < cut.elements {
        let mut word = 0u32;
        for k in 0..per_word {
            if begin + k < cut.elements {
                let v = u32::reinterpret(from[(first + begin + k) as usize]);
                if cut.width == 1u32 {
                    word = word | ((v & 255u32) << (8u32 * k));
                } else if cut.width == 2u32 {
                    word = word | ((((v >> 8u32) & 255u32) | ((v & 255u32) << 8u32)) << (16u32 * k));
                } else {
                    word = (v >> 24u32) | ((v >> 8u32) & 0xFF00u32) | ((v << 8u32) & 0xFF_0000u32) | (v << 24u32);
                }
            }
        }
        out[(cut.at + r * cut.record + w) as usize] = word;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_permutations_constants() {
        assert_eq!(ROUND_CONSTANTS[..3], [1, 0x8082, 0x8000_0000_0000_808A]);
        assert_eq!(ROUND_CONSTANTS[23], 0x8000_0000_8000_8008);
        assert_eq!([0, 1, 2, 3, 4, 5, 24].map(rotation), [0, 1, 62, 28, 27, 36, 14]);
    }
}
