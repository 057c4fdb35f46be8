//! Where a model comes from: what every kind of source gives the importer.

/// Weights of a row in groups of 32, exactly as the source has them.
#[derive(Clone, Debug, PartialEq)]
pub enum RowBlocks {
    /// weight = d·q + m, q of 4 bits
    Q4 {
        /// (d, m) per group: of either sign, finite, and exact.
        groups: Vec<(f64, f64)>,
        /// 0…15, in order of the elements.
        q: Vec<u8>,
    },
    /// weight = d·q
    Q8 {
        /// d per group: of either sign, finite, and exact.
        groups: Vec<f64>,
        /// −128…127, in order of the elements.
        q: Vec<i8>,
    },
}

impl RowBlocks {
    /// Elements of a group.
    pub const GROUP: usize = 32;

    /// Whether every scale and minimum is a number.
    pub(crate) fn is_finite(&self) -> bool {
        match self {
            Self::Q4 { groups, .. } => groups.iter().all(|(d, m)| d.is_finite() && m.is_finite()),
            Self::Q8 { groups, .. } => groups.iter().all(|d| d.is_finite()),
        }
    }

    /// Element `i`, exactly.
    ///
    /// # Panics
    /// If the row has no such element.
    pub fn weight(&self, i: usize) -> f64 {
        match self {
            Self::Q4 { groups, q } => {
                let (d, m) = groups[i / Self::GROUP];
                d * f64::from(q[i]) + m
            }
            Self::Q8 { groups, q } => groups[i / Self::GROUP] * f64::from(q[i]),
        }
    }
}
