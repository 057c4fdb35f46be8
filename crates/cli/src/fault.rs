//! What a person is told when something fails: one line of what and how to mend it, the causes below, an exit code.

use std::error::Error;
use std::fmt;

/// Result of every verb.
pub(crate) type Result<T, E = Fault> = std::result::Result<T, E>;

/// A failure as it is shown. No backtraces: whoever runs a command did not write it.
#[derive(Debug)]
pub(crate) struct Fault {
    message: String,
    causes: Vec<String>,
    code: u8,
}

impl Fault {
    /// Something failed, or the answer is no: exit code 1.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self { message: message.into(), causes: Vec::new(), code: 1 }
    }

    /// Called wrongly: exit code 2.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { message: message.into(), causes: Vec::new(), code: 2 }
    }

    /// Nobody reads the result any more, as in `sworn job list | head`: a success that ends the run.
    pub(crate) fn nobody_reads() -> Self {
        Self { message: String::new(), causes: Vec::new(), code: 0 }
    }

    /// Whether it is [`Self::nobody_reads`].
    pub(crate) fn is_that_nobody_reads(&self) -> bool {
        self.code == 0
    }

    /// Says what was being done, above what went wrong.
    pub(crate) fn while_doing(mut self, doing: impl Into<String>) -> Self {
        if self.is_that_nobody_reads() {
            return self;
        }
        self.causes.insert(0, std::mem::replace(&mut self.message, doing.into()));
        self
    }

    /// The process's exit code.
    pub(crate) fn code(&self) -> u8 {
        self.code
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.causes.iter().try_for_each(|cause| write!(f, "\n  because: {cause}"))
    }
}

impl<E: Error> From<E> for Fault {
    fn from(error: E) -> Self {
        let mut fault = Self::failed(error.to_string());
        let mut source = error.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            // Many errors print their cause already.
            if !fault.to_string().contains(&text) {
                fault.causes.push(text);
            }
            source = cause.source();
        }
        fault
    }
}

/// Says what was being done when a call fails.
pub(crate) trait Doing<T> {
    /// The message above the failure's own.
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<Fault>> Doing<T> for std::result::Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| e.into().while_doing(what()))
    }
}
