//! A device, its buffers and the launch of one operator.
//!
//! Burn owns the device and the memory (every buffer is one of its tensors); the kernels reach the memory through the
//! tensor's handle. No arithmetic of burn's is used.

use burn::backend::wgpu::{CubeTensor, Wgpu};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use cubecl::client::Client;
use cubecl::prelude::{BufferArg, CubeCount, CubeDim};
use cubecl::server::Handle;
use sworn_isa::{Descriptor, Opcode};

use crate::GpuError;
use crate::adapter::{self, Adapter, Selection};
use crate::kernels::{FOLD, RowsLaunch, UNITS, attention, copy, elementwise, matrix, norm};
use crate::matrix::Matrix;

/// Words past the end of every buffer: `LINEAR` reads whole quadruples of activations.
const PADDING: usize = 4;
/// Most cubes along one dimension that every device allows.
const MAX_CUBES: u32 = 65_535;

type Result<T> = std::result::Result<T, GpuError>;

/// An open device.
pub(crate) struct Gpu {
    device: Device,
    client: Client,
    adapter: &'static Adapter,
    split: bool,
}

/// 32-bit words on the device.
#[derive(Clone)]
pub(crate) struct Buffer {
    tensor: CubeTensor,
    words: usize,
}

impl Buffer {
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

    fn vectors(&self) -> BufferArg {
        // SAFETY: as above; the length counts vectors of four words.
        unsafe { BufferArg::from_raw_parts(self.handle(), self.words / 4) }
    }
}

/// Where a batch's rows of a tensor lie; see [`crate::kernels::Rows`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Words from row to row.
    pub(crate) stride: u32,
    /// Words before the first row.
    pub(crate) offset: u32,
    /// Whether rows are numbered by position, not by place in the batch.
    pub(crate) absolute: bool,
    /// (positions per slab, elements per slab) where the last slab of a running reduction is meant.
    pub(crate) tail: Option<(u32, u32)>,
}

impl Place {
    /// Rows of the batch, one after the other.
    pub(crate) const fn batch(stride: u32) -> Self {
        Place { stride, offset: 0, absolute: false, tail: None }
    }

    pub(crate) fn launch(self) -> RowsLaunch {
        let (slab, len) = self.tail.unwrap_or((u32::MAX, 0));
        RowsLaunch::new(self.stride, self.offset, self.absolute as u32, slab, len)
    }
}

/// What an operand of a launch is.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    None,
    Rows(&'a Buffer, Place),
    /// Every position's tensor, one after the other.
    Cache(&'a Buffer, u32),
    Table(&'a Buffer),
    Matrix(&'a Matrix),
    /// The token, which `ctx` holds.
    Token,
}

/// One operator for a batch of positions.
pub(crate) struct Call<'a> {
    pub(crate) descriptor: &'a Descriptor,
    /// First position and tokens of the batch.
    pub(crate) ctx: &'a Buffer,
    /// Positions.
    pub(crate) batch: u32,
    /// The last of them.
    pub(crate) last: u32,
    pub(crate) operands: [Source<'a>; 4],
    pub(crate) out: &'a Buffer,
    pub(crate) place: Place,
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

    pub(crate) fn table(&self, k: usize) -> Result<BufferArg> {
        match self.operands[k] {
            Source::Table(buffer) => Ok(buffer.arg()),
            _ => Err(self.malformed()),
        }
    }

    pub(crate) fn cache(&self, k: usize) -> Result<(BufferArg, u32)> {
        match self.operands[k] {
            Source::Cache(buffer, stride) => Ok((buffer.arg(), stride)),
            _ => Err(self.malformed()),
        }
    }

    fn matrix(&self, k: usize) -> Result<&Matrix> {
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
        Ok(Gpu { device, client, adapter, split: adapter.is_gpu() })
    }

    pub(crate) fn adapter(&self) -> &'static Adapter {
        self.adapter
    }

    /// Whether matrix products are split over the columns, as on a GPU.
    pub(crate) fn set_split(&mut self, split: bool) {
        self.split = split;
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
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
        let bytes = self.client.read(handles).map_err(device_error)?;
        Ok(bytes.iter().map(|b| bytemuck::pod_collect_to_vec(b)).collect())
    }

    /// Fails if any launch that should have written one of these buffers failed. Reads of other buffers do not tell.
    pub(crate) fn check<'a>(&self, buffers: impl Iterator<Item = &'a Buffer>) -> Result<()> {
        self.client.check(buffers.map(|b| &b.tensor.handle)).map_err(device_error)
    }

    /// Copies the first `words` of a buffer into another.
    pub(crate) fn copy(&self, from: &Buffer, to: &Buffer, words: usize) {
        let cubes = (words as u32).div_ceil(UNITS);
        let count = CubeCount::Static(cubes.min(MAX_CUBES), cubes.div_ceil(MAX_CUBES), 1);
        // SAFETY: both buffers hold `words`, and the kernel stops there.
        unsafe {
            copy::launch_unchecked(&self.client, count, CubeDim::new_1d(UNITS), from.arg(), to.arg(), words as u32)
        }
    }

    /// Queues one operator.
    ///
    /// # Errors
    /// Operands of the wrong kind. What goes wrong on the device is reported by [`Self::read`] and [`Self::check`].
    pub(crate) fn launch(&self, call: &Call<'_>) -> Result<()> {
        let d = call.descriptor;
        let p = d.params;
        let count = d.count(0) as u32;
        let (client, ctx, out) = (&self.client, call.ctx.arg(), call.out.arg());
        let or = call.place.launch();
        let units = CubeDim::new_1d(UNITS);
        let fold = CubeDim::new_1d(FOLD);
        let over = |n: u32| CubeCount::Static(n.div_ceil(UNITS), call.batch, 1);
        let per_row = CubeCount::Static(call.batch.div_ceil(UNITS), 1, 1);
        let positions = |heads: u32| CubeCount::Static((call.last + 1).div_ceil(UNITS), call.batch, heads);
        // SAFETY (of every launch below): each kernel reads and writes only elements that the descriptor's shape implies,
        // and `Program::validate` makes every operand as large as that.
        match d.opcode {
            Opcode::Embed => {
                let m = call.matrix(1)?;
                for part in &m.parts {
                    let scales = (p[1] as u32) * part.padded_rows();
                    unsafe {
                        matrix::embed::launch_unchecked(
                            client,
                            over(count),
                            units,
                            call.ctx.arg(),
                            part.words.arg(),
                            part.scales.arg(),
                            call.out.arg(),
                            call.place.launch(),
                            count,
                            part.first,
                            part.rows,
                            part.padded_rows(),
                            scales,
                        )
                    }
                }
            }
            Opcode::MaxAbs => {
                let (x, xr) = call.rows(0)?;
                let (floor, group) = (p[0] as u32, p[1] as u32);
                let cubes = CubeCount::Static(count, call.batch, 1);
                unsafe { norm::max_abs::launch_unchecked(client, cubes, fold, ctx, x, out, xr, or, group, floor, FOLD) }
            }
            Opcode::SumSq => {
                let ((x, xr), (m, mr)) = (call.rows(0)?, call.rows(1)?);
                let cubes = CubeCount::Static(count / 2, call.batch, 1);
                unsafe {
                    norm::sum_sq::launch_unchecked(client, cubes, fold, ctx, x, m, out, xr, mr, or, p[0] as u32, FOLD)
                }
            }
            Opcode::Rms => {
                let ((s, sr), (m, mr)) = (call.rows(0)?, call.rows(1)?);
                let (epsilon, groups) = (p[0] as u32, p[1] as u32);
                unsafe {
                    norm::rms::launch_unchecked(
                        client, per_row, units, ctx, s, m, out, sr, mr, or, groups, epsilon, call.batch,
                    )
                }
            }
            Opcode::Gain => {
                let ((x, xr), s) = (call.rows(0)?, call.table(1)?);
                unsafe {
                    elementwise::gain::launch_unchecked(client, over(count), units, ctx, x, s, out, xr, or, count)
                }
            }
            Opcode::Quant => {
                let ((v, vr), (a, ar)) = (call.rows(0)?, call.rows(1)?);
                let (group, bits) = (p[0] as u32, d.bits as u32);
                unsafe {
                    elementwise::quantise::launch_unchecked(
                        client,
                        over(count),
                        units,
                        ctx,
                        v,
                        a,
                        out,
                        vr,
                        ar,
                        or,
                        count,
                        group,
                        bits,
                    )
                }
            }
            Opcode::QuantScale => {
                let (a, ar) = call.rows(0)?;
                let (groups, bits) = (count / 2, d.bits as u32);
                unsafe {
                    elementwise::quant_scale::launch_unchecked(
                        client,
                        over(groups),
                        units,
                        ctx,
                        a,
                        out,
                        ar,
                        or,
                        groups,
                        bits,
                        p[0],
                    )
                }
            }
            Opcode::NormScale => {
                let ((a, ar), (r, rr), gain) = (call.rows(0)?, call.rows(1)?, call.table(2)?);
                let (n, bits) = (p[0] as u32, d.bits as u32);
                unsafe {
                    norm::norm_scale::launch_unchecked(
                        client, per_row, units, ctx, a, r, gain, out, ar, rr, or, n, bits, call.batch,
                    )
                }
            }
            Opcode::Linear => self.linear(call)?,
            Opcode::Rope => {
                let ((x, xr), cos, sin) = (call.rows(0)?, call.table(1)?, call.table(2)?);
                let (pairs, half) = (count / 2, p[0] as u32 / 2);
                unsafe {
                    elementwise::rope::launch_unchecked(
                        client,
                        over(pairs),
                        units,
                        ctx,
                        x,
                        cos,
                        sin,
                        out,
                        xr,
                        or,
                        pairs,
                        half,
                    )
                }
            }
            Opcode::ScaleQ => {
                let (a, ar) = call.rows(0)?;
                let groups = count / 2;
                unsafe {
                    elementwise::scale_q::launch_unchecked(
                        client,
                        over(groups),
                        units,
                        ctx,
                        a,
                        out,
                        ar,
                        or,
                        groups,
                        p[0],
                        p[1] as u32,
                        p[2],
                    )
                }
            }
            Opcode::ToFixed => {
                let (v, vr) = call.rows(0)?;
                let s = p[0] as u32;
                unsafe {
                    elementwise::fixed::launch_unchecked(client, over(count), units, ctx, v, out, vr, or, count, s)
                }
            }
            Opcode::Scores => {
                let ((q, qr), (qs, qsr)) = (call.rows(0)?, call.rows(1)?);
                let ((k, k_stride), (ks, ks_stride)) = (call.cache(2)?, call.cache(3)?);
                let (group, shared_by) = (p[0] as u32, p[1] as u32);
                unsafe {
                    attention::scores::launch_unchecked(
                        client,
                        positions(d.outer),
                        units,
                        ctx,
                        q,
                        qs,
                        k,
                        ks,
                        out,
                        qr,
                        qsr,
                        k_stride,
                        ks_stride,
                        or,
                        group,
                        shared_by,
                    )
                }
            }
            Opcode::RowMax | Opcode::RowSum => {
                let (s, sr) = call.rows(0)?;
                let cubes = CubeCount::Static(d.inner, call.batch, 1);
                let (block, sum) = (p[0] as u32, d.opcode == Opcode::RowSum);
                unsafe {
                    attention::row_scan::launch_unchecked(
                        client, cubes, fold, ctx, s, out, sr, or, d.inner, block, FOLD, sum,
                    )
                }
            }
            Opcode::Exp => {
                let ((s, sr), (m, mr), table) = (call.rows(0)?, call.rows(1)?, call.table(2)?);
                let cubes = positions(d.outer);
                unsafe { attention::exp::launch_unchecked(client, cubes, units, ctx, s, m, table, out, sr, mr, or) }
            }
            Opcode::Prob => {
                let ((e, er), (z, zr)) = (call.rows(0)?, call.rows(1)?);
                let cubes = positions(d.outer);
                unsafe { attention::probability::launch_unchecked(client, cubes, units, ctx, e, z, out, er, zr, or) }
            }
            Opcode::Mix => {
                let ((pr, prr), (v, v_stride)) = (call.rows(0)?, call.cache(1)?);
                let (group, shared_by) = (p[0] as u32, p[1] as u32);
                unsafe {
                    attention::mix::launch_unchecked(
                        client,
                        over(d.inner),
                        units,
                        ctx,
                        pr,
                        v,
                        out,
                        prr,
                        v_stride,
                        or,
                        d.inner,
                        group,
                        shared_by,
                    )
                }
            }
            Opcode::SiluMul => {
                let ((g, gr), (u, ur), table) = (call.rows(0)?, call.rows(1)?, call.table(2)?);
                unsafe {
                    elementwise::silu::launch_unchecked(
                        client,
                        over(count),
                        units,
                        ctx,
                        g,
                        u,
                        table,
                        out,
                        gr,
                        ur,
                        or,
                        count,
                    )
                }
            }
            Opcode::Add => {
                let ((x, xr), (y, yr)) = (call.rows(0)?, call.rows(1)?);
                unsafe {
                    elementwise::add::launch_unchecked(client, over(count), units, ctx, x, y, out, xr, yr, or, count)
                }
            }
            Opcode::Select => {
                let (l, lr) = call.rows(0)?;
                let cubes = CubeCount::Static(call.batch, 1, 1);
                unsafe {
                    matrix::select::launch_unchecked(client, cubes, units, ctx, l, out, lr, or, p[0] as u32, UNITS)
                }
            }
            opcode => return Err(GpuError::Unsupported(format!("{opcode} has no kernel"))),
        }
        Ok(())
    }

    fn linear(&self, call: &Call<'_>) -> Result<()> {
        let p = call.descriptor.params;
        let m = call.matrix(2)?;
        let tile = match call.batch {
            1 => 1,
            2..=4 => 4,
            _ => 8,
        };
        // A software adapter has few cores and reads an activation once for all lanes when no lane differs in the column,
        // so it does not split; a GPU needs the units.
        let (lanes, splits) = if self.split { (8, 16) } else { (16, 1) };
        for part in &m.parts {
            let ((a, ar), (s, sr)) = (call.rows(0)?, call.rows(1)?);
            let quads = part.quads;
            let count = CubeCount::Static(quads.div_ceil(lanes), call.batch.div_ceil(tile), 1);
            let scales = (p[1] as u32) * part.padded_rows();
            // SAFETY: as in `launch`; the units of the last cubes that have no quad or no position write nothing.
            unsafe {
                matrix::linear::launch_unchecked(
                    &self.client,
                    count,
                    CubeDim::new_2d(lanes, splits),
                    4,
                    call.ctx.arg(),
                    a,
                    s,
                    part.words.vectors(),
                    part.scales.arg(),
                    call.out.arg(),
                    ar,
                    sr,
                    call.place.launch(),
                    call.batch,
                    m.words_per_row,
                    quads,
                    part.first,
                    part.rows,
                    scales,
                    tile,
                    lanes,
                    splits,
                )
            }
        }
        Ok(())
    }
}

fn primitive(tensor: Tensor<1, Int>) -> Result<CubeTensor> {
    tensor.try_into_primitive::<Wgpu>().map_err(|e| GpuError::Device(format!("not a wgpu tensor: {e:?}")))
}

fn device_error(e: cubecl::server::ServerError) -> GpuError {
    GpuError::Device(e.to_string())
}
