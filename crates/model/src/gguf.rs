//! GGUF: the container that llama.cpp's models come in, read from a memory map.
//!
//! The file is untrusted: every count and offset is checked against the bytes that are really there before anything is
//! allocated, so a hostile header costs no more memory than a small multiple of its own size.

mod blocks;
mod dequantise;
mod parse;
mod types;

use std::{collections::BTreeMap, path::Path};

use parse::parse;
pub use types::TensorType;

use crate::{
    error::{ModelError, Result},
    source::{MappedFile, RowBlocks},
};

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// any unsigned integer
    Uint(u64),
    /// any signed integer
    Int(i64),
    /// single or double precision
    Float(f64),
    /// truth value
    Bool(bool),
    /// text
    String(String),
    /// list of texts
    Strings(Vec<String>),
    /// list of integers or truth values
    Ints(Vec<i64>),
    /// list of floating-point numbers
    Floats(Vec<f32>),
}

impl Value {
    fn kind(&self) -> &'static str {
        match self {
            Self::Uint(_) | Self::Int(_) => "an integer",
            Self::Float(_) => "a number",
            Self::Bool(_) => "a truth value",
            Self::String(_) => "a text",
            Self::Strings(_) | Self::Ints(_) | Self::Floats(_) => "a list",
        }
    }
}

/// A tensor's entry in the directory of the file.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Storage type.
    pub dtype: TensorType,
    /// Number of rows (1 for a vector).
    pub rows: usize,
    /// Numbers per row.
    pub cols: usize,
    start: usize,
    row_bytes: usize,
}

/// An open GGUF file.
#[derive(Debug)]
pub struct Gguf {
    file: MappedFile,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, TensorInfo>,
}

impl Gguf {
    /// Opens and checks a file: its header, every metadata value and every tensor's place.
    ///
    /// # Errors
    /// Names the first thing that is damaged or not supported.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let file = MappedFile::open(path.as_ref())?;
        if file.bytes().is_empty() {
            return Err(ModelError::Gguf("the file is empty".into()));
        }
        Self::parsed(file)
    }

    /// Like [`Self::open`], of a file's bytes in memory.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        Self::parsed(MappedFile::Memory(bytes))
    }

    fn parsed(file: MappedFile) -> Result<Self> {
        let (metadata, tensors) = parse(file.bytes())?;
        Ok(Gguf { file, metadata, tensors })
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        self.file.bytes()
    }

    /// Every metadata key with its value.
    pub fn metadata(&self) -> &BTreeMap<String, Value> {
        &self.metadata
    }

    /// Every tensor by name.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// It does not exist.
    pub fn tensor(&self, name: &str) -> Result<&TensorInfo> {
        self.tensors.get(name).ok_or_else(|| ModelError::Gguf(format!("tensor {name} is missing")))
    }

    /// An unsigned integer of the metadata.
    ///
    /// # Errors
    /// The value has another kind.
    pub fn uint(&self, key: &str) -> Result<Option<u64>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Uint(v)) => Ok(Some(*v)),
            Some(Value::Int(v)) if *v >= 0 => Ok(Some(*v as u64)),
            Some(v) => Err(kind_error(key, v, "an unsigned integer")),
        }
    }

    /// A number of the metadata.
    ///
    /// # Errors
    /// The value has another kind.
    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Float(v)) => Ok(Some(*v)),
            Some(v) => Err(kind_error(key, v, "a number")),
        }
    }

    /// A truth value of the metadata.
    ///
    /// # Errors
    /// The value has another kind.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Bool(v)) => Ok(Some(*v)),
            Some(v) => Err(kind_error(key, v, "a truth value")),
        }
    }

    /// A text of the metadata.
    ///
    /// # Errors
    /// The value has another kind.
    pub fn string(&self, key: &str) -> Result<Option<&str>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::String(v)) => Ok(Some(v)),
            Some(v) => Err(kind_error(key, v, "a text")),
        }
    }

    /// A list of texts of the metadata.
    ///
    /// # Errors
    /// The value has another kind.
    pub fn strings(&self, key: &str) -> Result<Option<&[String]>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Strings(v)) => Ok(Some(v)),
            Some(v) => Err(kind_error(key, v, "a list of texts")),
        }
    }

    /// A list of integers of the metadata.
    ///
    /// # Errors
    /// The value has another kind.
    pub fn ints(&self, key: &str) -> Result<Option<&[i64]>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Ints(v)) => Ok(Some(v)),
            Some(v) => Err(kind_error(key, v, "a list of integers")),
        }
    }

    /// A list of numbers of the metadata.
    ///
    /// # Errors
    /// The value has another kind.
    pub fn floats(&self, key: &str) -> Result<Option<&[f32]>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Floats(v)) => Ok(Some(v)),
            Some(v) => Err(kind_error(key, v, "a list of numbers")),
        }
    }

    /// Row `row` of a tensor as single-precision numbers, in the arithmetic of the format's reference (single precision,
    /// every product and sum rounded by itself). `out` has [`TensorInfo::cols`] elements.
    ///
    /// # Panics
    /// If `row` or the length of `out` do not belong to the tensor.
    pub fn read_row(&self, tensor: &TensorInfo, row: usize, out: &mut [f32]) {
        assert!(row < tensor.rows && out.len() == tensor.cols, "row outside of its tensor");
        dequantise::row(tensor.dtype, self.row_bytes(tensor, row), out);
    }

    /// Row `row` of a tensor in its own blocks, without loss; `None` where its type does not have blocks of 32.
    ///
    /// # Errors
    /// A scale or minimum is not finite.
    ///
    /// # Panics
    /// If `row` does not belong to the tensor.
    pub fn read_blocks(&self, tensor: &TensorInfo, row: usize) -> Result<Option<RowBlocks>> {
        assert!(row < tensor.rows, "row outside of its tensor");
        let blocks = blocks::row(tensor.dtype, self.row_bytes(tensor, row));
        if blocks.as_ref().is_some_and(|b| !b.is_finite()) {
            return Err(ModelError::Gguf(format!(
                "tensor {}, row {row} holds a scale that is not finite",
                tensor.name
            )));
        }
        Ok(blocks)
    }

    fn row_bytes(&self, tensor: &TensorInfo, row: usize) -> &[u8] {
        let start = tensor.start + row * tensor.row_bytes;
        &self.bytes()[start..start + tensor.row_bytes]
    }
}

fn kind_error(key: &str, v: &Value, wanted: &str) -> ModelError {
    ModelError::Gguf(format!("metadata {key} is {}, expected {wanted}", v.kind()))
}
