//! `sworn audit`.

use std::process::ExitCode;

use serde::Serialize;
use sworn_isa::Sampling;

use crate::answer::{SavedAnswer, Signed};
use crate::args::Audit;
use crate::backend::{self, About};
use crate::fault::{Doing, Fault, Result};
use crate::models::{self, id_text};
use crate::settings::Settings;

#[derive(Serialize)]
struct Report {
    ok: bool,
    trace_root: String,
    claimed_trace_root: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    difference: Option<Difference>,
    positions: u32,
    tok_s: f64,
    #[serde(flatten)]
    about: About,
    model_id: String,
    /// Of a receipt: whose oath it is.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    signed: Option<Signed>,
}

/// The first place where the saved answer is not what the model gives.
#[derive(Serialize)]
#[serde(tag = "what", rename_all = "snake_case")]
enum Difference {
    /// An output token that the model does not select.
    Token { index: u32, claimed: u32, selected: u32 },
    /// A leaf of the trace.
    Leaf { layer: u16, row: u32, position: u32 },
    /// Only the roots are known to differ.
    Root,
}

pub(super) async fn run(settings: &Settings, command: Audit) -> Result<ExitCode> {
    let (answer, signed) = match SavedAnswer::of_receipt(&command.file)? {
        Some((answer, signed)) => (answer, Some(signed)),
        None => (SavedAnswer::load(&command.file)?, None),
    };
    let model = match &command.model {
        Some(name) => models::load(settings, name)?,
        None => models::load(settings, &answer.model_id)?,
    };
    let id = id_text(&model.id());
    if id != answer.model_id.to_ascii_lowercase() {
        return Err(Fault::failed(format!(
            "the answer is of model {}, {} has id {id}: give the model it was made with",
            answer.model_id,
            command.model.unwrap_or_default()
        )));
    }
    let run = answer.run.params().doing(|| format!("cannot audit {}", command.file.display()))?;
    if run.sampling != Sampling::GREEDY && !sworn_gateway::selection::samples(&model) {
        return Err(Fault::failed(format!(
            "the answer was sampled, but model {id} takes the most likely token always: the file was changed, or the model's node answered greedily"
        )));
    }
    let report = backend::cancellable(move |cancel| {
        let chosen = backend::open(model, command.backend)?;
        let audit = sworn_engine::audit(&*chosen.backend, &answer.input_tokens, &answer.tokens, &run, Some(cancel))?;
        let root = id_text(&audit.trace.root);
        let wrong_token = audit.first_wrong_token(&answer.tokens);
        let difference = if let Some(index) = wrong_token {
            let at = index as usize;
            Some(Difference::Token { index, claimed: answer.tokens[at], selected: audit.selected[at] })
        } else if root == answer.trace_root.to_ascii_lowercase() {
            None
        } else {
            let dims = &audit.trace.dims;
            let leaf = answer.tree(dims).and_then(|claimed| audit.trace.tree.first_difference(&claimed));
            Some(match leaf {
                Some((layer, row)) => Difference::Leaf { layer, row, position: dims.position(layer, row) },
                None => Difference::Root,
            })
        };
        Ok(Report {
            ok: difference.is_none(),
            trace_root: root,
            claimed_trace_root: answer.trace_root,
            difference,
            positions: audit.trace.dims.positions(),
            tok_s: super::run::round(audit.tok_s),
            about: chosen.about,
            model_id: id,
            signed,
        })
    })
    .await?;
    settings.out.result(&report, |r| {
        let verdict = match &r.difference {
            None => "the answer is what the model gives".to_owned(),
            Some(Difference::Token { index, claimed, selected }) => {
                format!("WRONG: output token {index} is {claimed}, the model selects {selected}")
            }
            Some(Difference::Leaf { layer, row, position }) => {
                format!("WRONG: the traces first differ at layer {layer}, row {row} (position {position})")
            }
            Some(Difference::Root) => {
                "WRONG: the trace roots differ; the file does not carry the leaves that would tell where".to_owned()
            }
        };
        let oath = r.signed.map_or_else(String::new, |s| {
            let by = if s.signed_by == s.node { String::new() } else { format!(" with the key {}", s.signed_by) };
            format!("\n  receipt      {}\n  signed by    {}{by}", s.receipt, s.node)
        });
        format!(
            "{verdict}{oath}\n  re-executed  {}\n  claimed      {}\n  {} positions at {:.0} tok/s",
            r.trace_root, r.claimed_trace_root, r.positions, r.tok_s
        )
    })?;
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
