//! What an answer costs now.

use std::time::{SystemTime, UNIX_EPOCH};

use alloy::primitives::B256;
use sworn_receipts::{Code, Offer, Refusal, SignedOffer, Tier, recover, sign_sync};

use super::{Channels, unavailable};

/// Seconds since 1970 by this machine's clock: an offer binds nobody on chain.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// What is added to prices when `busy` of `places` are taken: nothing up to half of them, then evenly up to `most`.
pub(super) fn surge(busy: usize, places: usize, most: u16) -> u16 {
    let (half, places) = (places / 2, places.max(1));
    let over = busy.min(places).saturating_sub(half) as u64;
    // At most `most`, which fits.
    (u64::from(most) * over / (places - half).max(1) as u64) as u16
}

impl Channels {
    /// An offer for each model that the node has and asks something for.
    pub(super) async fn offers(&self, models: Vec<B256>) -> Result<Vec<SignedOffer>, Refusal> {
        let surge = surge(self.answering(), self.terms.streams, self.terms.surge_max_bps);
        let valid_until = now() + self.terms.offer_life.as_secs();
        let mut offers = Vec::new();
        for model in models {
            let Some(price) = self.prices.of(model).await.map_err(unavailable)? else { continue };
            for (tier, surge) in self.tiers(surge) {
                let of = |amount| {
                    let surged = Offer::surged(amount, surge)?;
                    Some(if tier == Tier::Spot {
                        Offer::discounted(surged, self.terms.spot_discount_bps)
                    } else {
                        surged
                    })
                };
                // A price that does not fit cannot be paid either.
                let (Some(input), Some(output)) = (of(price.per_input_token), of(price.per_output_token)) else {
                    continue;
                };
                let offer = Offer {
                    node: self.node,
                    modelId: model,
                    perInputToken: input,
                    perOutputToken: output,
                    maxTokens: price.max_tokens,
                    surgeBps: surge,
                    tier: tier.number(),
                    validUntil: valid_until,
                };
                let signature = sign_sync(&self.terms.signer, &self.domain, &offer).map_err(unavailable)?;
                offers.push(SignedOffer { offer, signature: signature.into() });
            }
        }
        Ok(offers)
    }

    /// What is offered, the standard tier first, and what each costs more now: a reserved place is held, however busy the others are.
    fn tiers(&self, surge: u16) -> impl Iterator<Item = (Tier, u16)> {
        let spot = (self.terms.spot_discount_bps > 0).then_some((Tier::Spot, surge));
        let reserved = (self.held > 0).then_some((Tier::Reserved, self.terms.reserved_premium_bps));
        [Some((Tier::Standard, surge)), spot, reserved].into_iter().flatten()
    }

    /// Checks that an offer is this node's, for this model, and still good.
    pub(super) fn check_offer(&self, signed: &SignedOffer, model: B256) -> Result<(), Refusal> {
        let SignedOffer { offer, signature } = signed;
        let signer = recover(&self.domain, offer, signature).ok();
        let mine = signer.is_some_and(|s| s == self.terms.signer.address() || s == self.node);
        if !mine || offer.node != self.node {
            return Err(Refusal::new(
                Code::WrongOffer,
                "the offer is not signed by this node: take one from /v1/offers",
            ));
        }
        if offer.modelId != model {
            return Err(Refusal::new(Code::WrongOffer, "the offer is for another model"));
        }
        if offer.tier().is_none() {
            return Err(Refusal::new(Code::WrongOffer, "the offer is of a tier that this node does not know"));
        }
        if offer.validUntil < now() {
            return Err(Refusal::new(Code::OfferExpired, "the offer is over: take a new one from /v1/offers"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_rise_when_the_house_fills() {
        let at = |busy| surge(busy, 8, 5_000);
        assert_eq!([at(0), at(4), at(5), at(6), at(8), at(99)], [0, 0, 1_250, 2_500, 5_000, 5_000]);
        assert_eq!((surge(1, 1, 100), surge(0, 1, 100), surge(0, 0, 100)), (100, 0, 0));
        assert_eq!(surge(9, 8, u16::MAX), u16::MAX);
    }
}
