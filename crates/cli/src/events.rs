//! The event streams of long-running verbs: one line each, JSON or text.

use alloy::primitives::U256;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::output::Output;

/// Writes events to stdout. When nobody reads them any more, the receiver hears of it.
#[derive(Clone, Debug)]
pub(crate) struct EventLog {
    out: Output,
    unread: mpsc::UnboundedSender<()>,
}

impl EventLog {
    pub(crate) fn new(out: Output) -> (Self, mpsc::UnboundedReceiver<()>) {
        let (unread, finished) = mpsc::unbounded_channel();
        (Self { out, unread }, finished)
    }

    /// One event.
    pub(crate) fn tell<T: Serialize>(&self, event: &T) {
        let mut event = serde_json::to_value(event).unwrap_or_default();
        decimal(&mut event);
        // A disk that is full where they are written must not end what they tell of.
        if self.out.line(&event, text).is_err_and(|fault| fault.is_that_nobody_reads()) {
            let _ = self.unread.send(());
        }
    }
}

/// Numbers in decimal, whichever crate the event is from: a job is a number, an amount a string of digits.
fn decimal(event: &mut Value) {
    let Value::Object(fields) = event else { return };
    for (key, value) in fields {
        match value {
            // Addresses and hashes have their own lengths; everything else in hexadecimal is a number.
            Value::String(s) if s.starts_with("0x") && !matches!(s.len(), 42 | 66) => {
                if let Ok(number) = s.parse::<U256>() {
                    *value = match u64::try_from(number) {
                        Ok(job) if key == "job" => Value::from(job),
                        _ => Value::from(number.to_string()),
                    };
                }
            }
            Value::Object(_) => decimal(value),
            _ => {}
        }
    }
}

/// The event's name, its job, then the rest in order: `submitted  job 3  gas 91234`.
fn text(event: &Value) -> String {
    let Value::Object(fields) = event else { return event.to_string() };
    let plain = |v: &Value| match v {
        Value::String(s) => s.chars().filter(|c| !c.is_control()).collect(),
        Value::Array(items) => {
            items.iter().map(|i| i.as_str().map_or_else(|| i.to_string(), str::to_owned)).collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    };
    let mut line = format!("{:<12}", fields.get("event").map(plain).unwrap_or_default().replace('_', " "));
    if let Some(job) = fields.get("job") {
        line.push_str(&format!("  job {}", plain(job)));
    }
    for (key, value) in fields {
        match value {
            _ if key == "event" || key == "job" => {}
            Value::Null => {}
            // A receipt: what it cost and where it is.
            Value::Object(inner) => {
                for (key, value) in inner {
                    line.push_str(&format!("  {} {}", key.replace('_', " "), plain(value)));
                }
            }
            value => line.push_str(&format!("  {} {}", key.replace('_', " "), plain(value))),
        }
    }
    line.trim_end().to_owned()
}

/// Resolves on Ctrl-C or a request to terminate.
pub(crate) async fn stop_signal() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = terminate.recv() => return,
                _ = tokio::signal::ctrl_c() => return,
            }
        }
    }
    let _ = tokio::signal::ctrl_c().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_decimal_and_identifiers_stay() {
        let (address, hash) = (format!("0x{}", "ab".repeat(20)), format!("0x{}", "cd".repeat(32)));
        let mut event = serde_json::json!({"job": "0x2a", "paid": "0xde0b6b3a7640000", "by": address, "receipt": {"hash": hash, "n": "0x10"}});
        decimal(&mut event);
        let expected = serde_json::json!({"job": 42, "paid": "1000000000000000000", "by": address, "receipt": {"hash": hash, "n": "16"}});
        assert_eq!(event, expected);
    }

    #[test]
    fn events_read_as_lines() {
        let event = serde_json::json!({"event": "first_seen", "job": 3, "note": "a\nb", "receipt": {"gas_used": 7}, "none": null});
        assert_eq!(text(&event), "first seen    job 3  note ab  gas used 7");
    }
}
