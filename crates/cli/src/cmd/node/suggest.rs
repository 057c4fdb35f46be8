//! `sworn node suggest`: a price from what this machine costs and does, and from what others ask.

use alloy::primitives::{B256, U256};
use serde::Serialize;
use sworn_engine::{Request, generate};

use super::list;
use crate::args::SuggestPrice;
use crate::backend;
use crate::fault::{Fault, Result};
use crate::link::Link;
use crate::models;
use crate::settings::Settings;

/// Tokens of the prompt and of the answer that are timed.
const PROMPT: u32 = 128;
const ANSWER: u32 = 64;
/// Nanoseconds of an hour.
const HOUR: u64 = 3_600_000_000_000;

/// Prices are in the token's smallest unit, per token.
#[derive(Serialize)]
struct Suggestion {
    prefill_tok_s: f64,
    decode_tok_s: f64,
    /// what a token costs this machine
    cost_input: String,
    cost_output: String,
    /// the middle of what nodes ask that offer the model; none: nobody does
    market_input: Option<String>,
    market_output: Option<String>,
    input: String,
    output: String,
}

pub(super) async fn run(settings: &Settings, command: SuggestPrice) -> Result<()> {
    let link = Link::open(settings).await?;
    let currency = &link.currency;
    let (kwh, hour) = (currency.parse(&command.kwh)?, currency.parse(&command.hour)?);
    let model = models::load(settings, &command.engine.model)?;
    let id = B256::from(model.id());
    let choice = command.engine.backend;
    let (prefill_tok_s, decode_tok_s) = backend::blocking(move || {
        let vocabulary = model.manifest().vocab.max(1);
        let prompt: Vec<u32> = (0..PROMPT).map(|i| i * 97 % vocabulary).collect();
        let chosen = backend::open(model, choice)?;
        let request = Request { prompt: &prompt, max_new: ANSWER, stop: &[], run: Default::default(), cancel: None };
        // The first run warms caches and compiles kernels.
        generate(&*chosen.backend, &request, &mut |_| {})?;
        let timed = generate(&*chosen.backend, &request, &mut |_| {})?;
        Ok((timed.prefill_tok_s, timed.decode_tok_s))
    })
    .await?;
    let per_hour = U256::from(kwh) * U256::from(command.watts) / U256::from(1000u32) + U256::from(hour);
    let cost_input = cost(per_hour, nanoseconds(prefill_tok_s)?);
    let cost_output = cost(per_hour, nanoseconds(decode_tok_s)?);
    let (market_input, market_output) = list::market(&link, id).await?;
    let input = suggest(cost_input, command.margin, market_input);
    let output = suggest(cost_output, command.margin, market_output);

    let text = |v: Option<U256>| v.map(|v| v.to_string());
    let suggestion = Suggestion {
        prefill_tok_s: super::super::run::round(prefill_tok_s),
        decode_tok_s: super::super::run::round(decode_tok_s),
        cost_input: cost_input.to_string(),
        cost_output: cost_output.to_string(),
        market_input: text(market_input),
        market_output: text(market_output),
        input: input.to_string(),
        output: output.to_string(),
    };
    settings.out.result(&suggestion, |s| {
        let mut table = crate::output::table(["", "prompt token", "output token"]);
        let show = |v: Option<U256>| v.map_or_else(|| "nobody offers it".to_owned(), |v| currency.show(v));
        table.add_row(["costs this machine".to_owned(), currency.show(cost_input), currency.show(cost_output)]);
        table.add_row(["others ask".to_owned(), show(market_input), show(market_output)]);
        table.add_row(["suggested".to_owned(), currency.show(input), currency.show(output)]);
        let digits = |v: U256| currency.show(v).split(' ').next().unwrap_or_default().to_owned();
        format!(
            "{table}\nmeasured: {:.0} tok/s prompts, {:.0} tok/s answers, one at a time\n\n    sworn node price {} --input {} --output {}",
            s.prefill_tok_s,
            s.decode_tok_s,
            command.engine.model,
            digits(input),
            digits(output)
        )
    })
}

/// Time of a token, rounded up.
fn nanoseconds(tok_s: f64) -> Result<u64> {
    let ns = (1e9 / tok_s).ceil();
    if ns.is_finite() && (1.0..=HOUR as f64).contains(&ns) {
        return Ok(ns as u64);
    }
    Err(Fault::failed("this machine's speed could not be measured: try again when it is idle"))
}

/// What `ns` of a machine cost that costs `per_hour`, rounded up.
fn cost(per_hour: U256, ns: u64) -> U256 {
    per_hour.saturating_mul(U256::from(ns)).div_ceil(U256::from(HOUR))
}

/// Never below the cost and the margin; where others ask more, a twentieth less than they do.
fn suggest(cost: U256, margin: u16, market: Option<U256>) -> U256 {
    let hundred = U256::from(100);
    let least = cost.saturating_mul(U256::from(100 + u32::from(margin))).div_ceil(hundred);
    let below = market.map(|m| m - m / U256::from(20)).unwrap_or_default();
    least.max(below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_price_covers_the_cost_and_follows_the_market() {
        // Half a token an hour and 100 tokens a second: 360,000 tokens an hour.
        let hour = U256::from(500_000_000_000_000_000u128);
        let per_token = cost(hour, nanoseconds(100.0).unwrap());
        assert_eq!(per_token, U256::from(1_388_888_888_889u64));
        assert_eq!(suggest(U256::from(100), 20, None), U256::from(120));
        assert_eq!(suggest(U256::from(100), 20, Some(U256::from(110))), U256::from(120));
        assert_eq!(suggest(U256::from(100), 20, Some(U256::from(1000))), U256::from(950));
        assert_eq!(suggest(U256::from(1), 1, None), U256::from(2), "rounded up");
        assert!(nanoseconds(0.0).is_err() && nanoseconds(f64::NAN).is_err() && nanoseconds(-1.0).is_err());
    }
}
