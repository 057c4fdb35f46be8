//! Changes to valid inputs, for a short run without coverage feedback.

use rand::Rng;

/// Numbers that lengths and counts are wrong by.
const EDGES: [u64; 10] =
    [0, 1, 0x7f, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 0x7fff_ffff_ffff_ffff, 0xffff_ffff_ffff_ffff];

/// One of the seeds, changed in one to four places.
///
/// # Panics
/// There are no seeds.
pub fn mutated(seeds: &[Vec<u8>], rng: &mut impl Rng) -> Vec<u8> {
    let mut bytes = seeds[rng.random_range(0..seeds.len())].clone();
    for _ in 0..rng.random_range(1..=4) {
        change(&mut bytes, seeds, rng);
    }
    bytes
}

/// A place, the earlier ones more often: heads are where lengths are.
fn place(length: usize, rng: &mut impl Rng) -> usize {
    let end = if rng.random() { length } else { length.min(256) };
    rng.random_range(0..=end.saturating_sub(1))
}

fn change(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], rng: &mut impl Rng) {
    if bytes.is_empty() {
        bytes.push(rng.random());
    }
    let at = place(bytes.len(), rng);
    match rng.random_range(0..8) {
        0 => bytes[at] ^= 1 << rng.random_range(0..8),
        1 => bytes[at] = rng.random(),
        2 => bytes.truncate(at),
        3 => {
            let width = [1, 2, 4, 8][rng.random_range(0..4)];
            let edge = EDGES[rng.random_range(0..EDGES.len())];
            let word = if rng.random() {
                edge.to_be_bytes()[8 - width..].to_vec()
            } else {
                edge.to_le_bytes()[..width].to_vec()
            };
            bytes.iter_mut().skip(at).zip(word).for_each(|(byte, new)| *byte = new);
        }
        4 => bytes.insert(at, rng.random()),
        5 => drop(bytes.remove(at)),
        6 => {
            let end = (at + rng.random_range(1..64)).min(bytes.len());
            let piece = bytes[at..end].to_vec();
            let to = place(bytes.len(), rng);
            bytes.splice(to..to, piece);
        }
        _ => {
            let other = &seeds[rng.random_range(0..seeds.len())];
            bytes.truncate(at);
            bytes.extend(other.iter().skip(at.min(other.len())));
        }
    }
}
