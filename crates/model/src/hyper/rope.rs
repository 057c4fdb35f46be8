//! Rotary embeddings: which elements rotate together, and how their frequencies are stretched for longer contexts.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use crate::error::{ModelError, Result};

/// Which two elements of a head of width d rotate together, by the angle of pair i = 0…d/2−1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RopeLayout {
    /// 2i and 2i + 1
    Interleaved,
    /// i and i + d/2
    Halves,
}

/// How the frequencies base^(−2i/d) of a rotary embedding are changed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum RopeScaling {
    /// Not at all. (A GGUF may carry a divisor per pair in `rope_freqs.weight` beside it.)
    None,
    /// All divided by `factor`.
    Linear {
        /// At least 1.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths are divided by `factor`, short ones kept, those between blended.
    Llama3 {
        /// At least 1.
        factor: f64,
        /// Wavelengths above `original / low` are divided.
        low: f64,
        /// Wavelengths below `original / high` are kept; above `low`.
        high: f64,
        /// Context before it was stretched, positive.
        original: f64,
    },
    /// YaRN: blended along the pairs rather than along the wavelengths, and scores made larger.
    Yarn {
        /// At least 1.
        factor: f64,
        /// Context before it was stretched, positive.
        original: f64,
        /// Turns within `original` above which a pair is kept.
        fast: f64,
        /// Turns within `original` below which a pair is divided.
        slow: f64,
        /// Multiplies cosine and sine.
        magnitude: f64,
    },
}

impl RopeScaling {
    pub(super) fn check(&self) -> Result<()> {
        let stretch = |factor: f64| factor.is_finite() && (1.0..=65536.0).contains(&factor);
        let positive = |v: f64| v.is_finite() && v > 0.0;
        let good = match *self {
            Self::None => true,
            Self::Linear { factor } => stretch(factor),
            Self::Llama3 { factor, low, high, original } => {
                stretch(factor) && positive(low) && high.is_finite() && high > low && positive(original)
            }
            Self::Yarn { factor, original, fast, slow, magnitude } => {
                stretch(factor)
                    && positive(original)
                    && positive(slow)
                    && fast.is_finite()
                    && fast > slow
                    && positive(magnitude)
            }
        };
        if good {
            return Ok(());
        }
        Err(ModelError::unsupported(
            format!("rotary scaling {self:?}"),
            "factors are at least 1, and the bounds of the blended range in order",
        ))
    }

    /// The magnitude YaRN gives by default for a factor: what keeps the softmax as peaked as it was.
    pub(super) fn yarn_magnitude(factor: f64) -> f64 {
        if factor <= 1.0 { 1.0 } else { 0.1 * libm::log(factor) + 1.0 }
    }

    /// What cosine and sine are multiplied by.
    pub fn magnitude(&self) -> f64 {
        match self {
            Self::Yarn { magnitude, .. } => *magnitude,
            _ => 1.0,
        }
    }

    /// What each pair's frequency base^(−2i/`head_dim`) is divided by, i = 0…`head_dim`/2−1; `None` where all divisors are 1.
    /// Single precision, as GGUF stores them.
    pub fn divisors(&self, base: f64, head_dim: u32) -> Option<Vec<f32>> {
        let width = f64::from(head_dim);
        let frequency = |i: u32| libm::pow(base, -f64::from(2 * i) / width);
        let pairs = 0..head_dim / 2;
        let all: Vec<f64> = match *self {
            Self::None => return None,
            Self::Linear { factor } => pairs.map(|_| factor).collect(),
            Self::Llama3 { factor, low, high, original } => pairs
                .map(|i| {
                    let turns = original * frequency(i) / (2.0 * PI);
                    if turns > high {
                        1.0
                    } else if turns < low {
                        factor
                    } else {
                        let kept = (turns - low) / (high - low);
                        1.0 / ((1.0 - kept) / factor + kept)
                    }
                })
                .collect(),
            Self::Yarn { factor, original, fast, slow, .. } => {
                // The pair that turns this often within the original context.
                let pair = |turns: f64| width * libm::log(original / (turns * 2.0 * PI)) / (2.0 * libm::log(base));
                let first = libm::floor(pair(fast)).max(0.0);
                let last = libm::ceil(pair(slow)).min(width - 1.0);
                let span = (last - first).max(0.001);
                pairs
                    .map(|i| {
                        let divided = ((f64::from(i) - first) / span).clamp(0.0, 1.0);
                        1.0 / (divided / factor + (1.0 - divided))
                    })
                    .collect()
            }
        };
        Some(all.into_iter().map(|d| d as f32).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_keeps_short_wavelengths_and_divides_long_ones() {
        let s = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192.0 };
        let d = s.divisors(500_000.0, 128).unwrap();
        assert_eq!(d.len(), 64);
        assert_eq!((d[0], d[28], d[63]), (1.0, 1.0, 8.0));
        assert!(d.windows(2).all(|w| w[0] <= w[1]));
        // Pair 32: frequency 500000^(−1/2), 1.8438… turns in 8192 positions, kept to (1.8438 − 1)/3.
        let turns = 8192.0 / 500_000f64.sqrt() / (2.0 * PI);
        let kept = (turns - 1.0) / 3.0;
        assert_eq!(d[32], (1.0 / ((1.0 - kept) / 8.0 + kept)) as f32);
    }

    #[test]
    fn yarn_blends_between_the_bounds() {
        let s = RopeScaling::Yarn {
            factor: 4.0,
            original: 32768.0,
            fast: 32.0,
            slow: 1.0,
            magnitude: RopeScaling::yarn_magnitude(4.0),
        };
        let d = s.divisors(1_000_000.0, 128).unwrap();
        // The bounds: 128·ln(32768/(32·2π))/(2·ln 10⁶) = 23.59… and 128·ln(32768/2π)/(2·ln 10⁶) = 39.65….
        assert_eq!((d[0], d[23], d[40], d[63]), (1.0, 1.0, 4.0, 4.0));
        let divided = (30.0 - 23.0) / 17.0;
        assert_eq!(d[30], (1.0 / (divided / 4.0 + 1.0 - divided)) as f32);
        assert!((s.magnitude() - 1.138_629_436_111_989).abs() < 1e-12);
        assert_eq!(RopeScaling::Linear { factor: 2.0 }.divisors(1e4, 4), Some(vec![2.0, 2.0]));
        assert_eq!(RopeScaling::None.divisors(1e4, 4), None);
    }

    #[test]
    fn impossible_scalings_are_errors() {
        for s in [
            RopeScaling::Linear { factor: 0.5 },
            RopeScaling::Linear { factor: f64::NAN },
            RopeScaling::Llama3 { factor: 8.0, low: 4.0, high: 4.0, original: 8192.0 },
            RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 0.0 },
            RopeScaling::Yarn { factor: 4.0, original: 4096.0, fast: 1.0, slow: 32.0, magnitude: 1.0 },
        ] {
            assert!(s.check().is_err(), "{s:?}");
        }
    }
}
