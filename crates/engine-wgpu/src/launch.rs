//! The launch of one operator.

use cubecl::prelude::{BufferArg, CubeCount, CubeDim};
use sworn_isa::{Opcode, RowFormat};

use crate::GpuError;
use crate::gpu::{Buffer, Call, Gpu, Place, Products, Source};
use crate::kernels::attention::AfterLaunch;
use crate::kernels::dot::{Dot, Tile};
use crate::kernels::{FOLD, UNITS, attention, elementwise, matrix, norm};

type Result<T> = std::result::Result<T, GpuError>;

/// From so many positions on, products come from tiles in shared memory.
const MANY: u32 = 24;

/// The kernels' code of a row format.
fn code(format: RowFormat) -> u32 {
    format as u32
}

/// Words that a head's elements are read in.
pub(crate) fn width(group: u32) -> u32 {
    if group.is_multiple_of(4) { 4 } else { 1 }
}

impl Gpu {
    /// Queues one operator.
    ///
    /// # Errors
    /// Operands of the wrong kind. What goes wrong on the device is reported by [`Self::read`] and [`Self::check`].
    pub(crate) fn launch(&self, call: &Call<'_>) -> Result<()> {
        let d = call.descriptor;
        let p = d.params;
        let count = d.count(0) as u32;
        let (client, ctx, out) = (self.client(), call.ctx.arg(), call.out.arg());
        let or = call.place.launch();
        let units = CubeDim::new_1d(UNITS);
        let fold = CubeDim::new_1d(FOLD);
        let over = |n: u32| CubeCount::Static(n.div_ceil(UNITS), call.batch, 1);
        // Of outputs that grow with the position: the last one's.
        let most = CubeCount::Static((d.count(call.last) as u32).div_ceil(UNITS), call.batch, 1);
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
                            part.groups.arg(),
                            part.scales.arg(),
                            call.out.arg(),
                            call.place.launch(),
                            count,
                            part.first,
                            part.rows,
                            part.padded_rows(),
                            scales,
                            code(m.format),
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
                    norm::sum_sq::launch_unchecked(
                        client,
                        cubes,
                        fold,
                        ctx,
                        x,
                        m,
                        out,
                        xr,
                        mr,
                        or,
                        p[0] as u32,
                        p[1] as u32,
                        FOLD,
                    )
                }
            }
            Opcode::Rms => {
                let ((s, sr), (m, mr)) = (call.rows(0)?, call.rows(1)?);
                let (epsilon, groups) = (p[0] as u32, p[1] as u32);
                unsafe {
                    norm::rms::launch_unchecked(
                        client,
                        over(count / 2),
                        units,
                        ctx,
                        s,
                        m,
                        out,
                        sr,
                        mr,
                        or,
                        groups,
                        epsilon,
                        count / 2,
                    )
                }
            }
            Opcode::Gain => {
                let ((x, xr), s) = (call.rows(0)?, call.table(1)?);
                unsafe {
                    elementwise::gain::launch_unchecked(
                        client,
                        over(count),
                        units,
                        ctx,
                        x,
                        s,
                        out,
                        xr,
                        or,
                        count,
                        p[0] as u32,
                    )
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
                        client,
                        over(count / 2),
                        units,
                        ctx,
                        a,
                        r,
                        gain,
                        out,
                        ar,
                        rr,
                        or,
                        n,
                        bits,
                        count / 2,
                    )
                }
            }
            Opcode::Linear => self.linear(call, None)?,
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
                // Nothing follows, so neither table is read.
                let unread = || call.cache(3).map(|(ks, _)| ks);
                self.scores(call, call.out, call.place, unread()?, unread()?, AfterLaunch::new(0, 0, 0, 0))?;
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
            Opcode::SiluMul | Opcode::GeluMul => {
                let ((g, gr), (u, ur), table) = (call.rows(0)?, call.rows(1)?, call.table(2)?);
                let gelu = d.opcode == Opcode::GeluMul;
                unsafe {
                    elementwise::gate::launch_unchecked(
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
                        gelu,
                    )
                }
            }
            Opcode::Add => {
                let ((x, xr), (y, yr)) = (call.rows(0)?, call.rows_or_table(1)?);
                unsafe {
                    elementwise::add::launch_unchecked(client, over(count), units, ctx, x, y, out, xr, yr, or, count)
                }
            }
            Opcode::Dequant => {
                let ((a, ar), (s, sr)) = (call.rows(0)?, call.rows(1)?);
                unsafe {
                    elementwise::dequantise::launch_unchecked(
                        client,
                        over(count),
                        units,
                        ctx,
                        a,
                        s,
                        out,
                        ar,
                        sr,
                        or,
                        count,
                        p[0],
                    )
                }
            }
            Opcode::SoftCap => {
                let ((x, xr), table) = (call.rows(0)?, call.table(1)?);
                let (cap, m) = (p[0] as u32, p[1] as u32);
                unsafe {
                    elementwise::cap::launch_unchecked(
                        client,
                        most,
                        units,
                        ctx,
                        x,
                        table,
                        out,
                        xr,
                        or,
                        count,
                        cap,
                        m,
                        p[2],
                        d.div == 1,
                    )
                }
            }
            Opcode::Window => {
                let ((s, sr), width) = (call.rows(0)?, call.table(1)?);
                unsafe {
                    elementwise::window::launch_unchecked(client, most, units, ctx, s, width, out, sr, or, d.outer)
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

    /// The smallest index of the largest logit of each row.
    pub(crate) fn arg_max(
        &self,
        ctx: &Buffer,
        batch: u32,
        logits: (&Buffer, Place),
        out: (&Buffer, Place),
        vocabulary: u32,
    ) {
        let units = self.wide();
        // SAFETY: every row of logits has `vocabulary` elements, and `out` a word for it.
        unsafe {
            matrix::select::launch_unchecked(
                self.client(),
                CubeCount::Static(batch, 1, 1),
                CubeDim::new_1d(units),
                ctx.arg(),
                logits.0.arg(),
                out.0.arg(),
                logits.1.launch(),
                out.1.launch(),
                vocabulary,
                units,
            )
        }
    }

    /// `SCORES` of a call, with what follows them, into `out`.
    pub(crate) fn scores(
        &self,
        call: &Call<'_>,
        out: &Buffer,
        place: Place,
        table: BufferArg,
        window: BufferArg,
        after: AfterLaunch,
    ) -> Result<()> {
        let (group, shared_by) = (call.descriptor.params[0] as u32, call.descriptor.params[1] as u32);
        let width = width(group);
        let ((q, qr), (qs, qsr)) = (call.row_vectors(0, width as usize)?, call.rows(1)?);
        let ((k, k_stride), (ks, ks_stride)) = (call.cache_vectors(2, width as usize)?, call.cache(3)?);
        let cubes = CubeCount::Static((call.last + 1).div_ceil(UNITS), call.batch, call.descriptor.outer);
        // SAFETY: as in `launch`.
        unsafe {
            attention::scores::launch_unchecked(
                self.client(),
                cubes,
                CubeDim::new_1d(UNITS),
                width as usize,
                call.ctx.arg(),
                q,
                qs,
                k,
                ks,
                table,
                window,
                out.arg(),
                qr,
                qsr,
                k_stride,
                ks_stride,
                place.launch(),
                group,
                shared_by,
                after,
                width,
            )
        }
        Ok(())
    }

    /// `LINEAR`; the product is added to the given operand of the `ADD` after it, and that one's output is written.
    pub(crate) fn linear(&self, call: &Call<'_>, add: Option<(&Call<'_>, usize)>) -> Result<()> {
        let p = call.descriptor.params;
        let m = call.matrix(2)?;
        if let Source::Packed(a, place, planes) = call.operands[0] {
            return self.dot(call, add, (a, place, planes));
        }
        let tile = match call.batch {
            1 => 1,
            2..=4 => 4,
            _ => 8,
        };
        // A software adapter has few cores and reads an activation once for all lanes when no lane differs in the column,
        // so it does not split; a GPU needs the units.
        let (lanes, splits) = if self.splits() { (8, 16) } else { (16, 1) };
        let target = add.map_or(call, |(sum, _)| sum);
        for part in &m.parts {
            let ((a, ar), (s, sr)) = (call.rows(0)?, call.rows(1)?);
            let (d, dr) = match add {
                Some((sum, k)) => sum.rows_or_table(k)?,
                None => call.rows(1)?,
            };
            let quads = part.quads;
            let count = CubeCount::Static(quads.div_ceil(lanes), call.batch.div_ceil(tile), 1);
            let scales = (p[1] as u32) * part.padded_rows();
            // SAFETY: as in `launch`; the units of the last cubes that have no quad or no position write nothing.
            unsafe {
                matrix::linear::launch_unchecked(
                    self.client(),
                    count,
                    CubeDim::new_2d(lanes, splits),
                    4,
                    call.ctx.arg(),
                    a,
                    s,
                    part.words.vectors(4),
                    part.groups.vectors(4),
                    part.scales.arg(),
                    d,
                    target.out.arg(),
                    ar,
                    sr,
                    dr,
                    target.place.launch(),
                    call.batch,
                    m.words_per_row,
                    quads,
                    part.first,
                    part.rows,
                    scales,
                    code(m.format),
                    add.is_some(),
                    tile,
                    lanes,
                    splits,
                )
            }
        }
        Ok(())
    }

    /// [`Self::linear`] of packed activations.
    fn dot(
        &self,
        call: &Call<'_>,
        add: Option<(&Call<'_>, usize)>,
        (a, ar, planes): (&Buffer, Place, u32),
    ) -> Result<()> {
        let m = call.matrix(2)?;
        let (lanes, splits) = if self.splits() { (8, 16) } else { (16, 1) };
        let few = |positions| Tile::Few { positions, lanes, splits };
        let tile = match call.batch {
            _ if self.products() == Products::Tiles => Tile::Many,
            1 => few(1),
            2..=4 => few(4),
            5..MANY => few(8),
            _ => Tile::Many,
        };
        let kernel = Dot { format: m.format, planes, add: add.is_some(), tile };
        let (s, sr) = call.places(1)?;
        let (d, dr) = match add {
            Some((sum, k)) => sum.places(k)?,
            None => (s, sr),
        };
        let target = add.map_or(call, |(sum, _)| sum);
        for part in &m.parts {
            let mut parameters = [ar, sr, dr, target.place].map(Place::words).concat();
            let scales = (call.descriptor.params[1] as u32) * part.padded_rows();
            let rest = [call.batch, m.words_per_row, part.quads, part.first, part.rows, scales];
            parameters.extend(rest.map(|w| w as i32));
            let buffers = [call.ctx, a, s, &part.words, &part.groups, &part.scales, d, target.out];
            self.launch_source(kernel, kernel.cubes(part.quads, call.batch), &buffers, parameters)?;
        }
        Ok(())
    }
}
