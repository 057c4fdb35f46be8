//! Exported tensors on their way to the host: packed on the device to the width they are committed in, and hashed there
//! where their hashes will do.

use std::ops::Range;

use cubecl::prelude::{CubeCount, CubeDim};
use cubecl::server::Handle;
use sworn_commit::tensor::PAGE;
use sworn_commit::{Hash, trace, tree};
use sworn_isa::Dtype;

use crate::GpuError;
use crate::gpu::{Buffer, Gpu, Place};
use crate::kernels::keccak::{self, CutLaunch, ROUND_CONSTANTS};
use crate::kernels::{RowsLaunch, UNITS};
use crate::loaded::Loaded;

type Result<T> = std::result::Result<T, GpuError>;

/// Words of a hash.
const HASH_WORDS: usize = 8;
/// Tensors that one launch packs.
const TOGETHER: usize = 4;

/// Where one exported tensor lies in a row's record.
#[derive(Clone, Copy, Debug)]
struct Field {
    dtype: Dtype,
    elements: usize,
    /// Words before it.
    offset: usize,
}

impl Field {
    fn bytes(&self) -> usize {
        self.elements * self.dtype.width()
    }
}

/// A layer's exports of all rows of the batch.
struct Layer {
    fields: Vec<Field>,
    /// Words before the first row's record.
    first: usize,
    /// Words of a record.
    record: usize,
}

/// Room for everything that a batch of at most so many rows exports, layer by layer and row by row.
pub(crate) struct Staging {
    rows: usize,
    layers: Vec<Layer>,
    words: Buffer,
    /// First word, number of bytes and number of the hash of each page; pages of a length side by side, since neighbours
    /// on the device take as long as the longest of them.
    pages: Buffer,
    constants: Buffer,
    hashes: Buffer,
}

impl Staging {
    pub(crate) fn new(loaded: &Loaded, rows: u32) -> Result<Self> {
        let gpu = &loaded.gpu;
        let rows = rows as usize;
        let (mut layers, mut first) = (Vec::new(), 0);
        let mut pages: Vec<[i32; 3]> = Vec::new();
        for layer in 0..=loaded.model.layers() {
            let section = &loaded.sections[loaded.kind(layer)? as usize];
            let mut record = 0;
            let mut fields = Vec::new();
            for d in section.exports().into_iter().map(|op| &section.ops[op]) {
                // Exports do not grow with the position: `Program::validate` lets nothing else be read across layers.
                if d.div != 0 {
                    return Err(GpuError::Unsupported(format!("{}: an export that grows", d.opcode)));
                }
                let field = Field { dtype: d.dtype, elements: d.count(0) as usize, offset: record };
                record += field.bytes().div_ceil(4);
                fields.push(field);
            }
            for row in 0..rows {
                for field in &fields {
                    let (at, bytes) = (first + row * record + field.offset, field.bytes());
                    for page in (0..bytes).step_by(PAGE) {
                        let len = PAGE.min(bytes - page);
                        pages.push([(at + page / 4) as i32, len as i32, pages.len() as i32]);
                    }
                }
            }
            layers.push(Layer { fields, first, record });
            first += rows * record;
        }
        pages.sort_by_key(|[_, len, _]| *len);
        Ok(Staging {
            rows,
            layers,
            words: gpu.empty(first)?,
            hashes: gpu.empty(pages.len() * HASH_WORDS)?,
            pages: gpu.upload(pages.into_flattened())?,
            constants: gpu.upload(ROUND_CONSTANTS.iter().flat_map(|c| [*c as i32, (*c >> 32) as i32]).collect())?,
        })
    }

    /// Queues the packing of a layer's exports of the first `rows`, which lie where `sources` say.
    pub(crate) fn pack(&self, gpu: &Gpu, ctx: &Buffer, layer: u16, rows: u32, sources: &[(&Buffer, Place)]) {
        let Some(layer) = self.layers.get(usize::from(layer)) else { return };
        let fields: Vec<_> = layer.fields.iter().zip(sources).collect();
        for together in fields.chunks(TOGETHER) {
            let most = together.iter().map(|(f, _)| f.bytes().div_ceil(4)).max().unwrap_or(0);
            let field = |k: usize| -> (&Buffer, RowsLaunch, CutLaunch) {
                match together.get(k) {
                    Some((f, (buffer, place))) => {
                        let (elements, at) = (f.elements as u32, (layer.first + f.offset) as u32);
                        let width = f.dtype.width() as u32;
                        (buffer, place.launch(), CutLaunch::new(elements, width, at, layer.record as u32))
                    }
                    None => (ctx, Place::batch(0).launch(), CutLaunch::new(0, 4, 0, 0)),
                }
            };
            let [(a, ar, ac), (b, br, bc), (c, cr, cc), (d, dr, dc)] = [0, 1, 2, 3].map(field);
            let count = CubeCount::Static((most as u32).div_ceil(UNITS), rows, together.len() as u32);
            // SAFETY: every record lies inside `words`, and the kernel stops at each tensor's end.
            unsafe {
                keccak::pack::launch_unchecked(
                    gpu.client(),
                    count,
                    CubeDim::new_1d(UNITS),
                    ctx.arg(),
                    a.arg(),
                    b.arg(),
                    c.arg(),
                    d.arg(),
                    self.words.arg(),
                    ar,
                    br,
                    cr,
                    dr,
                    ac,
                    bc,
                    cc,
                    dc,
                )
            }
        }
    }

    /// Queues the hashing of all pages.
    pub(crate) fn hash(&self, gpu: &Gpu) {
        let pages = (self.pages.words() / 3) as u32;
        // SAFETY: each unit reads one page of the table and writes that page's hash.
        unsafe {
            keccak::pages::launch_unchecked(
                gpu.client(),
                gpu.spread(pages),
                CubeDim::new_1d(UNITS),
                self.words.arg(),
                self.pages.arg(),
                self.constants.arg(),
                self.hashes.arg(),
                pages,
            )
        }
    }

    /// What is to be read: all words, or all hashes.
    pub(crate) fn handle(&self, hashes: bool) -> Handle {
        let buffer = if hashes { &self.hashes } else { &self.words };
        buffer.slice(0, buffer.words())
    }

    pub(crate) fn written(&self) -> impl Iterator<Item = &Buffer> {
        [&self.words, &self.hashes].into_iter()
    }

    /// How to take apart what was read, of which the first `used` rows were packed.
    pub(crate) fn layout(&self, used: usize) -> Layout {
        let layers = self.layers.iter().map(|l| (l.first, l.record, l.fields.clone()));
        Layout { rows: self.rows, used, layers: layers.collect() }
    }
}

/// Takes apart what was read of a [`Staging`].
pub(crate) struct Layout {
    rows: usize,
    used: usize,
    /// First word, words of a record, tensors.
    layers: Vec<(usize, usize, Vec<Field>)>,
}

impl Layout {
    /// Calls `each` with layer, row and the tensors of each of `rows`, layer by layer. `bytes` are all words.
    pub(crate) fn tensors<E>(
        &self,
        bytes: &[u8],
        rows: Range<usize>,
        mut each: impl FnMut(u16, usize, &[&[u8]]) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        for (layer, (first, record, fields)) in self.layers.iter().enumerate() {
            for row in rows.clone() {
                let at = |f: &Field| 4 * (first + row * record + f.offset);
                let own: Vec<&[u8]> = fields.iter().map(|f| &bytes[at(f)..][..f.bytes()]).collect();
                each(layer as u16, row, &own)?;
            }
        }
        Ok(())
    }

    /// The leaf of every used row of every layer, layer by layer. `bytes` are all hashes.
    pub(crate) fn leaves(&self, bytes: &[u8]) -> Vec<Hash> {
        let mut rest = bytes.as_chunks::<{ 4 * HASH_WORDS }>().0;
        let (mut hashes, mut counts) = (Vec::with_capacity(rest.len()), Vec::new());
        for (_, _, fields) in &self.layers {
            let pages: Vec<usize> = fields.iter().map(|f| f.bytes().div_ceil(PAGE)).collect();
            let of_row: usize = pages.iter().sum();
            let (own, later) = rest.split_at(self.rows * of_row);
            hashes.extend_from_slice(&own[..self.used * of_row]);
            counts.extend(pages.repeat(self.used));
            rest = later;
        }
        let roots = tree::roots(hashes, &counts);
        let mut rest = &roots[..];
        let mut leaves = Vec::with_capacity(self.layers.len() * self.used);
        for (_, _, fields) in &self.layers {
            for _ in 0..self.used {
                let (own, later) = rest.split_at(fields.len());
                leaves.push(trace::leaf(own));
                rest = later;
            }
        }
        leaves
    }
}
