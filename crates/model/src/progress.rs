//! How far a long operation is.

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Bytes arriving from the network.
    Download,
    /// Bytes of a file being hashed.
    Checksum,
    /// Bytes of an archive being unpacked.
    Unpack,
    /// Matrices being quantised and written.
    Quantise,
    /// Tokens of a calibration text being run.
    Calibrate,
    /// Matrices being hashed again.
    Verify,
}

impl Stage {
    /// A word for it, as shown to a person.
    pub const fn label(self) -> &'static str {
        match self {
            Stage::Download => "downloading",
            Stage::Checksum => "checking",
            Stage::Unpack => "unpacking",
            Stage::Quantise => "quantising",
            Stage::Calibrate => "calibrating",
            Stage::Verify => "verifying",
        }
    }

    /// Whether its units are bytes.
    pub const fn is_bytes(self) -> bool {
        matches!(self, Stage::Download | Stage::Checksum | Stage::Unpack)
    }
}

/// `done` of `total` units of a stage; a total of 0 is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub stage: Stage,
    /// Units done.
    pub done: u64,
    /// Units there are.
    pub total: u64,
}

/// Receives progress; called often, so it should return at once.
pub type OnProgress<'a> = &'a mut dyn FnMut(Progress);
