//! One answer, from the body to the last byte.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy::primitives::B256;
use axum::Json;
use axum::body::Bytes;
use axum::http::HeaderValue;
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use metrics::{counter, gauge, histogram};
use serde_json::Value;
use sworn_model::Model;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{Instant as Deadline, timeout_at};
use tokio_stream::wrappers::ReceiverStream;

use crate::error::ApiError;
use crate::fields::unsupported;
use crate::measure;
use crate::reply::{Delta, Ending, Head, Kind, Usage};
use crate::request::Ask;
use crate::server::{Gateway, now};
use crate::text::{Piece, Reading};
use crate::upstream::{Answer, Event, Finish, Question};

/// Chunks that may wait for a slow reader; the node is then slowed down as well.
const AHEAD: usize = 32;
/// How often a silent stream says that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// A place among the answers under way.
struct Place(#[expect(dead_code, reason = "held, not read")] OwnedSemaphorePermit);

impl Drop for Place {
    fn drop(&mut self) {
        gauge!(measure::UNDER_WAY).decrement(1.0);
    }
}

/// An answer that has begun.
struct Begun {
    head: Head,
    model: Arc<Model>,
    ask: Ask,
    n_in: u32,
    answer: Answer,
    first: Option<Event>,
    deadline: Deadline,
    _place: Place,
}

pub(crate) async fn answer(
    gateway: Arc<Gateway>,
    kind: Kind,
    request: String,
    body: Bytes,
) -> Result<Response, ApiError> {
    let start = Instant::now();
    let place =
        gateway.places.clone().try_acquire_owned().map_err(|_| {
            ApiError::busy("too_many_requests", "too many answers are under way; try again in a moment", 1)
        })?;
    gauge!(measure::UNDER_WAY).increment(1.0);
    let place = Place(place);
    let deadline = Deadline::now() + gateway.config.limits.time;
    let limits = gateway.config.limits;

    let reading = gateway.clone();
    let read = tokio::task::spawn_blocking(move || {
        let body: Value =
            serde_json::from_slice(&body).map_err(|e| ApiError::unreadable(format!("the body is not JSON: {e}")))?;
        let ask = match kind {
            Kind::Chat => Ask::chat(body)?,
            Kind::Completion => Ask::completion(body)?,
        };
        let model = reading.model(&ask.model)?.model.clone();
        let encoded = ask.encode(&model, limits.max_new)?;
        Ok((ask, model, encoded))
    });
    let (ask, model, encoded) = read.await.map_err(|e| ApiError::internal(&e))??;
    let n_in = encoded.prompt.len() as u32;
    let head = Head {
        kind,
        request: request.clone(),
        created: now(),
        model: ask.model.clone(),
        model_id: model.id().into(),
        seed: encoded.seed,
        logprobs: ask.logprobs.is_some(),
    };
    let question = Question {
        request,
        model: model.id().into(),
        prompt: encoded.prompt.into(),
        max_new: encoded.max_new,
        sampling: encoded.sampling,
        seed: encoded.seed,
        stop: model.manifest().stop_tokens.as_slice().into(),
        tier: ask.tier,
        logprobs: ask.logprobs,
    };
    // Until the first token a failure is a status of its own, also of a stream.
    let late = || ApiError::timeout("no node answered in time");
    let begin = async {
        let mut answer = gateway.upstream.ask(question).await?;
        let first = answer.events.recv().await.unwrap_or_else(|| Event::Failed(cut_off()));
        Ok((answer, first))
    };
    let (answer, first) = timeout_at(deadline, begin).await.map_err(|_| late())??;
    if let Event::Failed(e) = first {
        return Err(e);
    }
    if let Event::Token(token) = &first
        && ask.logprobs.is_some()
        && token.logprobs.is_none()
    {
        // Only the node knows; the answer ends here, with its first token.
        return Err(unsupported("logprobs", "this model or its node tells no probabilities"));
    }
    histogram!(measure::FIRST_TOKEN).record(start.elapsed().as_secs_f64());
    let stream = ask.stream;
    let first = Some(first);
    let begun = Begun { head, model, ask, n_in, answer, first, deadline, _place: place };
    match stream {
        None => begun.whole().await,
        Some(usage) => Ok(begun.streamed(usage)),
    }
}

fn cut_off() -> ApiError {
    ApiError::upstream("upstream_ended", "the answer ended before it was whole")
}

/// What comes next of an answer.
enum Step {
    /// Text, or nothing yet.
    Piece(Piece),
    /// The last text.
    End(Piece, Ending),
}

impl Begun {
    async fn whole(mut self) -> Result<Response, ApiError> {
        let model = self.model.clone();
        let mut reading = Reading::new(&model, &self.ask.stops)?;
        let (mut text, mut tokens) = (String::new(), Vec::new());
        let ending = loop {
            let (piece, end) = match self.next(&mut reading).await? {
                Step::Piece(piece) => (piece, None),
                Step::End(piece, ending) => (piece, Some(ending)),
            };
            text.push_str(&piece.text);
            tokens.extend(piece.tokens);
            if let Some(end) = end {
                break end;
            }
        };
        let body = self.head.whole(&text, &tokens, &ending);
        let mut response = Json(body).into_response();
        if let Some(value) = ending.served.last().and_then(|s| HeaderValue::from_str(&s.digest.to_string()).ok()) {
            response.headers_mut().insert("x-sworn-receipt", value);
        }
        Ok(response)
    }

    fn streamed(self, usage: bool) -> Response {
        let (to, chunks) = mpsc::channel::<Result<sse::Event, Infallible>>(AHEAD);
        tokio::spawn(async move {
            if let Err(e) = self.send_all(usage, &to).await {
                let _ = send(&to, &e.body()).await;
            }
        });
        let alive = KeepAlive::new().interval(KEEP_ALIVE);
        Sse::new(ReceiverStream::new(chunks)).keep_alive(alive).into_response()
    }

    /// Sends chunks until the end, or until nobody reads: then the answer is dropped, which ends it.
    async fn send_all(mut self, usage: bool, to: &Chunks) -> Result<(), ApiError> {
        let model = self.model.clone();
        let mut reading = Reading::new(&model, &self.ask.stops)?;
        if self.head.kind == Kind::Chat && !send(to, &self.head.chunk(Delta::Role, usage)).await {
            return Ok(());
        }
        loop {
            let (piece, end) = match self.next(&mut reading).await? {
                Step::Piece(piece) => (piece, None),
                Step::End(piece, ending) => (piece, Some(ending)),
            };
            let chunk = self.head.chunk(Delta::Text(&piece.text, &piece.tokens), usage);
            if !piece.is_empty() && !send(to, &chunk).await {
                return Ok(());
            }
            let Some(ending) = end else { continue };
            let mut last = send(to, &self.head.chunk(Delta::Finish(ending.finish, &ending.served), usage)).await;
            if usage {
                last = last && send(to, &self.head.usage_chunk(ending.usage)).await;
            }
            if last {
                let _ = to.send(Ok(sse::Event::default().data("[DONE]"))).await;
            }
            return Ok(());
        }
    }

    async fn next(&mut self, reading: &mut Reading<'_>) -> Result<Step, ApiError> {
        let event = match self.first.take() {
            Some(first) => first,
            None => match timeout_at(self.deadline, self.answer.events.recv()).await {
                Ok(event) => event.unwrap_or_else(|| Event::Failed(cut_off())),
                Err(_) => Event::Failed(ApiError::timeout("the answer takes longer than this gateway waits")),
            },
        };
        match event {
            Event::Token(token) if !reading.stopped() => {
                let piece = reading.push(&token);
                if reading.stopped() {
                    self.answer.end_at(reading.taken());
                }
                Ok(Step::Piece(piece))
            }
            Event::Token(_) => Ok(Step::Piece(Piece::default())),
            Event::Done(finish, served) => {
                let last = if reading.stopped() { Piece::default() } else { reading.finish() };
                let finish = if reading.stopped() { Finish::Stop } else { finish };
                let usage = Usage::new(self.n_in, reading.taken(), &served);
                measure_tokens(self.head.model_id, usage);
                Ok(Step::End(last, Ending { finish, served, usage }))
            }
            Event::Failed(e) => Err(e),
        }
    }
}

type Chunks = mpsc::Sender<Result<sse::Event, Infallible>>;

/// Whether somebody still reads.
async fn send(to: &Chunks, value: &Value) -> bool {
    to.send(Ok(sse::Event::default().data(value.to_string()))).await.is_ok()
}

fn measure_tokens(model: B256, usage: Usage) {
    let model = model.to_string();
    counter!(measure::TOKENS, "direction" => "in", "model" => model.clone()).increment(u64::from(usage.n_in));
    counter!(measure::TOKENS, "direction" => "out", "model" => model).increment(usage.n_out);
}
