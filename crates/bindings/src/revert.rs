//! Revert data as something a person can act on.

use std::collections::HashMap;
use std::fmt;
use std::sync::OnceLock;

use alloy::dyn_abi::{DynSolValue, ErrorExt};
use alloy::json_abi::{Error as AbiError, JsonAbi};
use alloy::sol_types::{Panic, Revert as RevertString, SolError};

use crate::{IChallenges, IChannels, IERC20, ILibraryErrors, IMarket, IModels, INodes, ITrees, ITrials};

include!(concat!(env!("OUT_DIR"), "/notices.rs"));

/// A decoded revert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revert {
    /// The error's name in Solidity; `Error`, `Panic` and `revert` for what has no name of its own.
    pub name: String,
    /// Its parameters with their values, printed.
    pub args: Vec<(String, String)>,
    /// What it means; empty if nothing is known.
    pub meaning: String,
}

impl Revert {
    /// Whether it is the payment token that refuses, for want of money or of leave to take it: later it may not. Tokens older than
    /// ERC-6093 say so in words.
    pub fn is_the_tokens(&self) -> bool {
        self.name == "Error" || self.name.starts_with("ERC20") || self.name.starts_with("SafeERC20")
    }

    /// Decodes what a call reverted with. Never fails: unknown data is shown as it is.
    pub fn decode(data: &[u8]) -> Self {
        if data.is_empty() {
            return Revert::plain("revert", "the contract gave no reason; is it deployed at this address?");
        }
        if let Ok(e) = RevertString::abi_decode(data) {
            return Revert::plain("Error", &e.reason);
        }
        if let Ok(e) = Panic::abi_decode(data) {
            return Revert::plain("Panic", &e.to_string());
        }
        let known = data.first_chunk::<4>().and_then(|selector| errors().get(selector));
        if let Some(known) = known
            && let Ok(decoded) = known.abi.decode_error(data)
        {
            let names = known.abi.inputs.iter().map(|p| p.name.clone());
            return Revert {
                name: known.abi.name.clone(),
                args: names.zip(decoded.body.iter().map(print)).collect(),
                meaning: known.meaning.to_owned(),
            };
        }
        Revert::plain("revert", &format!("unknown reason 0x{}", alloy::hex::encode(data)))
    }

    /// Whether the error has this name.
    pub fn is(&self, name: &str) -> bool {
        self.name == name
    }

    /// The printed value of a parameter.
    pub fn arg(&self, name: &str) -> Option<&str> {
        self.args.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    fn plain(name: &str, meaning: &str) -> Self {
        Revert { name: name.to_owned(), args: Vec::new(), meaning: meaning.to_owned() }
    }
}

impl fmt::Display for Revert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.meaning.is_empty() {
            write!(f, "{} [", self.meaning)?;
        }
        f.write_str(&self.name)?;
        if !self.args.is_empty() {
            let args: Vec<_> = self.args.iter().map(|(n, v)| format!("{n} = {v}")).collect();
            write!(f, "({})", args.join(", "))?;
        }
        if self.meaning.is_empty() { Ok(()) } else { f.write_str("]") }
    }
}

struct Known {
    abi: AbiError,
    meaning: &'static str,
}

fn errors() -> &'static HashMap<[u8; 4], Known> {
    static ERRORS: OnceLock<HashMap<[u8; 4], Known>> = OnceLock::new();
    ERRORS.get_or_init(|| {
        let interfaces: [(&str, JsonAbi); 9] = [
            ("ITrees", ITrees::abi::contract()),
            ("IModels", IModels::abi::contract()),
            ("INodes", INodes::abi::contract()),
            ("IMarket", IMarket::abi::contract()),
            ("IChannels", IChannels::abi::contract()),
            ("ITrials", ITrials::abi::contract()),
            ("IChallenges", IChallenges::abi::contract()),
            ("IERC20", IERC20::abi::contract()),
            ("ILibraryErrors", ILibraryErrors::abi::contract()),
        ];
        let mut map = HashMap::new();
        for (interface, abi) in interfaces {
            for error in abi.errors.into_values().flatten() {
                let meaning = NOTICES.iter().find(|(i, e, _)| *i == interface && *e == error.name);
                let meaning = meaning.map_or("", |(_, _, text)| text);
                map.entry(error.selector().0).or_insert(Known { abi: error, meaning });
            }
        }
        map
    })
}

fn print(value: &DynSolValue) -> String {
    match value {
        DynSolValue::Address(a) => a.to_string(),
        DynSolValue::Bool(b) => b.to_string(),
        DynSolValue::Int(i, _) => i.to_string(),
        DynSolValue::Uint(u, _) => u.to_string(),
        DynSolValue::FixedBytes(w, n) => format!("0x{}", alloy::hex::encode(&w[..*n])),
        DynSolValue::Bytes(b) => format!("0x{}", alloy::hex::encode(b)),
        DynSolValue::String(s) => format!("{s:?}"),
        DynSolValue::Array(v) | DynSolValue::FixedArray(v) | DynSolValue::Tuple(v) => {
            format!("[{}]", v.iter().map(print).collect::<Vec<_>>().join(", "))
        }
        other => format!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy::primitives::{B256, U256};

    #[test]
    fn every_custom_error_has_a_meaning() {
        assert!(errors().len() >= 60, "{}", errors().len());
        let mute: Vec<_> = errors().values().filter(|k| k.meaning.is_empty()).map(|k| &k.abi.name).collect();
        assert!(mute.is_empty(), "without @notice: {mute:?}");
    }

    #[test]
    fn readable() {
        let data = IMarket::UnderChallenge { jobId: U256::from(3) }.abi_encode();
        let revert = Revert::decode(&data);
        assert!(revert.is("UnderChallenge"));
        assert_eq!(revert.arg("jobId"), Some("3"));
        assert!(revert.to_string().ends_with("[UnderChallenge(jobId = 3)]"), "{revert}");

        let data = IChallenges::AnswerMismatch { actual: B256::ZERO, expected: B256::repeat_byte(1) }.abi_encode();
        assert!(Revert::decode(&data).to_string().contains("expected = 0x0101"));
        let data = INodes::InsufficientFreeStake { node: Default::default(), free: U256::ZERO, needed: U256::ONE };
        assert_eq!(Revert::decode(&data.abi_encode()).arg("needed"), Some("1"));
    }

    #[test]
    fn anything_decodes() {
        assert!(Revert::decode(&[]).to_string().contains("deployed"));
        assert!(Revert::decode(&[1, 2]).to_string().contains("0x0102"));
        let text = RevertString::from("why not").abi_encode();
        assert!(Revert::decode(&text).to_string().contains("why not"));
        let mut cut = IMarket::UnderChallenge { jobId: U256::from(3) }.abi_encode();
        cut.truncate(10);
        assert!(Revert::decode(&cut).is("revert"));
    }
}
