//! One job's case: a move at a time, from the audit to the last reward.

use std::time::{Duration, Instant};

use alloy::primitives::{Address, B256, U256};
use alloy::sol_types::SolCall;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sworn_bindings::{self as sol, IChallenges, ModelShape, TraceContext, opening_id};
use sworn_chain::{Head, Receipt};
use sworn_commit::witness::Claim;
use sworn_commit::{Hash, sequence};
use sworn_isa::SectionKind;

use super::account::Purse;
use super::{ANNOUNCEMENTS, Done, Purpose, SERVED_TRIES, Subject, Watcher, endpoint, millis, tx};
use crate::Result;
use crate::event::WatcherEvent;
use crate::game::{Game, OpeningState, Outcome, Target};
use crate::job::{Announcement, Job, sol_target};
use crate::receipts;
use crate::solver::{self, Accusation, Asked, Clock, Demand, Move};

impl<F: FnMut(&WatcherEvent) + Send> Watcher<F> {
    pub(super) async fn decide_job(&mut self, id: u64, head: Head) -> Result<()> {
        let Some(job) = self.jobs.get_mut(&id) else { return Ok(()) };
        let Some(game) = &job.game else { return Ok(()) };
        match game.outcome {
            Some(Outcome::Slashed) if self.sender.is_some() => return self.collect(id, head).await,
            Some(_) => {
                job.done = true;
                return Ok(());
            }
            None => {}
        }
        if job.muted {
            return Ok(());
        }
        let Some(executor) = self.executors.get(&job.model).cloned() else { return Ok(()) };
        if job.lacks_tokens() {
            self.find_tokens(id, head);
            return Ok(());
        }
        let Some(own) = &job.own else {
            job.busy = true;
            let (prompt, output, run) = (job.prompt.clone(), job.output.clone(), job.run);
            self.compute(Subject::Job(id), move || {
                let start = Instant::now();
                let result = executor.audit(&prompt, &output, &run).map_err(|e| e.to_string());
                Done::Audit(result, millis(start))
            });
            return Ok(());
        };
        let clock = Clock { now: head.timestamp, margin: self.margin };
        let next = solver::next(game, executor.model().program(), own, &job.learned, clock);
        job.right = next == Move::NodeIsRight;
        match next {
            Move::NodeIsRight | Move::Wait(_) => {}
            Move::FetchTrace => {
                job.busy = true;
                let (dims, root, node) = (game.dims, game.layers_root, job.node);
                // A node that dawdles must not use up the window.
                let left = game.window_end.saturating_sub(head.timestamp);
                let patience = Duration::from_secs((left / 8).max(1));
                let (chain, served) = (self.chain.clone(), self.served.clone());
                self.fetch(Subject::Job(id), async move {
                    let endpoint = endpoint(&chain, node).await;
                    Done::Trace(match endpoint {
                        Ok(endpoint) => served.trace(&endpoint, id, &dims, &root, patience).await,
                        Err(e) => Err(e),
                    })
                });
            }
            Move::FetchTensor { at, root, .. } => {
                job.busy = true;
                let dims = game.dims;
                let kind = SectionKind::of_layer(at.0, dims.layers);
                let ops = kind.map_or(&[][..], |k| &executor.model().program().section(k).ops);
                let t = dims.position(at.0, at.1);
                let lens: Vec<usize> = ops.iter().map(|d| d.bytes(t) as usize).collect();
                let patience = Duration::from_secs((self.challenger_turn / 8).max(1));
                let (chain, served, node) = (self.chain.clone(), self.served.clone(), job.node);
                self.fetch(Subject::Job(id), async move {
                    let endpoint = endpoint(&chain, node).await;
                    Done::Tensor(
                        at,
                        match endpoint {
                            Ok(endpoint) => served.tensor(&endpoint, id, at, &lens, &root, patience).await,
                            Err(e) => Err(e),
                        },
                    )
                });
            }
            Move::Replay(layer, row) => {
                job.busy = true;
                let differs = own.trace.layers_root() != game.layers_root || own.selected != own.output;
                let position = game.dims.position(layer, row);
                let (prompt, output, run) = (job.prompt.clone(), job.output.clone(), job.run);
                let trace = own.trace.clone();
                if differs && !job.told_dispute {
                    job.told_dispute = true;
                    self.tell(WatcherEvent::Disputed { job: id, layer, row, position });
                }
                self.compute(Subject::Job(id), move || {
                    Done::Replay((layer, row), executor.replay(&prompt, &output, &run, (layer, row), &trace))
                });
            }
            Move::Broken(reason) => {
                job.muted = true;
                self.tell(WatcherEvent::SelfCheckFailed { job: id, reason });
            }
            Move::TooLate => {
                job.muted = true;
                self.error(Some(id), "the node is wrong, but every term for demands is over");
            }
            Move::Timeout(t) => self.time_out(id, &t),
            Move::Demand(_) | Move::Accuse(_) if self.sender.is_some() && !job.checked => {
                job.busy = true;
                let (prompt, output, run) = (job.prompt.clone(), job.output.clone(), job.run);
                let (trace, selected) = (own.trace.clone(), own.selected.clone());
                self.compute(Subject::Job(id), move || {
                    let start = Instant::now();
                    let result = executor.self_check(&prompt, &output, &run, &trace, &selected);
                    Done::SelfCheck(result, millis(start))
                });
            }
            Move::Demand(d) => self.demand(id, &d),
            Move::Accuse(_) if self.sender.is_none() => self.would(id, "prove an element wrong"),
            Move::Accuse(a) => self.accuse(id, *a, head).await?,
        }
        Ok(())
    }

    /// Tells what a watcher with a key would do, and leaves the job.
    fn would(&mut self, id: u64, next: impl Into<String>) {
        self.jobs.get_mut(&id).into_iter().for_each(|j| j.muted = true);
        self.tell(WatcherEvent::WouldChallenge { job: id, next: next.into() });
    }

    fn demand(&mut self, id: u64, d: &Demand) {
        let target = sol_target(&d.target).to_string();
        if self.sender.is_none() {
            return self.would(id, format!("demand {target}"));
        }
        // The parent in the key: an opening demanded again from nearer the root is another transaction.
        let parent = d.parent.map_or("root".to_owned(), |p| sol_target(&p).to_string());
        let key = format!("{id}/demand/{target}/{parent}");
        self.send_challenges(id, key, &demand_call(id, d), Purpose::Demand(target));
    }

    /// Has the contract note that a demand was not answered.
    fn time_out(&mut self, id: u64, target: &Target) {
        let target = sol_target(target);
        if self.sender.is_none() {
            return self.would(id, format!("time out {target}"));
        }
        let call = IChallenges::timeoutCall { jobId: U256::from(id), target: target.clone() };
        self.send_challenges(id, format!("{id}/timeout/{target}"), &call, Purpose::Timeout(target.to_string()));
    }

    /// Gets the tokens of a receipt on trial: from the node over HTTP, or else by a demand that it must answer.
    fn find_tokens(&mut self, id: u64, head: Head) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let (Some(game), Some(lodged)) = (&job.game, &job.receipt) else { return };
        if job.served_tries < SERVED_TRIES {
            job.busy = true;
            let (channel, sequence, node) = (lodged.channelId, lodged.sequence, job.node);
            let (chain, patience) = (self.chain.clone(), self.patience());
            self.fetch(Subject::Job(id), async move {
                Done::Tokens(match endpoint(&chain, node).await {
                    Ok(endpoint) => receipts::answered(&endpoint, channel, sequence, patience).await.map(Box::new),
                    Err(e) => Err(e),
                })
            });
            return;
        }
        for output in [false, true] {
            let target = Target::tokens(output);
            match game.openings.get(&target).map(|o| &o.state) {
                Some(OpeningState::Answered { .. }) => {}
                Some(OpeningState::Demanded { deadline }) if head.timestamp > *deadline => {
                    return self.time_out(id, &target);
                }
                Some(OpeningState::Demanded { .. }) => {}
                None if head.timestamp + self.margin > game.window_end => {
                    job.muted = true;
                    return self.error(Some(id), "the node hides the tokens, and the term for demanding them is over");
                }
                None => {
                    let node_hash = if output { lodged.outputHash } else { lodged.inputHash }.0;
                    return self.demand(id, &Demand { target, node_hash, ..Demand::EMPTY });
                }
            }
        }
    }

    /// Has the judge on chain confirm the proof, announces, and a block later proves.
    async fn accuse(&mut self, id: u64, a: Accusation, head: Head) -> Result<()> {
        let me = self.me;
        let Some(job) = self.jobs.get_mut(&id) else { return Ok(()) };
        let (Some(game), Some(executor)) = (&job.game, self.executors.get(&job.model)) else { return Ok(()) };
        let claim = sol::Claim::from(a.claim);
        if job.judged != Some(a.claim) {
            job.busy = true;
            let model = executor.model();
            let shape = ModelShape::of(model.manifest(), model.program());
            let (input, output) = (sequence::hash(&job.prompt), sequence::hash(&job.output));
            let context = TraceContext::new(&game.dims, game.layers_root, input, output, &job.run);
            let (chain, deployment) = (self.chain.clone(), self.config.deployment.clone());
            self.fetch(Subject::Job(id), async move {
                let call = sol::IStepVerifier::judgeCall {
                    trace: context,
                    model: shape,
                    claim,
                    witness: (&a.proof.witness).into(),
                };
                // An RPC that stumbles says nothing about the witness: only the judge's own word ends this job's case.
                let verifier = deployment.step_verifier;
                let verdict = sworn_chain::persistently("judge", || chain.simulate("judge", me, verifier, &call)).await;
                Done::Judged(
                    a.claim,
                    match verdict {
                        Ok(v) if v.claimed == v.computed => {
                            Err("the judge on chain finds the element right".to_owned())
                        }
                        Ok(_) => Ok(()),
                        Err(e) => Err(format!("the judge on chain does not accept the witness: {e}")),
                    },
                )
            });
            return Ok(());
        }
        let announced = match &job.announced {
            Some(known) if known.claim() == a.claim => known.clone(),
            _ => {
                let Claim { layer, row, op, element } = a.claim;
                let salt = B256::from(StdRng::from_os_rng().random::<[u8; 32]>());
                let commitment = commitment(id, &a.claim, me, salt);
                let announcement = Announcement { layer, row, op, element, salt, commitment };
                // Without the salt the reward is lost, so it is on disk before anybody hears of it.
                self.store.put(ANNOUNCEMENTS, &id.to_string(), &announcement)?;
                job.announced = Some(announcement.clone());
                announcement
            }
        };
        match game.announcements.get(&(me, announced.commitment)) {
            None => {
                let call = IChallenges::announceCall { jobId: U256::from(id), commitment: announced.commitment };
                let key = format!("{id}/announce/{}", announced.commitment);
                self.send_challenges(id, key, &call, Purpose::Announce(announced.commitment));
            }
            Some(block) if head.number > *block => {
                let witness = (&a.proof.witness).into();
                let call = IChallenges::proveFraudCall { jobId: U256::from(id), claim, salt: announced.salt, witness };
                let size = call.abi_encoded_size() + 4;
                let key = format!("{id}/prove/{}", announced.commitment);
                self.send_challenges(id, key, &call, Purpose::Prove(Box::new(a), size));
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// After a slash: the reward, the fees.
    async fn collect(&mut self, id: u64, head: Head) -> Result<()> {
        let me = self.me;
        let Some(job) = self.jobs.get_mut(&id) else { return Ok(()) };
        let Some(game) = &job.game else { return Ok(()) };
        let jobid = U256::from(id);
        let mut waits = false;
        if let Some(fraud) = &game.fraud {
            let earlier = job
                .announced
                .as_ref()
                .filter(|a| a.claim() == fraud.claim && game.announcements.contains_key(&(me, a.commitment)));
            if fraud.by == me {
                if game.settled.is_none() {
                    if head.timestamp > fraud.contest_end {
                        let call = IChallenges::settleRewardCall { jobId: jobid };
                        self.send_challenges(id, format!("{id}/settle"), &call, Purpose::Settle);
                        return Ok(());
                    }
                    waits = true;
                }
            } else if let (Some(a), false) = (earlier, job.contested) {
                job.contested = true;
                let call = IChallenges::contestRewardCall { jobId: jobid, salt: a.salt };
                self.send_challenges(id, format!("{id}/contest"), &call, Purpose::Contest);
                return Ok(());
            }
        }
        if game.paid(me) && !game.reclaimed.contains(&me) {
            let call = IChallenges::reclaimFeesCall { jobId: jobid };
            self.send_challenges(id, format!("{id}/reclaim"), &call, Purpose::Reclaim);
        } else if !waits {
            job.done = true;
            let (purse, block) = (if job.receipt.is_none() { Purse::Market } else { Purse::Channels }, job.after_block);
            self.earned(purse, block);
        }
        Ok(())
    }

    /// A task of a job's is over.
    pub(super) fn finished_job(&mut self, id: u64, done: Done) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.busy = false;
        match done {
            Done::Audit(Ok((own, root)), ms) => {
                let game = job.game.as_ref();
                let equal = game.is_some_and(|g| own.trace.layers_root() == g.layers_root);
                let ok = equal && own.selected == own.output;
                let positions = game.map_or(0, |g| g.dims.positions());
                let (claimed_root, own_root) = (B256::from(job.trace_root), B256::from(root));
                job.own = Some(own);
                self.tell(WatcherEvent::Audited { job: id, ok, positions, claimed_root, own_root, ms });
            }
            Done::SelfCheck(Ok(checks), ms) => {
                job.checked = true;
                self.tell(WatcherEvent::SelfChecked { job: id, checks, ms });
            }
            Done::Audit(Err(reason), _)
            | Done::SelfCheck(Err(reason), _)
            | Done::Replay(_, Err(reason))
            | Done::Judged(_, Err(reason)) => {
                job.muted = true;
                self.tell(WatcherEvent::SelfCheckFailed { job: id, reason });
            }
            Done::Judged(claim, Ok(())) => job.judged = Some(claim),
            Done::Replay(at, Ok(replay)) => {
                if let Some(own) = &mut job.own {
                    own.replays.insert(at, replay);
                }
            }
            Done::Tokens(result) => {
                let found =
                    result.and_then(|a| match job.receipt.as_ref().is_some_and(|r| r.is_of(&a.prompt, &a.output)) {
                        true => Ok(a),
                        false => Err("what the node serves are not the receipt's tokens".into()),
                    });
                let (served, note) = (found.is_ok(), found.as_ref().err().cloned().unwrap_or_default());
                job.served_tries += 1;
                match found {
                    Ok(a) => job.found(a.prompt, a.output),
                    Err(_) => job.not_before = Some(Instant::now() + Duration::from_millis(300)),
                }
                self.tell(WatcherEvent::Asked { job: id, what: "tokens".into(), served, note });
            }
            Done::Receipts(..) | Done::Checked(..) => {}
            Done::Trace(result) => {
                let (served, note) = (result.is_ok(), result.as_ref().err().cloned().unwrap_or_default());
                job.served_tries += 1;
                match result {
                    Ok(tree) => job.learned.trace = Asked::Got(tree),
                    Err(_) if job.served_tries >= SERVED_TRIES => job.learned.trace = Asked::Refused,
                    Err(_) => job.not_before = Some(Instant::now() + Duration::from_millis(300)),
                }
                self.tell(WatcherEvent::Asked { job: id, what: "trace".into(), served, note });
            }
            Done::Tensor(at, result) => {
                let (served, note) = (result.is_ok(), result.as_ref().err().cloned().unwrap_or_default());
                job.learned.tensors.insert(at, result.map_or(Asked::Refused, Asked::Got));
                let what = format!("operators of layer {} row {}", at.0, at.1);
                self.tell(WatcherEvent::Asked { job: id, what, served, note });
            }
            Done::Tx(purpose, Ok(receipt)) => {
                job.after_block = receipt.block;
                job.failures = 0;
                self.sent(id, purpose, &receipt);
            }
            Done::Tx(purpose, Err(e)) => {
                job.failures += 1;
                // Another's transaction may have come first: look again when the chain has moved.
                let pause = Duration::from_millis(500 * u64::from(job.failures.min(20)));
                job.not_before = Some(Instant::now() + pause);
                if matches!(purpose, Purpose::Contest) {
                    tracing::debug!(job = id, error = %e, "nothing to collect");
                } else {
                    self.error(Some(id), e.to_string());
                }
            }
        }
    }

    fn sent(&mut self, id: u64, purpose: Purpose, receipt: &Receipt) {
        let tx = tx(receipt);
        let position = |job: &Job, c: &Claim| job.game.as_ref().map_or(0, |g: &Game| g.dims.position(c.layer, c.row));
        let settle = |call: &str| WatcherEvent::Sent { job: Some(id), call: call.into(), tx: tx.clone() };
        let event = match purpose {
            Purpose::Demand(target) => WatcherEvent::Demanded { job: id, target, tx },
            Purpose::Announce(commitment) => WatcherEvent::Announced { job: id, commitment, tx },
            Purpose::Prove(a, calldata) => WatcherEvent::Proven {
                job: id,
                layer: a.claim.layer,
                row: a.claim.row,
                position: self.jobs.get(&id).map_or(0, |j| position(j, &a.claim)),
                op: a.claim.op,
                opcode: a.opcode.name().to_owned(),
                element: a.claim.element,
                claimed: a.proof.claimed,
                computed: a.proof.computed,
                calldata,
                tx,
            },
            Purpose::Timeout(target) => WatcherEvent::TimedOut { job: id, target, tx },
            Purpose::Batch(call, _) => settle(call),
            Purpose::Contest => WatcherEvent::Contested { job: id, tx },
            Purpose::Settle => settle("settleReward"),
            Purpose::Reclaim => settle("reclaimFees"),
        };
        self.tell(event);
    }
}

fn commitment(job: u64, claim: &Claim, who: Address, salt: B256) -> B256 {
    let Claim { layer, row, op, element } = *claim;
    let call = (U256::from(job), layer, row, op, element, who, salt);
    use alloy::sol_types::SolValue;
    alloy::primitives::keccak256(call.abi_encode_params())
}

/// A demand as a call of the contract.
pub fn demand_call(job: u64, d: &Demand) -> IChallenges::demandCall {
    let id = U256::from(job);
    let words = |h: &[Hash]| h.iter().map(B256::from).collect::<Vec<_>>();
    IChallenges::demandCall {
        jobId: id,
        parent: d.parent.map_or(B256::ZERO, |p| opening_id(id, &sol_target(&p))),
        target: sol_target(&d.target),
        proof: IChallenges::DemandProof {
            nodeHash: d.node_hash.into(),
            path: words(&d.path),
            opRoots: words(&d.op_roots),
            descriptor: d.descriptor.map_or_else(Default::default, |d| d.encode().to_vec().into()),
            descriptorProof: words(&d.descriptor_proof),
        },
    }
}
