//! What is measured of a chain, for whoever installs a recorder.

use alloy::primitives::U256;
use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};

use crate::{Head, Receipt};

const HEAD: &str = "sworn_chain_head_block";
const HEAD_TIME: &str = "sworn_chain_head_timestamp_seconds";
const TRANSACTIONS: &str = "sworn_chain_transactions_total";
const GAS: &str = "sworn_chain_gas_total";
const FEES: &str = "sworn_chain_fees_wei";
const BALANCE: &str = "sworn_chain_balance_wei";

/// Describes what this crate measures; after the recorder's installation.
pub fn describe() {
    describe_gauge!(HEAD, "Latest block that was read");
    describe_gauge!(HEAD_TIME, Unit::Seconds, "Its time, in seconds since 1970");
    describe_counter!(TRANSACTIONS, "Transactions of this process in blocks, by call and outcome: mined or reverted");
    describe_counter!(GAS, "Gas that they used, by call");
    describe_gauge!(FEES, "What that gas cost since the start, in wei; for trends, not for accounts");
    describe_gauge!(BALANCE, "What the account has for gas, in wei; read after every transaction");
}

pub(crate) fn head(head: &Head) {
    gauge!(HEAD).set(head.number as f64);
    gauge!(HEAD_TIME).set(head.timestamp as f64);
}

pub(crate) fn transaction(receipt: &Receipt, reverted: bool) {
    let call = receipt.label.clone();
    let outcome = if reverted { "reverted" } else { "mined" };
    counter!(TRANSACTIONS, "call" => call.clone(), "outcome" => outcome).increment(1);
    counter!(GAS, "call" => call).increment(receipt.gas_used);
    gauge!(FEES).increment(f64::from(receipt.cost()));
}

pub(crate) fn balance(wei: U256) {
    gauge!(BALANCE).set(f64::from(wei));
}
