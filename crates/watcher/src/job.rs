//! One job: what the chain says of it, and what the watcher knows besides.

use std::time::Instant;

use alloy::primitives::{Address, B256, U256};
use sworn_bindings as sol;
use sworn_bindings::{IChallenges::IChallengesEvents, IMarket::IMarketEvents, opening_id};
use sworn_commit::witness::Claim;
use sworn_commit::{Hash, RunParams, TraceDims, sequence};

use crate::game::{Fraud, Game, Kind, Opening, OpeningState, Outcome, Target};
use crate::solver::{Learned, Own};

/// An announcement, kept in the journal before it is sent.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Announcement {
    pub(crate) layer: u16,
    pub(crate) row: u32,
    pub(crate) op: u16,
    pub(crate) element: u32,
    pub(crate) salt: B256,
    pub(crate) commitment: B256,
}

impl Announcement {
    pub(crate) fn claim(&self) -> Claim {
        Claim { layer: self.layer, row: self.row, op: self.op, element: self.element }
    }
}

/// A job under watch.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) id: u64,
    pub(crate) created: u64,
    pub(crate) model: Hash,
    pub(crate) node: Address,
    pub(crate) prompt: Vec<u32>,
    pub(crate) run: RunParams,
    pub(crate) output: Vec<u32>,
    pub(crate) trace_root: Hash,
    /// From the result on.
    pub(crate) game: Option<Game>,
    pub(crate) reward: U256,
    /// Of a receipt on trial: the receipt. Its tokens may still have to be found.
    pub(crate) receipt: Option<Box<sworn_receipts::Receipt>>,

    pub(crate) own: Option<Own>,
    pub(crate) learned: Learned,
    pub(crate) announced: Option<Announcement>,
    /// The claim that the judge on chain has confirmed.
    pub(crate) judged: Option<Claim>,
    pub(crate) checked: bool,
    pub(crate) told_dispute: bool,
    pub(crate) contested: bool,
    /// A task works on it.
    pub(crate) busy: bool,
    /// Nothing is decided before this block is known: it holds the job's own last transaction.
    pub(crate) after_block: u64,
    pub(crate) not_before: Option<Instant>,
    pub(crate) failures: u32,
    pub(crate) served_tries: u32,
    /// Why nothing is done about it.
    pub(crate) muted: bool,
    pub(crate) right: bool,
    pub(crate) done: bool,
}

impl Job {
    pub(crate) fn new(id: u64, created: u64, model: Hash, node: Address, prompt: Vec<u32>, run: RunParams) -> Self {
        Job {
            id,
            created,
            model,
            node,
            prompt,
            run,
            output: Vec::new(),
            trace_root: [0; 32],
            game: None,
            reward: U256::ZERO,
            receipt: None,
            own: None,
            learned: Learned::default(),
            announced: None,
            judged: None,
            checked: false,
            told_dispute: false,
            contested: false,
            busy: false,
            after_block: 0,
            not_before: None,
            failures: 0,
            served_tries: 0,
            muted: false,
            right: false,
            done: false,
        }
    }

    /// A receipt that was lodged; its tokens may follow. `None` for one that the trials do not admit.
    pub(crate) fn lodged(
        id: u64,
        created: u64,
        node: Address,
        receipt: sworn_receipts::Receipt,
        layers: u16,
        deadline: u64,
    ) -> Option<Self> {
        let (run, dims) = (receipt.run()?, receipt.dims(layers)?);
        let mut job = Job::new(id, created, receipt.modelId.0, node, Vec::new(), run);
        job.trace_root = receipt.trace_root()?;
        job.game = Some(Game::new(dims, receipt.layersRoot.0, deadline));
        job.receipt = Some(Box::new(receipt));
        Some(job)
    }

    /// Whether this is a receipt of which not all tokens are known.
    pub(crate) fn lacks_tokens(&self) -> bool {
        self.receipt.is_some() && (self.prompt.is_empty() || self.output.is_empty())
    }

    /// Takes a receipt's tokens, which hash to what it says.
    pub(crate) fn found(&mut self, prompt: Vec<u32>, output: Vec<u32>) {
        (self.prompt, self.output) = (prompt, output);
    }

    /// The end of a receipt's trial.
    pub(crate) fn acquitted(&mut self) {
        self.end(Outcome::Final);
    }

    /// Applies an event of the market.
    pub(crate) fn market(&mut self, event: &IMarketEvents, layers: u16) {
        match event {
            IMarketEvents::JobAccepted(e) => self.node = e.node,
            IMarketEvents::ResultSubmitted(e) => {
                self.node = e.node;
                self.trace_root = e.traceRoot.0;
                if let Some(output) = sequence::decode(&e.outputTokens).filter(|o| !o.is_empty()) {
                    let dims = TraceDims { layers, n_in: self.prompt.len() as u32, n_out: output.len() as u32 };
                    self.output = output;
                    self.game = Some(Game::new(dims, e.layersRoot.0, e.windowEnd.to::<u64>()));
                }
            }
            IMarketEvents::JobFinalized(_) => self.end(Outcome::Final),
            IMarketEvents::JobExpired(_) | IMarketEvents::JobCancelled(_) => {
                self.end(Outcome::Void);
                self.done = true;
            }
            IMarketEvents::JobSlashed(e) => {
                self.reward = e.reward;
                self.end(Outcome::Slashed);
            }
            _ => {}
        }
    }

    fn end(&mut self, outcome: Outcome) {
        if let Some(g) = &mut self.game {
            g.outcome = Some(outcome);
        }
    }

    /// Applies an event of the challenges, which stands in a block of this time.
    pub(crate) fn challenges(&mut self, event: &IChallengesEvents, block: u64, time: u64, challenger_turn: u64) {
        let id = U256::from(self.id);
        let Some(g) = &mut self.game else { return };
        match event {
            IChallengesEvents::Demanded(e) => {
                let Some(target) = target(&e.target) else { return };
                let state = OpeningState::Demanded { deadline: e.deadline.to::<u64>() };
                g.openings.insert(target, Opening { payer: e.payer, depth: e.depth, state });
            }
            IChallengesEvents::DepthLowered(e) => {
                let lowered = g.openings.iter_mut().find(|(t, _)| opening_id(id, &sol_target(t)) == e.openingId);
                if let Some((_, o)) = lowered {
                    o.depth = e.depth;
                }
            }
            IChallengesEvents::Answered(e) => {
                let Some(target) = target(&e.target) else { return };
                if let Some(o) = g.openings.get_mut(&target) {
                    o.state = OpeningState::Answered { turn_end: time + challenger_turn, data: e.data.to_vec() };
                }
                // The contract has checked the hash.
                match (target == Target::tokens(false), target == Target::tokens(true), sequence::decode(&e.data)) {
                    (true, _, Some(prompt)) => self.prompt = prompt,
                    (_, true, Some(output)) => self.output = output,
                    _ => {}
                }
            }
            IChallengesEvents::Announced(e) => {
                g.announcements.entry((e.by, e.commitment)).or_insert(block);
            }
            IChallengesEvents::FraudProven(e) => {
                let c = &e.claim;
                let claim = Claim { layer: c.layer, row: c.row, op: c.op, element: c.element };
                g.fraud = Some(Fraud { by: e.by, claim, contest_end: time + challenger_turn });
                // The market tells of a job's slash itself; a trial has nobody else to tell.
                if self.receipt.is_some() {
                    self.end(Outcome::Slashed);
                }
            }
            IChallengesEvents::RewardContested(e) => {
                if let Some(f) = &mut g.fraud {
                    f.by = e.by;
                }
            }
            IChallengesEvents::TimedOut(e) => {
                g.timed_out = Some(e.payer);
                if self.receipt.is_some() {
                    self.end(Outcome::Slashed);
                }
            }
            IChallengesEvents::RewardSettled(e) => g.settled = Some(e.to),
            IChallengesEvents::FeesReclaimed(e) => g.reclaimed.push(e.payer),
        }
    }
}

/// A target as the contract names it.
pub fn sol_target(t: &Target) -> sol::Target {
    let (level, index) = (t.level, t.index);
    match t.kind {
        Kind::Layers => sol::Target::layers(level, index),
        Kind::Positions => sol::Target::positions(t.layer, level, index),
        Kind::OpList => sol::Target::op_list(t.layer, t.row),
        Kind::Pages => sol::Target::pages(t.layer, t.row, t.op, level, index),
        Kind::Page => sol::Target::page(t.layer, t.row, t.op, index),
        Kind::Tokens => sol::Target::tokens(t.layer == 1),
    }
}

/// A target that the contract named.
fn target(t: &sol::Target) -> Option<Target> {
    let (level, index) = (u32::from(t.level), u64::from(t.index));
    Some(match t.kind {
        sol::TargetKind::Layers => Target::layers(level, index),
        sol::TargetKind::Positions => Target::positions(t.layer, level, index),
        sol::TargetKind::OpList => Target::op_list(t.layer, t.row),
        sol::TargetKind::Pages | sol::TargetKind::Page => Target::pages(t.layer, t.row, t.op, level, index),
        sol::TargetKind::Tokens => Target::tokens(t.layer == 1),
        _ => return None,
    })
}
