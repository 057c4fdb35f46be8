//! Valid inputs of every target.

use alloy::primitives::{Address, B256, Bytes, U256};
use alloy::sol_types::{SolCall, SolError, SolEvent, SolValue};
use serde_json::json;
use sworn_bindings::{IChallenges, IMarket, INodes, Target, TargetKind};
use sworn_commit::{HeadOpening, HeadRow, TraceDims, TraceTree, Tree};
use sworn_isa::SectionKind;
use sworn_model::small::{Family, Layout, write};
use sworn_model::{SyntheticSpec, synthetic};
use sworn_receipts::wire::{Ask, Code, End, Event, Finish, Refusal, SignedOffer, SignedReceipt};
use sworn_receipts::{Offer, Receipt};

use crate::{files, targets};

/// Families that between them have every part.
const FAMILIES: [Family; 3] = [Family::Llama3, Family::SmolLm2, Family::Llama2];

fn in_a_directory<T>(work: impl FnOnce(&std::path::Path) -> T) -> T {
    let dir = tempfile::tempdir().expect("a temporary directory");
    work(dir.path())
}

/// Small models, with floats and with blocks.
pub fn gguf() -> Vec<Vec<u8>> {
    let layouts = [Layout::Gguf, Layout::Blocks];
    let both = FAMILIES.iter().flat_map(|family| layouts.map(|layout| (*family, layout)));
    let file = |(family, layout)| {
        in_a_directory(|dir| std::fs::read(write(family, layout, 1, dir).expect("a small model")).expect("its file"))
    };
    both.map(file).collect()
}

/// Small models as directories.
pub fn safetensors() -> Vec<Vec<u8>> {
    let one = |family: &Family| {
        in_a_directory(|dir| {
            let path = write(*family, Layout::HuggingFace, 1, dir).expect("a small model");
            files::read(&path, &targets::PUBLISHED)
        })
    };
    FAMILIES.iter().map(one).collect()
}

fn in_model<T>(work: impl Fn(&sworn_model::Model) -> T) -> Vec<T> {
    in_a_directory(|dir| {
        let seeds = [1, 2];
        let model = |seed| {
            let spec = SyntheticSpec { seed, ..SyntheticSpec::default() };
            work(&synthetic(&spec, dir.join(seed.to_string())).expect("a synthetic model"))
        };
        seeds.map(model).into()
    })
}

/// The synthetic model's directory.
pub fn model_directory() -> Vec<Vec<u8>> {
    in_model(|model| files::read(model.path(), &targets::IMPORTED))
}

/// Its manifest.
pub fn manifest() -> Vec<Vec<u8>> {
    in_model(|model| model.manifest().encode())
}

/// Its program.
pub fn program() -> Vec<Vec<u8>> {
    in_model(|model| {
        let sections = [SectionKind::Embedding, SectionKind::Block, SectionKind::Head];
        let sizes = sections.map(|kind| (model.program().section(kind).ops.len() as u16).to_be_bytes());
        [sizes.concat(), model.program().encode()].concat()
    })
}

/// Tokenizers of small models.
pub fn tokenizer() -> Vec<Vec<u8>> {
    safetensors().iter().filter_map(|all| files::split(all).get(1).map(|t| t.to_vec())).collect()
}

/// A trace's leaves, and a head's opening.
pub fn trace() -> Vec<Vec<u8>> {
    let dims = TraceDims { layers: 2, n_in: 3, n_out: 2 };
    let head = |n: u16| [2u16, 2, 1, n].map(u16::to_be_bytes).concat();
    let leaves = (0..dims.layer_count()).map(|l| vec![[l as u8; 32]; dims.rows(l) as usize]).collect();
    let tree = TraceTree::new(leaves);
    let row = HeadRow::from_exports(&[&[], &[0; 20], &[0; 24]]);
    let opening = HeadOpening::new(&tree, row.map(|r| vec![r.clone(), r]).unwrap_or_default());
    vec![[head(5), tree.encode()].concat(), [head(5), opening.encode()].concat()]
}

/// Range proofs that hold.
pub fn proof() -> Vec<Vec<u8>> {
    let ranges = [(7u8, 0u8, 8u8), (7, 3, 2), (16, 16, 1), (99, 40, 25)];
    let one = |(last, first, count): (u8, u8, u8)| {
        let tree = Tree::new((0..=last).map(|i| [i; 32]).collect());
        let leaves = &tree.leaves()[usize::from(first)..usize::from(first) + usize::from(count)];
        let path = tree.prove(u64::from(first), u64::from(count));
        [vec![last, first, count, tree.depth() as u8], leaves.concat(), path.concat()].concat()
    };
    ranges.map(one).into()
}

/// Calls, a revert, an event, a job.
pub fn calldata() -> Vec<Vec<u8>> {
    let target = Target { kind: TargetKind::Page, layer: 1, row: 2, op: 3, level: 0, index: 0 };
    let submit = IMarket::submitResultCall {
        jobId: U256::from(1),
        order: B256::repeat_byte(1),
        outputTokens: vec![0, 0, 0, 7].into(),
        layersRoot: B256::repeat_byte(2),
    };
    let answer = IChallenges::answerCall {
        jobId: U256::from(1),
        target: target.clone(),
        nodeHash: B256::repeat_byte(3),
        leafCount: 1,
        byteLength: 8,
        data: Bytes::from_static(&[1; 40]),
    };
    let configure = INodes::configureCall { endpoint: "http://n.example".into(), capacity: 4 };
    let withdrawn = IMarket::Withdrawn { account: Address::ZERO, amount: U256::from(5) };
    let mut topics = [B256::ZERO; 4];
    topics.iter_mut().zip(withdrawn.encode_topics()).for_each(|(slot, topic)| *slot = topic.0);
    let event = [topics.map(|t| t.0).concat(), withdrawn.encode_data()].concat();
    vec![
        submit.abi_encode(),
        answer.abi_encode(),
        configure.abi_encode(),
        target.abi_encode(),
        // A job: words.
        vec![0; 32 * 24],
        alloy::sol_types::Revert::from("why").abi_encode(),
        event,
    ]
}

/// Bodies.
pub fn http() -> Vec<Vec<u8>> {
    let offer = SignedOffer {
        offer: Offer { perInputToken: 5, maxTokens: 99, ..Offer::default() },
        signature: Bytes::from_static(&[1; 65]),
    };
    let ask = Ask {
        request: 1,
        model: B256::repeat_byte(1),
        prompt: vec![1, 2, 3],
        max_new: 4,
        sampling: U256::ZERO,
        seed: B256::ZERO,
        cumulative: 1_000,
        voucher: Bytes::from_static(&[2; 65]),
        offer: offer.clone(),
        logprobs: Some(3),
    };
    let receipt = SignedReceipt {
        receipt: Receipt { nIn: 3, nOut: 2, ..Receipt::default() },
        signature: Bytes::from_static(&[3; 65]),
    };
    let token = Event::Token { index: 0, token: 7, logprobs: None };
    let end = Event::Receipt { signed: receipt.clone(), finish: Finish::Stop };
    let stream: String = [token, end, Event::Error(Refusal::new(Code::Unknown, "why"))]
        .map(|event| {
            let (name, data) = event.encode();
            format!("event: {name}\ndata: {data}\n\n: alive\r\n")
        })
        .concat();
    let bodies = [
        json!(ask),
        json!(offer),
        json!(receipt),
        json!(Refusal::new(Code::Unknown, "why")),
        json!(End { tokens: 3 }),
        json!({ "model": "m", "messages": [{ "role": "user", "content": "What is an oath?" }], "temperature": 0.5, "stop": ["\n"] }),
        json!({ "model": "m", "prompt": [1, 2, 3], "max_tokens": 5, "stream": true, "stream_options": { "include_usage": true } }),
    ];
    let bodies = bodies.iter().map(|b| b.to_string().into_bytes());
    bodies.chain([stream.into_bytes()]).collect()
}
