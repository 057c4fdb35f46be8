//! `sworn run`.

use std::process::ExitCode;

use serde::Serialize;
use sworn_engine::{Request, generate};

use crate::answer::SavedAnswer;
use crate::args::Run;
use crate::backend::{self, About};
use crate::fault::Result;
use crate::models::{self, id_text};
use crate::output::note;
use crate::prompt;
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
    input_tokens: Vec<u32>,
}

pub(super) async fn run(settings: &Settings, command: Run) -> Result<ExitCode> {
    let prompt = prompt::read(&command.prompt)?;
    let model = models::load(settings, &command.engine.model)?;
    let input = prompt::encode(&model, &prompt, command.raw)?;
    let name = command.engine.model.clone();
    let out = settings.out;
    let (answer, report) = backend::cancellable(move |cancel| {
        let chosen = backend::open(model.clone(), command.engine.backend)?;
        let tokenizer = model.tokenizer()?;
        let mut stream = tokenizer.stream(false);
        let mut text = String::new();
        let mut broken = None;
        let stop = &model.manifest().stop_tokens;
        let request = Request {
            prompt: &input,
            max_new: command.max_tokens,
            stop,
            run: Default::default(),
            cancel: Some(cancel),
        };
        let done = generate(&*chosen.backend, &request, &mut |token| {
            let piece = stream.push(token);
            text.push_str(&piece);
            if let Err(e) = out.stream(&piece) {
                // Nobody reads: stop at the next token.
                cancel.store(true, std::sync::atomic::Ordering::Relaxed);
                broken = Some(e);
            }
        });
        if let Some(fault) = broken {
            return Err(fault);
        }
        let done = done?;
        let rest = stream.finish();
        text.push_str(&rest);
        out.stream(&rest)?;
        let id = id_text(&model.id());
        let answer = SavedAnswer::new(&name, id.clone(), prompt, text.clone(), &input, &done.tokens, &done.trace);
        let report = Report {
            text,
            trace_root: id_text(&done.trace.root),
            layers_root: id_text(&done.trace.layers_root),
            prefill_tok_s: round(done.prefill_tok_s),
            decode_tok_s: round(done.decode_tok_s),
            about: chosen.about,
            model: name,
            model_id: id,
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
        note(format!(
            "{} tokens in, {} out; prefill {:.0} tok/s, decode {:.1} tok/s\ntrace root {}",
            report.input_tokens.len(),
            report.tokens.len(),
            report.prefill_tok_s,
            report.decode_tok_s,
            report.trace_root
        ));
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn round(rate: f64) -> f64 {
    (rate * 100.0).round() / 100.0
}
