//! A case as a trace: the smallest model and run in which a case's operator reads a case's inputs, so that a complete witness
//! of any of its elements can be built and judged.

use sworn_commit::witness::{Claim, Evidence, Inputs, PartialTree, Proof, WitnessError, build};
use sworn_commit::{Hash, Manifest, RunParams, TraceDims, Tree, row_leaf, section_tree, sequence, tensor, trace};
use sworn_isa::{Descriptor, Dtype, Opcode, Operand, OperandKind, Program, Section, StepError};

use crate::cases::{Case, OperandData, Row, encode};

/// Operators before the case's own: two whose outputs it reads, two whose exported outputs it reads at earlier positions (in the head, where
/// nothing is cached, it may read all four).
const INPUTS: usize = 2;
const CACHED: usize = 2;
/// Index of the case's operator.
pub const OP: u16 = (INPUTS + CACHED) as u16;

/// Which tensors of a run [`Fixture::spoilt`] changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The claimed one.
    Claimed,
    /// All that its elements are computed from: operators', cached ones, tables.
    Inputs,
}

/// One case as a run of a one-block model.
pub struct Fixture {
    /// The model's public side.
    pub manifest: Manifest,
    /// Its program.
    pub program: Program,
    /// The run's sizes.
    pub dims: TraceDims,
    /// Where the case's operator stands.
    pub layer: u16,
    /// Its row.
    pub row: u32,
    /// What the run commits to.
    pub layers_root: Hash,
    /// How it samples.
    pub run: RunParams,
    prompt: Vec<u32>,
    output: Vec<u32>,
    top: PartialTree,
    rows: PartialTree,
    op_roots: Vec<Hash>,
    ops: Vec<Vec<u8>>,
    cached: Vec<Vec<Vec<u8>>>,
    weights: Vec<Vec<u8>>,
    row_tree: Tree,
    tables: Vec<Vec<u8>>,
    tables_tree: Tree,
    /// What is held against each element of the output.
    hints: Vec<u32>,
}

impl Fixture {
    /// The run in which `case` happens and the operator's output is `claimed`.
    pub fn new(case: &Case, claimed: &[i64]) -> Self {
        Fixture::spoilt(case, claimed, &|_, _| ())
    }

    /// [`Self::new`], but what is committed to are the tensors that `spoil` makes of the right ones: longer or shorter than
    /// their shapes, say.
    pub fn spoilt(case: &Case, claimed: &[i64], spoil: &dyn Fn(Part, &mut Vec<u8>)) -> Self {
        let d = case.descriptor;
        let head = d.opcode == Opcode::Select || d.opcode >= Opcode::Temper;
        let filler = |export| Descriptor {
            opcode: Opcode::Add,
            dtype: Dtype::I32,
            export,
            bits: 0,
            outer: 1,
            div: 0,
            inner: 1,
            params: [0; 4],
            operands: [Operand::op(0, Dtype::I32), Operand::op(0, Dtype::I32), Operand::NONE, Operand::NONE],
        };
        let mut ops: Vec<Vec<u8>> = vec![vec![0; 4]; OP as usize];
        let mut cached = vec![vec![vec![0; 4]; CACHED]; case.t as usize + 1];
        // The tokens at positions 0…t and the one that follows.
        let mut sequence = vec![0; case.t as usize + 2];
        let (mut weights, mut tables) = (Vec::new(), Vec::new());
        for (k, data) in case.operands.iter().enumerate() {
            let o = d.operands[k];
            match (data, o.kind) {
                (OperandData::Tensor(_), OperandKind::Op) => ops[o.index as usize] = case.bytes(k),
                (OperandData::Tensor(_), _) => tables.push(case.bytes(k)),
                (OperandData::Cache(c), _) => {
                    for (at, values) in cached.iter_mut().zip(c) {
                        at[o.index as usize] = encode(values, o.dtype);
                    }
                    ops[INPUTS + o.index as usize] = encode(&c[case.t as usize], o.dtype);
                }
                (OperandData::Rows(rows), _) => weights = rows.iter().map(Row::bytes).collect(),
                (OperandData::Token(token), _) => sequence[(case.t + o.index) as usize] = *token,
                (OperandData::Tokens(tokens), _) => sequence[..tokens.len()].copy_from_slice(tokens),
                (OperandData::None, _) => {}
            }
        }
        ops.push(encode(claimed, d.dtype));
        for tensor in ops[..OP as usize].iter_mut().chain(cached.iter_mut().flatten()).chain(&mut tables) {
            spoil(Part::Inputs, tensor);
        }
        spoil(Part::Claimed, &mut ops[OP as usize]);
        let section = Section { ops: vec![filler(false), filler(false), filler(true), filler(true), d] };
        let empty = Section { ops: vec![filler(true)] };
        let program =
            Program { sections: if head { [empty.clone(), empty, section] } else { [empty.clone(), section, empty] } };

        let weights = if weights.is_empty() { vec![vec![0; 8]] } else { weights };
        let tables: Vec<Vec<u8>> = if tables.is_empty() { vec![vec![0; 2]] } else { tables };
        let row_tree = Tree::new(weights.iter().map(|r| row_leaf(r)).collect());
        let tables_tree = Tree::new(tables.iter().map(|t| tensor::tensor_root(t)).collect());
        let roots = program.sections.each_ref().map(|s| section_tree(s).root());
        let manifest = Manifest {
            layers: 1,
            vocab: u32::MAX,
            max_positions: 8192,
            op_counts: program.sections.each_ref().map(|s| s.ops.len() as u16),
            section_roots: roots,
            weights: 1,
            weights_root: row_tree.root(),
            tables: tables.len() as u32,
            tables_root: tables_tree.root(),
            tokenizer_hash: [0; 32],
            chat_template_hash: [0; 32],
            stop_tokens: Vec::new(),
        };

        // Against a wrong `TOP` the right token, against a right one any.
        let hints = claimed.iter().zip(&case.expected).map(|(claimed, right)| match d.opcode {
            Opcode::Top if claimed != right => *right as u32,
            _ => case.hint,
        });
        let hints = hints.collect();
        let output = sequence.split_off(case.prompt as usize);
        let dims = TraceDims { layers: 1, n_in: case.prompt, n_out: output.len() as u32 };
        let op_roots: Vec<Hash> = ops.iter().map(|t| tensor::tensor_root(t)).collect();
        let (layer, row) = if head { (2, dims.n_out - 1) } else { (1, case.t) };
        let leaf =
            |tensors: &[Vec<u8>]| trace::leaf(&tensors.iter().map(|t| tensor::tensor_root(t)).collect::<Vec<_>>());
        let leaves = |l: u16| match l {
            l if l != layer => (0..dims.rows(l)).map(|r| trace::leaf(&[[r as u8; 32]])).collect(),
            2 => (0..row).map(|r| trace::leaf(&[[r as u8; 32]])).chain([leaf(&ops[INPUTS..INPUTS + CACHED])]).collect(),
            _ => cached.iter().map(|c| leaf(c)).collect(),
        };
        let trees = [0, 1, 2].map(|l| Tree::new(leaves(l)));
        let top = Tree::new(trees.iter().map(Tree::root).collect());
        let layers_root = top.root();
        let rows = PartialTree::new(trees[layer as usize].clone());
        Fixture {
            manifest,
            program,
            dims,
            layer,
            row,
            layers_root,
            run: case.run,
            prompt: sequence,
            output,
            top: PartialTree::new(top),
            rows,
            op_roots,
            ops,
            cached,
            weights,
            row_tree,
            tables,
            tables_tree,
            hints,
        }
    }

    /// The hash of the prompt and of the output.
    pub fn sequences(&self) -> [Hash; 2] {
        [sequence::hash(&self.prompt), sequence::hash(&self.output)]
    }

    /// The witness of one element.
    ///
    /// # Errors
    /// The element does not exist or its inputs are out of range.
    pub fn prove(&self, element: u32) -> Result<(Claim, Proof), StepError<WitnessError>> {
        let claim = Claim { layer: self.layer, row: self.row, op: OP, element };
        let claimed = &self.ops[OP as usize];
        let pages = PartialTree::new(tensor::tensor_tree(claimed));
        let evidence = Evidence {
            program: &self.program,
            dims: self.dims,
            top: &self.top,
            previous_rows: &self.rows,
            rows: &self.rows,
            op_roots: &self.op_roots,
            ops: &self.ops,
            claimed,
            claimed_pages: &pages,
            inputs: self,
            hint: self.hints.get(element as usize).copied().unwrap_or(0),
        };
        Ok((claim, build(claim, &evidence)?))
    }
}

impl Inputs for Fixture {
    fn previous(&self) -> Vec<Vec<u8>> {
        Vec::new()
    }

    fn cached(&self, position: u32) -> Vec<Vec<u8>> {
        self.cached[position as usize].clone()
    }

    fn weight_row(&self, _: u32, row: u32) -> Option<(Vec<u8>, Vec<Hash>)> {
        Some((self.weights.get(row as usize)?.clone(), self.row_tree.path(0, row as u64)))
    }

    fn table(&self, table: u32) -> Option<(Vec<u8>, Vec<Hash>)> {
        Some((self.tables.get(table as usize)?.clone(), self.tables_tree.path(0, table as u64)))
    }

    fn prompt(&self) -> &[u32] {
        &self.prompt
    }

    fn output(&self) -> &[u32] {
        &self.output
    }

    fn run(&self) -> RunParams {
        self.run
    }
}
