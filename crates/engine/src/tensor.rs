//! Typed buffers of integers, and how they are stored and hashed.

use sworn_isa::Dtype;

/// The output of one operator at one position, or a run of such outputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpTensor {
    /// signed 8 bit
    I8(Vec<i8>),
    /// signed 16 bit
    I16(Vec<i16>),
    /// signed 32 bit
    I32(Vec<i32>),
    /// unsigned 16 bit
    U16(Vec<u16>),
}

/// Part of an [`OpTensor`], read only.
#[derive(Clone, Copy, Debug)]
pub enum View<'a> {
    /// signed 8 bit
    I8(&'a [i8]),
    /// signed 16 bit
    I16(&'a [i16]),
    /// signed 32 bit
    I32(&'a [i32]),
    /// unsigned 16 bit
    U16(&'a [u16]),
}

macro_rules! each {
    ($value:expr, $v:ident => $body:expr) => {
        match $value {
            OpTensor::I8($v) => $body,
            OpTensor::I16($v) => $body,
            OpTensor::I32($v) => $body,
            OpTensor::U16($v) => $body,
        }
    };
}

impl OpTensor {
    /// `n` zeros.
    pub fn zeros(dtype: Dtype, n: usize) -> Self {
        match dtype {
            Dtype::I8 => OpTensor::I8(vec![0; n]),
            Dtype::I16 => OpTensor::I16(vec![0; n]),
            Dtype::I32 => OpTensor::I32(vec![0; n]),
            Dtype::U16 => OpTensor::U16(vec![0; n]),
        }
    }

    /// Values in the range of `dtype`; values outside it keep their low bits.
    pub fn from_values(dtype: Dtype, values: &[i64]) -> Self {
        match dtype {
            Dtype::I8 => OpTensor::I8(values.iter().map(|v| *v as i8).collect()),
            Dtype::I16 => OpTensor::I16(values.iter().map(|v| *v as i16).collect()),
            Dtype::I32 => OpTensor::I32(values.iter().map(|v| *v as i32).collect()),
            Dtype::U16 => OpTensor::U16(values.iter().map(|v| *v as u16).collect()),
        }
    }

    /// Reads what [`Self::bytes`] wrote; bytes that are no whole element are ignored.
    pub fn from_bytes(dtype: Dtype, bytes: &[u8]) -> Self {
        match dtype {
            Dtype::I8 => OpTensor::I8(bytes.iter().map(|b| *b as i8).collect()),
            Dtype::I16 => OpTensor::I16(bytes.as_chunks().0.iter().map(|b| i16::from_be_bytes(*b)).collect()),
            Dtype::I32 => OpTensor::I32(bytes.as_chunks().0.iter().map(|b| i32::from_be_bytes(*b)).collect()),
            Dtype::U16 => OpTensor::U16(bytes.as_chunks().0.iter().map(|b| u16::from_be_bytes(*b)).collect()),
        }
    }

    /// Element type.
    pub fn dtype(&self) -> Dtype {
        match self {
            OpTensor::I8(_) => Dtype::I8,
            OpTensor::I16(_) => Dtype::I16,
            OpTensor::I32(_) => Dtype::I32,
            OpTensor::U16(_) => Dtype::U16,
        }
    }

    /// Elements.
    pub fn len(&self) -> usize {
        each!(self, v => v.len())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Element `i`, if there is one.
    pub fn get(&self, i: usize) -> Option<i64> {
        each!(self, v => v.get(i).map(|x| i64::from(*x)))
    }

    /// Overwrites element `i` with the low bits of `value`; no effect outside the tensor.
    pub fn set(&mut self, i: usize, value: i64) {
        match self {
            OpTensor::I8(v) => v.get_mut(i).map(|x| *x = value as i8),
            OpTensor::I16(v) => v.get_mut(i).map(|x| *x = value as i16),
            OpTensor::I32(v) => v.get_mut(i).map(|x| *x = value as i32),
            OpTensor::U16(v) => v.get_mut(i).map(|x| *x = value as u16),
        };
    }

    /// All elements as integers.
    pub fn values(&self) -> Vec<i64> {
        each!(self, v => v.iter().map(|x| i64::from(*x)).collect())
    }

    /// Big-endian two's complement, as committed.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.view().append_bytes(&mut out);
        out
    }

    /// The whole tensor.
    pub fn view(&self) -> View<'_> {
        match self {
            OpTensor::I8(v) => View::I8(v),
            OpTensor::I16(v) => View::I16(v),
            OpTensor::I32(v) => View::I32(v),
            OpTensor::U16(v) => View::U16(v),
        }
    }

    pub(crate) fn resize(&mut self, n: usize) {
        each!(self, v => v.resize(n, 0));
    }

    pub(crate) fn truncate(&mut self, n: usize) {
        each!(self, v => v.truncate(n));
    }

    pub(crate) fn reserve(&mut self, n: usize) {
        each!(self, v => v.reserve(n));
    }

    /// Appends the elements of a tensor of the same type; of another type: nothing.
    pub(crate) fn append(&mut self, other: &OpTensor) {
        match (self, other) {
            (OpTensor::I8(a), OpTensor::I8(b)) => a.extend_from_slice(b),
            (OpTensor::I16(a), OpTensor::I16(b)) => a.extend_from_slice(b),
            (OpTensor::I32(a), OpTensor::I32(b)) => a.extend_from_slice(b),
            (OpTensor::U16(a), OpTensor::U16(b)) => a.extend_from_slice(b),
            _ => {}
        }
    }
}

impl<'a> View<'a> {
    /// Elements.
    pub fn len(&self) -> usize {
        match self {
            View::I8(v) => v.len(),
            View::I16(v) => v.len(),
            View::I32(v) => v.len(),
            View::U16(v) => v.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Elements of `range`; `None` if it does not fit.
    pub fn slice(&self, range: std::ops::Range<usize>) -> Option<View<'a>> {
        Some(match self {
            View::I8(v) => View::I8(v.get(range)?),
            View::I16(v) => View::I16(v.get(range)?),
            View::I32(v) => View::I32(v.get(range)?),
            View::U16(v) => View::U16(v.get(range)?),
        })
    }

    /// Appends the elements in big-endian two's complement.
    pub fn append_bytes(&self, out: &mut Vec<u8>) {
        match self {
            View::I8(v) => out.extend_from_slice(bytemuck::cast_slice(v)),
            View::I16(v) => append(v, out, |x| x.to_be_bytes()),
            View::I32(v) => append(v, out, |x| x.to_be_bytes()),
            View::U16(v) => append(v, out, |x| x.to_be_bytes()),
        }
    }
}

/// Appends every element's bytes; in whole elements, so that the loop vectorises.
fn append<T: Copy, const N: usize>(values: &[T], out: &mut Vec<u8>, bytes: impl Fn(T) -> [u8; N]) {
    let at = out.len();
    out.resize(at + N * values.len(), 0);
    for (chunk, x) in out[at..].as_chunks_mut::<N>().0.iter_mut().zip(values) {
        *chunk = bytes(*x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bytes_are_big_endian_and_come_back(values in proptest::collection::vec(any::<i32>(), 0..50)) {
            let values: Vec<i64> = values.into_iter().map(i64::from).collect();
            for dtype in [Dtype::I8, Dtype::I16, Dtype::I32, Dtype::U16] {
                let t = OpTensor::from_values(dtype, &values);
                let bytes = t.bytes();
                prop_assert_eq!(bytes.len(), values.len() * dtype.width());
                prop_assert_eq!(&OpTensor::from_bytes(dtype, &bytes), &t);
                let decoded: Vec<i64> = bytes.chunks(dtype.width()).map(|b| dtype.decode(b)).collect();
                prop_assert_eq!(decoded, t.values());
            }
        }
    }
}
