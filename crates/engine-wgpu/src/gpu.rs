//! A device, its buffers, and what a launch is given.
//!
//! Burn owns the device and the memory (every buffer is one of its tensors); the kernels reach the memory through the
//! tensor's handle. No arithmetic of burn's is used.

use std::cell::RefCell;
use std::collections::HashMap;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use burn::backend::wgpu::{CubeTensor, Wgpu};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use cubecl::CubeKernel;
use cubecl::bytes::Bytes;
use cubecl::client::Client;
use cubecl::prelude::{BufferArg, CubeCount, CubeDim};
use cubecl::server::{Handle, KernelArguments, ServerError};
use sworn_isa::Descriptor;

use crate::GpuError;
use crate::adapter::{self, Adapter, Selection};
use crate::kernels::{Numbering, RowsLaunch, UNITS, copy, copy_within};
use crate::matrix::Matrix;

/// Words past the end of every buffer: `LINEAR` reads whole quadruples of activations.
const PADDING: usize = 4;
/// Parameters that are kept; they are few unless batches of every size were seen.
const MAX_PARAMETERS: usize = 4096;
/// Most cubes along one dimension that every device allows.
const MAX_CUBES: u32 = 65_535;

type Result<T> = std::result::Result<T, GpuError>;

/// How matrices are multiplied; the bits are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Products {
    /// Word by word.
    Words,
    /// By packed dot products: from shared memory if the batch has many rows.
    Dots,
    /// By packed dot products from shared memory, however few rows there are.
    Tiles,
}

/// An open device.
pub(crate) struct Gpu {
    device: Device,
    client: Client,
    adapter: &'static Adapter,
    split: bool,
    products: Products,
    /// Parameters of kernels that are not CubeCL's, by their words.
    parameters: RefCell<HashMap<Vec<i32>, Buffer>>,
}

/// 32-bit words on the device.
#[derive(Clone)]
pub(crate) struct Buffer {
    tensor: CubeTensor,
    words: usize,
}

impl Buffer {
    pub(crate) fn words(&self) -> usize {
        self.words
    }

    fn handle(&self) -> Handle {
        self.tensor.handle.clone()
    }

    /// Words `[from, from + len)`, for reading.
    pub(crate) fn slice(&self, from: usize, len: usize) -> Handle {
        let end = self.tensor.handle.size_in_used() as usize - 4 * (from + len);
        self.handle().offset_start(4 * from as u64).offset_end(end as u64)
    }

    pub(crate) fn arg(&self) -> BufferArg {
        // SAFETY: the buffer has at least this many words; kernels stay inside by the shapes that the program's checks
        // guarantee.
        unsafe { BufferArg::from_raw_parts(self.handle(), self.words) }
    }

    /// As vectors of `width` words.
    pub(crate) fn vectors(&self, width: usize) -> BufferArg {
        // SAFETY: as above; the length counts whole vectors.
        unsafe { BufferArg::from_raw_parts(self.handle(), self.words / width) }
    }
}

type Reading = Pin<Box<dyn Future<Output = std::result::Result<Vec<Bytes>, ServerError>> + Send>>;

/// A reading that was begun.
pub(crate) enum Later {
    Read(std::result::Result<Vec<Bytes>, ServerError>),
    Reading(Reading),
}

impl Later {
    /// Waits for it.
    pub(crate) fn wait(self) -> Result<Vec<Bytes>> {
        match self {
            Later::Read(read) => read.map_err(device_error),
            Later::Reading(future) => cubecl::future::block_on(future).map_err(device_error),
        }
    }
}

/// Where a batch's rows of a tensor lie; see [`crate::kernels::Rows`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Words from row to row.
    pub(crate) stride: u32,
    /// Words before the first row.
    pub(crate) offset: u32,
    pub(crate) numbering: Numbering,
    /// (positions per slab, elements per slab) where the last slab of a running reduction is meant.
    pub(crate) tail: Option<(u32, u32)>,
}

impl Place {
    /// Rows of the batch, one after the other.
    pub(crate) const fn batch(stride: u32) -> Self {
        Place { stride, offset: 0, numbering: Numbering::Batch, tail: None }
    }

    /// As kernels that are not CubeCL's are told.
    pub(crate) fn words(self) -> [i32; 5] {
        let (slab, len) = self.tail.unwrap_or((u32::MAX, 0));
        [self.stride, self.offset, self.numbering as u32, slab, len].map(|w| w as i32)
    }

    pub(crate) fn launch(self) -> RowsLaunch {
        let (slab, len) = self.tail.unwrap_or((u32::MAX, 0));
        RowsLaunch::new(self.stride, self.offset, self.numbering as u32, slab, len)
    }
}

/// What an operand of a launch is.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    None,
    Rows(&'a Buffer, Place),
    /// Activations in bytes, so many to an element; see [`crate::kernels::dot`].
    Packed(&'a Buffer, Place, u32),
    /// Every slot's tensor, one after the other.
    Cache(&'a Buffer, u32),
    Table(&'a Buffer),
    Matrix(&'a Matrix),
    /// The token, which `ctx` holds.
    Token,
}

/// One operator for a batch of positions.
pub(crate) struct Call<'a> {
    pub(crate) descriptor: &'a Descriptor,
    /// What the rows are; see [`crate::kernels::line`].
    pub(crate) ctx: &'a Buffer,
    /// Rows.
    pub(crate) batch: u32,
    /// The last of their positions.
    pub(crate) last: u32,
    pub(crate) operands: [Source<'a>; 4],
    pub(crate) out: &'a Buffer,
    pub(crate) place: Place,
    /// 0: the output has a word to an element; otherwise it is packed to so many bytes.
    pub(crate) planes: u32,
}

impl Call<'_> {
    fn malformed(&self) -> GpuError {
        GpuError::Unsupported(format!(
            "{}: an operand has a kind that its kernel does not read",
            self.descriptor.opcode
        ))
    }

    pub(crate) fn rows(&self, k: usize) -> Result<(BufferArg, RowsLaunch)> {
        match self.operands[k] {
            Source::Rows(buffer, place) => Ok((buffer.arg(), place.launch())),
            _ => Err(self.malformed()),
        }
    }

    /// The buffer of rows and where they lie; a table is the same for every row.
    pub(crate) fn places(&self, k: usize) -> Result<(&Buffer, Place)> {
        match self.operands[k] {
            Source::Rows(buffer, place) => Ok((buffer, place)),
            Source::Table(buffer) => Ok((buffer, Place::batch(0))),
            _ => Err(self.malformed()),
        }
    }

    /// Rows as vectors of `width` words.
    pub(crate) fn row_vectors(&self, k: usize, width: usize) -> Result<(BufferArg, RowsLaunch)> {
        match self.operands[k] {
            Source::Rows(buffer, place) => Ok((buffer.vectors(width), place.launch())),
            _ => Err(self.malformed()),
        }
    }

    /// Rows, or a table, which is the same for every row.
    pub(crate) fn rows_or_table(&self, k: usize) -> Result<(BufferArg, RowsLaunch)> {
        match self.operands[k] {
            Source::Table(buffer) => Ok((buffer.arg(), Place::batch(0).launch())),
            _ => self.rows(k),
        }
    }

    pub(crate) fn table(&self, k: usize) -> Result<BufferArg> {
        match self.operands[k] {
            Source::Table(buffer) => Ok(buffer.arg()),
            _ => Err(self.malformed()),
        }
    }

    pub(crate) fn cache(&self, k: usize) -> Result<(BufferArg, u32)> {
        self.cache_vectors(k, 1)
    }

    /// The cache as vectors of `width` words, and the words from position to position.
    pub(crate) fn cache_vectors(&self, k: usize, width: usize) -> Result<(BufferArg, u32)> {
        match self.operands[k] {
            Source::Cache(buffer, stride) => Ok((buffer.vectors(width), stride)),
            _ => Err(self.malformed()),
        }
    }

    pub(crate) fn matrix(&self, k: usize) -> Result<&Matrix> {
        match self.operands[k] {
            Source::Matrix(m) => Ok(m),
            _ => Err(self.malformed()),
        }
    }
}

impl Gpu {
    /// Opens the adapter that `selection` means.
    pub(crate) fn open(selection: &Selection) -> Result<Self> {
        let adapter = adapter::select(selection)?;
        let device = adapter::device(adapter)?;
        let probe = Tensor::<1, Int>::empty([1], (&device, DType::I32));
        let client = primitive(probe)?.client;
        let (split, parameters) = (adapter.is_gpu(), RefCell::default());
        // A software adapter has no such instruction.
        let products = if split { Products::Dots } else { Products::Words };
        Ok(Gpu { device, client, adapter, split, products, parameters })
    }

    /// Queues kernels.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Whether the device has units enough that work is split as far as it goes.
    pub(crate) fn splits(&self) -> bool {
        self.split
    }

    /// Units of a cube that reduces a long vector.
    pub(crate) fn wide(&self) -> u32 {
        if self.split { 256 } else { UNITS }
    }

    /// Buffers that a kernel may use.
    pub(crate) fn bindings(&self) -> u32 {
        self.client.properties().hardware.max_bindings
    }

    pub(crate) fn adapter(&self) -> &'static Adapter {
        self.adapter
    }

    /// Whether matrix products are split over the columns, as on a GPU.
    pub(crate) fn set_split(&mut self, split: bool) {
        self.split = split;
    }

    /// How matrices are multiplied.
    pub(crate) fn products(&self) -> Products {
        self.products
    }

    /// Multiplies matrices like this: to be said before a model is loaded.
    pub(crate) fn set_products(&mut self, products: Products) {
        self.products = products;
    }

    /// Queues a kernel that is not CubeCL's. `buffers` are its bindings; one more holds `parameters`.
    pub(crate) fn launch_source(
        &self,
        kernel: impl CubeKernel + 'static,
        cubes: CubeCount,
        buffers: &[&Buffer],
        parameters: Vec<i32>,
    ) -> Result<()> {
        let mut known = self.parameters.borrow_mut();
        if known.len() >= MAX_PARAMETERS {
            known.clear();
        }
        let own = match known.get(&parameters) {
            Some(buffer) => buffer.clone(),
            None => {
                let buffer = self.upload(parameters.clone())?;
                known.insert(parameters, buffer.clone());
                buffer
            }
        };
        let all = buffers.iter().copied().chain([&own]);
        let arguments = all.fold(KernelArguments::new(), |a, b| a.with_buffer(b.handle().binding()));
        self.client.launch(Box::new(kernel), cubes, arguments);
        Ok(())
    }

    /// Most words of one buffer.
    pub(crate) fn max_words(&self) -> usize {
        let bytes = self.client.properties().memory.max_page_size;
        (bytes / 4).min(i32::MAX as u64) as usize - PADDING
    }

    /// A buffer whose content is not defined yet.
    pub(crate) fn empty(&self, words: usize) -> Result<Buffer> {
        self.fits(words)?;
        let tensor = Tensor::<1, Int>::empty([words + PADDING], (&self.device, DType::I32));
        Ok(Buffer { tensor: primitive(tensor)?, words })
    }

    /// A buffer of these words.
    pub(crate) fn upload(&self, mut values: Vec<i32>) -> Result<Buffer> {
        let words = values.len();
        self.fits(words)?;
        values.resize(words + PADDING, 0);
        let data = TensorData::new(values, [words + PADDING]);
        let tensor = Tensor::<1, Int>::from_data(data, (&self.device, DType::I32));
        Ok(Buffer { tensor: primitive(tensor)?, words })
    }

    fn fits(&self, words: usize) -> Result<()> {
        if words <= self.max_words() {
            return Ok(());
        }
        Err(GpuError::Unsupported(format!(
            "a tensor of {} MiB is over the {} MiB that one binding of {} holds",
            words >> 18,
            self.max_words() >> 18,
            self.adapter.name
        )))
    }

    /// Reads buffers or parts of them, all at once.
    pub(crate) fn read(&self, handles: Vec<Handle>) -> Result<Vec<Vec<i32>>> {
        self.read_later(handles).wait()?.iter().map(|b| Ok(bytemuck::pod_collect_to_vec(b))).collect()
    }

    /// Begins to read buffers or parts of them as they are once everything queued so far is done.
    pub(crate) fn read_later(&self, handles: Vec<Handle>) -> Later {
        let client = self.client.clone();
        let mut future: Reading = Box::pin(async move { client.read_async(handles).await });
        // The first poll is what queues the copies.
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(read) => Later::Read(read),
            Poll::Pending => Later::Reading(future),
        }
    }

    /// Fails if any launch that should have written one of these buffers failed. Reads of other buffers do not tell.
    pub(crate) fn check<'a>(&self, buffers: impl Iterator<Item = &'a Buffer>) -> Result<()> {
        self.client.check(buffers.map(|b| &b.tensor.handle)).map_err(device_error)
    }

    /// Cubes of [`UNITS`] for `n` units: over two dimensions, since one holds at most 65,535.
    pub(crate) fn spread(&self, n: u32) -> CubeCount {
        let cubes = n.div_ceil(UNITS);
        CubeCount::Static(cubes.min(MAX_CUBES), cubes.div_ceil(MAX_CUBES), 1)
    }

    /// Copies the first `words` of a buffer into another.
    pub(crate) fn copy(&self, from: &Buffer, to: &Buffer, words: usize) {
        let count = self.spread(words as u32);
        // SAFETY: both buffers hold `words`, and the kernel stops there.
        unsafe {
            copy::launch_unchecked(&self.client, count, CubeDim::new_1d(UNITS), from.arg(), to.arg(), words as u32)
        }
    }

    /// Copies `words` from one place of a buffer to another, which do not overlap.
    pub(crate) fn copy_within(&self, buffer: &Buffer, from: usize, to: usize, words: usize) {
        let (count, units) = (self.spread(words as u32), CubeDim::new_1d(UNITS));
        // SAFETY: the caller's places lie inside the buffer, and the kernel stops at their end.
        unsafe {
            copy_within::launch_unchecked(
                &self.client,
                count,
                units,
                buffer.arg(),
                from as u32,
                to as u32,
                words as u32,
            )
        }
    }
}

fn primitive(tensor: Tensor<1, Int>) -> Result<CubeTensor> {
    tensor.try_into_primitive::<Wgpu>().map_err(|e| GpuError::Device(format!("not a wgpu tensor: {e:?}")))
}

fn device_error(e: ServerError) -> GpuError {
    GpuError::Device(e.to_string())
}
