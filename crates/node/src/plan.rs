//! What to do next: a pure function of the chain's state and the journal's, so that a restart forgets nothing.

use alloy::primitives::{B256, U256};
use sworn_bindings::JobState;

pub use crate::channel::redeem::Step;

/// A demand that the chain still counts as unanswered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DemandView {
    /// Its opening.
    pub opening: B256,
    /// Answer by.
    pub deadline: u64,
}

/// A job, as the chain and the journal have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobView {
    /// Its id.
    pub id: U256,
    /// On chain.
    pub state: JobState,
    /// On chain: accept by, submit by, or the end of the window.
    pub deadline: u64,
    /// Whether the chain says that the job is this node's.
    pub mine: bool,
    /// Whether the node has its model.
    pub servable: bool,
    /// Whether the journal has its answer.
    pub executed: bool,
    /// On chain: no demand unanswered, every challenger's turn over.
    pub settled: bool,
    /// Open, and its offer has risen to what the node asks.
    pub covered: bool,
    /// Unanswered demands that the node means to answer.
    pub demands: Vec<DemandView>,
}

/// All that a decision depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View<'a> {
    /// The latest block's time.
    pub now: u64,
    /// Jobs that have not ended in the journal.
    pub jobs: Vec<&'a JobView>,
    /// Whether the node takes open jobs.
    pub accept_open: bool,
    /// What the market owes the node.
    pub withdrawable: U256,
    /// Least amount that is worth a withdrawal.
    pub withdraw_at: Option<U256>,
    /// When to look after the session key, if there is one.
    pub renew_at: Option<u64>,
}

/// A step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Answer a demand.
    Answer {
        /// the job
        job: U256,
        /// what is demanded
        opening: B256,
    },
    /// Post the journal's answer.
    Submit(U256),
    /// Compute an answer.
    Execute(U256),
    /// Take an open job.
    Accept(U256),
    /// Collect a job's pay.
    Finalize(U256),
    /// End a job that came too late, so that what is left of the bond is free.
    Expire(U256),
    /// Put a job aside: nothing can follow, but for a reorganisation.
    Close(U256),
    /// Move what is owed to the account.
    Withdraw,
    /// See to it that the session key stays valid.
    Renew,
    /// Something about channels; decided by itself.
    Channel(Step),
}

impl Action {
    /// The job that it is about, if it is about one.
    pub fn job(&self) -> Option<U256> {
        match *self {
            Action::Answer { job, .. }
            | Action::Submit(job)
            | Action::Execute(job)
            | Action::Accept(job)
            | Action::Finalize(job)
            | Action::Expire(job)
            | Action::Close(job) => Some(job),
            Action::Withdraw | Action::Renew | Action::Channel(_) => None,
        }
    }
}

/// The steps that are due, the most urgent first. Steps are idempotent: one that is under way is simply named again.
pub fn decide(view: &View<'_>) -> Vec<Action> {
    let mut due: Vec<(u64, Action)> = Vec::new();
    for job in &view.jobs {
        decide_job(view, job, &mut due);
    }
    if view.withdraw_at.is_some_and(|least| view.withdrawable >= least.max(U256::ONE)) {
        due.push((u64::MAX, Action::Withdraw));
    }
    if view.renew_at.is_some_and(|at| view.now >= at) {
        due.push((u64::MAX, Action::Renew));
    }
    // Stable: equal deadlines keep the jobs' order.
    due.sort_by_key(|(deadline, _)| *deadline);
    due.into_iter().map(|(_, action)| action).collect()
}

fn decide_job(view: &View<'_>, job: &JobView, due: &mut Vec<(u64, Action)>) {
    let JobView { id, deadline, mine, servable, executed, settled, covered, .. } = *job;
    let in_time = view.now <= deadline;
    match job.state {
        JobState::Open if in_time && view.accept_open && servable && covered => {
            due.push((deadline, Action::Accept(id)))
        }
        JobState::Assigned if mine && !in_time => due.push((u64::MAX, Action::Expire(id))),
        JobState::Assigned if mine && executed => due.push((deadline, Action::Submit(id))),
        JobState::Assigned if mine && servable => due.push((deadline, Action::Execute(id))),
        // An operator who brings the model back in time still earns.
        JobState::Assigned if mine => {}
        JobState::Submitted if mine => {
            let open = job.demands.iter().filter(|d| view.now <= d.deadline);
            due.extend(open.map(|d| (d.deadline, Action::Answer { job: id, opening: d.opening })));
            if !in_time && settled {
                due.push((u64::MAX, Action::Finalize(id)));
            }
        }
        JobState::Open if in_time => {}
        // Unknown to an RPC server that is a block behind, or undone by a reorganisation that may bring it back.
        JobState::None => {}
        _ => due.push((u64::MAX, Action::Close(id))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: U256 = U256::from_limbs([7, 0, 0, 0]);

    fn job(state: JobState) -> JobView {
        JobView {
            id: ID,
            state,
            deadline: 100,
            mine: true,
            servable: true,
            executed: false,
            settled: false,
            covered: false,
            demands: vec![],
        }
    }

    fn at(now: u64, job: JobView) -> Vec<Action> {
        decide(&View { now, jobs: vec![&job], accept_open: true, ..View::default() })
    }

    #[test]
    fn a_job_from_offer_to_pay() {
        let early = JobView { mine: false, ..job(JobState::Open) };
        assert_eq!(at(100, early.clone()), [], "the auction has not come to the node's price");
        let open = JobView { covered: true, ..early };
        assert_eq!(at(100, open.clone()), [Action::Accept(ID)]);
        assert_eq!(at(101, open.clone()), [Action::Close(ID)]);
        assert_eq!(at(50, JobView { servable: false, ..open.clone() }), []);
        assert_eq!(decide(&View { jobs: vec![&open], ..View::default() }), []);

        let assigned = job(JobState::Assigned);
        assert_eq!(at(100, assigned.clone()), [Action::Execute(ID)]);
        assert_eq!(at(100, JobView { executed: true, ..assigned.clone() }), [Action::Submit(ID)]);
        assert_eq!(at(101, JobView { executed: true, ..assigned.clone() }), [Action::Expire(ID)]);
        assert_eq!(at(9, JobView { mine: false, ..assigned.clone() }), [Action::Close(ID)]);
        assert_eq!(at(9, JobView { servable: false, ..assigned }), []);

        let submitted = JobView { executed: true, settled: true, ..job(JobState::Submitted) };
        assert_eq!(at(100, submitted.clone()), []);
        assert_eq!(at(101, submitted.clone()), [Action::Finalize(ID)]);
        assert_eq!(at(101, JobView { settled: false, ..submitted }), []);
        assert_eq!(at(1, job(JobState::None)), []);
        for over in [JobState::Final, JobState::Expired, JobState::Cancelled, JobState::Slashed] {
            assert_eq!(at(1, job(over)), [Action::Close(ID)]);
        }
    }

    #[test]
    fn the_most_urgent_first() {
        let demand = |n: u8, deadline| DemandView { opening: B256::repeat_byte(n), deadline };
        let answer = |n: u8| Action::Answer { job: ID, opening: B256::repeat_byte(n) };
        let challenged = JobView {
            demands: vec![demand(1, 300), demand(2, 150), demand(3, 99)],
            settled: true,
            ..job(JobState::Submitted)
        };
        let other = U256::from(8);
        let executable = JobView { id: other, deadline: 200, ..job(JobState::Assigned) };
        let view = View {
            now: 120,
            jobs: vec![&challenged, &executable],
            withdrawable: U256::from(5),
            withdraw_at: Some(U256::from(5)),
            ..View::default()
        };
        // The third demand's time is over: answering it would only cost gas.
        assert_eq!(
            decide(&view),
            [answer(2), Action::Execute(other), answer(1), Action::Finalize(ID), Action::Withdraw]
        );
        assert_eq!(decide(&View { withdrawable: U256::from(4), jobs: vec![], ..view.clone() }), []);
        assert_eq!(decide(&View { withdraw_at: None, jobs: vec![], ..view.clone() }), []);
        assert_eq!(
            decide(&View { withdrawable: U256::ZERO, withdraw_at: Some(U256::ZERO), jobs: vec![], ..view.clone() }),
            []
        );
        for (at, due) in [(120, true), (121, false)] {
            let view = View { withdraw_at: None, jobs: vec![], renew_at: Some(at), ..view.clone() };
            assert_eq!(decide(&view) == [Action::Renew], due);
        }
    }

    /// Whatever the view, a decision names a step at most once and never one that the contracts would refuse for its time.
    #[test]
    fn decisions_are_sound() {
        let states = [JobState::Open, JobState::Assigned, JobState::Submitted, JobState::Final];
        for bits in 0u32..256 {
            let bit = |i: u32| bits >> i & 1 == 1;
            let now = if bit(0) { 100 } else { 101 };
            let demands = vec![DemandView { opening: B256::ZERO, deadline: if bit(1) { 100 } else { 101 } }];
            let state = states[(bits >> 6) as usize];
            let job =
                JobView { mine: bit(2), servable: bit(3), executed: bit(4), settled: bit(5), demands, ..job(state) };
            let actions = at(now, job.clone());
            let unique: std::collections::HashSet<_> = actions.iter().collect();
            assert_eq!(unique.len(), actions.len());
            for action in actions {
                match action {
                    Action::Accept(_) | Action::Submit(_) | Action::Execute(_) => assert!(now <= job.deadline),
                    Action::Answer { .. } => assert!(now <= job.demands[0].deadline && job.mine),
                    Action::Finalize(_) => assert!(now > job.deadline && job.settled && job.mine),
                    Action::Expire(_) => assert!(now > job.deadline && job.mine),
                    Action::Close(_) => {
                        assert!(state.is_terminal() || !job.mine || (state == JobState::Open && now > job.deadline))
                    }
                    Action::Withdraw | Action::Renew | Action::Channel(_) => panic!("nothing is owed or due"),
                }
            }
        }
    }
}
