//! Requests a second.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::extract::Request;
use governor::clock::{Clock, DefaultClock};
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};

use crate::{Peer, counted};

/// Requests between two clearings of addresses that are quiet again.
const CLEARED_EVERY: u32 = 1_024;

/// So many requests a second from one address (the generic cell rate algorithm: after a pause, as many as ten seconds bring at once).
#[derive(Debug)]
pub struct Rate {
    limiter: Option<RateLimiter<IpAddr, HashMapStateStore<IpAddr>, DefaultClock>>,
    seen: AtomicU32,
}

impl Rate {
    /// So many a second; zero: no bound.
    pub fn per_second(requests: u32) -> Self {
        let burst = NonZeroU32::new(requests.saturating_mul(10));
        let quota =
            NonZeroU32::new(requests).zip(burst).map(|(rate, burst)| Quota::per_second(rate).allow_burst(burst));
        Rate { limiter: quota.map(RateLimiter::hashmap), seen: AtomicU32::new(0) }
    }

    /// Counts a request of somebody's.
    ///
    /// # Errors
    /// As [`Self::admit`].
    pub fn admit_request(&self, request: &Request) -> Result<(), Duration> {
        Peer::of(request).map_or(Ok(()), |peer| self.admit(peer.address.ip()))
    }

    /// Counts a request from an address.
    ///
    /// # Errors
    /// One too many; the next is admitted after this time.
    pub fn admit(&self, address: IpAddr) -> Result<(), Duration> {
        let (Some(limiter), Some(who)) = (&self.limiter, counted(address)) else { return Ok(()) };
        if self.seen.fetch_add(1, Ordering::Relaxed) % CLEARED_EVERY == CLEARED_EVERY - 1 {
            limiter.retain_recent();
            limiter.shrink_to_fit();
        }
        limiter.check_key(&who).map_err(|until| until.wait_time_from(limiter.clock().now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_is_held_back_and_no_other() {
        let rate = Rate::per_second(2);
        let (one, other): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        for _ in 0..20 {
            rate.admit(one).unwrap();
        }
        let wait = rate.admit(one).unwrap_err();
        assert!(wait > Duration::ZERO && wait <= Duration::from_millis(500), "{wait:?}");
        rate.admit(other).unwrap();
        for _ in 0..10_000 {
            rate.admit("127.0.0.1".parse().unwrap()).unwrap();
        }
    }

    #[test]
    fn zero_is_no_bound() {
        let rate = Rate::per_second(0);
        assert!((0..100_000).all(|_| rate.admit("192.0.2.1".parse().unwrap()).is_ok()));
        // The greatest overflows nothing.
        Rate::per_second(u32::MAX).admit("192.0.2.1".parse().unwrap()).unwrap();
    }

    /// What is remembered of addresses does not grow with their number.
    #[test]
    fn quiet_addresses_are_forgotten() {
        let rate = Rate::per_second(1_000_000);
        for n in 0..200_000u32 {
            rate.admit(IpAddr::from((n + (1 << 24)).to_be_bytes())).unwrap();
        }
        let kept = rate.limiter.as_ref().map_or(0, RateLimiter::len);
        assert!(kept < 50_000, "{kept} addresses");
    }
}
