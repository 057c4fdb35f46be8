//! What the chain says about one job's challenge: openings, their answers, announcements, the outcome.
//!
//! Rebuilt from events alone, so a restarted watcher knows what a running one knows.

use std::collections::BTreeMap;

use alloy::primitives::{Address, B256};
use sworn_commit::witness::Claim;
use sworn_commit::{Hash, TraceDims};

/// Deepest opening there is.
pub const MAX_DEPTH: u8 = 8;

/// What a demand opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// node of the tree over layer roots
    Layers = 0,
    /// node of a layer's tree over rows
    Positions = 1,
    /// operator roots of one (layer, row)
    OpList = 2,
    /// node of a tensor's page tree
    Pages = 3,
    /// a page
    Page = 4,
    /// all tokens of a receipt's prompt (layer 0) or answer (layer 1)
    Tokens = 5,
}

/// One node of a job's committed tree of trees. Fields that its kind does not use are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// which tree
    pub kind: Kind,
    /// layer
    pub layer: u16,
    /// row of the layer
    pub row: u32,
    /// operator
    pub op: u16,
    /// level above the leaves
    pub level: u8,
    /// index within the level
    pub index: u32,
}

impl Target {
    const ZERO: Target = Target { kind: Kind::Layers, layer: 0, row: 0, op: 0, level: 0, index: 0 };

    /// Node of the tree over layer roots.
    pub const fn layers(level: u32, index: u64) -> Self {
        Target { level: level as u8, index: index as u32, ..Self::ZERO }
    }

    /// Node of a layer's tree.
    pub const fn positions(layer: u16, level: u32, index: u64) -> Self {
        Target { kind: Kind::Positions, layer, level: level as u8, index: index as u32, ..Self::ZERO }
    }

    /// Operator list of (layer, row).
    pub const fn op_list(layer: u16, row: u32) -> Self {
        Target { kind: Kind::OpList, layer, row, ..Self::ZERO }
    }

    /// Node of an operator's page tree; level 0 is a page.
    pub const fn pages(layer: u16, row: u32, op: u16, level: u32, index: u64) -> Self {
        let kind = if level == 0 { Kind::Page } else { Kind::Pages };
        Target { kind, layer, row, op, level: level as u8, index: index as u32 }
    }

    /// The prompt of a receipt, or its answer.
    pub const fn tokens(output: bool) -> Self {
        Target { kind: Kind::Tokens, layer: output as u16, ..Self::ZERO }
    }

    /// A child ranks above its parent: by kind, then by falling level. Tokens come before everything.
    pub const fn rank(&self) -> u16 {
        if matches!(self.kind, Kind::Tokens) {
            return 0;
        }
        self.kind as u16 * 256 + 255 - self.level as u16
    }
}

/// Where an opening stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpeningState {
    /// nobody has answered yet
    Demanded {
        /// last second for an answer
        deadline: u64,
    },
    /// answered, and checked by the contract
    Answered {
        /// last second in which it can be a parent after the window
        turn_end: u64,
        /// hashes of the descendants, operator roots, or a page
        data: Vec<u8>,
    },
}

/// One opening, whoever demanded it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    /// who paid for it
    pub payer: Address,
    /// its depth, 1…8
    pub depth: u8,
    /// where it stands
    pub state: OpeningState,
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The node was paid.
    Final,
    /// The node was slashed; why is told by [`Game::fraud`] and [`Game::timed_out`].
    Slashed,
    /// It ended without a result.
    Void,
}

/// A proof that the contract accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fraud {
    /// who proved it
    pub by: Address,
    /// what was proven
    pub claim: Claim,
    /// end of the contest for the reward
    pub contest_end: u64,
}

/// A submitted job as the chain knows it.
#[derive(Clone, Debug)]
pub struct Game {
    /// sizes of the trace
    pub dims: TraceDims,
    /// what the node committed to
    pub layers_root: Hash,
    /// last second for a demand without a parent
    pub window_end: u64,
    /// every opening of the job
    pub openings: BTreeMap<Target, Opening>,
    /// every announcement and its block
    pub announcements: BTreeMap<(Address, B256), u64>,
    /// the accepted proof
    pub fraud: Option<Fraud>,
    /// payer of the demand that timed out
    pub timed_out: Option<Address>,
    /// who has been paid the reward
    pub settled: Option<Address>,
    /// whose fees went back
    pub reclaimed: Vec<Address>,
    /// terminal state
    pub outcome: Option<Outcome>,
}

impl Game {
    /// A job on the day of its result.
    pub fn new(dims: TraceDims, layers_root: Hash, window_end: u64) -> Self {
        Game {
            dims,
            layers_root,
            window_end,
            openings: BTreeMap::new(),
            announcements: BTreeMap::new(),
            fraud: None,
            timed_out: None,
            settled: None,
            reclaimed: Vec::new(),
            outcome: None,
        }
    }

    /// The next second after which something can no longer be done: the end of the window, or of somebody's turn.
    pub fn next_deadline(&self, now: u64) -> Option<u64> {
        let turns = self.openings.values().map(|o| match o.state {
            OpeningState::Demanded { deadline } => deadline,
            OpeningState::Answered { turn_end, .. } => turn_end,
        });
        turns.chain([self.window_end]).filter(|end| *end >= now).min()
    }

    /// The answer to an opening as hashes; `None` until it is there.
    pub fn hashes(&self, target: &Target) -> Option<Vec<Hash>> {
        Some(self.answer(target)?.as_chunks::<32>().0.to_vec())
    }

    /// The bytes that answered an opening.
    pub fn answer(&self, target: &Target) -> Option<&[u8]> {
        match &self.openings.get(target)?.state {
            OpeningState::Answered { data, .. } => Some(data),
            OpeningState::Demanded { .. } => None,
        }
    }

    /// Whether this account has paid for an opening.
    pub fn paid(&self, who: Address) -> bool {
        self.openings.values().any(|o| o.payer == who)
    }
}
