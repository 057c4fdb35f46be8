//! Figures of tests that try many things, for the table that `make test` ends with.

use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::Write;

/// Names the file to which figures are added; without it they are only printed.
pub const VARIABLE: &str = "SWORN_TRIED";

/// Tells that `what` was tried so often, and how often it failed.
///
/// # Panics
/// The file cannot be written.
#[allow(clippy::print_stdout, reason = "the figures are the test's report")]
pub fn tried(what: &str, times: u64, failures: u64, figures: impl Display) {
    println!("{what}: {times} tried, {failures} failed; {figures}");
    if let Some(path) = std::env::var_os(VARIABLE) {
        let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
        // One write, since tests are processes of their own.
        file.write_all(format!("{what}\t{times}\t{failures}\t{figures}\n").as_bytes()).unwrap();
    }
}

/// How often to try: the variable's number, else `usual`.
///
/// # Panics
/// The variable is no number.
pub fn times(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).map_or(usual, |n| n.parse().unwrap_or_else(|e| panic!("{variable}={n}: {e}")))
}
