//! A directory as Hugging Face lays it out: config.json, tokenizer.json, and safetensors in one file or in several.
//!
//! Everything in it is untrusted. The `safetensors` library checks each file's directory against its length; what this file adds
//! is which tensors there must be, and that none is there twice.

mod names;
#[cfg(test)]
mod tests;
mod text;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::{MappedFile, Source, Text, file::sha256, printable};
use crate::{
    directory::SourceInfo,
    error::{ModelError, Result},
    hyper::Hyper,
    pack::FloatTensors,
    progress::{OnProgress, Progress, Stage},
};

const CONFIG: &str = "config.json";
const SINGLE: &str = "model.safetensors";
const SHARDS: &str = "model.safetensors.index.json";
/// Largest JSON file that is read: some tokenizers have 30 MB.
const MAX_JSON: u64 = 256 << 20;
/// Most files of a model.
const MAX_SHARDS: usize = 1000;

/// How a tensor's numbers are stored.
#[derive(Clone, Copy, Debug)]
enum Float {
    F32,
    F16,
    Bf16,
}

impl Float {
    const fn width(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// Where a tensor lies.
#[derive(Clone, Copy, Debug)]
struct Entry {
    shard: usize,
    start: usize,
    dtype: Float,
    rows: usize,
    cols: usize,
    /// Whether its norm's gain is stored without the one that it adds.
    plus_one: bool,
}

/// An open directory.
pub(crate) struct HfSource {
    directory: PathBuf,
    config: Value,
    hyper: Hyper,
    shards: Vec<MappedFile>,
    tensors: BTreeMap<String, Entry>,
    /// Every file that is part of the model, in order of the names.
    files: BTreeSet<String>,
}

impl HfSource {
    /// Opens a directory and checks the directories of all its tensor files.
    pub(crate) fn open(directory: &Path) -> Result<Self> {
        let config = read_json(directory, CONFIG)?.ok_or_else(|| missing_file(directory, CONFIG))?;
        let mut source = HfSource {
            directory: directory.to_owned(),
            hyper: Hyper::from_config(&config)?,
            config,
            shards: Vec::new(),
            tensors: BTreeMap::new(),
            files: BTreeSet::from([CONFIG.to_owned()]),
        };
        source.files.extend(text::FILES.iter().filter(|f| directory.join(f).is_file()).map(|f| (*f).to_owned()));
        let shards = if directory.join(SHARDS).is_file() {
            source.files.insert(SHARDS.to_owned());
            shard_names(&read_json(directory, SHARDS)?.unwrap_or_default())?
        } else if directory.join(SINGLE).is_file() {
            vec![SINGLE.to_owned()]
        } else {
            return Err(missing_file(directory, SINGLE));
        };
        for name in shards {
            source.add_shard(name)?;
        }
        Ok(source)
    }

    fn add_shard(&mut self, file: String) -> Result<()> {
        let mapped = MappedFile::open(&self.directory.join(&file))?;
        let damaged = |what: String| ModelError::Files(format!("{file}: {what}"));
        let metadata = read_directory(mapped.bytes()).map_err(damaged)?;
        let shard = self.shards.len();
        for (stored, start, dtype, shape) in metadata {
            let Some(name) = names::canonical(&stored, self.hyper.architecture)? else { continue };
            // A tied head may be stored all the same; the model has the embedding's.
            if self.hyper.tied && name == "output.weight" {
                continue;
            }
            let dtype = match dtype {
                Dtype::F32 => Float::F32,
                Dtype::F16 => Float::F16,
                Dtype::BF16 => Float::Bf16,
                other => {
                    return Err(ModelError::unsupported(
                        format!("tensor {stored} of type {other}"),
                        "supported are F32, F16 and BF16; take the model that this one was quantised from",
                    ));
                }
            };
            let (rows, cols) = match shape[..] {
                [cols] => (1, cols),
                [rows, cols] => (rows, cols),
                _ => return Err(damaged(format!("tensor {stored} has shape {shape:?}"))),
            };
            if rows == 0 || cols == 0 {
                return Err(damaged(format!("tensor {stored} is empty")));
            }
            let plus_one = self.hyper.architecture.adds_one_to_gains() && name.ends_with("norm.weight");
            let entry = Entry { shard, start, dtype, rows, cols, plus_one };
            if self.tensors.insert(name, entry).is_some() {
                return Err(damaged(format!("tensor {stored} is there twice")));
            }
        }
        self.shards.push(mapped);
        self.files.insert(file);
        Ok(())
    }

    fn entry(&self, name: &str) -> Result<Entry> {
        self.tensors.get(name).copied().ok_or_else(|| ModelError::Files(format!("tensor {name} is missing")))
    }
}

/// Name, place, type and shape of every tensor of a safetensors file.
type Directory = Vec<(String, usize, Dtype, Vec<usize>)>;

fn read_directory(bytes: &[u8]) -> std::result::Result<Directory, String> {
    // The library adds offsets before it compares them with the length: none may lie beyond it.
    let header = bytes.first_chunk::<8>().map(|n| u64::from_le_bytes(*n)).ok_or("it is too short")?;
    let header = usize::try_from(header).ok().and_then(|n| bytes[8..].get(..n)).ok_or("its header is cut short")?;
    let entries: BTreeMap<String, Value> = serde_json::from_slice(header).map_err(|e| e.to_string())?;
    let beyond = |v: &Value| v["data_offsets"][1].as_u64().is_some_and(|end| end > bytes.len() as u64);
    if let Some((name, _)) = entries.iter().find(|(_, v)| beyond(v)) {
        return Err(format!("tensor {name} lies outside of the file, which may be cut short"));
    }
    let (length, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| e.to_string())?;
    let of = |name: String| {
        let info = metadata.info(&name)?;
        Some((name, 8 + length + info.data_offsets.0, info.dtype, info.shape.clone()))
    };
    Ok(metadata.offset_keys().into_iter().filter_map(of).collect())
}

/// The files of a sharded model. They are names, not paths: a hostile index must not reach outside of the directory.
fn shard_names(index: &Value) -> Result<Vec<String>> {
    let bad = |what: &str| ModelError::Files(format!("{SHARDS}: {what}"));
    let map = index["weight_map"].as_object().ok_or_else(|| bad("weight_map is missing"))?;
    let mut names = BTreeSet::new();
    for v in map.values() {
        let name =
            v.as_str().filter(|n| n.ends_with(".safetensors") && !n.contains(['/', '\\']) && !n.starts_with('.'));
        names.insert(name.ok_or_else(|| bad(&format!("{v} is not the name of a file")))?.to_owned());
    }
    if names.is_empty() || names.len() > MAX_SHARDS {
        return Err(bad(&format!("it names {} files", names.len())));
    }
    Ok(names.into_iter().collect())
}

fn missing_file(directory: &Path, name: &str) -> ModelError {
    ModelError::Argument(format!(
        "{} has no {name}; name a .gguf file, or a directory with config.json, tokenizer.json and model.safetensors",
        directory.display()
    ))
}

/// A JSON file of the directory; `None` if it is not there.
fn read_json(directory: &Path, name: &str) -> Result<Option<Value>> {
    let Some(bytes) = read_small(directory, name)? else { return Ok(None) };
    let value = serde_json::from_slice(&bytes).map_err(|e| ModelError::Files(format!("{name}: {e}")))?;
    Ok(Some(value))
}

/// A file of the directory, whole; `None` if it is not there.
fn read_small(directory: &Path, name: &str) -> Result<Option<Vec<u8>>> {
    let path = directory.join(name);
    if !path.is_file() {
        return Ok(None);
    }
    let size = fs::metadata(&path).map_err(ModelError::io("reading", &path))?.len();
    if size > MAX_JSON {
        return Err(ModelError::Files(format!("{name} has {size} bytes")));
    }
    fs::read(&path).map(Some).map_err(ModelError::io("reading", &path))
}

impl Source for HfSource {
    fn hyper(&self) -> &Hyper {
        &self.hyper
    }

    fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    fn shape(&self, name: &str) -> Option<(usize, usize)> {
        self.tensors.get(name).map(|t| (t.rows, t.cols))
    }

    /// The last part of the name that it was published under, else the directory's.
    fn name(&self) -> Result<Option<String>> {
        let published = self.config["_name_or_path"].as_str().and_then(|n| n.rsplit('/').next());
        let own = self.directory.canonicalize().ok();
        let own = own.as_deref().and_then(Path::file_name).map(|n| n.to_string_lossy().into_owned());
        Ok(published.filter(|n| !n.is_empty()).map(printable).or(own.as_deref().map(printable)))
    }

    fn text(&self) -> Result<Text> {
        text::read(&self.directory, &self.config, self.hyper.vocab)
    }

    /// The digest is that of the list which `sha256sum` prints of the files in order of their names.
    fn info(&self, progress: OnProgress<'_>) -> Result<SourceInfo> {
        let mut files = Vec::new();
        for name in &self.files {
            files.push((name, MappedFile::open(&self.directory.join(name))?));
        }
        let total = files.iter().map(|(_, f)| f.bytes().len() as u64).sum();
        let (mut done, mut list) = (0, String::new());
        for (name, file) in files {
            let mut report = |n| {
                done += n;
                progress(Progress { stage: Stage::Checksum, done, total });
            };
            list += &format!("{}  {name}\n", sha256(file.bytes(), &mut report));
        }
        let sha256 = sha256(list.as_bytes(), &mut |_| {});
        Ok(SourceInfo { format: "safetensors".into(), bytes: total, sha256, license: None })
    }
}

impl FloatTensors for HfSource {
    fn row(&self, name: &str, row: u32, out: &mut [f32]) -> Result<()> {
        let t = self.entry(name)?;
        if row as usize >= t.rows || out.len() != t.cols {
            return Err(ModelError::Files(format!(
                "tensor {name} has {} rows of {}; row {row} of {} is needed",
                t.rows,
                t.cols,
                out.len()
            )));
        }
        let size = t.cols * t.dtype.width();
        let bytes = &self.shards[t.shard].bytes()[t.start + row as usize * size..][..size];
        match t.dtype {
            Float::F32 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *o = f32::from_le_bytes(*b);
                }
            }
            Float::F16 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *o = f16::from_le_bytes(*b).to_f32();
                }
            }
            Float::Bf16 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *o = bf16::from_le_bytes(*b).to_f32();
                }
            }
        }
        if t.plus_one {
            out.iter_mut().for_each(|o| *o += 1.0);
        }
        Ok(())
    }

    fn vector(&self, name: &str, n: u32) -> Result<Vec<f32>> {
        let mut out = vec![0.0; n as usize];
        self.row(name, 0, &mut out)?;
        Ok(out)
    }

    fn rope_divisors(&self, _pairs: u32) -> Result<Option<Vec<f32>>> {
        Ok(self.hyper.rope_scaling.divisors(self.hyper.rope_base, self.hyper.head_dim))
    }
}
