//! A batch of receipts: what its node claims, what it shows of it, and what is to be done next. Nothing a node serves is believed
//! unless it hashes to what it has redeemed, and is signed by a key that it answers for.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use alloy::primitives::{Address, B256, U256};
use sworn_bindings::{Part, Place};
use sworn_chain::Chain;
use sworn_commit::Manifest;
use sworn_receipts::{Answered, Client, ClientOptions, Domain, Receipt, SignedReceipt, place, receipts_root, recover};

/// Receipts of one channel in one batch that are read; more are as good as hidden.
const MOST: u64 = 1 << 16;
/// Times a node is asked for its receipts in the first half of the window; after that they are demanded.
const TRIES: u32 = 8;

/// Asks a node for one receipt with its tokens.
///
/// # Errors
/// Why it is not to be had.
pub(crate) async fn answered(
    endpoint: &str,
    channel: B256,
    sequence: u64,
    patience: Duration,
) -> Result<Answered, String> {
    client(endpoint, patience)?.receipt(channel, sequence).await.map_err(|e| e.to_string())
}

fn client(endpoint: &str, patience: Duration) -> Result<Client, String> {
    let patience = patience.min(crate::served::TIMEOUT);
    let options = ClientOptions { connect: patience, answer: patience, silence: patience };
    Client::new(endpoint, options).map_err(|e| e.to_string())
}

/// Asks a node for all receipts of a part, which must be those that it has redeemed.
///
/// # Errors
/// Why they are not to be had, or not the redeemed ones.
pub(crate) async fn read(
    chain: &Chain,
    domain: &Domain,
    endpoint: &str,
    node: Address,
    part: &Part,
    patience: Duration,
) -> Result<Vec<Answered>, String> {
    let count = (part.last - part.first).saturating_add(1);
    if count > MOST {
        return Err(format!("a part of {count} receipts"));
    }
    let client = client(endpoint, patience)?;
    let mut all: Vec<Answered> = Vec::new();
    while (all.len() as u64) < count {
        let from = part.first + all.len() as u64;
        let page = client.receipts(part.channelId, from, part.last).await.map_err(|e| e.to_string())?;
        if page.receipts.is_empty() {
            return Err(format!("it has no receipt {from}"));
        }
        all.extend(page.receipts);
    }
    all.truncate(count as usize);
    if receipts_root(domain, all.iter().map(|a| &a.signed.receipt)) != part.receiptsRoot {
        return Err("the receipts are not the redeemed ones".into());
    }
    let mut signers = Vec::new();
    for a in &all {
        let signer = recover(domain, &a.signed.receipt, &a.signed.signature);
        let signer = signer.map_err(|_| "a receipt without a signature".to_owned())?;
        if !signers.contains(&signer) {
            signers.push(signer);
        }
    }
    for signer in signers {
        let ours = chain.nodes().answersFor(node, signer).call().await.map_err(|e| e.to_string())?;
        if !ours {
            return Err(format!("a receipt is signed by {signer}, for whom the node does not answer"));
        }
    }
    Ok(all)
}

/// Why no honest run gives these tokens, whatever the trace; `None` if one may. The contract decides in the end.
pub(crate) fn fault(receipt: &Receipt, prompt: &[u32], output: &[u32], model: &Manifest) -> Option<&'static str> {
    let positions = u64::from(receipt.nIn) + u64::from(receipt.nOut);
    let unknown = |t: &u32| *t >= model.vocab;
    Some(match receipt.run() {
        None => "sampling parameters that do not exist",
        _ if prompt.is_empty() || output.is_empty() => "a sequence without tokens",
        _ if receipt.nOut > receipt.maxNew => "more tokens than asked for",
        _ if positions > u64::from(model.max_positions) + 1 => "more positions than the model has",
        _ if prompt.iter().any(unknown) || output.iter().any(unknown) => "a token that the model does not have",
        _ if output[..output.len() - 1].iter().any(|t| model.stop_tokens.contains(t)) => "a stop token before the last",
        _ => return None,
    })
}

/// What is known of a receipt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing yet.
    New,
    /// It is right, or there is nothing to be done about it.
    Settled,
    /// No honest run gives it.
    Malformed,
    /// Its trace is another than that of an honest run, or its tokens are hidden.
    Wrong,
}

/// One receipt.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) signed: SignedReceipt,
    /// Its prompt and answer, where they hash to what it says.
    pub(crate) tokens: Option<(Vec<u32>, Vec<u32>)>,
    pub(crate) verdict: Verdict,
}

impl Entry {
    pub(crate) fn new(signed: SignedReceipt, prompt: Vec<u32>, output: Vec<u32>) -> Self {
        let tokens = signed.receipt.is_of(&prompt, &output).then_some((prompt, output));
        Entry { signed, tokens, verdict: Verdict::New }
    }
}

/// A demand for a receipt that is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) payer: Address,
    pub(crate) deadline: u64,
}

/// What is known of one channel's part.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sheet {
    read: bool,
    tries: u32,
    /// By sequence number.
    pub(crate) entries: BTreeMap<u64, Entry>,
    pub(crate) wanted: BTreeMap<u64, Wanted>,
    overclaim_shown: bool,
}

/// A batch under watch.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    pub(crate) id: U256,
    /// The block that redeemed it.
    pub(crate) block: u64,
    pub(crate) node: Address,
    /// Last second for demands.
    pub(crate) window_end: u64,
    window: u64,
    pub(crate) parts: Vec<Part>,
    pub(crate) sheets: Vec<Sheet>,
    pub(crate) busy: bool,
    pub(crate) after_block: u64,
    pub(crate) not_before: Option<Instant>,
    pub(crate) failures: u32,
    pub(crate) muted: bool,
}

/// The next thing to do about a batch: with which part, and which receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing, now or ever.
    Rest,
    Wait,
    /// Ask the node for a part's receipts.
    Read(usize),
    /// Demand a receipt on chain.
    Demand(usize, u64),
    /// A demand was not answered in time.
    Withheld(usize, u64),
    /// More is claimed than the last receipt says.
    Overclaim(usize, u64),
    /// Re-execute.
    Check(usize, u64),
    Malformed(usize, u64),
    Lodge(usize, u64),
}

impl Batch {
    pub(crate) fn new(id: U256, block: u64, node: Address, window_end: u64, window: u64, parts: Vec<Part>) -> Self {
        let sheets = parts.iter().map(|_| Sheet::default()).collect();
        Batch {
            id,
            block,
            node,
            window_end,
            window,
            parts,
            sheets,
            busy: false,
            after_block: 0,
            not_before: None,
            failures: 0,
            muted: false,
        }
    }

    pub(crate) fn place(&self, part: usize) -> Option<Place> {
        place(self.id, &self.parts, self.parts.get(part)?.channelId)
    }

    /// Whether one of its parts claims for this receipt. A channel may have parts in several batches.
    pub(crate) fn claims(&self, channel: B256, sequence: u64) -> bool {
        self.parts.iter().any(|p| p.channelId == channel && (p.first..=p.last).contains(&sequence))
    }

    /// The sheet of a channel.
    pub(crate) fn sheet(&mut self, channel: B256) -> Option<&mut Sheet> {
        let k = self.parts.iter().position(|p| p.channelId == channel)?;
        self.sheets.get_mut(k)
    }

    pub(crate) fn entry(&mut self, part: usize, sequence: u64) -> Option<&mut Entry> {
        self.sheets.get_mut(part)?.entries.get_mut(&sequence)
    }

    /// How many receipts it claims for.
    pub(crate) fn receipts(&self) -> u64 {
        self.parts.iter().fold(0, |sum, p| sum.saturating_add((p.last - p.first).saturating_add(1)))
    }

    /// What the node served of a part, or that it did not.
    pub(crate) fn took(&mut self, part: usize, served: Option<Vec<Answered>>) {
        let Some(sheet) = self.sheets.get_mut(part) else { return };
        match served {
            Some(all) => {
                sheet.read = true;
                for a in all {
                    let sequence = a.signed.receipt.sequence;
                    sheet.entries.entry(sequence).or_insert_with(|| Entry::new(a.signed, a.prompt, a.output));
                }
            }
            None => {
                sheet.tries += 1;
                let pause = Duration::from_millis(300 << sheet.tries.min(6));
                self.not_before = Some(Instant::now() + pause);
            }
        }
    }

    /// A step was taken, or refused for good: it is not due again. Others come back until the chain says otherwise.
    pub(crate) fn dealt_with(&mut self, step: Step) {
        match step {
            Step::Overclaim(part, _) => self.sheets.get_mut(part).into_iter().for_each(|s| s.overclaim_shown = true),
            Step::Malformed(part, s) | Step::Lodge(part, s) => {
                self.entry(part, s).into_iter().for_each(|e| e.verdict = Verdict::Settled);
            }
            _ => {}
        }
    }

    /// What to do next. `me` pays for demands; `now` is the chain's time, `margin` how long a transaction may take.
    pub(crate) fn next(&self, me: Address, now: u64, margin: u64) -> Step {
        let mut step = Step::Rest;
        // Timeouts first, since they end the batch; then what is wrong; then what is not known yet.
        for (k, sheet) in self.sheets.iter().enumerate() {
            for (sequence, w) in &sheet.wanted {
                if now > w.deadline && w.payer == me {
                    return Step::Withheld(k, *sequence);
                }
                step = Step::Wait;
            }
        }
        for (k, (sheet, part)) in self.sheets.iter().zip(&self.parts).enumerate() {
            let last = sheet.entries.get(&part.last).filter(|_| !sheet.overclaim_shown);
            if last.is_some_and(|e| e.signed.receipt.cumulative < part.cumulative) {
                return Step::Overclaim(k, part.last);
            }
            let of = |v: Verdict| sheet.entries.iter().find(|(_, e)| e.verdict == v).map(|(s, _)| *s);
            if let Some(sequence) = of(Verdict::Malformed) {
                return Step::Malformed(k, sequence);
            }
            if let Some(sequence) = of(Verdict::Wrong) {
                return Step::Lodge(k, sequence);
            }
        }
        for (k, (sheet, part)) in self.sheets.iter().zip(&self.parts).enumerate() {
            if let Some((sequence, _)) = sheet.entries.iter().find(|(_, e)| e.verdict == Verdict::New) {
                return Step::Check(k, *sequence);
            }
            if sheet.read {
                continue;
            }
            let patient = now + margin < self.window_end.saturating_sub(self.window / 2);
            if sheet.tries < TRIES && patient || sheet.tries == 0 {
                return Step::Read(k);
            }
            // From the last one on, which also tells whether the total is right; one at a time.
            let hidden = (part.first..=part.last).rev().find(|s| !sheet.entries.contains_key(s));
            if let (Some(sequence), true) = (hidden, sheet.wanted.is_empty() && now + margin <= self.window_end) {
                return Step::Demand(k, sequence);
            }
        }
        step
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: Address = Address::repeat_byte(1);
    const CHANNEL: B256 = B256::repeat_byte(7);

    fn part(first: u64, last: u64, cumulative: u128) -> Part {
        Part { channelId: CHANNEL, first, last, amount: cumulative, cumulative, receiptsRoot: B256::ZERO }
    }

    fn answer(sequence: u64, cumulative: u128) -> Answered {
        let receipt = Receipt {
            channelId: CHANNEL,
            sequence,
            cumulative,
            nIn: 1,
            nOut: 2,
            maxNew: 2,
            inputHash: sworn_commit::sequence::hash(&[5]).into(),
            outputHash: sworn_commit::sequence::hash(&[6, 7]).into(),
            ..Receipt::default()
        };
        let signed = SignedReceipt { receipt, signature: Default::default() };
        Answered { signed, finish: sworn_receipts::Finish::Stop, prompt: vec![5], output: vec![6, 7] }
    }

    fn batch() -> Batch {
        Batch::new(U256::from(3), 10, Address::repeat_byte(2), 1_000, 100, vec![part(4, 5, 20)])
    }

    #[test]
    fn every_receipt_is_read_checked_and_if_wrong_lodged() {
        let mut b = batch();
        assert_eq!(b.next(ME, 900, 5), Step::Read(0));
        b.took(0, Some(vec![answer(4, 10), answer(5, 20)]));
        assert_eq!(b.next(ME, 900, 5), Step::Check(0, 4));
        b.entry(0, 4).unwrap().verdict = Verdict::Settled;
        assert_eq!(b.next(ME, 900, 5), Step::Check(0, 5));
        b.entry(0, 5).unwrap().verdict = Verdict::Wrong;
        assert_eq!(b.next(ME, 900, 5), Step::Lodge(0, 5));
        b.entry(0, 5).unwrap().verdict = Verdict::Malformed;
        assert_eq!(b.next(ME, 900, 5), Step::Malformed(0, 5));
        b.entry(0, 5).unwrap().verdict = Verdict::Settled;
        assert_eq!(b.next(ME, 900, 5), Step::Rest);
        assert_eq!((b.receipts(), b.place(0).unwrap().batchId), (2, U256::from(3)));
    }

    #[test]
    fn hidden_receipts_are_demanded_one_at_a_time_and_timed_out() {
        let mut b = batch();
        assert_eq!(b.next(ME, 900, 5), Step::Read(0));
        b.took(0, None);
        // Asked again while there is time, and demanded from the middle of the window on.
        assert_eq!(b.next(ME, 900, 5), Step::Read(0));
        assert_eq!(b.next(ME, 960, 5), Step::Demand(0, 5));
        b.sheets[0].wanted.insert(5, Wanted { payer: ME, deadline: 1_020 });
        assert_eq!(b.next(ME, 961, 5), Step::Wait);
        assert_eq!(b.next(ME, 1_020, 5), Step::Wait);
        assert_eq!(b.next(ME, 1_021, 5), Step::Withheld(0, 5));
        // Somebody else's demand is somebody else's to time out.
        assert_eq!(b.next(Address::ZERO, 1_021, 5), Step::Wait);
        // Published: the next one.
        b.sheets[0].wanted.clear();
        let shown = answer(5, 19);
        b.sheets[0].entries.insert(5, Entry::new(shown.signed, Vec::new(), Vec::new()));
        assert_eq!(b.next(ME, 961, 5), Step::Overclaim(0, 5));
        b.dealt_with(Step::Overclaim(0, 5));
        assert_eq!(b.next(ME, 961, 5), Step::Check(0, 5));
        b.entry(0, 5).unwrap().verdict = Verdict::Settled;
        assert_eq!(b.next(ME, 961, 5), Step::Demand(0, 4));
        assert_eq!(b.next(ME, 996, 5), Step::Rest, "too late to demand");
    }

    #[test]
    fn a_receipt_is_in_the_batch_that_claims_for_it() {
        let b = batch();
        let claims = [3, 4, 5, 6].map(|s| b.claims(CHANNEL, s));
        assert_eq!((claims, b.claims(B256::ZERO, 4)), ([false, true, true, false], false));
    }

    #[test]
    fn tokens_are_a_receipts_only_if_they_hash_to_it() {
        let Answered { signed, .. } = answer(1, 1);
        assert!(Entry::new(signed.clone(), vec![5], vec![6, 7]).tokens.is_some());
        for (prompt, output) in [(vec![5, 5], vec![6, 7]), (vec![5], vec![6]), (vec![5], vec![7, 6]), (vec![], vec![])]
        {
            assert!(Entry::new(signed.clone(), prompt, output).tokens.is_none());
        }
    }
}
