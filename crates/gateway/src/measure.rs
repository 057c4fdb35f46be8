//! What is measured, for Prometheus.

use std::sync::OnceLock;

use metrics::{describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

pub(crate) const REQUESTS: &str = "sworn_gateway_requests_total";
pub(crate) const UNDER_WAY: &str = "sworn_gateway_answers_under_way";
pub(crate) const SECONDS: &str = "sworn_gateway_request_seconds";
pub(crate) const FIRST_TOKEN: &str = "sworn_gateway_first_token_seconds";
pub(crate) const TOKENS: &str = "sworn_gateway_tokens_total";
pub(crate) const ASKED: &str = "sworn_gateway_node_requests_total";
pub(crate) const FAILOVERS: &str = "sworn_gateway_failovers_total";
pub(crate) const PAID: &str = "sworn_gateway_paid_total";
pub(crate) const REFUSED_RECEIPTS: &str = "sworn_gateway_refused_receipts_total";

/// Seconds from a quick refusal to a long answer.
const BUCKETS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0];

/// The process's recorder; the first call installs it. `None` if the process has another one.
pub(crate) fn recorder() -> Option<&'static PrometheusHandle> {
    static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
    HANDLE
        .get_or_init(|| {
            let builder =
                PrometheusBuilder::new().set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &BUCKETS).ok()?;
            let recorder = builder.build_recorder();
            let handle = recorder.handle();
            metrics::set_global_recorder(recorder).ok()?;
            describe_counter!(REQUESTS, "Requests by path, status and reason");
            describe_gauge!(UNDER_WAY, "Answers under way");
            describe_histogram!(
                SECONDS,
                "Time of a request until its response begins, or is whole if it is not streamed"
            );
            describe_histogram!(FIRST_TOKEN, "Time from a request to its first token");
            describe_counter!(TOKENS, "Tokens of prompts and answers, by direction and model");
            describe_counter!(ASKED, "Requests to nodes by node and outcome");
            describe_counter!(
                FAILOVERS,
                "Answers that another node took over, before the first token or in the middle"
            );
            describe_counter!(
                PAID,
                "Smallest units of the payment token that receipts cost, by node; for trends, not for accounts"
            );
            describe_counter!(REFUSED_RECEIPTS, "Receipts that were not what was asked for, by node and fault");
            Some(handle)
        })
        .as_ref()
}
