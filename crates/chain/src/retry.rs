//! Patience with RPCs.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use alloy::transports::layers::{RateLimitRetryPolicy, RetryPolicy};
use alloy::transports::{RpcError, TransportError, TransportErrorKind};
use backon::{ExponentialBuilder, Retryable};

use crate::{Error, Result};

/// Requests are repeated by the transport when nobody answered or the server was busy. Every request of this crate may be
/// repeated: a raw transaction has a nonce.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience;

impl RetryPolicy for Patience {
    fn should_retry(&self, error: &TransportError) -> bool {
        // A refused or broken connection arrives as a custom transport error.
        RateLimitRetryPolicy::default().should_retry(error)
            || matches!(error, RpcError::Transport(TransportErrorKind::Custom(_)))
    }

    fn backoff_hint(&self, error: &TransportError) -> Option<Duration> {
        RateLimitRetryPolicy::default().backoff_hint(error)
    }
}

/// Repeats `what` with growing pauses, up to half a minute each, for as long as it fails transiently: an agent outlives its RPC's
/// outages.
///
/// # Errors
/// The first failure that waiting does not cure.
pub async fn persistently<T, F, Fut>(what: impl fmt::Display, f: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T>>,
{
    let pauses = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(250))
        .with_max_delay(Duration::from_secs(30))
        .without_max_times()
        .with_jitter();
    f.retry(pauses)
        .when(Error::is_transient)
        .notify(|error, pause| tracing::warn!(%error, pause_ms = pause.as_millis() as u64, "{what}: will try again"))
        .await
}
