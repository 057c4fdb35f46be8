//! GGUF files: good, damaged, hostile, unsupported.

mod support;

use std::fs;

use proptest::prelude::*;
use support::gguf_file::{GgufFile, Meta, Tensor, floats, tiny, tiny_pieces};
use sworn_model::{Gguf, ImportOptions, Message, Model, ModelError, import_gguf};

fn import(file: &GgufFile) -> Result<(tempfile::TempDir, Model), ModelError> {
    import_bytes(&file.bytes())
}

fn import_bytes(bytes: &[u8]) -> Result<(tempfile::TempDir, Model), ModelError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    fs::write(&path, bytes).unwrap();
    let result = import_gguf(&path, dir.path().join("out"), &ImportOptions::default(), &mut |_| {});
    let left = fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, 1 + usize::from(result.is_ok()), "a refused import leaves nothing behind");
    result.map(|m| (dir, m))
}

fn refused(file: &GgufFile, word: &str) {
    let e = import(file).map(|_| ()).expect_err(word).to_string();
    assert!(e.contains(word), "{word:?} is not in: {e}");
}

#[test]
fn a_whole_file_is_imported() {
    let file = tiny();
    let (_a, a) = import(&file).unwrap();
    let (_b, b) = import(&file).unwrap();
    assert_eq!(a.id(), b.id());
    assert_eq!(a.verify(&mut |_| {}).unwrap(), a.id());
    assert_eq!((a.layers(), a.manifest().max_positions), (2, 128));
    assert_eq!(a.encode_text("a").unwrap().len(), 2, "begins with the bos token");
    let capped = {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        fs::write(&path, file.bytes()).unwrap();
        let options = ImportOptions { max_positions: Some(50), ..ImportOptions::default() };
        import_gguf(&path, dir.path().join("o"), &options, &mut |_| {}).unwrap().manifest().clone()
    };
    assert_eq!(capped.max_positions, 50);
    let two = GgufFile { version: 2, ..file };
    assert_eq!(import(&two).unwrap().1.id(), a.id(), "the container's version is not part of the model");
}

#[test]
fn a_file_with_pieces_for_tokens_is_imported() {
    let (_dir, model) = import(&tiny_pieces()).unwrap();
    let (space, a) = (259, 260);
    assert_eq!(model.encode_text("a a").unwrap(), [1, space, a, space, a], "such files begin with the bos token");
    assert_eq!(model.manifest().stop_tokens, [2]);
    assert_eq!(model.description().special_tokens.unknown, Some(0), "by its kind");
    let prompt = model.encode_chat(&[Message::new("user", "é")]).unwrap();
    assert_eq!(prompt[..3], [1, space, 3 + u32::from(b'[')], "the template writes its bos token itself");
    let tokenizer = model.tokenizer().unwrap();
    assert_eq!(tokenizer.decode(&prompt, false), "[user] é ");

    let mut bare = tiny_pieces();
    bare.set("tokenizer.ggml.add_space_prefix", Meta::Bool(false));
    bare.set("tokenizer.ggml.add_bos_token", Meta::Bool(false));
    assert_eq!(import(&bare).unwrap().1.encode_text("a a").unwrap(), [a, space, a]);
    bare.remove("tokenizer.ggml.scores");
    refused(&bare, "tokenizer.ggml.scores is missing");
    bare.set("tokenizer.ggml.scores", Meta::F32s(vec![0.0; 3]));
    refused(&bare, "3 scores");
    bare.set("tokenizer.ggml.scores", Meta::Texts(vec![]));
    refused(&bare, "expected a list of numbers");
}

#[test]
fn generation_stops_where_a_turn_ends() {
    let mut file = tiny();
    file.set("tokenizer.ggml.eos_token_id", Meta::U32(0));
    // The other special tokens are <|im_start|> and <|im_end|>.
    assert_eq!(import(&file).unwrap().1.manifest().stop_tokens, [0, 2]);
}

#[test]
fn a_row_that_would_overflow_narrows_the_activations() {
    // ‖row‖₁ of a constant row is 127·K: 127·608 > 65,538, the limit for 16 bits.
    let mut file = tiny();
    file.set("llama.feed_forward_length", Meta::U32(608));
    for l in 0..2 {
        for (n, dims) in [("ffn_gate", [32, 608]), ("ffn_up", [32, 608]), ("ffn_down", [608, 32])] {
            let t = file.tensor(&format!("blk.{l}.{n}.weight"));
            t.dims = dims.to_vec();
            t.bytes = floats(7, 32 * 608).iter().flat_map(|v| v.to_le_bytes()).collect();
        }
    }
    assert_eq!(import(&file).unwrap().1.description().activation_bits.down, 16);
    file.tensor("blk.1.ffn_down.weight").bytes = [0.5f32; 32 * 608].iter().flat_map(|v| v.to_le_bytes()).collect();
    let (_dir, model) = import(&file).unwrap();
    let bits = model.description().activation_bits;
    assert_eq!((bits.down, bits.ffn, bits.attention, bits.head), (15, 16, 16, 16));
}

#[test]
fn every_storage_type_gives_its_numbers() {
    let half = |x: f32| half::f16::from_f32(x).to_le_bytes();
    let nibbles: Vec<u8> = (0..16u8).map(|i| i | (15 - i) << 4).collect();
    let whole: Vec<f32> = (0..32).map(|i| i as f32 * 0.25 - 4.0).collect();
    let q8: Vec<i8> = (0..32).map(|i: i16| (i * 8 - 127) as i8).collect();
    let cases: Vec<(u32, Vec<u8>, Vec<f32>)> = vec![
        (0, whole.iter().flat_map(|x| x.to_le_bytes()).collect(), whole.clone()),
        (1, whole.iter().flat_map(|x| half(*x)).collect(), whole.clone()),
        (30, whole.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect(), whole.clone()),
        (
            8,
            half(0.5).into_iter().chain(q8.iter().map(|q| *q as u8)).collect(),
            q8.iter().map(|q| f32::from(*q) * 0.5).collect(),
        ),
        (
            2,
            half(0.5).into_iter().chain(nibbles.clone()).collect(),
            (0..16).chain((0..16).rev()).map(|q| (q - 8) as f32 * 0.5).collect(),
        ),
        (
            3,
            half(0.5).into_iter().chain(half(-1.25)).chain(nibbles).collect(),
            (0..16).chain((0..16).rev()).map(|q| q as f32 * 0.5 - 1.25).collect(),
        ),
    ];
    for (dtype, bytes, want) in cases {
        let t = Tensor { name: "t".into(), dims: vec![32, 2], dtype, bytes: [bytes.clone(), bytes].concat() };
        let file = GgufFile { version: 3, meta: vec![], tensors: vec![t] };
        let gguf = Gguf::from_bytes(file.bytes()).unwrap();
        let mut row = vec![0.0; 32];
        for r in 0..2 {
            gguf.read_row(gguf.tensor("t").unwrap(), r, &mut row);
            assert_eq!(row, want, "type {dtype}");
        }
    }
}

#[test]
fn unsupported_files_say_what_and_what_instead() {
    let whole = tiny();
    let with = |key: &str, value: Meta| {
        let mut f = whole.clone();
        f.set(key, value);
        f
    };
    let text = |s: &str| Meta::Text(s.to_owned());
    refused(&with("general.architecture", text("phi3")), "supported are llama");
    refused(&with("tokenizer.ggml.model", text("bert")), "byte-level BPE");
    refused(&with("tokenizer.ggml.pre", text("bloom")), "smollm, llama-bpe");
    refused(&with("llama.expert_count", Meta::U32(8)), "dense model");
    refused(&with("llama.rope.dimension_count", Meta::U32(8)), "whole heads");
    refused(&with("llama.rope.scaling.type", text("longrope")), "rope_freqs.weight");
    refused(&with("llama.attention.head_count_kv", Meta::U32(3)), "key/value heads");
    refused(&with("llama.attention.value_length", Meta::U32(8)), "value heads");
    refused(&with("tokenizer.ggml.eos_token_id", Meta::U32(99_999)), "outside of the vocabulary");
    refused(&with("tokenizer.chat_template", text("{% if %}")), "chat template");
    refused(&with("tokenizer.chat_template", text("{{ raise_exception('no') }}")), "chat template");
    refused(&with("tokenizer.chat_template", text("always the same")), "drops the user's message");
    refused(&with("tokenizer.ggml.merges", Meta::Texts(vec!["x yz".into()])), "does not exist");
    refused(&with("llama.vocab_size", Meta::U32(5)), "embedding has");
    refused(&with("llama.block_count", Meta::U32(3)), "blk.2.attn_q.weight is missing");
    refused(&with("llama.block_count", text("2")), "expected an unsigned integer");
    refused(&with("llama.feed_forward_length", Meta::U32(65)), "the metadata implies 65 of 32");
    refused(&with("llama.embedding_length", Meta::U32(33)), "do not divide");
    refused(&with("general.alignment", Meta::U32(7)), "power of two");
    refused(&GgufFile { version: 1, ..whole.clone() }, "version 1");
    refused(&GgufFile { version: 4, ..whole.clone() }, "versions 2 and 3");
    refused(&GgufFile { version: 3u32.swap_bytes(), ..whole.clone() }, "big-endian");
    for (code, name) in [(15, "Q8_K"), (20, "an IQ type"), (28, "F64"), (39, "MXFP4"), (999, "unknown")] {
        let mut f = whole.clone();
        f.tensor("blk.0.attn_q.weight").dtype = code;
        refused(&f, name);
        refused(&f, "F32, F16, BF16, Q8_0, Q4_0, Q4_1");
    }
    let mut f = whole.clone();
    f.tensors.push(Tensor { name: "blk.0.attn_q.lora_a".into(), dims: vec![32], dtype: 0, bytes: vec![0; 128] });
    refused(&f, "blk.0.attn_q.lora_a");
    let mut f = whole.clone();
    f.tensor("blk.1.ffn_up.weight").bytes[4..8].copy_from_slice(&f32::NAN.to_le_bytes());
    refused(&f, "not finite");
    for key in
        ["general.architecture", "llama.block_count", "tokenizer.ggml.tokens", "llama.attention.layer_norm_rms_epsilon"]
    {
        let mut f = whole.clone();
        f.remove(key);
        refused(&f, key);
    }
}

#[test]
fn files_that_are_no_gguf() {
    for (bytes, word) in [(&b""[..], "empty"), (b"GG", "truncated"), (b"PK\x03\x04 and more", "begins with")] {
        let e = import_bytes(bytes).map(|_| ()).unwrap_err().to_string();
        assert!(e.contains(word), "{e}");
    }
    let dir = tempfile::tempdir().unwrap();
    let e = Gguf::open(dir.path()).map(|_| ()).unwrap_err().to_string();
    assert!(e.contains("not a file"), "{e}");
    let e = Gguf::open(dir.path().join("nothing.gguf")).map(|_| ()).unwrap_err().to_string();
    assert!(e.contains("check the path"), "{e}");
}

#[test]
fn counts_beyond_the_file_allocate_nothing() {
    let header = |tensors: u64, kv: u64, rest: &[u8]| {
        let mut b = b"GGUF\x03\0\0\0".to_vec();
        b.extend(tensors.to_le_bytes());
        b.extend(kv.to_le_bytes());
        b.extend(rest);
        b
    };
    let key = |ty: &[u8]| [&1u64.to_le_bytes()[..], b"k", ty].concat();
    let list =
        |element: u32, n: u64| key(&[&9u32.to_le_bytes()[..], &element.to_le_bytes(), &n.to_le_bytes()].concat());
    for bytes in [
        header(u64::MAX, 0, b""),
        header(0, u64::MAX, b""),
        header(1 << 40, 1 << 40, &[0; 64]),
        header(0, 1, &list(8, u64::MAX)),
        header(0, 1, &list(0, u64::MAX)),
        header(0, 1, &list(12, 1 << 60)),
        header(0, 1, &list(9, 5)),
        header(0, 1, &key(&[&8u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat())),
        header(0, 1, &[&u64::MAX.to_le_bytes()[..], &[0; 16]].concat()),
        header(1, 0, &[&1u64.to_le_bytes()[..], b"t", &4u32.to_le_bytes(), &[0xff; 60]].concat()),
        header(1, 0, &[&1u64.to_le_bytes()[..], b"t", &u32::MAX.to_le_bytes(), &[0; 60]].concat()),
    ] {
        Gguf::from_bytes(bytes).map(|_| ()).unwrap_err();
    }
    let mut f = tiny();
    f.set("x", Meta::Raw(13, vec![0; 8]));
    refused(&f, "does not exist");
    f.set("x", Meta::Raw(7, vec![2]));
    refused(&f, "truth value");
    f.set("x", Meta::Raw(8, [&2u64.to_le_bytes()[..], &[0xff, 0xfe]].concat()));
    refused(&f, "UTF-8");
}

#[test]
fn every_cut_is_noticed() {
    let file = tiny();
    let (bytes, header) = (file.bytes(), file.header_len());
    for n in (0..header).chain((header..bytes.len()).step_by(997)) {
        let e = Gguf::from_bytes(bytes[..n].to_vec()).map(|_| ()).expect_err("a truncated file");
        assert!(matches!(e, ModelError::Gguf(_)), "{e}");
    }
}

#[test]
fn every_flipped_header_byte_is_read_or_refused() {
    let file = tiny();
    let (bytes, header) = (file.bytes(), file.header_len());
    for at in 0..header {
        for flip in [1, 0x80, 0xff] {
            let mut bad = bytes.clone();
            bad[at] ^= flip;
            let _ = Gguf::from_bytes(bad);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn damaged_files_are_imported_whole_or_refused(flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4), cut in proptest::option::of(any::<prop::sample::Index>())) {
        thread_local!(static GOOD: (Vec<u8>, usize) = { let f = tiny(); (f.bytes(), f.header_len()) });
        let (mut bytes, header) = GOOD.with(Clone::clone);
        for (at, value) in flips { bytes[at.index(header)] = value; }
        if let Some(cut) = cut { bytes.truncate(cut.index(bytes.len())); }
        if let Ok((_dir, model)) = import_bytes(&bytes) {
            prop_assert_eq!(model.verify(&mut |_| {}).unwrap(), model.id());
        }
    }

    #[test]
    fn garbage_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Gguf::from_bytes(bytes.clone()).is_err());
        let _ = Gguf::from_bytes([&b"GGUF\x03\0\0\0"[..], &bytes].concat());
    }
}
