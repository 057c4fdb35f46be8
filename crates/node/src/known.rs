//! A job under way: what the journal has of it, what the chain said when it was last asked, and whether to ask again.

use sworn_bindings::JobState;
use sworn_chain::{Head, LEAD};

use crate::journal::JobRecord;
use crate::plan::JobView;

/// Blocks after which a job is asked about that there are no news of.
const STALE: u64 = 64;

pub(crate) struct Known {
    pub(crate) record: JobRecord,
    /// Whether something was heard of it since the last look, or done for it.
    news: bool,
    look: Option<Look>,
}

/// A job as it was found.
struct Look {
    job: JobView,
    /// The latest block then, and when there were last news of the job.
    at: u64,
    news: u64,
}

impl Known {
    pub(crate) fn new(record: JobRecord) -> Self {
        Known { record, news: true, look: None }
    }

    /// Something was heard of it, or done for it.
    pub(crate) fn heard(&mut self) {
        self.news = true;
    }

    /// What was known of the chain is so no more.
    pub(crate) fn forget_chain(&mut self) {
        self.look = None;
    }

    /// It was looked up when this was the latest block.
    pub(crate) fn found(&mut self, record: JobRecord, job: JobView, head: Head) {
        let quiet_since = self.look.as_ref().map(|l| l.news).filter(|_| !self.news);
        let look = Look { job, at: head.number, news: quiet_since.unwrap_or(head.number) };
        *self = Known { record, news: false, look: Some(look) };
    }

    /// As it was last found.
    pub(crate) fn job(&self) -> Option<&JobView> {
        self.look.as_ref().map(|l| &l.job)
    }

    /// Whether the chain is to be asked: there are news of it, or it may be otherwise by now though nothing was heard.
    pub(crate) fn is_due(&self, head: Head, accept_open: bool) -> bool {
        let Some(look) = self.look.as_ref().filter(|_| !self.news) else { return true };
        let waits = match look.job.state {
            // What an open job offers rises with time.
            JobState::Open => !accept_open && head.timestamp <= look.job.deadline,
            JobState::Assigned | JobState::Submitted => {
                head.timestamp <= look.job.deadline && look.job.demands.is_empty()
            }
            _ => false,
        };
        // A server that tells of an event may be another than the one that then tells of a state before it.
        !waits || head.number <= look.news + LEAD || head.number >= look.at + STALE
    }
}
