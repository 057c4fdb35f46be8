//! A JSON-RPC server before a chain's own.

use axum::http::StatusCode;
use axum::routing::post;
use serde_json::Value;

/// Forwards to `upstream` what `admits` finds well; to anything else there is no answer in time (504). Its URL.
pub async fn server(upstream: String, admits: impl Fn(&Value) -> bool + Clone + Send + Sync + 'static) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let http = reqwest::Client::new();
    let answer = async move |axum::Json(request): axum::Json<Value>| {
        if !admits(&request) {
            return Err(StatusCode::GATEWAY_TIMEOUT);
        }
        let answer = http.post(&upstream).json(&request).send().await.unwrap();
        Ok(axum::Json(answer.json::<Value>().await.unwrap()))
    };
    let router = axum::Router::new().route("/", post(answer));
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}
