//! Keccak-256, of one message or of many at once.
//!
//! The permutation of a single state has little to do in parallel; several states in the lanes of vector registers have all
//! of it. [`keccak_many`] takes independent messages of any lengths and keeps every lane busy: a lane whose message is
//! finished takes the next. All levels give the same bytes, those of the EVM's `KECCAK256`.

use sha3::{Digest, Keccak256};

use crate::Hash;

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "vector instructions; everything around them is checked")]
mod x86;

/// Bytes that one permutation absorbs.
const RATE: usize = 136;
/// Words of a state.
const WORDS: usize = 25;

/// What one permutation absorbs.
type Block = [u8; RATE];

/// A block that changes nothing.
static NOTHING: Block = [0; RATE];

/// `N` states side by side: word w of lane l is `0[w][l]`.
#[derive(Clone)]
#[repr(align(64))]
struct States<const N: usize>([[u64; N]; WORDS]);

impl<const N: usize> States<N> {
    const ZERO: Self = States([[0; N]; WORDS]);

    fn digest(&self, lane: usize) -> Hash {
        let mut hash = [0; 32];
        for (bytes, word) in hash.as_chunks_mut::<8>().0.iter_mut().zip(&self.0) {
            *bytes = word[lane].to_le_bytes();
        }
        hash
    }
}

/// keccak256 of the concatenated parts.
pub fn keccak(parts: &[&[u8]]) -> Hash {
    let mut h = Keccak256::new();
    for p in parts {
        h.update(p);
    }
    h.finalize().into()
}

/// A message of [`keccak_many`]: `head`, then `body`. Nothing of it is copied as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Message<'a> {
    head: &'a [u8],
    body: &'a [u8],
}

impl<'a> Message<'a> {
    /// `head ‖ body`.
    pub const fn new(head: &'a [u8], body: &'a [u8]) -> Self {
        Message { head, body }
    }

    /// Bytes of the message.
    pub const fn len(&self) -> usize {
        self.head.len() + self.body.len()
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn hash(&self) -> Hash {
        keccak(&[self.head, self.body])
    }

    /// The block that begins at byte `at` of the padded message, and whether it is the last.
    fn block<'b>(&self, at: usize, scratch: &'b mut Block) -> (&'b Block, bool)
    where
        'a: 'b,
    {
        let len = self.len();
        let end = at + RATE;
        if at >= self.head.len() && end <= len {
            let from = at - self.head.len();
            if let Some(block) = self.body[from..].first_chunk() {
                return (block, false);
            }
        }
        scratch.fill(0);
        copy(self.head, 0, at, scratch);
        copy(self.body, self.head.len(), at, scratch);
        let last = len < end;
        if last {
            scratch[len - at] ^= 0x01;
            scratch[RATE - 1] ^= 0x80;
        }
        (scratch, last)
    }
}

/// Copies what of `part`, which begins at byte `begin` of the message, lies in the block that begins at byte `at`.
fn copy(part: &[u8], begin: usize, at: usize, block: &mut Block) {
    let skip = at.saturating_sub(begin).min(part.len());
    let to = begin.saturating_sub(at).min(RATE);
    let n = (part.len() - skip).min(RATE - to);
    block[to..to + n].copy_from_slice(&part[skip..skip + n]);
}

/// Appends the hash of every message to `out`, in order. Of messages that differ in length the long ones are best given first:
/// the last to be finished are then finished together.
pub fn keccak_many<'a>(messages: impl IntoIterator<Item = Message<'a>>, out: &mut Vec<Hash>) {
    Lanes::detect().keccak_many(messages, out);
}

/// `out[i]` = the eight big-endian words of `keccak(seed ‖ position ‖ first + i)`, both numbers as big-endian u32; the block
/// number wraps.
pub fn keccak_words(seed: &Hash, position: u32, first: u32, out: &mut [[u32; 8]]) {
    Lanes::detect().keccak_words(seed, position, first, out);
}

/// How many states run at once. Values other than [`Lanes::ONE`] come from [`Lanes::detect`] only, so holding one proves
/// that the processor has the instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lanes(Level);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    One,
    #[cfg(target_arch = "x86_64")]
    Four(x86::Avx2),
    #[cfg(target_arch = "x86_64")]
    Eight(x86::Avx512),
}

/// Instructions that permute `N` states at once.
trait Permute<const N: usize>: Copy {
    /// Clears the lanes whose bit is set in `fresh`, absorbs a block into every lane and permutes.
    fn absorb(self, states: &mut States<N>, blocks: [&Block; N], fresh: u8);
    /// Permutes.
    fn permute(self, states: &mut States<N>);
}

impl Lanes {
    /// One state after the other, by portable code.
    pub const ONE: Lanes = Lanes(Level::One);

    /// The most that this processor can do.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(x) = x86::Avx512::detect() {
                return Lanes(Level::Eight(x));
            }
            if let Some(x) = x86::Avx2::detect() {
                return Lanes(Level::Four(x));
            }
        }
        Lanes::ONE
    }

    /// Everything that this processor can do, most lanes first.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(x86::Avx512::detect().map(|x| Lanes(Level::Eight(x))));
            all.extend(x86::Avx2::detect().map(|x| Lanes(Level::Four(x))));
        }
        all.push(Lanes::ONE);
        all
    }

    /// States at once.
    pub const fn count(self) -> usize {
        match self.0 {
            Level::One => 1,
            #[cfg(target_arch = "x86_64")]
            Level::Four(_) => 4,
            #[cfg(target_arch = "x86_64")]
            Level::Eight(_) => 8,
        }
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self.0 {
            Level::One => "one at a time",
            #[cfg(target_arch = "x86_64")]
            Level::Four(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::Eight(_) => "avx512",
        }
    }

    /// [`keccak_many`] with these instructions.
    pub fn keccak_many<'a>(self, messages: impl IntoIterator<Item = Message<'a>>, out: &mut Vec<Hash>) {
        // Behind a pointer, so that the work is compiled here and not in every caller's crate.
        let messages: &mut dyn Iterator<Item = Message<'a>> = &mut messages.into_iter();
        match self.0 {
            Level::One => out.extend(messages.map(|m| m.hash())),
            #[cfg(target_arch = "x86_64")]
            Level::Four(x) => many(x, messages, out),
            #[cfg(target_arch = "x86_64")]
            Level::Eight(x) => many(x, messages, out),
        }
    }

    /// [`keccak_words`] with these instructions.
    pub fn keccak_words(self, seed: &Hash, position: u32, first: u32, out: &mut [[u32; 8]]) {
        match self.0 {
            Level::One => {
                for (i, words) in out.iter_mut().enumerate() {
                    let block = first.wrapping_add(i as u32);
                    *words = hash_words(&keccak(&[seed, &position.to_be_bytes(), &block.to_be_bytes()]));
                }
            }
            #[cfg(target_arch = "x86_64")]
            Level::Four(x) => words(x, seed, position, first, out),
            #[cfg(target_arch = "x86_64")]
            Level::Eight(x) => words(x, seed, position, first, out),
        }
    }
}

/// A hash as eight big-endian words.
fn hash_words(hash: &Hash) -> [u32; 8] {
    let mut words = [0; 8];
    for (word, bytes) in words.iter_mut().zip(hash.as_chunks::<4>().0) {
        *word = u32::from_be_bytes(*bytes);
    }
    words
}

/// A message on its way through a lane.
#[derive(Clone, Copy)]
struct Running<'a> {
    message: Message<'a>,
    at: usize,
    number: usize,
}

fn many<'a, const N: usize>(
    with: impl Permute<N>,
    messages: &mut dyn Iterator<Item = Message<'a>>,
    out: &mut Vec<Hash>,
) {
    let mut states = States::<N>::ZERO;
    let mut scratch = [NOTHING; N];
    let mut lanes: [Option<Running<'a>>; N] = [None; N];
    loop {
        let mut fresh = 0;
        let mut busy = false;
        for (l, lane) in lanes.iter_mut().enumerate() {
            if lane.is_none()
                && let Some(message) = messages.next()
            {
                *lane = Some(Running { message, at: 0, number: out.len() });
                out.push([0; 32]);
                fresh |= 1 << l;
            }
            busy |= lane.is_some();
        }
        if !busy {
            return;
        }
        let mut finished = [false; N];
        let mut blocks = [&NOTHING; N];
        for (((lane, scratch), block), finished) in
            lanes.iter_mut().zip(&mut scratch).zip(&mut blocks).zip(&mut finished)
        {
            if let Some(running) = lane {
                (*block, *finished) = running.message.block(running.at, scratch);
                running.at += RATE;
            }
        }
        with.absorb(&mut states, blocks, fresh);
        for (l, lane) in lanes.iter_mut().enumerate() {
            if finished[l]
                && let Some(running) = lane.take()
            {
                out[running.number] = states.digest(l);
            }
        }
    }
}

fn words<const N: usize>(with: impl Permute<N>, seed: &Hash, position: u32, first: u32, out: &mut [[u32; 8]]) {
    let mut block = first;
    for group in out.chunks_mut(N) {
        // One block holds it all: 40 bytes, the padding's first bit after them and its last at the block's end.
        let mut states = States::<N>::ZERO;
        for (word, bytes) in states.0.iter_mut().zip(seed.as_chunks::<8>().0) {
            *word = [u64::from_le_bytes(*bytes); N];
        }
        for lane in &mut states.0[4] {
            *lane = ((u64::from(position) << 32) | u64::from(block)).swap_bytes();
            block = block.wrapping_add(1);
        }
        states.0[5] = [1; N];
        states.0[RATE / 8 - 1] = [1 << 63; N];
        with.permute(&mut states);
        for (l, words) in group.iter_mut().enumerate() {
            *words = hash_words(&states.digest(l));
        }
    }
}

#[cfg(test)]
mod tests;
