//! The targets.

use alloy::primitives::{Address, B256, LogData};
use alloy::sol_types::{SolInterface, SolValue};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sworn_bindings::{
    Deployment, Event, IChallenges, IChannels, IMarket, IModels, INodes, IStepVerifier, ITrials, Revert, Target,
    is_receipt, job_dims, run_params,
};
use sworn_commit::{HeadOpening, HeadRow, Manifest, TraceDims, TraceTree, Tree, sequence, tree};
use sworn_isa::{MAX_POSITIONS, Program};
use sworn_model::{Gguf, ImportOptions, Model, Tokenizer, directory, import};
use sworn_receipts::wire;
use sworn_receipts::{SseReader, wire::Ask};

use crate::files;

/// Longest row that is read: a damaged file may promise any.
const COLUMNS: usize = 1 << 16;

/// A published model in one file.
pub fn gguf(data: &[u8]) {
    let Ok(gguf) = Gguf::from_bytes(data.to_vec()) else { return };
    for tensor in gguf.tensors().values().filter(|t| t.cols <= COLUMNS && t.rows > 0) {
        let mut row = vec![0.0; tensor.cols];
        for at in [0, tensor.rows - 1] {
            gguf.read_row(tensor, at, &mut row);
            let _ = gguf.read_blocks(tensor, at);
        }
    }
}

/// Files of a published model, as [`safetensors`] takes them.
pub const PUBLISHED: [&str; 3] = ["config.json", "tokenizer.json", "model.safetensors"];

/// A published model in a directory.
pub fn safetensors(data: &[u8]) {
    let Ok(dir) = tempfile::tempdir() else { return };
    files::write(data, dir.path(), &PUBLISHED);
    let _ = import(dir.path(), dir.path().join("out"), &ImportOptions::default(), &mut |_| {});
}

/// Files of a model directory, as [`model_directory`] takes them.
pub const IMPORTED: [&str; 6] = [
    directory::MANIFEST,
    directory::PROGRAM,
    directory::INDEX,
    directory::DESCRIPTION,
    directory::TABLES,
    directory::WEIGHTS,
];

/// A model directory: one that loads has rows where its index says, and verifies or does not.
pub fn model_directory(data: &[u8]) {
    let Ok(dir) = tempfile::tempdir() else { return };
    files::write(data, dir.path(), &IMPORTED);
    let Ok(model) = Model::load(dir.path()) else { return };
    for i in 0..model.index().weights.len() {
        let matrix = model.weight(i);
        let rows = model.index().weights[i].rows as usize;
        let _ = [0, rows - 1].map(|r| matrix.row(r).len());
    }
    let _ = model.verify(&mut |_| {});
}

/// A packed manifest.
pub fn manifest(data: &[u8]) {
    if let Ok(manifest) = Manifest::decode(data) {
        assert_eq!(manifest.encode(), data);
    }
}

/// A program, its sections' sizes before it.
pub fn program(data: &[u8]) {
    let Some((sizes, code)) = data.split_first_chunk::<6>() else { return };
    let counts = [0, 2, 4].map(|i| u16::from_be_bytes([sizes[i], sizes[i + 1]]));
    if let Ok(program) = Program::decode(code, counts) {
        assert_eq!(program.encode(), code);
        let _ = program.validate(MAX_POSITIONS);
    }
}

/// A tokenizer: what it encodes, it decodes.
pub fn tokenizer(data: &[u8]) {
    let Ok(tokenizer) = Tokenizer::from_json(data) else { return };
    if let Ok(ids) = tokenizer.encode("The oath 1234, \u{e9}\u{1f600}\n ") {
        let _ = tokenizer.decode(&ids, true);
        let mut stream = tokenizer.stream(false);
        ids.iter().for_each(|id| drop(stream.push(*id)));
        let _ = stream.finish();
    }
    let _ = (tokenizer.token_bytes(u32::MAX), tokenizer.is_special(u32::MAX));
}

/// What a node serves of a trace: dimensions, then leaves, or the head's opening.
pub fn trace(data: &[u8]) {
    let Some((sizes, rest)) = data.split_first_chunk::<8>() else { return };
    let word = |i: usize| u32::from(u16::from_be_bytes([sizes[i], sizes[i + 1]]));
    let dims = TraceDims { layers: word(0) as u16 & 0x3ff, n_in: word(2) + 1, n_out: word(4) + 1 };
    if let Some(tree) = TraceTree::decode(rest, &dims) {
        assert_eq!(tree.encode(), rest);
        assert_eq!(tree.first_difference(&tree), None);
    }
    let output = vec![7; dims.n_out as usize];
    let _ = HeadOpening::verify(rest, &dims, word(6) as usize, &output, &[0; 32]);
    let half = rest.len() / 2;
    let _ = HeadRow::from_exports(&[&[], &rest[..half], &rest[half..]]);
    if let Some(tokens) = sequence::decode(rest) {
        assert_eq!(sequence::encode(&tokens), rest);
    }
}

/// A range proof: where it begins, how many leaves, how deep the tree, then hashes. One that is accepted under a tree's root holds that
/// tree's leaves.
pub fn proof(data: &[u8]) {
    let Some(([size, first, count, depth], rest)) = data.split_first_chunk::<4>() else { return };
    let hashes = rest.as_chunks::<32>().0;
    let (leaves, proof) = hashes.split_at(hashes.len().min(usize::from(*count)));
    let _ = tree::range_root(leaves, u64::from(*first), u32::from(*depth), proof);
    let own: Vec<_> = (0..=*size).map(|i| [i; 32]).collect();
    let (own, at) = (Tree::new(own), usize::from(*first));
    if let Some((root, _)) = tree::range_root(leaves, u64::from(*first), own.depth(), proof)
        && root == own.root()
        && at + leaves.len() <= own.leaves().len()
    {
        assert_eq!(leaves, &own.leaves()[at..at + leaves.len()]);
    }
}

fn call<C: SolInterface>(data: &[u8]) {
    if let Ok(call) = C::abi_decode(data) {
        // Solidity ignores what follows the parameters, so it need not be the same; but it means the same.
        let again = C::abi_decode(&call.abi_encode()).map(|c| c.abi_encode());
        assert_eq!(again.ok(), Some(call.abi_encode()));
    }
}

/// What the chain says, or somebody in its name: calls, events, reverts, words.
pub fn calldata(data: &[u8]) {
    call::<IMarket::IMarketCalls>(data);
    call::<IChallenges::IChallengesCalls>(data);
    call::<IChannels::IChannelsCalls>(data);
    call::<ITrials::ITrialsCalls>(data);
    call::<IStepVerifier::IStepVerifierCalls>(data);
    call::<INodes::INodesCalls>(data);
    call::<IModels::IModelsCalls>(data);
    let _ = Revert::decode(data).to_string();
    if let Some((topics, rest)) = data.split_first_chunk::<128>() {
        let topics = topics.as_chunks::<32>().0.iter().map(|t| B256::from(*t)).collect();
        let log = LogData::new_unchecked(topics, rest.to_vec().into());
        let [token, models, nodes, market, channels, trials, challenges, step_verifier] =
            [0, 1, 2, 3, 4, 5, 6, 7].map(Address::repeat_byte);
        let (chain_id, block) = (1, 0);
        let d =
            Deployment { chain_id, token, models, nodes, market, channels, trials, challenges, step_verifier, block };
        for contract in 1..=6 {
            let _ = Event::decode(&d, Address::repeat_byte(contract), &log);
        }
    }
    if let Ok(job) = IMarket::Job::abi_decode(data) {
        let _ = job_dims(&job, 3);
    }
    if let Ok(target) = Target::abi_decode(data) {
        let _ = target.to_string();
    }
    if let Some((words, _)) = data.split_first_chunk::<64>() {
        let (sampling, seed) = words.split_at(32);
        let sampling = alloy::primitives::U256::from_be_slice(sampling);
        let _ = (is_receipt(sampling), run_params(sampling, B256::from_slice(seed)));
    }
}

fn json<T: Serialize + DeserializeOwned>(data: &[u8]) -> Option<T> {
    let value: T = serde_json::from_slice(data).ok()?;
    let written = serde_json::to_value(&value).expect("what was read can be written");
    let again: T = serde_json::from_value(written.clone()).expect("what was written can be read");
    assert_eq!(serde_json::to_value(&again).ok(), Some(written));
    Some(value)
}

/// Bodies of HTTP requests and answers: the node's, the gateway's, streams.
pub fn http(data: &[u8]) {
    if let Some(ask) = json::<Ask>(data) {
        let _ = (ask.voucher(B256::ZERO), ask.maximum(), ask.request_hash());
        let _ = (ask.offer.offer.tier(), ask.offer.offer.price(u32::MAX, u32::MAX));
    }
    if let Some(signed) = json::<wire::SignedReceipt>(data) {
        let _ = (signed.receipt.dims(3), signed.receipt.run(), signed.receipt.trace_root());
    }
    json::<wire::SignedOffer>(data);
    json::<wire::SignedVoucher>(data);
    json::<wire::End>(data);
    json::<wire::Answered>(data);
    json::<wire::ReceiptPage>(data);
    json::<wire::ChannelState>(data);
    json::<wire::Refusal>(data);
    json::<wire::NodeInfo>(data);
    json::<sworn_gateway::ReceiptFile>(data);
    sworn_gateway::read_body(data);
    let mut reader = SseReader::new(1 << 16);
    for piece in data.chunks(7) {
        let Ok(events) = reader.push(piece) else { return };
        events.iter().for_each(|e| drop(wire::Event::decode(&e.name, &e.data)));
    }
}
