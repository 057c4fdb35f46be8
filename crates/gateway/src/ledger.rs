//! What the gateway has promised and owes in each channel, on disk before anything is sent: a kill at any moment loses no money and
//! pays nothing twice.
//!
//! A channel's account knows all receipts up to one number, receipts beyond a gap (several requests may be under way, and their receipts
//! may arrive in another order than they were signed in), and requests whose receipt has not come. A new voucher's ceiling is the highest
//! total known, and the most that each open request can cost.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use alloy::primitives::B256;
use serde::{Deserialize, Serialize};
use sworn_chain::{Changes, Store, Table};
use sworn_receipts::{Ask, Receipt, SignedReceipt};
use thiserror::Error;

const ACCOUNTS: Table = "gateway/accounts";
const OPEN: Table = "gateway/requests";

/// A channel's account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Account {
    next_request: u64,
    /// All receipts up to this one are known.
    sequence: u64,
    /// What the channel owes after it.
    #[serde(with = "sworn_receipts::decimal")]
    total: u128,
    /// Receipts beyond a gap.
    ahead: BTreeMap<u64, Step>,
    /// The most that each request without a receipt can cost.
    open: BTreeMap<u64, Amount>,
    /// Ranges of numbers up to `sequence` whose receipts were not seen: the node's word was taken for their total. Some may still come.
    #[serde(default)]
    unseen: Vec<(u64, u64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Step {
    #[serde(with = "sworn_receipts::decimal")]
    price: u128,
    #[serde(with = "sworn_receipts::decimal")]
    cumulative: u128,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Amount(#[serde(with = "sworn_receipts::decimal")] u128);

/// A request that may still cost something, with all that its receipt must say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OpenRequest {
    /// The channel.
    pub(crate) channel: B256,
    /// What was sent.
    pub(crate) ask: Ask,
}

/// A request's number and what its voucher must allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Begun {
    /// The number.
    pub(crate) request: u64,
    /// The voucher's ceiling.
    pub(crate) cumulative: u128,
}

/// Why an account refuses.
#[derive(Debug, Error)]
pub enum LedgerError {
    /// the channel has too little
    #[error("the channel holds {deposit}, {needed} would be needed")]
    Short {
        /// the ceiling that the request needs
        needed: u128,
        /// what the channel holds
        deposit: u128,
    },
    /// a receipt that contradicts the account
    #[error("the receipt's {what} is {actual}, not {expected}")]
    Contradiction {
        /// which field
        what: &'static str,
        /// what it says
        actual: u128,
        /// what it may say
        expected: u128,
    },
    /// the disk
    #[error(transparent)]
    Store(#[from] sworn_chain::Error),
}

/// The accounts of all channels.
#[derive(Debug)]
pub(crate) struct Ledger {
    store: Store,
    accounts: Mutex<HashMap<B256, Account>>,
}

impl Account {
    fn new() -> Self {
        // A gateway that lost its file must not use a number again: numbers begin with the time.
        let millis = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        let next_request = millis << 20;
        Account {
            next_request,
            sequence: 0,
            total: 0,
            ahead: BTreeMap::new(),
            open: BTreeMap::new(),
            unseen: Vec::new(),
        }
    }

    /// The highest total known.
    fn highest(&self) -> u128 {
        self.ahead.values().map(|s| s.cumulative).fold(self.total, u128::max)
    }

    fn promised(&self) -> u128 {
        self.open.values().fold(self.highest(), |sum, a| sum.saturating_add(a.0))
    }

    fn settle(&mut self, r: &Receipt) -> Result<(), LedgerError> {
        let wrong = |what, actual, expected| Err(LedgerError::Contradiction { what, actual, expected });
        let known = !self.open.contains_key(&r.request);
        let step = Step { price: r.price, cumulative: r.cumulative };
        if r.sequence <= self.sequence {
            // The same again, or one that was on its way when a later one was adopted, or a number given twice.
            if known || (r.cumulative <= self.total && r.price <= r.cumulative && self.see(r.sequence)) {
                self.open.remove(&r.request);
                return Ok(());
            }
            return wrong("sequence number", r.sequence.into(), u128::from(self.sequence) + 1);
        }
        if let Some(other) = self.ahead.get(&r.sequence) {
            return match *other == step && known {
                true => Ok(()),
                false => wrong("total", r.cumulative, other.cumulative),
            };
        }
        if known {
            return wrong("request", r.request.into(), self.next_request.into());
        }
        // Whatever was signed before it is ours as well: it cannot cost more than all of it.
        let before = self.ahead.range(..r.sequence).fold(self.total, |sum, (_, s)| sum.saturating_add(s.price));
        let others = self.open.iter().filter(|(request, _)| **request != r.request);
        let most = others.fold(before.saturating_add(r.price), |sum, (_, a)| sum.saturating_add(a.0));
        let next = r.sequence == self.sequence + 1;
        if r.cumulative > most || (next && r.cumulative != self.total.saturating_add(r.price)) {
            return wrong("total", r.cumulative, self.total.saturating_add(r.price));
        }
        self.open.remove(&r.request);
        self.ahead.insert(r.sequence, step);
        self.close_gap()
    }

    /// Takes up receipts that are no longer beyond a gap.
    fn close_gap(&mut self) -> Result<(), LedgerError> {
        while let Some(step) = self.ahead.get(&(self.sequence + 1)).copied() {
            let expected = self.total.saturating_add(step.price);
            if step.cumulative != expected {
                return Err(LedgerError::Contradiction { what: "total", actual: step.cumulative, expected });
            }
            self.sequence += 1;
            self.total = step.cumulative;
            self.ahead.remove(&self.sequence);
        }
        Ok(())
    }

    /// Strikes a number off those that were not seen; whether it was one.
    fn see(&mut self, sequence: u64) -> bool {
        let Some(at) = self.unseen.iter().position(|(first, last)| (*first..=*last).contains(&sequence)) else {
            return false;
        };
        let (first, last) = self.unseen[at];
        let rest = [(first, sequence - 1), (sequence + 1, last)];
        self.unseen.splice(at..=at, rest.into_iter().filter(|(first, last)| first <= last));
        true
    }

    /// Goes on from the node's last receipt, up to which `most` can be owed. Receipts before it that were not seen stay due for their
    /// requests, its own too.
    fn adopt(&mut self, last: &Receipt, most: u128) -> Result<(), LedgerError> {
        if last.sequence <= self.sequence {
            return Ok(());
        }
        if last.cumulative < self.highest() || last.cumulative > most {
            let (what, actual) = ("total", last.cumulative);
            return Err(LedgerError::Contradiction { what, actual, expected: most });
        }
        let later = self.ahead.split_off(&(last.sequence + 1));
        let mut next = self.sequence + 1;
        for seen in self.ahead.keys().copied().chain([last.sequence + 1]) {
            if next < seen {
                self.unseen.push((next, seen - 1));
            }
            next = seen + 1;
        }
        (self.ahead, self.sequence, self.total) = (later, last.sequence, last.cumulative);
        self.close_gap()
    }
}

fn key(channel: B256) -> String {
    channel.to_string()
}

fn request_key(channel: B256, request: u64) -> String {
    format!("{channel}/{request:020}")
}

impl Ledger {
    /// Reads all accounts.
    ///
    /// # Errors
    /// The disk fails.
    pub(crate) fn open(store: Store) -> Result<Self, LedgerError> {
        let accounts = store.all::<Account>(ACCOUNTS)?;
        let accounts = accounts.into_iter().filter_map(|(k, a)| Some((k.parse().ok()?, a))).collect();
        Ok(Ledger { store, accounts: Mutex::new(accounts) })
    }

    fn accounts(&self) -> MutexGuard<'_, HashMap<B256, Account>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes an account, on disk first; what `change` adds to the changes is written with it, or neither is.
    fn change<T>(
        &self,
        channel: B256,
        change: impl FnOnce(&mut Account, Changes) -> Result<(T, Changes), LedgerError>,
    ) -> Result<T, LedgerError> {
        let mut accounts = self.accounts();
        let mut account = accounts.get(&channel).cloned().unwrap_or_else(Account::new);
        let (value, changes) = change(&mut account, Changes::default())?;
        self.store.apply(&changes.put(ACCOUNTS, key(channel), &account)?)?;
        accounts.insert(channel, account);
        Ok(value)
    }

    /// Whether a channel that holds `deposit` can pay `maximum` more; what it would need.
    pub(crate) fn covers(&self, channel: B256, deposit: u128, maximum: u128) -> Result<u128, u128> {
        let promised = self.accounts().get(&channel).map_or(0, Account::promised);
        let needed = promised.saturating_add(maximum);
        if needed <= deposit { Ok(needed) } else { Err(needed) }
    }

    /// Takes a number for a request that can cost `maximum`; `ask` makes what is sent of it.
    ///
    /// # Errors
    /// The channel cannot pay it, or the disk fails.
    pub(crate) fn begin(
        &self,
        channel: B256,
        deposit: u128,
        maximum: u128,
        ask: impl FnOnce(Begun) -> Ask,
    ) -> Result<Ask, LedgerError> {
        self.change(channel, |account, changes| {
            let cumulative = account.promised().saturating_add(maximum);
            if cumulative > deposit {
                return Err(LedgerError::Short { needed: cumulative, deposit });
            }
            let request = account.next_request;
            let ask = ask(Begun { request, cumulative });
            // With the account: a request without its record could not be checked after a crash.
            let open = OpenRequest { channel, ask };
            let changes = changes.put(OPEN, request_key(channel, request), &open)?;
            account.next_request += 1;
            account.open.insert(request, Amount(maximum));
            Ok((open.ask, changes))
        })
    }

    /// Enters a receipt that was checked against its request, and keeps `file` of it under `name`.
    ///
    /// # Errors
    /// It contradicts the account, which stays as it was; or the disk fails.
    pub(crate) fn settle(
        &self,
        channel: B256,
        signed: &SignedReceipt,
        (table, name, file): (Table, &str, &impl Serialize),
    ) -> Result<(), LedgerError> {
        self.change(channel, |account, changes| {
            account.settle(&signed.receipt)?;
            let changes = changes.put(table, name, file)?;
            Ok(((), changes.remove(OPEN, request_key(channel, signed.receipt.request))))
        })
    }

    /// The node says that it has not taken the request, so that it costs nothing.
    ///
    /// # Errors
    /// The disk fails.
    pub(crate) fn forget(&self, channel: B256, request: u64) -> Result<(), LedgerError> {
        self.change(channel, |account, changes| {
            account.open.remove(&request);
            Ok(((), changes.remove(OPEN, request_key(channel, request))))
        })
    }

    /// Takes the node's word for what the channel owes, where this gateway knows less: its file was lost, or receipts never arrived. The
    /// receipt is the node's; `covered`, which the channel's signer has signed for and the channel holds, bounds it.
    ///
    /// # Errors
    /// The receipt says less than is known, or more than can be owed; or the disk fails.
    pub(crate) fn adopt(&self, channel: B256, last: &Receipt, covered: u128) -> Result<(), LedgerError> {
        self.change(channel, |account, changes| {
            // With a history of its own, the account knows what could have been added at most.
            let fresh = account.sequence == 0 && account.ahead.is_empty();
            account.adopt(last, if fresh { covered } else { account.promised().min(covered) })?;
            Ok(((), changes))
        })
    }

    /// Requests without a receipt.
    ///
    /// # Errors
    /// The disk fails.
    pub(crate) fn open_requests(&self) -> Result<Vec<OpenRequest>, LedgerError> {
        Ok(self.store.all::<OpenRequest>(OPEN)?.into_iter().map(|(_, open)| open).collect())
    }

    /// What a channel owes as far as is known, and what open requests may add.
    pub(crate) fn standing(&self, channel: B256) -> (u64, u128, u128) {
        let accounts = self.accounts();
        accounts.get(&channel).map_or((0, 0, 0), |a| (a.sequence, a.highest(), a.promised() - a.highest()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(open: &[(u64, u128)]) -> Account {
        let open = open.iter().map(|(r, m)| (*r, Amount(*m))).collect();
        Account { open, ..Account::new() }
    }

    fn receipt(request: u64, sequence: u64, price: u128, cumulative: u128) -> Receipt {
        Receipt { request, sequence, price, cumulative, ..Receipt::default() }
    }

    #[test]
    fn receipts_in_any_order_add_up() {
        let orders: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
        let all = [receipt(7, 1, 10, 10), receipt(5, 2, 4, 14), receipt(6, 3, 6, 20)];
        for order in orders {
            let mut a = account(&[(5, 10), (6, 10), (7, 10)]);
            assert_eq!(a.promised(), 30);
            for i in order {
                a.settle(&all[i]).unwrap();
                // Twice is once.
                a.settle(&all[i]).unwrap();
            }
            assert_eq!((a.sequence, a.total, a.promised(), a.ahead.len()), (3, 20, 20, 0));
        }
    }

    #[test]
    fn a_receipt_that_takes_too_much_is_refused_and_changes_nothing() {
        for wrong in [
            receipt(5, 1, 10, 11), // more than its price
            receipt(5, 1, 10, 9),  // less
            receipt(5, 2, 10, 21), // more than it and the other can cost
            receipt(8, 1, 10, 10), // never asked
        ] {
            let mut a = account(&[(5, 10), (6, 10)]);
            assert!(matches!(a.settle(&wrong), Err(LedgerError::Contradiction { .. })), "{wrong:?}");
            assert_eq!(a.open.len(), 2);
        }
        let mut a = account(&[(5, 10), (6, 10)]);
        a.settle(&receipt(5, 1, 10, 10)).unwrap();
        // A number again, for another request.
        assert!(a.settle(&receipt(6, 1, 10, 10)).is_err());
        // A gap that hides more than can be in it.
        let mut a = account(&[(5, 10), (6, 10), (7, 10)]);
        a.settle(&receipt(7, 2, 10, 20)).unwrap();
        assert!(a.settle(&receipt(5, 1, 9, 9)).is_err());
    }

    /// A later receipt may be heard of, from a refusal, before those of requests that are under way.
    #[test]
    fn receipts_that_are_due_come_after_a_later_one_was_adopted() {
        let all = [receipt(7, 1, 10, 10), receipt(5, 2, 4, 14), receipt(6, 3, 6, 20), receipt(8, 4, 1, 21)];
        for seen in 0..3 {
            let mut a = account(&[(5, 10), (6, 10), (7, 10), (8, 10)]);
            // One arrived before, beyond a gap or not.
            a.settle(&all[seen]).unwrap();
            a.adopt(&all[2], 40).unwrap();
            assert_eq!((a.sequence, a.total), (3, 20));
            for r in all.iter().rev() {
                a.settle(r).unwrap();
                a.settle(r).unwrap();
            }
            assert_eq!((a.sequence, a.total, a.promised(), a.unseen.len()), (4, 21, 21, 0));
            // A number is one request's.
            a.open.insert(9, Amount(10));
            assert!(a.settle(&receipt(9, 2, 4, 14)).is_err());
        }
        let mut a = account(&[(5, 10), (6, 10), (7, 10)]);
        assert!(a.adopt(&receipt(1, 3, 5, 31), 30).is_err(), "more than can be owed");
        a.adopt(&all[2], 30).unwrap();
        assert!(a.settle(&receipt(5, 2, 4, 21)).is_err(), "more than the total after it");
    }
}
