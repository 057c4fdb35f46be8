//! A few threads that stay together through a pass.
//!
//! A decoded token is some two hundred short parallel sections with a little serial work between them. A thread pool that
//! puts its threads to sleep in between spends as long on waking them as on the work; this team spins for the length of such
//! a gap and sleeps after it. Parts are claimed one by one, the caller takes part, and nobody waits for a thread that has
//! claimed nothing: on a busy machine the caller simply does more of the parts itself.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};

/// How often an idle worker looks for work before it yields, and how often it yields before it sleeps.
const SPINS: u32 = 1500;
const YIELDS: u32 = 20;

type Work<'a> = &'a (dyn Fn(usize) + Sync);

/// Threads that work on one section at a time.
pub(crate) struct Team {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    threads: Vec<Thread>,
    /// Held by the one caller whose section runs; others run theirs alone.
    lead: Mutex<()>,
}

struct Shared {
    /// Number of the section in the high half, parts not yet claimed in the low half.
    ticket: AtomicU64,
    /// Parts not yet finished.
    pending: AtomicUsize,
    /// The section's [`Work`].
    work: AtomicPtr<()>,
    sleeping: AtomicUsize,
    stop: AtomicBool,
    /// What a part panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Shared {
    /// Claims a part of the section at hand, if one is left.
    fn claim(&self) -> Option<usize> {
        let mut ticket = self.ticket.load(Ordering::SeqCst);
        while ticket as u32 > 0 {
            match self.ticket.compare_exchange_weak(ticket, ticket - 1, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return Some((ticket as u32 - 1) as usize),
                Err(now) => ticket = now,
            }
        }
        None
    }

    /// Runs a claimed part.
    fn run(&self, part: usize) {
        let work = self.work.load(Ordering::Relaxed).cast::<Work<'static>>();
        // SAFETY: `Team::run` stored a pointer to a `Work` of its own frame before it published the ticket that this part
        // was claimed from, and returns only when `pending` is 0, which this part's decrement below is needed for: the
        // pointer and everything that the closure borrows are alive. The section's number in the ticket keeps a claim from
        // succeeding on another section than the one read.
        let work = unsafe { *work };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(part))) {
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
        }
        self.pending.fetch_sub(1, Ordering::Release);
    }

    fn serve(&self) {
        let mut idle = 0;
        while !self.stop.load(Ordering::Relaxed) {
            if let Some(part) = self.claim() {
                self.run(part);
                idle = 0;
            } else if idle < SPINS {
                std::hint::spin_loop();
                idle += 1;
            } else if idle < SPINS + YIELDS {
                thread::yield_now();
                idle += 1;
            } else {
                self.sleeping.fetch_add(1, Ordering::SeqCst);
                // A section published before the caller could see this thread asleep is seen here.
                if self.ticket.load(Ordering::SeqCst) as u32 == 0 && !self.stop.load(Ordering::SeqCst) {
                    thread::park();
                }
                self.sleeping.fetch_sub(1, Ordering::SeqCst);
                idle = 0;
            }
        }
    }
}

impl Team {
    /// A team of `threads`, the caller included; 0 means one per processor.
    pub(crate) fn new(threads: usize) -> std::io::Result<Self> {
        let threads = match threads {
            0 => thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        let shared = Arc::new(Shared {
            ticket: AtomicU64::new(0),
            pending: AtomicUsize::new(0),
            work: AtomicPtr::new(std::ptr::null_mut()),
            sleeping: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        // Filled one by one, so that the workers there are end when a later one cannot be started.
        let mut team = Team { shared, workers: Vec::new(), threads: Vec::new(), lead: Mutex::new(()) };
        for i in 1..threads {
            let shared = team.shared.clone();
            let worker = thread::Builder::new().name(format!("cpu-{i}")).spawn(move || shared.serve())?;
            team.threads.push(worker.thread().clone());
            team.workers.push(worker);
        }
        Ok(team)
    }

    /// Threads, the caller included.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `work` with each of `0..parts` once, in any order and on any thread of the team, and returns when all are done.
    /// Inside a part, and while another caller's section runs, all parts run on the calling thread.
    pub(crate) fn run(&self, parts: usize, work: Work<'_>) {
        let lead = match self.lead.try_lock() {
            Ok(lead) if parts > 1 && parts <= u32::MAX as usize && !self.workers.is_empty() => lead,
            _ => return (0..parts).for_each(work),
        };
        let shared = &*self.shared;
        shared.pending.store(parts, Ordering::Relaxed);
        shared.work.store((&raw const work).cast_mut().cast(), Ordering::Relaxed);
        let section = (shared.ticket.load(Ordering::Relaxed) >> 32).wrapping_add(1);
        shared.ticket.store(section << 32 | parts as u64, Ordering::SeqCst);
        if shared.sleeping.load(Ordering::SeqCst) > 0 {
            self.threads.iter().for_each(Thread::unpark);
        }
        while let Some(part) = shared.claim() {
            shared.run(part);
        }
        let mut waited = 0u32;
        while shared.pending.load(Ordering::Acquire) > 0 {
            // The thread that still works may be waiting for this processor.
            if waited < SPINS {
                std::hint::spin_loop()
            } else {
                thread::yield_now()
            }
            waited = waited.saturating_add(1);
        }
        let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(lead);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Calls `work` once with each of `items`, in any order and on any thread of the team.
    pub(crate) fn each<T: Send>(&self, items: impl IntoIterator<Item = T>, work: impl Fn(T) + Sync) {
        let mut items = items.into_iter();
        if self.workers.is_empty() {
            return items.for_each(work);
        }
        let Some(first) = items.next() else { return };
        let Some(second) = items.next() else { return work(first) };
        let cells: Vec<Mutex<Option<T>>> =
            [first, second].into_iter().chain(items).map(|item| Mutex::new(Some(item))).collect();
        self.run(cells.len(), &|i| {
            let item = cells[i].lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(item) = item {
                work(item);
            }
        });
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.threads.iter().for_each(Thread::unpark);
        for worker in self.workers.drain(..) {
            // A worker catches what its parts panic with, so it ends well.
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_runs_once_whatever_the_pauses() {
        for threads in [1, 2, 3, 8] {
            let team = Team::new(threads).unwrap();
            assert_eq!(team.threads(), threads);
            for round in 0..3000usize {
                let parts = round % 17;
                let seen: Vec<AtomicUsize> = (0..parts).map(|_| AtomicUsize::new(0)).collect();
                team.run(parts, &|i| {
                    seen[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(seen.iter().all(|s| s.load(Ordering::Relaxed) == 1), "{threads} {round}");
                if round % 1000 == 7 {
                    // Long enough for every worker to fall asleep.
                    thread::sleep(std::time::Duration::from_millis(5));
                }
            }
        }
    }

    #[test]
    fn sections_within_parts_and_of_several_callers_run() {
        let team = Team::new(3).unwrap();
        let total = AtomicUsize::new(0);
        thread::scope(|s| {
            for _ in 0..3 {
                s.spawn(|| {
                    for _ in 0..200 {
                        team.run(4, &|_| {
                            team.run(3, &|i| {
                                total.fetch_add(i + 1, Ordering::Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 3 * 200 * 4 * 6);
        let mut values = vec![0u32; 100];
        team.each(values.iter_mut().enumerate(), |(i, v)| *v += i as u32);
        assert!(values.iter().enumerate().all(|(i, v)| i as u32 == *v));
    }

    #[test]
    fn a_panic_of_a_part_reaches_the_caller_and_the_team_goes_on() {
        let team = Team::new(2).unwrap();
        for at in 0..6 {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                team.run(6, &|i| assert!(i != at, "part {i}"));
            }));
            assert!(caught.is_err());
            team.each(0..5, |_| {});
        }
    }
}
