//! What an account has, in every place where Sworn keeps money.

use alloy::primitives::{Address, U256};
use alloy::providers::Provider;
use serde::Serialize;

use crate::{Chain, Result};

/// An account's money. `stake` contains `locked` and `unbonding`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Balances {
    /// The chain's own currency, in wei.
    pub native: U256,
    /// Payment tokens it holds.
    pub token: U256,
    /// Owed to it by the market.
    pub withdrawable: U256,
    /// Deposited as a node.
    pub stake: u128,
    /// Of the stake: bonds of active jobs.
    pub locked: u128,
    /// Of the stake: on its way out.
    pub unbonding: u128,
}

impl Balances {
    /// Payment tokens, wherever they are.
    pub fn tokens(&self) -> U256 {
        self.token + self.withdrawable + U256::from(self.stake)
    }
}

impl Chain {
    /// What an account has.
    ///
    /// # Errors
    /// The RPC fails.
    pub async fn balances(&self, account: Address) -> Result<Balances> {
        let (token, market, nodes) = (self.token(), self.market(), self.nodes());
        let (token, market, nodes) = (token.balanceOf(account), market.withdrawable(account), nodes.node(account));
        let (native, token, withdrawable, node) = tokio::join!(
            async { self.provider().get_balance(account).await },
            token.call(),
            market.call(),
            nodes.call()
        );
        let node = node?;
        Ok(Balances {
            native: native?,
            token: token?,
            withdrawable: withdrawable?,
            stake: node.stake,
            locked: node.locked.saturating_add(node.pledged),
            unbonding: node.unbonding,
        })
    }
}
