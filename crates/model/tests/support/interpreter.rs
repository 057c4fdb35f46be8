//! Runs a model with the scalar reference, element by element: slow, and right by definition.

use std::convert::Infallible;

use sworn_isa::{Descriptor, Opcode, OperandKind, RowData, Sampling, StepReader, element};
use sworn_model::Model;

/// Exports of one (layer, position), in program order.
type Exports = Vec<Vec<i64>>;

/// A sequence in execution.
pub(crate) struct Interpreter<'a> {
    model: &'a Model,
    /// `cache[layer][position]`
    cache: Vec<Vec<Exports>>,
    blocks: u16,
}

impl<'a> Interpreter<'a> {
    /// An empty sequence that runs the first `blocks` blocks only.
    pub(crate) fn new(model: &'a Model, blocks: u16) -> Self {
        Interpreter { model, cache: vec![Vec::new(); blocks as usize + 1], blocks }
    }

    /// Executes `token` at the next position.
    pub(crate) fn push(&mut self, token: u32) {
        for layer in 0..=self.blocks {
            let t = self.cache[layer as usize].len() as u32;
            self.cache[layer as usize].push(Vec::new());
            self.run(layer, t, token);
        }
    }

    /// The residual stream after `layer` at position `t`.
    pub(crate) fn hidden(&self, layer: u16, t: usize) -> &[i64] {
        self.cache[layer as usize][t].last().unwrap()
    }

    /// Logits and selected token at the last position.
    pub(crate) fn head(&mut self) -> (Vec<i64>, u32) {
        let t = self.cache[0].len() as u32 - 1;
        let logits = self.run(self.model.layers() + 1, t, 0);
        let best = (0..logits.len()).rev().max_by_key(|i| logits[*i]).unwrap();
        (logits, best as u32)
    }

    /// Runs a layer; gives the tensor before the last operator (the logits, for the head).
    fn run(&mut self, layer: u16, t: u32, token: u32) -> Vec<i64> {
        let kind = self.model.section_kind(layer).unwrap();
        let ops = self.model.program().section(kind).ops.clone();
        let mut tensors: Vec<Vec<i64>> = Vec::new();
        for d in &ops {
            if d.opcode == Opcode::Select {
                break;
            }
            let mut reader = Reader { run: self, layer, t, token, d, tensors: &tensors, own: Vec::new() };
            for i in 0..d.count(t) {
                let v = element(d, t, i, &mut reader).unwrap();
                reader.own.push(v);
            }
            let own = reader.own;
            if d.export {
                self.cache[layer as usize][t as usize].push(own.clone());
            }
            tensors.push(own);
        }
        tensors.pop().unwrap()
    }
}

struct Reader<'a, 'b> {
    run: &'a Interpreter<'b>,
    layer: u16,
    t: u32,
    token: u32,
    d: &'a Descriptor,
    tensors: &'a [Vec<i64>],
    own: Vec<i64>,
}

impl StepReader for Reader<'_, '_> {
    type Error = Infallible;

    fn read(&mut self, operand: usize, start: u64, len: u64) -> Result<Vec<i64>, Infallible> {
        let o = self.d.operands[operand];
        let range = start as usize..(start + len) as usize;
        Ok(match o.kind {
            OperandKind::Op => {
                let all = &self.tensors[o.index as usize];
                let n = self.d.operand_elements(operand, self.t).unwrap() as usize;
                all[all.len() - n..][range].to_vec()
            }
            OperandKind::Prev => {
                let exports = &self.run.cache[self.layer.min(self.run.blocks + 1) as usize - 1][self.t as usize];
                exports[exports.len() - 1 - o.index as usize][range].to_vec()
            }
            OperandKind::Table => {
                self.run.model.operand_table(&o, self.layer).values[range].iter().map(|v| i64::from(*v)).collect()
            }
            kind => panic!("{kind:?} is read otherwise"),
        })
    }

    fn cache(
        &mut self,
        operand: usize,
        first: u32,
        positions: u32,
        start: u64,
        len: u64,
    ) -> Result<Vec<i64>, Infallible> {
        let index = self.d.operands[operand].index as usize;
        let rows = &self.run.cache[self.layer as usize][first as usize..(first + positions) as usize];
        Ok(rows.iter().flat_map(|e| e[index][start as usize..(start + len) as usize].to_vec()).collect())
    }

    fn row(&mut self, operand: usize, row: u32, column: u32) -> Result<RowData, Infallible> {
        let w = self.run.model.operand_weight(&self.d.operands[operand], self.layer);
        let (m, sh) = w.scale(row as usize, column as usize);
        Ok(RowData { m, sh, weights: w.weights(row as usize) })
    }

    fn token(&mut self, _: usize) -> Result<u32, Infallible> {
        Ok(self.token)
    }

    fn tokens(&mut self, _: usize, _: u32, _: u32) -> Result<Vec<u32>, Infallible> {
        unreachable!("selection is not run through the scalar reference")
    }

    fn sampling(&mut self) -> Sampling {
        unreachable!("selection is not run through the scalar reference")
    }

    fn noise(&mut self, _: u32, _: u32) -> u32 {
        unreachable!("selection is not run through the scalar reference")
    }

    fn own(&mut self, index: u64) -> Result<i64, Infallible> {
        Ok(self.own[index as usize])
    }

    fn claimed(&mut self) -> Result<i64, Infallible> {
        unreachable!("SELECT is not run through the scalar reference")
    }

    fn hint(&mut self) -> u32 {
        unreachable!("SELECT is not run through the scalar reference")
    }
}
