//! Between the contracts' types and those of `commit`.

use alloy::primitives::{B256, U256};
use sworn_commit::{Hash, Manifest, RunParams, TraceDims, keccak, witness};
use sworn_isa::{Program, Sampling, Section};

use crate::{Claim, IMarket, JobState, ModelShape, Read, Target, TargetKind, TraceContext, Witness};

/// The protocol's name of an opening, as `IChallenges.openingId` computes it: jobId u128, rank u16, layer u16, row u32, op u16,
/// index u32, zero u16. Tokens have rank 0: everything may hang from them.
pub fn opening_id(job: U256, target: &Target) -> B256 {
    let rank = match target.kind {
        TargetKind::Tokens => 0,
        kind => ((kind as u16) << 8) | (255 - target.level as u16),
    };
    let mut id = [0; 32];
    id[..16].copy_from_slice(&job.to_be_bytes::<32>()[16..]);
    id[16..18].copy_from_slice(&rank.to_be_bytes());
    id[18..20].copy_from_slice(&target.layer.to_be_bytes());
    id[20..24].copy_from_slice(&target.row.to_be_bytes());
    id[24..26].copy_from_slice(&target.op.to_be_bytes());
    id[26..30].copy_from_slice(&target.index.to_be_bytes());
    B256::from(id)
}

/// The sizes of a submitted job's trace, for a model with `layers` blocks; `None` before a result is there.
pub fn job_dims(job: &IMarket::Job, layers: u16) -> Option<TraceDims> {
    (job.nIn > 0 && job.nOut > 0).then_some(TraceDims { layers, n_in: job.nIn, n_out: job.nOut })
}

/// How a run samples, from the words of a job or its event; `None` for a word that no valid parameters give (the market
/// admits none).
pub fn run_params(sampling: U256, seed: B256) -> Option<RunParams> {
    Some(RunParams { sampling: Sampling::unpack(&sampling.to_be_bytes())?, seed: seed.0 })
}

/// The parameters as the word that `createJob` takes.
pub fn sampling_word(sampling: &Sampling) -> U256 {
    U256::from_be_bytes(sampling.pack())
}

/// What an answer depends on, as `IMarket.orderHash` computes it: `submitResult` names the order that the answer was computed for.
pub fn order_hash(model: B256, input_hash: Hash, max_new: u32, run: &RunParams) -> B256 {
    const TAG_ORDER: u8 = 0x09;
    let seed = if run.sampling.inverse_temperature == 0 { Hash::default() } else { run.seed };
    let parts: [&[u8]; 6] = [&[TAG_ORDER], &model.0, &input_hash, &max_new.to_be_bytes(), &run.sampling.pack(), &seed];
    keccak(&parts).into()
}

impl Target {
    const fn at(kind: TargetKind, layer: u16, row: u32, op: u16, level: u8, index: u32) -> Self {
        Target { kind, layer, row, op, level, index }
    }

    /// A node of the tree over layer roots.
    pub const fn layers(level: u8, index: u32) -> Self {
        Self::at(TargetKind::Layers, 0, 0, 0, level, index)
    }

    /// A node of the tree over a layer's rows.
    pub const fn positions(layer: u16, level: u8, index: u32) -> Self {
        Self::at(TargetKind::Positions, layer, 0, 0, level, index)
    }

    /// The operator roots of one (layer, row).
    pub const fn op_list(layer: u16, row: u32) -> Self {
        Self::at(TargetKind::OpList, layer, row, 0, 0, 0)
    }

    /// A node of the page tree of an operator's tensor.
    pub const fn pages(layer: u16, row: u32, op: u16, level: u8, index: u32) -> Self {
        Self::at(TargetKind::Pages, layer, row, op, level, index)
    }

    /// All tokens of a receipt's prompt, or of its answer.
    pub const fn tokens(output: bool) -> Self {
        Self::at(TargetKind::Tokens, output as u16, 0, 0, 0, 0)
    }

    /// One page of an operator's tensor.
    pub const fn page(layer: u16, row: u32, op: u16, index: u32) -> Self {
        Self::at(TargetKind::Page, layer, row, op, 0, index)
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Target { kind, layer, row, op, level, index } = self;
        match kind {
            TargetKind::Layers => write!(f, "layer roots, level {level} node {index}"),
            TargetKind::Positions => write!(f, "layer {layer}, level {level} node {index}"),
            TargetKind::OpList => write!(f, "operators of layer {layer} row {row}"),
            TargetKind::Pages => write!(f, "layer {layer} row {row} operator {op}, level {level} node {index}"),
            TargetKind::Page => write!(f, "layer {layer} row {row} operator {op} page {index}"),
            TargetKind::Tokens if *layer == 0 => write!(f, "tokens of the prompt"),
            TargetKind::Tokens => write!(f, "tokens of the answer"),
            TargetKind::__Invalid => write!(f, "no target"),
        }
    }
}

impl TraceContext {
    /// What the judge must know of a trace.
    pub fn new(
        dims: &TraceDims,
        layers_root: sworn_commit::Hash,
        input_hash: sworn_commit::Hash,
        output_hash: sworn_commit::Hash,
        run: &RunParams,
    ) -> Self {
        TraceContext {
            layersRoot: layers_root.into(),
            inputHash: input_hash.into(),
            outputHash: output_hash.into(),
            nIn: dims.n_in,
            nOut: dims.n_out,
            sampling: sampling_word(&run.sampling),
            seed: run.seed.into(),
        }
    }

    /// The same of a submitted job.
    pub fn of_job(job: &IMarket::Job) -> Self {
        TraceContext {
            layersRoot: job.layersRoot,
            inputHash: job.inputHash,
            outputHash: job.outputHash,
            nIn: job.nIn,
            nOut: job.nOut,
            sampling: job.sampling,
            seed: job.seed,
        }
    }
}

fn words(hashes: &[Hash]) -> Vec<B256> {
    hashes.iter().map(|h| B256::from(*h)).collect()
}

impl From<witness::Claim> for Claim {
    fn from(c: witness::Claim) -> Self {
        Claim { layer: c.layer, row: c.row, op: c.op, element: c.element }
    }
}

impl From<&Claim> for witness::Claim {
    fn from(c: &Claim) -> Self {
        witness::Claim { layer: c.layer, row: c.row, op: c.op, element: c.element }
    }
}

impl From<&witness::Read> for Read {
    fn from(r: &witness::Read) -> Self {
        Read {
            data: r.data.clone().into(),
            proof: words(&r.proof),
            leaves: words(&r.leaves),
            leafProof: words(&r.leaf_proof),
        }
    }
}

impl From<&witness::Witness> for Witness {
    fn from(w: &witness::Witness) -> Self {
        Witness {
            opRoots: words(&w.op_roots),
            descriptor: w.descriptor.clone().into(),
            descriptorProof: words(&w.descriptor_proof),
            page: w.page.clone().into(),
            pageProof: words(&w.page_proof),
            hint: w.hint,
            reads: w.reads.iter().map(Read::from).collect(),
        }
    }
}

impl ModelShape {
    /// What `Models` keeps of a model.
    pub fn of(manifest: &Manifest, program: &Program) -> Self {
        let mask = |section: &Section| {
            let exported = section.ops.iter().enumerate().filter(|(_, op)| op.export);
            exported.fold(U256::ZERO, |mask, (i, _)| mask | (U256::ONE << i))
        };
        ModelShape {
            layers: manifest.layers,
            vocab: manifest.vocab,
            maxPositions: manifest.max_positions,
            opCounts: manifest.op_counts,
            sectionRoots: manifest.section_roots.map(B256::from),
            exportMasks: [0, 1, 2].map(|i| mask(&program.sections[i])),
            weights: manifest.weights,
            weightsRoot: manifest.weights_root.into(),
            tables: manifest.tables,
            tablesRoot: manifest.tables_root.into(),
        }
    }
}

impl JobState {
    /// Whether the job has reached its end.
    pub const fn is_terminal(self) -> bool {
        matches!(self, JobState::Final | JobState::Expired | JobState::Cancelled | JobState::Slashed)
    }

    /// The state's name in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            JobState::None => "none",
            JobState::Open => "open",
            JobState::Assigned => "assigned",
            JobState::Submitted => "submitted",
            JobState::Final => "final",
            JobState::Expired => "expired",
            JobState::Cancelled => "cancelled",
            JobState::Slashed => "slashed",
            JobState::__Invalid => "unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opening_ids_are_laid_out_as_documented() {
        let id = opening_id(U256::from(0x0102), &Target::pages(3, 4, 5, 6, 7));
        let hex = concat!(
            "00000000000000000000000000000102", // job
            "03f9",                             // kind 3, 255 - 6
            "0003",
            "00000004",
            "0005",
            "00000007",
            "0000",
        );
        assert_eq!(alloy::hex::encode(id), hex);
        assert_eq!(alloy::hex::encode(&opening_id(U256::ONE, &Target::tokens(true)).0[16..20]), "00000001");
        // A child ranks above its parent.
        let rank = |t: &Target| opening_id(U256::ONE, t).0[16..18].to_vec();
        assert!(rank(&Target::layers(7, 0)) < rank(&Target::layers(1, 0)));
        assert!(rank(&Target::layers(1, 0)) < rank(&Target::positions(0, 7, 0)));
        assert!(rank(&Target::op_list(0, 0)) < rank(&Target::pages(0, 0, 0, 7, 0)));
    }
}
