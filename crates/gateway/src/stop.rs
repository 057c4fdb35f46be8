//! Strings that end an answer, found in its text as it comes.

/// Cuts a text before the first stop string. Where the text's pieces begin and end makes no difference: it ends with the first character that
/// completes a stop string, and of several that end there the longest is cut off.
#[derive(Clone, Debug)]
pub struct StopText {
    stops: Vec<String>,
    /// Text that could become a stop string.
    held: String,
    stopped_by: Option<String>,
}

impl StopText {
    /// With these stop strings; with none everything passes. An empty one is none.
    pub fn new(stops: &[String]) -> Self {
        let mut stops: Vec<String> = stops.iter().filter(|s| !s.is_empty()).cloned().collect();
        stops.sort_by_key(|s| std::cmp::Reverse(s.len()));
        Self { stops, held: String::new(), stopped_by: None }
    }

    /// Takes a piece of the text; gives what is certain to lie before any stop string.
    pub fn push(&mut self, piece: &str) -> String {
        let mut certain = String::new();
        for c in piece.chars() {
            if self.stopped_by.is_some() {
                break;
            }
            self.held.push(c);
            if let Some(stop) = self.stops.iter().find(|s| self.held.ends_with(s.as_str())) {
                self.held.truncate(self.held.len() - stop.len());
                certain.push_str(&self.held);
                self.held.clear();
                self.stopped_by = Some(stop.clone());
                break;
            }
            let keep = self.beginning();
            certain.push_str(&self.held[..keep]);
            self.held.drain(..keep);
        }
        certain
    }

    /// What was held back when no more text comes.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// The stop string that was found.
    pub fn stopped_by(&self) -> Option<&str> {
        self.stopped_by.as_deref()
    }

    /// Where the longest end of what is held begins that a stop string begins with.
    fn beginning(&self) -> usize {
        let starts = self.held.char_indices().map(|(at, _)| at);
        let mut starts = starts.filter(|at| self.stops.iter().any(|s| s.starts_with(&self.held[*at..])));
        starts.next().unwrap_or(self.held.len())
    }
}

/// All of a text that lies before the first stop string.
pub fn cut(text: &str, stops: &[String]) -> String {
    let mut stop = StopText::new(stops);
    let mut kept = stop.push(text);
    kept.push_str(&stop.finish());
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stops(stops: &[&str]) -> Vec<String> {
        stops.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn cuts_before_what_ends_first() {
        for (text, with, want) in [
            ("one two", &["two"][..], "one "),
            ("one two", &[], "one two"),
            ("one tw", &["two"], "one tw"),
            ("aab", &["ab"], "a"),
            ("ababc", &["abc"], "ab"),
            ("abc", &["abcd", "b"], "a"),
            ("xabc", &["c", "abc"], "x"),
            ("User: a\nUser: b", &["\nUser:"], "User: a"),
            ("grün—blau", &["—"], "grün"),
            ("stop", &["stop"], ""),
        ] {
            assert_eq!(cut(text, &stops(with)), want, "{text} {with:?}");
        }
        assert_eq!(cut("x", &stops(&[""])), "x");
    }

    #[test]
    fn pieces_make_no_difference_and_nothing_is_taken_back() {
        let (text, with) = ("the — quick ##\n# brown ### fox ###", stops(&["###", "#\n##", "—!"]));
        let chars: Vec<char> = text.chars().collect();
        for a in 0..=chars.len() {
            for b in a..=chars.len() {
                let mut stop = StopText::new(&with);
                let mut kept = String::new();
                for piece in [&chars[..a], &chars[a..b], &chars[b..]] {
                    kept.push_str(&stop.push(&piece.iter().collect::<String>()));
                    assert!("the — quick ##\n# brown ".starts_with(&kept));
                }
                kept.push_str(&stop.finish());
                assert_eq!((kept.as_str(), stop.stopped_by()), ("the — quick ##\n# brown ", Some("###")));
            }
        }
    }
}
