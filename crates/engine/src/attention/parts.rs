//! Attention of one position to a context so long that its positions are worth splitting over threads.
//!
//! Three rounds, because a softmax needs the largest score before the first exponential and the sum of all exponentials before
//! the first probability. Maxima and sums are exact in any order, so the bits are those of one round over everything.

use std::cell::RefCell;

use super::{Context, Query, Row, Scratch, Unit, largest, normalise};
use crate::simd::Simd;
use crate::team::Team;

/// From how many positions on three rounds cost less than reading keys and values once per head.
const LONG: usize = 1024;
/// Most positions of a part: what is computed of them stays in a cache.
const MOST: usize = 4096;

thread_local! {
    static POOL: RefCell<Vec<Scratch>> = const { RefCell::new(Vec::new()) };
}

/// The heads that share a key/value head, at some of the positions.
struct Part<'a> {
    unit: Unit<'a, 'static>,
    scratch: Scratch,
    /// Of each head: the largest score, and the sum of the exponentials, here and then everywhere.
    largest: Vec<i32>,
    z: Vec<u32>,
}

impl Part<'_> {
    fn score(&mut self, simd: Simd) {
        self.unit.scores(0, &mut self.scratch, simd);
        let each = self.scratch.s.len() / self.unit.rows.len();
        self.largest.clear();
        self.largest.extend(self.scratch.s.chunks_exact(each).map(largest));
    }

    fn exponentiate(&mut self, simd: Simd) {
        let Scratch { s, e, .. } = &mut self.scratch;
        let each = s.len() / self.unit.rows.len();
        e.resize(s.len(), 0);
        self.z.clear();
        for ((s, e), largest) in s.chunks_exact(each).zip(e.chunks_exact_mut(each)).zip(&self.largest) {
            simd.exp(s, *largest, self.unit.context.table, e);
            self.z.push(super::total(e));
        }
    }

    fn mix(&mut self, simd: Simd) {
        let each = self.scratch.e.len() / self.unit.rows.len();
        for (e, z) in self.scratch.e.chunks_exact_mut(each).zip(&self.z) {
            normalise(e, *z);
        }
        self.unit.mix(0, &mut self.scratch, simd);
    }
}

/// Whether [`attend`] is better than [`Unit`]s; it knows no windows.
pub(crate) fn pays(positions: usize, window: Option<usize>, team: &Team) -> bool {
    positions >= LONG && window.is_none() && team.threads() > 1
}

/// All heads of one position.
pub(crate) fn attend(c: Context<'_>, query: Query<'_, '_>, team: &Team, simd: Simd) {
    let Query { position, q, scales, out } = query;
    let n = position as usize + 1;
    // Enough parts that threads finish together.
    let each = n.div_ceil((4 * team.threads()).div_ceil(c.kv)).clamp(1, MOST).next_multiple_of(16);
    let mut pool = POOL.take();
    let mut parts = Vec::with_capacity(c.kv * n.div_ceil(each));
    let heads = q.chunks_exact(c.shared * c.key_width).zip(scales.chunks_exact(2 * c.shared));
    for (from, (q, scales)) in heads.enumerate() {
        for first in (0..n).step_by(each) {
            let here = each.min(n - first);
            let rows = q.chunks_exact(c.key_width).zip(scales.as_chunks::<2>().0);
            let rows = rows.map(|(q, scale)| Row { n: here, q, scale: *scale, out: &mut [] }).collect();
            let unit = Unit { context: c.after(first).until(here), from, rows };
            let scratch = pool.pop().unwrap_or_default();
            parts.push(Part { unit, scratch, largest: Vec::new(), z: Vec::new() });
        }
    }
    let of_a_head = n.div_ceil(each);
    team.each(&mut parts, |p| simd.run(|| p.score(simd)));
    for parts in parts.chunks_mut(of_a_head) {
        for h in 0..c.shared {
            let all = parts.iter().fold(i32::MIN, |a, p| a.max(p.largest[h]));
            parts.iter_mut().for_each(|p| p.largest[h] = all);
        }
    }
    team.each(&mut parts, |p| simd.run(|| p.exponentiate(simd)));
    for parts in parts.chunks_mut(of_a_head) {
        for h in 0..c.shared {
            let all = parts.iter().fold(0u32, |a, p| a.wrapping_add(p.z[h]));
            parts.iter_mut().for_each(|p| p.z[h] = all);
        }
    }
    team.each(&mut parts, |p| simd.run(|| p.mix(simd)));
    out.fill(0);
    for (out, parts) in out.chunks_exact_mut(c.shared * c.value_width).zip(parts.chunks(of_a_head)) {
        for part in parts {
            out.iter_mut().zip(&part.scratch.sums).for_each(|(o, s)| *o = o.wrapping_add(*s));
        }
    }
    pool.extend(parts.into_iter().map(|p| p.scratch));
    POOL.set(pool);
}
