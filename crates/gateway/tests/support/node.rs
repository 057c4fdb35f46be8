//! A node for the gateway's tests: the real engine, real signatures, the real wire format over HTTP, and a switch for each way in which a
//! node can fail its client.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use alloy::primitives::{Address, B256, Bytes};
use alloy::signers::local::PrivateKeySigner;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::sse::{Event as SseEvent, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use axum::{Json, Router};
use sworn_commit::sequence;
use sworn_engine::{Backend, Request, generate_until};
use sworn_gateway::{ChannelInfo, Record};
use sworn_receipts::{
    Answered, Ask, ChannelState, Code, Domain, End, Event, Finish, InFlight, Offer, Receipt, Refusal, SignedOffer,
    SignedReceipt, SignedVoucher, Tier, Voucher, recover, sign_sync,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

/// How a node fails the next request.
#[derive(Clone, Debug)]
pub enum Failing {
    /// Too much to do.
    Busy,
    /// The connection breaks after so many tokens; the receipt for them can be asked for afterwards.
    Cut(usize),
    /// The same, and it answers nothing any more.
    Die(usize),
    /// It says after so many tokens that it cannot go on.
    Fail(usize),
    /// It ends after so many tokens, and says so.
    EndEarly(usize),
    /// It asks for more than its offer.
    Overcharge,
    /// It adds more to the total than the answer costs.
    Overadd,
    /// It signs for other tokens than it gave.
    OtherTokens,
    /// Somebody else signs.
    OtherKey,
    /// It refuses its own offer once.
    StaleOffer,
    /// Another request takes its place after so many tokens.
    Preempt(usize),
    /// It says that the channel owes nearly all it holds, by a receipt of its own and a voucher by the key that is given, if one is.
    Claim(Option<PrivateKeySigner>),
}

pub struct TestNode {
    pub key: PrivateKeySigner,
    pub channel: B256,
    pub url: String,
    pub domain: Domain,
    pub prices: (u128, u128),
    pub deposit: u128,
    pub failing: Mutex<VecDeque<Failing>>,
    pub asked: AtomicU32,
    /// Between tokens.
    pub pace: Duration,
    signer: Address,
    backend: Arc<dyn Backend>,
    books: Mutex<Books>,
}

#[derive(Default)]
struct Books {
    sequence: u64,
    cumulative: u128,
    last: Option<SignedReceipt>,
    best: Option<SignedVoucher>,
    answered: HashMap<u64, Answered>,
    in_flight: BTreeMap<u64, (u128, Arc<AtomicU32>)>,
    dead: bool,
}

impl TestNode {
    pub async fn start(
        backend: Arc<dyn Backend>,
        domain: Domain,
        signer: Address,
        prices: (u128, u128),
        deposit: u128,
        pace: Duration,
    ) -> Arc<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let key = PrivateKeySigner::random();
        let node = Arc::new(TestNode {
            channel: B256::left_padding_from(key.address().as_slice()),
            key,
            url: format!("http://{}", listener.local_addr().unwrap()),
            domain,
            prices,
            deposit,
            failing: Mutex::default(),
            asked: AtomicU32::new(0),
            pace,
            signer,
            backend,
            books: Mutex::default(),
        });
        let router = Router::new()
            .route("/v1/offers", get(offers))
            .route("/v1/channels/{id}", get(state))
            .route("/v1/channels/{id}/answers", post(answers))
            .route("/v1/channels/{id}/answers/{request}/end", post(end))
            .route("/v1/channels/{id}/requests/{request}", get(answered))
            .with_state(node.clone());
        // As a node does: tokens are small and must not wait for each other.
        let listener = listener.tap_io(|stream| stream.set_nodelay(true).unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        node
    }

    pub fn info(&self) -> ChannelInfo {
        ChannelInfo {
            id: self.channel,
            node: self.key.address(),
            endpoint: self.url.clone(),
            keys: Vec::new(),
            deposit: self.deposit,
            record: Record::default(),
        }
    }

    pub fn fail(&self, how: Failing) {
        self.failing.lock().unwrap().push_back(how);
    }

    pub fn total(&self) -> (u64, u128) {
        let books = self.books();
        (books.sequence, books.cumulative)
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap()
    }

    /// Spot costs half, reserved twice as much.
    fn offer(&self, tier: Tier) -> SignedOffer {
        let times = |price: u128| match tier {
            Tier::Standard => price,
            Tier::Spot => price / 2,
            Tier::Reserved => price * 2,
        };
        let offer = Offer {
            node: self.key.address(),
            modelId: self.backend.model().id().into(),
            perInputToken: times(self.prices.0),
            perOutputToken: times(self.prices.1),
            tier: tier.number(),
            maxTokens: self.backend.model().manifest().max_positions,
            surgeBps: 0,
            validUntil: SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 60,
        };
        let signature = sign_sync(&self.key, &self.domain, &offer).unwrap().into();
        SignedOffer { offer, signature }
    }

    /// A refusal that asks for nearly the whole channel.
    fn claim(&self, ask: &Ask, by: Option<PrivateKeySigner>) -> Refusal {
        let price = ask.maximum().unwrap();
        let cumulative = self.deposit - price;
        let receipt =
            Receipt { channelId: self.channel, sequence: 9, price: cumulative, cumulative, ..Receipt::default() };
        let signature = sign_sync(&self.key, &self.domain, &receipt).unwrap().into();
        let voucher = Voucher { channelId: self.channel, cumulative: self.deposit, ..Voucher::default() };
        let sign = |key| sign_sync(&key, &self.domain, &voucher).unwrap().into();
        Refusal {
            needed: Some(self.deposit),
            deposit: Some(self.deposit),
            price: Some(price),
            last_receipt: Some(SignedReceipt { receipt, signature }),
            covered_by: by.map(sign).map(|signature| Box::new(SignedVoucher { voucher: voucher.clone(), signature })),
            ..Refusal::new(Code::Payment, "you owe me more")
        }
    }

    /// One receipt for a request, ever.
    fn sign(&self, ask: &Ask, output: &[u32], finish: Finish, how: &Option<Failing>) -> Answered {
        let run = ask.run().unwrap();
        let audit = sworn_engine::audit(&*self.backend, &ask.prompt, output, &run, None).unwrap();
        let mut books = self.books();
        let (n_in, n_out) = (ask.prompt.len() as u32, output.len() as u32);
        let mut price = ask.offer.offer.price(n_in, n_out).unwrap();
        if matches!(how, Some(Failing::Overcharge)) {
            price += 1;
        }
        let mut cumulative = books.cumulative + price;
        if matches!(how, Some(Failing::Overadd)) {
            cumulative += 1;
        }
        let mut signed_for = output.to_vec();
        if matches!(how, Some(Failing::OtherTokens)) {
            signed_for[0] ^= 1;
        }
        let receipt = Receipt {
            channelId: self.channel,
            sequence: books.sequence + 1,
            request: ask.request,
            modelId: ask.model,
            inputHash: sequence::hash(&ask.prompt).into(),
            outputHash: sequence::hash(&signed_for).into(),
            nIn: n_in,
            nOut: n_out,
            maxNew: ask.max_new,
            sampling: ask.sampling,
            seed: ask.seed,
            layersRoot: audit.trace.layers_root.into(),
            price,
            cumulative,
        };
        let key = if matches!(how, Some(Failing::OtherKey)) { &PrivateKeySigner::random() } else { &self.key };
        let signature: Bytes = sign_sync(key, &self.domain, &receipt).unwrap().into();
        let signed = SignedReceipt { receipt, signature };
        (books.sequence, books.cumulative) = (books.sequence + 1, cumulative);
        books.in_flight.remove(&ask.request);
        books.last = Some(signed.clone());
        let answered = Answered { signed, finish, prompt: ask.prompt.clone(), output: output.to_vec() };
        books.answered.insert(ask.request, answered.clone());
        answered
    }
}

fn refuse(refusal: Refusal) -> Response {
    let status = StatusCode::from_u16(refusal.code.status()).unwrap();
    (status, [("retry-after", "1")], Json(refusal)).into_response()
}

async fn offers(State(node): State<Arc<TestNode>>) -> Response {
    if node.books().dead {
        return refuse(Refusal::new(Code::Failed, "gone"));
    }
    Json([Tier::Standard, Tier::Spot, Tier::Reserved].map(|t| node.offer(t))).into_response()
}

async fn state(State(node): State<Arc<TestNode>>) -> Json<ChannelState> {
    let books = node.books();
    Json(ChannelState {
        sequence: books.sequence,
        cumulative: books.cumulative,
        deposit: node.deposit,
        in_flight: books.in_flight.iter().map(|(r, (m, _))| InFlight { request: *r, maximum: *m }).collect(),
        last_receipt: books.last.clone(),
    })
}

async fn answered(State(node): State<Arc<TestNode>>, Path((_, request)): Path<(B256, u64)>) -> Response {
    let books = node.books();
    if books.dead {
        return refuse(Refusal::new(Code::Failed, "gone"));
    }
    match books.answered.get(&request) {
        Some(answered) => Json(answered).into_response(),
        None => refuse(Refusal::new(Code::NotFound, "no such request")),
    }
}

async fn end(
    State(node): State<Arc<TestNode>>,
    Path((_, request)): Path<(B256, u64)>,
    Json(end): Json<End>,
) -> StatusCode {
    if let Some((_, at)) = node.books().in_flight.get(&request) {
        at.store(end.tokens, Ordering::SeqCst);
    }
    StatusCode::NO_CONTENT
}

async fn answers(State(node): State<Arc<TestNode>>, Path(channel): Path<B256>, Json(ask): Json<Ask>) -> Response {
    node.asked.fetch_add(1, Ordering::SeqCst);
    let how = node.failing.lock().unwrap().pop_front();
    let ending = Arc::new(AtomicU32::new(u32::MAX));
    {
        let mut books = node.books();
        if books.dead {
            return refuse(Refusal::new(Code::Failed, "gone"));
        }
        let voucher = ask.voucher(channel).unwrap();
        if recover(&node.domain, &voucher, &ask.voucher).ok() != Some(node.signer) {
            return refuse(Refusal::new(Code::WrongSigner, "not the channel's signer"));
        }
        match how {
            Some(Failing::Busy) => return refuse(Refusal::new(Code::Busy, "later")),
            Some(Failing::StaleOffer) => return refuse(Refusal::new(Code::OfferExpired, "a new one, please")),
            Some(Failing::Claim(by)) => return refuse(node.claim(&ask, by)),
            _ => {}
        }
        let maximum = ask.maximum().unwrap();
        let in_flight: u128 = books.in_flight.values().map(|(m, _)| m).sum();
        let needed = books.cumulative + in_flight + maximum;
        if ask.cumulative < needed || ask.cumulative > node.deposit {
            return refuse(Refusal {
                needed: Some(needed),
                deposit: Some(node.deposit),
                price: Some(maximum),
                last_receipt: books.last.clone(),
                covered_by: books.best.clone().map(Box::new),
                ..Refusal::new(Code::Payment, "the voucher does not cover this")
            });
        }
        if books.best.as_ref().is_none_or(|b| b.voucher.cumulative < ask.cumulative) {
            books.best = Some(SignedVoucher { voucher, signature: ask.voucher.clone() });
        }
        books.in_flight.insert(ask.request, (maximum, ending.clone()));
    }
    let (to, events) = mpsc::unbounded_channel::<Result<SseEvent, std::io::Error>>();
    tokio::task::spawn_blocking(move || node.give(&ask, how, &ending, &to));
    Sse::new(UnboundedReceiverStream::new(events)).into_response()
}

impl TestNode {
    fn give(
        &self,
        ask: &Ask,
        how: Option<Failing>,
        ending: &AtomicU32,
        to: &mpsc::UnboundedSender<Result<SseEvent, std::io::Error>>,
    ) {
        let send = |event: Event| {
            let (name, data) = event.encode();
            to.send(Ok(SseEvent::default().event(name).data(data))).is_ok()
        };
        let run = ask.run().unwrap();
        let stop = &self.backend.model().manifest().stop_tokens;
        let request = Request { prompt: &ask.prompt, max_new: ask.max_new, stop, run, cancel: None };
        let most = match how {
            Some(Failing::Cut(n) | Failing::Die(n) | Failing::Fail(n) | Failing::EndEarly(n) | Failing::Preempt(n)) => {
                n
            }
            _ => usize::MAX,
        };
        let (mut output, mut told) = (Vec::new(), false);
        let _ = generate_until(&*self.backend, &request, &mut |token| {
            if output.len() >= most {
                return ControlFlow::Break(());
            }
            std::thread::sleep(self.pace);
            output.push(token);
            let index = output.len() as u32 - 1;
            let heard = send(Event::Token { index, token, logprobs: None });
            if !heard || output.len() as u32 >= ending.load(Ordering::SeqCst) {
                told = true;
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
        match how {
            Some(Failing::Fail(_) | Failing::Preempt(_)) => {
                let code = if matches!(how, Some(Failing::Preempt(_))) { Code::Preempted } else { Code::Failed };
                self.books().in_flight.remove(&ask.request);
                send(Event::Error(Refusal::new(code, "it cannot go on")));
                return;
            }
            Some(Failing::Die(_)) => {
                self.books().dead = true;
                let _ = to.send(Err(std::io::Error::other("gone")));
                return;
            }
            _ => {}
        }
        // What was produced beyond the end is cut off again.
        output.truncate(ending.load(Ordering::SeqCst) as usize);
        let early = matches!(how, Some(Failing::EndEarly(_) | Failing::Cut(_)));
        let finish = match output.last() {
            Some(t) if stop.contains(t) => Finish::Stop,
            _ if told || early => Finish::Ended,
            _ => Finish::Length,
        };
        let answered = self.sign(ask, &output, finish, &how);
        if matches!(how, Some(Failing::Cut(_))) {
            // What was sent before the connection breaks must have left, or the client has heard of nothing at all.
            std::thread::sleep(Duration::from_millis(150));
            let _ = to.send(Err(std::io::Error::other("cut")));
            return;
        }
        send(Event::Receipt { signed: answered.signed, finish });
    }
}
