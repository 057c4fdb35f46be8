//! The Llama family: its dimensions, and its forward pass as a program of the instruction set.

use serde::{Deserialize, Serialize};
use sworn_isa::{Descriptor, Dtype, MAX_POSITIONS, Opcode, Operand, Program, Section};

use crate::{
    error::{ModelError, Result},
    gguf::{Gguf, Value},
    quantise::{self, FRACTION, PROB_FRACTION, VALUE_FRACTION},
};

/// Longest vector that one `MAX_ABS` or `SUM_SQ` group reduces: bounds what one on-chain step has to read.
const GROUP: u32 = 2048;
/// Positions per step of the running maximum and sum of the attention.
const ROW_BLOCK: u16 = 256;
/// Positions per step of the running mix; fixed by the instruction set.
const MIX_BLOCK: u16 = 16;

/// Weight matrices of a block, in the order of their numbers.
pub const BLOCK_WEIGHTS: [&str; 7] = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];
/// Gain tables of a block, in the order of their numbers.
pub const BLOCK_GAINS: [&str; 2] = ["attn_norm", "ffn_norm"];
/// Tables shared by all layers: exponential, cosine, sine.
pub const SHARED_TABLES: u32 = 3;

/// Sizes of a Llama-class model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LlamaConfig {
    /// Transformer blocks.
    pub layers: u16,
    /// Width of the residual stream.
    pub hidden: u32,
    /// Query heads.
    pub heads: u32,
    /// Key/value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: u32,
    /// Width of a head.
    pub head_dim: u32,
    /// Width of the feed-forward part.
    pub ffn: u32,
    /// Vocabulary: rows of the embedding.
    pub vocab: u32,
    /// Most positions of a job.
    pub positions: u32,
    /// Base of the rotary embedding.
    pub rope_base: f64,
    /// ε of the norms.
    pub epsilon: f64,
    /// Whether the head uses the embedding's matrix.
    pub tied: bool,
}

/// Widths of the quantised activations, one per place where weights of every block are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActivationBits {
    /// Input of q, k and v.
    pub attention: u8,
    /// Input of gate and up.
    pub ffn: u8,
    /// Input of down.
    pub down: u8,
    /// Input of the head.
    pub head: u8,
}

impl Default for ActivationBits {
    fn default() -> Self {
        ActivationBits { attention: 16, ffn: 16, down: 16, head: 16 }
    }
}

impl LlamaConfig {
    /// Reads the dimensions from a file's metadata and checks that the whole model is what this importer computes: same
    /// architecture, no experts, no biases, no rotary scaling that it does not know.
    ///
    /// # Errors
    /// Names what is missing, contradictory or not supported.
    pub fn from_gguf(gguf: &Gguf, max_positions: Option<u32>) -> Result<Self> {
        let arch = gguf.string("general.architecture")?.ok_or_else(|| missing("general.architecture"))?;
        if arch != "llama" {
            return Err(ModelError::unsupported(
                format!("architecture {arch:?}"),
                "supported is \"llama\" (Llama 2/3, SmolLM, SmolLM2, TinyLlama and others of that shape)",
            ));
        }
        let opt = |key: &str| -> Result<Option<u32>> {
            let key = format!("llama.{key}");
            let v = gguf.uint(&key)?;
            v.map(|v| u32::try_from(v).map_err(|_| ModelError::Gguf(format!("{key} = {v} is out of range"))))
                .transpose()
        };
        let need = |key: &str| opt(key)?.ok_or_else(|| missing(&format!("llama.{key}")));
        let embedding = gguf.tensor("token_embd.weight")?;
        let hidden = need("embedding_length")?;
        let heads = need("attention.head_count")?;
        let layers = need("block_count")?;
        let head_dim = match opt("attention.key_length")? {
            Some(d) => d,
            None if heads > 0 && hidden % heads == 0 => hidden / heads,
            None => return Err(ModelError::Gguf(format!("{heads} heads do not divide a width of {hidden}"))),
        };
        let context = need("context_length")?;
        let vocab =
            u32::try_from(embedding.rows).map_err(|_| ModelError::Gguf("the vocabulary is out of range".into()))?;
        if let Some(v) = opt("vocab_size")?.filter(|v| *v != vocab) {
            return Err(ModelError::Gguf(format!("llama.vocab_size is {v}, but the embedding has {vocab} rows")));
        }
        let config = LlamaConfig {
            layers: u16::try_from(layers).map_err(|_| ModelError::Gguf(format!("{layers} blocks")))?,
            hidden,
            heads,
            kv_heads: opt("attention.head_count_kv")?.unwrap_or(heads),
            head_dim,
            ffn: need("feed_forward_length")?,
            vocab,
            positions: context.min(max_positions.unwrap_or(MAX_POSITIONS)).min(MAX_POSITIONS),
            rope_base: gguf.float("llama.rope.freq_base")?.unwrap_or(10_000.0),
            epsilon: gguf
                .float("llama.attention.layer_norm_rms_epsilon")?
                .ok_or_else(|| missing("llama.attention.layer_norm_rms_epsilon"))?,
            tied: !gguf.tensors().contains_key("output.weight"),
        };
        if opt("expert_count")?.is_some_and(|n| n > 0) {
            return Err(ModelError::unsupported("a mixture of experts", "take a dense model"));
        }
        if opt("attention.value_length")?.is_some_and(|n| n != head_dim) {
            return Err(ModelError::unsupported(
                "value heads of another width than key heads",
                "take a model where they agree",
            ));
        }
        if opt("rope.dimension_count")?.is_some_and(|n| n != head_dim) {
            return Err(ModelError::unsupported(
                "a rotary embedding of part of each head",
                "take a model that rotates whole heads",
            ));
        }
        match gguf.metadata().get("llama.rope.scaling.type") {
            None => {}
            Some(Value::String(s)) if s == "none" => {}
            Some(v) => {
                return Err(ModelError::unsupported(
                    format!("rotary scaling {v:?}"),
                    "models without scaling, or with per-pair factors in rope_freqs.weight, are supported",
                ));
            }
        }
        config.check()?;
        config.check_tensors(gguf)?;
        Ok(config)
    }

    /// Checks the sizes against the ranges of the instruction set.
    ///
    /// # Errors
    /// Names the size that is out of range.
    pub fn check(&self) -> Result<()> {
        let bad = |what: String| {
            Err(ModelError::unsupported(what, "the instruction set's ranges are in docs/instruction-set.md"))
        };
        let wide = [("hidden width", self.hidden), ("feed-forward width", self.ffn), ("vocabulary", self.vocab)];
        if let Some((name, n)) = wide.into_iter().find(|(_, n)| *n == 0 || *n > 1 << 20) {
            return bad(format!("{name} {n}"));
        }
        if self.layers == 0 || self.layers > 4096 {
            return bad(format!("{} blocks", self.layers));
        }
        if self.kv_heads == 0 || self.heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            return bad(format!("{} query heads over {} key/value heads", self.heads, self.kv_heads));
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(2) || self.head_dim > 256 || self.heads > 1 << 12 {
            return bad(format!(
                "{} heads of width {} (even widths up to 256 are supported)",
                self.heads, self.head_dim
            ));
        }
        let reduced = [self.hidden, self.heads * self.head_dim, self.ffn];
        if let Some(n) = reduced.into_iter().find(|n| !reducible(*n)) {
            return bad(format!("a width of {n}, which does not factor into groups of at most {GROUP}"));
        }
        if self.positions == 0 || self.positions > MAX_POSITIONS {
            return bad(format!("a context of {} positions", self.positions));
        }
        if !(self.rope_base.is_finite() && self.rope_base >= 1.0) {
            return bad(format!("rotary base {}", self.rope_base));
        }
        if !(self.epsilon.is_finite() && self.epsilon > 0.0 && self.epsilon < 1.0) {
            return bad(format!("norm ε {}", self.epsilon));
        }
        Ok(())
    }

    /// Name, rows and columns of every matrix, in the order of their numbers.
    pub fn matrices(&self) -> Vec<(String, u32, u32)> {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let block = [
            (q, self.hidden),
            (kv, self.hidden),
            (kv, self.hidden),
            (self.hidden, q),
            (self.ffn, self.hidden),
            (self.ffn, self.hidden),
            (self.hidden, self.ffn),
        ];
        let mut all = vec![("token_embd.weight".to_owned(), self.vocab, self.hidden)];
        for l in 0..self.layers {
            let named = BLOCK_WEIGHTS.iter().zip(block);
            all.extend(named.map(|(n, (r, k))| (format!("blk.{l}.{n}.weight"), r, k)));
        }
        if !self.tied {
            all.push(("output.weight".to_owned(), self.vocab, self.hidden));
        }
        all
    }

    /// Names of the gain vectors, in the order of their tables.
    pub fn gains(&self) -> Vec<String> {
        let mut all = Vec::new();
        for l in 0..self.layers {
            all.extend(BLOCK_GAINS.map(|n| format!("blk.{l}.{n}.weight")));
        }
        all.push("output_norm.weight".to_owned());
        all
    }

    /// Every tensor has its shape, and none is left over: a leftover would mean that the model computes something else.
    fn check_tensors(&self, gguf: &Gguf) -> Result<()> {
        let mut known = vec!["rope_freqs.weight".to_owned()];
        let vectors = self.gains().into_iter().map(|n| (n, 1, self.hidden));
        for (name, rows, cols) in self.matrices().into_iter().chain(vectors) {
            let t = gguf.tensor(&name)?;
            if (t.rows, t.cols) != (rows as usize, cols as usize) {
                return Err(ModelError::Gguf(format!(
                    "tensor {name} has {} rows of {}, the metadata implies {rows} of {cols}",
                    t.rows, t.cols
                )));
            }
            known.push(name);
        }
        known.sort_unstable();
        match gguf.tensors().keys().find(|n| known.binary_search(n).is_err()) {
            None => Ok(()),
            Some(n) => Err(ModelError::unsupported(
                format!("tensor {n} (a plain Llama has none of this name)"),
                "biases, experts and adapters are not supported; merge or remove them when converting",
            )),
        }
    }

    /// Scale pairs per row of the embedding: its own, and the head's where the matrix is shared.
    pub fn embedding_columns(&self) -> u32 {
        1 + u32::from(self.tied)
    }

    /// Number of the head's matrix.
    pub fn head_matrix(&self) -> u32 {
        if self.tied { 0 } else { 1 + BLOCK_WEIGHTS.len() as u32 * u32::from(self.layers) }
    }

    /// The forward pass.
    ///
    /// # Errors
    /// The sizes do not pass [`Self::check`], or the program does not pass the instruction set's own check.
    pub fn program(&self, bits: ActivationBits) -> Result<Program> {
        self.check()?;
        let program = Program { sections: [self.embedding(), self.block(bits), self.head(bits)] };
        program.validate(self.positions).map_err(|e| {
            ModelError::unsupported(
                format!("sizes that make no valid program ({e})"),
                "docs/instruction-set.md states the ranges",
            )
        })?;
        Ok(program)
    }

    fn embedding(&self) -> Section {
        let mut b = Builder::default();
        let embed = b.add(
            Opcode::Embed,
            vector(self.hidden, Dtype::I32),
            [self.vocab as i32, 0, self.embedding_columns() as i32],
            &[Operand::token(0), Operand::weight(0, 0)],
        );
        b.export(embed);
        b.section()
    }

    fn block(&self, bits: ActivationBits) -> Section {
        let c = self;
        let (q_dim, kv_dim) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let shared = (c.heads / c.kv_heads) as i32;
        let width = c.head_dim as i32;
        let weight = |n: u32| Operand::weight(1 + n, BLOCK_WEIGHTS.len() as u16);
        let gain = |n: u32| Operand::table(SHARED_TABLES + n, BLOCK_GAINS.len() as u16, Dtype::I16);
        let exp = Operand::table(0, 0, Dtype::U16);
        let (cos, sin) = (Operand::table(1, 0, Dtype::I16), Operand::table(2, 0, Dtype::I16));
        let i32_op = |k: u32| Operand::op(k, Dtype::I32);
        let mut b = Builder::default();

        let x = Operand::prev(0, Dtype::I32);
        let (a, scale) = b.norm(c, x, gain(0), bits.attention);
        let q = b.linear(a, scale, c.hidden, q_dim, weight(0), 0, 1);
        let k = b.linear(a, scale, c.hidden, kv_dim, weight(1), 0, 1);
        let v = b.linear(a, scale, c.hidden, kv_dim, weight(2), 0, 1);
        let rope = [width, c.positions as i32];
        let q = b.add(Opcode::Rope, vector(q_dim, Dtype::I32), rope, &[i32_op(q), cos, sin]);
        let k = b.add(Opcode::Rope, vector(kv_dim, Dtype::I32), rope, &[i32_op(k), cos, sin]);

        let q_max = b.add(Opcode::MaxAbs, vector(c.heads, Dtype::I32), [1, width], &[i32_op(q)]);
        let q8 = b.quant(i32_op(q), q_max, q_dim, 8, width);
        let score = quantise::score_scale(c.head_dim);
        let q_scale = b.add(
            Opcode::ScaleQ,
            vector(2 * c.heads, Dtype::I32),
            [-FRACTION, i32::from(score.m), score.e],
            &[i32_op(q_max)],
        );
        let k_max = b.add(Opcode::MaxAbs, vector(c.kv_heads, Dtype::I32), [1, width], &[i32_op(k)]);
        let k8 = b.quant(i32_op(k), k_max, kv_dim, 8, width);
        let k_scale = b.quant_scale(k_max, c.kv_heads, 8, -FRACTION);
        let v16 = b.add(Opcode::ToFixed, vector(kv_dim, Dtype::I16), [FRACTION - VALUE_FRACTION], &[i32_op(v)]);
        b.export(k8);
        b.export(k_scale);
        b.export(v16);

        let (k_cache, scale_cache, v_cache) =
            (Operand::cache(0, Dtype::I8), Operand::cache(1, Dtype::I32), Operand::cache(2, Dtype::I16));
        let per_position = |dtype| Shape { outer: c.heads, div: 1, inner: 1, dtype };
        let running = |block: u16, inner| Shape { outer: 1, div: u32::from(block), inner, dtype: Dtype::I32 };
        let s = b.add(
            Opcode::Scores,
            per_position(Dtype::I32),
            [width, shared],
            &[Operand::op(q8, Dtype::I8), i32_op(q_scale), k_cache, scale_cache],
        );
        let rows = [i32::from(ROW_BLOCK)];
        let m = b.add(Opcode::RowMax, running(ROW_BLOCK, c.heads), rows, &[i32_op(s)]);
        let heads = [c.heads as i32];
        let e = b.add(
            Opcode::Exp,
            per_position(Dtype::U16),
            heads,
            &[i32_op(s), Operand::tail(m, Dtype::I32, ROW_BLOCK), exp],
        );
        let e = Operand::op(e, Dtype::U16);
        let z = b.add(Opcode::RowSum, running(ROW_BLOCK, c.heads), rows, &[e]);
        let p = b.add(Opcode::Prob, per_position(Dtype::U16), heads, &[e, Operand::tail(z, Dtype::I32, ROW_BLOCK)]);
        let o = b.add(
            Opcode::Mix,
            running(MIX_BLOCK, q_dim),
            [width, shared, i32::from(MIX_BLOCK)],
            &[Operand::op(p, Dtype::U16), v_cache],
        );
        let o = Operand::tail(o, Dtype::I32, MIX_BLOCK);
        let o_max = b.max_abs(o, q_dim, 1);
        let o8 = b.quant(o, o_max, q_dim, 8, q_dim as i32);
        let o_scale = b.quant_scale(o_max, 1, 8, -(PROB_FRACTION + VALUE_FRACTION));
        let y = b.linear(Operand::op(o8, Dtype::I8), i32_op(o_scale), q_dim, c.hidden, weight(3), 0, 1);
        let x = b.add(Opcode::Add, vector(c.hidden, Dtype::I32), [], &[x, i32_op(y)]);

        let (a, scale) = b.norm(c, i32_op(x), gain(1), bits.ffn);
        let g = b.linear(a, scale, c.hidden, c.ffn, weight(4), 0, 1);
        let u = b.linear(a, scale, c.hidden, c.ffn, weight(5), 0, 1);
        let h = b.add(Opcode::SiluMul, vector(c.ffn, Dtype::I32), [], &[i32_op(g), i32_op(u), exp]);
        let h_max = b.max_abs(i32_op(h), c.ffn, 1);
        let h_q = b.quant(i32_op(h), h_max, c.ffn, bits.down, c.ffn as i32);
        let h_scale = b.quant_scale(h_max, 1, bits.down, -FRACTION);
        let y = b.linear(Operand::op(h_q, quantised(bits.down)), i32_op(h_scale), c.ffn, c.hidden, weight(6), 0, 1);
        let x = b.add(Opcode::Add, vector(c.hidden, Dtype::I32), [], &[i32_op(x), i32_op(y)]);
        b.export(x);
        b.section()
    }

    fn head(&self, bits: ActivationBits) -> Section {
        let c = self;
        let mut b = Builder::default();
        let gain = Operand::table(SHARED_TABLES + BLOCK_GAINS.len() as u32 * u32::from(c.layers), 0, Dtype::I16);
        let (a, scale) = b.norm(c, Operand::prev(0, Dtype::I32), gain, bits.head);
        let (column, columns) = if c.tied { (1, 2) } else { (0, 1) };
        let logits = b.linear(a, scale, c.hidden, c.vocab, Operand::weight(c.head_matrix(), 0), column, columns);
        let token = b.add(
            Opcode::Select,
            vector(1, Dtype::I32),
            [c.vocab as i32],
            &[Operand::op(logits, Dtype::I32), Operand::token(1)],
        );
        b.export(token);
        b.section()
    }
}

fn missing(key: &str) -> ModelError {
    ModelError::Gguf(format!("metadata {key} is missing"))
}

/// Type of a vector quantised to `bits`.
const fn quantised(bits: u8) -> Dtype {
    if bits == 8 { Dtype::I8 } else { Dtype::I16 }
}

struct Shape {
    outer: u32,
    div: u32,
    inner: u32,
    dtype: Dtype,
}

const fn vector(inner: u32, dtype: Dtype) -> Shape {
    Shape { outer: 1, div: 0, inner, dtype }
}

/// The longest group of at most [`GROUP`] elements that divides `n`.
fn group(n: u32) -> u32 {
    (1..=GROUP.min(n)).rev().find(|g| n.is_multiple_of(*g)).unwrap_or(1)
}

/// Whether repeated grouping reduces `n` elements to one.
fn reducible(mut n: u32) -> bool {
    while n > 1 {
        let g = group(n);
        if g == 1 {
            return false;
        }
        n /= g;
    }
    true
}

/// Appends operators to a section; every method gives the number of the operator that holds its result.
#[derive(Default)]
struct Builder {
    ops: Vec<Descriptor>,
}

impl Builder {
    fn add<const P: usize>(&mut self, opcode: Opcode, shape: Shape, p: [i32; P], o: &[Operand]) -> u32 {
        let mut params = [0; 4];
        params[..P].copy_from_slice(&p);
        let mut operands = [Operand::NONE; 4];
        operands[..o.len()].copy_from_slice(o);
        let Shape { outer, div, inner, dtype } = shape;
        self.ops.push(Descriptor { opcode, dtype, export: false, bits: 0, outer, div, inner, params, operands });
        self.ops.len() as u32 - 1
    }

    fn with_bits(&mut self, op: u32, bits: u8) -> u32 {
        self.ops[op as usize].bits = bits;
        op
    }

    fn export(&mut self, op: u32) {
        self.ops[op as usize].export = true;
    }

    fn section(self) -> Section {
        Section { ops: self.ops }
    }

    /// The largest magnitude of a whole vector, in as many levels as its length needs.
    fn max_abs(&mut self, x: Operand, n: u32, floor: i32) -> u32 {
        let (mut x, mut n) = (x, n);
        // `check` made sure that every length is reducible, so this ends.
        loop {
            let g = group(n);
            n /= g;
            let op = self.add(Opcode::MaxAbs, vector(n, Dtype::I32), [floor, g as i32], &[x]);
            if n == 1 {
                return op;
            }
            x = Operand::op(op, Dtype::I32);
        }
    }

    fn quant(&mut self, v: Operand, max: u32, n: u32, bits: u8, g: i32) -> u32 {
        let op = self.add(Opcode::Quant, vector(n, quantised(bits)), [g], &[v, Operand::op(max, Dtype::I32)]);
        self.with_bits(op, bits)
    }

    fn quant_scale(&mut self, max: u32, groups: u32, bits: u8, e: i32) -> u32 {
        let op = self.add(Opcode::QuantScale, vector(2 * groups, Dtype::I32), [e], &[Operand::op(max, Dtype::I32)]);
        self.with_bits(op, bits)
    }

    #[allow(clippy::too_many_arguments, reason = "the operator's own parameters")]
    fn linear(&mut self, a: Operand, scale: Operand, k: u32, r: u32, w: Operand, column: i32, columns: i32) -> u32 {
        self.add(Opcode::Linear, vector(r, Dtype::I32), [k as i32, column, columns], &[a, scale, w])
    }

    /// Root-mean-square norm with gain, quantised: the activation and its scale.
    fn norm(&mut self, c: &LlamaConfig, x: Operand, gain: Operand, bits: u8) -> (Operand, Operand) {
        let n = c.hidden;
        let i32_op = |k: u32| Operand::op(k, Dtype::I32);
        let floor = quantise::norm_floor(n, c.epsilon);
        let max = self.max_abs(x, n, floor);
        let g = group(n);
        let ss = self.add(Opcode::SumSq, vector(2 * (n / g), Dtype::I32), [g as i32], &[x, i32_op(max)]);
        let rms = self.add(Opcode::Rms, vector(2, Dtype::I32), [floor, (n / g) as i32], &[i32_op(ss), i32_op(max)]);
        let v = self.add(Opcode::Gain, vector(n, Dtype::I32), [n as i32], &[x, gain]);
        let v_max = self.max_abs(i32_op(v), n, 1);
        let a = self.quant(i32_op(v), v_max, n, bits, n as i32);
        let scale = self.add(Opcode::NormScale, vector(2, Dtype::I32), [n as i32], &[i32_op(v_max), i32_op(rms), gain]);
        let scale = self.with_bits(scale, bits);
        (Operand::op(a, quantised(bits)), i32_op(scale))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn smol() -> LlamaConfig {
        LlamaConfig {
            layers: 30,
            hidden: 576,
            heads: 9,
            kv_heads: 3,
            head_dim: 64,
            ffn: 1536,
            vocab: 49152,
            positions: 8192,
            rope_base: 100_000.0,
            epsilon: f64::from(1e-5f32),
            tied: true,
        }
    }

    #[test]
    fn the_block_is_the_documented_list() {
        let p = smol().program(ActivationBits::default()).unwrap();
        let names: Vec<_> = p.sections[1].ops.iter().map(|d| d.opcode.name()).collect();
        let norm = ["MAX_ABS", "SUM_SQ", "RMS", "GAIN", "MAX_ABS", "QUANT", "NORM_SCALE"];
        let mut want = norm.to_vec();
        want.extend(["LINEAR", "LINEAR", "LINEAR", "ROPE", "ROPE", "MAX_ABS", "QUANT", "SCALE_Q", "MAX_ABS", "QUANT"]);
        want.extend(["QUANT_SCALE", "TO_FIXED", "SCORES", "ROW_MAX", "EXP", "ROW_SUM", "PROB", "MIX", "MAX_ABS"]);
        want.extend(["QUANT", "QUANT_SCALE", "LINEAR", "ADD"]);
        want.extend(norm);
        want.extend(["LINEAR", "LINEAR", "SILU_MUL", "MAX_ABS", "QUANT", "QUANT_SCALE", "LINEAR", "ADD"]);
        assert_eq!(names, want);
        assert_eq!(p.sections[1].exports(), [16, 17, 18, 44]);
    }

    #[test]
    fn every_shape_that_passes_the_check_is_a_valid_program() {
        let mut n = 0;
        for hidden in [2, 48, 576, 2048, 2050, 4096, 14336] {
            for (heads, kv_heads) in [(1, 1), (6, 2), (9, 3), (32, 8)] {
                for (head_dim, ffn) in [(2, 6), (8, 112), (64, 11008), (256, 2049)] {
                    for tied in [true, false] {
                        let c = LlamaConfig {
                            hidden,
                            heads,
                            kv_heads,
                            head_dim,
                            ffn,
                            tied,
                            vocab: 301,
                            layers: 3,
                            positions: 100,
                            ..smol()
                        };
                        let bits = ActivationBits { attention: 9, ffn: 15, down: 12, head: 16 };
                        c.program(bits).unwrap();
                        n += 1;
                    }
                }
            }
        }
        assert_eq!(n, 7 * 4 * 4 * 2);
    }

    #[test]
    fn long_vectors_are_reduced_in_groups() {
        let c = LlamaConfig { hidden: 4096, ..smol() };
        let p = c.program(ActivationBits::default()).unwrap();
        let groups: Vec<_> = p.sections[2].ops[..2].iter().map(|d| d.params[1]).collect();
        assert_eq!(groups, [2048, 2]);
    }

    #[test]
    fn impossible_sizes_are_errors() {
        for c in [
            LlamaConfig { hidden: 2053, ..smol() },
            LlamaConfig { ffn: 10007, ..smol() },
            LlamaConfig { hidden: 0, ..smol() },
            LlamaConfig { kv_heads: 2, ..smol() },
            LlamaConfig { head_dim: 63, ..smol() },
            LlamaConfig { positions: 8193, ..smol() },
            LlamaConfig { rope_base: f64::NAN, ..smol() },
            LlamaConfig { epsilon: 0.0, ..smol() },
            LlamaConfig { layers: 0, ..smol() },
        ] {
            assert!(c.program(ActivationBits::default()).is_err(), "{c:?}");
        }
    }
}
