//! Gateways and nodes in one process, over real HTTP.
#![allow(unreachable_pub, dead_code, reason = "several test programs share this, none needs all of it")]

pub mod node;

use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::Address;
use alloy::signers::local::PrivateKeySigner;
use node::TestNode;
use serde_json::{Value, json};
use sworn_chain::Store;
use sworn_commit::RunParams;
use sworn_engine::{Backend, Cpu, Request, generate};
use sworn_gateway::{Config, Gateway, Offered, Router, RouterConfig};
use sworn_model::{Model, SyntheticSpec, synthetic};
use sworn_receipts::{ClientOptions, Domain};

pub const DOMAIN: Domain = Domain { chain_id: 31_337, channels: Address::repeat_byte(0xC4) };
/// Holds any number of small answers.
pub const PLENTY: u128 = 1_000_000;

/// A gateway, its nodes, and what they share.
pub struct World {
    pub dir: tempfile::TempDir,
    pub model: Arc<Model>,
    pub backend: Arc<dyn Backend>,
    pub key: PrivateKeySigner,
}

/// A running gateway.
pub struct Running {
    pub url: String,
    pub router: Arc<Router>,
    pub http: reqwest::Client,
}

impl World {
    /// A small random model.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model = Arc::new(synthetic(&SyntheticSpec::default(), dir.path().join("model")).unwrap());
        let backend = Arc::new(Cpu::new(model.clone()).unwrap());
        World { dir, model, backend, key: PrivateKeySigner::random() }
    }

    pub async fn node(&self, prices: (u128, u128), deposit: u128, pace: Duration) -> Arc<TestNode> {
        TestNode::start(self.backend.clone(), DOMAIN, self.key.address(), prices, deposit, pace).await
    }

    /// A cheap node.
    pub async fn cheap(&self) -> Arc<TestNode> {
        self.node((1, 2), PLENTY, Duration::ZERO).await
    }

    /// A node that is asked when the cheap one is not there.
    pub async fn dear(&self) -> Arc<TestNode> {
        self.node((100, 200), PLENTY, Duration::ZERO).await
    }

    /// A gateway with channels to nodes, and its state in `state`.
    pub async fn gateway(&self, nodes: &[&Arc<TestNode>], state: &str) -> Running {
        self.gateway_with(nodes, state, RouterConfig::default(), Config::default()).await
    }

    pub async fn gateway_with(
        &self,
        nodes: &[&Arc<TestNode>],
        state: &str,
        routing: RouterConfig,
        config: Config,
    ) -> Running {
        let quick = Duration::from_secs(2);
        let patience = ClientOptions { connect: quick, answer: quick, silence: Duration::from_secs(5) };
        let routing = RouterConfig { patience, network: "eip155:31337".into(), ..routing };
        let store = Store::open_as(self.dir.path().join(state), "test").unwrap();
        let router = Router::new(DOMAIN, routing, self.key.clone(), store).unwrap();
        router.set_channels(nodes.iter().map(|n| n.info()).collect());
        router.probe().await;
        let models = vec![Offered { name: "small".into(), model: self.model.clone() }];
        let config = Config { models, ..config };
        let gateway = Gateway::new(config, Arc::new(router.clone()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(gateway.serve(listener, std::future::pending()));
        Running { url, router, http: reqwest::Client::new() }
    }

    /// What the model answers to a plain prompt.
    pub fn honest(&self, prompt: &str, max_new: u32) -> Vec<u32> {
        let prompt = self.model.encode_text(prompt).unwrap();
        let stop = &self.model.manifest().stop_tokens;
        let run = RunParams::default();
        let request = Request { prompt: &prompt, max_new, stop, run, cancel: None };
        generate(&*self.backend, &request, &mut |_| ()).unwrap().tokens
    }

    pub fn text(&self, tokens: &[u32]) -> String {
        self.model.tokenizer().unwrap().decode(tokens, false)
    }
}

impl Running {
    pub async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let sent = self.http.post(format!("{}{path}", self.url)).json(body).send().await.unwrap();
        (sent.status().as_u16(), sent.json().await.unwrap())
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        let sent = self.http.get(format!("{}{path}", self.url)).send().await.unwrap();
        (sent.status().as_u16(), sent.json().await.unwrap())
    }

    pub async fn complete(&self, prompt: &str, max_tokens: u32) -> (u16, Value) {
        self.post("/v1/completions", &json!({ "model": "small", "prompt": prompt, "max_tokens": max_tokens })).await
    }

    /// All chunks of a streamed completion, the end marker included if it came.
    pub async fn stream(&self, body: Value) -> Vec<Value> {
        let sent = self.http.post(format!("{}/v1/completions", self.url)).json(&body).send().await.unwrap();
        let text = sent.text().await.unwrap();
        let data = text.lines().filter_map(|l| l.strip_prefix("data: "));
        data.map(|d| serde_json::from_str(d).unwrap_or_else(|_| json!(d))).collect()
    }
}
