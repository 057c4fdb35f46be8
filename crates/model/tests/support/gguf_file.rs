//! Writes small GGUF files, whole or broken on purpose.

use sworn_model::synthetic::SyntheticSpec;

/// A metadata value.
#[derive(Clone)]
pub(crate) enum Meta {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    /// type code and payload, as they are
    Raw(u32, Vec<u8>),
}

/// A tensor: dimensions (fastest first), storage type, bytes.
#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dims: Vec<u64>,
    pub(crate) dtype: u32,
    pub(crate) bytes: Vec<u8>,
}

/// A file under construction.
#[derive(Clone)]
pub(crate) struct GgufFile {
    pub(crate) version: u32,
    pub(crate) meta: Vec<(String, Meta)>,
    pub(crate) tensors: Vec<Tensor>,
}

fn text(out: &mut Vec<u8>, s: &str) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s.as_bytes());
}

impl GgufFile {
    pub(crate) fn set(&mut self, key: &str, value: Meta) {
        self.meta.retain(|(k, _)| k != key);
        self.meta.push((key.to_owned(), value));
    }

    pub(crate) fn remove(&mut self, key: &str) {
        self.meta.retain(|(k, _)| k != key);
    }

    pub(crate) fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|t| t.name == name).unwrap()
    }

    /// Where the tensors' bytes begin in [`Self::bytes`].
    pub(crate) fn header_len(&self) -> usize {
        let mut head = GgufFile { tensors: self.tensors.clone(), ..self.clone() };
        head.tensors.iter_mut().for_each(|t| t.bytes.clear());
        head.bytes().len()
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.meta.len() as u64).to_le_bytes());
        for (key, value) in &self.meta {
            text(&mut out, key);
            match value {
                Meta::U32(v) => {
                    out.extend(4u32.to_le_bytes());
                    out.extend(v.to_le_bytes());
                }
                Meta::F32(v) => {
                    out.extend(6u32.to_le_bytes());
                    out.extend(v.to_le_bytes());
                }
                Meta::Bool(v) => {
                    out.extend(7u32.to_le_bytes());
                    out.push(u8::from(*v));
                }
                Meta::Text(v) => {
                    out.extend(8u32.to_le_bytes());
                    text(&mut out, v);
                }
                Meta::Texts(v) => {
                    out.extend([9u32, 8].map(u32::to_le_bytes).concat());
                    out.extend((v.len() as u64).to_le_bytes());
                    v.iter().for_each(|s| text(&mut out, s));
                }
                Meta::I32s(v) => {
                    out.extend([9u32, 5].map(u32::to_le_bytes).concat());
                    out.extend((v.len() as u64).to_le_bytes());
                    v.iter().for_each(|i| out.extend(i.to_le_bytes()));
                }
                Meta::F32s(v) => {
                    out.extend([9u32, 6].map(u32::to_le_bytes).concat());
                    out.extend((v.len() as u64).to_le_bytes());
                    v.iter().for_each(|x| out.extend(x.to_le_bytes()));
                }
                Meta::Raw(ty, bytes) => {
                    out.extend(ty.to_le_bytes());
                    out.extend(bytes);
                }
            }
        }
        let mut offset = 0u64;
        for t in &self.tensors {
            text(&mut out, &t.name);
            out.extend((t.dims.len() as u32).to_le_bytes());
            t.dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(t.dtype.to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset += t.bytes.len().next_multiple_of(32) as u64;
        }
        out.resize(out.len().next_multiple_of(32), 0);
        for t in &self.tensors {
            out.extend(&t.bytes);
            out.resize(out.len().next_multiple_of(32), 0);
        }
        out
    }
}

/// Small pseudo-random floats.
pub(crate) fn floats(seed: u32, n: usize) -> Vec<f32> {
    let mut s = seed.wrapping_mul(2_654_435_761) | 1;
    (0..n)
        .map(|_| {
            s ^= s << 13;
            s ^= s >> 17;
            s ^= s << 5;
            (s >> 8) as f32 / 8_388_608.0 - 1.0
        })
        .collect()
}

fn f32_bytes(v: &[f32]) -> Vec<u8> {
    v.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// A whole, valid, tiny Llama with a byte-level tokenizer: two blocks, width 32, 2 + 1 heads of 16, untied head.
pub(crate) fn tiny() -> GgufFile {
    let (layers, hidden, heads, kv, dim, ffn) = (2u64, 32u64, 2u64, 1u64, 16u64, 64u64);
    let mut tokens: Vec<String> = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(str::to_owned).to_vec();
    // The byte alphabet, from the public tokenizer of a synthetic model.
    let dir = tempfile::tempdir().unwrap();
    let spec = SyntheticSpec { vocab: SyntheticSpec::LEAST_VOCAB + 2, layers: 1, ..SyntheticSpec::default() };
    let model = sworn_model::synthetic(&spec, dir.path().join("m")).unwrap();
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(model.path().join("tokenizer.json")).unwrap()).unwrap();
    let mut vocab: Vec<(u64, String)> =
        json["model"]["vocab"].as_object().unwrap().iter().map(|(t, id)| (id.as_u64().unwrap(), t.clone())).collect();
    vocab.sort();
    tokens.extend(vocab.into_iter().skip(3).map(|(_, t)| t));
    let rows = tokens.len() as u64;
    let kinds = (0..tokens.len()).map(|i| if i < 3 { 3 } else { 1 }).collect();
    let template =
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}";
    let meta = [
        ("general.architecture", Meta::Text("llama".into())),
        ("general.name", Meta::Text("tiny".into())),
        ("llama.block_count", Meta::U32(layers as u32)),
        ("llama.context_length", Meta::U32(128)),
        ("llama.embedding_length", Meta::U32(hidden as u32)),
        ("llama.feed_forward_length", Meta::U32(ffn as u32)),
        ("llama.attention.head_count", Meta::U32(heads as u32)),
        ("llama.attention.head_count_kv", Meta::U32(kv as u32)),
        ("llama.attention.layer_norm_rms_epsilon", Meta::F32(1e-5)),
        ("llama.rope.dimension_count", Meta::U32(dim as u32)),
        ("tokenizer.ggml.model", Meta::Text("gpt2".into())),
        ("tokenizer.ggml.pre", Meta::Text("smollm".into())),
        ("tokenizer.ggml.add_bos_token", Meta::Bool(true)),
        ("tokenizer.ggml.bos_token_id", Meta::U32(1)),
        ("tokenizer.ggml.eos_token_id", Meta::U32(2)),
        ("tokenizer.ggml.tokens", Meta::Texts(tokens)),
        ("tokenizer.ggml.token_type", Meta::I32s(kinds)),
        ("tokenizer.ggml.merges", Meta::Texts(vec!["a a".into(), "a b".into()])),
        ("tokenizer.chat_template", Meta::Text(template.into())),
    ];
    let mut tensors = Vec::new();
    let mut add = |name: String, dims: &[u64]| {
        let n = dims.iter().product::<u64>() as usize;
        let bytes = f32_bytes(&floats(tensors.len() as u32 + 1, n));
        tensors.push(Tensor { name, dims: dims.to_vec(), dtype: 0, bytes });
    };
    add("token_embd.weight".into(), &[hidden, rows]);
    for l in 0..layers {
        let mut block = |n: &str, dims: &[u64]| add(format!("blk.{l}.{n}.weight"), dims);
        block("attn_norm", &[hidden]);
        block("attn_q", &[hidden, heads * dim]);
        block("attn_k", &[hidden, kv * dim]);
        block("attn_v", &[hidden, kv * dim]);
        block("attn_output", &[heads * dim, hidden]);
        block("ffn_norm", &[hidden]);
        block("ffn_gate", &[hidden, ffn]);
        block("ffn_up", &[hidden, ffn]);
        block("ffn_down", &[ffn, hidden]);
    }
    add("output_norm.weight".into(), &[hidden]);
    add("output.weight".into(), &[hidden, rows]);
    GgufFile { version: 3, meta: meta.map(|(k, v)| (k.to_owned(), v)).to_vec(), tensors }
}

/// [`tiny`] with a vocabulary of the SentencePiece kind: special tokens, byte tokens, a space and a letter.
pub(crate) fn tiny_pieces() -> GgufFile {
    let mut file = tiny();
    let special = ["<unk>", "<s>", "</s>"].map(str::to_owned);
    let bytes = (0..=255u8).map(|b| format!("<0x{b:02X}>"));
    let tokens: Vec<String> = special.into_iter().chain(bytes).chain(["▁", "a"].map(str::to_owned)).collect();
    let kinds =
        (0..tokens.len()).map(|id| [2, 3, 3].get(id).copied().unwrap_or(if id < 259 { 6 } else { 1 })).collect();
    file.set("tokenizer.ggml.model", Meta::Text("llama".into()));
    file.set("tokenizer.ggml.scores", Meta::F32s((0..tokens.len()).map(|id| -(id as f32)).collect()));
    file.set("tokenizer.ggml.token_type", Meta::I32s(kinds));
    file.set("tokenizer.ggml.tokens", Meta::Texts(tokens));
    for key in ["merges", "pre", "add_bos_token"] {
        file.remove(&format!("tokenizer.ggml.{key}"));
    }
    let template = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} {% endfor %}";
    file.set("tokenizer.chat_template", Meta::Text(template.into()));
    file
}
