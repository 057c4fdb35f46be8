//! Wide integers in JSON: decimal strings, because a JSON number loses digits in most readers.
//!
//! `#[serde(with = "sworn_receipts::decimal")]` for a field; [`option`] for one that may be absent.

use std::fmt::Display;
use std::str::FromStr;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serializer};

/// Digits of the longest 256-bit number.
const DIGITS: usize = 78;

/// Writes a decimal string.
///
/// # Errors
/// The serializer's.
pub fn serialize<T: Display, S: Serializer>(value: &T, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(value)
}

/// Reads a decimal string: digits only, no sign, no leading zero but for zero itself.
///
/// # Errors
/// It is none, or the number does not fit.
pub fn deserialize<'de, T: FromStr, D: Deserializer<'de>>(d: D) -> Result<T, D::Error> {
    let text = String::deserialize(d)?;
    parse(&text).ok_or_else(|| D::Error::custom(format!("{:?} is no decimal number that fits", shown(&text))))
}

fn parse<T: FromStr>(text: &str) -> Option<T> {
    let digits = (1..=DIGITS).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    let canonical = text == "0" || !text.starts_with('0');
    (digits && canonical).then(|| text.parse().ok()).flatten()
}

fn shown(text: &str) -> String {
    text.chars().take(DIGITS).collect()
}

/// The same for an optional field.
pub mod option {
    use super::{Deserialize, Deserializer, Display, Error, FromStr, Serializer, parse, shown};

    /// Writes a decimal string, or null.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<T: Display, S: Serializer>(value: &Option<T>, s: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => s.collect_str(value),
            None => s.serialize_none(),
        }
    }

    /// Reads a decimal string or null.
    ///
    /// # Errors
    /// It is neither.
    pub fn deserialize<'de, T: FromStr, D: Deserializer<'de>>(d: D) -> Result<Option<T>, D::Error> {
        let Some(text) = Option::<String>::deserialize(d)? else { return Ok(None) };
        let number = parse(&text);
        number.map(Some).ok_or_else(|| D::Error::custom(format!("{:?} is no decimal number that fits", shown(&text))))
    }
}

#[cfg(test)]
mod tests {
    use alloy::primitives::U256;
    use serde::{Deserialize, Serialize};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Both {
        #[serde(with = "super")]
        wide: U256,
        #[serde(default, with = "super::option")]
        maybe: Option<u128>,
    }

    #[test]
    fn only_plain_numbers_that_fit() {
        let read =
            |wide: &str, maybe: &str| serde_json::from_str::<Both>(&format!(r#"{{"wide":{wide},"maybe":{maybe}}}"#));
        let most = U256::MAX.to_string();
        assert_eq!(read(&format!("{most:?}"), "null").unwrap(), Both { wide: U256::MAX, maybe: None });
        assert_eq!(read("\"0\"", "\"7\"").unwrap(), Both { wide: U256::ZERO, maybe: Some(7) });
        let over = format!("\"{}0\"", most);
        for bad in ["\"\"", "\"-1\"", "\"+1\"", "\"01\"", "\" 1\"", "\"0x1\"", "\"1e3\"", "1", &over] {
            assert!(read(bad, "null").is_err(), "{bad}");
            assert!(read("\"0\"", bad).is_err(), "{bad}");
        }
        assert!(read("\"0\"", &format!("{:?}", (u128::MAX).to_string() + "0")).is_err());
    }
}
