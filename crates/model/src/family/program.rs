//! The forward pass, section by section.

use sworn_isa::{Dtype, Opcode, Operand, Program, Section};

use super::{
    ActivationBits, BlockTable, Config, Formats, Role,
    builder::{Activation, Builder, GROUP, Norm, Shape, Weights, op, words},
    head,
};
use crate::{
    error::{ModelError, Result},
    hyper,
    quantise::{self, FRACTION, PROB_FRACTION, VALUE_FRACTION},
};

/// Positions per step of the running maximum and sum of the attention.
const ROW_BLOCK: u16 = 256;
/// Positions per step of the running mix; fixed by the instruction set.
const MIX_BLOCK: u16 = 16;
/// Most operators of a section that the contracts take.
pub(super) const MAX_OPERATORS: usize = 64;
/// Longest groups of `MAX_ABS`: the next one where the section gets too long.
const GROUPS: [u32; 3] = [GROUP, 2 * GROUP, 4 * GROUP];

const EXP: Operand = Operand::table(0, 0, Dtype::U16);
const COS: Operand = Operand::table(1, 0, Dtype::I16);
const SIN: Operand = Operand::table(2, 0, Dtype::I16);
const NOISE: Operand = Operand::table(3, 0, Dtype::I32);

impl Config {
    /// The forward pass.
    ///
    /// # Errors
    /// The sizes do not pass [`Self::check`], or the program does not pass the instruction set's own check.
    pub fn program(&self, bits: ActivationBits, formats: &Formats) -> Result<Program> {
        self.check()?;
        let block = GROUPS.map(|most| self.block(bits, formats, most));
        let Some(block) = block.into_iter().find(|b| b.ops.len() <= MAX_OPERATORS) else {
            return Err(ModelError::unsupported(
                format!("a block of more than {MAX_OPERATORS} operators"),
                "its widths need too many levels of reduction",
            ));
        };
        let program = Program { sections: [self.embedding(formats), block, self.head(bits, formats)] };
        program.validate(self.positions).map_err(|e| {
            ModelError::unsupported(
                format!("sizes that make no valid program ({e})"),
                "docs/instruction-set.md states the ranges",
            )
        })?;
        Ok(program)
    }

    /// A block's table as an operand.
    ///
    /// Blocks of a configuration without this table read none: the callers ask for those that [`Self::block_tables`] lists.
    fn block_table(&self, table: BlockTable, dtype: Dtype) -> Operand {
        let all = self.block_tables();
        let index = all.iter().position(|t| *t == table).unwrap_or(0);
        Operand::table((self.shared_tables().len() + index) as u32, all.len() as u16, dtype)
    }

    fn block_norm(&self, table: BlockTable) -> Norm {
        let width = match table {
            BlockTable::QueryNorm | BlockTable::KeyNorm => self.hyper.head_dim,
            _ => self.hyper.hidden,
        };
        let floor = quantise::norm_floor(width, self.hyper.epsilon);
        Norm { width, floor, gain: self.block_table(table, Dtype::I16) }
    }

    fn embedding(&self, formats: &Formats) -> Section {
        let c = &self.hyper;
        let mut b = Builder::new(GROUP);
        let columns = self.columns(Role::Embedding) as i32;
        let embed = b.add(
            Opcode::Embed,
            words(c.hidden),
            [c.vocab as i32, 0, columns, formats.of(Role::Embedding) as i32],
            &[Operand::token(0), Operand::weight(0, 0)],
        );
        b.export(embed);
        b.section()
    }

    fn block(&self, bits: ActivationBits, formats: &Formats, most: u32) -> Section {
        let c = &self.hyper;
        let mut b = Builder::new(most);
        let x = Operand::prev(0, Dtype::I32);
        let a = b.norm(x, self.block_norm(BlockTable::AttentionNorm), bits.attention);
        let o = self.attention(&mut b, a, formats);
        let mut y = self.project(&mut b, o, Role::Output, formats);
        if c.post_norms {
            y = b.norm_in_place(op(y), self.block_norm(BlockTable::PostAttentionNorm));
        }
        let x = b.add(Opcode::Add, words(c.hidden), [], &[x, op(y)]);

        let a = b.norm(op(x), self.block_norm(BlockTable::FfnNorm), bits.ffn);
        let g = self.project(&mut b, a, Role::Gate, formats);
        let u = self.project(&mut b, a, Role::Up, formats);
        let gate = match c.activation {
            hyper::Activation::Silu => Opcode::SiluMul,
            hyper::Activation::GeluTanh => Opcode::GeluMul,
        };
        let h = b.add(gate, words(c.ffn), [], &[op(g), op(u), EXP]);
        let h = b.quantise(op(h), c.ffn, bits.down, -FRACTION);
        let mut y = self.project(&mut b, h, Role::Down, formats);
        if c.post_norms {
            y = b.norm_in_place(op(y), self.block_norm(BlockTable::PostFfnNorm));
        }
        let x = b.add(Opcode::Add, words(c.hidden), [], &[op(x), op(y)]);
        b.export(x);
        b.section()
    }

    /// A block's matrix times a vector, plus its bias.
    fn project(&self, b: &mut Builder, a: Activation, role: Role, formats: &Formats) -> u32 {
        let rows = self.sizes(role).0;
        let number = 1 + Role::BLOCK.iter().position(|r| *r == role).unwrap_or(0) as u32;
        let operand = Operand::weight(number, Role::BLOCK.len() as u16);
        let y = b.linear(a, rows, Weights { operand, format: formats.of(role), column: 0, columns: 1 });
        if !self.has_bias(role) {
            return y;
        }
        let bias = self.block_table(BlockTable::Bias(role), Dtype::I32);
        b.add(Opcode::Add, words(rows), [], &[op(y), bias])
    }

    /// From the normed input to the mixed values, quantised.
    fn attention(&self, b: &mut Builder, a: Activation, formats: &Formats) -> Activation {
        let c = &self.hyper;
        let (q_dim, kv_dim, width) = (self.query_width(), self.key_width(), c.head_dim);
        let shared = (c.heads / c.kv_heads) as i32;

        let mut q = self.project(b, a, Role::Query, formats);
        let mut k = self.project(b, a, Role::Key, formats);
        let v = self.project(b, a, Role::Value, formats);
        let mut norms = None;
        if c.head_norms {
            let (q_norm, k_norm) = (self.block_norm(BlockTable::QueryNorm), self.block_norm(BlockTable::KeyNorm));
            let (q_rms, k_rms);
            (q, q_rms) = b.head_norm(q, c.heads, q_norm);
            (k, k_rms) = b.head_norm(k, c.kv_heads, k_norm);
            norms = Some(((q_rms, q_norm), (k_rms, k_norm)));
        }
        let rope = [width as i32, self.positions as i32];
        let q = b.add(Opcode::Rope, words(q_dim), rope, &[op(q), COS, SIN]);
        let k = b.add(Opcode::Rope, words(kv_dim), rope, &[op(k), COS, SIN]);

        let q_max = b.add(Opcode::MaxAbs, words(c.heads), [1, width as i32], &[op(q)]);
        let q8 = b.quant(op(q), q_max, q_dim, 8, width);
        let score = quantise::score_scale(c.query_scalar, c.rope_scaling.magnitude());
        let q_scale = match norms {
            Some(((rms, norm), _)) => b.norm_scale(q_max, rms, c.heads, norm, 8),
            None => {
                let p = [-FRACTION, i32::from(score.m), score.e];
                b.add(Opcode::ScaleQ, words(2 * c.heads), p, &[op(q_max)])
            }
        };
        let k_max = b.add(Opcode::MaxAbs, words(c.kv_heads), [1, width as i32], &[op(k)]);
        let k8 = b.quant(op(k), k_max, kv_dim, 8, width);
        let k_scale = match norms {
            Some((_, (rms, norm))) => b.norm_scale(k_max, rms, c.kv_heads, norm, 8),
            None => b.quant_scale(k_max, c.kv_heads, 8, -FRACTION),
        };
        let fixed = super::builder::vector(kv_dim, Dtype::I16);
        let v16 = b.add(Opcode::ToFixed, fixed, [FRACTION - VALUE_FRACTION], &[op(v)]);
        b.export(k8);
        b.export(k_scale);
        b.export(v16);

        let (k_cache, scale_cache, v_cache) =
            (Operand::cache(0, Dtype::I8), Operand::cache(1, Dtype::I32), Operand::cache(2, Dtype::I16));
        let per_position = |dtype| Shape { outer: c.heads, div: 1, inner: 1, dtype };
        let running = |block: u16, inner| Shape { outer: 1, div: u32::from(block), inner, dtype: Dtype::I32 };
        let mut s = b.add(
            Opcode::Scores,
            per_position(Dtype::I32),
            [width as i32, shared],
            &[Operand::op(q8, Dtype::I8), op(q_scale), k_cache, scale_cache],
        );
        if let Some(cap) = c.score_cap {
            let p = quantise::cap(cap * std::f64::consts::LOG2_E, 13);
            s = b.add(Opcode::SoftCap, per_position(Dtype::I32), p, &[op(s), EXP]);
        }
        if self.has_windows() {
            let window = self.block_table(BlockTable::Window, Dtype::I32);
            s = b.add(Opcode::Window, per_position(Dtype::I32), [], &[op(s), window]);
        }
        let rows = [i32::from(ROW_BLOCK)];
        let m = b.add(Opcode::RowMax, running(ROW_BLOCK, c.heads), rows, &[op(s)]);
        let heads = [c.heads as i32];
        let last = |op: u32| Operand::tail(op, Dtype::I32, ROW_BLOCK);
        let e = b.add(Opcode::Exp, per_position(Dtype::U16), heads, &[op(s), last(m), EXP]);
        let e = Operand::op(e, Dtype::U16);
        let z = b.add(Opcode::RowSum, running(ROW_BLOCK, c.heads), rows, &[e]);
        let p = b.add(Opcode::Prob, per_position(Dtype::U16), heads, &[e, last(z)]);
        let o = b.add(
            Opcode::Mix,
            running(MIX_BLOCK, q_dim),
            [width as i32, shared, i32::from(MIX_BLOCK)],
            &[Operand::op(p, Dtype::U16), v_cache],
        );
        b.quantise(Operand::tail(o, Dtype::I32, MIX_BLOCK), q_dim, 8, -(PROB_FRACTION + VALUE_FRACTION))
    }

    fn head(&self, bits: ActivationBits, formats: &Formats) -> Section {
        let c = &self.hyper;
        let mut b = Builder::new(GROUP);
        let tables = self.shared_tables().len() as u32 + self.block_tables().len() as u32 * c.layers;
        let floor = quantise::norm_floor(c.hidden, c.epsilon);
        let norm = Norm { width: c.hidden, floor, gain: Operand::table(tables, 0, Dtype::I16) };
        let a = b.norm(Operand::prev(0, Dtype::I32), norm, bits.head);
        let weights = if c.tied {
            let format = formats.of(Role::Embedding);
            Weights { operand: Operand::weight(0, 0), format, column: 1, columns: self.columns(Role::Embedding) }
        } else {
            let number = 1 + Role::BLOCK.len() as u32 * c.layers;
            Weights { operand: Operand::weight(number, 0), format: formats.of(Role::Head), column: 0, columns: 1 }
        };
        let mut logits = b.linear(a, c.vocab, weights);
        if let Some(cap) = c.logit_cap {
            logits = b.add(Opcode::SoftCap, words(c.vocab), quantise::cap(cap, FRACTION), &[op(logits), EXP]);
        }
        let token = match self.sampling {
            true => head::sample(&mut b, logits, c.vocab, EXP, NOISE),
            false => head::select(&mut b, logits, c.vocab),
        };
        b.export(token);
        if self.log_probs {
            let ln = Operand::table(self.shared_tables().len() as u32 - 1, 0, Dtype::U16);
            head::log_probs(&mut b, logits, token, c.vocab, EXP, ln);
        }
        b.section()
    }
}
