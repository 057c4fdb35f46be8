//! The process's one recorder.

use std::sync::OnceLock;
use std::time::Duration;

use metrics::{describe_counter, describe_gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// The media type of [`render`]'s text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4";
/// Seconds from a quick refusal to a long answer, of every histogram whose name ends with `_seconds`.
const BUCKETS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0];
/// How often what was measured is condensed.
const UPKEEP: Duration = Duration::from_secs(5);

/// Installs the recorder, once; whether this process measures here. `false` if a library's user has installed another.
pub fn install() -> bool {
    handle().is_some()
}

/// What was measured so far; `None` without a recorder.
pub fn render() -> Option<String> {
    handle().map(PrometheusHandle::render)
}

/// Condenses what was measured from time to time, so that memory stays bounded when nobody reads it. Never ends.
pub async fn upkeep() {
    loop {
        tokio::time::sleep(UPKEEP).await;
        handle().inspect(|h| h.run_upkeep());
    }
}

fn handle() -> Option<&'static PrometheusHandle> {
    static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
    HANDLE
        .get_or_init(|| {
            let seconds = Matcher::Suffix("_seconds".into());
            let recorder = PrometheusBuilder::new().set_buckets_for_metric(seconds, &BUCKETS).ok()?.build_recorder();
            let handle = recorder.handle();
            metrics::set_global_recorder(recorder).ok()?;
            describe_gauge!(crate::pulse::READY, "1 while the agent follows its chain, else 0");
            describe_counter!(crate::pulse::TURNS, "Turns of the agent's loop by outcome: ok or failed");
            Some(handle)
        })
        .as_ref()
}
