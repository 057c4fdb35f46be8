//! Differential test (b): the scalar reference against the cpu backend's kernels, every opcode, every element.
#![allow(clippy::print_stdout, reason = "the counts are the report")]

use sworn_engine::kernels::{Input, apply};
use sworn_engine::{Matrix, OpTensor, Simd};
use sworn_isa::Opcode;
use sworn_isa::sampling::PENALTY_WINDOW;
use sworn_testkit::cases::{Case, OperandData, Row, cases};
use sworn_testkit::tried::tried;

const CASES: usize = 10_000;

fn run(case: &Case, simd: Simd) -> OpTensor {
    let (d, t) = (&case.descriptor, case.t);
    let mut tensors = Vec::new();
    let mut matrices = Vec::new();
    for (k, data) in case.operands.iter().enumerate() {
        let dtype = d.operands[k].dtype;
        tensors.push(match data {
            OperandData::Tensor(v) => {
                // Of a tail operand the kernel gets the last slab.
                let n = d.operand_elements(k, t).unwrap() as usize;
                OpTensor::from_values(dtype, &v[v.len() - n..])
            }
            OperandData::Cache(c) => OpTensor::from_values(dtype, &c.concat()),
            _ => OpTensor::zeros(dtype, 0),
        });
        matrices.push(match data {
            OperandData::Rows(rows) => rows.iter().flat_map(Row::bytes).collect(),
            _ => Vec::new(),
        });
    }
    let inputs: [Input<'_>; 4] = std::array::from_fn(|k| match &case.operands[k] {
        OperandData::None => Input::None,
        OperandData::Tensor(_) => Input::Tensor(tensors[k].view()),
        OperandData::Cache(_) => Input::Cache(tensors[k].view()),
        OperandData::Token(t) => Input::Token(*t),
        OperandData::Tokens(all) => Input::Tokens(&all[all.len().saturating_sub(PENALTY_WINDOW as usize)..]),
        OperandData::Rows(rows) => {
            let (first, pair) = (&rows[0], d.params[1] as usize);
            let (columns, pairs) = (first.columns(), first.scales.len());
            Input::Matrix(Matrix::with_format(&matrices[k], rows.len(), columns, pairs, pair, first.format()).unwrap())
        }
    });
    apply(d, t, &inputs, &case.run, simd).unwrap()
}

#[test]
fn cpu_kernels_are_the_scalar_reference() {
    for opcode in Opcode::ALL {
        let (levels, mut elements) = (Simd::all(), 0);
        // A selection that claims a token other than the one that follows has no kernel: the reference answers the token.
        let honest = |c: &Case| !c.selects() || c.expected[0] == i64::from(c.selected);
        for case in cases(*opcode, 0xb0).filter(honest).take(CASES) {
            let expected = case.expected_bytes();
            elements += case.expected.len();
            for simd in &levels {
                let got = run(&case, *simd);
                assert!(got.bytes() == expected, "{opcode} with {}: {:?} for {case:?}", simd.name(), got.values());
            }
        }
        let levels: Vec<_> = levels.iter().map(|s| s.name()).collect();
        println!("{:12} {elements} elements, with each of {}", opcode.name(), levels.join(", "));
        let cases = (CASES * levels.len()) as u64;
        tried("opcodes: cpu kernels against the reference, cases", cases, 0, format!("with {}", levels.join(", ")));
    }
}
