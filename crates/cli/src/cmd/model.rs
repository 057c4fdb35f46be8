//! `sworn model`.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use alloy::primitives::B256;
use serde::Serialize;
use sworn_bindings::IModels;
use sworn_chain::Receipt;
use sworn_engine::{Cpu, calibrate::Calibrator};
use sworn_isa::{Opcode, OperandKind, SectionKind};
use sworn_model::{ImportOptions, Model, ModelError, ModelStore, Progress, Stage, WeightFormats};

use crate::args;
use crate::fault::{Fault, Result};
use crate::link::{Account, Viewed};
use crate::logprobs::log_probs;
use crate::models::{self, id_text};
use crate::output::note;
use crate::progress::ModelProgress;
use crate::settings::Settings;
use sworn_gateway::selection::samples;

#[derive(Serialize)]
struct Row {
    name: String,
    model_id: String,
    title: String,
    parameters: u64,
    layers: u16,
    path: PathBuf,
}

#[derive(Serialize)]
struct Shown {
    name: String,
    model_id: String,
    path: PathBuf,
    architecture: String,
    /// Names of the row formats, with the bytes of all matrices in each.
    formats: BTreeMap<&'static str, u64>,
    /// Bytes of weights that one token reads.
    bytes_per_token: u64,
    /// Whether runs may sample.
    sampling: bool,
    /// How many likely tokens a run commits to with their log-probabilities; 0: none.
    logprobs: usize,
    selection: String,
    parameters: u64,
    layers: u16,
    vocab: u32,
    max_positions: u32,
    stop_tokens: Vec<u32>,
    operators: [u16; 3],
    matrices: u32,
    tables: u32,
    weights_root: String,
    tables_root: String,
    rounding: String,
    source_sha256: String,
    license: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    program: Vec<Operator>,
}

/// What became of a registration.
#[derive(Serialize)]
pub(crate) struct Registered {
    model_id: String,
    /// none: it was registered already
    pub(crate) transaction: Option<Receipt>,
}

#[derive(Serialize)]
struct Operator {
    section: &'static str,
    op: usize,
    opcode: &'static str,
    dtype: String,
    exported: bool,
}

#[derive(Serialize)]
struct Verified {
    model_id: String,
    recomputed: String,
    ok: bool,
}

pub(super) async fn run(settings: &Settings, verb: args::Model) -> Result<ExitCode> {
    match verb {
        args::Model::Pull { name } => {
            let home = settings.home.clone();
            let stored = name.clone();
            let model = blocking(move |progress| sworn_model::pull(&name, home, progress)).await?;
            show(settings, &stored, &model, false)?;
        }
        args::Model::Import(command) => import(settings, command).await?,
        args::Model::List => list(settings)?,
        args::Model::Show { model, program } => {
            let loaded = models::load(settings, &model)?;
            show(settings, &model, &loaded, program)?;
        }
        args::Model::Verify { model } => {
            let loaded = models::load(settings, &model)?;
            let id = loaded.id();
            let recomputed = blocking(move |progress| loaded.verify(progress)).await?;
            let verified = Verified { model_id: id_text(&id), recomputed: id_text(&recomputed), ok: id == recomputed };
            settings.out.result(&verified, |v| {
                if v.ok {
                    format!("{}  every byte agrees", v.model_id)
                } else {
                    format!("{}  DIFFERS: the bytes give {}", v.model_id, v.recomputed)
                }
            })?;
            if !verified.ok {
                note("the model's files were changed: import or pull it again");
                return Ok(ExitCode::FAILURE);
            }
        }
        args::Model::Register { model, hint } => {
            let loaded = models::load(settings, &model)?;
            let account = Account::open(settings).await?;
            let registered = register(&account, &loaded, hint).await?;
            settings.out.result(&registered, |r| match &r.transaction {
                Some(receipt) => format!("{}  registered  {}", r.model_id, receipt.hash),
                None => format!("{}  was registered already", r.model_id),
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn import(settings: &Settings, command: args::Import) -> Result<()> {
    let from = std::path::absolute(&command.path)?;
    let name = match command.name {
        Some(name) => name,
        None => name_from(&from)?,
    };
    let to = models::store(settings).directory(&name)?;
    let options = ImportOptions {
        max_positions: command.max_positions,
        name: Some(name.clone()),
        weights: match command.weights {
            args::Weights::Auto => WeightFormats::Auto,
            args::Weights::Int8 => WeightFormats::Int8,
        },
        sampling: !command.greedy,
        log_probs: !command.no_logprobs,
    };
    let path = command.path;
    let model = match command.calibrate {
        None => blocking(move |progress| sworn_model::import(&path, &to, &options, progress)).await?,
        Some(text) => {
            let text = std::fs::read_to_string(&text)
                .map_err(|e| Fault::usage(format!("reading the calibration text {}: {e}", text.display())))?;
            blocking(move |progress| calibrated(&path, &to, &options, &text, progress)).await?
        }
    };
    if !command.greedy && !samples(&model) {
        note("this model's vocabulary does not allow sampling: runs take the most likely token");
    }
    if !command.no_logprobs && log_probs(&model) == 0 {
        note("this model's vocabulary does not allow log-probabilities: runs commit to the tokens alone");
    }
    remember_source(&models::store(settings), &name, &from);
    show(settings, &name, &model, false)
}

/// Imports a model twice: rounded to nearest, to run the text with it, and then as the text asks for.
fn calibrated(
    path: &std::path::Path,
    to: &std::path::Path,
    options: &ImportOptions,
    text: &str,
    progress: sworn_model::OnProgress<'_>,
) -> sworn_model::Result<Model> {
    /// Positions that see one another.
    const WINDOW: usize = 512;
    /// Bytes of second moments that are kept at once.
    const BUDGET: u64 = 2 << 30;
    if to.exists() {
        // What the importer would say after minutes of work.
        return sworn_model::import(path, to, options, progress);
    }
    let nearest = to.with_extension("nearest");
    let _ = std::fs::remove_dir_all(&nearest);
    let model = sworn_model::import(path, &nearest, options, &mut *progress);
    let result = model.and_then(|model| {
        let tokens = model.encode_text(text)?;
        let failed = |e: sworn_engine::EngineError| ModelError::Argument(format!("calibrating: {e}"));
        let mut calibrator = Calibrator::new(Cpu::new(Arc::new(model)).map_err(failed)?, &tokens, WINDOW, BUDGET);
        let total = calibrator.tokens() as u64;
        // The importer and what it asks for take turns with one bar.
        let progress = RefCell::new(progress);
        let mut compensation = |matrix| {
            let mut show = |_, _, done: usize| {
                progress.borrow_mut()(Progress { stage: Stage::Calibrate, done: done as u64, total });
                Ok(())
            };
            calibrator.compensation(matrix, &mut show).map_err(failed)
        };
        let shared: sworn_model::OnProgress<'_> = &mut |p| progress.borrow_mut()(p);
        sworn_model::import_calibrated(path, to, options, &mut compensation, shared)
    });
    let _ = std::fs::remove_dir_all(&nearest);
    result
}

/// Registers a model, unless somebody has.
pub(crate) async fn register(account: &Account, model: &Model, hint: String) -> Result<Registered> {
    let models = account.link.chain.models();
    let model_id = id_text(&model.id());
    if models.exists(B256::from(model.id())).call().await.viewed()? {
        return Ok(Registered { model_id, transaction: None });
    }
    let call = IModels::registerCall {
        manifest: model.manifest().encode().into(),
        program: model.program().encode().into(),
        hint,
    };
    Ok(Registered { model_id, transaction: Some(account.send(*models.address(), &call).await?) })
}

/// Runs long work of the model crate off the async threads, with a progress bar.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce(sworn_model::OnProgress<'_>) -> sworn_model::Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(move || {
        let mut progress = ModelProgress::new();
        work(&mut |p| progress.show(p))
    });
    Ok(done.await??)
}

fn name_from(path: &std::path::Path) -> Result<String> {
    // A directory's name has no extension, though it may have points.
    let stem = if path.is_dir() { path.file_name() } else { path.file_stem() };
    let stem = stem.and_then(|s| s.to_str()).unwrap_or_default();
    let name: String = stem
        .to_ascii_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' })
        .collect();
    if name.is_empty() { Err(Fault::usage("give the model a name with --name")) } else { Ok(name) }
}

/// `sworn eval` needs the float model again; a link costs nothing and a copy would double the disk use.
fn remember_source(store: &ModelStore, name: &str, from: &std::path::Path) {
    // A directory of safetensors is no GGUF, which is what the link is for.
    if let Ok(link) = store.source_file(name)
        && from.is_file()
        && !link.exists()
    {
        #[cfg(unix)]
        let _ = std::os::unix::fs::symlink(from, link);
        #[cfg(not(unix))]
        let _ = (from, link);
    }
}

/// What the weights of a model take.
struct Weights {
    formats: BTreeMap<&'static str, u64>,
    per_token: u64,
}

impl Weights {
    fn of(model: &Model) -> Self {
        let mut weights = Self { formats: BTreeMap::new(), per_token: 0 };
        let count = model.index().weights.len();
        // Of a matrix that is only looked up in, a token reads one row; every block has matrices of its own.
        let multiplied: BTreeSet<usize> = (0..=model.layers() + 1)
            .filter_map(|layer| Some((layer, model.program().section(model.section_kind(layer)?))))
            .flat_map(|(layer, section)| {
                let linear = section.ops.iter().filter(|d| d.opcode == Opcode::Linear);
                let operands = linear.flat_map(|d| d.operands.iter().filter(|o| o.kind == OperandKind::Weight));
                operands.map(move |o| Model::resolve(o, layer))
            })
            .collect();
        for i in 0..count {
            let matrix = model.weight(i);
            *weights.formats.entry(matrix.format.name()).or_default() += matrix.bytes.len() as u64;
            let read = if multiplied.contains(&i) { matrix.bytes.len() } else { matrix.row_bytes() };
            weights.per_token += read as u64;
        }
        weights
    }
}

fn formats_text(formats: &BTreeMap<&'static str, u64>) -> String {
    let parts: Vec<_> = formats.iter().map(|(name, bytes)| format!("{name} {:.1} MB", *bytes as f64 / 1e6)).collect();
    parts.join(", ")
}

fn list(settings: &Settings) -> Result<()> {
    let store = models::store(settings);
    let mut rows = Vec::new();
    for name in store.list()? {
        match store.load(&name) {
            Ok(model) => rows.push(Row {
                model_id: id_text(&model.id()),
                title: model.description().name.clone(),
                parameters: model.description().parameters,
                layers: model.layers(),
                path: model.path().to_owned(),
                name,
            }),
            Err(e) => note(format!("{name}: {e}")),
        }
    }
    settings.out.result(&rows, |rows| {
        if rows.is_empty() {
            return format!("no models under {}; `sworn model pull` fetches the default one", store.home().display());
        }
        let mut table = crate::output::table(["name", "model id", "parameters", "blocks", "title"]);
        for r in rows {
            table.add_row([
                r.name.clone(),
                r.model_id.clone(),
                format!("{:.1} M", r.parameters as f64 / 1e6),
                r.layers.to_string(),
                r.title.clone(),
            ]);
        }
        table.to_string()
    })
}

fn show(settings: &Settings, name: &str, model: &Model, program: bool) -> Result<()> {
    let (manifest, description) = (model.manifest(), model.description());
    let operators = |kind: SectionKind, section: &'static str| {
        model.program().section(kind).ops.iter().enumerate().map(move |(op, d)| Operator {
            section,
            op,
            opcode: d.opcode.name(),
            dtype: format!("{:?}", d.dtype).to_uppercase(),
            exported: d.export,
        })
    };
    let listed = if program {
        operators(SectionKind::Embedding, "embedding")
            .chain(operators(SectionKind::Block, "block"))
            .chain(operators(SectionKind::Head, "head"))
            .collect()
    } else {
        Vec::new()
    };
    let weights = Weights::of(model);
    let shown = Shown {
        name: name.to_owned(),
        model_id: id_text(&model.id()),
        path: model.path().to_owned(),
        architecture: description.architecture.clone(),
        formats: weights.formats,
        bytes_per_token: weights.per_token,
        sampling: samples(model),
        logprobs: log_probs(model),
        selection: description.selection.clone(),
        parameters: description.parameters,
        layers: manifest.layers,
        vocab: manifest.vocab,
        max_positions: manifest.max_positions,
        stop_tokens: manifest.stop_tokens.clone(),
        operators: manifest.op_counts,
        matrices: manifest.weights,
        tables: manifest.tables,
        weights_root: id_text(&manifest.weights_root),
        tables_root: id_text(&manifest.tables_root),
        rounding: description.rounding.clone(),
        source_sha256: description.source.sha256.clone(),
        license: description.source.license.clone(),
        program: listed,
    };
    settings.out.result(&shown, |s| {
        let mut text = format!(
            "{}\n  id            {}\n  from          {} (sha256 {})\n  licence       {}\n  size          {} weights, {} blocks, {} tokens, {} positions at most\n  program       {} + {} + {} operators (embedding, block, head)\n  weights       {}; {:.1} MB read per token\n  rounding      {}\n  selection     {}\n  logprobs      {}\n  directory     {}",
            s.name,
            s.model_id,
            s.architecture,
            s.source_sha256,
            s.license.as_deref().unwrap_or("not stated"),
            s.parameters,
            s.layers,
            s.vocab,
            s.max_positions,
            s.operators[0],
            s.operators[1],
            s.operators[2],
            formats_text(&s.formats),
            s.bytes_per_token as f64 / 1e6,
            s.rounding,
            s.selection,
            match s.logprobs {
                0 => "none".to_owned(),
                n => format!("of the token and the {n} most likely"),
            },
            s.path.display(),
        );
        for o in &s.program {
            text.push_str(&format!("\n  {:<9} {:>3}  {:<11} {}{}", o.section, o.op, o.opcode, o.dtype, if o.exported { "  exported" } else { "" }));
        }
        text
    })
}
