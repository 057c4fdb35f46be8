//! The file that llama.cpp's converter writes.

use half::f16;

use super::{EPSILON, Family, ROPE_BASE, SIZES, Tensor};
use crate::synthetic::{TEMPLATE, VocabularyParts};

/// Elements of a block.
const BLOCK: usize = 32;
/// Alignment of tensors.
const ALIGNMENT: usize = 32;

/// A metadata value.
enum Meta<'a> {
    Uint(u32),
    Float(f32),
    Bool(bool),
    Text(&'a str),
    Texts(&'a [String]),
    Ints(&'a [i64]),
}

fn text(out: &mut Vec<u8>, s: &str) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s.as_bytes());
}

impl Meta<'_> {
    fn append(&self, out: &mut Vec<u8>) {
        let code = |out: &mut Vec<u8>, code: u32| out.extend(code.to_le_bytes());
        match self {
            Meta::Uint(v) => {
                code(out, 4);
                out.extend(v.to_le_bytes());
            }
            Meta::Float(v) => {
                code(out, 6);
                out.extend(v.to_le_bytes());
            }
            Meta::Bool(v) => {
                code(out, 7);
                out.push(u8::from(*v));
            }
            Meta::Text(v) => {
                code(out, 8);
                text(out, v);
            }
            Meta::Texts(v) => {
                code(out, 9);
                code(out, 8);
                out.extend((v.len() as u64).to_le_bytes());
                v.iter().for_each(|s| text(out, s));
            }
            Meta::Ints(v) => {
                code(out, 9);
                code(out, 5);
                out.extend((v.len() as u64).to_le_bytes());
                v.iter().for_each(|i| out.extend((*i as i32).to_le_bytes()));
            }
        }
    }
}

fn metadata<'a>(family: Family, vocabulary: &'a VocabularyParts) -> Vec<(String, Meta<'a>)> {
    let (s, arch) = (&SIZES, family.architecture());
    let own = |key: &str, v: Meta<'a>| (format!("{arch}.{key}"), v);
    let mut all = vec![
        ("general.architecture".into(), Meta::Text(arch)),
        ("general.name".into(), Meta::Text(family.name())),
        own("block_count", Meta::Uint(s.layers as u32)),
        own("context_length", Meta::Uint(s.context)),
        own("embedding_length", Meta::Uint(s.hidden as u32)),
        own("feed_forward_length", Meta::Uint(s.ffn as u32)),
        own("attention.head_count", Meta::Uint(s.heads as u32)),
        own("attention.head_count_kv", Meta::Uint(s.kv_heads as u32)),
        own("attention.key_length", Meta::Uint(s.head_dim as u32)),
        own("attention.value_length", Meta::Uint(s.head_dim as u32)),
        own("attention.layer_norm_rms_epsilon", Meta::Float(EPSILON as f32)),
        own("rope.freq_base", Meta::Float(ROPE_BASE as f32)),
        ("tokenizer.ggml.model".into(), Meta::Text("gpt2")),
        ("tokenizer.ggml.pre".into(), Meta::Text("smollm")),
        ("tokenizer.ggml.tokens".into(), Meta::Texts(&vocabulary.tokens)),
        ("tokenizer.ggml.token_type".into(), Meta::Ints(&vocabulary.kinds)),
        ("tokenizer.ggml.merges".into(), Meta::Texts(&vocabulary.merges)),
        ("tokenizer.ggml.bos_token_id".into(), Meta::Uint(1)),
        ("tokenizer.ggml.eos_token_id".into(), Meta::Uint(2)),
        ("tokenizer.ggml.add_bos_token".into(), Meta::Bool(false)),
        ("tokenizer.chat_template".into(), Meta::Text(TEMPLATE)),
    ];
    match family {
        Family::Qwen2 => all.extend([
            own("rope.scaling.type", Meta::Text("yarn")),
            own("rope.scaling.factor", Meta::Float(4.0)),
            own("rope.scaling.original_context_length", Meta::Uint(32)),
        ]),
        Family::Mistral => all.push(own("attention.sliding_window", Meta::Uint(s.window))),
        Family::Gemma2 => all.extend([
            own("attention.sliding_window", Meta::Uint(s.window)),
            own("attention.scale", Meta::Float(1.0 / 24f32.sqrt())),
            own("attn_logit_softcapping", Meta::Float(2.0)),
            own("final_logit_softcapping", Meta::Float(5.0)),
        ]),
        _ => {}
    }
    all
}

/// Rows of q and k so that elements that rotate together lie side by side, as converters write them for Llamas.
fn interleaved(values: &[f32], cols: usize) -> Vec<f32> {
    let width = SIZES.head_dim;
    let rows: Vec<&[f32]> = values.chunks(cols).collect();
    let row = |r: usize| {
        let (head, i) = (r / width, r % width);
        rows[head * width + i / 2 + (i % 2) * (width / 2)]
    };
    (0..rows.len()).flat_map(|r| row(r).to_vec()).collect()
}

/// Eight bits and a scale.
fn q8_0(block: &[f32]) -> Vec<u8> {
    let d = f16::from_f32(block.iter().fold(0f32, |a, v| a.max(v.abs())) / 127.0);
    let q = block.iter().map(|v| (v / d.to_f32().max(1e-9)).round().clamp(-127.0, 127.0) as i8 as u8);
    d.to_le_bytes().into_iter().chain(q).collect()
}

/// Four bits, a scale and a minimum.
fn q4_1(block: &[f32]) -> Vec<u8> {
    let (least, most) = block.iter().fold((f32::MAX, f32::MIN), |(a, b), v| (a.min(*v), b.max(*v)));
    let (d, m) = (f16::from_f32((most - least) / 15.0), f16::from_f32(least));
    let q: Vec<u8> =
        block.iter().map(|v| ((v - m.to_f32()) / d.to_f32().max(1e-9)).round().clamp(0.0, 15.0) as u8).collect();
    let (low, high) = q.split_at(BLOCK / 2);
    let pairs = low.iter().zip(high).map(|(l, h)| l | (h << 4));
    d.to_le_bytes().into_iter().chain(m.to_le_bytes()).chain(pairs).collect()
}

/// Storage type and bytes of a tensor.
fn stored(family: Family, t: &Tensor, blocks: bool) -> (u32, Vec<u8>) {
    let permuted;
    let values = if t.rotates() && family.architecture() == "llama" {
        permuted = interleaved(&t.values, if t.rows.is_some() { t.cols } else { 1 });
        &permuted
    } else {
        &t.values
    };
    match (blocks && t.rows.is_some(), t.gguf == "token_embd.weight") {
        (false, _) => (0, values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        (true, true) => (8, values.chunks(BLOCK).flat_map(q8_0).collect()),
        (true, false) => (3, values.chunks(BLOCK).flat_map(q4_1).collect()),
    }
}

/// The divisors of Llama 3's rotary frequencies, which converters compute.
fn rope_freqs() -> Tensor {
    let s = &SIZES;
    let (factor, low, high, original) = (8.0, 1.0, 4.0, 32.0);
    let divisor = |i: usize| {
        let wavelength = std::f64::consts::TAU * libm::pow(ROPE_BASE, 2.0 * i as f64 / s.head_dim as f64);
        if wavelength < original / high {
            1.0
        } else if wavelength > original / low {
            factor
        } else {
            let smooth = (original / wavelength - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    let values: Vec<f32> = (0..s.head_dim / 2).map(|i| divisor(i) as f32).collect();
    let gguf = "rope_freqs.weight".to_owned();
    Tensor { hf: String::new(), gguf, rows: None, cols: s.head_dim / 2, values }
}

/// A whole file.
pub(super) fn file(family: Family, tensors: &[Tensor], vocabulary: &VocabularyParts, blocks: bool) -> Vec<u8> {
    let extra = (family == Family::Llama3).then(rope_freqs);
    let tensors: Vec<&Tensor> = tensors.iter().chain(&extra).collect();
    let data: Vec<(u32, Vec<u8>)> = tensors.iter().map(|t| stored(family, t, blocks)).collect();
    let metadata = metadata(family, vocabulary);

    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in &metadata {
        text(&mut out, key);
        value.append(&mut out);
    }
    let mut offset = 0;
    for (t, (dtype, bytes)) in tensors.iter().zip(&data) {
        text(&mut out, &t.gguf);
        let dims: Vec<usize> = [t.cols].into_iter().chain(t.rows).collect();
        out.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|d| out.extend((*d as u64).to_le_bytes()));
        out.extend(dtype.to_le_bytes());
        out.extend((offset as u64).to_le_bytes());
        offset += bytes.len().next_multiple_of(ALIGNMENT);
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    for (_, bytes) in data {
        out.extend(bytes);
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    }
    out
}
