//! The operators that select a token, one by one, as a replay runs them; generation takes the shorter way of [`crate::sampling`].

use sworn_isa::sampling::{BINS, bin, mass};
use sworn_isa::{Opcode, Operand};

use super::{Input, Inputs, Mismatch, group};
use crate::sampling::{draw, temper};

pub(super) fn apply(x: &Inputs<'_, '_>, out: &mut [i32]) -> Result<(), Mismatch> {
    let (d, run) = (x.d, x.run);
    match d.opcode {
        Opcode::Temper => {
            let Input::Tokens(recent) = x.inputs[1] else { return Err(x.mismatch(1)) };
            if recent.len() != group(d, 0).min(x.t as usize + 1) {
                return Err(x.mismatch(1));
            }
            temper(x.i32s(0)?, &run.sampling, recent, out);
        }
        Opcode::Histogram => histogram(x, out)?,
        Opcode::Cut => {
            let mut bins = [0; BINS];
            bins.iter_mut().zip(x.i32s(0)?).for_each(|(b, n)| *b = *n as u32);
            let parent = match d.operands[1] == Operand::NONE {
                true => None,
                false => Some(x.i32s(1)?).map(|p| [p[0] as u32, p[1] as u32]),
            };
            let [bin, before] = run.sampling.cut(d.params[0] == 1, &bins, parent);
            out.copy_from_slice(&[bin as i32, before as i32]);
        }
        Opcode::Threshold => {
            let cut = |k: usize| Ok(x.i32s(k)?[0] as u32);
            // Shifts of a validated descriptor lie in 0…20.
            let [shift, fine] = [d.params[0], d.params[1]].map(|s| s.clamp(0, 31) as u32);
            out[0] = run.sampling.threshold(x.i32s(0)?[0], [cut(1)?, cut(2)?], cut(3)?, shift, fine);
        }
        Opcode::Sample => out[0] = draw(x.i32s(0)?, x.i32s(2)?[0], x.i32s(3)?, run, x.t) as i32,
        _ => return Err(x.mismatch(0)),
    }
    Ok(())
}

fn histogram(x: &Inputs<'_, '_>, out: &mut [i32]) -> Result<(), Mismatch> {
    let d = x.d;
    let (z, max) = (x.i32s(0)?, x.i32s(1)?[0]);
    let groups = out.len() / BINS;
    let table = if d.params[1] == 1 { Some(x.u16s(2)?) } else { None };
    let [shift, parent_shift] = [d.params[2], d.params[3]].map(|s| s.clamp(0, 31) as u32);
    let parent = if d.params[3] == 0 { None } else { Some((x.i32s(2)?[0] as u32, parent_shift)) };
    out.fill(0);
    for (g, z) in z.chunks_exact(group(d, 0)).enumerate() {
        for z in z {
            let distance = max.wrapping_sub(*z) as u32;
            if let Some(b) = bin(distance, shift, parent) {
                let one = table.map_or(1, |t| mass(distance, t)) as i32;
                let o = &mut out[b as usize * groups + g];
                *o = o.wrapping_add(one);
            }
        }
    }
    Ok(())
}
