//! How GGUF stores numbers.

/// Weights per block of the plain quantised types.
pub(super) const BLOCK: usize = 32;
/// Weights per block of the K types.
pub(super) const SUPER_BLOCK: usize = 256;

/// How a tensor's numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorType {
    /// IEEE single
    F32,
    /// IEEE half
    F16,
    /// bfloat16
    Bf16,
    /// 32 weights as i8 with one half scale
    Q8_0,
    /// 32 weights of 4 bits with one half scale, centred on 8
    Q4_0,
    /// 32 weights of 4 bits with half scale and half minimum
    Q4_1,
    /// 32 weights of 5 bits with one half scale, centred on 16
    Q5_0,
    /// 32 weights of 5 bits with half scale and half minimum
    Q5_1,
    /// 256 weights of 2 bits, scale and minimum of 4 bits per 16
    Q2K,
    /// 256 weights of 3 bits, scale of 6 bits per 16
    Q3K,
    /// 256 weights of 4 bits, scale and minimum of 6 bits per 32
    Q4K,
    /// 256 weights of 5 bits, scale and minimum of 6 bits per 32
    Q5K,
    /// 256 weights of 6 bits, scale of 8 bits per 16
    Q6K,
}

impl TensorType {
    /// Names of the types that can be read.
    pub const SUPPORTED: &'static str = "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K";

    pub(super) fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            10 => Self::Q2K,
            11 => Self::Q3K,
            12 => Self::Q4K,
            13 => Self::Q5K,
            14 => Self::Q6K,
            30 => Self::Bf16,
            _ => return None,
        })
    }

    /// (weights, bytes) of a storage unit.
    pub(super) const fn unit(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q8_0 => (BLOCK, 34),
            Self::Q4_0 => (BLOCK, 18),
            Self::Q4_1 => (BLOCK, 20),
            Self::Q5_0 => (BLOCK, 22),
            Self::Q5_1 => (BLOCK, 24),
            Self::Q2K => (SUPER_BLOCK, 84),
            Self::Q3K => (SUPER_BLOCK, 110),
            Self::Q4K => (SUPER_BLOCK, 144),
            Self::Q5K => (SUPER_BLOCK, 176),
            Self::Q6K => (SUPER_BLOCK, 210),
        }
    }
}

/// Names of the other types that GGUF files carry, for the error message.
pub(super) fn foreign_name(code: u32) -> &'static str {
    match code {
        9 => "Q8_1",
        15 => "Q8_K",
        16..=23 | 29 => "an IQ type",
        24..=27 => "an integer type",
        28 => "F64",
        34 | 35 => "a ternary type",
        39 => "MXFP4",
        _ => "unknown to this version",
    }
}
