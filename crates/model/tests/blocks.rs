//! Quantised tensors: the same numbers as candle's reader, and blocks without loss.

mod support;

use std::io::Cursor;

use candle_core::{Device, quantized::gguf_file::Content};
use half::f16;
use proptest::prelude::*;
use support::gguf_file::{GgufFile, Tensor};
use sworn_model::{Gguf, RowBlocks};

/// Storage code, weights and bytes per block, where in a block half-precision numbers lie.
const TYPES: [(u32, usize, usize, &[usize]); 10] = [
    (8, 32, 34, &[0]),
    (2, 32, 18, &[0]),
    (3, 32, 20, &[0, 2]),
    (6, 32, 22, &[0]),
    (7, 32, 24, &[0, 2]),
    (10, 256, 84, &[80, 82]),
    (11, 256, 110, &[108]),
    (12, 256, 144, &[0, 2]),
    (13, 256, 176, &[0, 2]),
    (14, 256, 210, &[208]),
];
const COLS: usize = 512;
const ROWS: usize = 2;

/// Halves of every size: zero, subnormal, normal, the largest, both signs.
fn finite_half() -> impl Strategy<Value = f16> {
    let extreme = prop::sample::select(vec![0x0000u16, 0x8000, 0x0001, 0x8001, 0x03ff, 0x0400, 0x7bff, 0xfbff, 0x3c00]);
    prop_oneof![extreme, any::<u16>()].prop_map(f16::from_bits).prop_filter("finite", |h| h.is_finite())
}

fn file(dtype: u32, bytes: Vec<u8>) -> Vec<u8> {
    let t = Tensor { name: "t".into(), dims: vec![COLS as u64, ROWS as u64], dtype, bytes };
    GgufFile { version: 3, meta: vec![], tensors: vec![t] }.bytes()
}

fn rows(gguf: &Gguf) -> Vec<f32> {
    let tensor = gguf.tensor("t").unwrap();
    let mut out = vec![0.0; ROWS * COLS];
    out.chunks_mut(COLS).enumerate().for_each(|(r, out)| gguf.read_row(tensor, r, out));
    out
}

fn candles(bytes: &[u8]) -> Vec<f32> {
    let mut reader = Cursor::new(bytes);
    let tensor = Content::read(&mut reader).unwrap().tensor(&mut reader, "t", &Device::Cpu).unwrap();
    tensor.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn numbers_are_those_of_another_reader(
        seed in proptest::collection::vec(any::<u8>(), ROWS * COLS * 2),
        halves in proptest::collection::vec(finite_half(), 64),
    ) {
        for (dtype, weights, size, places) in TYPES {
            let mut bytes = seed[..ROWS * COLS / weights * size].to_vec();
            let mut next = halves.iter().cycle();
            for block in bytes.chunks_mut(size) {
                for at in places {
                    block[*at..at + 2].copy_from_slice(&next.next().unwrap().to_le_bytes());
                }
            }
            let bytes = file(dtype, bytes);
            let gguf = Gguf::from_bytes(bytes.clone()).unwrap();
            let floats = rows(&gguf);
            let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&floats), bits(&candles(&bytes)), "type {}", dtype);

            for r in 0..ROWS {
                let blocks = gguf.read_blocks(gguf.tensor("t").unwrap(), r).unwrap();
                prop_assert_eq!(blocks.is_some(), [2, 3, 6, 8, 12].contains(&dtype));
                let Some(blocks) = blocks else { continue };
                for (i, float) in floats[r * COLS..][..COLS].iter().enumerate() {
                    // The reference rounds twice, the product and the sum, so twice half a unit of the larger of them.
                    let (exact, largest) = (blocks.weight(i), magnitude(&blocks, i));
                    prop_assert!((exact - f64::from(*float)).abs() <= largest * f64::from(f32::EPSILON));
                    if matches!(blocks, RowBlocks::Q8 { .. }) {
                        prop_assert_eq!(exact, f64::from(*float), "eleven bits times eight are exact");
                    }
                }
            }
        }
    }
}

fn magnitude(blocks: &RowBlocks, i: usize) -> f64 {
    match blocks {
        RowBlocks::Q4 { groups, q } => {
            let (d, m) = groups[i / RowBlocks::GROUP];
            (d * f64::from(q[i])).abs() + m.abs()
        }
        RowBlocks::Q8 { .. } => blocks.weight(i).abs(),
    }
}

#[test]
fn blocks_are_the_files_own() {
    let half = |x: f32| f16::from_f32(x).to_le_bytes();
    let gguf = |dtype, block: Vec<u8>, weights: usize| {
        Gguf::from_bytes(file(dtype, block.repeat(ROWS * COLS / weights))).unwrap()
    };
    let blocks = |gguf: &Gguf| gguf.read_blocks(gguf.tensor("t").unwrap(), 1).unwrap().unwrap();

    // Nibbles 0…15 in the first half of a block, 15…0 in the second.
    let nibbles: Vec<u8> = (0..16u8).map(|i| i | (15 - i) << 4).collect();
    let q: Vec<u8> = (0..16).chain((0..16).rev()).collect();
    let four = |groups: Vec<(f64, f64)>, q: &[u8]| RowBlocks::Q4 {
        groups: groups.iter().copied().cycle().take(COLS / 32).collect(),
        q: q.iter().copied().cycle().take(COLS).collect(),
    };
    let q4_0 = gguf(2, [&half(-0.5)[..], &nibbles].concat(), 32);
    assert_eq!(blocks(&q4_0), four(vec![(-0.5, 4.0)], &q));
    let q4_1 = gguf(3, [&half(0.5)[..], &half(-1.25), &nibbles].concat(), 32);
    assert_eq!(blocks(&q4_1), four(vec![(0.5, -1.25)], &q));

    // Scales 1…8 and minima 63, 62, …: four pairs whole, four split.
    let (scales, minima): ([u8; 8], [u8; 8]) = ([1, 2, 3, 4, 33, 50, 7, 8], [63, 62, 61, 60, 59, 58, 17, 56]);
    let mut packed = [0u8; 12];
    for j in 0..4 {
        packed[j] = scales[j] | scales[j + 4] >> 4 << 6;
        packed[j + 4] = minima[j] | minima[j + 4] >> 4 << 6;
        packed[j + 8] = scales[j + 4] & 15 | minima[j + 4] << 4;
    }
    let quarter: Vec<u8> = (0..32u8).map(|i| (i % 16) | ((i / 2) << 4)).collect();
    let q4_k = gguf(12, [&half(0.5)[..], &half(0.25), &packed, &quarter.repeat(4)].concat(), 256);
    let groups = scales.iter().zip(minima).map(|(s, m)| (0.5 * f64::from(*s), -0.25 * f64::from(m))).collect();
    let q: Vec<u8> = (0..32).map(|i| i % 16).chain((0..32).map(|i| i / 2)).collect();
    assert_eq!(blocks(&q4_k), four(groups, &q));

    let q8: Vec<u8> = (0..32u8).map(|i| (i * 8) ^ 0x80).collect();
    let q8_0 = gguf(8, [&half(2.0)[..], &q8].concat(), 32);
    let want =
        RowBlocks::Q8 { groups: vec![2.0; COLS / 32], q: (0..COLS).map(|i| (i as i32 % 32 * 8 - 128) as i8).collect() };
    assert_eq!(blocks(&q8_0), want);
}

#[test]
fn scales_that_are_no_numbers_are_refused() {
    for (dtype, weights, size, places) in TYPES {
        for bad in [f16::INFINITY, f16::NEG_INFINITY, f16::NAN] {
            for at in places {
                let mut block = vec![0u8; size];
                block[*at..at + 2].copy_from_slice(&bad.to_le_bytes());
                let mut bytes = vec![0u8; ROWS * COLS / weights * size];
                let last = bytes.len() - size;
                bytes[last..].copy_from_slice(&block);
                let gguf = Gguf::from_bytes(file(dtype, bytes)).unwrap();
                let tensor = gguf.tensor("t").unwrap();
                gguf.read_blocks(tensor, 0).unwrap();
                // Without blocks, the importer sees it in the numbers.
                let seen = rows(&gguf)[COLS..].iter().any(|x| !x.is_finite());
                match gguf.read_blocks(tensor, 1) {
                    Ok(None) => assert!(seen, "type {dtype}"),
                    Ok(Some(_)) => panic!("type {dtype}: a scale of {bad}"),
                    Err(e) => assert!(e.to_string().contains("not finite"), "{e}"),
                }
            }
        }
    }
}
