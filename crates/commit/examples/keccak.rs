//! Speed of hashing on one processor: `cargo run -p sworn-commit --example keccak`.
#![allow(clippy::print_stdout, reason = "this is what it is for")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use sworn_commit::{Lanes, Message, keccak_many, trace};

/// Bytes hashed per measurement.
const BYTES: usize = 1 << 18;
/// What a block of SmolLM2-135M exports at a position, in bytes: keys, their scales, values, the stream.
const EXPORTS: [usize; 4] = [192, 12, 384, 2304];
/// Its blocks.
const BLOCKS: usize = 30;
/// Measurements, of which the best counts: others may be using the machine.
const RUNS: usize = 50;

fn main() {
    let data: Vec<u8> = (0..BYTES as u32).map(|i| (i.wrapping_mul(2654435761) >> 24) as u8).collect();
    let mut out = Vec::new();
    for lanes in Lanes::all() {
        let pages = best(|| {
            out.clear();
            lanes.keccak_many(data.chunks(1024).map(|page| Message::new(&[0], page)), &mut out);
            black_box(&out);
        });
        let nodes = best(|| {
            out.clear();
            lanes.keccak_many(data.chunks(64).map(|pair| Message::new(&[1], pair)), &mut out);
            black_box(&out);
        });
        let mut words = vec![[0; 8]; 49_152 / 8];
        let noise = best(|| {
            lanes.keccak_words(&[7; 32], 1, 0, &mut words);
            black_box(&words);
        });
        println!(
            "{:14} {} at once: pages {:7.1} MB/s, nodes {:6.1} ns each, words of a vocabulary of 49152 {:7.1} µs",
            lanes.name(),
            lanes.count(),
            BYTES as f64 / pages.as_secs_f64() / 1e6,
            nodes.as_secs_f64() * 1e9 / (BYTES / 64) as f64,
            noise.as_secs_f64() * 1e6,
        );
    }
    let one = best(|| {
        out.clear();
        keccak_many([Message::new(&[0], &data[..1024])], &mut out);
        black_box(&out);
    });
    println!("a single page: {:.0} ns", one.as_secs_f64() * 1e9);

    let (mut tensors, mut rest) = (Vec::new(), &data[..]);
    for bytes in [EXPORTS; BLOCKS].as_flattened() {
        let (tensor, later) = rest.split_at(*bytes);
        tensors.push(tensor);
        rest = later;
    }
    for rows in [BLOCKS, 4, 1] {
        let time = best(|| {
            out.clear();
            for tensors in tensors.chunks(rows * EXPORTS.len()) {
                trace::leaves(tensors, &vec![EXPORTS.len(); tensors.len() / EXPORTS.len()], &mut out);
            }
            black_box(&out);
        });
        println!("leaves of a position of SmolLM2-135M, {rows} rows at a time: {:.1} µs", time.as_secs_f64() * 1e6);
    }
}

fn best(mut f: impl FnMut()) -> Duration {
    let mut time = || {
        let start = Instant::now();
        f();
        start.elapsed()
    };
    (0..RUNS).map(|_| time()).min().unwrap_or_default()
}
