//! What is measured of a node, for whoever installs a recorder.

use std::time::Duration;

use axum::http::StatusCode;
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use crate::NodeEvent;

const EVENTS: &str = "sworn_node_events_total";
const TOKENS: &str = "sworn_node_tokens_total";
const EARNED: &str = "sworn_node_earned";
const UNDER_WAY: &str = "sworn_node_under_way";
const ANSWER: &str = "sworn_node_answer_seconds";
const FIRST_TOKEN: &str = "sworn_node_first_token_seconds";
const REQUESTS: &str = "sworn_node_requests_total";
const REQUEST: &str = "sworn_node_request_seconds";

pub(crate) fn describe() {
    sworn_chain::describe_measurements();
    describe_counter!(EVENTS, "Events by name, as `sworn node run --json` tells them");
    describe_counter!(TOKENS, "Output tokens by way: job or receipt");
    describe_gauge!(
        EARNED,
        "Smallest units of the payment token that were earned since the start, by way: job (when final) or receipt (when signed); \
         for trends, not for accounts"
    );
    describe_gauge!(UNDER_WAY, "What is under way now: jobs, running (of the jobs), answers (over channels), demands");
    describe_histogram!(ANSWER, "Time of an answer's execution by way: job or receipt");
    describe_histogram!(FIRST_TOKEN, "Time from an admitted request of a channel to its first token");
    describe_counter!(REQUESTS, "HTTP requests by route and status");
    describe_histogram!(REQUEST, "Time of an HTTP request until its response begins, by route");
}

/// Who is paid how.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    Job,
    Receipt,
}

impl Way {
    const fn name(self) -> &'static str {
        match self {
            Way::Job => "job",
            Way::Receipt => "receipt",
        }
    }
}

pub(crate) fn event(event: &NodeEvent) {
    // The name that JSON gives it.
    let name = serde_json::to_value(event).ok().and_then(|e| e["event"].as_str().map(str::to_owned));
    counter!(EVENTS, "event" => name.unwrap_or_default()).increment(1);
    let earned = |way: Way, amount: f64| gauge!(EARNED, "way" => way.name()).increment(amount);
    let tokens = |way: Way, n: u64| counter!(TOKENS, "way" => way.name()).increment(n);
    match event {
        NodeEvent::Executed { tokens: n, seconds, .. } => {
            tokens(Way::Job, *n as u64);
            histogram!(ANSWER, "way" => Way::Job.name()).record(*seconds);
        }
        NodeEvent::Finalized { paid, .. } => earned(Way::Job, f64::from(*paid)),
        NodeEvent::Receipt { tokens: n, price, .. } => {
            tokens(Way::Receipt, u64::from(*n));
            earned(Way::Receipt, price.parse().unwrap_or_default());
        }
        _ => {}
    }
}

pub(crate) fn under_way(what: &'static str, n: usize) {
    gauge!(UNDER_WAY, "what" => what).set(n as f64);
}

pub(crate) fn answer(time: Duration) {
    histogram!(ANSWER, "way" => Way::Receipt.name()).record(time.as_secs_f64());
}

pub(crate) fn first_token(time: Duration) {
    histogram!(FIRST_TOKEN).record(time.as_secs_f64());
}

/// The route is one of the router's, so that visitors cannot invent series.
pub(crate) fn request(route: &str, status: StatusCode, time: Duration) {
    let route = route.to_owned();
    counter!(REQUESTS, "route" => route.clone(), "status" => status.as_str().to_owned()).increment(1);
    histogram!(REQUEST, "route" => route).record(time.as_secs_f64());
}
