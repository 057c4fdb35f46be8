//! The watcher's own account: leave for the contracts to take fees, and what they owe.

use std::time::{Duration, Instant};

use alloy::primitives::U256;
use sworn_bindings::{IChannels, IERC20, IMarket};
use sworn_chain::{Chain, Head, Intent, Receipt, Sender};

use super::{Finished, Watcher, tx};
use crate::Result;
use crate::event::WatcherEvent;

/// Until it is tried again to let contracts take fees: the account may have no money for gas yet.
const ALLOW_AGAIN: Duration = Duration::from_secs(15);
/// Until a withdrawal that failed is tried again.
const WITHDRAW_AGAIN: Duration = Duration::from_secs(5);

/// Transactions that let contracts take fees, and why one could not be sent.
pub(super) type Allowed = (Vec<Receipt>, Result<(), String>);

/// What is to be done for the account.
#[derive(Debug, Default)]
pub(super) struct Account {
    /// When it is tried again to let contracts take fees.
    allow_at: Option<Instant>,
    market: Debt,
    channels: Debt,
}

/// Who holds what challenges earn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purse {
    /// Of jobs.
    Market,
    /// Of receipts.
    Channels,
}

/// What a purse may owe.
#[derive(Debug, Default)]
struct Debt {
    /// Whether it may owe anything: until it is seen that it does not.
    open: bool,
    /// A withdrawal is under way.
    busy: bool,
    /// It is not looked at before this block is known, which has what was earned or a withdrawal.
    after_block: u64,
    not_before: Option<Instant>,
}

impl Account {
    fn debt(&mut self, purse: Purse) -> &mut Debt {
        match purse {
            Purse::Market => &mut self.market,
            Purse::Channels => &mut self.channels,
        }
    }

    /// Whether nothing is left to collect, as far as is known.
    pub(super) fn idle(&self) -> bool {
        !self.market.open && !self.channels.open
    }
}

impl<F: FnMut(&WatcherEvent) + Send> Watcher<F> {
    /// Lets contracts take fees, beside everything else.
    pub(super) fn allow(&mut self) {
        let Some(sender) = self.sender.clone() else { return };
        self.account.allow_at = None;
        let chain = self.chain.clone();
        self.report(async move { Finished::Allowed(allow_fees(&chain, &sender).await) });
    }

    pub(super) fn allowed(&mut self, (sent, result): Allowed) {
        for r in sent {
            self.tell(WatcherEvent::Sent { job: None, call: "approve".into(), tx: tx(&r) });
        }
        if let Err(why) = result {
            self.error(None, why);
            self.account.allow_at = Some(Instant::now() + ALLOW_AGAIN);
        }
    }

    /// Something was earned in this block, or may have been.
    pub(super) fn earned(&mut self, purse: Purse, block: u64) {
        let debt = self.account.debt(purse);
        debt.open = self.sender.is_some();
        debt.after_block = debt.after_block.max(block);
    }

    pub(super) async fn decide_account(&mut self, head: Head) -> Result<()> {
        if self.account.allow_at.is_some_and(|at| at <= Instant::now()) {
            self.allow();
        }
        for purse in [Purse::Market, Purse::Channels] {
            self.collect_from(purse, head).await?;
        }
        Ok(())
    }

    async fn collect_from(&mut self, purse: Purse, head: Head) -> Result<()> {
        let debt = self.account.debt(purse);
        let waits = debt.after_block > head.number || debt.not_before.is_some_and(|t| t > Instant::now());
        let Some(sender) = self.sender.clone().filter(|_| debt.open && !debt.busy && !waits) else { return Ok(()) };
        let due = match purse {
            Purse::Market => self.chain.market().withdrawable(self.me).call().await,
            Purse::Channels => self.chain.channels().balanceOf(self.me).call().await,
        };
        let debt = self.account.debt(purse);
        debt.open = !due.map_err(sworn_chain::Error::from)?.is_zero();
        if debt.open {
            debt.busy = true;
            let d = &self.config.deployment;
            let intent = match purse {
                Purse::Market => Intent::call("withdraw/market", d.market, &IMarket::withdrawCall {}),
                Purse::Channels => Intent::call("withdraw/channels", d.channels, &IChannels::withdrawCall {}),
            };
            self.report(async move { Finished::Withdrawal(purse, sender.again(&intent).await) });
        }
        Ok(())
    }

    /// A withdrawal is over. Only the contract says whether it left anything: a reorganisation may have put it before the reward.
    pub(super) fn withdrawal(&mut self, purse: Purse, result: Result<Receipt, sworn_chain::Error>) {
        let debt = self.account.debt(purse);
        debt.busy = false;
        match result {
            Ok(receipt) => {
                debt.after_block = debt.after_block.max(receipt.block);
                self.tell(WatcherEvent::Sent { job: None, call: "withdraw".into(), tx: tx(&receipt) });
            }
            Err(e) => {
                debt.not_before = Some(Instant::now() + WITHDRAW_AGAIN);
                match e.revert() {
                    // Another withdrawal came first.
                    Some(r) if !r.is_the_tokens() => tracing::debug!(?purse, error = %e, "nothing to collect"),
                    _ => self.error(None, format!("withdrawing: {e}")),
                }
            }
        }
    }
}

/// Lets market and channels take fees, where they may not.
pub(super) async fn allow_fees(chain: &Chain, sender: &Sender) -> Allowed {
    let (d, me) = (chain.deployment(), sender.account());
    let mut sent = Vec::new();
    for (spender, whose) in [(d.market, "market"), (d.channels, "channels")] {
        let read = async || Ok(chain.token().allowance(me, spender).call().await?);
        let allow = async || {
            let allowance: U256 = sworn_chain::persistently("reading an allowance", read).await?;
            if allowance >= U256::MAX >> 1 {
                return Ok(None);
            }
            let call = IERC20::approveCall { spender, value: U256::MAX };
            let intent = Intent::call(format!("approve/{whose}"), d.token, &call);
            sworn_chain::persistently("allowing fees", || sender.again(&intent)).await.map(Some)
        };
        match allow().await {
            Ok(receipt) => sent.extend(receipt),
            Err(e) => return (sent, Err(format!("the {whose} cannot take fees: {e}"))),
        }
    }
    (sent, Ok(()))
}
