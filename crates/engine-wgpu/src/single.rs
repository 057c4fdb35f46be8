//! Single operators on given operands: what the differential tests and a self-test run.

use cubecl::server::Handle;
use sworn_isa::{Descriptor, Opcode, OperandKind};

use crate::GpuError;
use crate::adapter::{Adapter, Selection};
use crate::gpu::{Buffer, Call, Gpu, Place, Products, Source};
use crate::matrix::{Matrix, PackedRows};

/// One operand's values.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// unused
    None,
    /// OP, PREV or TABLE: the whole tensor, with all slabs of a running reduction
    Tensor(&'a [i64]),
    /// CACHE: the exported tensor of positions 0…t
    Cache(&'a [Vec<i64>]),
    /// WEIGHT
    Rows(PackedRows<'a>),
    /// TOKEN
    Token(u32),
}

/// One operator at one position.
#[derive(Clone, Debug)]
pub struct Single<'a> {
    /// The operator.
    pub descriptor: &'a Descriptor,
    /// The position.
    pub t: u32,
    /// Its operands.
    pub operands: [Values<'a>; 4],
}

/// Runs single operators on a device with the kernels that whole models run.
pub struct Kernels {
    gpu: Gpu,
    most_rows: usize,
}

impl Kernels {
    /// Opens an adapter.
    ///
    /// # Errors
    /// There is none, or it cannot be used.
    pub fn open(selection: &Selection) -> Result<Self, GpuError> {
        Ok(Kernels { gpu: Gpu::open(selection)?, most_rows: usize::MAX })
    }

    /// Splits matrices as if a binding held only so many rows (at least four).
    #[must_use]
    pub fn with_rows_per_binding(mut self, rows: usize) -> Self {
        self.most_rows = rows.max(4);
        self
    }

    /// Splits matrix products over the columns, as on a GPU, or not, as on a software adapter.
    #[must_use]
    pub fn with_split_columns(mut self, split: bool) -> Self {
        self.gpu.set_split(split);
        self
    }

    /// Multiplies matrices like this.
    #[must_use]
    pub fn with_products(mut self, products: Products) -> Self {
        self.gpu.set_products(products);
        self
    }

    /// The device.
    pub fn adapter(&self) -> &'static Adapter {
        self.gpu.adapter()
    }

    /// The outputs of independent operators, launched together and read at once. `SELECT` yields the best token, whichever
    /// token is claimed.
    ///
    /// # Errors
    /// Operands that do not fit the descriptor, or a device failure.
    pub fn run(&self, singles: &[Single<'_>]) -> Result<Vec<Vec<i64>>, GpuError> {
        let mut keep = Vec::new();
        let mut handles: Vec<Handle> = Vec::new();
        for s in singles {
            let (out, len) = self.launch(s, &mut keep)?;
            handles.push(out.slice(0, len));
        }
        let read = self.gpu.read(handles)?;
        Ok(read.into_iter().map(|v| v.into_iter().map(i64::from).collect()).collect())
    }

    fn launch(&self, s: &Single<'_>, keep: &mut Vec<Kept>) -> Result<(Buffer, usize), GpuError> {
        let d = s.descriptor;
        let token = s.operands.iter().find_map(|o| if let Values::Token(t) = o { Some(*t) } else { None });
        let words = |v: &[i64]| self.gpu.upload(v.iter().map(|x| *x as i32).collect());
        let first = keep.len();
        keep.push(Kept::Buffer(Box::new(words(&[i64::from(s.t), i64::from(token.unwrap_or(0)), 0, 0])?)));
        let packs = |k: usize| self.gpu.products() != Products::Words && d.opcode == Opcode::Linear && k == 0;
        for (k, values) in s.operands.iter().enumerate() {
            keep.push(match values {
                Values::Tensor(v) if packs(k) => Kept::Buffer(Box::new(self.gpu.upload(packed(v, planes(d)))?)),
                Values::Tensor(v) => Kept::Buffer(Box::new(words(v)?)),
                Values::Cache(rows) => Kept::Buffer(Box::new(words(&rows.concat())?)),
                Values::Rows(m) => Kept::Matrix(Matrix::upload(&self.gpu, &[*m], self.most_rows)?),
                Values::None | Values::Token(_) => Kept::Nothing,
            });
        }
        let kept = &keep[first..];
        let mut operands = [Source::None; 4];
        for (k, source) in operands.iter_mut().enumerate() {
            let o = d.operands[k];
            let misfit = || GpuError::Unsupported(format!("{}: operand {k} does not fit", d.opcode));
            *source = match (&kept[k + 1], s.operands[k]) {
                (Kept::Buffer(b), Values::Tensor(v)) => {
                    if Some(v.len() as u64) != d.operand_total(k, s.t) {
                        return Err(misfit());
                    }
                    let tail = o.tail.then(|| (u32::from(o.stride), d.operand_elements(k, s.t).unwrap_or(0) as u32));
                    match o.kind {
                        _ if packs(k) => {
                            let (planes, words) = (planes(d), b.words() as u32);
                            Source::Packed(b, Place::batch(words), planes)
                        }
                        OperandKind::Table => Source::Table(b),
                        _ => Source::Rows(b, Place { tail, ..Place::batch(v.len() as u32) }),
                    }
                }
                (Kept::Buffer(b), Values::Cache(rows)) => {
                    let n = d.operand_elements(k, s.t).unwrap_or(0);
                    if rows.len() as u64 != u64::from(s.t) + 1 || rows.iter().any(|r| r.len() as u64 != n) {
                        return Err(misfit());
                    }
                    Source::Cache(b, n as u32)
                }
                (Kept::Matrix(m), _) => Source::Matrix(m),
                (Kept::Nothing, Values::Token(_)) => Source::Token,
                _ => Source::None,
            };
        }
        let [Kept::Buffer(ctx), ..] = kept else {
            return Err(GpuError::Device("no position".into()));
        };
        let len = d.count(s.t) as usize;
        let out = self.gpu.empty(len)?;
        let place = Place::batch(len as u32);
        self.gpu.launch(&Call { descriptor: d, ctx, batch: 1, last: s.t, operands, out: &out, place, planes: 0 })?;
        Ok((out, len))
    }
}

/// Bytes of one of a `LINEAR`'s activations.
fn planes(d: &Descriptor) -> u32 {
    d.operands[0].dtype.width() as u32
}

/// Activations as [`crate::kernels::dot`] reads them.
fn packed(v: &[i64], planes: u32) -> Vec<i32> {
    let bytes = |four: &[i64], right: u32| {
        let byte = |(i, x): (usize, &i64)| ((x >> right) as u32 & 255) << (8 * i);
        four.iter().enumerate().map(byte).sum::<u32>() as i32
    };
    let word = |four: &[i64]| match planes {
        1 => vec![bytes(four, 0)],
        _ => vec![bytes(four, 8), bytes(four, 0)],
    };
    v.chunks(4).flat_map(word).collect()
}

/// What must live until the launch was queued.
enum Kept {
    Nothing,
    Buffer(Box<Buffer>),
    Matrix(Matrix),
}
