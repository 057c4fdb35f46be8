//! The three promises as EIP-712 typed data. Their types are those of `IChannels`.

use alloy::primitives::{Address, B256};
use alloy::sol_types::{Eip712Domain, SolStruct, eip712_domain};
use serde::{Deserialize, Serialize};
use sworn_bindings::{TraceContext, order_hash, run_params};
use sworn_commit::{Hash, RunParams, TraceDims, sequence, trace};

/// The generated structs; their names and fields are part of what is signed.
mod sol {
    use serde::{Deserialize, Serialize};

    alloy::sol! {
        /// A user's promise to a node: the channel pays up to `cumulative` in total.
        #[derive(Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
        struct Voucher {
            /// The channel.
            bytes32 channelId;
            /// The client's number of the request: unique in the channel, in any order.
            uint64 request;
            /// The model that is to answer.
            bytes32 modelId;
            /// Ceiling on all that the channel pays, this request included.
            #[serde(with = "crate::decimal")]
            uint128 cumulative;
            /// What is asked, as `IMarket.orderHash` hashes it.
            bytes32 requestHash;
        }

        /// A node's oath on an answer, and what the channel owes after it.
        #[derive(Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
        struct Receipt {
            /// The channel.
            bytes32 channelId;
            /// 1, 2, 3, … in the order of completion.
            uint64 sequence;
            /// The client's number of the request.
            uint64 request;
            /// The model that answered.
            bytes32 modelId;
            /// Hash of the prompt.
            bytes32 inputHash;
            /// Hash of the output.
            bytes32 outputHash;
            /// Prompt tokens.
            uint32 nIn;
            /// Output tokens.
            uint32 nOut;
            /// Most output tokens that were asked for.
            uint32 maxNew;
            /// How to sample, as a job has it.
            #[serde(with = "crate::decimal")]
            uint256 sampling;
            /// Seed of the noise.
            bytes32 seed;
            /// What the node commits to.
            bytes32 layersRoot;
            /// What this answer costs.
            #[serde(with = "crate::decimal")]
            uint128 price;
            /// What the channel owes in total after it.
            #[serde(with = "crate::decimal")]
            uint128 cumulative;
        }

        /// A node's price for a model.
        #[derive(Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
        struct Offer {
            /// The node.
            address node;
            /// The model.
            bytes32 modelId;
            /// Price of a prompt token, surge included.
            #[serde(with = "crate::decimal")]
            uint128 perInputToken;
            /// Price of an output token, surge included.
            #[serde(with = "crate::decimal")]
            uint128 perOutputToken;
            /// Prompt and output together, at most.
            uint32 maxTokens;
            /// What is added to the node's prices now, in 1/10 000.
            uint16 surgeBps;
            /// What is sold: 0 standard, 1 spot, 2 reserved (`Tier`).
            #[serde(default)]
            uint8 tier;
            /// Good up to this second.
            uint64 validUntil;
        }
    }
}

pub use sol::{Offer, Receipt, Voucher};

/// What an offer is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// A place while there is one.
    #[default]
    Standard,
    /// For less, and gives way: a request that is preempted ends without a receipt and costs nothing.
    Spot,
    /// For more, in places that nobody else gets.
    Reserved,
}

impl Tier {
    /// Its name in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Tier::Standard => "standard",
            Tier::Spot => "spot",
            Tier::Reserved => "reserved",
        }
    }

    /// As an offer has it.
    pub const fn number(self) -> u8 {
        self as u8
    }
}

/// Which contract on which chain a promise is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Domain {
    /// Chain id.
    pub chain_id: u64,
    /// The `Channels` contract.
    pub channels: Address,
}

impl Domain {
    /// As EIP-712 has it.
    pub fn eip712(&self) -> Eip712Domain {
        eip712_domain! {
            name: "Sworn Channels",
            version: "1",
            chain_id: self.chain_id,
            verifying_contract: self.channels,
        }
    }

    /// What is signed for a promise; a receipt's digest is also its leaf in a batch.
    pub fn digest<T: SolStruct>(&self, promise: &T) -> B256 {
        promise.eip712_signing_hash(&self.eip712())
    }
}

impl Offer {
    /// What an answer costs; `None` if it does not fit 128 bits.
    pub fn price(&self, n_in: u32, n_out: u32) -> Option<u128> {
        let input = self.perInputToken.checked_mul(n_in.into())?;
        let output = self.perOutputToken.checked_mul(n_out.into())?;
        input.checked_add(output)
    }

    /// What it is for; `None` for a tier that this version does not know.
    pub fn tier(&self) -> Option<Tier> {
        [Tier::Standard, Tier::Spot, Tier::Reserved].into_iter().find(|t| t.number() == self.tier)
    }

    /// A price less a discount of at most all of it, rounded up.
    pub fn discounted(price: u128, bps: u16) -> u128 {
        let (whole, rest) = (price / 10_000, price % 10_000);
        let left = u128::from(10_000 - bps.min(10_000));
        // No more than the price itself.
        whole * left + (rest * left).div_ceil(10_000)
    }

    /// Posted prices with the surge on top, rounded up; `None` if they do not fit 128 bits.
    pub fn surged(price: u128, bps: u16) -> Option<u128> {
        // price·bps may need 144 bits: whole and rest are scaled apart.
        let (whole, rest) = (price / 10_000, price % 10_000);
        let extra = whole.checked_mul(bps.into())?.checked_add((rest * u128::from(bps)).div_ceil(10_000))?;
        price.checked_add(extra)
    }
}

impl Receipt {
    /// How the answer was sampled; `None` for a word that no valid parameters give.
    pub fn run(&self) -> Option<RunParams> {
        run_params(self.sampling, self.seed)
    }

    /// Hash of what was asked, as the voucher has it; `None` as [`Self::run`].
    pub fn request_hash(&self) -> Option<B256> {
        Some(order_hash(self.modelId, self.inputHash.0, self.maxNew, &self.run()?))
    }

    /// The sizes of its trace, for a model with `layers` blocks; `None` for an answer without tokens.
    pub fn dims(&self, layers: u16) -> Option<TraceDims> {
        (self.nIn > 0 && self.nOut > 0).then_some(TraceDims { layers, n_in: self.nIn, n_out: self.nOut })
    }

    /// The root of the trace, as the market computes a job's; `None` for an answer without tokens.
    pub fn trace_root(&self) -> Option<Hash> {
        let positions = self.nIn.checked_add(self.nOut.checked_sub(1)?)?;
        Some(trace::trace_root(&self.modelId, &self.inputHash, &self.outputHash, positions, &self.layersRoot))
    }

    /// What a judge must know of its trace.
    pub fn context(&self) -> TraceContext {
        TraceContext {
            layersRoot: self.layersRoot,
            inputHash: self.inputHash,
            outputHash: self.outputHash,
            nIn: self.nIn,
            nOut: self.nOut,
            sampling: self.sampling,
            seed: self.seed,
        }
    }

    /// Whether these are the tokens it speaks of.
    pub fn is_of(&self, prompt: &[u32], output: &[u32]) -> bool {
        self.nIn as usize == prompt.len()
            && self.nOut as usize == output.len()
            && self.inputHash == B256::from(sequence::hash(prompt))
            && self.outputHash == B256::from(sequence::hash(output))
    }
}

impl From<&sworn_bindings::Receipt> for Receipt {
    /// As it is signed.
    fn from(r: &sworn_bindings::Receipt) -> Self {
        Receipt {
            channelId: r.channelId,
            sequence: r.sequence,
            request: r.request,
            modelId: r.modelId,
            inputHash: r.inputHash,
            outputHash: r.outputHash,
            nIn: r.nIn,
            nOut: r.nOut,
            maxNew: r.maxNew,
            sampling: r.sampling,
            seed: r.seed,
            layersRoot: r.layersRoot,
            price: r.price,
            cumulative: r.cumulative,
        }
    }
}

impl From<&Receipt> for sworn_bindings::Receipt {
    /// As the contract's binding has it.
    fn from(r: &Receipt) -> Self {
        sworn_bindings::Receipt {
            channelId: r.channelId,
            sequence: r.sequence,
            request: r.request,
            modelId: r.modelId,
            inputHash: r.inputHash,
            outputHash: r.outputHash,
            nIn: r.nIn,
            nOut: r.nOut,
            maxNew: r.maxNew,
            sampling: r.sampling,
            seed: r.seed,
            layersRoot: r.layersRoot,
            price: r.price,
            cumulative: r.cumulative,
        }
    }
}

impl From<&Voucher> for sworn_bindings::Voucher {
    /// As the contract's binding has it.
    fn from(v: &Voucher) -> Self {
        sworn_bindings::Voucher {
            channelId: v.channelId,
            request: v.request,
            modelId: v.modelId,
            cumulative: v.cumulative,
            requestHash: v.requestHash,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn offer(input: u128, output: u128) -> Offer {
        Offer { perInputToken: input, perOutputToken: output, ..Offer::default() }
    }

    proptest! {
        #[test]
        fn a_price_is_exact_or_refused(input: u128, output: u128, n_in: u32, n_out: u32) {
            use alloy::primitives::U256;
            let exact = U256::from(input) * U256::from(n_in) + U256::from(output) * U256::from(n_out);
            prop_assert_eq!(offer(input, output).price(n_in, n_out), u128::try_from(exact).ok());
        }

        #[test]
        fn a_surge_is_exact_or_refused(price: u128, bps: u16) {
            use alloy::primitives::U256;
            let scale = U256::from(10_000);
            let exact = (U256::from(price) * (scale + U256::from(bps))).div_ceil(scale);
            prop_assert_eq!(Offer::surged(price, bps), u128::try_from(exact).ok());
        }
    }

    #[test]
    fn discounts_and_tiers() {
        let cases = [(10, 0, 10), (10, 5_000, 5), (9, 5_000, 5), (1, 9_999, 1), (7, 10_000, 0), (7, u16::MAX, 0)];
        for (price, bps, left) in cases {
            assert_eq!(Offer::discounted(price, bps), left, "{price} less {bps}");
        }
        assert_eq!(Offer::discounted(u128::MAX, 0), u128::MAX);
        for tier in [Tier::Standard, Tier::Spot, Tier::Reserved] {
            assert_eq!(Offer { tier: tier.number(), ..Offer::default() }.tier(), Some(tier));
        }
        assert_eq!(Offer { tier: 3, ..Offer::default() }.tier(), None);
    }

    #[test]
    fn prices() {
        assert_eq!(offer(3, 5).price(10, 4), Some(50));
        assert_eq!(offer(u128::MAX, 0).price(2, 0), None);
        assert_eq!(offer(u128::MAX, 1).price(1, 1), None);
        assert_eq!(
            [Offer::surged(100, 0), Offer::surged(100, 1), Offer::surged(100, 5_000)],
            [Some(100), Some(101), Some(150)]
        );
    }

    #[test]
    fn a_receipt_is_of_its_tokens() {
        let (prompt, output) = ([1, 2, 3], [4, 5]);
        let receipt = Receipt {
            nIn: 3,
            nOut: 2,
            inputHash: sequence::hash(&prompt).into(),
            outputHash: sequence::hash(&output).into(),
            ..Receipt::default()
        };
        assert!(receipt.is_of(&prompt, &output));
        assert!(!receipt.is_of(&prompt, &output[..1]) && !receipt.is_of(&output, &output));
        assert!(!Receipt { nOut: 3, ..receipt.clone() }.is_of(&prompt, &output));
        assert_eq!(receipt.dims(7), Some(TraceDims { layers: 7, n_in: 3, n_out: 2 }));
        assert_eq!(Receipt::default().trace_root(), None);
        let root = receipt.trace_root().unwrap();
        let other = Receipt { layersRoot: B256::repeat_byte(1), ..receipt };
        assert_ne!(other.trace_root().unwrap(), root);
    }
}
