//! Server-sent events, as far as the API uses them: `event`, `data`, comments.

use crate::{Error, Result};

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SseEvent {
    /// Its name; `message` if it has none.
    pub name: String,
    /// Its data, lines joined.
    pub data: String,
}

/// Reads events from pieces of a stream, wherever they are cut.
#[derive(Debug)]
pub struct SseReader {
    line: Vec<u8>,
    after_cr: bool,
    name: String,
    data: Vec<String>,
    held: usize,
    limit: usize,
}

impl SseReader {
    /// A reader that holds at most `limit` bytes of an unfinished event.
    pub fn new(limit: usize) -> Self {
        SseReader { line: Vec::new(), after_cr: false, name: String::new(), data: Vec::new(), held: 0, limit }
    }

    /// Events that end in this piece.
    ///
    /// # Errors
    /// An event is too long, or not UTF-8.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<SseEvent>> {
        let mut events = Vec::new();
        for byte in bytes {
            // A line ends with CR, LF, or both.
            match byte {
                b'\n' if self.after_cr => {}
                b'\n' | b'\r' => events.extend(self.end_line()?),
                other => {
                    self.held += 1;
                    if self.held > self.limit {
                        return Err(Error::TooLong(self.limit as u64));
                    }
                    self.line.push(*other);
                }
            }
            self.after_cr = *byte == b'\r';
        }
        Ok(events)
    }

    fn end_line(&mut self) -> Result<Option<SseEvent>> {
        let line = String::from_utf8(std::mem::take(&mut self.line));
        let line = line.map_err(|_| Error::Malformed("an event is not UTF-8".into()))?;
        if line.is_empty() {
            self.held = 0;
            let (name, data) = (std::mem::take(&mut self.name), std::mem::take(&mut self.data));
            if data.is_empty() {
                return Ok(None);
            }
            let name = if name.is_empty() { "message".into() } else { name };
            return Ok(Some(SseEvent { name, data: data.join("\n") }));
        }
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => self.name = value.to_owned(),
            "data" => {
                // An empty line of data costs memory too.
                self.held += std::mem::size_of::<String>();
                self.data.push(value.to_owned());
            }
            // Comments keep a connection alive; they are no part of an event.
            _ => self.held = self.held.saturating_sub(line.len()),
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn events_survive_any_cut(
            events in prop::collection::vec(("[a-z]{1,8}", "[ -~]{1,40}"), 1..6),
            cuts in prop::collection::vec(1usize..9, 1..40),
            ending in prop::sample::select(vec!["\n", "\r", "\r\n"]),
        ) {
            let mut text = format!(": hello{ending}{ending}");
            for (name, data) in &events {
                text += &format!("event: {name}{ending}data: {data}{ending}: alive{ending}{ending}");
            }
            let mut reader = SseReader::new(160);
            let mut got = Vec::new();
            let mut rest = text.as_bytes();
            for cut in cuts.iter().cycle() {
                let (piece, more) = rest.split_at((*cut).min(rest.len()));
                got.extend(reader.push(piece).unwrap());
                rest = more;
                if rest.is_empty() {
                    break;
                }
            }
            let sent: Vec<_> = events.into_iter().map(|(name, data)| SseEvent { name, data }).collect();
            prop_assert_eq!(got, sent);
        }
    }

    #[test]
    fn an_event_has_a_bound_and_a_charset() {
        assert!(matches!(SseReader::new(100).push(&[b'x'; 101]), Err(Error::TooLong(100))));
        // Lines without data cost memory too.
        assert!(SseReader::new(100).push(&b"data:\n".repeat(3)).is_ok_and(|e| e.is_empty()));
        assert!(matches!(SseReader::new(100).push(&b"data:\n".repeat(9)), Err(Error::TooLong(_))));
        assert!(matches!(SseReader::new(100).push(b"data: \xff\n"), Err(Error::Malformed(_))));
        // Comments may go on for ever.
        let mut reader = SseReader::new(100);
        for _ in 0..1_000 {
            assert_eq!(reader.push(b": alive\n\n").unwrap(), []);
        }
        let plain = reader.push(b"data: a\ndata:b\nid: 4\n\n").unwrap();
        assert_eq!(plain, [SseEvent { name: "message".into(), data: "a\nb".into() }]);
    }
}
