//! The HTTP server: routes, keys, request ids, bounds.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use alloy::primitives::{Address, B256, keccak256};
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use metrics::{counter, histogram};
use serde_json::json;
use sworn_listen::{Bounded, Bounds, Peer, Rate};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::answer;
use crate::config::{Config, Offered};
use crate::error::{ApiError, Reason};
use crate::measure;
use crate::page;
use crate::reply::Kind;
use crate::upstream::Upstream;

/// The OpenAI side of a gateway.
pub struct Gateway {
    pub(crate) config: Config,
    pub(crate) upstream: Arc<dyn Upstream>,
    pub(crate) places: Arc<Semaphore>,
    keys: Vec<B256>,
    started: u64,
    requests: AtomicU64,
    rate: Rate,
    closing: AtomicBool,
}

/// Life of a connection without requests.
const IDLE_LIFE: Duration = Duration::from_secs(120);

/// The id of a request.
#[derive(Clone, Debug)]
struct RequestId(String);

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway").field("models", &self.config.models.len()).finish_non_exhaustive()
    }
}

impl Gateway {
    /// Answers from `upstream`.
    pub fn new(config: Config, upstream: Arc<dyn Upstream>) -> Arc<Self> {
        sworn_ops::install();
        measure::describe();
        Arc::new(Gateway {
            places: Arc::new(Semaphore::new(config.limits.concurrency.max(1))),
            keys: config.api_keys.iter().map(|k| keccak256(k.as_bytes())).collect(),
            rate: Rate::per_second(config.limits.rate),
            config,
            upstream,
            started: now(),
            requests: AtomicU64::new(0),
            closing: AtomicBool::new(false),
        })
    }

    /// The routes.
    pub fn router(self: &Arc<Self>) -> Router {
        let limits = self.config.limits;
        Router::new()
            .route("/v1/models", get(models))
            .route("/v1/models/{*name}", get(model))
            .route("/v1/chat/completions", post(chat))
            .route("/v1/completions", post(completion))
            .route("/v1/receipts/{digest}", get(receipt))
            .route("/v1/nodes/{node}", get(node))
            .layer(middleware::from_fn_with_state(self.clone(), with_key))
            .route("/", get(page::index))
            .route("/assets/{*path}", get(page::asset))
            .route("/favicon.svg", get(page::icon))
            .route("/page.json", get(page::settings))
            .route("/health", get(async || Json(json!({ "status": "ok" }))))
            .route("/ready", get(ready))
            .route("/metrics", get(measured))
            .fallback(async |request: Request| {
                ApiError::not_found(format!("Unknown request URL: {} {}", request.method(), request.uri().path()))
            })
            .method_not_allowed_fallback(async || ApiError::method())
            .layer(DefaultBodyLimit::max(limits.body))
            .layer(middleware::from_fn_with_state(self.clone(), paced))
            .layer(middleware::from_fn_with_state(self.clone(), identified))
            .layer(middleware::from_fn_with_state(self.clone(), crate::cors::allow))
            .with_state(self.clone())
    }

    /// Serves until `stop`; answers under way have a while to end.
    ///
    /// # Errors
    /// The listener fails.
    pub async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<()> {
        let upkeep = tokio::spawn(sworn_ops::upkeep());
        let (closing, mut closed) = tokio::sync::watch::channel(false);
        let gateway = self.clone();
        let graceful = async move {
            stop.await;
            gateway.closing.store(true, Ordering::Relaxed);
            closing.send_replace(true);
        };
        let limits = self.config.limits;
        let bounds = Bounds {
            connections: limits.connections,
            of_one_address: limits.connections.div_ceil(4),
            life: IDLE_LIFE,
            extended: limits.time + IDLE_LIFE,
        };
        let router = self.router().into_make_service_with_connect_info::<Peer>();
        let serving = axum::serve(Bounded::new(listener, bounds), router).with_graceful_shutdown(graceful);
        let farewell = async {
            let _ = closed.wait_for(|c| *c).await;
            tokio::time::sleep(self.config.limits.farewell).await;
        };
        let result = tokio::select! {
            served = serving.into_future() => served,
            () = farewell => Ok(()),
        };
        upkeep.abort();
        result
    }

    /// The model that a name or an id means.
    pub(crate) fn model(&self, name: &str) -> Result<&Offered, ApiError> {
        let id = name.parse::<B256>().ok();
        let found = self.config.models.iter().find(|o| o.name == name || id.is_some_and(|id| id == o.model.id()));
        found.ok_or_else(|| ApiError::no_model(name))
    }

    fn shown(&self, offered: &Offered) -> serde_json::Value {
        let manifest = offered.model.manifest();
        json!({
            "id": offered.name,
            "object": "model",
            "created": self.started,
            "owned_by": "sworn",
            "sworn": {
                "modelId": B256::from(offered.model.id()),
                "context": manifest.max_positions,
                "samples": crate::selection::samples(&offered.model),
                "chat": offered.model.chat().is_present(),
                "offers": self.upstream.describe(offered.model.id().into()),
            },
        })
    }
}

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Gives every request an id, and measures it.
async fn identified(State(gateway): State<Arc<Gateway>>, mut request: Request, next: Next) -> Response {
    let start = Instant::now();
    let id = request_id(&gateway, &request);
    let path = match request.uri().path() {
        known @ ("/"
        | "/page.json"
        | "/v1/models"
        | "/v1/chat/completions"
        | "/v1/completions"
        | "/health"
        | "/ready"
        | "/metrics") => known.to_owned(),
        p if p.starts_with("/v1/models/") => "/v1/models/".to_owned(),
        p if p.starts_with("/v1/receipts/") => "/v1/receipts/".to_owned(),
        p if p.starts_with("/v1/nodes/") => "/v1/nodes/".to_owned(),
        _ => "other".to_owned(),
    };
    request.extensions_mut().insert(RequestId(id.clone()));
    let mut response = next.run(request).await;
    let status = response.status();
    let reason = response.extensions().get::<Reason>().map_or("", |r| r.0);
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert("x-request-id", value);
    }
    tracing::debug!(path, status = status.as_u16(), reason, request = id, "http");
    counter!(measure::REQUESTS, "path" => path.clone(), "status" => status.as_str().to_owned(), "reason" => reason)
        .increment(1);
    histogram!(measure::SECONDS, "path" => path).record(start.elapsed().as_secs_f64());
    response
}

/// The caller's, if it is short and plain, so that logs can be joined; else a new one.
fn request_id(gateway: &Gateway, request: &Request) -> String {
    let given = request.headers().get("x-request-id").and_then(|v| v.to_str().ok());
    let plain = |id: &&str| {
        (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    match given.filter(plain) {
        Some(id) => id.to_owned(),
        None => format!("{:08x}{:08x}", gateway.started as u32, gateway.requests.fetch_add(1, Ordering::Relaxed)),
    }
}

/// So many requests a second from one address.
async fn paced(State(gateway): State<Arc<Gateway>>, request: Request, next: Next) -> Response {
    match gateway.rate.admit_request(&request) {
        Ok(()) => {
            // Its answer may take as long as an answer may.
            Peer::of(&request).into_iter().for_each(Peer::extend);
            next.run(request).await
        }
        Err(wait) => {
            let why = "This address sends too many requests a second.";
            ApiError::busy("rate_limit_exceeded", why, wait.as_secs() + 1).into_response()
        }
    }
}

async fn with_key(State(gateway): State<Arc<Gateway>>, request: Request, next: Next) -> Response {
    if !gateway.keys.is_empty() {
        let sent = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
        // Hashes are compared: how far they agree tells nothing of the key.
        let key = sent.and_then(|s| s.strip_prefix("Bearer ")).map(|k| keccak256(k.trim().as_bytes()));
        if !key.is_some_and(|k| gateway.keys.contains(&k)) {
            return ApiError::unauthorized().into_response();
        }
    }
    next.run(request).await
}

async fn models(State(gateway): State<Arc<Gateway>>) -> impl IntoResponse {
    let data: Vec<_> = gateway.config.models.iter().map(|o| gateway.shown(o)).collect();
    Json(json!({ "object": "list", "data": data }))
}

async fn model(State(gateway): State<Arc<Gateway>>, Path(name): Path<String>) -> Result<impl IntoResponse, ApiError> {
    Ok(Json(gateway.shown(gateway.model(&name)?)))
}

async fn chat(
    State(gateway): State<Arc<Gateway>>,
    Extension(RequestId(id)): Extension<RequestId>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let body = read(&gateway, body)?;
    answer::answer(gateway, Kind::Chat, id, body).await
}

async fn completion(
    State(gateway): State<Arc<Gateway>>,
    Extension(RequestId(id)): Extension<RequestId>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let body = read(&gateway, body)?;
    answer::answer(gateway, Kind::Completion, id, body).await
}

fn read(gateway: &Gateway, body: Result<Bytes, BytesRejection>) -> Result<Bytes, ApiError> {
    body.map_err(|e| match e.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::too_large(gateway.config.limits.body),
        _ => ApiError::unreadable(format!("the body cannot be read: {e}")),
    })
}

async fn receipt(
    State(gateway): State<Arc<Gateway>>,
    Path(digest): Path<String>,
) -> Result<impl IntoResponse, ApiError> {
    let digest: B256 = digest.parse().map_err(|_| {
        ApiError::invalid("digest", "invalid_value", "a receipt's name is 0x and 64 hexadecimal digits")
    })?;
    let found = gateway.upstream.receipt(digest)?;
    found.map(Json).ok_or_else(|| ApiError::not_found(format!("this gateway has no receipt {digest}")))
}

async fn node(State(gateway): State<Arc<Gateway>>, Path(node): Path<String>) -> Result<impl IntoResponse, ApiError> {
    let node: Address = node
        .parse()
        .map_err(|_| ApiError::invalid("node", "invalid_value", "a node is 0x and 40 hexadecimal digits"))?;
    let (info, why) = match gateway.upstream.node(node).await {
        Ok(info) => (Some(info), None),
        Err(why) => (None, Some(why)),
    };
    Ok(Json(json!({ "node": node, "info": info, "why": why })))
}

/// Whether it makes sense to send requests here: for every model somebody answers.
async fn ready(State(gateway): State<Arc<Gateway>>) -> Response {
    let closing = gateway.closing.load(Ordering::Relaxed);
    let models: Vec<_> = gateway
        .config
        .models
        .iter()
        .map(|o| {
            let state = gateway.upstream.ready(o.model.id().into());
            let reason = state.err().map(|e| json!({ "code": e.code, "message": e.message }));
            (reason.is_none(), json!({ "model": o.name, "ready": reason.is_none(), "reason": reason }))
        })
        .collect();
    let ok = !closing && !models.is_empty() && models.iter().all(|m| m.0);
    let status = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let models: Vec<_> = models.into_iter().map(|m| m.1).collect();
    (status, Json(json!({ "ready": ok, "closing": closing, "models": models }))).into_response()
}

async fn measured() -> Result<impl IntoResponse, ApiError> {
    let text = sworn_ops::render().ok_or_else(|| ApiError::not_found("this process measures elsewhere"))?;
    Ok(([(header::CONTENT_TYPE, sworn_ops::CONTENT_TYPE)], text))
}
