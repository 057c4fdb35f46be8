//! Whether an agent's loop turns, and how its last turn went.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use metrics::{counter, gauge};

pub(crate) const READY: &str = "sworn_agent_ready";
pub(crate) const TURNS: &str = "sworn_agent_turns_total";

/// A loop that has not turned for so long hangs: its calls have timeouts of well under a minute.
const STUCK: Duration = Duration::from_secs(300);
/// An agent whose last good turn is older does not follow its chain.
const BEHIND: Duration = Duration::from_secs(60);

/// The pulse of an agent's loop. Cheap to clone; the clones are one.
#[derive(Clone, Debug)]
pub struct Pulse(Arc<Mutex<Beats>>);

#[derive(Debug)]
struct Beats {
    turned: Instant,
    good: Option<Instant>,
    trouble: String,
    stopping: bool,
}

impl Default for Pulse {
    fn default() -> Self {
        let trouble = "the agent has not caught up with its chain yet".into();
        Pulse(Arc::new(Mutex::new(Beats { turned: Instant::now(), good: None, trouble, stopping: false })))
    }
}

impl Pulse {
    fn beats(&self) -> MutexGuard<'_, Beats> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The loop has turned and is up to date with its chain.
    pub fn good(&self) {
        let mut beats = self.beats();
        beats.turned = Instant::now();
        beats.good = Some(beats.turned);
        counter!(TURNS, "outcome" => "ok").increment(1);
        gauge!(READY).set(1.0);
    }

    /// The loop has turned, and is still reading what happened before.
    pub fn behind(&self) {
        self.beats().turned = Instant::now();
        counter!(TURNS, "outcome" => "ok").increment(1);
    }

    /// The loop has turned without success.
    pub fn bad(&self, trouble: impl std::fmt::Display) {
        let mut beats = self.beats();
        (beats.turned, beats.trouble) = (Instant::now(), trouble.to_string());
        counter!(TURNS, "outcome" => "failed").increment(1);
        gauge!(READY).set(f64::from(u8::from(beats.reason(beats.turned).is_none())));
    }

    /// The agent stops.
    pub fn stopping(&self) {
        self.beats().stopping = true;
        gauge!(READY).set(0.0);
    }

    /// How long ago the loop turned, and whether that is soon enough.
    pub fn alive(&self) -> (bool, Duration) {
        let ago = self.beats().turned.elapsed();
        (ago < STUCK, ago)
    }

    /// Why the agent is not to be relied on; `None` if it is.
    pub fn reason(&self) -> Option<String> {
        self.beats().reason(Instant::now())
    }
}

impl Beats {
    fn reason(&self, now: Instant) -> Option<String> {
        if self.stopping {
            return Some("the agent is stopping".into());
        }
        let good = self.good.is_some_and(|good| now.saturating_duration_since(good) < BEHIND);
        (!good).then(|| self.trouble.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_from_the_first_good_turn_until_the_last_is_old() {
        let pulse = Pulse::default();
        assert!(pulse.alive().0 && pulse.reason().unwrap().contains("caught up"));
        pulse.behind();
        assert!(pulse.reason().is_some());
        pulse.good();
        assert_eq!(pulse.reason(), None);
        // One outage that is over soon changes nothing; a long one does, and is named.
        pulse.bad("no RPC");
        assert_eq!(pulse.reason(), None);
        let later = Instant::now() + BEHIND;
        assert_eq!(pulse.beats().reason(later).as_deref(), Some("no RPC"));
        pulse.good();
        pulse.clone().stopping();
        assert!(pulse.reason().unwrap().contains("stopping"));
    }
}
