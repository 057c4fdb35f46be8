//! The bytes of a GGUF file to its metadata and the directory of its tensors.

use std::collections::BTreeMap;

use super::{TensorInfo, TensorType, Value};
use crate::error::{ModelError, Result};

const MAX_NAME: u64 = 1 << 16;
const MAX_DIMS: u32 = 4;

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

pub(super) type Parsed = (BTreeMap<String, Value>, BTreeMap<String, TensorInfo>);

/// Header, metadata and directory of a file, every place checked against its length.
pub(super) fn parse(bytes: &[u8]) -> Result<Parsed> {
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
            format!("tensor {name} has storage type {code} ({})", super::types::foreign_name(code)),
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
