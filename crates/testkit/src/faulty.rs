//! A JSON-RPC server between an agent and its chain that fails in every way that servers do: late, refusing, losing requests or answers,
//! sending a transaction twice, an old head. What it says is true, or was a moment ago. It may also be the death of its client: between a
//! request and its answer is where a program that is killed finds itself.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::devnet::DevnetError;
use crate::process::{Process, unpoisoned};

/// Heads that are remembered.
const OLD: usize = 4;

/// The server.
pub struct FaultyRpc {
    /// Where it listens.
    pub url: String,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    upstream: String,
    http: reqwest::Client,
    calm: AtomicBool,
    state: Mutex<Faults>,
}

struct Faults {
    rng: StdRng,
    /// One request of so many meets a fault.
    rarity: u32,
    heads: VecDeque<Value>,
    /// Until when everything is refused.
    outage: Option<Instant>,
    /// Whom requests kill, and how often still.
    victim: Option<(Arc<Process>, u32)>,
    met: BTreeMap<&'static str, u64>,
}

/// What befalls a request.
enum Fate {
    Passes,
    Delayed(Duration),
    /// Never forwarded.
    Lost,
    /// Forwarded, but the answer is lost.
    Unanswered,
    Twice,
    Busy,
    OldHead(Value),
    /// The connection stays open and nothing is ever said.
    Silence,
    /// The client is killed before its request is forwarded, or after.
    Death(Arc<Process>, bool),
}

impl FaultyRpc {
    /// Before a chain's server; how it fails follows from a seed.
    ///
    /// # Errors
    /// It cannot listen.
    pub async fn start(upstream: &str, seed: u64) -> Result<Self, DevnetError> {
        let mut rng = StdRng::seed_from_u64(seed);
        let rarity = rng.random_range(5..20);
        let state = Mutex::new(Faults {
            rng,
            rarity,
            heads: VecDeque::new(),
            outage: None,
            victim: None,
            met: BTreeMap::new(),
        });
        let http = reqwest::Client::new();
        let shared = Arc::new(Shared { upstream: upstream.to_owned(), http, calm: AtomicBool::new(false), state });
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(DevnetError::other)?;
        let url = format!("http://{}", listener.local_addr().map_err(DevnetError::other)?);
        let router = Router::new().route("/", post(answer)).with_state(shared.clone());
        let task = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Ok(FaultyRpc { url, shared, task })
    }

    /// From now on it serves as it should, or again not.
    pub fn calm(&self, calm: bool) {
        self.shared.calm.store(calm, Ordering::Relaxed);
    }

    /// From now on a request kills its client, so many times.
    pub fn kills(&self, client: Arc<Process>, times: u32) {
        unpoisoned(&self.shared.state).victim = Some((client, times));
    }

    /// The faults so far, by kind.
    pub fn met(&self) -> BTreeMap<&'static str, u64> {
        unpoisoned(&self.shared.state).met.clone()
    }
}

impl Drop for FaultyRpc {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    async fn forward(&self, body: Bytes) -> Result<Bytes, StatusCode> {
        let request = self.http.post(&self.upstream).header(header::CONTENT_TYPE, "application/json").body(body);
        let response = request.send().await.map_err(|_| StatusCode::BAD_GATEWAY)?;
        response.bytes().await.map_err(|_| StatusCode::BAD_GATEWAY)
    }

    fn fate(&self, asked: &Value) -> Fate {
        let mut s = unpoisoned(&self.state);
        if let Some(death) = s.death(asked) {
            return death;
        }
        if self.calm.load(Ordering::Relaxed) {
            return Fate::Passes;
        }
        if s.outage.is_some_and(|end| Instant::now() < end) {
            *s.met.entry("in an outage").or_default() += 1;
            return Fate::Busy;
        }
        let rarity = s.rarity;
        if s.rng.random_range(0..rarity) != 0 {
            return Fate::Passes;
        }
        // Rare, since they hold up everything.
        if s.rng.random_range(0..60) == 0 {
            if s.rng.random() {
                *s.met.entry("silences").or_default() += 1;
                return Fate::Silence;
            }
            s.outage = Some(Instant::now() + Duration::from_millis(s.rng.random_range(500..6_000)));
        }
        let (kind, fate) = match s.rng.random_range(0..6) {
            0 => ("late", Fate::Delayed(Duration::from_millis(s.rng.random_range(50..1_500)))),
            1 => ("lost", Fate::Lost),
            2 => ("unanswered", Fate::Unanswered),
            3 => ("twice", Fate::Twice),
            4 => ("busy", Fate::Busy),
            _ => match s.heads.front().filter(|_| is_head(asked)).cloned() {
                Some(head) => ("old head", Fate::OldHead(head)),
                None => return Fate::Passes,
            },
        };
        *s.met.entry(kind).or_default() += 1;
        fate
    }

    fn remember(&self, asked: &Value, said: &[u8]) {
        if let Some(head) = is_head(asked).then(|| serde_json::from_slice(said).ok()).flatten() {
            let mut s = unpoisoned(&self.state);
            s.heads.push_back(head);
            if s.heads.len() > OLD {
                s.heads.pop_front();
            }
        }
    }
}

impl Faults {
    fn death(&mut self, asked: &Value) -> Option<Fate> {
        let (client, left) = self.victim.as_mut().filter(|(_, left)| *left > 0)?;
        // Most requests look for news; those that change something are where a death hurts.
        let acts = ["eth_sendRawTransaction", "eth_estimateGas", "eth_getTransactionReceipt"];
        let rarity = if acts.iter().any(|m| asked["method"] == *m) { 3 } else { 60 };
        if self.rng.random_range(0..rarity) != 0 {
            return None;
        }
        *left -= 1;
        let death = Fate::Death(client.clone(), self.rng.random());
        *self.met.entry("deaths").or_default() += 1;
        Some(death)
    }
}

/// Whether a call asks for the newest block.
fn is_head(asked: &Value) -> bool {
    asked["method"] == "eth_getBlockByNumber" && asked["params"][0] == "latest" && asked["params"][1] == false
}

async fn answer(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
    let said = match shared.fate(&asked) {
        Fate::Passes => shared.forward(body).await,
        Fate::Delayed(pause) => {
            tokio::time::sleep(pause).await;
            shared.forward(body).await
        }
        Fate::Lost => Err(StatusCode::INTERNAL_SERVER_ERROR),
        Fate::Unanswered => shared.forward(body).await.and(Err(StatusCode::BAD_GATEWAY)),
        Fate::Twice => match shared.forward(body.clone()).await {
            Ok(_) => shared.forward(body).await,
            lost => lost,
        },
        Fate::Death(client, forwarded) => {
            if forwarded {
                let _ = shared.forward(body).await;
            }
            client.kill();
            Err(StatusCode::BAD_GATEWAY)
        }
        Fate::Silence => std::future::pending().await,
        Fate::Busy => Err(StatusCode::TOO_MANY_REQUESTS),
        Fate::OldHead(mut head) => {
            head["id"] = asked["id"].clone();
            Ok(head.to_string().into())
        }
    };
    match said {
        Ok(said) => {
            shared.remember(&asked, &said);
            ([(header::CONTENT_TYPE, "application/json")], said).into_response()
        }
        Err(status) => status.into_response(),
    }
}
