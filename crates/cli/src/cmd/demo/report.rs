//! What came of it: who was paid, what was proven, what it cost, and that nothing is missing.

use std::collections::BTreeMap;

use alloy::primitives::{B256, U256};
use serde::Serialize;

use super::cast::Books;
use super::counter::{Conviction, Sold};
use super::timeline::{LieFound, Timeline, Transaction, grouped, signed};
use crate::amount::{Currency, ether};
use crate::cmd::job::Shown;

/// The demo's result. Amounts are in the token's smallest unit.
#[derive(Serialize)]
pub(super) struct Report {
    honest: Honest,
    fraud: Fraud,
    receipts: Receipts,
    conserved: bool,
    balances: Balances,
    #[serde(skip)]
    books: (Books, Books),
    #[serde(skip)]
    setup: Vec<Transaction>,
}

#[derive(Serialize)]
struct Honest {
    job: u64,
    status: &'static str,
    paid: String,
    answer: String,
    transactions: Vec<Transaction>,
    gas: Gas,
}

#[derive(Serialize)]
struct Fraud {
    job: u64,
    status: &'static str,
    answer: String,
    /// none: the node told no lie
    lie: Option<LieFound>,
    /// `element`: one element was computed on chain; `silence`: a demand was not answered
    proven_by: &'static str,
    /// openings that the node answered
    answers: u32,
    transactions: Vec<Transaction>,
    gas: Gas,
    /// to the watcher
    reward: String,
    /// the user's escrow
    refund: String,
    /// to the user, out of the bond
    compensation: String,
    burned: String,
    bond: String,
}

/// What was paid by receipts.
#[derive(Serialize)]
struct Receipts {
    honest: Sold,
    /// the honest node's batch
    batch: Option<Redeemed>,
    #[serde(rename = "false")]
    lie: FalseReceipt,
}

#[derive(Serialize)]
struct Redeemed {
    batch: String,
    amount: String,
    released: bool,
}

#[derive(Serialize)]
struct FalseReceipt {
    #[serde(flatten)]
    sold: Sold,
    /// its trial
    job: Option<u64>,
    /// the wrong element; none: the node fell silent
    proven: Option<LieFound>,
    /// whether its node hid it, which cost the batch and its bond
    hidden: bool,
    /// the whole stake
    taken: String,
    reward: String,
    compensation: String,
    burned: String,
    gas: Gas,
}

impl Receipts {
    fn new(timeline: &Timeline, honest: Sold, lied: Sold) -> Self {
        let batch = timeline.batches.iter().find(|b| b.node == honest.node).map(|b| Redeemed {
            batch: b.id.to_string(),
            amount: b.amount.to_string(),
            released: b.released,
        });
        let part = |f: fn(&Conviction) -> U256| timeline.conviction.as_ref().map(f).unwrap_or_default().to_string();
        let transactions = timeline.trial.map(|job| timeline.of_job(job)).unwrap_or_default();
        Receipts {
            honest,
            batch,
            lie: FalseReceipt {
                sold: lied,
                job: timeline.trial,
                proven: timeline.proven_of_receipt.clone(),
                // A conviction voids batches as well.
                hidden: timeline.conviction.is_none() && timeline.batches.iter().any(|b| b.void),
                taken: part(|c| c.taken),
                reward: part(|c| c.reward),
                compensation: part(|c| c.compensation),
                burned: part(|c| c.burned),
                gas: Gas::of(&transactions),
            },
        }
    }
}

#[derive(Serialize)]
struct Gas {
    by_call: BTreeMap<String, u64>,
    total: u64,
    /// of the calls that only a challenge makes
    challenge: u64,
}

/// Calls that only a challenge makes.
const CHALLENGE: [&str; 8] =
    ["demand", "answer", "timeout", "announce", "proveFraud", "contestReward", "settleReward", "reclaimFees"];

#[derive(Serialize)]
struct Balances {
    before: BTreeMap<&'static str, Held>,
    after: BTreeMap<&'static str, Held>,
}

/// Payment tokens wherever they are, and the chain's own currency in wei.
#[derive(Serialize)]
struct Held {
    tokens: String,
    native: String,
}

fn held(books: &Books) -> BTreeMap<&'static str, Held> {
    let burned = Held { tokens: books.burned.to_string(), native: "0".to_owned() };
    let rows = books
        .rows()
        .into_iter()
        .map(|(name, b)| (name, Held { tokens: b.tokens().to_string(), native: b.native.to_string() }));
    let channels = Held { tokens: books.channels.to_string(), native: "0".to_owned() };
    rows.chain([("burned", burned), ("in channels", channels)]).collect()
}

impl Gas {
    fn of(transactions: &[&Transaction]) -> Self {
        let mut calls: BTreeMap<String, u64> = BTreeMap::new();
        for t in transactions {
            *calls.entry(t.call.clone()).or_default() += t.gas;
        }
        let challenge = CHALLENGE.iter().filter_map(|call| calls.get(*call)).sum();
        Self { by_call: calls, total: transactions.iter().map(|t| t.gas).sum(), challenge }
    }
}

fn amount(text: &str) -> U256 {
    text.parse().unwrap_or_default()
}

impl Report {
    pub(super) fn new(
        timeline: &Timeline,
        honest: &Shown,
        fraud: &Shown,
        (sold, lied): (Sold, Sold),
        before: Books,
        after: Books,
    ) -> Self {
        let (of_honest, of_fraud) = (timeline.of_job(honest.job), timeline.of_job(fraud.job));
        let owned = |list: &[&Transaction]| list.iter().map(|t| (*t).clone()).collect::<Vec<_>>();
        let slash = timeline.slash;
        let part = |f: fn(&super::timeline::Slash) -> U256| slash.as_ref().map(f).unwrap_or_default().to_string();
        Self {
            honest: Honest {
                job: honest.job,
                status: honest.status,
                paid: honest.paid.clone().unwrap_or_else(|| "0".to_owned()),
                answer: honest.text.clone().unwrap_or_default(),
                transactions: owned(&of_honest),
                gas: Gas::of(&of_honest),
            },
            fraud: Fraud {
                job: fraud.job,
                status: fraud.status,
                answer: fraud.text.clone().unwrap_or_default(),
                lie: timeline.proven.clone().or_else(|| timeline.told.clone()),
                proven_by: if timeline.proven.is_some() { "element" } else { "silence" },
                answers: timeline.answers,
                transactions: owned(&of_fraud),
                gas: Gas::of(&of_fraud),
                reward: part(|s| s.reward),
                refund: part(|s| s.refunded),
                compensation: part(|s| s.compensation),
                burned: part(|s| s.burned),
                bond: part(|s| s.bond),
            },
            receipts: Receipts::new(timeline, sold, lied),
            conserved: before.balance() && after.balance(),
            balances: Balances { before: held(&before), after: held(&after) },
            books: (before, after),
            setup: timeline
                .transactions
                .iter()
                .filter(|t| t.job != Some(honest.job) && t.job != Some(fraud.job))
                .cloned()
                .collect(),
        }
    }

    /// The honest answers paid, the lies slashed, nothing missing.
    pub(super) fn as_it_should_be(&self) -> bool {
        let paid = self.receipts.batch.as_ref().is_some_and(|b| b.released);
        let lie = &self.receipts.lie;
        let punished = lie.taken != "0" || lie.hidden;
        self.honest.status == "final" && self.fraud.status == "slashed" && paid && punished && self.conserved
    }

    pub(super) fn text(&self, currency: &Currency) -> String {
        let (before, after) = (&self.books.0, &self.books.1);
        let mut books = crate::output::table(["", "before", "after", "difference", "gas paid"]);
        for ((name, b), (_, a)) in before.rows().into_iter().zip(after.rows()) {
            books.add_row([
                name.to_owned(),
                currency.show(b.tokens()),
                currency.show(a.tokens()),
                signed(currency, b.tokens(), a.tokens()),
                ether(b.native.saturating_sub(a.native)),
            ]);
        }
        books.add_row([
            "burned".to_owned(),
            currency.show(before.burned),
            currency.show(after.burned),
            signed(currency, before.burned, after.burned),
            String::new(),
        ]);
        books.add_row([
            "in channels".to_owned(),
            currency.show(before.channels),
            currency.show(after.channels),
            signed(currency, before.channels, after.channels),
            String::new(),
        ]);
        let sum =
            |books: &Books| books.rows().iter().fold(books.burned + books.channels, |sum, (_, b)| sum + b.tokens());
        books.add_row([
            "sum".to_owned(),
            currency.show(sum(before)),
            currency.show(sum(after)),
            signed(currency, sum(before), sum(after)),
            String::new(),
        ]);

        let mut costs = crate::output::table(["transaction", "by", "gas", "hash"]);
        let all = [&self.setup, &self.honest.transactions, &self.fraud.transactions];
        let mut every: Vec<&Transaction> = all.into_iter().flatten().collect();
        every.sort_by_key(|t| t.block);
        for t in every {
            let hash: B256 = t.tx;
            costs.add_row([t.call.clone(), t.by.to_owned(), grouped(t.gas), hash.to_string()]);
        }
        let wrong = self.fraud.lie.as_ref().map_or_else(String::new, |l| {
            format!(
                "layer {}, position {}, {}, element {}: {} instead of {}",
                l.layer, l.position, l.op, l.element, l.claimed, l.computed
            )
        });
        let how =
            if self.fraud.proven_by == "element" { "proven wrong on one element" } else { "slashed for its silence" };
        let lie = &self.receipts.lie;
        let punishment = match lie.hidden {
            true => "hidden by its node: the batch is void and its bond gone".to_owned(),
            false => format!(
                "the whole stake of {} is gone: {} to the challenger, {} to the user, {} burned",
                currency.show(amount(&lie.taken)),
                currency.show(amount(&lie.reward)),
                currency.show(amount(&lie.compensation)),
                currency.show(amount(&lie.burned))
            ),
        };
        format!(
            "{books}\n\n{costs}\n\n{}\n  honest answer   job {}: {}, {} paid\n  dishonest one   job {}: {}, {how} ({wrong})\n  challenge       {} answer{}, {} gas ({} for the job in all)\n  by receipts     {} paid in batch {} for {}, no transaction per answer\n  false receipt   {}; {} gas\n  every wei       {}",
            if self.as_it_should_be() { "As it should be." } else { "NOT as it should be." },
            self.honest.job,
            self.honest.status,
            currency.show(self.honest.paid.parse().unwrap_or_default()),
            self.fraud.job,
            self.fraud.status,
            self.fraud.answers,
            if self.fraud.answers == 1 { "" } else { "s" },
            grouped(self.fraud.gas.challenge),
            grouped(self.fraud.gas.total),
            currency.show(amount(self.receipts.batch.as_ref().map_or("0", |b| &b.amount))),
            self.receipts.batch.as_ref().map_or("none", |b| &b.batch),
            format_args!("“{}”", crate::cmd::job::plain(&self.receipts.honest.answer)),
            punishment,
            grouped(self.receipts.lie.gas.total),
            if self.conserved { "is where it should be" } else { "is NOT accounted for" },
        )
    }
}
