//! One challenge before the contracts in memory, and those who meddle with it: whatever the rules forbid is tried while it runs, and must
//! be refused.

use std::collections::{BTreeSet, HashMap};

use alloy::primitives::{Address, B256, Bytes, U256};
use alloy::sol_types::SolCall;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use sworn_bindings::{Claim, IChallenges, IERC20, IMarket, INodes, JobState, Revert, Witness};
use sworn_commit::witness;
use sworn_watcher::game::{Kind, Target};
use sworn_watcher::solver::Demand;
use sworn_watcher::{demand_call, sol_target};

use crate::actors::Trick;
use crate::court::{Court, NODE, USER, WATCHER};
use crate::table::TURN;

/// A challenge before the contracts.
pub struct Hearing<'c> {
    court: &'c mut Court,
    /// The job.
    pub job: U256,
    /// Block and second of its result.
    number: U256,
    time: U256,
    /// The parameters of what was demanded.
    demanded: HashMap<Target, IChallenges::Demanded>,
    answered: Vec<IChallenges::answerCall>,
    last: Option<IChallenges::demandCall>,
    /// What the challenger's transactions used.
    pub gas: u64,
    /// How often the node answered.
    pub answers: u32,
    /// What is tried against the rules.
    tricks: Vec<Trick>,
    /// Chooses among them, and how.
    rng: StdRng,
    /// How often something was tried, and refused.
    pub refused: u64,
    /// What it was.
    pub tried: BTreeSet<Trick>,
}

impl<'c> Hearing<'c> {
    /// Of a job whose result was just submitted.
    pub fn new(court: &'c mut Court, job: U256) -> Self {
        let (number, time) = (court.block.number, court.block.timestamp);
        Hearing {
            court,
            job,
            number,
            time,
            demanded: HashMap::new(),
            answered: Vec::new(),
            last: None,
            gas: 0,
            answers: 0,
            tricks: Vec::new(),
            rng: StdRng::seed_from_u64(0),
            refused: 0,
            tried: BTreeSet::new(),
        }
    }

    /// Lets somebody meddle with these tricks, as a seed says.
    pub fn meddled(&mut self, seed: u64, tricks: &[Trick]) {
        (self.tricks, self.rng) = (tricks.to_vec(), StdRng::seed_from_u64(seed));
    }

    fn tries(&self, trick: Trick) -> bool {
        self.tricks.contains(&trick)
    }

    /// Block and time of a second of the game.
    pub(crate) fn at(&mut self, now: u64) {
        self.court.block.number = self.number + U256::from(now);
        self.court.block.timestamp = self.time + U256::from(now);
    }

    /// Tries what must be refused, if this is tried at all.
    fn refuse<C: SolCall>(&mut self, trick: Trick, from: Address, to: Address, call: &C) {
        if !self.tries(trick) {
            return;
        }
        if let Ok(done) = self.court.call(from, to, call) {
            panic!("{}: {} was allowed, for {} gas", trick.what(), C::SIGNATURE, done.gas);
        }
        self.refused += 1;
        self.tried.insert(trick);
    }

    /// Demands an opening.
    ///
    /// # Panics
    /// The contract refuses.
    pub fn demand(&mut self, d: &Demand, payer: Address, now: u64) {
        self.at(now);
        let (call, challenges) = (demand_call(self.job.to(), d), self.court.challenges);
        let mut other = call.clone();
        let hashes = other.proof.path.iter_mut().chain([&mut other.proof.nodeHash]);
        let mut hashes: Vec<_> = hashes.chain(other.proof.opRoots.iter_mut()).collect();
        let at = self.rng.random_range(0..hashes.len());
        hashes[at].0[self.rng.random_range(0..32)] ^= 1 << self.rng.random_range(0..8);
        self.refuse(Trick::DemandsAnotherNode, WATCHER, challenges, &other);
        let done = self.court.call(payer, challenges, &call);
        let done = done.unwrap_or_else(|e| panic!("the contract refuses {:?}: {e}", d.target));
        if payer == WATCHER {
            self.gas += done.gas;
        }
        if let Some(demanded) = done.event() {
            self.demanded.insert(d.target, demanded);
        }
        self.last = Some(call);
    }

    /// Somebody announces what nobody can prove.
    pub fn announce_nothing(&mut self, commitment: B256, now: u64) {
        self.at(now);
        let call = IChallenges::announceCall { jobId: self.job, commitment };
        self.court.send(USER, self.court.challenges, &call);
    }

    fn answer_call(&self, target: &Target, data: &[u8]) -> Option<IChallenges::answerCall> {
        let d = self.demanded.get(target)?;
        Some(IChallenges::answerCall {
            jobId: self.job,
            target: sol_target(target),
            nodeHash: d.nodeHash,
            leafCount: d.leafCount,
            byteLength: d.byteLength,
            data: data.to_vec().into(),
        })
    }

    /// The node answers.
    ///
    /// # Panics
    /// The contract refuses.
    pub fn answer(&mut self, target: &Target, data: &[u8], now: u64) {
        self.at(now);
        // What somebody else opened before this hearing began is not the contract's.
        let Some(call) = self.answer_call(target, data) else { return };
        self.court.send(NODE, self.court.challenges, &call);
        self.answers += 1;
        self.answered.push(call);
    }

    /// Ends a job whose node did not answer.
    ///
    /// # Panics
    /// The contract refuses.
    pub fn timeout(&mut self, target: &Target, now: u64) {
        self.at(now);
        let call = IChallenges::timeoutCall { jobId: self.job, target: sol_target(target) };
        self.gas += self.court.send(WATCHER, self.court.challenges, &call).0;
        assert_eq!(self.state(), JobState::Slashed);
        self.refuse(Trick::SlashesTwice, USER, self.court.challenges, &call);
        self.over();
    }

    /// One thing that nobody may do now; `open` is what the node has yet to answer, with the right answers. What has its moment within a
    /// move, or at the end, is tried there.
    pub fn meddle(&mut self, open: &[(Target, Vec<u8>)], now: u64) {
        let mut tricks = self.tricks.clone();
        tricks.shuffle(&mut self.rng);
        self.at(now);
        let owed = open.choose(&mut self.rng).and_then(|(t, data)| Some((*t, self.answer_call(t, data)?)));
        for trick in tricks {
            let with_it = owed.as_ref().is_some_and(|(t, call)| self.meddles_with_an_answer(trick, *t, call));
            if with_it || self.meddles_with_the_job(trick) || self.asks_badly(trick) {
                break;
            }
        }
        self.at(now);
    }

    /// Tries this with an answer that the node owes, if it can be tried with one.
    fn meddles_with_an_answer(&mut self, trick: Trick, t: Target, call: &IChallenges::answerCall) -> bool {
        let challenges = self.court.challenges;
        let mut call = call.clone();
        match trick {
            Trick::AnswersLate => {
                self.court.block.timestamp = U256::from(self.demanded[&t].deadline) + U256::ONE;
                self.refuse(trick, NODE, challenges, &call);
            }
            // A list of operators is bound by those that are exported alone: the others are the node's word, which it can be held to.
            Trick::AnswersGarbage if t.kind != Kind::OpList => {
                let mut data = call.data.to_vec();
                let at = self.rng.random_range(0..data.len());
                data[at] ^= 1 << self.rng.random_range(0..8);
                call.data = data.into();
                self.refuse(trick, NODE, challenges, &call);
            }
            Trick::AnswersPartly => {
                let part = self.rng.random_range(0..call.data.len());
                call.data.truncate(part);
                self.refuse(trick, NODE, challenges, &call);
            }
            Trick::AnswersAtAnotherLength => {
                call.byteLength ^= 1;
                self.refuse(trick, NODE, challenges, &call);
            }
            Trick::TimesOutEarly => {
                self.court.block.timestamp = U256::from(self.demanded[&t].deadline);
                let early = IChallenges::timeoutCall { jobId: self.job, target: sol_target(&t) };
                self.refuse(trick, WATCHER, challenges, &early);
            }
            Trick::AnswersForAnother if t.kind == Kind::OpList => self.refuse(trick, USER, challenges, &call),
            _ => return false,
        }
        true
    }

    /// Tries this with the job or what was said of it before, if it can be tried with that.
    fn meddles_with_the_job(&mut self, trick: Trick) -> bool {
        let (challenges, market, nodes) = (self.court.challenges, self.court.market, self.court.nodes);
        let job = self.job;
        match trick {
            Trick::AnswersTwice => {
                let Some(call) = self.answered.choose(&mut self.rng).cloned() else { return false };
                self.refuse(trick, NODE, challenges, &call);
            }
            Trick::DemandsTwice => {
                let Some(call) = self.last.clone() else { return false };
                self.refuse(trick, USER, challenges, &call);
            }
            Trick::TakesPayEarly => self.refuse(trick, NODE, market, &IMarket::finalizeCall { jobId: job }),
            Trick::CancelsLate => self.refuse(trick, USER, market, &IMarket::cancelJobCall { jobId: job }),
            Trick::ExpiresAnAnswer => self.refuse(trick, USER, market, &IMarket::expireCall { jobId: job }),
            Trick::AcceptsTwice => {
                let call = IMarket::acceptJobCall { jobId: job, perInputToken: 1, perOutputToken: 2 };
                self.refuse(trick, NODE, market, &call);
            }
            Trick::LeavesEarly => {
                let stake = self.court.send(USER, nodes, &INodes::nodeCall { who: NODE }).1.stake;
                self.refuse(trick, NODE, nodes, &INodes::requestUnstakeCall { amount: stake });
            }
            Trick::SubmitsTwice => {
                let again = IMarket::submitResultCall {
                    jobId: job,
                    order: B256::ZERO,
                    outputTokens: vec![0, 0, 0, 5].into(),
                    layersRoot: B256::repeat_byte(1),
                };
                self.refuse(trick, NODE, market, &again);
            }
            _ => return false,
        }
        true
    }

    /// Tries a purchase that the market does not admit, if this is one.
    fn asks_badly(&mut self, trick: Trick) -> bool {
        let mut call = IMarket::createJobCall {
            modelId: self.court.model,
            node: NODE,
            promptTokens: vec![0, 0, 0, 5].into(),
            maxNew: 4,
            maxPrice: 1 << 40,
            sampling: U256::ZERO,
            userSeed: B256::ZERO,
        };
        match trick {
            Trick::AsksNothing => call.promptTokens = Bytes::new(),
            Trick::AsksRaggedly => call.promptTokens = vec![0, 0, 0, 5, 0, 0].into(),
            Trick::AsksTooMuch => call.maxNew = self.rng.random_range(1 << 20..=u32::MAX),
            Trick::AsksForNoToken => call.maxNew = 0,
            Trick::AsksAnUnknownModel => call.modelId = B256::from(self.rng.random::<[u8; 32]>()),
            // A token of the prompt costs 1, four of the answer 2 each.
            Trick::Underpays => call.maxPrice = self.rng.random_range(0..9),
            _ => return false,
        }
        self.refuse(trick, USER, self.court.market, &call);
        true
    }

    /// What can be tried once a job has ended.
    fn over(&mut self) {
        let (job, challenges, market) = (self.job, self.court.challenges, self.court.market);
        if let Some(call) = self.last.clone() {
            self.refuse(Trick::DemandsAfterTheEnd, USER, challenges, &call);
        }
        self.refuse(Trick::TakesPayAfterTheEnd, NODE, market, &IMarket::finalizeCall { jobId: job });
        self.refuse(Trick::ExpiresAfterTheEnd, USER, market, &IMarket::expireCall { jobId: job });
    }

    /// Announces a claim and proves it in the next block.
    ///
    /// # Errors
    /// The contract does not believe it.
    pub fn accuse(&mut self, claim: witness::Claim, proof: &witness::Witness) -> Result<(), Revert> {
        let (job, challenges, salt) = (self.job, self.court.challenges, B256::repeat_byte(7));
        let claim = Claim::from(claim);
        let hidden = IChallenges::commitmentOfCall { jobId: job, claim: claim.clone(), sender: WATCHER, salt };
        let (_, commitment) = self.court.send(WATCHER, challenges, &hidden);
        let announce = IChallenges::announceCall { jobId: job, commitment };
        let prove = IChallenges::proveFraudCall { jobId: job, claim, salt, witness: Witness::from(proof) };
        self.refuse(Trick::ProvesUnannounced, WATCHER, challenges, &prove);
        self.gas += self.court.send(WATCHER, challenges, &announce).0;
        self.refuse(Trick::ProvesHastily, WATCHER, challenges, &prove);
        if self.tries(Trick::CopiesAProof) || self.tries(Trick::TakesAnothersReward) {
            // Whoever copies an announcement has announced nothing: it is bound to its sender.
            self.court.send(USER, challenges, &announce);
        }
        self.court.pass(1);
        self.refuse(Trick::CopiesAProof, USER, challenges, &prove);
        let mut spoilt = prove.clone();
        let mut page = spoilt.witness.page.to_vec();
        let at = self.rng.random_range(0..page.len());
        page[at] ^= 1 << self.rng.random_range(0..8);
        spoilt.witness.page = page.into();
        self.refuse(Trick::ProvesSomethingElse, WATCHER, challenges, &spoilt);
        self.gas += self.court.call(WATCHER, challenges, &prove)?.gas;
        assert_eq!(self.state(), JobState::Slashed);
        let (settle, reclaim) =
            (IChallenges::settleRewardCall { jobId: job }, IChallenges::reclaimFeesCall { jobId: job });
        self.refuse(Trick::ProvesTwice, WATCHER, challenges, &prove);
        self.refuse(Trick::TakesTheRewardEarly, WATCHER, challenges, &settle);
        let contest = IChallenges::contestRewardCall { jobId: job, salt };
        self.refuse(Trick::TakesAnothersReward, USER, challenges, &contest);
        self.over();
        self.court.pass(TURN + 1);
        self.gas += self.court.send(WATCHER, challenges, &settle).0;
        self.gas += self.court.send(WATCHER, challenges, &reclaim).0;
        self.refuse(Trick::TakesTheRewardTwice, WATCHER, challenges, &settle);
        self.refuse(Trick::TakesFeesTwice, WATCHER, challenges, &reclaim);
        Ok(())
    }

    /// Lets the window and every turn pass; the node takes its pay.
    ///
    /// # Panics
    /// The job does not become final.
    pub fn finalize(&mut self) {
        self.court.pass(self.court.window + 2 * TURN + 2);
        self.court.send(NODE, self.court.market, &IMarket::finalizeCall { jobId: self.job });
        assert_eq!(self.state(), JobState::Final);
        self.over();
    }

    /// The job as the market has it.
    pub fn state(&mut self) -> JobState {
        self.court.send(WATCHER, self.court.market, &IMarket::jobCall { jobId: self.job }).1.state
    }

    /// What somebody has in all: tokens, what the market owes them, stake.
    pub fn wealth(&mut self, who: Address) -> U256 {
        let (market, token, nodes) = (self.court.market, self.court.token, self.court.nodes);
        let held = self.court.send(USER, token, &IERC20::balanceOfCall { account: who }).1;
        let owed = self.court.send(USER, market, &IMarket::withdrawableCall { account: who }).1;
        held + owed + U256::from(self.court.send(USER, nodes, &INodes::nodeCall { who }).1.stake)
    }

    /// Bonds of the node that are still bound.
    pub fn locked(&mut self) -> u128 {
        self.court.send(USER, self.court.nodes, &INodes::nodeCall { who: NODE }).1.locked
    }

    /// That the market holds what it owes.
    ///
    /// # Panics
    /// It does not.
    pub fn conserved(&mut self) {
        let (market, token) = (self.court.market, self.court.token);
        let held = self.court.send(USER, token, &IERC20::balanceOfCall { account: market }).1;
        let escrow = self.court.send(USER, market, &IMarket::totalEscrowCall {}).1;
        let owed = self.court.send(USER, market, &IMarket::totalWithdrawableCall {}).1;
        let fees = self.court.send(USER, market, &IMarket::totalFeesCall {}).1;
        let rewards = self.court.send(USER, market, &IMarket::totalRewardsCall {}).1;
        assert_eq!(held, escrow + owed + fees + rewards, "{escrow}, {owed}, {fees}, {rewards}");
    }
}
