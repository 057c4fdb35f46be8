//! `sworn eval`.

use std::process::ExitCode;

use serde::Serialize;
use sworn_engine::Cpu;
use sworn_eval::{self as eval, Options};

use crate::args::Eval;
use crate::backend;
use crate::fault::{Doing, Fault, Result};
use crate::models::{self, id_text};
use crate::progress;
use crate::settings::Settings;

#[derive(Serialize)]
struct Report {
    ppl_integer: f64,
    ppl_float: f64,
    ppl_delta_percent: f64,
    standard_error: f64,
    top1_agreement: f64,
    kl: f64,
    tokens: u32,
    model: String,
    model_id: String,
}

pub(super) async fn run(settings: &Settings, command: Eval) -> Result<ExitCode> {
    let text = std::fs::read_to_string(&command.text)
        .doing(|| format!("cannot read the text {}: give a UTF-8 file with --text", command.text.display()))?;
    let model = models::load(settings, &command.model)?;
    let gguf = match command.gguf {
        Some(path) => path,
        None => models::store(settings).source_file(&command.model)?,
    };
    if !gguf.is_file() {
        return Err(Fault::failed(format!(
            "no GGUF at {}: the float reading needs the file the model was imported from; name it with --gguf",
            gguf.display()
        )));
    }
    let limit = command.limit;
    let name = command.model.clone();
    let report = backend::cancellable(move |_cancel| {
        let tokens = model.encode_text(&eval::unwrap_lines(&text))?;
        let mut options = Options::default();
        if let Some(limit) = limit {
            options.max_tokens = limit.try_into().unwrap_or(u32::MAX);
        }
        let cpu = Cpu::new(model.clone())?;
        let bar = progress::bar("evaluating", 0);
        let result = eval::evaluate(&cpu, &gguf, &tokens, &options, &mut |p| {
            bar.set_length(p.total.into());
            bar.set_position(p.done.into());
        });
        bar.finish_and_clear();
        let e = result?;
        Ok(Report {
            ppl_integer: e.ppl_integer,
            ppl_float: e.ppl_float,
            ppl_delta_percent: e.ppl_delta_percent,
            standard_error: e.standard_error,
            top1_agreement: e.top1_agreement,
            kl: e.kl,
            tokens: e.tokens,
            model: name,
            model_id: id_text(&model.id()),
        })
    })
    .await?;
    settings.out.result(&report, |r| {
        format!(
            "perplexity, integer  {:.4}\nperplexity, float    {:.4}\ndifference           {:+.3} % ± {:.3}\nsame top token       {:.2} %\nKL divergence        {:.6}\ntokens               {}",
            r.ppl_integer,
            r.ppl_float,
            r.ppl_delta_percent,
            r.standard_error,
            r.top1_agreement * 100.0,
            r.kl,
            r.tokens
        )
    })?;
    Ok(ExitCode::SUCCESS)
}
