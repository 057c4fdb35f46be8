//! Many requests on one backend at the same time.
//!
//! One thread runs the backend. Every step it gives each running sequence its next token, fills what is left of the step with
//! chunks of waiting prompts, oldest first, and runs all of it as one batch: a weight is read once for all. A sequence's bits do
//! not depend on who shares its steps, so its trace does not either.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use sworn_commit::{HeadRow, RunParams, TraceTree};

use crate::generate::{Generation, Request, capacity, rate};
use crate::trace::TraceRecorder;
use crate::{Backend, EngineError, Result, Session, Work};

/// How much runs and waits at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sequences that run together.
    pub sequences: usize,
    /// Positions of one step: bounds how long a running sequence waits for its next token while prompts are read.
    pub positions: usize,
    /// Requests that may wait; more are refused.
    pub waiting: usize,
    /// Finished sequences that are kept, so that a prompt that begins like one of them need not be read again.
    pub kept: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { sequences: 8, positions: 64, waiting: 256, kept: 4 }
    }
}

/// Least common prefix worth taking over.
const REUSE_FROM: usize = 16;

/// A backend that answers many requests at once. Dropping it ends its thread and whatever still runs.
pub struct Scheduler {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    backend: Arc<dyn Backend>,
    limits: Limits,
    queue: Mutex<Queue>,
    wake: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Ticket>,
    running: usize,
    closed: bool,
}

/// A request and where its answer goes.
struct Ticket {
    prompt: Vec<u32>,
    max_new: u32,
    stop: Vec<u32>,
    run: RunParams,
    cancel: Arc<AtomicBool>,
    /// Whoever asked has what they want: the answer ends with the tokens it has.
    enough: Arc<AtomicBool>,
    to: Sender<Event>,
}

enum Event {
    /// With its log-probabilities, if the model commits to them.
    Token(u32, Option<HeadRow>),
    Done(Box<Result<Generation>>),
}

/// A request that runs.
struct Active {
    ticket: Ticket,
    session: Box<dyn Session>,
    /// Positions the session has room for.
    room: u32,
    recorder: TraceRecorder<'static>,
    /// Prompt positions already executed.
    read: usize,
    tokens: Vec<u32>,
    start: Instant,
    first: Option<Instant>,
}

/// A finished sequence.
struct Kept {
    /// Every token that was executed.
    tokens: Vec<u32>,
    session: Box<dyn Session>,
    room: u32,
    tree: TraceTree,
}

fn unpoisoned<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scheduler")
            .field("backend", &self.shared.backend.name())
            .field("limits", &self.shared.limits)
            .finish_non_exhaustive()
    }
}

impl Scheduler {
    /// Starts the thread that runs `backend`.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn new(backend: Arc<dyn Backend>, limits: Limits) -> Result<Self> {
        let shared = Arc::new(Shared { backend, limits, queue: Mutex::default(), wake: Condvar::new() });
        let worker = Worker(shared.clone());
        let thread = std::thread::Builder::new().name("batch".into()).spawn(move || worker.0.work());
        let thread =
            thread.map_err(|e| EngineError::Request(format!("starting the thread that batches requests: {e}")))?;
        Ok(Scheduler { shared, thread: Some(thread) })
    }

    /// The backend.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.shared.backend
    }

    /// Requests that run and requests that wait.
    pub fn load(&self) -> (usize, usize) {
        let queue = unpoisoned(&self.shared.queue);
        (queue.running, queue.waiting.len())
    }

    /// Answers a request together with whatever else runs; blocks until it is answered. `on_token` sees every output token as it is
    /// selected. The same as [`crate::generate`], token for token and leaf for leaf. A set `cancel` ends the request at its next step.
    ///
    /// # Errors
    /// As [`crate::generate`], or too many requests wait.
    pub fn generate(
        &self,
        request: &Request<'_>,
        cancel: Arc<AtomicBool>,
        on_token: &mut dyn FnMut(u32),
    ) -> Result<Generation> {
        self.generate_until(request, cancel, &mut |token, _| {
            on_token(token);
            ControlFlow::Continue(())
        })
    }

    /// As [`Self::generate`]; the answer also ends with the token at which `on_token` breaks, as in [`crate::generate_until`].
    /// `on_token` also sees the log-probabilities at the token's place, if the model commits to them.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub fn generate_until(
        &self,
        request: &Request<'_>,
        cancel: Arc<AtomicBool>,
        on_token: &mut dyn FnMut(u32, Option<&HeadRow>) -> ControlFlow<()>,
    ) -> Result<Generation> {
        request.check(&*self.shared.backend)?;
        let (to, answers) = channel();
        let enough = Arc::new(AtomicBool::new(false));
        let ticket = Ticket {
            prompt: request.prompt.to_vec(),
            max_new: request.max_new,
            stop: request.stop.to_vec(),
            run: request.run,
            cancel,
            enough: enough.clone(),
            to,
        };
        {
            let mut queue = unpoisoned(&self.shared.queue);
            if queue.closed {
                return Err(ended());
            }
            let limit = self.shared.limits.waiting;
            if queue.waiting.len() >= limit {
                return Err(EngineError::Request(format!("{limit} requests wait already: try again later")));
            }
            queue.waiting.push_back(ticket);
        }
        self.shared.wake.notify_all();
        let (mut seen, mut wanted) = (0, None);
        let mut done = receive(&answers, &mut |token, row| {
            seen += 1;
            if wanted.is_none() && on_token(token, row).is_break() {
                wanted = Some(seen);
                enough.store(true, Ordering::Relaxed);
            }
        })?;
        // The thread may have gone on for a step or two before it heard of it.
        if let Some(wanted) = wanted {
            done.cut(&self.shared.backend.model().id(), request.prompt, wanted)?;
        }
        Ok(done)
    }
}

fn receive(answers: &Receiver<Event>, on_token: &mut dyn FnMut(u32, Option<&HeadRow>)) -> Result<Generation> {
    loop {
        match answers.recv() {
            Ok(Event::Token(token, row)) => on_token(token, row.as_ref()),
            Ok(Event::Done(result)) => return *result,
            Err(_) => return Err(ended()),
        }
    }
}

fn ended() -> EngineError {
    EngineError::Sink("the thread that batches requests ended".into())
}

/// Held by the thread: however it ends, nobody goes on waiting for it.
struct Worker(Arc<Shared>);

impl Drop for Worker {
    fn drop(&mut self) {
        let mut queue = unpoisoned(&self.0.queue);
        (queue.closed, queue.running) = (true, 0);
        queue.waiting.clear();
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        unpoisoned(&self.shared.queue).closed = true;
        self.shared.wake.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic there was reported when it happened; requests got an error from their closed channels.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn work(&self) {
        let mut active: Vec<Active> = Vec::new();
        let mut kept: VecDeque<Kept> = VecDeque::new();
        while let Some(tickets) = self.admit(active.len()) {
            for ticket in tickets {
                let to = ticket.to.clone();
                match self.begin(ticket, &mut kept) {
                    Ok(one) => active.push(one),
                    Err(e) => self.answer(&to, Err(e)),
                }
            }
            self.step(&mut active, &mut kept);
        }
    }

    /// Requests that begin now; waits for one if nothing runs. `None`: the scheduler is being dropped.
    fn admit(&self, running: usize) -> Option<Vec<Ticket>> {
        let mut queue = unpoisoned(&self.queue);
        loop {
            if queue.closed {
                return None;
            }
            if running > 0 || !queue.waiting.is_empty() {
                // What was cancelled while it waited does not wait for a place.
                queue.waiting.retain(|t| {
                    let cancelled = t.cancel.load(Ordering::Relaxed);
                    if cancelled {
                        // Whoever asked may have gone.
                        let _ = t.to.send(Event::Done(Box::new(Err(EngineError::Sink("cancelled".into())))));
                    }
                    !cancelled
                });
                let room = self.limits.sequences.max(1).saturating_sub(running).min(queue.waiting.len());
                let tickets: Vec<Ticket> = queue.waiting.drain(..room).collect();
                queue.running = running + tickets.len();
                return Some(tickets);
            }
            queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A session for the request: a kept one that begins with the same tokens, or a new one.
    fn begin(&self, ticket: Ticket, kept: &mut VecDeque<Kept>) -> Result<Active> {
        let model = self.backend.model();
        let n_in = ticket.prompt.len();
        let wanted = capacity(&*self.backend, n_in as u64 + u64::from(ticket.max_new) - 1)?;
        // The last prompt token runs anew in any case: it selects the first output token.
        let common = |k: &Kept| k.tokens.iter().zip(&ticket.prompt[..n_in - 1]).take_while(|(a, b)| a == b).count();
        let best = (0..kept.len())
            .filter(|i| kept[*i].room >= wanted)
            .max_by_key(|i| common(&kept[*i]))
            .filter(|i| common(&kept[*i]) >= REUSE_FROM);
        let start = Instant::now();
        let resumed = best.and_then(|i| {
            let read = common(&kept[i]);
            let mut k = kept.remove(i)?;
            k.session.truncate(read as u32).ok()?;
            Some((k.session, k.room, TraceRecorder::resume(&k.tree, model.layers(), n_in as u32, read as u32), read))
        });
        let (mut session, room, recorder, read) = match resumed {
            Some(resumed) => resumed,
            None => {
                // Room to go on with the next turn of a conversation.
                let ample = wanted.saturating_mul(2).clamp(wanted, model.manifest().max_positions);
                let (session, room) = match self.backend.session(ample) {
                    Ok(session) => (session, ample),
                    Err(_) => (self.backend.session(wanted)?, wanted),
                };
                (session, room, TraceRecorder::new(model.layers(), n_in as u32, None), 0)
            }
        };
        session.set_run(ticket.run)?;
        Ok(Active { ticket, session, room, recorder, read, tokens: Vec::new(), start, first: None })
    }

    /// One batch: a token for every sequence that produces, then prompts as far as the step has room.
    fn step(&self, active: &mut Vec<Active>, kept: &mut VecDeque<Kept>) {
        for a in active.extract_if(.., |a| a.ticket.cancel.load(Ordering::Relaxed)) {
            self.answer(&a.ticket.to, Err(EngineError::Sink("cancelled".into())));
        }
        let chunks = self.share(active);
        let mut work: Vec<Work<'_>> = active
            .iter_mut()
            .zip(&chunks)
            .filter(|(_, tokens)| !tokens.is_empty())
            .map(|(a, tokens)| {
                let head_from = a.ticket.prompt.len() as u32 - 1;
                Work { session: &mut *a.session, tokens, head_from, sink: &mut a.recorder }
            })
            .collect();
        let mut results = self.backend.extend_many(&mut work).into_iter();
        drop(work);

        let mut going = Vec::with_capacity(active.len());
        for (mut a, chunk) in active.drain(..).zip(chunks) {
            let name = self.backend.name();
            let ran = match chunk.len() {
                0 => Ok(()),
                n => match results.next() {
                    Some(selected) => selected.and_then(|selected| a.advance(n, &selected, name)),
                    None => Err(EngineError::Device { backend: name, message: "it left out a sequence".into() }),
                },
            };
            match ran {
                Err(e) => self.answer(&a.ticket.to, Err(e)),
                Ok(()) if a.is_done() => self.finish(a, kept),
                Ok(()) => going.push(a),
            }
        }
        *active = going;
    }

    /// The tokens that each sequence runs in the next step; none where its prompt has to wait.
    fn share(&self, active: &[Active]) -> Vec<Vec<u32>> {
        let producing = active.iter().filter(|a| !a.tokens.is_empty()).count();
        // At least one position, or a full house would never read a prompt.
        let mut room = self.limits.positions.saturating_sub(producing).max(1);
        let share = |a: &Active| match a.tokens.last() {
            Some(last) => vec![*last],
            None => {
                let rest = &a.ticket.prompt[a.read..];
                let n = room.min(rest.len());
                room -= n;
                rest[..n].to_vec()
            }
        };
        active.iter().map(share).collect()
    }

    fn finish(&self, a: Active, kept: &mut VecDeque<Kept>) {
        let Active { ticket, session, room, recorder, tokens, start, first, .. } = a;
        let first = first.unwrap_or(start);
        let decode_tok_s = if tokens.len() > 1 { rate(tokens.len() - 1, first) } else { 0.0 };
        let prefill = (first - start).as_secs_f64().max(1e-9);
        let done = recorder.finish(&self.backend.model().id(), &ticket.prompt, &tokens).map(|trace| {
            if self.limits.kept > 0 {
                let executed = [&ticket.prompt[..], &tokens[..tokens.len() - 1]].concat();
                kept.push_back(Kept { tokens: executed, session, room, tree: trace.tree.clone() });
                while kept.len() > self.limits.kept {
                    kept.pop_front();
                }
            }
            Generation { tokens, trace, prefill_tok_s: ticket.prompt.len() as f64 / prefill, decode_tok_s }
        });
        self.answer(&ticket.to, done);
    }

    /// Ends a request that runs.
    fn answer(&self, to: &Sender<Event>, result: Result<Generation>) {
        {
            let mut queue = unpoisoned(&self.queue);
            queue.running = queue.running.saturating_sub(1);
        }
        // Whoever asked may have gone.
        let _ = to.send(Event::Done(Box::new(result)));
    }
}

impl Active {
    /// Takes over what a step of `n` positions selected.
    fn advance(&mut self, n: usize, selected: &[u32], backend: &'static str) -> Result<()> {
        let n_in = self.ticket.prompt.len();
        if self.tokens.is_empty() {
            self.read += n;
        }
        match selected {
            [] if self.read < n_in => Ok(()),
            [token] if self.read == n_in => {
                self.first.get_or_insert_with(Instant::now);
                let row = self.recorder.log_probs().get(self.tokens.len()).cloned();
                self.tokens.push(*token);
                // Whoever asked may have gone; the answer is finished all the same.
                let _ = self.ticket.to.send(Event::Token(*token, row));
                Ok(())
            }
            _ => Err(EngineError::Device { backend, message: "it did not select exactly one token".into() }),
        }
    }

    fn is_done(&self) -> bool {
        let Some(last) = self.tokens.last() else { return false };
        self.tokens.len() as u32 >= self.ticket.max_new
            || self.ticket.stop.contains(last)
            || self.ticket.enough.load(Ordering::Relaxed)
    }
}
