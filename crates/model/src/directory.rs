//! The model directory: which files there are, and how one is written whole or not at all.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sworn_isa::{Dtype, RowFormat};

use crate::{
    error::{ModelError, Result},
    family::{ActivationBits, Config},
};

/// The packed manifest; its hash is the model id.
pub const MANIFEST: &str = "manifest.bin";
/// The descriptors of the three sections, concatenated.
pub const PROGRAM: &str = "program.bin";
/// Matrix after matrix, row after row: scale pairs, then the weights in their format.
pub const WEIGHTS: &str = "weights.bin";
/// Table after table, elements big-endian.
pub const TABLES: &str = "tables.bin";
/// Shapes and roots of matrices and tables.
pub const INDEX: &str = "index.json";
/// The tokenizer, in the format of the `tokenizers` library.
pub const TOKENIZER: &str = "tokenizer.json";
/// The chat template.
pub const CHAT_TEMPLATE: &str = "chat_template.jinja";
/// What a person wants to know: [`Description`].
pub const DESCRIPTION: &str = "model.json";

/// Shape and root of a matrix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MatrixEntry {
    /// Its tensor's name.
    pub name: String,
    /// Rows.
    pub rows: u32,
    /// Elements per row.
    pub cols: u32,
    /// Scale pairs per row.
    pub scales: u32,
    /// Code of the rows' format.
    #[serde(default)]
    pub format: u8,
    /// Root of the tree over its rows.
    #[serde(with = "hex::serde")]
    pub root: [u8; 32],
}

impl MatrixEntry {
    /// Format of the rows; `None` if the code is no format or K does not fit it.
    pub fn row_format(&self) -> Option<RowFormat> {
        RowFormat::from_code(i32::from(self.format)).filter(|f| f.fits(self.cols as usize))
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> u64 {
        let format = self.row_format().unwrap_or_default();
        4 * u64::from(self.scales) + format.bytes(self.cols as usize) as u64
    }

    /// Bytes of the matrix; saturates, so that an absurd entry cannot look small.
    pub fn bytes(&self) -> u64 {
        self.row_bytes().saturating_mul(u64::from(self.rows))
    }
}

/// Type, length and root of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableEntry {
    /// What it holds.
    pub name: String,
    /// Code of the element type.
    pub dtype: u8,
    /// Elements.
    pub elements: u32,
    /// Root of the tree over its pages.
    #[serde(with = "hex::serde")]
    pub root: [u8; 32],
}

impl TableEntry {
    /// Element type and bytes; `None` if the code is no type.
    pub fn layout(&self) -> Option<(Dtype, u64)> {
        let dtype = Dtype::from_code(self.dtype)?;
        Some((dtype, u64::from(self.elements) * dtype.width() as u64))
    }
}

/// Shapes and roots of everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    /// Matrices in the order of their numbers.
    pub weights: Vec<MatrixEntry>,
    /// Tables in the order of their numbers.
    pub tables: Vec<TableEntry>,
}

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceInfo {
    /// Container format, or `synthetic`.
    pub format: String,
    /// Bytes of the source.
    pub bytes: u64,
    /// Its sha256 (of the seed's description for a synthetic model).
    pub sha256: String,
    /// Its licence, as it states it.
    pub license: Option<String>,
}

/// Tokens with a meaning of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpecialTokens {
    /// Begins a text.
    pub bos: Option<u32>,
    /// Ends a text.
    pub eos: Option<u32>,
    /// Stands for what has no token.
    pub unknown: Option<u32>,
    /// Fills batches.
    pub padding: Option<u32>,
}

/// What a person wants to know of a model. Nothing here is hashed; what decides an answer is in the manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// A short name.
    pub name: String,
    /// The model id, hexadecimal.
    pub model_id: String,
    /// Architecture.
    pub architecture: String,
    /// Weights in all matrices.
    pub parameters: u64,
    /// Sizes.
    pub config: Config,
    /// Widths of the activations that the importer chose.
    pub activation_bits: ActivationBits,
    /// How weights were rounded.
    pub rounding: String,
    /// How tokens are selected.
    pub selection: String,
    /// Special tokens.
    pub special_tokens: SpecialTokens,
    /// Whether a plain text begins with the `bos` token.
    pub add_bos: bool,
    /// Where it comes from.
    pub source: SourceInfo,
}

/// A directory that is being written: it appears under its name when [`Self::publish`] succeeds, and leaves nothing
/// behind otherwise.
pub(crate) struct Staging {
    target: PathBuf,
    temporary: PathBuf,
    published: bool,
}

impl Staging {
    /// Begins a directory beside `target`.
    pub(crate) fn begin(target: &Path) -> Result<Self> {
        let name = target.file_name().and_then(|n| n.to_str()).ok_or_else(|| {
            ModelError::Argument(format!(
                "{} names no directory to write; give a path that ends in a name",
                target.display()
            ))
        })?;
        let parent = parent_of(target);
        fs::create_dir_all(&parent).map_err(ModelError::io("creating", &parent))?;
        remove_abandoned(&parent, name);
        // Two writers, also two threads of one process, must not share a temporary directory.
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let n = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let temporary = parent.join(format!(".{name}.partial-{}-{n}", std::process::id()));
        if temporary.exists() {
            fs::remove_dir_all(&temporary).map_err(ModelError::io("removing", &temporary))?;
        }
        fs::create_dir(&temporary).map_err(ModelError::io("creating", &temporary))?;
        Ok(Staging { target: target.to_owned(), temporary, published: false })
    }

    /// A new file in it.
    pub(crate) fn create(&self, name: &str) -> Result<StagedFile> {
        let path = self.temporary.join(name);
        let file = File::create(&path).map_err(ModelError::io("creating", &path))?;
        Ok(StagedFile { writer: BufWriter::with_capacity(1 << 20, file), path })
    }

    /// A whole file in it.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut f = self.create(name)?;
        f.write(bytes)?;
        f.finish()
    }

    /// Gives the directory its name. An existing model of that name is replaced.
    pub(crate) fn publish(mut self) -> Result<()> {
        sync_directory(&self.temporary)?;
        let (from, to) = (&self.temporary, &self.target);
        if fs::symlink_metadata(to).is_ok() {
            // Only a model (or an empty directory) is ever replaced: a mistyped --out must not cost anybody's files.
            let empty = fs::read_dir(to).map(|mut d| d.next().is_none()).unwrap_or(false);
            if !empty && !to.join(MANIFEST).is_file() {
                return Err(ModelError::Argument(format!(
                    "{} exists and is not a model directory; choose another place or move it away",
                    to.display()
                )));
            }
            let old = from.with_extension("old");
            fs::rename(to, &old).map_err(ModelError::io("replacing", to))?;
            if let Err(e) = fs::rename(from, to) {
                // Put the previous model back rather than leave none.
                let _ = fs::rename(&old, to);
                return Err(ModelError::io("renaming to", to)(e));
            }
            self.published = true;
            fs::remove_dir_all(&old).map_err(ModelError::io("removing", &old))?;
        } else {
            fs::rename(from, to).map_err(ModelError::io("renaming to", to))?;
            self.published = true;
        }
        sync_directory(&parent_of(&self.target))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.published {
            let _ = fs::remove_dir_all(&self.temporary);
        }
    }
}

/// A file being written in a [`Staging`].
pub(crate) struct StagedFile {
    writer: BufWriter<File>,
    path: PathBuf,
}

impl StagedFile {
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer.write_all(bytes).map_err(ModelError::io("writing", &self.path))
    }

    /// Everything is on disk when this returns.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.writer.flush().map_err(ModelError::io("writing", &self.path))?;
        self.writer.get_ref().sync_all().map_err(ModelError::io("writing", &self.path))
    }
}

/// Removes what a killed writer of the same directory left behind. Only what has been still for an hour: another one may be
/// at work. Failing is harmless.
fn remove_abandoned(parent: &Path, name: &str) {
    let prefix = format!(".{name}.partial-");
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let still = || entry.metadata().and_then(|m| m.modified()).ok()?.elapsed().ok();
        let ours = entry.file_name().to_str().is_some_and(|n| n.starts_with(&prefix));
        if ours && still().is_some_and(|age| age.as_secs() > 3600) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The directory that holds `path`.
pub(crate) fn parent_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn sync_directory(path: &Path) -> Result<()> {
    File::open(path).and_then(|d| d.sync_all()).map_err(ModelError::io("writing", path))
}
