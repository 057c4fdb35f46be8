//! What a node remembers: enough to go on after a crash, and nothing that the chain does not also know, but for answers that are
//! not posted yet.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use alloy::primitives::{Address, B256, Bytes, U256};
use alloy::sol_types::SolValue;
use serde::{Deserialize, Serialize};
use sworn_bindings::{IChallenges, Target};
use sworn_chain::{Store, Table};
use sworn_commit::{HeadOpening, TraceDims, TraceTree};
use sworn_isa::logprob::MOST;

use crate::{Error, Job, Result};

const JOBS: Table = "node/jobs";
const DEMANDS: Table = "node/demands";

/// A job and how far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JobRecord {
    pub(crate) job: Job,
    /// Computed, or seen on chain.
    pub(crate) answer: Option<AnswerRecord>,
    /// Whether the chain gave it to this node.
    pub(crate) mine: bool,
    /// Chain time until which the result must be there, once the job is this node's.
    #[serde(default)]
    pub(crate) deadline: Option<u64>,
    /// Nothing can follow: the latest block when that was seen.
    #[serde(default)]
    pub(crate) ended: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AnswerRecord {
    pub(crate) tokens: Vec<u32>,
    pub(crate) layers_root: B256,
}

/// A demand as its event told it: the contract wants all of it back with the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DemandRecord {
    pub(crate) job: U256,
    pub(crate) opening: B256,
    pub(crate) payer: Address,
    target: Bytes,
    pub(crate) node_hash: B256,
    pub(crate) leaf_count: u32,
    pub(crate) byte_length: u32,
    pub(crate) deadline: u64,
}

impl DemandRecord {
    pub(crate) fn of(e: &IChallenges::Demanded) -> Self {
        DemandRecord {
            job: e.jobId,
            opening: e.openingId,
            payer: e.payer,
            target: e.target.abi_encode().into(),
            node_hash: e.nodeHash,
            leaf_count: e.leafCount,
            byte_length: e.byteLength,
            deadline: e.deadline.to(),
        }
    }

    pub(crate) fn target(&self) -> Option<Target> {
        Target::abi_decode(&self.target).ok()
    }
}

/// The node's tables, and its traces as files.
#[derive(Clone, Debug)]
pub(crate) struct Journal {
    store: Store,
    traces: PathBuf,
}

impl Journal {
    pub(crate) fn new(store: Store, traces: PathBuf) -> Result<Self> {
        fs::create_dir_all(&traces).map_err(|source| Error::File { path: traces.clone(), source })?;
        Ok(Journal { store, traces })
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn jobs(&self) -> Result<Vec<JobRecord>> {
        Ok(self.store.all(JOBS)?.into_iter().map(|(_, record)| record).collect())
    }

    pub(crate) fn job(&self, id: U256) -> Result<Option<JobRecord>> {
        Ok(self.store.get(JOBS, &id.to_string())?)
    }

    pub(crate) fn put_job(&self, record: &JobRecord) -> Result<()> {
        Ok(self.store.put(JOBS, &record.job.id.to_string(), record)?)
    }

    pub(crate) fn demands(&self) -> Result<Vec<DemandRecord>> {
        Ok(self.store.all(DEMANDS)?.into_iter().map(|(_, record)| record).collect())
    }

    pub(crate) fn put_demand(&self, record: &DemandRecord) -> Result<()> {
        Ok(self.store.put(DEMANDS, &record.opening.to_string(), record)?)
    }

    pub(crate) fn remove_demand(&self, opening: B256) -> Result<()> {
        Ok(self.store.remove(DEMANDS, &opening.to_string())?)
    }

    fn trace_path(&self, id: U256) -> PathBuf {
        self.traces.join(format!("{id}.trace"))
    }

    /// Keeps a trace; whole or not at all.
    pub(crate) fn put_trace(&self, id: U256, trace: &TraceTree) -> Result<()> {
        Self::write(self.trace_path(id), &trace.encode())
    }

    fn write(path: PathBuf, bytes: &[u8]) -> Result<()> {
        let fresh = path.with_added_extension("new");
        let write = || -> std::io::Result<()> {
            let mut file = fs::File::create(&fresh)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&fresh, &path)
        };
        write().map_err(|source| Error::File { path, source })
    }

    /// A kept trace, if it is there and is the one with this root.
    pub(crate) fn trace(&self, id: U256, dims: &TraceDims, layers_root: B256) -> Option<TraceTree> {
        let bytes = fs::read(self.trace_path(id)).ok()?;
        TraceTree::decode(&bytes, dims).filter(|t| t.layers_root() == layers_root.0)
    }

    fn log_probs_path(&self, id: U256) -> PathBuf {
        self.traces.join(format!("{id}.logprobs"))
    }

    /// Keeps log-probabilities; whole or not at all.
    pub(crate) fn put_log_probs(&self, id: U256, opening: &HeadOpening) -> Result<()> {
        Self::write(self.log_probs_path(id), &opening.encode())
    }

    /// Kept log-probabilities, if they are there and are those of the trace.
    pub(crate) fn log_probs(&self, id: U256, trace: &TraceTree, tokens: &[u32]) -> Option<HeadOpening> {
        let bytes = fs::read(self.log_probs_path(id)).ok()?;
        let layers = u16::try_from(trace.layers().len()).ok()?.checked_sub(2)?;
        let dims = TraceDims { layers, n_in: 1, n_out: tokens.len() as u32 };
        (1..=MOST as usize)
            .filter(|n| HeadOpening::encoded_len(&dims, *n) == bytes.len() as u64)
            .find_map(|n| HeadOpening::verify(&bytes, &dims, n, tokens, &trace.layers_root()).ok())
    }

    fn running_path(&self, id: U256) -> PathBuf {
        self.traces.join(format!("{id}.running"))
    }

    /// How often an execution of this job began and neither succeeded nor failed: each time the process ended with it.
    pub(crate) fn deaths(&self, id: U256) -> u64 {
        fs::metadata(self.running_path(id)).map_or(0, |m| m.len())
    }

    /// An execution begins. A byte per time, which a process that is killed leaves behind.
    pub(crate) fn begin(&self, id: U256) -> Result<()> {
        let path = self.running_path(id);
        let write = || fs::File::options().create(true).append(true).open(&path)?.write_all(b".");
        write().map_err(|source| Error::File { path: path.clone(), source })
    }

    /// An execution is over, well or not.
    pub(crate) fn end(&self, id: U256) {
        let _ = fs::remove_file(self.running_path(id));
    }

    pub(crate) fn remove_trace(&self, id: U256) {
        let _ = fs::remove_file(self.trace_path(id));
        let _ = fs::remove_file(self.log_probs_path(id));
        self.end(id);
    }
}
