//! `sworn run`.

use std::ops::ControlFlow;
use std::process::ExitCode;

use serde::Serialize;
use sworn_commit::RunParams;
use sworn_engine::{Request, generate_until};
use sworn_gateway::stop::StopText;

use crate::answer::SavedAnswer;
use crate::args::Run;
use crate::backend::{self, About};
use crate::fault::Result;
use crate::logprobs;
use crate::models::{self, id_text};
use crate::output::note;
use crate::prompt;
use crate::sampling::{self, ShownRun};
use crate::settings::Settings;

#[derive(Serialize)]
struct Report {
    tokens: Vec<u32>,
    text: String,
    trace_root: String,
    layers_root: String,
    prefill_tok_s: f64,
    decode_tok_s: f64,
    #[serde(flatten)]
    about: About,
    model: String,
    model_id: String,
    /// With the model and the prompt's tokens, all that a repetition needs.
    #[serde(flatten)]
    run: ShownRun,
    /// The stop string that ended the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    stopped_by: Option<String>,
    /// Of every token, if they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Vec<logprobs::Shown>>,
    input_tokens: Vec<u32>,
}

pub(super) async fn run(settings: &Settings, command: Run) -> Result<ExitCode> {
    let prompt = prompt::read(&command.prompt)?;
    let model = models::load(settings, &command.engine.model)?;
    let input = prompt::encode(&model, &prompt, command.raw)?;
    let sampling = command.sampling.for_model(&model)?;
    let run = RunParams { sampling, seed: sampling::seed(command.seed, &sampling)?.0 };
    let log_probs = command.logprobs.of_model(&model)?;
    prompt::check_stops(&command.stop)?;
    let mut ending = StopText::new(&command.stop);
    let name = command.engine.model.clone();
    let out = settings.out;
    let (answer, report) = backend::cancellable(move |cancel| {
        let chosen = backend::open(model.clone(), command.engine.backend)?;
        let tokenizer = model.tokenizer()?;
        let mut stream = tokenizer.stream(false);
        let mut text = String::new();
        let mut broken = None;
        let shown = ShownRun::new(&run);
        let stop = &model.manifest().stop_tokens;
        let request = Request { prompt: &input, max_new: command.max_tokens, stop, run, cancel: Some(cancel) };
        let done = generate_until(&*chosen.backend, &request, &mut |token| {
            let piece = ending.push(&stream.push(token));
            text.push_str(&piece);
            if let Err(e) = out.stream(&piece) {
                // Nobody reads.
                broken = Some(e);
            }
            match (&broken, ending.stopped_by()) {
                (None, None) => ControlFlow::Continue(()),
                _ => ControlFlow::Break(()),
            }
        });
        if let Some(fault) = broken {
            return Err(fault);
        }
        let done = done?;
        let mut rest = ending.push(&stream.finish());
        rest.push_str(&ending.finish());
        text.push_str(&rest);
        out.stream(&rest)?;
        let id = id_text(&model.id());
        let answer = SavedAnswer::new(&name, id.clone(), prompt, text.clone(), shown, &input, &done);
        let report = Report {
            text,
            trace_root: id_text(&done.trace.root),
            layers_root: id_text(&done.trace.layers_root),
            prefill_tok_s: round(done.prefill_tok_s),
            decode_tok_s: round(done.decode_tok_s),
            about: chosen.about,
            model: name,
            model_id: id,
            run: shown,
            logprobs: log_probs.map(|(n, _)| logprobs::shown(tokenizer, &done.tokens, &done.trace.log_probs, n)),
            stopped_by: ending.stopped_by().map(str::to_owned),
            input_tokens: input,
            tokens: done.tokens,
        };
        Ok((answer, report))
    })
    .await?;
    if let Some(path) = &command.save {
        answer.save(path)?;
        note(format!("saved to {}; `sworn audit {}` re-executes it", path.display(), path.display()));
    }
    if out.json() {
        out.result(&report, |_| String::new())?;
    } else {
        out.stream("\n")?;
        if let Some(shown) = &report.logprobs {
            out.stream(&format!("{}\n", logprobs::text(shown)))?;
        }
        note(format!(
            "{} tokens in, {} out; prefill {:.0} tok/s, decode {:.1} tok/s\n{}trace root {}",
            report.input_tokens.len(),
            report.tokens.len(),
            report.prefill_tok_s,
            report.decode_tok_s,
            if report.run.is_greedy() { String::new() } else { format!("{}\n", report.run.text()) },
            report.trace_root
        ));
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn round(rate: f64) -> f64 {
    (rate * 100.0).round() / 100.0
}
