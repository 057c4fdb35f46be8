//! Channels on the wire; the format is `sworn_receipts::wire`.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::B256;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Path, Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::stream::unfold;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sworn_listen::Peer;
use sworn_receipts::wire::ASK_BYTES;
use sworn_receipts::{Ask, Code, End, Refusal};

use crate::http::{Fault, Http, Refused, binary, number};
use crate::work::{Purpose, blocking};

/// A comment goes out after so much silence.
const ALIVE: Duration = Duration::from_secs(5);

/// The routes of channels.
pub(crate) fn routes() -> Router<Arc<Http>> {
    Router::new()
        .route("/v1/offers", get(offers))
        .route("/v1/channels/{id}", get(state))
        .route("/v1/channels/{id}/answers", post(ask).layer(DefaultBodyLimit::max(ASK_BYTES)))
        .route("/v1/channels/{id}/answers/{request}/end", post(end))
        .route("/v1/channels/{id}/requests/{request}", get(answered))
        .route("/v1/channels/{id}/receipts", get(receipts))
        .route("/v1/channels/{id}/receipts/{sequence}", get(receipt))
        .route("/v1/channels/{id}/receipts/{sequence}/trace", get(trace))
        .route("/v1/channels/{id}/receipts/{sequence}/ops/{layer}/{row}", get(ops))
}

impl IntoResponse for RefusalResponse {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let busy = matches!(self.0.code, Code::Busy | Code::Unavailable);
        let mut response = status.into_response();
        if busy {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response.extensions_mut().insert(Refused(self.0));
        response
    }
}

struct RefusalResponse(Refusal);

impl From<Refusal> for RefusalResponse {
    fn from(refusal: Refusal) -> Self {
        RefusalResponse(refusal)
    }
}

impl From<Fault> for RefusalResponse {
    fn from(Fault(status, text): Fault) -> Self {
        let code = match status {
            StatusCode::BAD_REQUEST => Code::BadRequest,
            StatusCode::NOT_FOUND => Code::NotFound,
            _ => Code::Failed,
        };
        RefusalResponse(Refusal::new(code, text))
    }
}

type Answer<T> = Result<T, RefusalResponse>;

fn channel_id(text: &str) -> Answer<B256> {
    let id = text.parse().ok().filter(|_| text.len() == 66 && text.starts_with("0x"));
    id.ok_or_else(|| Refusal::new(Code::BadRequest, "a channel's id is 0x and 64 hex digits").into())
}

fn body<T: DeserializeOwned>(bytes: &Bytes) -> Answer<T> {
    serde_json::from_slice(bytes).map_err(|e| Refusal::new(Code::BadRequest, format!("the body is wrong: {e}")).into())
}

/// Runs what reads the disk where it may block.
async fn reading<T: Send + 'static>(
    http: &Arc<Http>,
    f: impl FnOnce(&super::Channels) -> Result<T, Refusal> + Send + 'static,
) -> Answer<T> {
    let shared = http.shared.clone();
    let read = blocking(move || Ok(shared.open_channels().and_then(f))).await;
    Ok(read.map_err(|e| RefusalResponse(super::unavailable(e)))??)
}

async fn offers(State(http): State<Arc<Http>>) -> Answer<Response> {
    let channels = http.shared.open_channels()?;
    Ok(Json(channels.offers(http.shared.prover.models()).await?).into_response())
}

async fn state(State(http): State<Arc<Http>>, Path(id): Path<String>) -> Answer<Response> {
    let id = channel_id(&id)?;
    Ok(Json(http.shared.open_channels()?.state(id).await?).into_response())
}

async fn ask(
    State(http): State<Arc<Http>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Path(id): Path<String>,
    bytes: Bytes,
) -> Answer<Response> {
    let reader = http.shared.ask(channel_id(&id)?, body::<Ask>(&bytes)?).await?;
    // A connection of a stranger is short; one that is paid for is not.
    peer.extend();
    let events = unfold(reader, |mut reader| async move {
        let (name, data) = reader.next().await?.encode();
        Some((Ok::<_, Infallible>(SseEvent::default().event(name).data(data)), reader))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(ALIVE)).into_response())
}

async fn end(
    State(http): State<Arc<Http>>,
    Path((id, request)): Path<(String, String)>,
    bytes: Bytes,
) -> Answer<StatusCode> {
    let (id, request) = (channel_id(&id)?, number::<u64>(&request, "request")?);
    let End { tokens } = body(&bytes)?;
    reading(&http, move |c| c.end(id, request, tokens)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn answered(State(http): State<Arc<Http>>, Path((id, request)): Path<(String, String)>) -> Answer<Response> {
    let (id, request) = (channel_id(&id)?, number::<u64>(&request, "request")?);
    Ok(Json(reading(&http, move |c| c.answered(id, request)).await?.answered).into_response())
}

async fn receipt(State(http): State<Arc<Http>>, Path((id, sequence)): Path<(String, String)>) -> Answer<Response> {
    let (id, sequence) = (channel_id(&id)?, number::<u64>(&sequence, "receipt")?);
    let answered = reading(&http, move |c| c.receipt(id, sequence)).await?.answered;
    match http.shared.conduct.serves(&answered.signed.receipt) {
        true => Ok(Json(answered).into_response()),
        false => Err(Refusal::new(Code::NotFound, "there is no such receipt").into()),
    }
}

#[derive(Deserialize)]
struct Range {
    #[serde(default)]
    from: u64,
    #[serde(default = "no_end")]
    to: u64,
}

fn no_end() -> u64 {
    u64::MAX
}

async fn receipts(
    State(http): State<Arc<Http>>,
    Path(id): Path<String>,
    range: Result<Query<Range>, axum::extract::rejection::QueryRejection>,
) -> Answer<Response> {
    let id = channel_id(&id)?;
    let Query(Range { from, to }) =
        range.map_err(|_| Refusal::new(Code::BadRequest, "give the range as ?from=NUMBER&to=NUMBER"))?;
    let mut page = reading(&http, move |c| c.page(id, from, to)).await?;
    page.receipts.retain(|a| http.shared.conduct.serves(&a.signed.receipt));
    Ok(Json(page).into_response())
}

async fn trace(State(http): State<Arc<Http>>, Path((id, sequence)): Path<(String, String)>) -> Answer<Response> {
    let (id, sequence) = (channel_id(&id)?, number::<u64>(&sequence, "receipt")?);
    let record = reading(&http, move |c| c.receipt(id, sequence)).await?;
    let Some(job) = record.job() else { return Err(Refusal::new(Code::NotFound, "it has no trace").into()) };
    let tree = http.shared.trace(&job, &record.answer(), Purpose::Visit).await.map_err(Fault::from)?;
    match http.shared.conduct.serve_trace(&job, tree) {
        Some(tree) => Ok(binary(tree.encode())),
        None => Err(Refusal::new(Code::NotFound, "it has no trace").into()),
    }
}

async fn ops(
    State(http): State<Arc<Http>>,
    Path((id, sequence, layer, row)): Path<(String, String, String, String)>,
) -> Answer<Response> {
    let (id, sequence) = (channel_id(&id)?, number::<u64>(&sequence, "receipt")?);
    let (layer, row) = (number::<u16>(&layer, "layer")?, number::<u32>(&row, "row")?);
    let record = reading(&http, move |c| c.receipt(id, sequence)).await?;
    let Some(job) = record.job() else { return Err(Refusal::new(Code::NotFound, "it has no trace").into()) };
    let ops = http.shared.ops(&job, &record.answer(), layer, row, Purpose::Visit).await.map_err(Fault::from)?;
    match http.shared.conduct.serve_ops(&job, layer, row, ops.to_vec()) {
        Some(ops) => Ok(binary(ops.concat())),
        None => Err(Refusal::new(Code::NotFound, "it has no such row").into()),
    }
}
