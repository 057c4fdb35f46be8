//! The launch of runs of operators.

use cubecl::prelude::{CubeCount, CubeDim};
use sworn_isa::Opcode;

use crate::GpuError;
use crate::gpu::{Call, Gpu};
use crate::kernels::attention::AfterLaunch;
use crate::kernels::fused::TurnLaunch;
use crate::kernels::{UNITS, attention, fused, norm};
use crate::launch::width;
use crate::plan::Run;

type Result<T> = std::result::Result<T, GpuError>;

/// From so many positions on a GPU computes scores and mixes with more cubes than there are heads.
const LONG: u32 = 1024;
/// Positions that one cube then mixes.
const CHUNK: u32 = 512;

impl Gpu {
    /// Queues the operators of a run: of `Run::Project` the first, with all matrices under each other.
    ///
    /// # Errors
    /// As [`Gpu::launch`].
    pub(crate) fn launch_run(&self, run: Run, calls: &[Call<'_>]) -> Result<()> {
        match (run, calls) {
            (Run::Single | Run::Project, calls) => calls.iter().try_for_each(|c| self.launch(c)),
            (Run::Norm { gain, floors }, _) => self.norm(calls, gain, floors),
            (Run::Quantise { group, floor }, _) => self.quantise(calls, group, floor),
            (Run::Long { gate, floor }, _) => self.quantise_long(calls, gate, floor),
            (Run::Heads, [first, ..]) => self.heads(first, calls),
            (Run::Probabilities { cap, window }, [first, .., last]) => {
                self.probabilities(first, last, calls, cap, window)
            }
            (Run::Mix, [call]) => self.mix_last(call),
            (Run::Sum { addend }, [product, sum]) => self.linear(product, Some((sum, addend))),
            _ => Err(GpuError::Device("a run without its operators".into())),
        }
    }

    fn norm(&self, calls: &[Call<'_>], gain_at: usize, floors: [i32; 2]) -> Result<()> {
        let [first, .., quant, scale] = calls else { return Err(short()) };
        let (gain, rms) = (&calls[gain_at], &calls[gain_at - 1]);
        let (x, xr) = first.rows(0)?;
        let units = self.wide();
        // SAFETY: as in `Gpu::launch`; the kernel touches the elements that the run's operators would.
        unsafe {
            fused::norm::launch_unchecked(
                self.client(),
                CubeCount::Static(first.batch, 1, 1),
                CubeDim::new_1d(units),
                first.ctx.arg(),
                x,
                gain.table(1)?,
                quant.out.arg(),
                scale.out.arg(),
                xr,
                quant.place.launch(),
                scale.place.launch(),
                gain.descriptor.params[0] as u32,
                floors[0] as u32,
                rms.descriptor.params[0] as u32,
                floors[1] as u32,
                u32::from(quant.descriptor.bits),
                u32::from(scale.descriptor.bits),
                units,
                quant.planes,
            )
        }
        Ok(())
    }

    fn quantise(&self, calls: &[Call<'_>], group: u32, floor: i32) -> Result<()> {
        let [first, .., quant, scale] = calls else { return Err(short()) };
        let (x, xr) = first.rows(0)?;
        let groups = quant.descriptor.count(0) as u32 / group;
        let constant = scale.descriptor.opcode == Opcode::ScaleQ;
        let scale_bits = if constant { 8 } else { u32::from(scale.descriptor.bits) };
        let [e, c_m, c_e, _] = scale.descriptor.params;
        let units = if group > 512 { self.wide() } else { UNITS };
        // SAFETY: as above.
        unsafe {
            fused::quantise::launch_unchecked(
                self.client(),
                CubeCount::Static(groups, first.batch, 1),
                CubeDim::new_1d(units),
                first.ctx.arg(),
                x,
                quant.out.arg(),
                scale.out.arg(),
                xr,
                quant.place.launch(),
                scale.place.launch(),
                group,
                floor as u32,
                u32::from(quant.descriptor.bits),
                scale_bits,
                e,
                c_m as u32,
                c_e,
                units,
                constant,
                quant.planes,
            )
        }
        Ok(())
    }

    /// The first level of maxima, with the activation where there is one; then everything else.
    fn quantise_long(&self, calls: &[Call<'_>], gate: bool, floor: i32) -> Result<()> {
        let [first, .., quant, scale] = calls else { return Err(short()) };
        let max = &calls[usize::from(gate)];
        let (maxima, group) = (max.descriptor.count(0) as u32, max.descriptor.params[1] as u32);
        let cubes = CubeCount::Static(maxima, first.batch, 1);
        let units = self.wide();
        let ctx = || first.ctx.arg();
        if gate {
            let ((g, gr), (u, ur), table) = (first.rows(0)?, first.rows(1)?, first.table(2)?);
            // SAFETY: as above.
            unsafe {
                fused::activate::launch_unchecked(
                    self.client(),
                    cubes,
                    CubeDim::new_1d(units),
                    ctx(),
                    g,
                    u,
                    table,
                    first.out.arg(),
                    max.out.arg(),
                    gr,
                    ur,
                    first.place.launch(),
                    max.place.launch(),
                    group,
                    floor as u32,
                    units,
                    first.descriptor.opcode == Opcode::GeluMul,
                )
            }
        } else {
            let (x, xr) = max.rows(0)?;
            // SAFETY: as above.
            unsafe {
                norm::max_abs::launch_unchecked(
                    self.client(),
                    cubes,
                    CubeDim::new_1d(UNITS),
                    ctx(),
                    x,
                    max.out.arg(),
                    xr,
                    max.place.launch(),
                    group,
                    floor as u32,
                    UNITS,
                )
            }
        }
        let (x, xr) = quant.rows(0)?;
        let n = quant.descriptor.count(0) as u32;
        let each = if quant.planes > 0 { 4 * units } else { units };
        // SAFETY: as above.
        unsafe {
            fused::quantise_long::launch_unchecked(
                self.client(),
                CubeCount::Static(n.div_ceil(each), first.batch, 1),
                CubeDim::new_1d(units),
                ctx(),
                x,
                max.out.arg(),
                quant.out.arg(),
                scale.out.arg(),
                xr,
                max.place.launch(),
                quant.place.launch(),
                scale.place.launch(),
                n,
                maxima,
                floor as u32,
                u32::from(quant.descriptor.bits),
                u32::from(scale.descriptor.bits),
                scale.descriptor.params[0],
                quant.planes,
            )
        }
        Ok(())
    }

    fn heads(&self, first: &Call<'_>, calls: &[Call<'_>]) -> Result<()> {
        let [_, k_rope, q_max, q8, q_scale, k_max, k8, k_scale, values] = calls else { return Err(short()) };
        let group = first.descriptor.params[0] as u32;
        let ((q, qr), (k, kr), (v, vr)) = (first.rows(0)?, k_rope.rows(0)?, values.rows(0)?);
        let (cos, sin) = (first.table(1)?, first.table(2)?);
        let turn = |max: &Call<'_>, scale: &Call<'_>| {
            let d = max.descriptor;
            TurnLaunch::new(d.count(0) as u32, d.params[0] as u32, scale.descriptor.params[0])
        };
        let n = values.descriptor.count(0) as u32;
        let cubes = q_max.descriptor.count(0) as u32 + k_max.descriptor.count(0) as u32 + n.div_ceil(group);
        let [_, c_m, c_e, _] = q_scale.descriptor.params;
        // SAFETY: as above.
        unsafe {
            fused::heads::launch_unchecked(
                self.client(),
                CubeCount::Static(cubes, first.batch, 1),
                CubeDim::new_1d(UNITS),
                first.ctx.arg(),
                q,
                k,
                v,
                cos,
                sin,
                q8.out.arg(),
                q_scale.out.arg(),
                k8.out.arg(),
                k_scale.out.arg(),
                values.out.arg(),
                qr,
                kr,
                vr,
                q8.place.launch(),
                q_scale.place.launch(),
                k8.place.launch(),
                k_scale.place.launch(),
                values.place.launch(),
                group,
                turn(q_max, q_scale),
                turn(k_max, k_scale),
                c_m as u32,
                c_e,
                n,
                values.descriptor.params[0] as u32,
                UNITS,
            )
        }
        Ok(())
    }

    fn probabilities(
        &self,
        first: &Call<'_>,
        last: &Call<'_>,
        calls: &[Call<'_>],
        cap: Option<usize>,
        window: Option<usize>,
    ) -> Result<()> {
        let [.., exp, _, _] = calls else { return Err(short()) };
        let d = first.descriptor;
        let (group, shared_by) = (d.params[0] as u32, d.params[1] as u32);
        let table = || exp.table(2);
        let width_table = || match window {
            Some(k) => calls[k].table(1),
            // Nothing reads it.
            None => exp.table(2),
        };
        let after = || {
            let [bound, m, sh, _] = cap.map_or([0; 4], |k| calls[k].descriptor.params);
            AfterLaunch::new(bound as u32, m as u32, sh, u32::from(window.is_some()))
        };
        let scored = self.splits() && first.last + 1 >= LONG;
        if scored {
            self.scores(first, last.out, last.place, table()?, width_table()?, after())?;
        }
        let width = width(group);
        let ((q, qr), (qs, qsr)) = (first.row_vectors(0, width as usize)?, first.rows(1)?);
        let ((k, k_stride), (ks, ks_stride)) = (first.cache_vectors(2, width as usize)?, first.cache(3)?);
        let units = self.wide();
        // SAFETY: as above; the last operator's output is as large as the scores.
        unsafe {
            fused::probabilities::launch_unchecked(
                self.client(),
                CubeCount::Static(d.outer, first.batch, 1),
                CubeDim::new_1d(units),
                width as usize,
                first.ctx.arg(),
                q,
                qs,
                k,
                ks,
                table()?,
                width_table()?,
                last.out.arg(),
                qr,
                qsr,
                k_stride,
                ks_stride,
                last.place.launch(),
                group,
                shared_by,
                after(),
                units,
                width,
                scored,
            )
        }
        Ok(())
    }

    fn mix_last(&self, call: &Call<'_>) -> Result<()> {
        let ((p, pr), (v, v_stride)) = (call.rows(0)?, call.cache(1)?);
        let d = call.descriptor;
        let (inner, group, shared_by) = (d.inner, d.params[0] as u32, d.params[1] as u32);
        let (lanes, splits) = if self.splits() { (32, 8) } else { (UNITS, 1) };
        let positions = call.last + 1;
        let chunks = if self.splits() && positions >= LONG { positions.div_ceil(CHUNK) } else { 1 };
        let chunk = if chunks > 1 { CHUNK } else { positions };
        // SAFETY: as above.
        unsafe {
            attention::mix_last::launch_unchecked(
                self.client(),
                CubeCount::Static(inner.div_ceil(lanes), call.batch, chunks),
                CubeDim::new_2d(lanes, splits),
                call.ctx.arg(),
                p,
                v,
                call.out.arg(),
                pr,
                v_stride,
                call.place.launch(),
                inner,
                group,
                shared_by,
                chunk,
                lanes,
                splits,
            );
            if chunks > 1 {
                attention::fold_slabs::launch_unchecked(
                    self.client(),
                    CubeCount::Static(inner.div_ceil(UNITS), call.batch, 1),
                    CubeDim::new_1d(UNITS),
                    call.ctx.arg(),
                    call.out.arg(),
                    call.place.launch(),
                    inner,
                    chunk,
                );
            }
        }
        Ok(())
    }
}

fn short() -> GpuError {
    GpuError::Device("a run without its operators".into())
}
