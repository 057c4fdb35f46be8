//! Every opcode's kernel (from `TEMPER` on there are none) against the scalar reference: at least 10,000 output elements each, all with inputs of their own.
//!
//! Needs a Vulkan adapter; `script/mesa` gets a software one.

// The generator alone: depending on the test kit would build the node and the chain before these kernels can be tested.
#[path = "../../testkit/src/cases/mod.rs"]
#[allow(unreachable_pub, dead_code)]
mod cases;

use cases::{Case, OperandData, Row, cases};
use sworn_engine_wgpu::{Kernels, PackedRows, Products, Selection, Single, Values};
use sworn_isa::Opcode;

const ELEMENTS: usize = 10_000;

fn kernels() -> Kernels {
    Kernels::open(&Selection::Best).unwrap_or_else(|e| panic!("{e}"))
}

/// What an honest node computes: the reference's value, except that `SELECT` is told neither claim nor next token.
fn expected(case: &Case) -> Vec<i64> {
    match case.descriptor.opcode {
        Opcode::Select => vec![i64::from(case.selected)],
        _ => case.expected.clone(),
    }
}

fn check(kernels: &Kernels, opcode: Opcode, seed: u64) -> (usize, usize) {
    let mut stream = cases(opcode, seed);
    let (mut elements, mut operators) = (0, 0);
    while elements < ELEMENTS {
        let batch: Vec<Case> = stream.by_ref().take(128).collect();
        let matrices: Vec<Vec<u8>> = batch
            .iter()
            .map(|c| {
                c.operands.iter().find_map(|o| {
                    if let OperandData::Rows(r) = o {
                        Some(r.iter().flat_map(Row::bytes).collect::<Vec<_>>())
                    } else {
                        None
                    }
                })
            })
            .map(Option::unwrap_or_default)
            .collect();
        let singles: Vec<Single<'_>> = batch
            .iter()
            .zip(&matrices)
            .map(|(c, bytes)| {
                let mut operands = [Values::None; 4];
                for (k, o) in c.operands.iter().enumerate() {
                    operands[k] = match o {
                        OperandData::None => Values::None,
                        OperandData::Tensor(v) => Values::Tensor(v),
                        OperandData::Cache(rows) => Values::Cache(rows),
                        OperandData::Rows(rows) => Values::Rows(PackedRows {
                            rows: rows.len(),
                            cols: rows[0].columns(),
                            scales: rows[0].scales.len(),
                            format: rows[0].format(),
                            bytes,
                        }),
                        OperandData::Token(t) => Values::Token(*t),
                        OperandData::Tokens(_) => Values::None,
                    };
                }
                Single { descriptor: &c.descriptor, t: c.t, operands }
            })
            .collect();
        let got = kernels.run(&singles).unwrap_or_else(|e| panic!("{opcode}: {e}"));
        for (case, got) in batch.iter().zip(got) {
            let want = expected(case);
            if let Some(i) = (0..want.len()).find(|i| want[*i] != got[*i]) {
                panic!("{opcode}: element {i} is {}, should be {}: {case:?}", got[i], want[i]);
            }
            elements += want.len();
            operators += 1;
        }
    }
    (elements, operators)
}

#[test]
fn every_opcode_gives_the_bits_of_the_reference() {
    let kernels = kernels();
    eprintln!("adapter: {}", kernels.adapter());
    let mut total = 0;
    // What follows the logits runs on the host: `sworn_engine::sampling`.
    for opcode in Opcode::ALL.iter().filter(|o| **o < Opcode::Temper) {
        let (elements, operators) = check(&kernels, *opcode, 2);
        eprintln!("{:<12} {elements:>7} elements of {operators} operators equal", opcode.name());
        total += elements;
    }
    eprintln!("wgpu differential: {total} elements, 0 differences");
}

#[test]
fn products_split_over_the_columns_are_the_same() {
    for split in [true, false] {
        let (elements, _) = check(&kernels().with_split_columns(split), Opcode::Linear, 4);
        assert!(elements >= ELEMENTS);
    }
}

#[test]
fn packed_dot_products_are_the_same() {
    for (split, products) in [(true, Products::Dots), (false, Products::Dots), (true, Products::Tiles)] {
        let kernels = kernels().with_split_columns(split).with_products(products);
        let (elements, operators) = check(&kernels, Opcode::Linear, 5);
        eprintln!("{products:?}: {elements} elements of {operators} products equal");
    }
    let (elements, _) = check(&kernels().with_products(Products::Dots).with_rows_per_binding(4), Opcode::Linear, 6);
    assert!(elements >= ELEMENTS);
}

#[test]
fn matrices_over_a_bindings_size_are_split() {
    let kernels = kernels().with_rows_per_binding(4);
    for opcode in [Opcode::Embed, Opcode::Linear] {
        let (elements, _) = check(&kernels, opcode, 3);
        assert!(elements >= ELEMENTS);
    }
}

#[test]
fn sums_beyond_the_word_are_clamped() {
    // ADD reads any I32 tensor, so also sums that do not fit: the reference clamps them.
    let kernels = kernels();
    let bounds = [i32::MIN, i32::MIN + 1, -(1 << 30), 1 - (1 << 30), -1, 0, 1, (1 << 30) - 1, 1 << 30, i32::MAX];
    let pairs = || bounds.iter().flat_map(|x| bounds.map(|y| (*x, y)));
    let x: Vec<i64> = pairs().map(|(x, _)| x.into()).collect();
    let y: Vec<i64> = pairs().map(|(_, y)| y.into()).collect();
    let mut d = cases(Opcode::Add, 1).next().unwrap().descriptor;
    (d.outer, d.div, d.inner) = (1, 0, x.len() as u32);
    let operands = [Values::Tensor(&x), Values::Tensor(&y), Values::None, Values::None];
    let got = kernels.run(&[Single { descriptor: &d, t: 0, operands }]).unwrap();
    let want: Vec<i64> = pairs().map(|(x, y)| sworn_isa::fixed::add_clamp(x, y).into()).collect();
    assert_eq!(got, [want]);
}
