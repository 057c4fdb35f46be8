//! Random and extreme cases of every opcode, within the ranges that [`sworn_isa::spec`] proves.
//!
//! One generator serves every differential test: a case carries the descriptor, the position, the operands' values and the
//! output that the scalar reference computes from them. The same seed gives the same cases everywhere.

use rand::Rng;
use rand::seq::IndexedRandom;
use sworn_commit::RunParams;
use sworn_isa::{Descriptor, Dtype, Opcode, Operand, OperandKind, RowData, Sampling, StepReader, element};

mod draw;
mod head;
mod layers;
mod rows;

use draw::{Gen, SplitMix};
pub use rows::Row;

/// What one operand of a [`Case`] holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OperandData {
    /// unused
    None,
    /// OP or TABLE: every element of the tensor read, so for a tail operand all slabs
    Tensor(Vec<i64>),
    /// CACHE: the exported tensor at positions 0…t
    Cache(Vec<Vec<i64>>),
    /// WEIGHT: all rows
    Rows(Vec<Row>),
    /// TOKEN
    Token(u32),
    /// TOKEN of `TEMPER`: the tokens at positions 0…t
    Tokens(Vec<u32>),
}

/// One operator with inputs and the output they determine.
#[derive(Clone, Debug)]
pub struct Case {
    /// The operator.
    pub descriptor: Descriptor,
    /// The position.
    pub t: u32,
    /// As many as the descriptor has operand slots.
    pub operands: Vec<OperandData>,
    /// How the run samples.
    pub run: RunParams,
    /// How many of the tokens belong to the prompt; at least 1.
    pub prompt: u32,
    /// `SELECT`, `SAMPLE`: the claimed token; otherwise 0.
    pub claimed: i64,
    /// `SELECT`, `SAMPLE`: the index held against the claimed one. `TOP`: one held against every right element. Otherwise 0.
    pub hint: u32,
    /// `SELECT`, `SAMPLE`: the token that an honest node selects; otherwise 0.
    pub selected: u32,
    /// Every output element, by [`sworn_isa::element`].
    pub expected: Vec<i64>,
}

impl Case {
    /// Whether the case selects a token, so that its output is claimed rather than computed.
    pub fn selects(&self) -> bool {
        matches!(self.descriptor.opcode, Opcode::Select | Opcode::Sample)
    }

    /// Operand `k` as it is stored and hashed: big-endian at its declared width. Empty for operands that are no tensor.
    pub fn bytes(&self, k: usize) -> Vec<u8> {
        match &self.operands[k] {
            OperandData::Tensor(v) => encode(v, self.descriptor.operands[k].dtype),
            _ => Vec::new(),
        }
    }

    /// The expected output as it is stored and hashed.
    pub fn expected_bytes(&self) -> Vec<u8> {
        encode(&self.expected, self.descriptor.dtype)
    }
}

/// Values as big-endian two's complement of `dtype`'s width.
pub fn encode(values: &[i64], dtype: Dtype) -> Vec<u8> {
    let w = dtype.width();
    values.iter().flat_map(|v| v.to_be_bytes().into_iter().skip(8 - w)).collect()
}

/// Serves a case's operands to the scalar reference.
pub struct CaseReader<'a> {
    /// The case.
    pub case: &'a Case,
    /// The output elements computed so far.
    pub own: &'a [i64],
}

/// A read outside what a case holds: the generator and the opcode's definition disagree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("operand {operand}: element {at} does not exist")]
pub struct Outside {
    operand: usize,
    at: u64,
}

impl StepReader for CaseReader<'_> {
    type Error = Outside;

    fn read(&mut self, operand: usize, start: u64, len: u64) -> Result<Vec<i64>, Outside> {
        let (d, outside) = (&self.case.descriptor, Outside { operand, at: start });
        let OperandData::Tensor(v) = &self.case.operands[operand] else { return Err(outside) };
        let n = d.operand_elements(operand, self.case.t).unwrap_or(0) as usize;
        let slab = v.len().checked_sub(n).map(|at| &v[at..]);
        let range = start as usize..(start + len) as usize;
        slab.and_then(|s| s.get(range)).map(<[i64]>::to_vec).ok_or(outside)
    }

    fn cache(&mut self, operand: usize, first: u32, positions: u32, start: u64, len: u64) -> Result<Vec<i64>, Outside> {
        let outside = Outside { operand, at: start };
        let OperandData::Cache(c) = &self.case.operands[operand] else { return Err(outside) };
        let rows = c.get(first as usize..(first + positions) as usize).ok_or(outside.clone())?;
        let mut out = Vec::new();
        for row in rows {
            out.extend_from_slice(row.get(start as usize..(start + len) as usize).ok_or(outside.clone())?);
        }
        Ok(out)
    }

    fn row(&mut self, operand: usize, row: u32, column: u32) -> Result<RowData, Outside> {
        let outside = Outside { operand, at: row as u64 };
        let OperandData::Rows(rows) = &self.case.operands[operand] else { return Err(outside) };
        let r = rows.get(row as usize).ok_or(outside.clone())?;
        let (m, sh) = *r.scales.get(column as usize).ok_or(outside)?;
        Ok(RowData { m, sh, weights: r.weights() })
    }

    fn token(&mut self, operand: usize) -> Result<u32, Outside> {
        match self.case.operands[operand] {
            OperandData::Token(t) => Ok(t),
            _ => Err(Outside { operand, at: 0 }),
        }
    }

    fn tokens(&mut self, operand: usize, first: u32, len: u32) -> Result<Vec<u32>, Outside> {
        let outside = Outside { operand, at: u64::from(first) };
        let OperandData::Tokens(tokens) = &self.case.operands[operand] else { return Err(outside) };
        tokens.get(first as usize..(first + len) as usize).map(<[u32]>::to_vec).ok_or(outside)
    }

    fn sampling(&mut self) -> Sampling {
        self.case.run.sampling
    }

    fn noise(&mut self, position: u32, token: u32) -> u32 {
        self.case.run.noise(position, token)
    }

    fn own(&mut self, index: u64) -> Result<i64, Outside> {
        self.own.get(index as usize).copied().ok_or(Outside { operand: usize::MAX, at: index })
    }

    fn claimed(&mut self) -> Result<i64, Outside> {
        let at = self.own.len();
        match self.case.descriptor.opcode {
            Opcode::Top => self.case.expected.get(at).copied().ok_or(Outside { operand: usize::MAX, at: at as u64 }),
            _ => Ok(self.case.claimed),
        }
    }

    fn hint(&mut self) -> u32 {
        self.case.hint
    }
}

/// An endless stream of cases of `opcode`; take as many as needed.
pub fn cases(opcode: Opcode, seed: u64) -> impl Iterator<Item = Case> {
    let mut rng = SplitMix(seed ^ (opcode as u64) << 56);
    std::iter::repeat_with(move || {
        let mut case = draw(opcode, &mut rng);
        if case.selects() {
            head::select(&mut case, &mut rng);
        }
        if opcode == Opcode::Top {
            head::rank(&mut case, &mut rng);
        }
        let mut own = Vec::new();
        for i in 0..case.descriptor.count(case.t) {
            let value = element(&case.descriptor, case.t, i, &mut CaseReader { case: &case, own: &own });
            own.push(value.unwrap_or_else(|e| panic!("generated case is out of range: {e}: {case:?}")));
        }
        // What is claimed of a `TOP` is right, so nothing that is held against it is better.
        assert!(opcode != Opcode::Top || case.expected == own, "{own:?} in {case:?}");
        case.expected = own;
        case
    })
}

/// A case without its output.
fn draw(opcode: Opcode, rng: &mut SplitMix) -> Case {
    let mut descriptor = Descriptor {
        opcode,
        dtype: Dtype::I32,
        export: false,
        bits: 0,
        outer: 1,
        div: 0,
        inner: 1,
        params: [0; 4],
        operands: [Operand::NONE; 4],
    };
    let mut g = Gen { rng };
    let mut t = g.position();
    let mut run = g.run();
    let (kinds, mut operands) = if opcode >= Opcode::Temper || opcode == Opcode::Select {
        // Around the window of the penalty.
        if let Some(near) = [t, 62, 63, 64, 65].choose(g.rng).filter(|_| opcode == Opcode::Temper) {
            t = *near;
        }
        g.head(&mut descriptor, t, &mut run)
    } else {
        g.layer(&mut descriptor, t)
    };
    let prompt = if g.rng.random() { t + 1 } else { g.rng.random_range(1..=t + 1) };
    descriptor.operands[..kinds.len()].copy_from_slice(&kinds);
    debug_assert!(kinds.iter().all(|o| o.kind != OperandKind::None));
    operands.resize(4, OperandData::None);
    Case { descriptor, t, operands, run, prompt, claimed: 0, hint: 0, selected: 0, expected: Vec::new() }
}

/// T\[j\] = round(2^15·2^(−j/256)), j = 0…256.
pub fn exp_table() -> Vec<i64> {
    (0..=256).map(|j| (32768.0 * (-(j as f64) / 256.0).exp2() + 0.5).floor() as i64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_opcode_has_cases_and_equal_seeds_give_equal_cases() {
        for opcode in Opcode::ALL {
            let a: Vec<_> = cases(*opcode, 7).take(300).collect();
            let b: Vec<_> = cases(*opcode, 7).take(300).collect();
            for (a, b) in a.iter().zip(&b) {
                assert_eq!((&a.expected, &a.operands), (&b.expected, &b.operands));
                assert_eq!(a.expected.len() as u64, a.descriptor.count(a.t));
                for k in 0..4 {
                    if let OperandData::Tensor(v) = &a.operands[k] {
                        assert_eq!(Some(v.len() as u64), a.descriptor.operand_total(k, a.t), "{opcode} operand {k}");
                    }
                }
            }
        }
    }
}
