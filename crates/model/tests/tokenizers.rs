//! Vocabularies of the SentencePiece kind: encoded as their scores say, decoded and streamed byte by byte.

use std::collections::HashMap;

use proptest::prelude::*;
use sworn_model::{
    Tokenizer,
    tokenizer::{PreTokenizer, SentencePiece, Vocabulary},
};

const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER: i64 = 4;
const BYTE: i64 = 6;

/// Pieces in order of their scores, after three special tokens and the bytes.
struct Pieces {
    tokens: Vec<String>,
    kinds: Vec<i64>,
    scores: Vec<f32>,
}

impl Pieces {
    fn new(pieces: &[&str]) -> Self {
        let mut p = Pieces { tokens: vec![], kinds: vec![], scores: vec![] };
        p.push("<unk>", UNKNOWN);
        p.push("<s>", CONTROL);
        p.push("</s>", CONTROL);
        (0..=255u8).for_each(|b| p.push(&format!("<0x{b:02X}>"), BYTE));
        pieces.iter().for_each(|t| p.push(t, NORMAL));
        p
    }

    fn push(&mut self, token: &str, kind: i64) {
        self.scores.push(-(self.tokens.len() as f32));
        self.tokens.push(token.to_owned());
        self.kinds.push(kind);
    }

    fn json(&self, space_prefix: bool) -> Vec<u8> {
        self.with_merges(space_prefix, None)
    }

    fn with_merges(&self, space_prefix: bool, merges: Option<&[String]>) -> Vec<u8> {
        let (tokens, kinds, scores) = (&self.tokens, &self.kinds, &self.scores);
        SentencePiece { tokens, kinds, scores, merges, unknown: Some(0), space_prefix }.to_json().unwrap()
    }

    fn tokenizer(&self, space_prefix: bool) -> Tokenizer {
        Tokenizer::from_json(&self.json(space_prefix)).unwrap()
    }

    fn id(&self, token: &str) -> u32 {
        self.tokens.iter().position(|t| t == token).unwrap() as u32
    }

    /// The definition: of all neighbours whose union is a piece, join those with the best score, the leftmost of equals.
    fn by_definition(&self, text: &str) -> Vec<u32> {
        let normal: HashMap<&str, usize> =
            (0..self.tokens.len()).filter(|i| self.kinds[*i] == NORMAL).map(|i| (self.tokens[i].as_str(), i)).collect();
        let mut parts: Vec<String> = format!("▁{}", text.replace(' ', "▁")).chars().map(String::from).collect();
        loop {
            let score =
                |i: usize| normal.get(format!("{}{}", parts[i], parts[i + 1]).as_str()).map(|id| self.scores[*id]);
            let joins = (0..parts.len().saturating_sub(1)).filter_map(|i| score(i).map(|s| (s, std::cmp::Reverse(i))));
            let Some((_, std::cmp::Reverse(i))) = joins.max_by(|a, b| a.partial_cmp(b).unwrap()) else { break };
            let right = parts.remove(i + 1);
            parts[i] += &right;
        }
        let ids = |p: &String| match normal.get(p.as_str()) {
            Some(id) => vec![*id as u32],
            None => p.bytes().map(|b| 3 + u32::from(b)).collect(),
        };
        parts.iter().flat_map(ids).collect()
    }
}

fn english() -> Pieces {
    Pieces::new(&["▁t", "he", "▁the", "in", "▁", "t", "h", "e", "i", "n", "g", "ing", "th", "o", "é"])
}

#[test]
fn pieces_bytes_and_special_tokens() {
    let p = english();
    let t = p.tokenizer(true);
    assert_eq!(t.encode("the").unwrap(), [p.id("▁the")]);
    assert_eq!(t.encode("thing").unwrap(), [p.id("▁t"), p.id("h"), p.id("ing")]);
    assert_eq!(t.encode("\n").unwrap(), [p.id("▁"), 3 + 10]);
    assert_eq!(t.encode("<s>the</s>").unwrap(), [1, p.id("▁the"), 2], "a space of its own after each special token");
    assert_eq!(p.tokenizer(false).encode("<s>the</s>").unwrap(), [1, p.id("t"), p.id("he"), 2]);
    assert!(t.is_special(0) && t.is_special(1) && !t.is_special(3) && !t.is_special(p.id("he")));

    assert_eq!(t.decode(&[p.id("▁the"), p.id("▁the")], false), "the the");
    assert_eq!(t.decode(&[1, p.id("▁the")], false), "the", "special tokens that are left out are no beginning");
    assert_eq!(t.decode(&[1, p.id("▁the")], true), "<s> the");
    assert_eq!(t.decode(&[p.id("▁"), p.id("▁the")], false), " the", "one space only");
    assert_eq!(p.tokenizer(false).decode(&[p.id("▁the")], false), " the");
    assert_eq!(t.decode(&[3 + 0xF0, 3 + 0x9F, p.id("t")], false), "\u{FFFD}t");
    assert_eq!(t.token_bytes(3 + 0xF0), [0xF0]);
    assert_eq!(t.token_bytes(p.id("▁the")), b" the");
}

#[test]
fn streams_hold_back_unfinished_characters() {
    let p = english();
    let t = p.tokenizer(true);
    let mut s = t.stream(false);
    let pieces: Vec<String> =
        [1, p.id("▁t"), 3 + 0xE2, 3 + 0x82, 3 + 0xAC, p.id("é"), 3 + 0xC3].map(|id| s.push(id)).to_vec();
    assert_eq!(pieces, ["", "t", "", "", "€", "é", ""]);
    assert_eq!(s.finish(), "\u{FFFD}");
}

#[test]
fn tokens_of_the_user_are_found_before_anything_else() {
    let mut p = Pieces::new(&["▁", "a", "▁▁"]);
    p.push("▁▁▁", USER);
    p.push("[x]", USER);
    let t = p.tokenizer(false);
    assert_eq!(t.encode("a   a").unwrap(), [p.id("a"), p.id("▁▁▁"), p.id("a")]);
    assert_eq!(t.encode("a[x]").unwrap(), [p.id("a"), p.id("[x]")]);
    assert_eq!(t.decode(&[p.id("▁▁▁"), p.id("[x]")], false), "   [x]");
    assert!(!t.is_special(p.id("[x]")));
}

#[test]
fn the_file_is_the_same_everywhere() {
    let p = english();
    assert_eq!(p.json(true), p.json(true));
    let text = String::from_utf8(p.json(true)).unwrap();
    assert!(text.contains(r#""merges":[["▁","t"],["h","e"],["▁t","he"],["i","n"],["in","g"],["t","h"]]"#), "{text}");
    let own: Vec<String> = ["t h", "▁ t"].map(String::from).to_vec();
    let text = String::from_utf8(p.with_merges(true, Some(&own))).unwrap();
    assert!(text.contains(r#""merges":[["t","h"],["▁","t"]]"#), "a file's own merges are kept");
}

#[test]
fn contradictions_are_errors() {
    let p = english();
    let json = |kinds: &[i64], scores: &[f32], merges: Option<&[String]>, unknown| {
        SentencePiece { tokens: &p.tokens, kinds, scores, merges, unknown, space_prefix: true }.to_json()
    };
    json(&p.kinds, &p.scores, None, None).unwrap();
    assert!(json(&p.kinds[1..], &p.scores, None, None).is_err());
    assert!(json(&p.kinds, &p.scores[1..], None, None).is_err());
    assert!(json(&p.kinds, &p.scores, None, Some(9999)).is_err());
    assert!(json(&p.kinds, &p.scores, Some(&["t x".to_owned()]), None).is_err());
    let mut nan = p.scores.clone();
    nan[260] = f32::NAN;
    assert!(json(&p.kinds, &nan, None, None).is_err());
    let twice: Vec<String> = p.tokens.iter().map(|_| "a".to_owned()).collect();
    let twice = SentencePiece {
        tokens: &twice,
        kinds: &p.kinds,
        scores: &p.scores,
        merges: None,
        unknown: None,
        space_prefix: true,
    };
    assert!(twice.to_json().is_err());
}

#[test]
fn words_of_mistrals_newer_vocabulary_end_with_lower_case() {
    let cut = |pre: PreTokenizer, text: &str, merge: &str| {
        let alphabet: Vec<String> = (33..=126u8).map(|b| char::from(b).to_string()).chain(["Ġ".to_owned()]).collect();
        let tokens: Vec<String> = alphabet.into_iter().chain([merge.replace(' ', "")]).collect();
        let kinds = vec![1; tokens.len()];
        let v = Vocabulary { tokens: &tokens, kinds: &kinds, merges: &[merge.to_owned()], pre, unknown: None };
        Tokenizer::from_json(&v.to_json().unwrap()).unwrap().encode(text).unwrap().len()
    };
    for (text, merge, llama3, tekken) in
        [("aB", "a B", 1, 2), ("ab", "a b", 1, 1), ("12", "1 2", 1, 2), ("a b", "a b", 3, 3)]
    {
        assert_eq!(cut(PreTokenizer::Llama3, text, merge), llama3, "{text}");
        assert_eq!(cut(PreTokenizer::from_name("tekken").unwrap(), text, merge), tekken, "{text}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn encoding_follows_the_scores(
        pieces in proptest::collection::btree_set("[▁abc]{2,4}", 0..20),
        order in any::<u64>(),
        texts in proptest::collection::vec("[abcdé ]{0,16}", 10),
    ) {
        let mut pieces: Vec<&str> = ["▁", "a", "b", "c"].into_iter().chain(pieces.iter().map(String::as_str)).collect();
        let by = (order % pieces.len() as u64) as usize;
        pieces.rotate_left(by);
        if order & 1 << 40 != 0 { pieces.reverse(); }
        let p = Pieces::new(&pieces);
        let t = p.tokenizer(true);
        for text in &texts {
            let ids = t.encode(text).unwrap();
            let want = if text.is_empty() { vec![] } else { p.by_definition(text) };
            prop_assert_eq!(&ids, &want, "{:?} with {:?}", text, pieces);
            prop_assert_eq!(&t.decode(&ids, false), text);
        }
    }

    #[test]
    fn any_text_comes_back_and_streams(text in "\\PC{0,40}|(?s).{0,20}", prefix in any::<bool>()) {
        // The one character that such a vocabulary cannot tell from a space.
        let text = text.replace('▁', "_");
        let t = english().tokenizer(prefix);
        let ids = t.encode(&text).unwrap();
        prop_assert_eq!(&t.decode(&ids, false), &text);
        let mut stream = t.stream(false);
        let streamed: String = ids.iter().map(|id| stream.push(*id)).collect();
        prop_assert_eq!(streamed + &stream.finish(), text);
    }

    #[test]
    fn any_tokens_decode_as_their_bytes_do(ids in proptest::collection::vec(3u32..280, 0..60)) {
        let t = english().tokenizer(true);
        let bytes: Vec<u8> = ids.iter().flat_map(|i| t.token_bytes(*i).to_vec()).collect();
        let bytes = bytes.strip_prefix(b" ").unwrap_or(&bytes);
        prop_assert_eq!(t.decode(&ids, true), String::from_utf8_lossy(bytes));
    }
}
