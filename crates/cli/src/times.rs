//! Times as people read them, against the chain's clock.

/// `in 25 s`, `3 min ago`.
pub(crate) fn relative(at: u64, now: u64) -> String {
    if at >= now { format!("in {}", span(at - now)) } else { format!("{} ago", span(now - at)) }
}

/// The two largest units of a number of seconds.
pub(crate) fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min {} s", seconds / 60, seconds % 60),
        7200..172_800 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_two_units() {
        let spans = [(5, "5 s"), (125, "2 min 5 s"), (7260, "2 h 1 min"), (180_000, "2 d 2 h")];
        assert!(spans.iter().all(|(s, text)| span(*s) == *text));
        assert_eq!((relative(10, 5), relative(5, 10)), ("in 5 s".to_owned(), "5 s ago".to_owned()));
    }
}
