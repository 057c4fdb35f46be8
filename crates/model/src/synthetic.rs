//! Small models with random weights: every shape the program allows, in milliseconds, for tests and benchmarks.
//!
//! They take the same way as an import: the same quantiser, the same program, the same directory.

use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    directory::{SourceInfo, SpecialTokens},
    error::{ModelError, Result},
    family::Config,
    hyper::{Activation, Architecture, Hyper, RopeLayout, RopeScaling},
    load::Model,
    pack::{FloatTensors, Parts, pack},
    tokenizer::{PreTokenizer, Vocabulary, byte_characters},
    weights::WeightFormats,
};

/// Sizes and seed of a synthetic model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyntheticSpec {
    /// Transformer blocks.
    pub layers: u16,
    /// Width of the residual stream.
    pub hidden: u32,
    /// Query heads.
    pub heads: u32,
    /// Key/value heads.
    pub kv_heads: u32,
    /// Width of a head, even.
    pub head_dim: u32,
    /// Width of the feed-forward part.
    pub ffn: u32,
    /// Tokens; at least [`SyntheticSpec::LEAST_VOCAB`].
    pub vocab: u32,
    /// Most positions.
    pub context: u32,
    /// Another seed, other weights.
    pub seed: u64,
    /// Whether the head uses the embedding's matrix.
    pub tied: bool,
}

impl Default for SyntheticSpec {
    /// Odd sizes, grouped-query attention, logits over two pages, a few kilobytes.
    fn default() -> Self {
        SyntheticSpec {
            layers: 3,
            hidden: 48,
            heads: 6,
            kv_heads: 2,
            head_dim: 8,
            ffn: 112,
            vocab: 331,
            context: 512,
            seed: 1,
            tied: true,
        }
    }
}

const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
pub(crate) const TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

impl SyntheticSpec {
    /// Special tokens and one token per byte.
    pub const LEAST_VOCAB: u32 = 256 + SPECIAL.len() as u32;
    /// More than letters in pairs and triples can fill.
    const MOST_VOCAB: u32 = Self::LEAST_VOCAB + 26 * 26 + 26 * 26 * 26;

    /// The sizes as an imported model would state them.
    pub fn config(&self) -> Config {
        let hyper = Hyper {
            architecture: Architecture::Llama,
            layers: self.layers.into(),
            hidden: self.hidden,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            ffn: self.ffn,
            vocab: self.vocab,
            context: self.context,
            epsilon: f64::from(1e-5f32),
            tied: self.tied,
            rope_base: 10_000.0,
            rope_scaling: RopeScaling::None,
            rope_layout: RopeLayout::Interleaved,
            qkv_bias: false,
            output_bias: false,
            ffn_bias: false,
            head_norms: false,
            post_norms: false,
            sliding_window: None,
            query_scalar: self.head_dim.into(),
            score_cap: None,
            logit_cap: None,
            embedding_scale: 1.0,
            activation: Activation::Silu,
        };
        Config { log_probs: crate::family::can_log_probs(self.vocab), hyper, positions: self.context, sampling: false }
    }

    /// Letters in pairs, then in triples, as merges.
    pub(crate) fn vocabulary(&self) -> VocabularyParts {
        let mut tokens: Vec<String> = SPECIAL.map(str::to_owned).to_vec();
        let mut kinds = vec![3; tokens.len()];
        tokens.extend(byte_characters().map(String::from));
        let letter = |i: u32| char::from(b'a' + (i % 26) as u8);
        let mut merges = Vec::new();
        for i in 0..self.vocab - Self::LEAST_VOCAB {
            let (a, b) = if i < 26 * 26 {
                (letter(i / 26).to_string(), letter(i))
            } else {
                let j = i - 26 * 26;
                (format!("{}{}", letter(j / 676), letter(j / 26)), letter(j))
            };
            merges.push(format!("{a} {b}"));
            tokens.push(format!("{a}{b}"));
        }
        kinds.resize(tokens.len(), 1);
        VocabularyParts { tokens, kinds, merges }
    }
}

/// Tokens by id, their types and the merges, as GGUF keeps them.
pub(crate) struct VocabularyParts {
    pub(crate) tokens: Vec<String>,
    pub(crate) kinds: Vec<i64>,
    pub(crate) merges: Vec<String>,
}

impl VocabularyParts {
    /// The `tokenizer.json`.
    pub(crate) fn to_json(&self) -> Result<Vec<u8>> {
        let VocabularyParts { tokens, kinds, merges } = self;
        Vocabulary { tokens, kinds, merges, pre: PreTokenizer::SmolLm, unknown: Some(0) }.to_json()
    }
}

/// Writes a synthetic model to `out` and loads it. The same specification gives the same bytes and the same id.
///
/// # Errors
/// Sizes outside of what the instruction set allows, or a disk that refuses.
pub fn synthetic(spec: &SyntheticSpec, out: impl AsRef<Path>) -> Result<Model> {
    if !(SyntheticSpec::LEAST_VOCAB..=SyntheticSpec::MOST_VOCAB).contains(&spec.vocab) {
        return Err(ModelError::Argument(format!(
            "a synthetic vocabulary has {} to {} tokens, not {}",
            SyntheticSpec::LEAST_VOCAB,
            SyntheticSpec::MOST_VOCAB,
            spec.vocab
        )));
    }
    let config = spec.config();
    config.check()?;
    let parts = Parts {
        name: format!("synthetic-{}x{}-{}", spec.layers, spec.hidden, spec.seed),
        config,
        weights: WeightFormats::Int8,
        tokenizer: spec.vocabulary().to_json()?,
        chat_template: TEMPLATE.to_owned(),
        stop_tokens: vec![2],
        special_tokens: SpecialTokens { bos: Some(1), eos: Some(2), unknown: Some(0), padding: Some(2) },
        add_bos: false,
        source: SourceInfo {
            format: "synthetic".into(),
            bytes: 0,
            sha256: hex::encode(Sha256::digest(format!("{spec:?}"))),
            license: None,
        },
    };
    pack(out.as_ref(), parts, &RandomTensors { spec }, None, &mut |_| {})?;
    Model::load(out)
}

/// Uniform random weights, each row from its own seed.
struct RandomTensors<'a> {
    spec: &'a SyntheticSpec,
}

impl RandomTensors<'_> {
    /// Standard deviation of a tensor's elements times √(elements per row).
    ///
    /// Blocks add more to the residual stream than the embedding does: with a tied head the model would otherwise repeat its
    /// last token for ever.
    fn gain(name: &str) -> f32 {
        match name.rsplit('.').nth(1).unwrap_or(name) {
            "attn_q" | "attn_k" => 1.6,
            "attn_v" => 1.0,
            "attn_output" => 3.0,
            "ffn_gate" | "ffn_up" => 1.5,
            "ffn_down" => 3.0,
            _ => 1.0,
        }
    }

    fn fill(&self, name: &str, row: u32, deviation: f32, out: &mut [f32]) {
        let mut state = self.spec.seed ^ 0x9e37_79b9_7f4a_7c15;
        for b in name.bytes().chain(row.to_be_bytes()) {
            state = mix(state ^ u64::from(b));
        }
        fill(state, deviation, out);
    }
}

/// Uniform numbers of this standard deviation around zero, of a seed and a name.
pub(crate) fn random(seed: u64, name: &str, deviation: f32, out: &mut [f32]) {
    let state = name.bytes().fold(mix(seed), |state, b| mix(state ^ u64::from(b)));
    fill(state, deviation, out);
}

fn fill(mut state: u64, deviation: f32, out: &mut [f32]) {
    let width = deviation * 3f32.sqrt();
    for o in out {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        // 24 random bits are exactly a single-precision number.
        let unit = (mix(state) >> 40) as f32 / 8_388_608.0 - 1.0;
        *o = unit * width;
    }
}

/// SplitMix64's finaliser.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl FloatTensors for RandomTensors<'_> {
    fn row(&self, name: &str, row: u32, out: &mut [f32]) -> Result<()> {
        let deviation = if name == "token_embd.weight" { 0.3 } else { Self::gain(name) / (out.len() as f32).sqrt() };
        self.fill(name, row, deviation, out);
        Ok(())
    }

    fn vector(&self, name: &str, n: u32) -> Result<Vec<f32>> {
        let mut v = vec![0.0; n as usize];
        self.fill(name, 0, 0.3, &mut v);
        // Gains around one; one in sixteen is negative, as in real models.
        for (i, g) in v.iter_mut().enumerate() {
            *g = if i % 16 == 7 { -1.0 - *g } else { 1.0 + *g };
        }
        Ok(v)
    }

    fn rope_divisors(&self, _: u32) -> Result<Option<Vec<f32>>> {
        Ok(None)
    }
}
