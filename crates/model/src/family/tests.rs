use super::*;
use crate::{
    hyper::{Activation, Architecture, RopeScaling, SlidingWindow, WindowedBlocks},
    synthetic::SyntheticSpec,
};

fn smol() -> Config {
    let spec = SyntheticSpec {
        layers: 30,
        hidden: 576,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        ffn: 1536,
        vocab: 49152,
        context: 8192,
        ..SyntheticSpec::default()
    };
    Config { log_probs: false, ..spec.config() }
}

fn with(change: impl FnOnce(&mut Hyper)) -> Config {
    let mut c = smol();
    change(&mut c.hyper);
    c
}

fn names(c: &Config, section: usize) -> Vec<&'static str> {
    let p = c.program(ActivationBits::default(), &Formats::default()).unwrap();
    p.sections[section].ops.iter().map(|d| d.opcode.name()).collect()
}

const NORM: [&str; 7] = ["MAX_ABS", "SUM_SQ", "RMS", "GAIN", "MAX_ABS", "QUANT", "NORM_SCALE"];

#[test]
fn the_block_is_the_documented_list() {
    let p = smol().program(ActivationBits::default(), &Formats::default()).unwrap();
    let mut want = NORM.to_vec();
    want.extend(["LINEAR", "LINEAR", "LINEAR", "ROPE", "ROPE", "MAX_ABS", "QUANT", "SCALE_Q", "MAX_ABS", "QUANT"]);
    want.extend(["QUANT_SCALE", "TO_FIXED", "SCORES", "ROW_MAX", "EXP", "ROW_SUM", "PROB", "MIX", "MAX_ABS"]);
    want.extend(["QUANT", "QUANT_SCALE", "LINEAR", "ADD"]);
    want.extend(NORM);
    want.extend(["LINEAR", "LINEAR", "SILU_MUL", "MAX_ABS", "QUANT", "QUANT_SCALE", "LINEAR", "ADD"]);
    assert_eq!(names(&smol(), 1), want);
    assert_eq!(p.sections[1].exports(), [16, 17, 18, 44]);
}

#[test]
fn the_head_samples_where_the_vocabulary_allows_it() {
    let sampling = Config { sampling: true, ..smol() };
    let mut want = NORM.to_vec();
    want.extend(["LINEAR", "TEMPER", "MAX", "MAX"]);
    want.extend(["HISTOGRAM", "SUM", "CUT"].repeat(3));
    want.extend(["THRESHOLD", "SAMPLE"]);
    assert_eq!(names(&sampling, 2), want);
    // Llama 2 and 3, Qwen 2 and 3, Gemma, Mistral.
    for v in [32_000, 128_256, 151_936, 152_064, 151_646, 256_000, 32_768] {
        let hyper = Hyper { vocab: v, ..smol().hyper };
        let c = Config::new(hyper, None, true, true).unwrap();
        c.program(ActivationBits::default(), &Formats::default()).unwrap();
        assert!(c.sampling && c.log_probs, "{v}");
    }
    let odd = Config::new(Hyper { vocab: 32_003, ..smol().hyper }, None, true, true).unwrap();
    assert!(!odd.sampling && !odd.log_probs);
    assert!(!head::can_log_probs(32_003) && !head::can_log_probs(1 << 21) && head::can_log_probs(1 << 20));
    assert!(!head::can_sample(32_003) && !head::can_sample(1 << 19) && !head::can_sample(2 * 2_053));
}

#[test]
fn log_probabilities_follow_the_token() {
    for sampling in [false, true] {
        let c = Config { sampling, log_probs: true, ..smol() };
        let without = names(&Config { log_probs: false, ..c.clone() }, 2);
        let all = names(&c, 2);
        assert_eq!(all[..without.len()], without);
        assert_eq!(all[without.len()..], ["MAX", "MAX", "MASS", "LOG_SUM", "TOP", "LOG_PROB"]);
        let head = &c.program(ActivationBits::default(), &Formats::default()).unwrap().sections[2].ops;
        let found = sworn_isa::logprob::LogProbs::find(head).unwrap();
        assert_eq!((found.token + 1, found.log_prob + 1, found.n), (without.len(), all.len(), 20));
        assert_eq!(head[found.logits].opcode.name(), "LINEAR");
        assert_eq!(c.tables()[found.ln.index as usize], TableSpec::Logarithm);
        // Probabilities of another token than the one that comes out, or of tempered logits, are not what the name says.
        let mut other = head.clone();
        other[found.log_prob].operands[3].index = found.top as u32 - 1;
        assert_eq!(sworn_isa::logprob::LogProbs::find(&other), None);
        let mut other = head.clone();
        other[found.top].operands[0].index = found.logits as u32 + 1;
        assert_eq!(sworn_isa::logprob::LogProbs::find(&other), None);
        assert_eq!(sworn_isa::logprob::LogProbs::find(&head[..without.len()]), None);
    }
}

#[test]
fn every_part_of_a_family_is_in_its_block() {
    let qwen2 = names(&with(|h| h.qkv_bias = true), 1);
    assert_eq!(qwen2[7..13], ["LINEAR", "ADD", "LINEAR", "ADD", "LINEAR", "ADD"]);
    let qwen3 = names(&with(|h| h.head_norms = true), 1);
    let head_norm = ["MAX_ABS", "SUM_SQ", "RMS", "GAIN"];
    assert_eq!(qwen3[10..14], head_norm);
    assert_eq!(qwen3[14..18], head_norm);
    assert_eq!(qwen3[18..26], ["ROPE", "ROPE", "MAX_ABS", "QUANT", "NORM_SCALE", "MAX_ABS", "QUANT", "NORM_SCALE"]);
    let window = |size| with(|h| h.sliding_window = Some(SlidingWindow { size, blocks: WindowedBlocks::All }));
    assert_eq!(names(&window(4096), 1)[19..21], ["SCORES", "WINDOW"]);
    assert_eq!(names(&window(8192), 1), names(&smol(), 1), "a window as long as any job is none");
    let biased = names(&with(|h| (h.output_bias, h.ffn_bias) = (true, true)), 1);
    assert_eq!(biased.iter().filter(|n| **n == "ADD").count(), 2 + 4);
}

/// The published sizes of the Gemmas.
fn gemma2(hidden: u32, heads: u32, kv_heads: u32, head_dim: u32, ffn: u32) -> Config {
    with(|h| {
        h.architecture = Architecture::Gemma2;
        (h.hidden, h.heads, h.kv_heads, h.head_dim, h.ffn) = (hidden, heads, kv_heads, head_dim, ffn);
        h.vocab = 256_000;
        h.post_norms = true;
        (h.score_cap, h.logit_cap) = (Some(50.0), Some(30.0));
        h.sliding_window = Some(SlidingWindow { size: 4096, blocks: WindowedBlocks::Even });
        h.activation = Activation::GeluTanh;
        h.embedding_scale = f64::from(hidden).sqrt();
    })
}

#[test]
fn the_largest_families_fit_the_contracts() {
    for c in [
        gemma2(2304, 8, 4, 256, 9216),
        gemma2(3584, 16, 8, 256, 14336),
        gemma2(4608, 32, 16, 128, 36864),
        // Llama 3.1 8B, 70B; Qwen 2.5 7B, 32B; Qwen 3 8B; Gemma 7B
        with(|h| (h.hidden, h.heads, h.kv_heads, h.head_dim, h.ffn) = (4096, 32, 8, 128, 14336)),
        with(|h| (h.hidden, h.heads, h.kv_heads, h.head_dim, h.ffn) = (8192, 64, 8, 128, 28672)),
        with(|h| (h.hidden, h.heads, h.kv_heads, h.head_dim, h.ffn, h.qkv_bias) = (3584, 28, 4, 128, 18944, true)),
        with(|h| (h.hidden, h.heads, h.kv_heads, h.head_dim, h.ffn, h.qkv_bias) = (5120, 40, 8, 128, 27648, true)),
        with(|h| (h.hidden, h.heads, h.kv_heads, h.head_dim, h.ffn, h.head_norms) = (4096, 32, 8, 128, 12288, true)),
        with(|h| (h.hidden, h.heads, h.kv_heads, h.head_dim, h.ffn) = (3072, 16, 16, 256, 24576)),
    ] {
        let mut formats = Formats::default();
        Role::BLOCK.iter().for_each(|r| formats.set(*r, RowFormat::Q4));
        let c = Config { sampling: true, ..c };
        let p = c.program(ActivationBits::default(), &formats).unwrap();
        let count = p.sections.iter().map(|s| s.ops.len()).max().unwrap();
        assert!(count <= program::MAX_OPERATORS, "{count}: {c:?}");
        let reduces = |most: i32| {
            let all = p.sections.iter().flat_map(|s| &s.ops);
            all.filter(|d| d.opcode == sworn_isa::Opcode::MaxAbs).all(|d| d.params[1] <= most)
        };
        assert!(reduces(if c.hyper.post_norms { 8192 } else { 2048 }));
    }
}

#[test]
fn every_shape_that_passes_the_check_is_a_valid_program() {
    let mut n = 0;
    for hidden in [2, 48, 576, 2048, 2050, 4096, 14336] {
        for (heads, kv_heads) in [(1, 1), (6, 2), (9, 3), (32, 8)] {
            for (head_dim, ffn) in [(2, 6), (8, 112), (64, 11008), (256, 2049)] {
                for tied in [true, false] {
                    let mut c = with(|h| {
                        (h.hidden, h.heads, h.kv_heads) = (hidden, heads, kv_heads);
                        (h.head_dim, h.ffn, h.tied, h.vocab, h.layers) = (head_dim, ffn, tied, 301, 3);
                        h.head_norms = n % 2 == 1;
                        h.qkv_bias = n % 3 == 1;
                        h.rope_scaling = RopeScaling::Linear { factor: 2.0 };
                    });
                    c.positions = 100;
                    c.sampling = n % 5 < 3;
                    let bits = ActivationBits { attention: 9, ffn: 15, down: 12, head: 16 };
                    c.program(bits, &Formats::default()).unwrap();
                    n += 1;
                }
            }
        }
    }
    assert_eq!(n, 7 * 4 * 4 * 2);
}

#[test]
fn long_vectors_are_reduced_in_groups() {
    let c = with(|h| h.hidden = 4096);
    let p = c.program(ActivationBits::default(), &Formats::default()).unwrap();
    let groups: Vec<_> = p.sections[2].ops[..2].iter().map(|d| d.params[1]).collect();
    assert_eq!(groups, [2048, 2]);
}

#[test]
fn halves_are_interleaved() {
    let c = with(|h| (h.rope_layout, h.head_dim) = (RopeLayout::Halves, 6));
    let rows: Vec<u32> = (0..12).map(|r| c.rotated_row(r)).collect();
    assert_eq!(rows, [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]);
    assert_eq!(smol().rotated_row(77), 77);
}

#[test]
fn tables_are_numbered_as_the_program_reads_them() {
    let c = Config { sampling: true, ..gemma2(2304, 8, 4, 256, 9216) };
    let tables = c.tables();
    let per_block = c.block_tables().len();
    assert_eq!(tables.len(), 4 + per_block * 30 + 1);
    let width = |layer: usize| match &tables[4 + per_block * layer + per_block - 1] {
        TableSpec::Window { width, .. } => *width,
        other => panic!("{other:?}"),
    };
    assert_eq!((width(0), width(1), width(28)), (4096, 8192, 4096));
    assert!(matches!(&tables[4 + 30 * per_block], TableSpec::Gain { tensor, .. } if tensor == "output_norm.weight"));
}

#[test]
fn impossible_sizes_are_errors() {
    type Change = fn(&mut Hyper);
    let changes: [Change; 12] = [
        |h| h.hidden = 2053,
        |h| h.ffn = 10007,
        |h| h.hidden = 0,
        |h| h.kv_heads = 2,
        |h| h.head_dim = 63,
        |h| h.head_dim = 258,
        |h| h.rope_base = f64::NAN,
        |h| h.epsilon = 0.0,
        |h| h.layers = 0,
        |h| h.score_cap = Some(f64::NAN),
        |h| h.embedding_scale = 0.0,
        |h| h.query_scalar = -1.0,
    ];
    for (i, change) in changes.into_iter().enumerate() {
        assert!(with(change).program(ActivationBits::default(), &Formats::default()).is_err(), "{i}");
    }
    for positions in [0, 8193] {
        assert!(Config { positions, ..smol() }.check().is_err());
    }
    assert!(Config { sampling: true, ..with(|h| h.vocab = 32_003) }.check().is_err());
}
