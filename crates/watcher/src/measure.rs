//! What is measured of a watcher, for whoever installs a recorder.

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use crate::event::WatcherEvent;

const EVENTS: &str = "sworn_watcher_events_total";
const AUDITS: &str = "sworn_watcher_audits_total";
const AUDIT: &str = "sworn_watcher_audit_seconds";
const WATCHED: &str = "sworn_watcher_watched";

pub(crate) fn describe() {
    sworn_chain::describe_measurements();
    describe_counter!(EVENTS, "Events by name, as `sworn watch --json` tells them");
    describe_counter!(
        AUDITS,
        "Answers that were re-executed, by what paid for them (job or receipt) and outcome: right or wrong"
    );
    describe_histogram!(AUDIT, "Time of a re-execution, by what paid for the answer");
    describe_gauge!(WATCHED, "What is under watch now: jobs, batches");
}

pub(crate) fn event(event: &WatcherEvent) {
    // The name that JSON gives it.
    let name = serde_json::to_value(event).ok().and_then(|e| e["event"].as_str().map(str::to_owned));
    counter!(EVENTS, "event" => name.unwrap_or_default()).increment(1);
    let (what, ok, ms) = match event {
        WatcherEvent::Audited { ok, ms, .. } => ("job", *ok, *ms),
        WatcherEvent::ReceiptAudited { ok, ms, .. } => ("receipt", *ok, *ms),
        _ => return,
    };
    counter!(AUDITS, "what" => what, "outcome" => if ok { "right" } else { "wrong" }).increment(1);
    histogram!(AUDIT, "what" => what).record(ms as f64 / 1000.0);
}

pub(crate) fn watched(what: &'static str, n: usize) {
    gauge!(WATCHED, "what" => what).set(n as f64);
}
