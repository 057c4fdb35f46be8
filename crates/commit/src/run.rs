//! What a run is besides its model and its tokens.

use sworn_isa::Sampling;

use crate::{Hash, keccak};

/// How a run samples, and the seed of its noise, which neither who asks nor who answers chooses alone. The default is greedy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RunParams {
    /// Penalty, temperature and cuts.
    pub sampling: Sampling,
    /// Seed of the noise; unused without a temperature.
    pub seed: Hash,
}

impl RunParams {
    /// The noise word of `token` at `position`: word `token mod 8` of keccak256(seed ‖ position u32 ‖ (token div 8) u32).
    pub fn noise(&self, position: u32, token: u32) -> u32 {
        let block = keccak(&[&self.seed, &position.to_be_bytes(), &(token / 8).to_be_bytes()]);
        let at = 4 * (token % 8) as usize;
        u32::from_be_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
    }
}
