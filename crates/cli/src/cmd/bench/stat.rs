//! What repeated measurements say.

use serde::{Deserialize, Serialize};

/// A figure measured several times. Medians are reported because one disturbed run must not move them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Stat {
    /// The middle value; of an even number of values, the mean of the two middle ones.
    pub(crate) median: f64,
    /// The least value.
    pub(crate) min: f64,
    /// The greatest value.
    pub(crate) max: f64,
    /// How many values.
    pub(crate) n: usize,
}

impl Stat {
    /// Of at least one finite value; others say nothing and are left out.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().filter(|v| v.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let (n, min, max) = (values.len(), *values.first()?, *values.last()?);
        let median = (values[(n - 1) / 2] + values[n / 2]) / 2.0;
        Some(Stat { median: round(median), min: round(min), max: round(max), n })
    }

    /// Of the quotients of measurements taken side by side: what disturbs both cancels.
    pub(crate) fn of_ratios<'a>(pairs: impl IntoIterator<Item = (&'a f64, &'a f64)>) -> Option<Self> {
        Self::of(pairs.into_iter().map(|(a, b)| a / b))
    }

    /// Every value times `factor`.
    pub(crate) fn times(self, factor: f64) -> Self {
        Stat {
            median: round(self.median * factor),
            min: round(self.min * factor),
            max: round(self.max * factor),
            n: self.n,
        }
    }
}

/// Five digits: more than any measurement here has.
fn round(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let digits = 4 - (value.abs().log10().floor() as i32);
    let unit = 10f64.powi(digits.clamp(-300, 300));
    (value * unit).round() / unit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_and_the_ends() {
        assert_eq!(Stat::of([3.0, 1.0, 2.0]), Some(Stat { median: 2.0, min: 1.0, max: 3.0, n: 3 }));
        assert_eq!(Stat::of([4.0, f64::NAN, 1.0]), Some(Stat { median: 2.5, min: 1.0, max: 4.0, n: 2 }));
        assert_eq!(Stat::of([f64::INFINITY]), None);
        let ratios = Stat::of_ratios([1.0, 4.0, 9.0].iter().zip(&[2.0, 2.0, 3.0]));
        assert_eq!(ratios, Some(Stat { median: 2.0, min: 0.5, max: 3.0, n: 3 }));
        assert_eq!(Stat::of([-2.0]).map(|s| s.times(0.5).median), Some(-1.0));
    }

    #[test]
    fn five_digits_are_kept() {
        let rounded = [123_456.7, 0.012_345_678, -1.000_004, 0.0].map(round);
        assert_eq!(rounded, [123_460.0, 0.012_346, -1.0, 0.0]);
    }
}
