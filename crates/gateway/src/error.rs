//! Refusals, in the shape that OpenAI's clients read.

use alloy::primitives::U256;
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};

/// Why a request got no answer: a status, OpenAI's `type`, a reason code that programs can tell apart, and what to do.
#[derive(Clone, Debug)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// OpenAI's coarse class.
    pub kind: &'static str,
    /// The reason.
    pub code: &'static str,
    /// For people, with the cure.
    pub message: String,
    /// The parameter at fault.
    pub param: Option<String>,
    /// Seconds until trying again makes sense.
    pub retry_after: Option<u32>,
    /// How to pay, in the manner of x402.
    pub accepts: Vec<PaymentOption>,
}

/// One way to pay, as a 402 lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PaymentOption {
    /// `sworn-channel`.
    pub scheme: &'static str,
    /// CAIP-2 name of the chain.
    pub network: String,
    /// The payment token.
    pub asset: String,
    /// The contract that holds channels.
    pub pay_to: String,
    /// What the request may cost at most, in the token's smallest unit.
    pub max_amount_required: String,
    /// What is asked for.
    pub resource: String,
    /// What to do.
    pub description: String,
    /// The node that would be paid, and the account that pays.
    pub extra: Value,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, code: &'static str, message: impl Into<String>) -> Self {
        ApiError { status, kind, code, message: message.into(), param: None, retry_after: None, accepts: Vec::new() }
    }

    /// A parameter that cannot be meant.
    pub fn invalid(param: impl Into<String>, code: &'static str, message: impl Into<String>) -> Self {
        let e = Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", code, message);
        ApiError { param: Some(param.into()), ..e }
    }

    /// A request that cannot be read.
    pub fn unreadable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", "invalid_json", message)
    }

    /// Too many bytes.
    pub fn too_large(limit: usize) -> Self {
        let message = format!("the request is longer than {limit} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", "request_too_large", message)
    }

    /// No such model here.
    pub fn no_model(name: &str) -> Self {
        let name: String = name.chars().take(100).collect();
        let message = format!("The model {name:?} does not exist here: GET /v1/models lists those that do.");
        let e = Self::new(StatusCode::NOT_FOUND, "invalid_request_error", "model_not_found", message);
        ApiError { param: Some("model".into()), ..e }
    }

    /// No such page or thing.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", "not_found", message)
    }

    /// Another method.
    pub fn method() -> Self {
        let message = "this page does not take that method";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", "method_not_allowed", message)
    }

    /// No or a wrong key.
    pub fn unauthorized() -> Self {
        let message = "Incorrect API key provided: send one of the gateway's keys as `Authorization: Bearer KEY`.";
        Self::new(StatusCode::UNAUTHORIZED, "invalid_request_error", "invalid_api_key", message)
    }

    /// No channel can pay.
    pub fn payment(code: &'static str, message: impl Into<String>, accepts: Vec<PaymentOption>) -> Self {
        let e = Self::new(StatusCode::PAYMENT_REQUIRED, "payment_required", code, message);
        ApiError { accepts, ..e }
    }

    /// Too much at a time.
    pub fn busy(code: &'static str, message: impl Into<String>, retry_after: u64) -> Self {
        let e = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", code, message);
        ApiError { retry_after: Some(seconds(retry_after)), ..e }
    }

    /// Nobody can answer now.
    pub fn unavailable(code: &'static str, message: impl Into<String>, retry_after: u64) -> Self {
        let e = Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", code, message);
        ApiError { retry_after: Some(seconds(retry_after)), ..e }
    }

    /// The nodes failed.
    pub fn upstream(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, "server_error", code, message)
    }

    /// Over time.
    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "server_error", "timeout", message)
    }

    /// The gateway failed; the log has more.
    pub fn internal(cause: &dyn std::fmt::Display) -> Self {
        tracing::error!(%cause, "gateway");
        let message = "the gateway failed; its log says why";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", "internal_error", message)
    }

    /// `{"error": …}`.
    pub fn body(&self) -> Value {
        let mut body = json!({
            "error": { "message": self.message, "type": self.kind, "param": self.param, "code": self.code }
        });
        if !self.accepts.is_empty() {
            body["x402Version"] = json!(1);
            body["accepts"] = json!(self.accepts);
        }
        body
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.message, self.code)
    }
}

impl std::error::Error for ApiError {}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(Reason(self.code));
        response
    }
}

/// The reason code of a refusal, for logs and metrics.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reason(pub(crate) &'static str);

fn seconds(seconds: u64) -> u32 {
    u32::try_from(seconds).unwrap_or(u32::MAX)
}

/// Amounts on the wire: digits, since JSON's numbers are floats.
pub(crate) fn digits(amount: u128) -> String {
    U256::from(amount).to_string()
}
