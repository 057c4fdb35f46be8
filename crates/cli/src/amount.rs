//! Money as people write it. Never a float: digits in, digits out.

use alloy::primitives::U256;
use alloy::primitives::utils::{ParseUnits, format_units, parse_units};

use crate::fault::{Fault, Result};

/// The payment token's name and precision.
#[derive(Clone, Debug)]
pub(crate) struct Currency {
    /// Its symbol.
    pub(crate) symbol: String,
    /// Its decimals.
    pub(crate) decimals: u8,
}

impl Currency {
    /// Reads `12.5`; more digits than the token has are refused rather than rounded.
    pub(crate) fn parse(&self, text: &str) -> Result<u128> {
        let wrong = || {
            Fault::usage(format!(
                "{text:?} is no amount of {}: write digits with at most {} decimals, like 12.5",
                self.symbol, self.decimals
            ))
        };
        let plain = text.trim();
        let fraction = plain.split_once('.').map_or("", |(_, f)| f);
        if plain.is_empty()
            || !plain.bytes().all(|b| b.is_ascii_digit() || b == b'.')
            || fraction.len() > usize::from(self.decimals)
        {
            return Err(wrong());
        }
        match parse_units(plain, self.decimals) {
            Ok(ParseUnits::U256(value)) => u128::try_from(value).map_err(|_| wrong()),
            _ => Err(wrong()),
        }
    }

    /// All digits that matter, and the symbol.
    pub(crate) fn show(&self, value: U256) -> String {
        format!("{} {}", units(value, self.decimals), self.symbol)
    }
}

/// The chain's own currency, in ether.
pub(crate) fn ether(wei: U256) -> String {
    format!("{} ETH", units(wei, 18))
}

fn units(value: U256, decimals: u8) -> String {
    let text = format_units(value, decimals).unwrap_or_else(|_| value.to_string());
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SWD: fn() -> Currency = || Currency { symbol: "SWD".into(), decimals: 18 };

    #[test]
    fn amounts_are_exact_both_ways() {
        for (text, wei) in [
            ("0", 0),
            ("1", 10u128.pow(18)),
            ("0.000000000000000001", 1),
            ("12.5", 125 * 10u128.pow(17)),
            (".5", 5 * 10u128.pow(17)),
        ] {
            assert_eq!(SWD().parse(text).unwrap(), wei, "{text}");
        }
        assert_eq!(SWD().show(U256::from(125u128 * 10u128.pow(17))), "12.5 SWD");
        assert_eq!(SWD().show(U256::ONE), "0.000000000000000001 SWD");
        assert_eq!(SWD().show(U256::ZERO), "0 SWD");
    }

    #[test]
    fn what_is_no_amount_is_refused() {
        for text in [
            "",
            "-1",
            "1e3",
            "1,5",
            "0.0000000000000000001",
            "1.2.3",
            "ten",
            "0x10",
            "999999999999999999999999999999",
            "1_000",
        ] {
            assert_eq!(SWD().parse(text).unwrap_err().code(), 2, "{text}");
        }
    }
}
