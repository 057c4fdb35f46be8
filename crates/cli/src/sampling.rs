//! From the flags that people give to the parameters of a run, and back.

use alloy::primitives::{B256, U256};
use clap::Args;
use rand::{TryRngCore, rngs::OsRng};
use serde::{Deserialize, Serialize};
use sworn_commit::RunParams;
use sworn_gateway::selection::{Selection, samples};
use sworn_isa::Sampling;
use sworn_isa::sampling::Q12_ONE;
use sworn_model::Model;

use crate::fault::{Fault, Result};

/// 1 in Q12, Q14 and Q16.
const Q12: f64 = Q12_ONE as f64;
const Q14: f64 = (1u32 << 14) as f64;
const Q16: f64 = (1u32 << 16) as f64;

/// How to select tokens; without these flags the most likely one.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "How tokens are selected")]
pub(crate) struct SamplingFlags {
    /// Sample, from a distribution sharpened (below 1) or flattened (above 1); 0 takes the most likely token [default: 0]
    #[arg(long, value_name = "T")]
    pub(crate) temperature: Option<f64>,
    /// Sample from the N most likely tokens only; 0 for all
    #[arg(long, value_name = "N")]
    pub(crate) top_k: Option<u32>,
    /// Sample from the most likely tokens that together have this probability only; 1 for all
    #[arg(long, value_name = "P")]
    pub(crate) top_p: Option<f64>,
    /// Sample only from tokens at least this likely, as a part of the most likely one's probability; 0 for all
    #[arg(long, value_name = "P")]
    pub(crate) min_p: Option<f64>,
    /// Divide the positive logits of the last 64 tokens by this (multiply the negative ones); 1 for none
    #[arg(long, value_name = "F")]
    pub(crate) repeat_penalty: Option<f64>,
}

impl SamplingFlags {
    /// What the flags mean. Cuts without a temperature would change nothing: they are refused where none is given and dropped where it is 0.
    pub(crate) fn parameters(&self) -> Result<Sampling> {
        let Self { temperature, top_k, top_p, min_p, repeat_penalty: penalty } = *self;
        let selection = Selection { temperature, top_k, top_p, min_p, penalty };
        let s = selection.parameters().map_err(|e| {
            let flag = if e.field == "penalty" { "repeat-penalty".to_owned() } else { e.field.replace('_', "-") };
            Fault::usage(format!("--{flag} {} is out of range: give a number {}", e.value, e.range))
        })?;
        let cuts = [
            ("--top-k", top_k.is_some_and(|k| k != 0)),
            ("--top-p", top_p.is_some_and(|p| p != 1.0)),
            ("--min-p", min_p.is_some_and(|p| p != 0.0)),
        ];
        match cuts.into_iter().find(|(_, given)| *given && temperature.is_none()) {
            Some((flag, _)) => Err(Fault::usage(format!(
                "{flag} changes nothing while the most likely token is taken: give a temperature as well, for instance --temperature 0.8"
            ))),
            None => Ok(s),
        }
    }

    /// The parameters, if `model` can select tokens so.
    pub(crate) fn for_model(&self, model: &Model) -> Result<Sampling> {
        let s = self.parameters()?;
        if s == Sampling::GREEDY || samples(model) {
            return Ok(s);
        }
        Err(Fault::failed(format!(
            "model {} always takes the most likely token: leave out --temperature and --repeat-penalty, or take a model that was imported without `sworn model import --greedy`",
            model.description().name
        )))
    }
}

/// A seed as a flag: 32 bytes in hex after 0x, or a number.
pub(crate) fn parse_seed(text: &str) -> std::result::Result<B256, String> {
    let seed = match text.strip_prefix("0x") {
        Some(digits) if digits.len() == 64 => digits.parse().ok(),
        Some(_) => None,
        None => text.parse::<u64>().ok().map(|n| B256::from(U256::from(n))),
    };
    seed.ok_or_else(|| "give 0x and 64 hexadecimal digits, or a number below 2^64".to_owned())
}

/// The seed given, or a random one; zero for runs without noise, which have none.
pub(crate) fn seed(given: Option<B256>, sampling: &Sampling) -> Result<B256> {
    if sampling.inverse_temperature == 0 {
        return Ok(B256::ZERO);
    }
    match given {
        Some(seed) => Ok(seed),
        None => {
            let mut seed = B256::ZERO;
            OsRng
                .try_fill_bytes(&mut seed.0)
                .map_err(|e| Fault::failed(format!("this machine gives no random numbers ({e}): give --seed")))?;
            Ok(seed)
        }
    }
}

/// The parameters of a run in files and results: exact, in the instruction set's units. A file without them is of a greedy run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShownRun {
    #[serde(default)]
    sampling: Fields,
    /// Seed of the noise; zero without a temperature.
    #[serde(default)]
    seed: B256,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Fields {
    /// 1/temperature, Q12
    inverse_temperature: u32,
    top_k: u32,
    /// Q16
    top_p: u32,
    /// −ln(min-p), Q14
    min_distance: u32,
    /// Q12
    penalty: u32,
}

impl ShownRun {
    /// Of a run.
    pub(crate) fn new(run: &RunParams) -> Self {
        let Sampling { inverse_temperature, top_k, top_p, min_distance, penalty } = run.sampling;
        let sampling = Fields { inverse_temperature, top_k, top_p, min_distance, penalty };
        Self { sampling, seed: run.seed.into() }
    }

    /// The run.
    ///
    /// # Errors
    /// Parameters outside their ranges.
    pub(crate) fn params(&self) -> Result<RunParams> {
        let Fields { inverse_temperature, top_k, top_p, min_distance, penalty } = self.sampling;
        let sampling = Sampling { inverse_temperature, top_k, top_p, min_distance, penalty };
        if sampling.is_valid() {
            Ok(RunParams { sampling, seed: self.seed.0 })
        } else {
            Err(Fault::failed("its sampling parameters are out of range: docs/instruction-set.md has the ranges"))
        }
    }

    /// Whether the most likely token is taken always.
    pub(crate) fn is_greedy(&self) -> bool {
        self.sampling == Fields::default()
    }

    /// For people, in the flags' numbers.
    pub(crate) fn text(&self) -> String {
        let s = &self.sampling;
        let mut parts = Vec::new();
        if s.inverse_temperature != 0 {
            parts.push(format!("temperature {}", short(Q12 / f64::from(s.inverse_temperature))));
        }
        if s.top_k != 0 {
            parts.push(format!("top-k {}", s.top_k));
        }
        if s.top_p != 0 {
            parts.push(format!("top-p {}", short(f64::from(s.top_p) / Q16)));
        }
        if s.min_distance != 0 {
            parts.push(format!("min-p {}", short((-f64::from(s.min_distance) / Q14).exp())));
        }
        if s.penalty != 0 {
            parts.push(format!("repeat penalty {}", short(f64::from(s.penalty) / Q12)));
        }
        if s.inverse_temperature != 0 {
            parts.push(format!("seed {}", self.seed));
        }
        if parts.is_empty() { "greedy".to_owned() } else { parts.join(", ") }
    }
}

/// Three digits behind the point, without zeros at the end.
fn short(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sworn_gateway::selection::TEMPERATURES;

    fn flags(f: impl FnOnce(&mut SamplingFlags)) -> Result<Sampling> {
        let mut flags = SamplingFlags::default();
        f(&mut flags);
        flags.parameters()
    }

    #[test]
    fn numbers_become_fixed_point() {
        assert_eq!(flags(|_| ()).unwrap(), Sampling::GREEDY);
        let all = flags(|f| {
            *f = SamplingFlags {
                temperature: Some(0.8),
                top_k: Some(40),
                top_p: Some(0.9),
                min_p: Some(0.05),
                repeat_penalty: Some(1.1),
            }
        });
        // 4096/0.8; 0.9·2^16 = 58982.4; −ln 0.05 · 2^14 = 49081.8; 1.1·4096 = 4505.6
        let want = Sampling { inverse_temperature: 5120, top_k: 40, top_p: 58982, min_distance: 49082, penalty: 4506 };
        assert_eq!(all.unwrap(), want);
        let run = ShownRun::new(&RunParams { sampling: want, seed: [0; 32] });
        assert!(
            run.text().starts_with("temperature 0.8, top-k 40, top-p 0.9, min-p 0.05, repeat penalty 1.1, seed 0x")
        );
        assert_eq!(run.params().unwrap().sampling, want);
    }

    #[test]
    fn what_the_ends_of_the_ranges_give_is_valid() {
        for temperature in [*TEMPERATURES.start(), *TEMPERATURES.end()] {
            for (top_k, top_p, min_p, penalty) in
                [((1 << 20) - 1, 1.0 / Q16, 5e-324, 1.0 / 16.0), (0, 1.0, 1.0, 15.999)]
            {
                let flags = SamplingFlags {
                    temperature: Some(temperature),
                    top_k: Some(top_k),
                    top_p: Some(top_p),
                    min_p: Some(min_p),
                    repeat_penalty: Some(penalty),
                };
                let s = flags.parameters().unwrap();
                assert!(s.is_valid() && s.inverse_temperature > 0 && s.min_distance > 0, "{s:?}");
            }
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for temperature in [-1.0, 0.001, 5000.0, f64::NAN, f64::INFINITY] {
            assert!(flags(|f| f.temperature = Some(temperature)).is_err(), "{temperature}");
        }
        for p in [-0.1, 0.0, 1.1, f64::NAN] {
            assert!(flags(|f| (f.temperature, f.top_p) = (Some(1.0), Some(p))).is_err(), "{p}");
        }
        assert!(flags(|f| f.min_p = Some(-0.5)).is_err());
        assert!(flags(|f| f.repeat_penalty = Some(0.0)).is_err());
        assert!(flags(|f| f.top_k = Some(1 << 20)).is_err());
        // A cut alone does nothing; with a temperature of 0, for instance over a file's cuts, it is not meant.
        assert!(flags(|f| f.top_k = Some(40)).is_err());
        assert_eq!(flags(|f| (f.top_k, f.temperature) = (Some(40), Some(0.0))).unwrap(), Sampling::GREEDY);
    }

    #[test]
    fn seeds() {
        assert_eq!(parse_seed("258").unwrap().0[30..], [1, 2]);
        let hex = format!("0x{}", "ab".repeat(32));
        assert_eq!(parse_seed(&hex).unwrap(), B256::repeat_byte(0xab));
        for wrong in ["", "0x", "0xab", "-1", "18446744073709551616", "seed"] {
            assert!(parse_seed(wrong).is_err(), "{wrong}");
        }
        let noise = Sampling { inverse_temperature: 4096, ..Sampling::GREEDY };
        assert_eq!(seed(Some(B256::repeat_byte(1)), &Sampling::GREEDY).unwrap(), B256::ZERO);
        assert_eq!(seed(Some(B256::repeat_byte(1)), &noise).unwrap(), B256::repeat_byte(1));
        assert_ne!(seed(None, &noise).unwrap(), seed(None, &noise).unwrap());
    }

    #[test]
    fn files_without_parameters_are_greedy() {
        assert!(serde_json::from_str::<ShownRun>("{}").unwrap().is_greedy());
        let wild: ShownRun = serde_json::from_str("{\"sampling\":{\"penalty\":3}}").unwrap();
        assert!(wild.params().is_err());
        assert!(serde_json::from_str::<ShownRun>("{\"sampling\":{\"typical\":3}}").is_err());
    }
}
