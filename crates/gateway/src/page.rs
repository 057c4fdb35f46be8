//! The page: files that were built into the program, and what it must know of this gateway and its chain.

use std::sync::Arc;

use alloy::primitives::{Address, B256};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use include_dir::{Dir, include_dir};
use serde::Serialize;
use serde_json::json;
use sworn_bindings::Deployment;
use sworn_isa::SectionKind;

use crate::config::Offered;
use crate::error::ApiError;
use crate::server::Gateway;

static FILES: Dir<'static> = include_dir!("$OUT_DIR/page");

/// What the page is told.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Page {
    /// Where browsers may read the chain; none: through their wallets.
    pub rpc: Option<String>,
    /// Who signs the vouchers.
    pub signer: Address,
    /// The payment token's symbol.
    pub symbol: String,
    /// Its decimals.
    pub decimals: u8,
    /// The contracts, on which chain and since when.
    pub contracts: Deployment,
}

impl Page {
    /// Scripts and styles of its own, connections to this server and to the chain, nothing else.
    fn policy(&self) -> String {
        let rpc = self.rpc.as_deref().and_then(origin).unwrap_or_default();
        format!(
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self' {rpc}; base-uri 'none'; \
             form-action 'none'; frame-ancestors 'none'"
        )
    }
}

/// Scheme, host and port: a path or a key in it is nobody's business.
fn origin(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let host = rest.split(['/', '?', '#']).next()?.rsplit('@').next()?;
    let plain = host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.:[]".contains(&b));
    (matches!(scheme, "http" | "https") && plain && !host.is_empty()).then(|| format!("{scheme}://{host}"))
}

/// `/`.
pub(crate) async fn index(State(gateway): State<Arc<Gateway>>) -> Response {
    file(&gateway, "index.html")
}

/// `/assets/…`, which are named by their content.
pub(crate) async fn asset(State(gateway): State<Arc<Gateway>>, Path(path): Path<String>) -> Response {
    file(&gateway, &format!("assets/{path}"))
}

/// `/favicon.svg`.
pub(crate) async fn icon(State(gateway): State<Arc<Gateway>>) -> Response {
    file(&gateway, "favicon.svg")
}

fn file(gateway: &Gateway, path: &str) -> Response {
    let (Some(page), Some(found)) = (&gateway.config.page, FILES.get_file(path)) else {
        return ApiError::not_found(format!("Unknown request URL: GET /{path}")).into_response();
    };
    let kind = match path.rsplit('.').next() {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "application/octet-stream",
    };
    let cache = if path.starts_with("assets/") { "public, max-age=31536000, immutable" } else { "no-cache" };
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(cache));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    if let Ok(policy) = HeaderValue::from_str(&page.policy()) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    (StatusCode::OK, headers, found.contents()).into_response()
}

/// `/page.json`: all of it can be read from the chain, so it needs no key.
pub(crate) async fn settings(State(gateway): State<Arc<Gateway>>) -> Result<impl IntoResponse, ApiError> {
    let page = gateway.config.page.as_ref();
    let page = page.ok_or_else(|| ApiError::not_found("this gateway serves no page"))?;
    let mut told = serde_json::to_value(page).map_err(|e| ApiError::internal(&e))?;
    told["models"] = gateway.config.models.iter().map(shape).collect();
    Ok(Json(told))
}

/// What a challenge is drawn with.
fn shape(offered: &Offered) -> serde_json::Value {
    let model = &offered.model;
    let names = |kind| -> Vec<&str> { model.program().section(kind).ops.iter().map(|d| d.opcode.name()).collect() };
    let sections = [SectionKind::Embedding, SectionKind::Block, SectionKind::Head].map(names);
    json!({
        "name": offered.name,
        "id": B256::from(model.id()),
        "layers": model.layers(),
        "vocabulary": model.manifest().vocab,
        "sections": sections,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_origin_gets_into_the_policy() {
        assert_eq!(origin("http://127.0.0.1:8545").as_deref(), Some("http://127.0.0.1:8545"));
        assert_eq!(origin("https://user:pw@rpc.example/v3/secret?k=1").as_deref(), Some("https://rpc.example"));
        assert_eq!(origin("http://[::1]:8545/").as_deref(), Some("http://[::1]:8545"));
        for bad in ["", "ws://x", "http://", "http://a;script-src *", "http://a b", "file:///x"] {
            assert_eq!(origin(bad), None, "{bad}");
        }
    }
}
