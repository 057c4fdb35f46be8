//! One challenge before the contracts in memory, and those who meddle with it: whatever the rules forbid is tried while it runs, and must
//! be refused.

use std::collections::HashMap;

use alloy::primitives::{Address, B256, Bytes, U256};
use alloy::sol_types::SolCall;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use sworn_bindings::{Claim, IChallenges, IERC20, IMarket, INodes, JobState, Revert, Witness};
use sworn_commit::witness;
use sworn_watcher::game::{Kind, Target};
use sworn_watcher::solver::Demand;
use sworn_watcher::{demand_call, sol_target};

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
    /// Chooses what is tried against the rules; none: nothing is.
    meddler: Option<StdRng>,
    /// How often that was refused.
    pub refused: u64,
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
            meddler: None,
            refused: 0,
        }
    }

    /// Lets somebody meddle, as a seed says.
    pub fn meddled(&mut self, seed: u64) {
        self.meddler = Some(StdRng::seed_from_u64(seed));
    }

    /// Block and time of a second of the game.
    pub(crate) fn at(&mut self, now: u64) {
        self.court.block.number = self.number + U256::from(now);
        self.court.block.timestamp = self.time + U256::from(now);
    }

    /// Tries what must be refused.
    fn refuse<C: SolCall>(&mut self, what: &str, from: Address, to: Address, call: &C) {
        if let Ok(done) = self.court.call(from, to, call) {
            panic!("{what}: {} was allowed, for {} gas", C::SIGNATURE, done.gas);
        }
        self.refused += 1;
    }

    /// Demands an opening.
    ///
    /// # Panics
    /// The contract refuses.
    pub fn demand(&mut self, d: &Demand, payer: Address, now: u64) {
        self.at(now);
        let (call, challenges) = (demand_call(self.job.to(), d), self.court.challenges);
        if let Some(rng) = &mut self.meddler {
            let mut other = call.clone();
            let hashes = other.proof.path.iter_mut().chain([&mut other.proof.nodeHash]);
            let mut hashes: Vec<_> = hashes.chain(other.proof.opRoots.iter_mut()).collect();
            let at = rng.random_range(0..hashes.len());
            hashes[at].0[rng.random_range(0..32)] ^= 1 << rng.random_range(0..8);
            self.refuse("another node than was committed to", WATCHER, challenges, &other);
        }
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
        if self.meddler.is_some() {
            self.refuse("a second slash", USER, self.court.challenges, &call);
            self.over();
        }
    }

    /// One thing that nobody may do now; `open` is what the node has yet to answer, with the right answers.
    pub fn meddle(&mut self, open: &[(Target, Vec<u8>)], now: u64) {
        let Some(mut rng) = self.meddler.take() else { return };
        self.at(now);
        let (challenges, market, nodes) = (self.court.challenges, self.court.market, self.court.nodes);
        let job = self.job;
        let chosen = open.choose(&mut rng).and_then(|(t, data)| Some((*t, self.answer_call(t, data)?)));
        match (rng.random_range(0..12), chosen) {
            (0, Some((t, call))) => {
                self.court.block.timestamp = U256::from(self.demanded[&t].deadline) + U256::ONE;
                self.refuse("an answer a second late", NODE, challenges, &call);
            }
            // A list of operators is bound by those that are exported alone: the others are the node's word, which it can be held to.
            (1, Some((t, mut call))) if t.kind != Kind::OpList => {
                let mut data = call.data.to_vec();
                let at = rng.random_range(0..data.len());
                data[at] ^= 1 << rng.random_range(0..8);
                call.data = data.into();
                self.refuse("an answer that was not committed to", NODE, challenges, &call);
            }
            (2, Some((_, mut call))) => {
                call.data = Bytes::copy_from_slice(&call.data[..rng.random_range(0..call.data.len())]);
                self.refuse("a part of an answer", NODE, challenges, &call);
            }
            (3, Some((_, mut call))) => {
                call.byteLength ^= 1;
                self.refuse("another length than was demanded", NODE, challenges, &call);
            }
            (4, Some((t, _))) => {
                self.court.block.timestamp = U256::from(self.demanded[&t].deadline);
                let early = IChallenges::timeoutCall { jobId: job, target: sol_target(&t) };
                self.refuse("a timeout in the last second of the turn", WATCHER, challenges, &early);
            }
            (5, Some((t, call))) if t.kind == Kind::OpList => {
                self.refuse("operators told by somebody else", USER, challenges, &call);
            }
            (0..6, _) => {
                if let Some(call) = self.answered.choose(&mut rng).cloned() {
                    self.refuse("a second answer", NODE, challenges, &call);
                }
            }
            (6, _) => {
                if let Some(call) = self.last.clone() {
                    self.refuse("the same demand again", USER, challenges, &call);
                }
            }
            (7, _) => self.refuse("pay before the end", NODE, market, &IMarket::finalizeCall { jobId: job }),
            (8, _) => self.refuse("a job taken back", USER, market, &IMarket::cancelJobCall { jobId: job }),
            (9, _) => self.refuse("late, though it is answered", USER, market, &IMarket::expireCall { jobId: job }),
            (10, _) => {
                let stake = self.court.send(USER, nodes, &INodes::nodeCall { who: NODE }).1.stake;
                self.refuse("a stake that is bound", NODE, nodes, &INodes::requestUnstakeCall { amount: stake });
            }
            _ => {
                let again = IMarket::submitResultCall {
                    jobId: job,
                    order: B256::ZERO,
                    outputTokens: vec![0, 0, 0, 5].into(),
                    layersRoot: B256::repeat_byte(1),
                };
                self.refuse("a second result", NODE, market, &again);
            }
        }
        self.at(now);
        self.meddler = Some(rng);
    }

    /// What can be tried once a job has ended.
    fn over(&mut self) {
        let (job, challenges, market) = (self.job, self.court.challenges, self.court.market);
        if let Some(call) = self.last.clone() {
            self.refuse("a demand after the end", USER, challenges, &call);
        }
        self.refuse("pay after the end", NODE, market, &IMarket::finalizeCall { jobId: job });
        self.refuse("late after the end", USER, market, &IMarket::expireCall { jobId: job });
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
        let meddler = self.meddler.clone();
        if meddler.is_some() {
            self.refuse("a proof that was not announced", WATCHER, challenges, &prove);
        }
        self.gas += self.court.send(WATCHER, challenges, &announce).0;
        if meddler.is_some() {
            self.refuse("a proof in the block of its announcement", WATCHER, challenges, &prove);
            // Whoever copies an announcement has announced nothing: it is bound to its sender.
            self.court.send(USER, challenges, &announce);
        }
        self.court.pass(1);
        if let Some(mut rng) = meddler {
            self.refuse("a copied proof", USER, challenges, &prove);
            let mut spoilt = prove.clone();
            let mut page = spoilt.witness.page.to_vec();
            let at = rng.random_range(0..page.len());
            page[at] ^= 1 << rng.random_range(0..8);
            spoilt.witness.page = page.into();
            self.refuse("a proof of something else", WATCHER, challenges, &spoilt);
        }
        self.gas += self.court.call(WATCHER, challenges, &prove)?.gas;
        assert_eq!(self.state(), JobState::Slashed);
        let (settle, reclaim) =
            (IChallenges::settleRewardCall { jobId: job }, IChallenges::reclaimFeesCall { jobId: job });
        if self.meddler.is_some() {
            self.refuse("a second proof", WATCHER, challenges, &prove);
            self.refuse("the reward before the contest is over", WATCHER, challenges, &settle);
            let contest = IChallenges::contestRewardCall { jobId: job, salt };
            self.refuse("the reward of an announcement that is another's", USER, challenges, &contest);
            self.over();
        }
        self.court.pass(TURN + 1);
        self.gas += self.court.send(WATCHER, challenges, &settle).0;
        self.gas += self.court.send(WATCHER, challenges, &reclaim).0;
        if self.meddler.is_some() {
            self.refuse("the reward twice", WATCHER, challenges, &settle);
            self.refuse("fees twice", WATCHER, challenges, &reclaim);
        }
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
        if self.meddler.is_some() {
            self.over();
        }
    }

    /// The job as the market has it.
    pub fn state(&mut self) -> JobState {
        self.court.send(WATCHER, self.court.market, &IMarket::jobCall { jobId: self.job }).1.state
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
