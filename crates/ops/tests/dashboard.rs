//! The dashboard and the alerts show what the programs measure: nothing that does not exist, and nothing left out.

use std::collections::BTreeSet;
use std::path::PathBuf;

fn root() -> PathBuf {
    PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("../..")
}

/// Words that begin with `sworn_`.
fn words(text: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    text.split(|c| !word(c)).filter(|w| w.starts_with("sworn_")).map(str::to_owned).collect()
}

/// Names of measurements in the crates' `measure.rs`, and in this crate's source.
fn measured() -> BTreeSet<String> {
    let crates = root().join("crates");
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(crates).unwrap() {
        if let Ok(text) = std::fs::read_to_string(entry.unwrap().path().join("src/measure.rs")) {
            names.extend(text.lines().filter(|l| l.contains("const ")).flat_map(words));
        }
    }
    let pulse = include_str!("../src/pulse.rs");
    names.extend(pulse.lines().filter(|l| l.contains("const ")).flat_map(words));
    names
}

/// Names that a query may use: a histogram's parts have their own.
fn exported(names: &BTreeSet<String>) -> BTreeSet<String> {
    let (histograms, plain): (Vec<_>, Vec<_>) =
        names.iter().cloned().partition(|n| n.ends_with("_seconds") && !n.contains("timestamp"));
    let parts = histograms.iter().flat_map(|h| ["_bucket", "_sum", "_count"].map(|part| format!("{h}{part}")));
    plain.into_iter().chain(parts).collect()
}

#[test]
fn dashboard_and_alerts_name_what_is_measured() {
    let names = measured();
    assert!(names.len() >= 25, "{names:?}");
    let exported = exported(&names);
    let dashboard = std::fs::read_to_string(root().join("ops/grafana/dashboards/sworn.json")).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&dashboard).unwrap();
    let mut shown = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            shown.extend(words(target["expr"].as_str().unwrap()));
        }
    }
    let alerts = words(&std::fs::read_to_string(root().join("ops/prometheus/alerts.yml")).unwrap());
    let unknown: Vec<_> = shown.union(&alerts).filter(|n| !exported.contains(*n)).collect();
    assert!(unknown.is_empty(), "nobody measures {unknown:?}");
    let hidden: Vec<_> = names.iter().filter(|n| !shown.iter().any(|s| s.starts_with(n.as_str()))).collect();
    assert!(hidden.is_empty(), "the dashboard does not show {hidden:?}");
}
