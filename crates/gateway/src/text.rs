//! From tokens to text as it comes: whole characters only, nothing that could still become a stop string, and each token's probability
//! with the text it belongs to.

use std::collections::VecDeque;

use sworn_model::{Model, TextStream, Tokenizer};

use crate::error::ApiError;
use crate::stop::StopText;
use crate::upstream::{Logprobs, Token};

/// Text that is certain, and the probabilities of its tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Piece {
    pub(crate) text: String,
    pub(crate) tokens: Vec<Told>,
}

impl Piece {
    pub(crate) fn is_empty(&self) -> bool {
        self.text.is_empty() && self.tokens.is_empty()
    }
}

/// A token with its probability, as text.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Told {
    pub(crate) bytes: Vec<u8>,
    pub(crate) logprob: f64,
    pub(crate) top: Vec<(Vec<u8>, f64)>,
    /// Characters of the answer before it.
    pub(crate) offset: usize,
}

/// A probability that waits for its text, which lies between two bytes of all that was decoded.
struct Waiting {
    told: Told,
    start: usize,
    end: usize,
}

/// Reads one answer.
pub(crate) struct Reading<'a> {
    tokenizer: &'a Tokenizer,
    stop_tokens: &'a [u32],
    stream: TextStream<'a>,
    stop: StopText,
    taken: u32,
    decoded: usize,
    characters: usize,
    shown: usize,
    waiting: VecDeque<Waiting>,
}

impl<'a> Reading<'a> {
    pub(crate) fn new(model: &'a Model, stops: &[String]) -> Result<Self, ApiError> {
        let tokenizer = model.tokenizer().map_err(|e| ApiError::internal(&e))?;
        Ok(Reading {
            tokenizer,
            stop_tokens: &model.manifest().stop_tokens,
            stream: tokenizer.stream(false),
            stop: StopText::new(stops),
            taken: 0,
            decoded: 0,
            characters: 0,
            shown: 0,
            waiting: VecDeque::new(),
        })
    }

    /// Tokens so far.
    pub(crate) fn taken(&self) -> u32 {
        self.taken
    }

    /// Whether a stop string was found: no text comes any more.
    pub(crate) fn stopped(&self) -> bool {
        self.stop.stopped_by().is_some()
    }

    /// The next token.
    pub(crate) fn push(&mut self, token: &Token) -> Piece {
        self.taken += 1;
        let text = self.stream.push(token.token);
        let (start, offset) = (self.decoded, self.characters);
        self.decoded += text.len();
        self.characters += text.chars().count();
        if let Some(logprobs) = &token.logprobs
            && !self.stop_tokens.contains(&token.token)
        {
            let told = self.told(token.token, logprobs, offset);
            // The beginning of a character is shown with its end.
            let begins = text.is_empty() && !told.bytes.is_empty();
            let end = self.decoded + usize::from(begins);
            self.waiting.push_back(Waiting { told, start, end });
        }
        let text = self.stop.push(&text);
        self.release(text)
    }

    /// No token follows.
    pub(crate) fn finish(&mut self) -> Piece {
        let rest = self.stream.finish();
        self.decoded += rest.len();
        let mut text = self.stop.push(&rest);
        text.push_str(&self.stop.finish());
        self.release(text)
    }

    fn told(&self, token: u32, logprobs: &Logprobs, offset: usize) -> Told {
        let bytes = |t: u32| self.tokenizer.token_bytes(t).to_vec();
        let top = logprobs.top.iter().map(|(t, l)| (bytes(*t), natural(*l))).collect();
        Told { bytes: bytes(token), logprob: natural(logprobs.chosen), top, offset }
    }

    fn release(&mut self, text: String) -> Piece {
        self.shown += text.len();
        let mut tokens = Vec::new();
        while let Some(w) = self.waiting.front() {
            // A token that a stop string cut in two is told of, one that it took whole is not.
            if w.end > self.shown && !(self.stopped() && w.start < self.shown) {
                break;
            }
            tokens.extend(self.waiting.pop_front().map(|w| w.told));
        }
        Piece { text, tokens }
    }
}

/// Q14 as OpenAI's clients read it.
fn natural(q14: i32) -> f64 {
    f64::from(q14) / f64::from(1u32 << 14)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sworn_model::{SyntheticSpec, synthetic};

    fn read(model: &Model, text: &str, stops: &[&str]) -> (String, usize, bool) {
        let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
        let ids = model.tokenizer().unwrap().encode(text).unwrap();
        let mut reading = Reading::new(model, &stops).unwrap();
        let (mut shown, mut told) = (String::new(), 0);
        for token in ids {
            let logprobs = Some(Logprobs { chosen: -16384, top: vec![(token, -16384)] });
            let piece = reading.push(&Token { token, logprobs });
            assert!(piece.tokens.iter().all(|t| t.logprob == -1.0 && t.top.len() == 1));
            shown.push_str(&piece.text);
            told += piece.tokens.len();
            if reading.stopped() {
                break;
            }
        }
        let last = reading.finish();
        shown.push_str(&last.text);
        (shown, told + last.tokens.len(), reading.stopped())
    }

    #[test]
    fn characters_are_whole_and_stop_strings_never_show() {
        let dir = tempfile::tempdir().unwrap();
        let model = synthetic(&SyntheticSpec::default(), dir.path()).unwrap();
        // A token per byte here, but for pairs of letters: every character beyond ASCII spans tokens.
        assert_eq!(read(&model, "grün — 🦀!", &[]).0, "grün — 🦀!");
        assert_eq!(read(&model, "grün — 🦀!", &["🦀"]), ("grün — ".into(), 10, true));
        assert_eq!(read(&model, "one\nUser: two", &["\nUser:"]).0, "one");
        assert_eq!(read(&model, "one\nUse", &["\nUser:"]), ("one\nUse".into(), 7, false));
    }
}
