//! Dishonest nodes: what is wrong in the commitment, and how the node behaves when asked about it.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use alloy::primitives::{B256, U256};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;
use sworn_bindings::{Target, TargetKind};
use sworn_commit::{Hash, HeadRow, Manifest, TraceTree, tensor, trace};
use sworn_engine::{Backend, Cpu, EngineError, Request, TraceRecorder, audit, generate, replay};
use sworn_isa::logprob::LogProbs;
use sworn_isa::{Opcode, SectionKind};
use sworn_model::{Model, directory};
use sworn_node::{Conduct, Error, Execution, Job, Prover};
use sworn_receipts::{Engine, Receipt};

use crate::tamper::{self, Wanted};

/// What is wrong in the commitment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// nothing
    Nothing,
    /// one element of this operator
    Op(Opcode),
    /// a token that the head did not select
    Token,
    /// another model's answer
    Model,
    /// an exported tensor with a byte beyond its end: a commitment to nothing
    Padding,
}

/// How the node behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// serves and answers what it committed to
    Open,
    /// serves nothing, answers every demand
    Interactive,
    /// serves nothing, answers no demand of this kind or a later one
    Withhold(TargetKind),
    /// serves its trace, answers no demand
    Mute,
    /// serves and answers garbage
    Malformed,
    /// serves the honest trace, answers for the committed one
    SecondStory,
}

/// A lie: `OPCODE`, `token`, `model`, `padding`, `none`, each with an optional `+BEHAVIOUR`; or a behaviour alone, which then lies
/// about a `LINEAR`. Behaviours: `open`, `interactive`, `withhold`, `withhold:positions|oplist|pages`, `mute`, `malformed`,
/// `second-story`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lie {
    /// what is wrong
    pub what: What,
    /// how it is defended
    pub behaviour: Behaviour,
}

/// Not a lie that this crate knows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no lie: give an opcode's name, token, model, padding or none, with +interactive, +withhold, +withhold:positions, +withhold:oplist, +withhold:pages, +mute, +malformed or +second-story if wanted"
)]
pub struct UnknownLie(String);

impl FromStr for Lie {
    type Err = UnknownLie;

    fn from_str(s: &str) -> Result<Self, UnknownLie> {
        let unknown = || UnknownLie(s.to_owned());
        let what = |s: &str| match s {
            "none" => Some(What::Nothing),
            "token" => Some(What::Token),
            "model" => Some(What::Model),
            "padding" => Some(What::Padding),
            other => Opcode::from_name(other).map(What::Op),
        };
        let behaviour = |s: &str| {
            Some(match s {
                "open" => Behaviour::Open,
                "interactive" => Behaviour::Interactive,
                "withhold" | "withhold:layers" => Behaviour::Withhold(TargetKind::Layers),
                "withhold:positions" => Behaviour::Withhold(TargetKind::Positions),
                "withhold:oplist" => Behaviour::Withhold(TargetKind::OpList),
                "withhold:pages" => Behaviour::Withhold(TargetKind::Pages),
                "mute" => Behaviour::Mute,
                "malformed" => Behaviour::Malformed,
                "second-story" => Behaviour::SecondStory,
                _ => return None,
            })
        };
        let lower = s.to_ascii_lowercase();
        match lower.split_once('+') {
            Some((w, b)) => {
                Ok(Lie { what: what(w).ok_or_else(unknown)?, behaviour: behaviour(b).ok_or_else(unknown)? })
            }
            None => match (what(&lower), behaviour(&lower)) {
                (Some(what), _) => Ok(Lie { what, behaviour: Behaviour::Open }),
                (None, Some(behaviour)) => Ok(Lie { what: What::Op(Opcode::Linear), behaviour }),
                (None, None) => Err(unknown()),
            },
        }
    }
}

impl fmt::Display for Lie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.what {
            What::Nothing => f.write_str("none")?,
            What::Op(o) => f.write_str(o.name())?,
            What::Token => f.write_str("token")?,
            What::Model => f.write_str("model")?,
            What::Padding => f.write_str("padding")?,
        }
        match self.behaviour {
            Behaviour::Open => Ok(()),
            Behaviour::Interactive => f.write_str("+interactive"),
            Behaviour::Withhold(TargetKind::Positions) => f.write_str("+withhold:positions"),
            Behaviour::Withhold(TargetKind::OpList) => f.write_str("+withhold:oplist"),
            Behaviour::Withhold(TargetKind::Pages | TargetKind::Page) => f.write_str("+withhold:pages"),
            Behaviour::Withhold(_) => f.write_str("+withhold"),
            Behaviour::Mute => f.write_str("+mute"),
            Behaviour::Malformed => f.write_str("+malformed"),
            Behaviour::SecondStory => f.write_str("+second-story"),
        }
    }
}

/// What was told wrongly in a job: the first wrong element of the commitment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename = "lied")]
pub struct Told {
    /// the job
    pub job: U256,
    /// as it was asked for
    pub lie: String,
    /// layer of the wrong element
    pub layer: u16,
    /// its row
    pub row: u32,
    /// its position in the sequence
    pub position: u32,
    /// its operator
    pub op: usize,
    /// the operator's name
    pub opcode: String,
    /// the element
    pub element: u64,
    /// the value that is committed to
    pub claimed: i64,
    /// the right value
    pub honest: i64,
}

/// Everything about one answered job.
struct Story {
    tokens: Vec<u32>,
    /// What is committed to.
    claimed: TraceTree,
    /// What an honest node would have committed to for these tokens.
    honest: TraceTree,
    /// Repeats the committed run.
    cpu: Cpu,
    /// An exported operator whose root is that of its tensor with a zero behind its end.
    padded: Option<(u16, u32, usize)>,
}

type TellFn = Arc<dyn Fn(&Told) + Send + Sync>;

/// A dishonest prover; also its own conduct. Cheap to clone.
#[derive(Clone)]
pub struct Liar(Arc<Inner>);

struct Inner {
    lie: Lie,
    wanted: Wanted,
    seed: u64,
    honest: BTreeMap<B256, Cpu>,
    /// For [`What::Model`].
    perturbed: BTreeMap<B256, Cpu>,
    stories: Mutex<HashMap<U256, Arc<Story>>>,
    tell: TellFn,
}

impl fmt::Debug for Liar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Liar({})", self.0.lie)
    }
}

impl Liar {
    /// A node that answers jobs of `cpu`'s model with a lie. `scratch` holds a perturbed copy of the model if the lie needs one.
    ///
    /// # Errors
    /// The copy cannot be made.
    pub fn new(
        cpu: Cpu,
        lie: Lie,
        wanted: Wanted,
        seed: u64,
        scratch: &Path,
        tell: impl Fn(&Told) + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let id = B256::from(cpu.model().id());
        let mut perturbed = BTreeMap::new();
        if lie.what == What::Model {
            perturbed.insert(id, Cpu::new(Arc::new(perturb(cpu.model(), seed, scratch)?))?);
        }
        let honest = BTreeMap::from([(id, cpu)]);
        let stories = Mutex::default();
        Ok(Liar(Arc::new(Inner { lie, wanted, seed, honest, perturbed, stories, tell: Arc::new(tell) })))
    }

    fn cpu(&self, job: &Job) -> Result<&Cpu, Error> {
        self.0.honest.get(&job.model).ok_or(Error::NoModel { job: job.id, model: job.model })
    }

    /// The same job always has the same story, also in another process.
    fn story(&self, job: &Job) -> Result<Arc<Story>, Error> {
        let mut stories = self.0.stories.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(story) = stories.get(&job.id) {
            return Ok(story.clone());
        }
        let story = Arc::new(self.invent(job)?);
        if let Some(told) = self.told(job, &story)? {
            (self.0.tell)(&told);
        }
        stories.insert(job.id, story.clone());
        Ok(story)
    }

    fn invent(&self, job: &Job) -> Result<Story, Error> {
        let cpu = self.cpu(job)?;
        let stop = &cpu.model().manifest().stop_tokens;
        let request = Request { prompt: &job.prompt, max_new: job.max_new, stop, run: job.run, cancel: None };
        let plain = |dishonest: &Cpu| -> Result<Story, Error> {
            let run = generate(dishonest, &request, &mut |_| {})?;
            let honest = audit(cpu, &job.prompt, &run.tokens, &job.run, None)?.trace.tree;
            Ok(Story { tokens: run.tokens, claimed: run.trace.tree, honest, cpu: dishonest.clone(), padded: None })
        };
        match self.0.lie.what {
            What::Nothing => plain(cpu),
            What::Op(opcode) => {
                let l = tamper::lie(cpu, &request, opcode, self.0.wanted, self.0.seed)?;
                let (tokens, claimed) = (l.generation.tokens, l.generation.trace.tree);
                Ok(Story { tokens, claimed, honest: l.honest.trace.tree, cpu: l.cpu, padded: None })
            }
            What::Token => {
                let tokens = other_token(cpu, &request, self.0.seed)?;
                let claimed = audit(cpu, &job.prompt, &tokens, &job.run, None)?.trace.tree;
                Ok(Story { tokens, claimed: claimed.clone(), honest: claimed, cpu: cpu.clone(), padded: None })
            }
            What::Model => match self.0.perturbed.get(&job.model) {
                Some(other) => plain(other),
                None => Err(Error::NoModel { job: job.id, model: job.model }),
            },
            What::Padding => {
                let mut story = plain(cpu)?;
                let layers = cpu.model().layers();
                let mut rng = StdRng::seed_from_u64(self.0.seed);
                let layer = self.0.wanted.layer.unwrap_or_else(|| rng.random_range(1..=layers)).clamp(1, layers);
                let row = self.0.wanted.position.unwrap_or_else(|| rng.random_range(0..job.prompt.len() as u32));
                let op = cpu.model().program().section(SectionKind::Block).exports()[0];
                let mut leaves: Vec<Vec<Hash>> = story.claimed.layers().iter().map(|l| l.leaves().to_vec()).collect();
                story.padded = Some((layer, row, op));
                let ops = replay(cpu, &job.prompt, &story.tokens, &job.run, layer, row)?.ops;
                let list = roots(&ops, story.padded, layer, row);
                let exports = cpu.model().program().section(SectionKind::Block).exports();
                let exported: Vec<Hash> = exports.iter().map(|k| list[*k]).collect();
                leaves[layer as usize][row as usize] = trace::leaf(&exported);
                story.claimed = TraceTree::new(leaves);
                Ok(story)
            }
        }
    }

    /// The first wrong element of the story.
    fn told(&self, job: &Job, story: &Story) -> Result<Option<Told>, Error> {
        let cpu = self.cpu(job)?;
        let model = cpu.model();
        let dims = sworn_commit::TraceDims {
            layers: model.layers(),
            n_in: job.prompt.len() as u32,
            n_out: story.tokens.len() as u32,
        };
        let lie = self.0.lie.to_string();
        let tell = |layer: u16, row: u32, op: usize, element: usize, claimed: i64, honest: i64| {
            let kind = SectionKind::of_layer(layer, dims.layers).unwrap_or(SectionKind::Head);
            let opcode = model.program().section(kind).ops[op].opcode.name().to_owned();
            let position = dims.position(layer, row);
            Some(Told {
                job: job.id,
                lie: lie.clone(),
                layer,
                row,
                position,
                op,
                opcode,
                element: element as u64,
                claimed,
                honest,
            })
        };
        let Some((layer, row)) = story.claimed.first_difference(&story.honest) else {
            // An honest trace with a token that the head did not select.
            let selected = audit(cpu, &job.prompt, &story.tokens, &job.run, None)?;
            let Some(row) = selected.first_wrong_token(&story.tokens) else { return Ok(None) };
            let ops = &model.program().section(SectionKind::Head).ops;
            let op = ops.iter().position(|d| matches!(d.opcode, Opcode::Select | Opcode::Sample)).unwrap_or(0);
            let (claimed, honest) = (selected.selected[row as usize], story.tokens[row as usize]);
            return Ok(tell(dims.layers + 1, row, op, 0, claimed.into(), honest.into()));
        };
        if let Some((layer, row, op)) = story.padded {
            return Ok(tell(layer, row, op, 0, 0, 0));
        }
        let claimed = replay(&story.cpu, &job.prompt, &story.tokens, &job.run, layer, row)?.ops;
        let honest = replay(cpu, &job.prompt, &story.tokens, &job.run, layer, row)?.ops;
        let kind = SectionKind::of_layer(layer, dims.layers).unwrap_or(SectionKind::Head);
        let wrong = claimed.iter().zip(&honest).position(|(a, b)| a != b);
        Ok(wrong.and_then(|op| {
            let d = &model.program().section(kind).ops[op];
            let byte = claimed[op].iter().zip(&honest[op]).position(|(a, b)| a != b)?;
            let at = byte / d.dtype.width() * d.dtype.width();
            let value = |t: &[u8]| d.dtype.decode(&t[at..]);
            tell(layer, row, op, at / d.dtype.width(), value(&claimed[op]), value(&honest[op]))
        }))
    }
}

/// The posted operator list.
fn roots(ops: &[Vec<u8>], padded: Option<(u16, u32, usize)>, layer: u16, row: u32) -> Vec<Hash> {
    let mut roots: Vec<Hash> = ops.iter().map(|t| tensor::tensor_root(t)).collect();
    if let Some((l, r, op)) = padded
        && (l, r) == (layer, row)
    {
        let mut longer = ops[op].clone();
        longer.push(0);
        roots[op] = tensor::tensor_root(&longer);
    }
    roots
}

/// An answer with one token replaced by another that is no stop token.
fn other_token(cpu: &Cpu, request: &Request<'_>, seed: u64) -> Result<Vec<u32>, EngineError> {
    let model = cpu.model();
    let (n_in, vocab) = (request.prompt.len() as u32, model.manifest().vocab);
    let mut rng = StdRng::seed_from_u64(seed);
    let honest = generate(cpu, request, &mut |_| {})?.tokens;
    // The last token may be a stop token that the contract insists on.
    let at = rng.random_range(0..honest.len().saturating_sub(1).max(1)).min(6);
    let capacity = n_in + request.max_new;
    let mut recorder = TraceRecorder::new(model.layers(), n_in, None);
    let mut session = cpu.session(capacity.min(model.manifest().max_positions))?;
    session.set_run(request.run)?;
    let mut next = session.extend(request.prompt, n_in - 1, &mut recorder)?;
    let mut tokens = Vec::new();
    loop {
        let mut token = next.first().copied().unwrap_or(0);
        if tokens.len() == at {
            let selected = token;
            while token == selected || request.stop.contains(&token) {
                token = rng.random_range(0..vocab);
            }
        }
        tokens.push(token);
        if tokens.len() as u32 >= request.max_new || request.stop.contains(&token) {
            return Ok(tokens);
        }
        next = session.extend(&[token], session.len(), &mut recorder)?;
    }
}

/// A copy of the model with another matrix than its id names; loading does not notice, verifying does.
///
/// # Errors
/// The copy cannot be made.
pub fn perturb(model: &Model, seed: u64, scratch: &Path) -> Result<Model, Error> {
    let dir = scratch.join("perturbed");
    let fail = |source| Error::File { path: dir.clone(), source };
    std::fs::create_dir_all(&dir).map_err(fail)?;
    for entry in std::fs::read_dir(model.path()).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        if entry.path().is_file() {
            std::fs::copy(entry.path(), dir.join(entry.file_name())).map_err(fail)?;
        }
    }
    // A matrix of a block: loading checks its recorded root, not its bytes.
    let entries = &model.index().weights;
    let at = 1 + seed as usize % (entries.len() - 1).max(1);
    let start: u64 = entries[..at].iter().map(|e| e.bytes()).sum();
    let matrix = model.weight(at);
    let path = dir.join(directory::WEIGHTS);
    let mut bytes = std::fs::read(&path).map_err(fail)?;
    for row in 0..matrix.rows {
        let from = start as usize + row * matrix.row_bytes() + 4 * matrix.scales;
        for b in &mut bytes[from..from + matrix.cols] {
            *b = (*b as i8).wrapping_neg() as u8;
        }
    }
    std::fs::write(&path, bytes).map_err(fail)?;
    Model::load(&dir).map_err(|e| Error::Prover(e.to_string()))
}

impl Prover for Liar {
    fn models(&self) -> Vec<B256> {
        self.0.honest.keys().copied().collect()
    }

    fn engines(&self) -> Vec<Engine> {
        self.0.honest.values().map(|cpu| Engine { backend: cpu.name().into(), adapter: cpu.adapter() }).collect()
    }

    fn layers(&self, model: B256) -> Option<u16> {
        self.0.honest.get(&model).map(|cpu| cpu.model().layers())
    }

    fn manifest(&self, model: B256) -> Option<Manifest> {
        self.0.honest.get(&model).map(|cpu| cpu.model().manifest().clone())
    }

    fn execute(&self, job: &Job, _cancel: &Arc<AtomicBool>) -> Result<Execution, Error> {
        let story = self.story(job)?;
        Ok(Execution { tokens: story.tokens.clone(), trace: story.claimed.clone(), log_probs: Vec::new() })
    }

    fn leaves(&self, job: &Job, _tokens: &[u32]) -> Result<TraceTree, Error> {
        Ok(self.story(job)?.claimed.clone())
    }

    fn log_probs(&self, job: &Job, tokens: &[u32]) -> Result<Vec<HeadRow>, Error> {
        let story = self.story(job)?;
        let model = story.cpu.model();
        let Some(at) = LogProbs::find(&model.program().section(SectionKind::Head).ops) else { return Ok(Vec::new()) };
        let row = |row: u32| {
            let ops = self.ops(job, tokens, model.layers() + 1, row)?;
            let exports = [at.token, at.top, at.log_prob].map(|k| &ops[k][..]);
            HeadRow::from_exports(&exports).ok_or_else(|| Error::Prover("a head of another shape".into()))
        };
        (0..tokens.len() as u32).map(row).collect()
    }

    fn ops(&self, job: &Job, tokens: &[u32], layer: u16, row: u32) -> Result<Vec<Vec<u8>>, Error> {
        let story = self.story(job)?;
        Ok(replay(&story.cpu, &job.prompt, tokens, &job.run, layer, row)?.ops)
    }
}

impl Conduct for Liar {
    fn serves(&self, _: &Receipt) -> bool {
        !matches!(self.0.lie.behaviour, Behaviour::Mute | Behaviour::Interactive | Behaviour::Withhold(_))
    }

    fn publishes(&self, _: &Receipt) -> bool {
        self.0.lie.behaviour != Behaviour::Mute
    }

    fn answers(&self, _: &Job, target: &Target) -> bool {
        match self.0.lie.behaviour {
            Behaviour::Withhold(from) => (target.kind as u8) < from as u8,
            Behaviour::Mute => false,
            _ => true,
        }
    }

    fn answer(&self, job: &Job, target: &Target, mut computed: Vec<u8>) -> Vec<u8> {
        if self.0.lie.behaviour == Behaviour::Malformed {
            // As long as the right answer, so that it gets as far as the hash.
            computed.iter_mut().enumerate().for_each(|(i, b)| *b = b.wrapping_add(i as u8 | 1));
        }
        let story = self.story(job);
        // What it committed to, which is longer than the shape says.
        if let (Ok(story), TargetKind::Page) = (&story, target.kind)
            && story.padded == Some((target.layer, target.row, target.op.into()))
        {
            computed.push(0);
        }
        if let (Ok(story), TargetKind::OpList) = (&story, target.kind)
            && story.padded.is_some_and(|(l, r, _)| (l, r) == (target.layer, target.row))
            && let Ok(ops) = self.ops(job, &story.tokens, target.layer, target.row)
        {
            return roots(&ops, story.padded, target.layer, target.row).concat();
        }
        computed
    }

    fn serve_trace(&self, job: &Job, trace: TraceTree) -> Option<TraceTree> {
        match self.0.lie.behaviour {
            Behaviour::Open | Behaviour::Mute => Some(trace),
            Behaviour::Interactive | Behaviour::Withhold(_) => None,
            Behaviour::SecondStory => Some(self.story(job).ok()?.honest.clone()),
            Behaviour::Malformed => {
                let garbage = |l: &sworn_commit::Tree| l.leaves().iter().map(|h| sworn_commit::keccak(&[h])).collect();
                Some(TraceTree::new(trace.layers().iter().map(garbage).collect()))
            }
        }
    }

    fn serve_log_probs(&self, job: &Job, mut rows: Vec<HeadRow>) -> Option<Vec<HeadRow>> {
        match self.0.lie.behaviour {
            Behaviour::Open | Behaviour::Mute => Some(rows),
            Behaviour::Interactive | Behaviour::Withhold(_) => None,
            Behaviour::Malformed => {
                rows.iter_mut().flat_map(|row| &mut row.log_probs).for_each(|p| *p /= 2);
                Some(rows)
            }
            Behaviour::SecondStory => {
                let story = self.story(job).ok()?;
                let honest = audit(self.cpu(job).ok()?, &job.prompt, &story.tokens, &job.run, None).ok()?;
                Some(honest.trace.log_probs)
            }
        }
    }

    fn serve_ops(&self, job: &Job, layer: u16, row: u32, ops: Vec<Vec<u8>>) -> Option<Vec<Vec<u8>>> {
        match self.0.lie.behaviour {
            Behaviour::Open | Behaviour::Mute => Some(ops),
            Behaviour::Interactive | Behaviour::Withhold(_) => None,
            Behaviour::Malformed => Some(ops.into_iter().map(|t| vec![0x5A; t.len()]).collect()),
            Behaviour::SecondStory => {
                let story = self.story(job).ok()?;
                replay(self.cpu(job).ok()?, &job.prompt, &story.tokens, &job.run, layer, row).ok().map(|r| r.ops)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lies_are_named_as_they_are_shown() {
        let ops = Opcode::ALL.iter().map(|o| o.name().to_owned());
        let named = [
            "none",
            "token",
            "model",
            "padding",
            "LINEAR+withhold",
            "MIX+withhold:pages",
            "token+mute",
            "ADD+second-story",
        ];
        for name in ops.chain(named.map(str::to_owned)) {
            let lie: Lie = name.parse().unwrap();
            assert_eq!(lie.to_string(), name);
        }
        assert_eq!("withhold".parse::<Lie>().unwrap().to_string(), "LINEAR+withhold");
        assert_eq!("mix+Interactive".parse::<Lie>().unwrap().to_string(), "MIX+interactive");
        assert!("sloth".parse::<Lie>().unwrap_err().to_string().contains("opcode"));
    }
}
