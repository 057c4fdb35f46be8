//! From the numbers that people give to the parameters of a run. The one place where a temperature is a fraction.

use sworn_isa::sampling::Q12_ONE;
use sworn_isa::{Opcode, Sampling, SectionKind};
use sworn_model::Model;

/// 1 in Q12, Q14 and Q16.
const Q12: f64 = Q12_ONE as f64;
const Q14: f64 = (1u32 << 14) as f64;
const Q16: f64 = (1u32 << 16) as f64;
/// 1/temperature is at least a half of a Q12 unit and at most 2^20 of them.
pub const TEMPERATURES: std::ops::RangeInclusive<f64> = 1.0 / 256.0..=4096.0;
/// The factor fits its field.
pub const PENALTIES: std::ops::RangeInclusive<f64> = 1.0 / 16.0..=15.999;

/// How to select tokens, as people say it; what is absent has no effect.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Selection {
    /// 0: the most likely token.
    pub temperature: Option<f64>,
    /// 0: all tokens.
    pub top_k: Option<u32>,
    /// 1: all tokens.
    pub top_p: Option<f64>,
    /// 0: all tokens.
    pub min_p: Option<f64>,
    /// 1: none.
    pub penalty: Option<f64>,
}

/// A number that no run can have: which, and what it may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OutOfRange {
    /// The field of [`Selection`].
    pub field: &'static str,
    /// As given.
    pub value: f64,
    /// What would do.
    pub range: &'static str,
}

impl Selection {
    /// What the numbers mean. Cuts without a temperature change nothing and are dropped.
    ///
    /// # Errors
    /// A number is outside its range.
    pub fn parameters(&self) -> Result<Sampling, OutOfRange> {
        let refuse = |field, value, range| Err(OutOfRange { field, value, range });
        let mut s = Sampling::GREEDY;
        let penalty = self.penalty.unwrap_or(1.0);
        if !PENALTIES.contains(&penalty) {
            return refuse("penalty", penalty, "from 0.0625 to 15.999; 1 for none, 1.1 for a little");
        }
        if penalty != 1.0 {
            s.penalty = fixed(penalty, Q12);
        }
        let temperature = self.temperature.unwrap_or(0.0);
        if temperature != 0.0 && !TEMPERATURES.contains(&temperature) {
            return refuse("temperature", temperature, "0 for the most likely token, or from 0.00390625 to 4096");
        }
        let top_k = self.top_k.unwrap_or(0);
        if top_k >= 1 << 20 {
            return refuse("top_k", f64::from(top_k), "below 1048576; 0 for all tokens");
        }
        let top_p = self.top_p.unwrap_or(1.0);
        if !(1.0 / Q16..=1.0).contains(&top_p) {
            return refuse("top_p", top_p, "from 0.00002 to 1; 1 for all tokens");
        }
        let min_p = self.min_p.unwrap_or(0.0);
        if !(0.0..=1.0).contains(&min_p) {
            return refuse("min_p", min_p, "from 0 to 1; 0 for all tokens");
        }
        if temperature == 0.0 {
            return Ok(s);
        }
        s.inverse_temperature = fixed(1.0 / temperature, Q12);
        s.top_k = top_k;
        if top_p < 1.0 {
            s.top_p = fixed(top_p, Q16);
        }
        if min_p > 0.0 {
            s.min_distance = fixed(-min_p.ln(), Q14);
        }
        Ok(s)
    }
}

/// Whether a model's head samples if a run asks for it.
pub fn samples(model: &Model) -> bool {
    model.program().section(SectionKind::Head).ops.iter().any(|d| d.opcode == Opcode::Sample)
}

/// The nearest positive number of units, of which there are `one` in 1. Callers have checked that it fits.
fn fixed(value: f64, one: f64) -> u32 {
    ((value * one).round() as u32).max(1)
}
