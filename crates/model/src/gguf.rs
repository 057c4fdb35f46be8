//! GGUF: the container that llama.cpp's models come in, read from a memory map.
//!
//! The file is untrusted: every count and offset is checked against the bytes that are really there before anything is
//! allocated, so a hostile header costs no more memory than a small multiple of its own size.

use std::{collections::BTreeMap, fs::File, path::Path};

use half::{bf16, f16};
use memmap2::Mmap;

use crate::error::{ModelError, Result};

const MAX_NAME: u64 = 1 << 16;
const MAX_DIMS: u32 = 4;
/// Weights per block of the quantised types.
const BLOCK: usize = 32;

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
}

impl TensorType {
    /// Names of the types that can be read.
    pub const SUPPORTED: &'static str = "F32, F16, BF16, Q8_0, Q4_0, Q4_1";

    fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            0 => Self::F32,
            1 => Self::F16,
            30 => Self::Bf16,
            8 => Self::Q8_0,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            _ => return None,
        })
    }

    /// (weights, bytes) of a storage unit.
    const fn unit(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q8_0 => (BLOCK, 34),
            Self::Q4_0 => (BLOCK, 18),
            Self::Q4_1 => (BLOCK, 20),
        }
    }
}

/// Names of the other types that GGUF files carry, for the error message.
fn foreign_type(code: u32) -> &'static str {
    match code {
        6 => "Q5_0",
        7 => "Q5_1",
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        12 => "Q4_K",
        13 => "Q5_K",
        14 => "Q6_K",
        15 => "Q8_K",
        16..=23 | 29 => "an IQ type",
        24..=27 => "an integer type",
        28 => "F64",
        34 | 35 => "a ternary type",
        39 => "MXFP4",
        _ => "unknown to this version",
    }
}

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

#[derive(Debug)]
enum Backing {
    Map(Mmap),
    Memory(Vec<u8>),
}

/// An open GGUF file.
#[derive(Debug)]
pub struct Gguf {
    backing: Backing,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, TensorInfo>,
}

impl Gguf {
    /// Opens and checks a file: its header, every metadata value and every tensor's place.
    ///
    /// # Errors
    /// Names the first thing that is damaged or not supported.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = File::open(path).map_err(ModelError::io("opening", path))?;
        let meta = file.metadata().map_err(ModelError::io("reading", path))?;
        if !meta.is_file() {
            return Err(ModelError::Argument(format!("{} is not a file; name the .gguf file itself", path.display())));
        }
        if meta.len() == 0 {
            return Err(ModelError::Gguf("the file is empty".into()));
        }
        // SAFETY: the map is read-only and private to this process; a file that another process truncates meanwhile ends
        // this one with SIGBUS, as with any memory-mapped model, and cannot lead to a wrong id (the bytes are hashed as read).
        let map = unsafe { Mmap::map(&file) }.map_err(ModelError::io("mapping", path))?;
        let (metadata, tensors) = parse(&map)?;
        Ok(Gguf { backing: Backing::Map(map), metadata, tensors })
    }

    /// Like [`Self::open`], of a file's bytes in memory.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        let (metadata, tensors) = parse(&bytes)?;
        Ok(Gguf { backing: Backing::Memory(bytes), metadata, tensors })
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        match &self.backing {
            Backing::Map(m) => m,
            Backing::Memory(v) => v,
        }
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

    /// Row `row` of a tensor as single-precision numbers, in the arithmetic of the format's reference (single precision,
    /// product and sum rounded one by one). `out` has [`TensorInfo::cols`] elements.
    ///
    /// # Panics
    /// If `row` or the length of `out` do not belong to the tensor.
    pub fn read_row(&self, tensor: &TensorInfo, row: usize, out: &mut [f32]) {
        assert!(row < tensor.rows && out.len() == tensor.cols, "row outside of its tensor");
        let start = tensor.start + row * tensor.row_bytes;
        let bytes = &self.bytes()[start..start + tensor.row_bytes];
        let half = |b: &[u8]| f16::from_le_bytes([b[0], b[1]]).to_f32();
        match tensor.dtype {
            TensorType::F32 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *o = f32::from_le_bytes(*b);
                }
            }
            TensorType::F16 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *o = f16::from_le_bytes(*b).to_f32();
                }
            }
            TensorType::Bf16 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *o = bf16::from_le_bytes(*b).to_f32();
                }
            }
            TensorType::Q8_0 => {
                for (o, b) in out.chunks_exact_mut(BLOCK).zip(bytes.chunks_exact(34)) {
                    let d = half(b);
                    for (o, q) in o.iter_mut().zip(&b[2..]) {
                        *o = *q as i8 as f32 * d;
                    }
                }
            }
            TensorType::Q4_0 => {
                for (o, b) in out.chunks_exact_mut(BLOCK).zip(bytes.chunks_exact(18)) {
                    let d = half(b);
                    for (i, q) in b[2..].iter().enumerate() {
                        o[i] = ((q & 15) as i32 - 8) as f32 * d;
                        o[i + BLOCK / 2] = ((q >> 4) as i32 - 8) as f32 * d;
                    }
                }
            }
            TensorType::Q4_1 => {
                for (o, b) in out.chunks_exact_mut(BLOCK).zip(bytes.chunks_exact(20)) {
                    let (d, m) = (half(b), half(&b[2..]));
                    for (i, q) in b[4..].iter().enumerate() {
                        o[i] = (q & 15) as f32 * d + m;
                        o[i + BLOCK / 2] = (q >> 4) as f32 * d + m;
                    }
                }
            }
        }
    }
}

fn kind_error(key: &str, v: &Value, wanted: &str) -> ModelError {
    ModelError::Gguf(format!("metadata {key} is {}, expected {wanted}", v.kind()))
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    fn take(&mut self, n: u64, what: &str) -> Result<&'a [u8]> {
        if n > self.left() {
            return Err(ModelError::Gguf(format!(
                "truncated at byte {}: {what} needs {n} bytes, {} are left",
                self.at,
                self.left()
            )));
        }
        let s = &self.bytes[self.at..self.at + n as usize];
        self.at += n as usize;
        Ok(s)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut a = [0; N];
        a.copy_from_slice(self.take(N as u64, what)?);
        Ok(a)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn string(&mut self, what: &str) -> Result<String> {
        let at = self.at;
        let n = self.u64(what)?;
        let s = self.take(n, what)?;
        String::from_utf8(s.to_vec()).map_err(|_| ModelError::Gguf(format!("{what} at byte {at} is not UTF-8")))
    }

    fn name(&mut self, what: &str) -> Result<String> {
        let at = self.at;
        let s = self.string(what)?;
        if s.is_empty() || s.len() as u64 > MAX_NAME {
            return Err(ModelError::Gguf(format!("{what} at byte {at} has {} bytes", s.len())));
        }
        Ok(s)
    }

    fn value(&mut self, key: &str) -> Result<Value> {
        match self.u32(key)? {
            9 => self.list(key),
            ty => self.scalar(ty, key),
        }
    }

    fn scalar(&mut self, ty: u32, key: &str) -> Result<Value> {
        Ok(match ty {
            0 => Value::Uint(self.array::<1>(key)?[0].into()),
            1 => Value::Int((self.array::<1>(key)?[0] as i8).into()),
            2 => Value::Uint(u16::from_le_bytes(self.array(key)?).into()),
            3 => Value::Int(i16::from_le_bytes(self.array(key)?).into()),
            4 => Value::Uint(self.u32(key)?.into()),
            5 => Value::Int(i32::from_le_bytes(self.array(key)?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array(key)?).into()),
            7 => match self.array::<1>(key)?[0] {
                b @ 0..=1 => Value::Bool(b == 1),
                b => return Err(ModelError::Gguf(format!("metadata {key}: {b} is no truth value"))),
            },
            8 => Value::String(self.string(key)?),
            10 => Value::Uint(self.u64(key)?),
            11 => Value::Int(i64::from_le_bytes(self.array(key)?)),
            12 => Value::Float(f64::from_le_bytes(self.array(key)?)),
            ty => return Err(ModelError::Gguf(format!("metadata {key}: value type {ty} does not exist"))),
        })
    }

    fn list(&mut self, key: &str) -> Result<Value> {
        let ty = self.u32(key)?;
        let n = self.u64(key)?;
        // The smallest encoding of an element bounds the count before anything is allocated for it.
        let least = match ty {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10 | 11 | 12 => 8,
            9 => {
                return Err(ModelError::unsupported(
                    format!("metadata {key} is a list of lists"),
                    "no known model needs one",
                ));
            }
            ty => return Err(ModelError::Gguf(format!("metadata {key}: list of type {ty}, which does not exist"))),
        };
        if n > self.left() / least {
            return Err(ModelError::Gguf(format!(
                "metadata {key} announces {n} elements, but only {} bytes are left",
                self.left()
            )));
        }
        if ty == 8 {
            let mut v = Vec::new();
            for _ in 0..n {
                v.push(self.string(key)?);
            }
            return Ok(Value::Strings(v));
        }
        if matches!(ty, 6 | 12) {
            let mut v = Vec::with_capacity(n as usize);
            for _ in 0..n {
                if let Value::Float(x) = self.scalar(ty, key)? {
                    v.push(x as f32);
                }
            }
            return Ok(Value::Floats(v));
        }
        let mut v = Vec::with_capacity(n as usize);
        for _ in 0..n {
            v.push(match self.scalar(ty, key)? {
                Value::Uint(x) => {
                    i64::try_from(x).map_err(|_| ModelError::Gguf(format!("metadata {key}: {x} is out of range")))?
                }
                Value::Int(x) => x,
                Value::Bool(x) => x.into(),
                _ => 0,
            });
        }
        Ok(Value::Ints(v))
    }
}

type Parsed = (BTreeMap<String, Value>, BTreeMap<String, TensorInfo>);

fn parse(bytes: &[u8]) -> Result<Parsed> {
    let mut c = Cursor { bytes, at: 0 };
    let magic = c.array::<4>("the magic number")?;
    if &magic != b"GGUF" {
        return Err(ModelError::Gguf(format!("it begins with {magic:02x?}, not with \"GGUF\"")));
    }
    match c.u32("the version")? {
        2 | 3 => {}
        1 => {
            return Err(ModelError::unsupported(
                "GGUF version 1",
                "convert the model again with a current llama.cpp (versions 2 and 3 are read)",
            ));
        }
        v if v.swap_bytes() <= 3 => {
            return Err(ModelError::unsupported("a big-endian GGUF", "convert the model for a little-endian machine"));
        }
        v => return Err(ModelError::unsupported(format!("GGUF version {v}"), "versions 2 and 3 are read")),
    }
    let n_tensors = c.u64("the tensor count")?;
    let n_kv = c.u64("the metadata count")?;
    // A metadata pair takes at least 13 bytes, a tensor entry at least 32.
    if n_kv > c.left() / 13 {
        return Err(ModelError::Gguf(format!(
            "the header announces {n_kv} metadata entries, more than the file can hold"
        )));
    }
    if n_tensors > c.left() / 32 {
        return Err(ModelError::Gguf(format!("the header announces {n_tensors} tensors, more than the file can hold")));
    }
    let mut metadata = BTreeMap::new();
    for _ in 0..n_kv {
        let key = c.name("a metadata key")?;
        let value = c.value(&key)?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(ModelError::Gguf(format!("metadata {key} occurs twice")));
        }
    }
    let mut entries = Vec::new();
    for _ in 0..n_tensors {
        entries.push(tensor_entry(&mut c)?);
    }
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(Value::Uint(a)) if a.is_power_of_two() && *a <= 1 << 20 => *a,
        Some(_) => return Err(ModelError::Gguf("general.alignment is not a power of two up to 1 MiB".into())),
    };
    let base = (c.at as u64).next_multiple_of(alignment);
    let mut tensors = BTreeMap::new();
    for (mut t, offset) in entries {
        let size = t.row_bytes as u64 * t.rows as u64;
        let end = base.checked_add(offset).and_then(|s| s.checked_add(size));
        if offset % alignment != 0 || end.is_none_or(|e| e > bytes.len() as u64) {
            return Err(ModelError::Gguf(format!(
                "tensor {} ({size} bytes at {offset}) lies outside the file or is misaligned: the file is truncated or its directory damaged",
                t.name
            )));
        }
        t.start = (base + offset) as usize;
        let name = t.name.clone();
        if tensors.insert(name.clone(), t).is_some() {
            return Err(ModelError::Gguf(format!("tensor {name} occurs twice")));
        }
    }
    Ok((metadata, tensors))
}

fn tensor_entry(c: &mut Cursor<'_>) -> Result<(TensorInfo, u64)> {
    let name = c.name("a tensor name")?;
    let n_dims = c.u32(&name)?;
    if n_dims == 0 || n_dims > MAX_DIMS {
        return Err(ModelError::Gguf(format!("tensor {name} has {n_dims} dimensions")));
    }
    let mut dims = [1u64; MAX_DIMS as usize];
    for d in &mut dims[..n_dims as usize] {
        *d = c.u64(&name)?;
    }
    let code = c.u32(&name)?;
    let offset = c.u64(&name)?;
    let dtype = TensorType::from_code(code).ok_or_else(|| {
        ModelError::unsupported(
            format!("tensor {name} has storage type {code} ({})", foreign_type(code)),
            format!(
                "supported are {}; take a file of such a type (Q8_0 is the usual choice) or re-quantise the original",
                TensorType::SUPPORTED
            ),
        )
    })?;
    let bad = || ModelError::Gguf(format!("tensor {name} has dimensions {:?}", &dims[..n_dims as usize]));
    let (unit, bytes) = dtype.unit();
    let cols = dims[0];
    let rows = dims[1..].iter().try_fold(1u64, |a, d| a.checked_mul(*d)).ok_or_else(bad)?;
    if cols == 0 || rows == 0 || cols % unit as u64 != 0 {
        return Err(bad());
    }
    let row_bytes = (cols / unit as u64).checked_mul(bytes as u64).ok_or_else(bad)?;
    row_bytes.checked_mul(rows).filter(|n| *n <= i64::MAX as u64).ok_or_else(bad)?;
    let narrow = |v: u64| usize::try_from(v).map_err(|_| bad());
    Ok((
        TensorInfo {
            dtype,
            rows: narrow(rows)?,
            cols: narrow(cols)?,
            start: 0,
            row_bytes: narrow(row_bytes)?,
            name: name.clone(),
        },
        offset,
    ))
}
