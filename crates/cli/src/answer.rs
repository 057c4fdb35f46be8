//! An answer on disk: all that a re-execution needs, and the trace it must give.

use std::fs;
use std::path::Path;

use alloy::primitives::{Address, B256};
use serde::{Deserialize, Serialize};
use sworn_commit::{TraceDims, TraceTree};
use sworn_engine::Generation;
use sworn_gateway::ReceiptFile;

use crate::fault::{Doing, Fault, Result};
use crate::sampling::ShownRun;

/// The format's name, the first thing in a file.
const FORMAT: &str = "sworn-answer/1";
/// The same of a run with sampling parameters: a reader that does not know them must not take it for a greedy one.
const SAMPLED: &str = "sworn-answer/2";

/// What `sworn run --save` writes and `sworn audit` reads.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SavedAnswer {
    /// Absent in what `sworn run --json` and `sworn job show --json` print, which carry the rest.
    #[serde(default)]
    format: Option<String>,
    /// Name of the model where it ran.
    #[serde(default)]
    pub(crate) model: String,
    /// Its id.
    pub(crate) model_id: String,
    /// The prompt's text, for people.
    #[serde(default)]
    pub(crate) prompt: String,
    /// The answer's text, for people.
    #[serde(default)]
    pub(crate) text: String,
    /// How tokens were selected.
    #[serde(flatten)]
    pub(crate) run: ShownRun,
    /// The prompt's tokens.
    pub(crate) input_tokens: Vec<u32>,
    /// The answer's tokens.
    pub(crate) tokens: Vec<u32>,
    /// What a node would post.
    pub(crate) layers_root: String,
    /// What identifies the run.
    pub(crate) trace_root: String,
    /// Every leaf, so that an audit can say where the first difference is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    leaves: Option<String>,
}

/// Whose oath a receipt is.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Signed {
    /// Its digest.
    pub(crate) receipt: B256,
    /// The node that it is of.
    pub(crate) node: Address,
    /// Who signed it: the node's account, or a key that it has authorised.
    pub(crate) signed_by: Address,
}

impl SavedAnswer {
    /// The file of a run.
    pub(crate) fn new(
        model: &str,
        model_id: String,
        prompt: String,
        text: String,
        run: ShownRun,
        input: &[u32],
        done: &Generation,
    ) -> Self {
        Self {
            format: Some(if run.is_greedy() { FORMAT } else { SAMPLED }.to_owned()),
            model: model.to_owned(),
            model_id,
            prompt,
            text,
            run,
            input_tokens: input.to_vec(),
            tokens: done.tokens.clone(),
            layers_root: crate::models::id_text(&done.trace.layers_root),
            trace_root: crate::models::id_text(&done.trace.root),
            leaves: Some(hex::encode(done.trace.tree.encode())),
        }
    }

    /// Writes the file, whole or not at all.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        let doing = || format!("cannot save the answer to {} (check the path and the free space)", path.display());
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(parent).doing(doing)?;
        serde_json::to_writer_pretty(&mut file, self).doing(doing)?;
        file.as_file().sync_all().doing(doing)?;
        file.persist(path).map_err(|e| Fault::from(e.error)).doing(doing)?;
        Ok(())
    }

    /// Reads a file.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let text = read(path)?;
        let answer: Self = serde_json::from_str(&text)
            .doing(|| format!("{} is no saved answer: give the file that `sworn run --save` wrote", path.display()))?;
        match &answer.format {
            Some(format) if format != FORMAT && format != SAMPLED => Err(Fault::failed(format!(
                "{} has format {format:?}, this build reads {FORMAT} and {SAMPLED}",
                path.display()
            ))),
            _ => Ok(answer),
        }
    }

    /// The file of an answer that was bought with a receipt, and who signed that; `None` if it is another kind of file.
    pub(crate) fn of_receipt(path: &Path) -> Result<Option<(Self, Signed)>> {
        let Some((file, by)) = receipt_file(path)? else { return Ok(None) };
        let doing = || format!("{} is no receipt that this build reads", path.display());
        let r = &file.signed.receipt;
        let run = r.run().ok_or_else(|| Fault::failed("the receipt's sampling parameters are none")).doing(doing)?;
        let root = r.trace_root().ok_or_else(|| Fault::failed("the receipt is for no token")).doing(doing)?;
        let answer = Self {
            format: None,
            model: String::new(),
            model_id: r.modelId.to_string(),
            prompt: String::new(),
            text: String::new(),
            run: ShownRun::new(&run),
            input_tokens: file.input_tokens.clone(),
            tokens: file.tokens.clone(),
            layers_root: r.layersRoot.to_string(),
            trace_root: crate::models::id_text(&root),
            leaves: None,
        };
        Ok(Some((answer, Signed { receipt: file.digest, node: file.node, signed_by: by })))
    }

    /// The saved leaves; `None` if they are missing or not those of the saved root.
    pub(crate) fn tree(&self, dims: &TraceDims) -> Option<TraceTree> {
        let tree = TraceTree::decode(&hex::decode(self.leaves.as_ref()?).ok()?, dims)?;
        (crate::models::id_text(&tree.layers_root()) == self.layers_root.to_ascii_lowercase()).then_some(tree)
    }
}

/// A receipt's file, and who signed it; `None` if it is another kind of file.
pub(crate) fn receipt_file(path: &Path) -> Result<Option<(ReceiptFile, Address)>> {
    let Ok(value) = serde_json::from_str::<serde_json::Value>(&read(path)?) else { return Ok(None) };
    if value["format"].as_str().is_none_or(|f| !f.starts_with("sworn-receipt/")) {
        return Ok(None);
    }
    let doing = || format!("{} is no receipt that this build reads", path.display());
    let file: ReceiptFile = serde_json::from_value(value).doing(doing)?;
    let by = file.check().map_err(Fault::failed).doing(|| format!("{} contradicts itself", path.display()))?;
    Ok(Some((file, by)))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).doing(|| {
        format!(
            "cannot read the answer {}: give the file that `sworn run --save` wrote, or a receipt's of `sworn gateway`",
            path.display()
        )
    })
}
