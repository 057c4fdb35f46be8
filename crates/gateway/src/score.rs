//! Which node to ask: what an answer costs there, how long it takes, how often it fails, and what the chain says of the node.

use std::time::{Duration, Instant};

/// Shortest and longest time that a failing node is left alone.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// A new measurement counts a quarter.
const WEIGHT: f64 = 0.25;
/// What is assumed of a node that was never asked, so that it will be.
const UNKNOWN_FIRST: f64 = 0.3;
const UNKNOWN_RATE: f64 = 30.0;

/// How a node has done.
#[derive(Clone, Debug, Default)]
pub(crate) struct Conduct {
    /// Seconds to the first token.
    first: Option<f64>,
    /// Tokens per second after it.
    rate: Option<f64>,
    /// Failures since the last success.
    failures: u32,
    /// Not before.
    rest_until: Option<Instant>,
    /// Answers under way.
    pub(crate) under_way: u32,
}

/// What the chain says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Jobs and answers that nobody disputed.
    pub served: u64,
    /// Deadlines missed.
    pub timed_out: u64,
    /// Lies proven.
    pub slashed: u64,
}

impl Conduct {
    pub(crate) fn resting(&self) -> Option<Duration> {
        self.rest_until.and_then(|until| until.checked_duration_since(Instant::now())).filter(|d| !d.is_zero())
    }

    pub(crate) fn first_token(&mut self, after: Duration) {
        self.first = Some(mean(self.first, after.as_secs_f64()));
    }

    pub(crate) fn succeeded(&mut self, tokens: u32, during: Duration) {
        if tokens > 1 && !during.is_zero() {
            self.rate = Some(mean(self.rate, f64::from(tokens - 1) / during.as_secs_f64()));
        }
        (self.failures, self.rest_until) = (0, None);
    }

    /// Twice as long a rest with every failure in a row, or as long as the node asks for.
    pub(crate) fn failed(&mut self, asked_for: Option<Duration>) {
        let doubled = PAUSES.0.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        let rest = asked_for.unwrap_or(doubled).min(PAUSES.1);
        self.rest_until = Some(Instant::now() + rest);
    }

    /// Less is better. The unit is the price: a node may be dearer by as much as it saves time, ten seconds for the price of the
    /// answer, and what goes wrong there makes it dearer.
    pub(crate) fn score(&self, price: u128, max_new: u32, record: &Record) -> u128 {
        let seconds = self.first.unwrap_or(UNKNOWN_FIRST)
            + f64::from(max_new.min(256)) / self.rate.unwrap_or(UNKNOWN_RATE).max(0.1)
                * (1.0 + f64::from(self.under_way) / 4.0);
        let time = 1000 + (seconds.min(1000.0) * 100.0) as u128;
        let all = u128::from(record.served + record.timed_out + record.slashed).max(1);
        let bad = u128::from(record.timed_out) + 10 * u128::from(record.slashed);
        let trouble = 100 + 50 * u128::from(self.failures.min(10)) + (100 * bad / all).min(1000);
        // A price of nothing is still told apart by time.
        price.max(1).saturating_mul(time).saturating_mul(trouble)
    }
}

fn mean(old: Option<f64>, new: f64) -> f64 {
    old.map_or(new, |old| old + WEIGHT * (new - old))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cheap_quick_and_honest_come_first() {
        let mut slow = Conduct::default();
        slow.first_token(Duration::from_secs(8));
        slow.succeeded(11, Duration::from_secs(10));
        let quick = Conduct::default();
        let (none, clean) = (Record::default(), Record { served: 10, ..Record::default() });
        assert!(quick.score(100, 64, &none) < quick.score(101, 64, &none));
        assert!(quick.score(100, 64, &none) < slow.score(100, 64, &none));
        // A much cheaper node may be slow.
        assert!(slow.score(100, 64, &none) < quick.score(1000, 64, &none));
        let liar = Record { slashed: 1, ..clean };
        assert!(quick.score(100, 64, &clean) < quick.score(100, 64, &liar));
        assert!(quick.score(u128::MAX, u32::MAX, &liar) == u128::MAX);
    }

    #[test]
    fn failures_double_the_rest_and_success_ends_it() {
        let mut c = Conduct::default();
        c.failed(None);
        let one = c.resting().unwrap();
        c.failed(None);
        assert!(c.resting().unwrap() > one);
        for _ in 0..100 {
            c.failed(None);
        }
        assert!(c.resting().unwrap() <= PAUSES.1);
        c.succeeded(5, Duration::from_secs(1));
        assert_eq!(c.resting(), None);
        c.failed(Some(Duration::from_secs(7)));
        assert!(c.resting().unwrap() > Duration::from_secs(6));
    }
}
