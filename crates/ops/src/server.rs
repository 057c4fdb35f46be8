//! The operator's pages, on an address of their own.

use std::io;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;
use tokio::net::TcpListener;

use crate::{CONTENT_TYPE, Pulse};

/// Serves until `stop`, and installs the process's recorder.
///
/// # Errors
/// The listener fails.
pub async fn serve(
    listener: TcpListener,
    pulse: Pulse,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    crate::install();
    let upkeep = tokio::spawn(crate::upkeep());
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/health", get(health))
        .route("/ready", get(ready))
        .fallback(async || (StatusCode::NOT_FOUND, "there are /metrics, /health and /ready\n"))
        .with_state(pulse);
    // A reader that keeps its connection open must not keep the process.
    let (stopping, mut stopped) = tokio::sync::watch::channel(false);
    let graceful = async move {
        stop.await;
        stopping.send_replace(true);
    };
    let farewell = async {
        let _ = stopped.wait_for(|s| *s).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    let served = tokio::select! {
        served = axum::serve(listener, router).with_graceful_shutdown(graceful) => served,
        () = farewell => Ok(()),
    };
    upkeep.abort();
    served
}

async fn metrics() -> Response {
    match crate::render() {
        Some(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        None => (StatusCode::NOT_FOUND, "this process measures elsewhere\n").into_response(),
    }
}

async fn health(State(pulse): State<Pulse>) -> impl IntoResponse {
    let (alive, ago) = pulse.alive();
    (status(alive), Json(json!({ "alive": alive, "turned_seconds_ago": ago.as_secs() })))
}

async fn ready(State(pulse): State<Pulse>) -> impl IntoResponse {
    let reason = pulse.reason();
    (status(reason.is_none()), Json(json!({ "ready": reason.is_none(), "reason": reason })))
}

fn status(good: bool) -> StatusCode {
    if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pages_of_an_agent() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let pulse = Pulse::default();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let serving = tokio::spawn(serve(listener, pulse.clone(), async move {
            let _ = stopped.await;
        }));
        let http = reqwest::Client::new();
        let get = async |path: &str| {
            let response = http.get(format!("{url}{path}")).send().await.unwrap();
            (response.status().as_u16(), response.text().await.unwrap())
        };
        assert_eq!(get("/ready").await.0, 503);
        assert_eq!(get("/health").await.0, 200);
        pulse.good();
        assert_eq!(get("/ready").await, (200, r#"{"ready":true,"reason":null}"#.into()));
        let (status, text) = get("/metrics").await;
        assert!(
            status == 200 && text.contains("sworn_agent_ready 1") && text.contains("# HELP sworn_agent_turns_total"),
            "{text}"
        );
        assert_eq!(get("/nothing").await.0, 404);
        stop.send(()).unwrap();
        // The client's connection is still open.
        serving.await.unwrap().unwrap();
    }
}
