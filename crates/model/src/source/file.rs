//! A file of a source: mapped into memory, and hashed.

use std::{fs::File, path::Path};

use memmap2::Mmap;
use sha2::{Digest, Sha256};

use crate::error::{ModelError, Result};

/// Bytes hashed between two reports of progress.
const CHUNK: usize = 4 << 20;

/// The bytes of a file.
#[derive(Debug)]
pub(crate) enum MappedFile {
    /// Where the operating system maps them.
    Map(Mmap),
    /// Copied, or made, in memory.
    Memory(Vec<u8>),
}

impl MappedFile {
    /// Maps a file; an empty one has no bytes to map.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(ModelError::io("opening", path))?;
        let meta = file.metadata().map_err(ModelError::io("reading", path))?;
        if !meta.is_file() {
            return Err(ModelError::Argument(format!("{} is not a file; name the .gguf file itself", path.display())));
        }
        if meta.len() == 0 {
            return Ok(Self::Memory(Vec::new()));
        }
        // SAFETY: the map is read-only and private to this process; a file that another process truncates meanwhile ends
        // this one with SIGBUS, as with any memory-mapped model, and cannot lead to a wrong id (the bytes are hashed as read).
        let map = unsafe { Mmap::map(&file) }.map_err(ModelError::io("mapping", path))?;
        Ok(Self::Map(map))
    }

    /// All of them.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Map(m) => m,
            Self::Memory(v) => v,
        }
    }
}

/// The sha256 of some bytes; `done` learns how many more were hashed each time.
pub(super) fn sha256(bytes: &[u8], done: &mut dyn FnMut(u64)) -> String {
    let mut hasher = Sha256::new();
    for chunk in bytes.chunks(CHUNK) {
        hasher.update(chunk);
        done(chunk.len() as u64);
    }
    hex::encode(hasher.finalize())
}
