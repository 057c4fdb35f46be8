//! The witness of one element: the claimed page, the inputs the element reads, and their proofs.
//!
//! [`build`] runs the scalar reference on the disputed element with a reader that records every read, so a witness opens
//! exactly the pages that the opcode's definition reads, in its order, whatever the program.

use std::collections::HashMap;

use sworn_isa::{
    Descriptor, Dtype, Operand, OperandKind, Program, RowData, RowFormat, Sampling, SectionKind, StepError, StepReader,
    element,
};
use thiserror::Error;

use crate::tree::range_siblings;
use crate::{Hash, RunParams, TraceDims, Tree, section_tree, sequence, tensor};

/// Names one element of one operator's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Claim {
    /// layer, 0 = embedding
    pub layer: u16,
    /// row of the layer
    pub row: u32,
    /// operator
    pub op: u16,
    /// element of its output
    pub element: u32,
}

/// One authenticated read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of docs/protocol.md")]
pub struct Read {
    pub data: Vec<u8>,
    pub proof: Vec<Hash>,
    pub leaves: Vec<Hash>,
    pub leaf_proof: Vec<Hash>,
}

/// Everything `proveFraud` needs besides the claim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of docs/protocol.md")]
pub struct Witness {
    pub op_roots: Vec<Hash>,
    pub descriptor: Vec<u8>,
    pub descriptor_proof: Vec<Hash>,
    pub page: Vec<u8>,
    pub page_proof: Vec<Hash>,
    pub hint: u32,
    pub reads: Vec<Read>,
}

/// A tree of which only some claimed nodes are known; the rest are the verifier's own.
///
/// Everything before the first difference is equal in both trees, and a descent reveals every sibling on the way to it, so
/// proofs for anything up to the first difference need no other node.
#[derive(Clone, Debug)]
pub struct PartialTree {
    own: Tree,
    claimed: HashMap<(u32, u64), Hash>,
}

impl PartialTree {
    /// Nothing claimed is known yet.
    pub fn new(own: Tree) -> Self {
        PartialTree { own, claimed: HashMap::new() }
    }

    /// Records a claimed node.
    pub fn learn(&mut self, level: u32, index: u64, hash: Hash) {
        self.claimed.insert((level, index), hash);
    }

    /// Records the answer to a demand for node (level, index): its descendants.
    pub fn learn_descendants(&mut self, level: u32, index: u64, hashes: &[Hash]) {
        let down = level.min(6);
        let mut row = hashes.to_vec();
        for up in 0..=down {
            let first = index << (down - up);
            for (i, h) in row.iter().enumerate() {
                self.learn(level - down + up, first + i as u64, *h);
            }
            row = row.chunks_exact(2).map(|p| crate::tree::node(&p[0], &p[1])).collect();
        }
    }

    /// The verifier's own tree.
    pub fn own(&self) -> &Tree {
        &self.own
    }

    /// Levels above the leaves.
    pub fn depth(&self) -> u32 {
        self.own.depth()
    }

    /// The claimed node if it is known.
    pub fn claimed(&self, level: u32, index: u64) -> Option<Hash> {
        self.claimed.get(&(level, index)).copied()
    }

    /// The claimed node, or the verifier's own.
    pub fn node(&self, level: u32, index: u64) -> Hash {
        self.claimed(level, index).unwrap_or_else(|| self.own.node(level, index))
    }

    /// Siblings on the way from a node to the root.
    pub fn path(&self, level: u32, index: u64) -> Vec<Hash> {
        (level..self.depth()).map(|l| self.node(l, (index >> (l - level)) ^ 1)).collect()
    }

    /// Range proof for leaves `[first, first + count)`.
    pub fn prove(&self, first: u64, count: u64) -> Vec<Hash> {
        range_siblings(self.depth(), first, count).map(|(l, i)| self.node(l, i)).collect()
    }
}

/// Supplies the inputs of one (layer, row): exported tensors as committed before it, weights, tables and tokens.
pub trait Inputs {
    /// All exports of the previous layer at this row's position, in program order, big-endian.
    fn previous(&self) -> Vec<Vec<u8>>;
    /// All exports of this layer at an earlier `position`, in program order, big-endian.
    fn cached(&self, position: u32) -> Vec<Vec<u8>>;
    /// A weight row as stored (scale pairs, elements) and its path to the weights root.
    fn weight_row(&self, matrix: u32, row: u32) -> Option<(Vec<u8>, Vec<Hash>)>;
    /// A table as committed and its path to the tables root.
    fn table(&self, table: u32) -> Option<(Vec<u8>, Vec<Hash>)>;
    /// Prompt tokens.
    fn prompt(&self) -> &[u32];
    /// Output tokens.
    fn output(&self) -> &[u32];
    /// How the run samples.
    fn run(&self) -> RunParams {
        RunParams::default()
    }
}

/// What a challenger holds when it proves an element wrong.
pub struct Evidence<'a> {
    /// The model's program.
    pub program: &'a Program,
    /// The job's dimensions.
    pub dims: TraceDims,
    /// Claimed layer roots.
    pub top: &'a PartialTree,
    /// Claimed tree of the layer before the disputed one (for the embedding: of itself, unused).
    pub previous_rows: &'a PartialTree,
    /// Claimed tree of the disputed layer.
    pub rows: &'a PartialTree,
    /// The operator roots that the node posted.
    pub op_roots: &'a [Hash],
    /// Every operator's right output at the disputed (layer, row).
    pub ops: &'a [Vec<u8>],
    /// The disputed operator's claimed output: right except where a claimed page is known to differ.
    pub claimed: &'a [u8],
    /// Its claimed page tree.
    pub claimed_pages: &'a PartialTree,
    /// The inputs.
    pub inputs: &'a dyn Inputs,
    /// `SELECT`, `SAMPLE`, `TOP`: the index held against the claimed one.
    pub hint: u32,
}

/// Why no witness can be built.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WitnessError {
    /// the claim names something that does not exist
    #[error("the claim names no element: {0}")]
    Claim(&'static str),
    /// an input is missing
    #[error("an input is missing: {0}")]
    Missing(&'static str),
}

/// A witness and the two values it sets against each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// the witness
    pub witness: Witness,
    /// the value that the node committed to
    pub claimed: i64,
    /// the value that the opcode yields
    pub computed: i64,
}

/// Builds the witness for `claim`.
///
/// # Errors
/// A claim outside the trace, a missing input, or an input outside its range (then an earlier element is wrong already).
pub fn build(claim: Claim, e: &Evidence<'_>) -> Result<Proof, StepError<WitnessError>> {
    let missing = |what| StepError::Read(WitnessError::Claim(what));
    let kind = SectionKind::of_layer(claim.layer, e.dims.layers).ok_or_else(|| missing("layer"))?;
    if claim.row >= e.dims.rows(claim.layer) {
        return Err(missing("row"));
    }
    let section = e.program.section(kind);
    let op = claim.op as usize;
    let d = section.ops.get(op).ok_or_else(|| missing("operator"))?;
    let t = e.dims.position(claim.layer, claim.row);
    let width = d.dtype.width();
    let at = claim.element as usize * width;
    let bytes = e.claimed.get(at..at + width).ok_or_else(|| missing("element"))?;
    let claimed = d.dtype.decode(bytes);
    let (page, page_proof) = open(e.claimed, e.claimed_pages, at as u64, width as u64);
    let mut recorder = Recorder { claim, e, d, t, exports: section.exports(), claimed, reads: Vec::new(), hint: 0 };
    let computed = element(d, t, claim.element as u64, &mut recorder)?;
    let witness = Witness {
        op_roots: e.op_roots.to_vec(),
        descriptor: d.encode().to_vec(),
        descriptor_proof: section_tree(section).path(0, op as u64),
        page,
        page_proof,
        hint: recorder.hint,
        reads: recorder.reads,
    };
    Ok(Proof { witness, claimed, computed })
}

fn open(bytes: &[u8], pages: &PartialTree, start: u64, len: u64) -> (Vec<u8>, Vec<Hash>) {
    let (data, _) = tensor::open_range(bytes, pages.own(), start, len);
    let first = start / tensor::PAGE as u64;
    let last = (start + len.max(1) - 1) / tensor::PAGE as u64;
    (data, pages.prove(first, last - first + 1))
}

fn decode(dtype: Dtype, bytes: &[u8]) -> Vec<i64> {
    bytes.chunks_exact(dtype.width()).map(|b| dtype.decode(b)).collect()
}

struct Recorder<'a, 'e> {
    claim: Claim,
    e: &'a Evidence<'e>,
    d: &'a Descriptor,
    t: u32,
    exports: Vec<usize>,
    claimed: i64,
    reads: Vec<Read>,
    /// the hint if it was asked for: a hint that is not read is rejected
    hint: u32,
}

impl Recorder<'_, '_> {
    /// Elements `[start, start + len)` of a tensor, opened and decoded.
    fn take(&mut self, bytes: &[u8], dtype: Dtype, start: u64, len: u64) -> Result<(Vec<i64>, Read), WitnessError> {
        let width = dtype.width() as u64;
        let (from, to) = ((start * width) as usize, ((start + len) * width) as usize);
        let values = bytes.get(from..to).ok_or(WitnessError::Missing("a tensor is shorter than its shape"))?;
        let (data, proof) = tensor::open_range(bytes, &tensor::tensor_tree(bytes), start * width, len * width);
        Ok((decode(dtype, values), Read { data, proof, ..Read::default() }))
    }
}

impl StepReader for Recorder<'_, '_> {
    type Error = WitnessError;

    fn read(&mut self, operand: usize, start: u64, len: u64) -> Result<Vec<i64>, WitnessError> {
        let o: Operand = self.d.operands[operand];
        let missing = WitnessError::Missing;
        let total = self.d.operand_total(operand, self.t).ok_or(missing("operand"))?;
        let n = self.d.operand_elements(operand, self.t).ok_or(missing("operand"))?;
        let start = start + total - n;
        let (values, read) = match o.kind {
            OperandKind::Op => {
                let e = self.e;
                let bytes = e.ops.get(o.index as usize).ok_or(missing("operator"))?;
                self.take(bytes, o.dtype, start, len)?
            }
            OperandKind::Prev => {
                let tensors = self.e.inputs.previous();
                let at = tensors.len().checked_sub(1 + o.index as usize).ok_or(missing("export"))?;
                let (values, mut read) = self.take(&tensors[at], o.dtype, start, len)?;
                read.leaves = tensors.iter().map(|t| tensor::tensor_root(t)).collect();
                read.leaf_proof = self.e.previous_rows.path(0, self.t as u64);
                read.leaf_proof.extend(self.e.top.path(0, self.claim.layer as u64 - 1));
                (values, read)
            }
            OperandKind::Table => {
                let (bytes, path) = self.e.inputs.table(o.resolve(self.claim.layer)).ok_or(missing("table"))?;
                let (values, mut read) = self.take(&bytes, o.dtype, start, len)?;
                read.proof.extend(path);
                (values, read)
            }
            _ => return Err(missing("an operand that is no tensor")),
        };
        self.reads.push(read);
        Ok(values)
    }

    fn cache(
        &mut self,
        operand: usize,
        first: u32,
        positions: u32,
        start: u64,
        len: u64,
    ) -> Result<Vec<i64>, WitnessError> {
        let o = self.d.operands[operand];
        let missing = WitnessError::Missing;
        let mut all = Vec::new();
        let mut read = Read::default();
        for position in first..first + positions {
            let (tensors, roots) = if position == self.t {
                // This row itself: the leaf is the claimed one, whose roots the node posted.
                let tensors: Vec<_> = self.exports.iter().map(|k| self.e.ops.get(*k).cloned()).collect();
                let tensors = tensors.into_iter().collect::<Option<Vec<_>>>().ok_or(missing("operator"))?;
                let roots = self.exports.iter().map(|k| self.e.op_roots.get(*k).copied());
                (tensors, roots.collect::<Option<Vec<_>>>().ok_or(missing("operator"))?)
            } else {
                let tensors = self.e.inputs.cached(position);
                let roots = tensors.iter().map(|t| tensor::tensor_root(t)).collect();
                (tensors, roots)
            };
            let bytes = tensors.get(o.index as usize).ok_or(missing("export"))?;
            let (values, one) = self.take(bytes, o.dtype, start, len)?;
            all.extend(values);
            read.data.extend(one.data);
            read.proof.extend(one.proof);
            read.leaves.extend(roots);
        }
        read.leaf_proof = self.e.rows.prove(first as u64, positions as u64);
        read.leaf_proof.extend(self.e.top.path(0, self.claim.layer as u64));
        self.reads.push(read);
        Ok(all)
    }

    fn row(&mut self, operand: usize, row: u32, column: u32) -> Result<RowData, WitnessError> {
        let o = self.d.operands[operand];
        let columns = self.d.params[2].max(0) as usize;
        let format = RowFormat::from_code(self.d.params[3]).ok_or(WitnessError::Missing("row format"))?;
        let (data, proof) =
            self.e.inputs.weight_row(o.resolve(self.claim.layer), row).ok_or(WitnessError::Missing("weight row"))?;
        let scale = data.get(4 * column as usize..4 * column as usize + 4).ok_or(WitnessError::Missing("scale"))?;
        let elements = data.get(4 * columns..).ok_or(WitnessError::Missing("weight row"))?;
        let row = RowData {
            m: u16::from_be_bytes([scale[0], scale[1]]),
            sh: i16::from_be_bytes([scale[2], scale[3]]),
            weights: format.weights(elements).ok_or(WitnessError::Missing("weight row"))?,
        };
        self.reads.push(Read { data, proof, ..Read::default() });
        Ok(row)
    }

    fn token(&mut self, operand: usize) -> Result<u32, WitnessError> {
        let at = (self.t + self.d.operands[operand].index) as usize;
        let prompt = self.e.inputs.prompt();
        let (tokens, at) = if at < prompt.len() { (prompt, at) } else { (self.e.inputs.output(), at - prompt.len()) };
        let token = *tokens.get(at).ok_or(WitnessError::Missing("token"))?;
        let bytes = sequence::encode(tokens);
        let (data, proof) = tensor::open_range(&bytes, &tensor::tensor_tree(&bytes), 4 * at as u64, 4);
        self.reads.push(Read { data, proof, ..Read::default() });
        Ok(token)
    }

    fn tokens(&mut self, _operand: usize, first: u32, len: u32) -> Result<Vec<u32>, WitnessError> {
        let inputs = self.e.inputs;
        let n = inputs.prompt().len() as u32;
        let end = first.saturating_add(len);
        let mut all = Vec::new();
        let parts = [(inputs.prompt(), first.min(n), end.min(n)), (inputs.output(), first.max(n) - n, end.max(n) - n)];
        for (tokens, from, to) in parts.into_iter().filter(|(_, from, to)| from < to) {
            all.extend(tokens.get(from as usize..to as usize).ok_or(WitnessError::Missing("token"))?);
            let bytes = sequence::encode(tokens);
            let (from, len) = (4 * u64::from(from), 4 * u64::from(to - from));
            let (data, proof) = tensor::open_range(&bytes, &tensor::tensor_tree(&bytes), from, len);
            self.reads.push(Read { data, proof, ..Read::default() });
        }
        Ok(all)
    }

    fn sampling(&mut self) -> Sampling {
        self.e.inputs.run().sampling
    }

    fn noise(&mut self, position: u32, token: u32) -> u32 {
        self.e.inputs.run().noise(position, token)
    }

    fn own(&mut self, index: u64) -> Result<i64, WitnessError> {
        let width = self.d.dtype.width() as u64;
        let at = (index * width) as usize;
        let bytes = self.e.claimed.get(at..at + width as usize).ok_or(WitnessError::Missing("own element"))?;
        let value = self.d.dtype.decode(bytes);
        let (data, proof) = open(self.e.claimed, self.e.claimed_pages, index * width, width);
        self.reads.push(Read { data, proof, ..Read::default() });
        Ok(value)
    }

    fn claimed(&mut self) -> Result<i64, WitnessError> {
        Ok(self.claimed)
    }

    fn hint(&mut self) -> u32 {
        self.hint = self.e.hint;
        self.hint
    }
}
