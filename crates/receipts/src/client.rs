//! A client of a node's channel API. Nothing a node sends can make it hold more than its bounds or wait for ever.

use std::collections::VecDeque;
use std::time::Duration;

use alloy::primitives::B256;
use reqwest::{Method, Response, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::sse::SseReader;
use crate::wire::{Answered, Ask, ChannelState, Code, End, Event, NodeInfo, ReceiptPage, Refusal, SignedOffer};
use crate::{Error, Result};

/// Bytes of a refusal that are read.
const REFUSAL: u64 = 16 << 10;
/// Bytes of a list of offers.
const OFFERS: u64 = 1 << 20;
/// Bytes of what a node says of itself.
const INFO: u64 = 64 << 10;
/// Bytes of one receipt with its tokens.
const RECEIPT: u64 = 1 << 20;
/// Bytes of a page of receipts.
const RECEIPTS: u64 = 32 << 20;
/// Bytes of one event of a stream.
const EVENT: usize = 64 << 10;

/// How patient a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientOptions {
    /// For a connection.
    pub connect: Duration,
    /// For everything but a stream, and for a stream's first byte.
    pub answer: Duration,
    /// Between two pieces of a stream; a node sends at least a comment every few seconds.
    pub silence: Duration,
}

impl Default for ClientOptions {
    fn default() -> Self {
        ClientOptions {
            connect: Duration::from_secs(5),
            answer: Duration::from_secs(20),
            silence: Duration::from_secs(30),
        }
    }
}

/// Asks one node. Cheap to clone; clones share their connections.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    options: ClientOptions,
}

impl Client {
    /// A client of the node at `endpoint`.
    ///
    /// # Errors
    /// The endpoint is no http address.
    pub fn new(endpoint: &str, options: ClientOptions) -> Result<Self> {
        let wrong = || Error::Endpoint(endpoint.chars().take(200).collect());
        let base = Url::parse(&format!("{}/", endpoint.trim_end_matches('/'))).map_err(|_| wrong())?;
        if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
            return Err(wrong());
        }
        // A redirect could lead to a host that the operator of this client would never ask.
        let builder = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none());
        let http = builder.connect_timeout(options.connect).build().map_err(|e| Error::Unreachable(e.to_string()))?;
        Ok(Client { http, base, options })
    }

    /// What it asks for which model.
    ///
    /// # Errors
    /// The node cannot be reached, refuses or talks nonsense.
    pub async fn offers(&self) -> Result<Vec<SignedOffer>> {
        self.get("v1/offers", OFFERS).await
    }

    /// What it says of itself.
    ///
    /// # Errors
    /// As [`Self::offers`].
    pub async fn info(&self) -> Result<NodeInfo> {
        self.get("v1/info", INFO).await
    }

    /// Asks for an answer. Dropping the [`Answer`] hangs up, which ends the answer on the node's side.
    ///
    /// # Errors
    /// As [`Self::offers`]; a refusal for want of money has the figures.
    pub async fn ask(&self, channel: B256, ask: &Ask) -> Result<Answer> {
        let response = self.send(Method::POST, &format!("v1/channels/{channel}/answers"), Some(ask), None).await?;
        Ok(Answer {
            response,
            reader: SseReader::new(EVENT),
            ready: VecDeque::new(),
            tokens: 0,
            most: ask.max_new,
            over: false,
            silence: self.options.silence,
        })
    }

    /// Says enough: the answer is to have so many output tokens.
    ///
    /// # Errors
    /// As [`Self::offers`].
    pub async fn end(&self, channel: B256, request: u64, tokens: u32) -> Result<()> {
        let path = format!("v1/channels/{channel}/answers/{request}/end");
        self.send(Method::POST, &path, Some(&End { tokens }), Some(self.options.answer)).await.map(drop)
    }

    /// How the channel stands.
    ///
    /// # Errors
    /// As [`Self::offers`].
    pub async fn channel(&self, channel: B256) -> Result<ChannelState> {
        self.get(&format!("v1/channels/{channel}"), RECEIPT).await
    }

    /// The receipt of a request, once it is answered.
    ///
    /// # Errors
    /// As [`Self::offers`].
    pub async fn answered(&self, channel: B256, request: u64) -> Result<Answered> {
        self.get(&format!("v1/channels/{channel}/requests/{request}"), RECEIPT).await
    }

    /// The receipt of a sequence number.
    ///
    /// # Errors
    /// As [`Self::offers`].
    pub async fn receipt(&self, channel: B256, sequence: u64) -> Result<Answered> {
        self.get(&format!("v1/channels/{channel}/receipts/{sequence}"), RECEIPT).await
    }

    /// Receipts `from` to `to`, both included; as many of them as the node serves at a time.
    ///
    /// # Errors
    /// As [`Self::offers`].
    pub async fn receipts(&self, channel: B256, from: u64, to: u64) -> Result<ReceiptPage> {
        self.get(&format!("v1/channels/{channel}/receipts?from={from}&to={to}"), RECEIPTS).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str, limit: u64) -> Result<T> {
        let patience = self.options.answer;
        let mut response = self.send(Method::GET, path, None::<&()>, Some(patience)).await?;
        let bytes = body(&mut response, limit).await?;
        serde_json::from_slice(&bytes).map_err(|e| Error::Malformed(e.to_string()))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        json: Option<&(impl Serialize + Sync)>,
        whole: Option<Duration>,
    ) -> Result<Response> {
        let url = self.base.join(path).map_err(|_| Error::Endpoint(self.base.to_string()))?;
        let mut request = self.http.request(method, url);
        if let Some(json) = json {
            request = request.json(json);
        }
        if let Some(patience) = whole {
            request = request.timeout(patience);
        }
        let sent = tokio::time::timeout(self.options.answer, request.send()).await;
        let mut response = sent.map_err(|_| Error::Silent(self.options.answer))?.map_err(broken)?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let header = response.headers().get(reqwest::header::RETRY_AFTER);
        let retry_after = header.and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
        let read = tokio::time::timeout(self.options.answer, body(&mut response, REFUSAL)).await;
        let refusal = read.ok().and_then(Result::ok).and_then(|bytes| serde_json::from_slice::<Refusal>(&bytes).ok());
        let refusal = refusal.unwrap_or_else(|| Refusal::new(Code::Unknown, status.to_string()));
        Err(Error::Refused { status: status.as_u16(), retry_after, refusal: Box::new(refusal) })
    }
}

fn broken(e: reqwest::Error) -> Error {
    // Without the address: it may hold an operator's secrets, and the caller knows whom it asked.
    Error::Unreachable(e.without_url().to_string())
}

async fn body(response: &mut Response, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(broken)? {
        if bytes.len() as u64 + chunk.len() as u64 > limit {
            return Err(Error::TooLong(limit));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// An answer that comes in.
#[derive(Debug)]
pub struct Answer {
    response: Response,
    reader: SseReader,
    ready: VecDeque<Event>,
    tokens: u32,
    most: u32,
    over: bool,
    silence: Duration,
}

impl Answer {
    /// The next event: tokens by rising index, then a receipt or an error, then nothing.
    ///
    /// # Errors
    /// The connection breaks or goes silent, or the events make no sense.
    pub async fn next(&mut self) -> Result<Option<Event>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return self.check(event).map(Some);
            }
            if self.over {
                return Ok(None);
            }
            let chunk = tokio::time::timeout(self.silence, self.response.chunk()).await;
            let Some(chunk) = chunk.map_err(|_| Error::Silent(self.silence))?.map_err(broken)? else {
                return Err(Error::Unreachable("the stream ended without a receipt".into()));
            };
            for event in self.reader.push(&chunk)? {
                let decoded = Event::decode(&event.name, &event.data);
                self.ready.extend(decoded.map_err(|e| Error::Malformed(e.to_string()))?);
            }
        }
    }

    fn check(&mut self, event: Event) -> Result<Event> {
        if self.over {
            return Err(Error::Malformed("an event after the last".into()));
        }
        match &event {
            Event::Token { index, .. } if *index != self.tokens || *index >= self.most => {
                Err(Error::Malformed(format!("token {index} where token {} of {} is due", self.tokens, self.most)))
            }
            Event::Token { .. } => {
                self.tokens += 1;
                Ok(event)
            }
            Event::Receipt { .. } | Event::Error(_) => {
                self.over = true;
                Ok(event)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Finish, SignedReceipt};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// Answers every request with `response`, then closes.
    async fn server(response: Vec<u8>) -> Client {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(&response).await;
            }
        });
        let quick = Duration::from_millis(500);
        Client::new(&url, ClientOptions { connect: quick, answer: quick, silence: quick }).unwrap()
    }

    fn reply(status: &str, body: &str) -> Vec<u8> {
        format!("HTTP/1.1 {status}\r\nconnection: close\r\nretry-after: 3\r\n\r\n{body}").into_bytes()
    }

    fn ask() -> Ask {
        Ask {
            request: 1,
            model: B256::ZERO,
            prompt: vec![1],
            max_new: 2,
            sampling: Default::default(),
            seed: B256::ZERO,
            cumulative: 1,
            voucher: Default::default(),
            offer: SignedOffer { offer: Default::default(), signature: Default::default() },
            logprobs: None,
        }
    }

    fn stream(events: &[Event]) -> Vec<u8> {
        let text = events.iter().map(Event::encode).map(|(name, data)| format!("event: {name}\ndata: {data}\n\n"));
        reply("200 OK", &text.collect::<String>())
    }

    async fn read(client: &Client) -> Result<Vec<Event>> {
        let mut answer = client.ask(B256::ZERO, &ask()).await?;
        let mut events = Vec::new();
        while let Some(event) = answer.next().await? {
            events.push(event);
        }
        Ok(events)
    }

    #[tokio::test]
    async fn a_stream_is_tokens_and_a_receipt() {
        let token = |index, token| Event::Token { index, token, logprobs: None };
        let signed = SignedReceipt { receipt: Default::default(), signature: vec![1, 2].into() };
        let receipt = Event::Receipt { signed, finish: Finish::Stop };
        let sent = [token(0, 7), token(1, 9), receipt.clone()];
        assert_eq!(read(&server(stream(&sent)).await).await.unwrap(), sent);
        let error = [token(0, 7), Event::Error(Refusal::new(Code::Failed, "no"))];
        assert_eq!(read(&server(stream(&error)).await).await.unwrap(), error);
        for wrong in [
            &[token(1, 7)][..],
            &[token(0, 7), token(0, 7)],
            &[token(0, 7), token(1, 7), token(2, 7)],
            &[receipt.clone(), receipt],
            &[token(0, 7)],
            &[],
        ] {
            assert!(read(&server(stream(wrong)).await).await.is_err(), "{wrong:?}");
        }
        let flood = reply("200 OK", &"x".repeat(EVENT + 1));
        assert!(matches!(read(&server(flood).await).await, Err(Error::TooLong(_))));
    }

    #[tokio::test]
    async fn refusals_and_nonsense() {
        let refusal = Refusal { needed: Some(u128::MAX), price: Some(3), ..Refusal::new(Code::Payment, "pay") };
        let json = serde_json::to_string(&refusal).unwrap();
        match server(reply("402 Payment Required", &json)).await.ask(B256::ZERO, &ask()).await.unwrap_err() {
            Error::Refused { status: 402, retry_after: Some(3), refusal: told } => assert_eq!(*told, refusal),
            other => panic!("{other}"),
        }
        let plain = server(reply("503 Service Unavailable", "<html>")).await.offers().await.unwrap_err();
        assert!(plain.is_transient() && plain.to_string().contains("503"), "{plain}");
        let strange = serde_json::from_str::<Refusal>(r#"{"error":"x","code":"of_tomorrow"}"#).unwrap();
        assert_eq!(strange.code, Code::Unknown);
        assert!(matches!(server(reply("200 OK", "[1]")).await.offers().await, Err(Error::Malformed(_))));
        let long = reply("200 OK", &" ".repeat(OFFERS as usize + 1));
        assert!(matches!(server(long).await.offers().await, Err(Error::TooLong(_))));
        let away = reply("302 Found", "");
        assert!(matches!(server(away).await.offers().await, Err(Error::Refused { status: 302, .. })));
        assert!(matches!(server(Vec::new()).await.offers().await, Err(Error::Unreachable(_))));
        for bad in ["", "no url", "file:///etc/passwd", "ftp://x"] {
            assert!(Client::new(bad, ClientOptions::default()).is_err(), "{bad}");
        }
    }
}
