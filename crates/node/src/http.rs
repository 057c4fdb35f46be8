//! The HTTP side: what the node committed to, for whoever wants to check.
//!
//! Read-only, but for [`crate::channel::http`], where answers are asked for. Requests, connections and the time of each are bounded, so that visitors can exhaust neither memory nor sockets nor
//! the processor that answers to demands need.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use alloy::primitives::{B256, U256};
use axum::extract::{MatchedPath, Path, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use sworn_bindings::sampling_word;
use sworn_commit::HeadOpening;
use sworn_engine::EngineError;
use sworn_listen::{Bounded, Bounds, Peer, Rate};
use sworn_receipts::{NodeInfo, Refusal};

use crate::Error;
use crate::measure;
use crate::work::{OpenJobs, Purpose, Shared, unpoisoned};

/// Connections; the longer life is from the last request for an answer that was admitted.
const BOUNDS: Bounds = Bounds {
    connections: 256,
    of_one_address: 96,
    life: Duration::from_secs(120),
    extended: Duration::from_secs(3_600),
};

pub(crate) struct Http {
    pub(crate) shared: Arc<Shared>,
    requests: Semaphore,
    rate: Rate,
    served: AtomicU64,
}

/// Serves until `stopped` changes; requests under way are finished.
pub(crate) async fn serve(listener: TcpListener, shared: Arc<Shared>, mut stopped: watch::Receiver<bool>) {
    let requests = Semaphore::new(shared.config.http_concurrency.max(1));
    let http =
        Arc::new(Http { rate: Rate::per_second(shared.config.http_rate), shared, requests, served: AtomicU64::new(0) });
    let router = Router::new()
        .route("/health", get(health))
        .route("/v1/info", get(info))
        .route("/v1/jobs/{id}", get(job))
        .route("/v1/jobs/{id}/trace", get(trace))
        .route("/v1/jobs/{id}/ops/{layer}/{row}", get(ops))
        .route("/v1/jobs/{id}/logprobs", get(log_probs))
        .merge(crate::channel::http::routes())
        .fallback(|| async { Fault(StatusCode::NOT_FOUND, "there is no such page".into()) })
        .method_not_allowed_fallback(|| async {
            Fault(StatusCode::METHOD_NOT_ALLOWED, "this page is not served with this method".into())
        })
        .layer(middleware::from_fn_with_state(http.clone(), bounded))
        .with_state(http);
    let listener = Bounded::new(listener, BOUNDS);
    let until = async move {
        let _ = stopped.changed().await;
    };
    let router = router.into_make_service_with_connect_info::<Peer>();
    if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(until).await {
        tracing::warn!(%error, "http");
    }
}

/// A refusal: status and what to do about it.
pub(crate) struct Fault(pub(crate) StatusCode, pub(crate) String);

/// A refusal of a channel, for [`bounded`] to put the request's id beside it.
#[derive(Clone)]
pub(crate) struct Refused(pub(crate) Refusal);

/// The message of a refusal, for [`bounded`] to put beside the request's id.
#[derive(Clone)]
struct Message(String);

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let mut response = self.0.into_response();
        response.extensions_mut().insert(Message(self.1));
        response
    }
}

impl From<Error> for Fault {
    fn from(e: Error) -> Self {
        match e {
            Error::Engine(EngineError::Request(text)) => Fault(StatusCode::NOT_FOUND, text),
            Error::NoModel { .. } => Fault(StatusCode::NOT_FOUND, "this node no longer has the job's model".into()),
            other => {
                tracing::warn!(error = %other, "http");
                Fault(StatusCode::INTERNAL_SERVER_ERROR, "the node failed; try again later".into())
            }
        }
    }
}

/// Gives every request an id and an end, and every refusal a body.
async fn bounded(State(http): State<Arc<Http>>, request: Request, next: Next) -> Response {
    let (began, id) = (Instant::now(), request_id(&http, &request));
    let route = request.extensions().get::<MatchedPath>().map_or_else(|| "other".to_owned(), |p| p.as_str().to_owned());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut response = match (http.rate.admit_request(&request), http.requests.try_acquire()) {
        (Err(_), _) => {
            let why = "too many requests a second from this address; ask more slowly";
            Fault(StatusCode::TOO_MANY_REQUESTS, why.into()).into_response()
        }
        (_, Err(_)) => {
            Fault(StatusCode::SERVICE_UNAVAILABLE, "too many requests at a time; try again".into()).into_response()
        }
        (Ok(()), Ok(_permit)) => match tokio::time::timeout(http.shared.config.http_timeout, next.run(request)).await {
            Ok(response) => response,
            Err(_) => {
                Fault(StatusCode::GATEWAY_TIMEOUT, "recomputing takes longer than this node waits; try again".into())
                    .into_response()
            }
        },
    };
    if !response.status().is_success() {
        let status = response.status();
        let message = response.extensions().get::<Message>().map_or_else(|| status.to_string(), |m| m.0.clone());
        let refused = response.extensions().get::<Refused>().and_then(|r| serde_json::to_value(&r.0).ok());
        let mut body = refused.unwrap_or_else(|| json!({ "error": message }));
        body["request"] = json!(id);
        let retry = response.headers_mut().remove(header::RETRY_AFTER);
        response = (status, Json(body)).into_response();
        if let Some(retry) = retry {
            response.headers_mut().insert(header::RETRY_AFTER, retry);
        } else if status == StatusCode::SERVICE_UNAVAILABLE || status == StatusCode::TOO_MANY_REQUESTS {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert("x-request-id", value);
    }
    measure::request(&route, response.status(), began.elapsed());
    tracing::debug!(%method, path, status = response.status().as_u16(), request = id, "http");
    response
}

/// The caller's, if it is short and plain, so that logs can be joined; else a new one.
fn request_id(http: &Http, request: &Request) -> String {
    let given = request.headers().get("x-request-id").and_then(|v| v.to_str().ok());
    let plain = |id: &&str| {
        (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    match given.filter(plain) {
        Some(id) => id.to_owned(),
        None => format!("{:08x}", http.served.fetch_add(1, Ordering::Relaxed)),
    }
}

async fn health() -> impl IntoResponse {
    Json(json!({ "status": "ok" }))
}

async fn info(State(http): State<Arc<Http>>) -> Result<Json<NodeInfo>, Fault> {
    let shared = &http.shared;
    let OpenJobs { under_way, unanswered } = *unpoisoned(&shared.open_jobs);
    let running = shared.executing();
    let deployment = shared.sender.chain().deployment();
    Ok(Json(NodeInfo {
        account: shared.sender.account(),
        chain_id: deployment.chain_id,
        market: deployment.market,
        models: shared.prover.models(),
        accepts_open_jobs: shared.config.accept_open,
        channels: shared.channels.as_ref().map(|c| c.domain.channels),
        engines: shared.prover.engines(),
        answers_running: shared.channels.as_ref().map_or(0, |c| c.answering()),
        answers_at_most: shared.channels.as_ref().map_or(0, |c| c.terms.streams),
        jobs_under_way: under_way,
        jobs_running: running,
        jobs_waiting: unanswered.saturating_sub(running),
        version: env!("CARGO_PKG_VERSION").into(),
    }))
}

pub(crate) fn number<T: std::str::FromStr>(text: &str, what: &str) -> Result<T, Fault> {
    text.parse().map_err(|_| Fault(StatusCode::BAD_REQUEST, format!("{text:?} is no {what}: give a number")))
}

fn job_id(text: &str) -> Result<U256, Fault> {
    let plain = !text.is_empty() && text.len() <= 78 && text.bytes().all(|b| b.is_ascii_digit());
    let id = plain.then(|| U256::from_str_radix(text, 10).ok()).flatten();
    id.ok_or_else(|| Fault(StatusCode::BAD_REQUEST, format!("{text:?} is no job id: give a number")))
}

fn unknown(id: U256) -> Fault {
    Fault(StatusCode::NOT_FOUND, format!("this node has no job {id}"))
}

async fn job(State(http): State<Arc<Http>>, Path(id): Path<String>) -> Result<impl IntoResponse, Fault> {
    let id = job_id(&id)?;
    let record = http.shared.journal.job(id)?.filter(|r| r.mine).ok_or_else(|| unknown(id))?;
    let state = match (&record.answer, record.ended.is_some()) {
        (_, true) => "closed",
        (Some(_), _) => "answered",
        (None, _) => "assigned",
    };
    let answer = record.answer;
    Ok(Json(json!({
        "job": id.to_string(),
        "state": state,
        "model": record.job.model,
        "prompt": record.job.prompt,
        "maxNew": record.job.max_new,
        "sampling": sampling_word(&record.job.run.sampling),
        "seed": B256::from(record.job.run.seed),
        "tokens": answer.as_ref().map(|a| &a.tokens),
        "layersRoot": answer.as_ref().map(|a| a.layers_root),
    })))
}

pub(crate) fn binary(bytes: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, "application/octet-stream")], bytes).into_response()
}

async fn trace(State(http): State<Arc<Http>>, Path(id): Path<String>) -> Result<Response, Fault> {
    let id = job_id(&id)?;
    let (record, answer) = http.shared.answered(id)?.ok_or_else(|| unknown(id))?;
    let tree = http.shared.trace(&record.job, &answer, Purpose::Visit).await?;
    match http.shared.conduct.serve_trace(&record.job, tree) {
        Some(tree) => Ok(binary(tree.encode())),
        None => Err(unknown(id)),
    }
}

async fn log_probs(State(http): State<Arc<Http>>, Path(id): Path<String>) -> Result<Response, Fault> {
    let id = job_id(&id)?;
    let (record, answer) = http.shared.answered(id)?.ok_or_else(|| unknown(id))?;
    let opening = http.shared.log_probs(&record.job, &answer).await?;
    let opening = opening
        .ok_or_else(|| Fault(StatusCode::NOT_FOUND, "the job's model does not commit to log-probabilities".into()))?;
    match http.shared.conduct.serve_log_probs(&record.job, opening.rows) {
        Some(rows) => Ok(binary(HeadOpening { rows, ..opening }.encode())),
        None => Err(unknown(id)),
    }
}

async fn ops(
    State(http): State<Arc<Http>>,
    Path((id, layer, row)): Path<(String, String, String)>,
) -> Result<Response, Fault> {
    let id = job_id(&id)?;
    let (layer, row) = (number::<u16>(&layer, "layer")?, number::<u32>(&row, "row")?);
    let (record, answer) = http.shared.answered(id)?.ok_or_else(|| unknown(id))?;
    let ops = http.shared.ops(&record.job, &answer, layer, row, Purpose::Visit).await?;
    match http.shared.conduct.serve_ops(&record.job, layer, row, ops.to_vec()) {
        Some(ops) => Ok(binary(ops.concat())),
        None => Err(unknown(id)),
    }
}
