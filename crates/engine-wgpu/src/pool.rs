//! The caches of all sequences.
//!
//! What later positions read of a layer's exports is kept in one buffer per export, which all sequences share: each has a run
//! of slots of its own, one per position. So one launch reaches the caches of every sequence in the batch.

use std::ops::Range;

use crate::GpuError;
use crate::gpu::{Buffer, Gpu};

/// Sequences take slots in steps of so many.
pub(crate) const STEP: u32 = 256;

type Result<T> = std::result::Result<T, GpuError>;

/// Keys and values, or whatever else a program's CACHE operands read.
pub(crate) struct Pool {
    /// Per layer and export the elements of a position; 0 where nothing is kept.
    elements: Vec<Vec<usize>>,
    /// The same, with room for `slots` positions.
    buffers: Vec<Vec<Option<Buffer>>>,
    slots: u32,
    /// Slots in use, in ascending order.
    taken: Vec<Range<u32>>,
}

impl Pool {
    /// Without room. `elements` are a position's, per layer and export; 0 where nothing is kept.
    pub(crate) fn new(elements: Vec<Vec<usize>>) -> Self {
        Pool { elements, buffers: Vec::new(), slots: 0, taken: Vec::new() }
    }

    /// The buffer of a layer's export, and the words of a slot.
    pub(crate) fn buffer(&self, layer: u16, export: usize) -> Option<(&Buffer, u32)> {
        let buffer = self.buffers.get(usize::from(layer))?.get(export)?.as_ref()?;
        Some((buffer, self.elements[usize::from(layer)][export] as u32))
    }

    /// Every buffer.
    pub(crate) fn buffers(&self) -> impl Iterator<Item = &Buffer> {
        self.buffers.iter().flatten().flatten()
    }

    /// Makes a run of slots at least `positions` long, but not longer than `capacity` without need, and keeps the content of
    /// its first `kept`.
    pub(crate) fn reserve(
        &mut self,
        gpu: &Gpu,
        run: &mut Range<u32>,
        kept: u32,
        positions: u32,
        capacity: u32,
    ) -> Result<()> {
        let len = run.end - run.start;
        if positions <= len && len > 0 {
            return Ok(());
        }
        let wanted = positions.max(2 * len).next_multiple_of(STEP).min(capacity.max(positions));
        let place = match self.place(run, wanted) {
            Some(place) => place,
            None => {
                let behind = self.taken.last().map_or(0, |r| r.end);
                let own_last = len > 0 && run.end == behind;
                let first = if own_last { run.start } else { behind };
                self.grow(gpu, first + wanted)?;
                first..first + wanted
            }
        };
        if place.start != run.start && kept > 0 && len > 0 {
            for (buffer, n) in self.buffers.iter().flatten().zip(self.elements.iter().flatten()) {
                let Some(buffer) = buffer else { continue };
                gpu.copy_within(buffer, run.start as usize * n, place.start as usize * n, kept as usize * n);
            }
        }
        self.release(run);
        let at = self.taken.partition_point(|r| r.start < place.start);
        self.taken.insert(at, place.clone());
        *run = place;
        Ok(())
    }

    /// Gives a run back; it is empty afterwards.
    pub(crate) fn release(&mut self, run: &mut Range<u32>) {
        self.taken.retain(|r| r != run);
        *run = 0..0;
    }

    /// Frees the memory if no sequence has any of it.
    pub(crate) fn trim(&mut self) {
        if self.taken.is_empty() {
            (self.buffers, self.slots) = (Vec::new(), 0);
        }
    }

    /// Free slots for `wanted` positions: where the run is, if it can become longer there, otherwise elsewhere, without overlap.
    fn place(&self, run: &Range<u32>, wanted: u32) -> Option<Range<u32>> {
        let next = |from: u32| self.taken.iter().map(|r| r.start).find(|s| *s >= from).unwrap_or(self.slots);
        if run.end > run.start && next(run.end).min(self.slots) - run.start >= wanted {
            return Some(run.start..run.start + wanted);
        }
        let mut from = 0;
        for r in self.taken.iter().chain([&(self.slots..self.slots)]) {
            if r.start.saturating_sub(from) >= wanted {
                return Some(from..from + wanted);
            }
            from = r.end;
        }
        None
    }

    /// Makes room for at least `slots`.
    fn grow(&mut self, gpu: &Gpu, slots: u32) -> Result<()> {
        if slots <= self.slots {
            return Ok(());
        }
        let widest = self.elements.iter().flatten().copied().max().unwrap_or(1).max(1);
        let most = (gpu.max_words() / widest) as u32;
        if slots > most {
            return Err(GpuError::Unsupported(format!(
                "caches of {slots} positions at once, more than the {most} that a binding of {} holds: run fewer or shorter \
                 sequences at a time",
                gpu.adapter().name
            )));
        }
        let slots = slots.max(self.slots.saturating_mul(2)).min(most);
        let mut buffers = Vec::with_capacity(self.elements.len());
        for (layer, elements) in self.elements.iter().enumerate() {
            let mut own = Vec::with_capacity(elements.len());
            for (e, n) in elements.iter().enumerate() {
                if *n == 0 {
                    own.push(None);
                    continue;
                }
                let buffer = gpu.empty(slots as usize * n)?;
                if let Some(Some(old)) = self.buffers.get(layer).and_then(|b| b.get(e)) {
                    gpu.copy(old, &buffer, self.slots as usize * n);
                }
                own.push(Some(buffer));
            }
            buffers.push(own);
        }
        (self.buffers, self.slots) = (buffers, slots);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::Selection;

    /// The first `n` words of a run in the only buffer.
    fn content(gpu: &Gpu, pool: &Pool, run: &Range<u32>, n: usize) -> Vec<i32> {
        let (buffer, words) = pool.buffer(0, 1).unwrap();
        gpu.read(vec![buffer.slice(run.start as usize * words as usize, n)]).unwrap().remove(0)
    }

    #[test]
    fn runs_grow_and_move_with_what_they_hold_and_never_overlap() {
        let gpu = Gpu::open(&Selection::Best).unwrap_or_else(|e| panic!("{e}"));
        let mut pool = Pool::new(vec![vec![0, 3]]);
        let (mut a, mut b, mut c) = (0..0, 0..0, 0..0);
        pool.reserve(&gpu, &mut a, 0, 10, 4096).unwrap();
        pool.reserve(&gpu, &mut b, 0, 300, 300).unwrap();
        assert_eq!((a.clone(), b.clone()), (0..256, 256..556));
        assert!(pool.buffer(0, 0).is_none());
        let ones = gpu.upload(vec![7; 30]).unwrap();
        gpu.copy(&ones, pool.buffer(0, 1).unwrap().0, 30);
        // Another is behind it: it moves, and its slots are free for the next.
        pool.reserve(&gpu, &mut a, 10, 257, 4096).unwrap();
        assert_eq!(a, 556..1068);
        assert_eq!(content(&gpu, &pool, &a, 30), [7; 30]);
        pool.reserve(&gpu, &mut c, 0, 1, 4096).unwrap();
        assert_eq!(c, 0..256);
        // The last one grows in place.
        pool.reserve(&gpu, &mut a, 10, 1025, 4096).unwrap();
        assert_eq!(a, 556..1836);
        assert_eq!(content(&gpu, &pool, &a, 30), [7; 30]);
        for run in [&mut b, &mut a, &mut c] {
            pool.trim();
            assert!(pool.buffer(0, 1).is_some());
            pool.release(run);
        }
        pool.trim();
        assert!(pool.buffer(0, 1).is_none());
        let mut huge = 0..0;
        let most = (gpu.max_words() / 3) as u32;
        let error = pool.reserve(&gpu, &mut huge, 0, most + 1, u32::MAX).unwrap_err().to_string();
        assert!(error.contains("fewer or shorter sequences") && huge == (0..0), "{error}");
    }
}
