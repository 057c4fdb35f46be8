//! Transactions that survive a crash.
//!
//! An intent has a key. Under that key the journal keeps what was signed for it, written before anything is broadcast:
//!
//! 1. *simulate*: the call is tried against the latest block; if it would revert, nothing is sent;
//! 2. *sign*: nonce and raw transaction go to the journal;
//! 3. *broadcast*, again and again, with rising fees, always with that nonce, until the nonce is used up;
//! 4. the receipt goes to the journal; from now on the key yields it, unless a reorganisation removed it.
//!
//! After a crash at any point, what is in the journal is carried on, and what is not in the journal was not sent. At most one
//! transaction of a key can be mined: another nonce is taken only after somebody else's transaction has used the first.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy::consensus::transaction::TxEnvelope;
use alloy::eips::eip2718::Encodable2718;
use alloy::eips::{BlockId, BlockNumberOrTag};
use alloy::network::{Ethereum, EthereumWallet, NetworkTransactionBuilder, NetworkWallet, TransactionBuilder};
use alloy::primitives::{Address, B256, Bytes, U256};
use alloy::providers::Provider;
use alloy::rpc::types::{TransactionReceipt, TransactionRequest};
use alloy::sol_types::SolCall;
use serde::{Deserialize, Serialize};
use sworn_bindings::Revert;
use tokio::sync::Mutex;

use crate::{Chain, Error, Result, Store, Table};

/// Signed, and not known to be in a block.
const OPEN: Table = "sworn/transactions/open";
/// In a block, successful or not.
const DONE: Table = "sworn/transactions/done";
/// How often an intent that may happen many times has happened.
const TIMES: Table = "sworn/transactions/times";
/// How often a transaction that no block takes is asked about; the least that it waits before its fees are raised.
const IMPATIENCE: Duration = Duration::from_secs(3);
/// What a transfer costs.
const TRANSFER_GAS: u64 = 21_000;
/// Longest pause between two looks at a transaction while the RPC fails.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// Times a receipt is looked for after its nonce was used, because an RPC may learn of the two at different moments.
const LOOKS: u32 = 5;
/// Times a nonce is chosen anew before somebody else's use of the account is an error.
const COLLISIONS: u32 = 16;

/// A transaction that is to happen once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    /// What it is for: the same key never has two transactions mined that succeeded.
    pub key: String,
    /// Its name in logs and errors.
    pub label: String,
    /// Called contract.
    pub to: Address,
    /// Call data.
    pub data: Bytes,
    /// Wei sent along.
    pub value: U256,
    /// Chain time, in seconds, after which it is of no use: the nearer it is, the sooner fees are raised.
    pub deadline: Option<u64>,
}

impl Intent {
    /// A call of a contract.
    pub fn call<C: SolCall>(key: impl Into<String>, to: Address, call: &C) -> Self {
        let label = C::SIGNATURE.split('(').next().unwrap_or(C::SIGNATURE).to_owned();
        Intent { key: key.into(), label, to, data: call.abi_encode().into(), value: U256::ZERO, deadline: None }
    }

    /// The same, of use until this second of the chain's, if there is one.
    #[must_use]
    pub fn by(self, deadline: impl Into<Option<u64>>) -> Self {
        Intent { deadline: deadline.into(), ..self }
    }
}

/// A transaction that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Its intent's label.
    pub label: String,
    /// Transaction hash.
    pub hash: B256,
    /// Block number.
    pub block: u64,
    /// Gas it used.
    pub gas_used: u64,
    /// Wei per gas.
    pub gas_price: u128,
}

impl Receipt {
    /// What it cost, in wei.
    pub fn cost(&self) -> U256 {
        U256::from(self.gas_used) * U256::from(self.gas_price)
    }
}

/// How a sender behaves.
#[derive(Clone, Debug)]
pub struct SenderOptions {
    /// Gas limit above the estimate, in percent.
    pub gas_margin_percent: u64,
    /// How long a transaction may be in no block before its fees are raised; one with a deadline at most an eighth of what is left.
    pub bump_after: Duration,
    /// Most wei per gas.
    pub max_fee_per_gas: Option<u128>,
    /// Blocks that must hold a transaction, its own included, before its receipt is given.
    pub confirmations: u64,
}

impl Default for SenderOptions {
    fn default() -> Self {
        SenderOptions {
            gas_margin_percent: 25,
            bump_after: Duration::from_secs(45),
            max_fee_per_gas: None,
            confirmations: 1,
        }
    }
}

/// What the journal knows of a key.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    label: String,
    to: Address,
    data: Bytes,
    value: U256,
    #[serde(default)]
    deadline: Option<u64>,
    gas: u64,
    nonce: u64,
    /// The same call with the same nonce and rising fees.
    signed: Vec<Signed>,
    done: Option<Receipt>,
    /// Its block had it, but it failed there.
    failed: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Signed {
    hash: B256,
    raw: Bytes,
    fees: Fees,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Fees {
    Legacy { price: u128 },
    Market { max: u128, priority: u128 },
}

impl Fees {
    fn max(self) -> u128 {
        match self {
            Fees::Legacy { price } => price,
            Fees::Market { max, .. } => max,
        }
    }

    /// A quarter more, at least what the market asks now: nodes replace a transaction only if it pays a tenth or an eighth more.
    fn raised(self, now: Fees) -> Fees {
        let more = |old: u128, now: u128| (old + old / 4 + 1).max(now);
        match (self, now) {
            (Fees::Market { max, priority }, Fees::Market { max: m, priority: p }) => {
                Fees::Market { max: more(max, m), priority: more(priority, p) }
            }
            (Fees::Market { max, priority }, Fees::Legacy { price }) => {
                Fees::Market { max: more(max, price), priority: more(priority, 0) }
            }
            (Fees::Legacy { price }, now) => Fees::Legacy { price: more(price, now.max()) },
        }
    }
}

/// What the RPC said of a raw transaction.
enum Sent {
    /// It has it, or may have it.
    Taken,
    /// The nonce is used, by this transaction or another.
    NonceUsed,
    /// Another transaction of the account waits with this nonce.
    NonceTaken,
}

/// A look at an entry.
enum Seen {
    /// In a block, deep enough.
    Mined(Box<TransactionReceipt>),
    /// Another transaction has used the nonce.
    Displaced,
    Waiting,
}

/// What is known of an entry while it is followed.
struct Watch {
    /// Whether the RPC has it.
    known: bool,
    /// When its fees were last set.
    since: Instant,
    /// When the RPC was last asked whether it has it.
    asked: Instant,
    /// Looks since its nonce was used without it being anywhere.
    looks: u32,
}

/// Sends the transactions of one account. Cheap to clone; all clones share the journal.
#[derive(Clone)]
pub struct Sender(Arc<Inner>);

struct Inner {
    chain: Chain,
    wallet: EthereumWallet,
    account: Address,
    store: Store,
    options: SenderOptions,
    /// Held from the choice of a nonce to its broadcast.
    nonces: Mutex<()>,
    /// One task at a time follows a key.
    keys: std::sync::Mutex<HashMap<String, Arc<Mutex<()>>>>,
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sender({})", self.0.account)
    }
}

impl Sender {
    /// A sender for one key (a local one, or any of alloy's remote signers), with its journal in `store`.
    pub fn new(chain: Chain, wallet: impl Into<EthereumWallet>, store: Store, options: SenderOptions) -> Self {
        let wallet = wallet.into();
        let account = NetworkWallet::<Ethereum>::default_signer_address(&wallet);
        let (nonces, keys) = Default::default();
        Sender(Arc::new(Inner { chain, wallet, account, store, options, nonces, keys }))
    }

    /// The account that sends.
    pub fn account(&self) -> Address {
        self.0.account
    }

    /// The chain it sends to.
    pub fn chain(&self) -> &Chain {
        &self.0.chain
    }

    /// Keys whose transactions were signed and are in no block yet, as far as the journal knows.
    ///
    /// # Errors
    /// The store fails.
    pub fn unfinished(&self) -> Result<Vec<String>> {
        Ok(self.0.store.all::<Entry>(OPEN)?.into_iter().map(|(key, _)| key).collect())
    }

    /// Carries on whatever a former process left unfinished: to be called once at start, beside everything else, since it waits
    /// for blocks. Lower nonces go first, because higher ones wait for them. What was displaced is dropped: whoever wanted it
    /// decides anew. Returns the keys that were finished.
    ///
    /// # Errors
    /// The store fails.
    pub async fn resume(&self) -> Result<Vec<String>> {
        let mut open = self.0.store.all::<Entry>(OPEN)?;
        open.sort_by_key(|(_, e)| e.nonce);
        let mut finished = Vec::new();
        for (key, _) in open {
            let lock = self.0.key(&key);
            let _guard = lock.lock().await;
            let Some(entry) = self.0.store.get::<Entry>(OPEN, &key)? else { continue };
            tracing::info!(key, nonce = entry.nonce, "resuming transaction");
            match self.0.follow(&key, entry, false).await {
                Ok(Some(_)) | Err(Error::Failed { .. }) => finished.push(key),
                Ok(None) => {}
                // One that cannot be followed now must not keep the others from it; its own caller meets the error.
                Err(error) => tracing::warn!(key, %error, "a transaction is still open"),
            }
        }
        Ok(finished)
    }

    /// The receipt of a finished intent; `None` if it is unknown or unfinished. Asks the journal only.
    ///
    /// # Errors
    /// The store fails.
    pub fn receipt(&self, key: &str) -> Result<Option<Receipt>> {
        Ok(self.0.entry(key)?.and_then(|e| e.done))
    }

    /// Makes an intent happen, once: returns when its transaction is in a block. Called again with the same key, also after a
    /// crash, it waits for the same transaction or returns the same receipt.
    ///
    /// # Errors
    /// The call would revert (nothing is sent), it reverted in its block, there is no money for gas, the disk fails, or the RPC does
    /// before anything was sent. What was sent is followed through every outage.
    pub async fn send(&self, intent: &Intent) -> Result<Receipt> {
        let inner = &self.0;
        let lock = inner.key(&intent.key);
        let _guard = lock.lock().await;
        for _ in 0..COLLISIONS {
            let (entry, known) = match inner.entry(&intent.key)? {
                Some(e) if !e.failed => (e, false),
                _ => inner.sign(intent).await?,
            };
            if let Some(receipt) = inner.follow(&intent.key, entry, known).await? {
                return Ok(receipt);
            }
        }
        Err(Error::Answer(format!(
            "{}: other transactions of {} took the nonce {COLLISIONS} times; give each agent an account of its own",
            intent.label, inner.account
        )))
    }

    /// [`Self::send`] for what may have to happen many times: a transaction of the key that is in a block does not count, one that was
    /// signed and is in none is carried on. That it is called for again is the caller's to see, from what the chain says.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn again(&self, intent: &Intent) -> Result<Receipt> {
        let inner = &self.0;
        let lock = inner.key(&intent.key);
        let _guard = lock.lock().await;
        // Each time has a key of its own: a reorganisation may take back more than the last.
        let numbered = |n: u64| Intent { key: format!("{}#{n}", intent.key), ..intent.clone() };
        let number = inner.store.get(TIMES, &intent.key)?.unwrap_or(0);
        let last = numbered(number);
        if let Some(entry) = inner.entry(&last.key)?
            && entry.done.is_some()
            && inner.any_receipt(&entry).await?.is_some()
        {
            inner.store.put(TIMES, &intent.key, &(number + 1))?;
            return self.send(&numbered(number + 1)).await;
        }
        self.send(&last).await
    }
}

impl Inner {
    fn key(&self, key: &str) -> Arc<Mutex<()>> {
        let mut keys = self.keys.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        keys.retain(|_, lock| Arc::strong_count(lock) > 1);
        keys.entry(key.to_owned()).or_default().clone()
    }

    fn entry(&self, key: &str) -> Result<Option<Entry>> {
        match self.store.get(OPEN, key)? {
            None => self.store.get(DONE, key),
            open => Ok(open),
        }
    }

    /// Dying between the two writes is harmless: the open entry is followed again and found mined.
    fn finish(&self, key: &str, entry: &Entry) -> Result<()> {
        self.store.put(DONE, key, entry)?;
        self.store.remove(OPEN, key)
    }

    /// Simulates, chooses a nonce, signs, writes to the journal, broadcasts. The flag: whether the RPC has it.
    async fn sign(&self, intent: &Intent) -> Result<(Entry, bool)> {
        let gas = self.estimate(intent).await?;
        let _guard = self.nonces.lock().await;
        let mut fees = self.fees().await?;
        self.check_limit(fees)?;
        let mut nonce = self.next_nonce().await?;
        for _ in 0..COLLISIONS {
            let signed = self.signed(intent.to, &intent.data, intent.value, gas, nonce, fees).await?;
            let Intent { label, to, data, value, deadline, .. } = intent.clone();
            let entry =
                Entry { label, to, data, value, deadline, gas, nonce, signed: vec![signed], done: None, failed: false };
            self.store.put(OPEN, &intent.key, &entry)?;
            let raw = entry.signed[0].raw.clone();
            match self.broadcast(&intent.label, &raw).await {
                Ok(Sent::Taken | Sent::NonceUsed) => {
                    tracing::info!(key = intent.key, call = intent.label, nonce, hash = %entry.signed[0].hash, gas, "sent");
                    return Ok((entry, true));
                }
                // Refused for good, so it can never be mined: the next nonce is as good as this.
                Ok(Sent::NonceTaken) => {
                    tracing::warn!(account = %self.account, nonce, "another process sends from this account");
                    nonce = self.pending_nonce().await?.max(nonce + 1);
                    fees = self.fees().await?;
                }
                // The transport failed: it may have arrived, so the journal keeps it and it is followed.
                Err(e) if e.is_transient() => {
                    tracing::warn!(key = intent.key, error = %e, "broadcast failed, will be repeated");
                    return Ok((entry, false));
                }
                Err(e) => {
                    self.store.remove(OPEN, &intent.key)?;
                    return Err(e);
                }
            }
        }
        self.store.remove(OPEN, &intent.key)?;
        Err(Error::Answer(format!("no nonce of {} is free; give each agent an account of its own", self.account)))
    }

    /// Waits until an entry's nonce is used: the receipt if by the entry (kept in the journal), `None` if by another transaction
    /// (dropped from the journal).
    async fn follow(&self, key: &str, mut entry: Entry, known: bool) -> Result<Option<Receipt>> {
        match self.wait(key, &mut entry, known).await? {
            None => {
                tracing::warn!(key, nonce = entry.nonce, account = %self.account, "another transaction took the nonce");
                self.store.remove(OPEN, key)?;
                self.store.remove(DONE, key)?;
                Ok(None)
            }
            Some(r) => {
                let receipt = Receipt {
                    label: entry.label.clone(),
                    hash: r.transaction_hash,
                    block: r.block_number.unwrap_or_default(),
                    gas_used: r.gas_used,
                    gas_price: r.effective_gas_price,
                };
                crate::measure::transaction(&receipt, !r.status());
                self.weigh();
                if !r.status() {
                    entry.failed = true;
                    self.finish(key, &entry)?;
                    let revert = self.reason(&entry, receipt.block).await;
                    return Err(Error::Failed { what: entry.label, hash: receipt.hash, revert: Box::new(revert) });
                }
                if entry.done.as_ref() != Some(&receipt) {
                    entry.done = Some(receipt.clone());
                    self.finish(key, &entry)?;
                    tracing::info!(key, call = entry.label, hash = %receipt.hash, block = receipt.block, gas = receipt.gas_used, "mined");
                }
                Ok(Some(receipt))
            }
        }
    }

    /// Measures what the account has for gas, beside everything else.
    fn weigh(&self) {
        let (chain, account) = (self.chain.clone(), self.account);
        tokio::spawn(async move {
            if let Ok(wei) = chain.provider().get_balance(account).await {
                crate::measure::balance(wei);
            }
        });
    }

    /// Waits until an entry's nonce is used, through every outage of the RPC: what was signed can be mined whoever listens. `None` if
    /// another transaction has used it.
    async fn wait(&self, key: &str, entry: &mut Entry, known: bool) -> Result<Option<TransactionReceipt>> {
        let now = Instant::now();
        let mut watch = Watch { known, since: now, asked: now, looks: 0 };
        let mut pause = self.chain.poll();
        loop {
            match self.look(key, entry, &mut watch).await {
                Ok(Seen::Mined(receipt)) => return Ok(Some(*receipt)),
                Ok(Seen::Displaced) => return Ok(None),
                Ok(Seen::Waiting) => pause = self.chain.poll(),
                Err(error) if error.is_transient() => {
                    tracing::warn!(key, call = entry.label, %error, "a transaction is followed, but the server fails");
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                Err(error) => return Err(error),
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn look(&self, key: &str, entry: &mut Entry, watch: &mut Watch) -> Result<Seen> {
        if let Some(receipt) = self.mined(entry).await? {
            return Ok(Seen::Mined(Box::new(receipt)));
        }
        let used = self.chain.provider().get_transaction_count(self.account).await?;
        if used > entry.nonce {
            // Mined but not deep enough, or mined by another.
            if self.any_receipt(entry).await?.is_none() {
                watch.looks += 1;
                if watch.looks >= LOOKS {
                    return Ok(Seen::Displaced);
                }
            }
        } else if !watch.known {
            // Resumed, reorganised, or lost from the queue.
            self.rebroadcast(key, entry).await?;
            watch.known = true;
        } else if watch.asked.elapsed() >= IMPATIENCE {
            watch.asked = Instant::now();
            let late = self.is_late(entry, watch.since.elapsed()).await?;
            if used < entry.nonce {
                self.fill(used, late).await?;
            } else if late {
                self.bump(key, entry).await?;
            }
            if late {
                watch.since = Instant::now();
            }
            watch.known = self.is_queued(entry).await?;
        }
        Ok(Seen::Waiting)
    }

    /// Whether the RPC still has the latest of an entry's transactions.
    async fn is_queued(&self, entry: &Entry) -> Result<bool> {
        let Some(signed) = entry.signed.last() else { return Ok(true) };
        Ok(self.chain.provider().get_transaction_by_hash(signed.hash).await?.is_some())
    }

    /// Sees to it that a nonce is used that higher ones wait for, when no transaction with it is queued: a reorganisation or a lost queue
    /// took it. If the journal has its transaction and nobody follows that, it is sent again; if it was another process's, a transfer of
    /// nothing takes its place. When it is queued, but they wait too long (`late`), the journal's is sent with a higher fee.
    async fn fill(&self, nonce: u64, late: bool) -> Result<()> {
        let _guard = self.nonces.lock().await;
        let queued = self.pending_nonce().await? > nonce;
        if queued && !late {
            return Ok(());
        }
        let journal = self.store.all::<Entry>(OPEN)?.into_iter().chain(self.store.all::<Entry>(DONE)?);
        if let Some((key, mut entry)) = journal.into_iter().find(|(_, e)| e.nonce == nonce && !e.failed) {
            return match self.key(&key).try_lock() {
                Ok(_guard) => self.bump(&key, &mut entry).await,
                Err(_) => Ok(()),
            };
        }
        if queued {
            return Ok(());
        }
        tracing::warn!(nonce, account = %self.account, "the transaction before is lost: a transfer of nothing takes its nonce");
        let fees = self.fees().await?;
        let nothing = self.signed(self.account, &Bytes::new(), U256::ZERO, TRANSFER_GAS, nonce, fees).await?;
        self.broadcast("transfer of nothing", &nothing.raw).await.map(drop)
    }

    /// Whether a transaction that has waited so long needs a push.
    async fn is_late(&self, entry: &Entry, waited: Duration) -> Result<bool> {
        let limit = self.options.bump_after;
        let Some(deadline) = entry.deadline else { return Ok(waited >= limit) };
        let left = deadline.saturating_sub(self.chain.head().await?.timestamp);
        Ok(waited >= limit.min(Duration::from_secs(left / 8)))
    }

    /// The receipt of whichever of the entry's transactions is in a block.
    async fn any_receipt(&self, entry: &Entry) -> Result<Option<TransactionReceipt>> {
        for signed in entry.signed.iter().rev() {
            if let Some(r) = self.chain.receipt(signed.hash).await?
                && r.block_number.is_some()
            {
                return Ok(Some(r));
            }
        }
        Ok(None)
    }

    async fn mined(&self, entry: &Entry) -> Result<Option<TransactionReceipt>> {
        let Some(receipt) = self.any_receipt(entry).await? else { return Ok(None) };
        let deep = self.options.confirmations <= 1 || {
            let head = self.chain.head().await?.number;
            head + 1 >= receipt.block_number.unwrap_or(head) + self.options.confirmations
        };
        Ok(deep.then_some(receipt))
    }

    /// Sends what was signed last; if that costs more than there is, and more than is asked by now, the same for what is asked now.
    async fn rebroadcast(&self, key: &str, entry: &mut Entry) -> Result<()> {
        let Some(last) = entry.signed.last() else { return Ok(()) };
        let refused = match self.broadcast(&entry.label, &last.raw).await {
            Ok(_) => return Ok(()),
            Err(e) if e.is_transient() => return Ok(()),
            Err(e) => e,
        };
        if !matches!(refused, Error::Funds { .. }) {
            return Err(refused);
        }
        let (was, now) = (last.fees, self.fees().await?);
        if now.max() >= was.max() {
            return Err(refused);
        }
        let raw = self.reprice(key, entry, now, "fees have fallen: lowering the fee").await?;
        match self.broadcast(&entry.label, &raw).await {
            Err(e) if !e.is_transient() => Err(e),
            _ => Ok(()),
        }
    }

    /// Signs the same call with the same nonce and other fees. Those before stay in the journal: somebody may have them, and they are as
    /// good.
    async fn reprice(&self, key: &str, entry: &mut Entry, fees: Fees, why: &str) -> Result<Bytes> {
        let signed = self.signed(entry.to, &entry.data, entry.value, entry.gas, entry.nonce, fees).await?;
        tracing::warn!(key, nonce = entry.nonce, fee = fees.max(), hash = %signed.hash, "{why}");
        let raw = signed.raw.clone();
        entry.signed.push(signed);
        self.store.put(OPEN, key, entry)?;
        Ok(raw)
    }

    /// Sends it with higher fees.
    async fn bump(&self, key: &str, entry: &mut Entry) -> Result<()> {
        let now = self.fees().await?;
        let fees = entry.signed.last().map_or(now, |s| s.fees.raised(now));
        if let Err(e) = self.check_limit(fees) {
            tracing::warn!(key, error = %e, "transaction is stuck");
            return self.rebroadcast(key, entry).await;
        }
        self.reprice(key, entry, fees, "no block took it: raising the fee").await?;
        match self.rebroadcast(key, entry).await {
            // An older one may still be mined; the balance may allow only that.
            Err(e @ Error::Funds { .. }) => {
                tracing::warn!(key, error = %e, "cannot raise the fee");
                Ok(())
            }
            other => other,
        }
    }

    async fn estimate(&self, intent: &Intent) -> Result<u64> {
        let request = TransactionRequest::default()
            .with_from(self.account)
            .with_to(intent.to)
            .with_input(intent.data.clone())
            .with_value(intent.value);
        let estimate = match self.chain.provider().estimate_gas(request).block(BlockId::latest()).await {
            Ok(gas) => gas,
            Err(e) => {
                // Some RPCs give a revert's data only to a call.
                self.chain
                    .simulate_raw(&intent.label, self.account, intent.to, intent.data.clone(), BlockId::latest())
                    .await?;
                return Err(self.explain(&intent.label, e).await);
            }
        };
        let limit = self.chain.head().await?.gas_limit;
        if estimate > limit {
            return Err(Error::Gas { what: intent.label.clone(), gas: estimate, limit });
        }
        Ok((estimate + estimate * self.options.gas_margin_percent / 100 + 10_000).min(limit))
    }

    async fn fees(&self) -> Result<Fees> {
        let provider = self.chain.provider();
        if self.chain.head().await?.base_fee.is_none() {
            return Ok(Fees::Legacy { price: provider.get_gas_price().await? });
        }
        let e = provider.estimate_eip1559_fees().await?;
        Ok(Fees::Market { max: e.max_fee_per_gas, priority: e.max_priority_fee_per_gas })
    }

    fn check_limit(&self, fees: Fees) -> Result<()> {
        match self.options.max_fee_per_gas {
            Some(limit) if fees.max() > limit => Err(Error::FeeLimit { fee: fees.max(), limit }),
            _ => Ok(()),
        }
    }

    /// The first nonce that neither the chain, nor its queue, nor the journal uses.
    async fn next_nonce(&self) -> Result<u64> {
        let journal = self.store.all::<Entry>(OPEN)?.iter().map(|(_, e)| e.nonce + 1).max();
        Ok(self.pending_nonce().await?.max(journal.unwrap_or(0)))
    }

    async fn pending_nonce(&self) -> Result<u64> {
        Ok(self.chain.provider().get_transaction_count(self.account).pending().await?)
    }

    async fn signed(&self, to: Address, data: &Bytes, value: U256, gas: u64, nonce: u64, fees: Fees) -> Result<Signed> {
        let request = TransactionRequest::default()
            .with_from(self.account)
            .with_chain_id(self.chain.deployment().chain_id)
            .with_to(to)
            .with_input(data.clone())
            .with_value(value)
            .with_gas_limit(gas)
            .with_nonce(nonce);
        let request = match fees {
            Fees::Legacy { price } => request.with_gas_price(price),
            Fees::Market { max, priority } => request.with_max_fee_per_gas(max).with_max_priority_fee_per_gas(priority),
        };
        let envelope: TxEnvelope = request
            .build(&self.wallet)
            .await
            .map_err(|e| Error::Answer(format!("the transaction cannot be signed: {e}")))?;
        Ok(Signed { hash: *envelope.tx_hash(), raw: envelope.encoded_2718().into(), fees })
    }

    async fn broadcast(&self, what: &str, raw: &[u8]) -> Result<Sent> {
        let e = match self.chain.provider().send_raw_transaction(raw).await {
            Ok(_) => return Ok(Sent::Taken),
            Err(e) => e,
        };
        let Some(payload) = e.as_error_resp() else { return Err(e.into()) };
        let text = payload.message.to_lowercase();
        let says = |words: &[&str]| words.iter().any(|w| text.contains(w));
        if says(&["already known", "already imported", "known transaction", "already exists"]) {
            Ok(Sent::Taken)
        } else if says(&["nonce too low", "nonce is too low", "invalid nonce"]) {
            Ok(Sent::NonceUsed)
        } else if says(&["replacement"]) {
            Ok(Sent::NonceTaken)
        } else if says(&["underpriced", "less than block base fee", "fee too low"]) {
            // The nonce is still this transaction's: it waits until a raise of its fees is due.
            tracing::warn!(what, reason = payload.message.as_ref(), "the fee is too low for now");
            Ok(Sent::Taken)
        } else {
            Err(self.explain(what, e).await)
        }
    }

    async fn explain(&self, what: &str, e: alloy::transports::TransportError) -> Error {
        let text = e.to_string();
        if text.to_lowercase().contains("insufficient funds") || text.contains("OutOfFunds") {
            let balance = self.chain.provider().get_balance(self.account).await.unwrap_or_default();
            return Error::Funds { account: self.account, balance, reason: text };
        }
        Error::of_call(what, e)
    }

    /// Why a mined transaction failed, from a repetition of its call on the block before.
    async fn reason(&self, entry: &Entry, block: u64) -> Revert {
        let at = BlockId::Number(BlockNumberOrTag::Number(block));
        match self.chain.simulate_raw(&entry.label, self.account, entry.to, entry.data.clone(), at).await {
            Err(Error::Reverted { revert, .. }) => *revert,
            _ => Revert::decode(&[]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raised_fees_replace() {
        let old = Fees::Market { max: 100, priority: 1 };
        let now = Fees::Market { max: 90, priority: 5 };
        assert_eq!(old.raised(now), Fees::Market { max: 126, priority: 5 });
        assert_eq!(old.raised(Fees::Market { max: 900, priority: 0 }), Fees::Market { max: 900, priority: 2 });
        assert_eq!(Fees::Legacy { price: 8 }.raised(now), Fees::Legacy { price: 90 });
        assert_eq!(Fees::Legacy { price: 800 }.raised(now), Fees::Legacy { price: 1001 });
    }
}
