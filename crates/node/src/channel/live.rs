//! An answer while it is made: one writer, any number of readers who may come late and leave early.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alloy::primitives::B256;
use sworn_commit::HeadRow;
use sworn_receipts::{Event, Logprobs, Refusal, TopToken};
use tokio::sync::watch;

/// A request under way.
#[derive(Debug)]
pub(crate) struct Live {
    /// What is asked.
    pub(crate) order: B256,
    /// Whether it gives way to others.
    spot: bool,
    /// Stops the execution without an answer.
    pub(crate) cancel: Arc<AtomicBool>,
    state: Mutex<State>,
    news: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    tokens: Vec<u32>,
    /// Their log-probabilities, as far as this process computed them.
    rows: Vec<Option<HeadRow>>,
    /// Output tokens that are wanted.
    wanted: u32,
    /// Tokens that some reader has taken.
    sent: u32,
    readers: usize,
    preempted: bool,
    last: Option<Event>,
}

impl Live {
    /// Nothing so far.
    pub(crate) fn new(order: B256, spot: bool) -> Arc<Self> {
        Self::from(order, spot, Vec::new())
    }

    /// With the tokens that are there already.
    pub(crate) fn from(order: B256, spot: bool, tokens: Vec<u32>) -> Arc<Self> {
        let sent = tokens.len() as u32;
        let rows = vec![None; tokens.len()];
        let state = State { tokens, rows, wanted: u32::MAX, sent, readers: 0, preempted: false, last: None };
        let (cancel, news) = (Arc::default(), watch::Sender::new(0));
        Arc::new(Live { order, spot, cancel, state: Mutex::new(state), news })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self) {
        self.news.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// The writer has a token; breaks when it is enough.
    pub(crate) fn push(&self, token: u32, row: Option<&HeadRow>) -> ControlFlow<()> {
        let enough = {
            let mut state = self.state();
            state.tokens.push(token);
            state.rows.push(row.cloned());
            state.preempted || state.tokens.len() as u32 >= state.wanted
        };
        self.tell();
        if enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// So many output tokens are enough.
    pub(crate) fn end(&self, tokens: u32) {
        let mut state = self.state();
        state.wanted = state.wanted.min(tokens.max(1));
    }

    /// As many as were taken are enough; none taken: it is not wanted at all.
    pub(crate) fn leave(&self) {
        let mut state = self.state();
        self.leave_locked(&mut state);
    }

    fn leave_locked(&self, state: &mut State) {
        match state.sent {
            _ if state.last.is_some() => {}
            0 => self.cancel.store(true, Ordering::Relaxed),
            sent => state.wanted = state.wanted.min(sent),
        }
    }

    /// How much would be lost if it gave way, in tokens; `None` if it need not, or is about to.
    pub(crate) fn stake(&self) -> Option<usize> {
        let state = self.state();
        (self.spot && !state.preempted && state.last.is_none()).then_some(state.tokens.len())
    }

    /// It gives way: its execution stops, and nothing is owed.
    pub(crate) fn preempt(&self) {
        self.state().preempted = true;
        self.cancel.store(true, Ordering::Relaxed);
    }

    /// Whether it gave way.
    pub(crate) fn is_preempted(&self) -> bool {
        self.state().preempted
    }

    /// Output tokens that are wanted.
    pub(crate) fn wanted(&self) -> u32 {
        self.state().wanted
    }

    /// The tokens that readers have taken.
    pub(crate) fn taken(&self) -> Vec<u32> {
        let state = self.state();
        state.tokens[..(state.sent as usize).min(state.tokens.len())].to_vec()
    }

    /// It is over.
    pub(crate) fn finish(&self, last: Event) {
        self.state().last = Some(last);
        self.tell();
    }

    /// It is over, without an answer.
    pub(crate) fn fail(&self, refusal: Refusal) {
        self.finish(Event::Error(refusal));
    }

    /// Reads it from the beginning.
    pub(crate) fn read(self: &Arc<Self>) -> Reader {
        self.state().readers += 1;
        Reader { live: self.clone(), news: self.news.subscribe(), next: 0, over: false, told: None }
    }
}

/// One reader. Dropping the last one ends the answer with what was taken.
#[derive(Debug)]
pub(crate) struct Reader {
    live: Arc<Live>,
    news: watch::Receiver<u64>,
    next: usize,
    over: bool,
    /// Likeliest tokens that are told beside each; none: no log-probabilities at all.
    told: Option<u8>,
}

impl Reader {
    /// Also tells log-probabilities, of so many likeliest tokens beside each.
    pub(crate) fn telling(mut self, likeliest: Option<u8>) -> Self {
        self.told = likeliest;
        self
    }

    /// The next event; `None` after the last.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        loop {
            if self.over {
                return None;
            }
            self.news.mark_unchanged();
            {
                let mut state = self.live.state();
                if let Some(token) = state.tokens.get(self.next).copied().filter(|_| (self.next as u32) < state.wanted)
                {
                    let index = self.next as u32;
                    let row = state.rows.get(self.next).and_then(Option::as_ref);
                    let logprobs = self.told.zip(row).map(|(n, row)| logprobs(row, n));
                    self.next += 1;
                    state.sent = state.sent.max(self.next as u32);
                    return Some(Event::Token { index, token, logprobs });
                }
                if let Some(last) = &state.last {
                    self.over = true;
                    return Some(last.clone());
                }
            }
            // The writer outlives its readers' interest; a closed channel would mean that it is gone.
            if self.news.changed().await.is_err() {
                return None;
            }
        }
    }
}

fn logprobs(row: &HeadRow, likeliest: u8) -> Logprobs {
    let top = row.likeliest().take(usize::from(likeliest));
    Logprobs { logprob: row.chosen(), top: top.map(|(token, logprob)| TopToken { token, logprob }).collect() }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.live.state();
        state.readers = state.readers.saturating_sub(1);
        if state.readers == 0 {
            self.live.leave_locked(&mut state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sworn_receipts::Code;

    fn error() -> Event {
        Event::Error(Refusal::new(Code::Failed, "over"))
    }

    #[tokio::test]
    async fn readers_see_all_of_it_whenever_they_come() {
        let live = Live::new(B256::ZERO, false);
        let mut early = live.read();
        let reading = tokio::spawn(async move {
            let mut seen = Vec::new();
            while let Some(event) = early.next().await {
                seen.push(event);
            }
            seen
        });
        for token in 0..5 {
            assert!(live.push(token, None).is_continue());
            tokio::task::yield_now().await;
        }
        live.finish(error());
        let mut late = live.read();
        let mut again = Vec::new();
        while let Some(event) = late.next().await {
            again.push(event);
        }
        assert_eq!(again.len(), 6);
        assert_eq!(again.last(), Some(&error()));
        assert_eq!(reading.await.unwrap(), again);
        drop(late);
        assert!(!live.cancel.load(Ordering::Relaxed) && live.wanted() == u32::MAX, "it was over");
    }

    #[tokio::test]
    async fn who_leaves_ends_it_where_they_were() {
        let live = Live::new(B256::ZERO, false);
        let (mut a, b) = (live.read(), live.read());
        let _ = (live.push(1, None), live.push(2, None), live.push(3, None));
        a.next().await;
        a.next().await;
        drop(b);
        assert_eq!(live.wanted(), u32::MAX);
        drop(a);
        assert_eq!((live.wanted(), live.taken()), (2, vec![1, 2]));
        assert!(live.push(4, None).is_break());
        assert!(!live.cancel.load(Ordering::Relaxed));

        let unread = Live::new(B256::ZERO, false);
        drop(unread.read());
        assert!(unread.cancel.load(Ordering::Relaxed));
    }

    #[tokio::test]
    async fn enough_is_enough() {
        let live = Live::new(B256::ZERO, false);
        let mut reader = live.read();
        let _ = (live.push(1, None), live.push(2, None), live.push(3, None));
        live.end(2);
        live.end(5);
        assert_eq!(live.wanted(), 2, "it only falls");
        live.finish(error());
        assert!(matches!(reader.next().await, Some(Event::Token { index: 0, .. })));
        assert!(matches!(reader.next().await, Some(Event::Token { index: 1, .. })));
        assert_eq!(reader.next().await, Some(error()));
        live.end(0);
        assert_eq!(live.wanted(), 1);
    }
}
