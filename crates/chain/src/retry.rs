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
        RateLimitRetryPolicy::default().should_retry(error)
            || match error {
                // A refused, broken or silent connection arrives as a custom transport error.
                RpcError::Transport(TransportErrorKind::Custom(_)) => true,
                // A server, or a proxy before it, that is in trouble.
                RpcError::Transport(TransportErrorKind::HttpError(e)) => e.status == 408 || e.status >= 500,
                _ => false,
            }
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
