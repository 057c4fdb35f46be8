use proptest::prelude::*;

use super::*;

fn bytes(n: usize, seed: u64) -> Vec<u8> {
    let mut s = seed | 1;
    let mut next = || {
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        s as u8
    };
    (0..n).map(|_| next()).collect()
}

/// The definition: one hasher that sees the whole message.
fn plain(m: &Message<'_>) -> Hash {
    Keccak256::digest([m.head, m.body].concat()).into()
}

fn check(messages: &[Message<'_>]) {
    let want: Vec<Hash> = messages.iter().map(plain).collect();
    for lanes in Lanes::all() {
        let mut got = vec![[7; 32]];
        lanes.keccak_many(messages.iter().copied(), &mut got);
        assert_eq!(got[0], [7; 32], "{}", lanes.name());
        assert_eq!(&got[1..], &want, "{}", lanes.name());
    }
}

#[test]
fn the_empty_message_is_the_evms() {
    let empty = "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470";
    for lanes in Lanes::all() {
        let mut got = Vec::new();
        lanes.keccak_many([Message::default(); 9], &mut got);
        assert_eq!(got.len(), 9);
        for hash in got {
            assert_eq!(hash.map(|b| format!("{b:02x}")).concat(), empty, "{}", lanes.name());
        }
        lanes.keccak_many([], &mut Vec::new());
    }
    assert_eq!(keccak(&[]).map(|b| format!("{b:02x}")).concat(), empty);
}

#[test]
fn every_length_in_every_number_of_lanes() {
    let data = bytes(500, 1);
    for n in 0..500 {
        check(&[Message::new(&[4], &data[..n])]);
        let lengths = [n, 500 - n, n, n / 2, 0, n, 499, n, n];
        check(&lengths.map(|n| Message::new(&[], &data[..n])));
    }
    for count in 0..18 {
        for n in [0, 1, 134, 135, 136, 137, 271, 272, 273, 500] {
            let bodies: Vec<_> = (0..count).map(|i| bytes(n, i)).collect();
            let messages: Vec<_> = bodies.iter().map(|b| Message::new(&[1], b)).collect();
            check(&messages);
        }
    }
}

#[test]
fn words_are_the_hash_of_seed_position_and_block() {
    let seed: Hash = bytes(32, 9).try_into().unwrap();
    for (position, first, n) in [(0, 0, 0), (1, 0, 1), (7, 3, 8), (u32::MAX, u32::MAX - 5, 29), (0x0102_0304, 77, 64)] {
        let want: Vec<[u32; 8]> = (0..n)
            .map(|i| {
                let block = u32::wrapping_add(first, i);
                let hash = Keccak256::digest([&seed[..], &position.to_be_bytes(), &block.to_be_bytes()].concat());
                std::array::from_fn(|w| u32::from_be_bytes(hash[4 * w..4 * w + 4].try_into().unwrap()))
            })
            .collect();
        for lanes in Lanes::all() {
            let mut got = vec![[0; 8]; n as usize];
            lanes.keccak_words(&seed, position, first, &mut got);
            assert_eq!(got, want, "{}", lanes.name());
        }
    }
}

proptest! {
    #[test]
    fn messages_of_any_shapes_hash_as_one_by_one(
        shapes in prop::collection::vec((0usize..200, 0usize..1500, any::<u64>()), 0..40),
    ) {
        let data: Vec<_> = shapes.iter().map(|(h, b, seed)| (bytes(*h, *seed), bytes(*b, !seed))).collect();
        let messages: Vec<_> = data.iter().map(|(h, b)| Message::new(h, b)).collect();
        check(&messages);
        for (m, (h, b)) in messages.iter().zip(&data) {
            prop_assert_eq!(m.len(), h.len() + b.len());
        }
    }
}
