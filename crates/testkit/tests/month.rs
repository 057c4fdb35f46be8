//! A month of a market in compressed time: users, nodes and a watcher trade every day by jobs, auctions and receipts; one node is late, hides
//! receipts, and at last tells two stories. Every day the contracts hold exactly what they owe; at the end, when all have taken what is
//! theirs, everybody holds to the wei what a ledger that is kept beside the chain says.
//!
//! Answers are a real model's, computed beforehand; receipts, vouchers and trees are the ones that nodes and gateways make.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use alloy::primitives::{Address, B256, Bytes, U256};
use alloy::sol_types::SolCall;
use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use sworn_bindings::IChannels::{self, IChannelsEvents};
use sworn_bindings::IMarket::{self, IMarketEvents};
use sworn_bindings::{Event, IERC20, INodes, ITrials, Part, Redemption};
use sworn_commit::sequence;
use sworn_engine::{Cpu, Request, generate};
use sworn_model::{Model, SyntheticSpec, synthetic};
use sworn_receipts::{Domain, Receipt, Voucher, place, receipts_root, receipts_tree, sign_sync};
use sworn_testkit::devnet::{Actor, BURN, Devnet, PURSE, Terms};
use sworn_testkit::scenario::sworn;
use sworn_testkit::tried::tried;

const DAYS: u32 = 30;
const DAY: u64 = 86_400;
const STAKE: u128 = PURSE / 4;
const INPUT: u128 = 1_000_000_000_000_000;
/// Of an output token, by node: the cheapest first.
const OUTPUT: [u128; 4] = [4 * INPUT, 5 * INPUT, 7 * INPUT, 3 * INPUT];
/// The node that misbehaves, and when it is convicted.
const GULL: usize = 3;
const END_OF_GULL: u32 = 23;
const CHANNEL: u128 = PURSE / 50;
/// Answers of full length, which jobs buy; as many are shorter.
const WHOLE: usize = 6;
/// Tokens of the longest answer.
const MAX_NEW: u32 = 16;
/// What a user is willing to pay for an auctioned job.
const CEILING: u128 = 2 * OUTPUT[2] * MAX_NEW as u128;

/// An answer that an honest node gives.
struct Answer {
    prompt: Vec<u32>,
    output: Vec<u32>,
    layers_root: B256,
}

/// A channel, as user and node know it.
struct Channel {
    id: B256,
    user: usize,
    node: usize,
    deposit: u128,
    receipts: Vec<Receipt>,
    redeemed: usize,
    open: bool,
}

impl Channel {
    fn owed(&self) -> u128 {
        self.receipts.last().map_or(0, |r| r.cumulative)
    }
}

/// A batch that waits.
struct Batch {
    id: U256,
    node: usize,
    parts: Vec<Part>,
    hides: bool,
}

/// What everybody has gained or lost beside the chain's own books.
#[derive(Default)]
struct Ledger {
    gained: BTreeMap<Address, i128>,
    burned: u128,
    volume: BTreeMap<Address, u128>,
    receipts: BTreeMap<Address, u64>,
}

impl Ledger {
    fn moves(&mut self, from: Address, to: Address, amount: u128) {
        *self.gained.entry(from).or_default() -= amount as i128;
        *self.gained.entry(to).or_default() += amount as i128;
    }

    fn burns(&mut self, from: Address, amount: u128) {
        *self.gained.entry(from).or_default() -= amount as i128;
        self.burned += amount;
    }

    fn pays(&mut self, user: Address, node: Address, amount: u128, receipts: u64) {
        self.moves(user, node, amount);
        *self.volume.entry(node).or_default() += amount;
        *self.receipts.entry(node).or_default() += receipts;
    }
}

struct Month {
    net: Devnet,
    terms: Terms,
    model: Arc<Model>,
    nodes: Vec<Arc<Actor>>,
    users: Vec<Arc<Actor>>,
    watcher: Arc<Actor>,
    answers: Vec<Answer>,
    channels: Vec<Channel>,
    batches: Vec<Batch>,
    ledger: Ledger,
    rng: StdRng,
    gone: bool,
    calls: AtomicU32,
    /// Batches that were void because a receipt was not shown.
    hidden: u32,
    /// Paid, late, by auction.
    jobs: [u32; 3],
}

fn share(amount: u128, bps: u16) -> u128 {
    amount * u128::from(bps) / 10_000
}

fn seconds(t: alloy::primitives::Uint<40, 1>) -> u64 {
    t.to()
}

impl Month {
    async fn new() -> Self {
        let hours = |n: u64| alloy::primitives::Uint::<40, 1>::from(n * 3_600);
        let mut terms = Terms { unstake_delay: 10 * DAY, ..Terms::default() };
        let (market, channels) = (&mut terms.market, &mut terms.channels);
        (market.acceptTimeout, market.auctionTime, market.submitTimeout) = (hours(2), hours(1), hours(2));
        (market.challengeWindow, channels.window, channels.closeDelay) = (hours(4), hours(6), hours(12));
        (channels.receiptTurn, channels.lodgeTurn) = (hours(1), hours(1));
        let mut net = Devnet::start(&terms).await.unwrap();
        let model = Arc::new(synthetic(&SyntheticSpec::default(), net.dir.path().join("model")).unwrap());
        let (mut nodes, mut users) = (Vec::new(), Vec::new());
        for name in ["lark", "wren", "owl", "gull"] {
            nodes.push(Arc::new(net.actor(name).await.unwrap()));
        }
        for name in ["ada", "bea", "cyd", "dot", "eve"] {
            users.push(Arc::new(net.actor(name).await.unwrap()));
        }
        let watcher = Arc::new(net.actor("watcher").await.unwrap());
        net.register(&model, &watcher).await.unwrap();
        let mut rng = StdRng::seed_from_u64(30);
        let cpu = Cpu::new(model.clone()).unwrap();
        let answers = (0..2 * WHOLE).map(|k| {
            let prompt: Vec<u32> = (0..rng.random_range(2..9)).map(|_| rng.random_range(3..300)).collect();
            let run = Default::default();
            let request = Request { prompt: &prompt, max_new: MAX_NEW, stop: &[], run, cancel: None };
            let mut output = generate(&cpu, &request, &mut |_| ()).unwrap().tokens;
            // Clients end an answer of a channel where they like.
            output.truncate(if k < WHOLE { MAX_NEW as usize } else { rng.random_range(1..=MAX_NEW as usize) });
            let audit = sworn_engine::audit(&cpu, &prompt, &output, &run, None).unwrap();
            Answer { prompt, output, layers_root: audit.trace.layers_root.into() }
        });
        let answers = answers.collect();
        let (channels, batches, ledger) = Default::default();
        let (gone, calls, hidden, jobs) = (false, AtomicU32::new(0), 0, [0; 3]);
        Month {
            net,
            terms,
            model,
            nodes,
            users,
            watcher,
            answers,
            channels,
            batches,
            ledger,
            rng,
            gone,
            calls,
            hidden,
            jobs,
        }
    }

    async fn send<C: SolCall>(&self, who: &Actor, to: Address, call: &C) -> Vec<Event> {
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        let receipt = who.send(&format!("call {number}"), to, call).await.unwrap();
        self.net.chain.events_of(receipt.hash).await.unwrap()
    }

    fn domain(&self) -> Domain {
        Domain { chain_id: self.net.deployment.chain_id, channels: self.net.deployment.channels }
    }

    /// Nodes that serve.
    fn serving(&self) -> usize {
        if self.gone { GULL } else { self.nodes.len() }
    }

    async fn open(&mut self, user: usize, node: usize) {
        let (who, to, channels) = (self.users[user].clone(), self.nodes[node].address(), self.net.deployment.channels);
        let salt = B256::from(U256::from(self.channels.len()));
        self.send(&who, channels, &IChannels::depositCall { amount: CHANNEL }).await;
        let open = IChannels::openCall { node: to, signer: who.address(), amount: CHANNEL, salt };
        self.send(&who, channels, &open).await;
        let id = self.net.chain.channels().channelIdOf(who.address(), to, salt).call().await.unwrap();
        self.channels.push(Channel { id, user, node, deposit: CHANNEL, receipts: Vec::new(), redeemed: 0, open: true });
    }

    async fn begin(&mut self) {
        let d = self.net.deployment.clone();
        for (node, output) in self.nodes.clone().iter().zip(OUTPUT) {
            self.send(node, d.token, &IERC20::approveCall { spender: d.nodes, value: U256::MAX }).await;
            self.send(node, d.nodes, &INodes::depositCall { amount: STAKE }).await;
            let endpoint = "http://node.example".to_owned();
            self.send(node, d.nodes, &INodes::configureCall { endpoint, capacity: 64 }).await;
            let (model, per_output) = (self.model.id().into(), output);
            let ask =
                INodes::setAskCall { modelId: model, perInputToken: INPUT, perOutputToken: per_output, maxTokens: 64 };
            self.send(node, d.nodes, &ask).await;
        }
        for who in self.users.clone().iter().chain([&self.watcher.clone()]) {
            for spender in [d.market, d.channels] {
                self.send(who, d.token, &IERC20::approveCall { spender, value: U256::MAX }).await;
            }
        }
        for user in 0..self.users.len() {
            self.open(user, user % 4).await;
            self.open(user, (user + 1) % 4).await;
        }
    }

    /// Answers over channels: signed on both sides, nothing on chain.
    fn chat(&mut self) {
        for c in self.channels.iter_mut().filter(|c| c.open && !(self.gone && c.node == GULL)) {
            for _ in 0..self.rng.random_range(0..25) {
                let answer = &self.answers[self.rng.random_range(0..self.answers.len())];
                let (n_in, n_out) = (answer.prompt.len() as u32, answer.output.len() as u32);
                let price = u128::from(n_in) * INPUT + u128::from(n_out) * OUTPUT[c.node];
                let number = c.receipts.len() as u64 + 1;
                if c.owed() + price > c.deposit {
                    break;
                }
                c.receipts.push(Receipt {
                    channelId: c.id,
                    sequence: number,
                    request: number,
                    modelId: self.model.id().into(),
                    inputHash: sequence::hash(&answer.prompt).into(),
                    outputHash: sequence::hash(&answer.output).into(),
                    nIn: n_in,
                    nOut: n_out,
                    maxNew: MAX_NEW,
                    layersRoot: answer.layers_root,
                    price,
                    cumulative: c.owed() + price,
                    ..Receipt::default()
                });
            }
        }
    }

    /// Each node claims what its channels owe, in one batch.
    async fn redeem(&mut self, day: u32) {
        let domain = self.domain();
        for node in 0..self.serving() {
            let mut redemptions = Vec::new();
            for c in self.channels.iter_mut().filter(|c| c.open && c.node == node && c.redeemed < c.receipts.len()) {
                let (first, last) = (c.redeemed, c.receipts.len());
                let voucher = Voucher { channelId: c.id, cumulative: c.deposit, ..Voucher::default() };
                let signature = sign_sync(&self.users[c.user].signer, &domain, &voucher).unwrap().into();
                redemptions.push(Redemption {
                    voucher: (&voucher).into(),
                    signature,
                    firstSequence: first as u64 + 1,
                    lastSequence: last as u64,
                    cumulative: c.owed(),
                    receiptsRoot: receipts_root(&domain, &c.receipts[first..]),
                });
                c.redeemed = last;
            }
            if redemptions.is_empty() {
                continue;
            }
            let (who, channels) = (self.nodes[node].clone(), self.net.deployment.channels);
            let events = self.send(&who, channels, &IChannels::redeemCall { redemptions }).await;
            let redeemed = events.into_iter().find_map(|e| match e {
                Event::Channels(IChannelsEvents::BatchRedeemed(e)) => Some(e),
                _ => None,
            });
            let e = redeemed.unwrap();
            let hides = node == GULL && day % 7 == 3;
            self.batches.push(Batch { id: e.batchId, node, parts: e.parts, hides });
        }
    }

    /// The watcher asks to see a receipt of some batches, of every one that is hidden elsewhere.
    async fn look(&mut self) {
        let (domain, channels, fee) = (self.domain(), self.net.deployment.channels, self.terms.channels.receiptFee);
        let watcher = self.watcher.clone();
        for k in 0..self.batches.len() {
            let Batch { id, node, ref parts, hides, .. } = self.batches[k];
            if !hides && self.rng.random_range(0..10) > 0 {
                continue;
            }
            let part = parts[self.rng.random_range(0..parts.len())].clone();
            let place = place(id, parts, part.channelId).unwrap();
            let sequence = self.rng.random_range(part.first..=part.last);
            self.send(&watcher, channels, &IChannels::demandReceiptCall { place: place.clone(), sequence }).await;
            let who = self.nodes[node].clone();
            if hides {
                continue;
            }
            let c = self.channels.iter().find(|c| c.id == part.channelId).unwrap();
            let (first, last) = (part.first as usize - 1, part.last as usize);
            let proof = receipts_tree(&domain, &c.receipts[first..last]).prove(sequence - part.first, 1);
            let receipt = c.receipts[sequence as usize - 1].clone();
            let signature = Bytes::from(sign_sync(&who.signer, &domain, &receipt).unwrap());
            let proof = proof.into_iter().map(B256::from).collect();
            let publish = IChannels::publishReceiptCall { place, receipt: (&receipt).into(), signature, proof };
            self.send(&who, channels, &publish).await;
            self.ledger.moves(watcher.address(), who.address(), fee);
        }
        self.net.skip(seconds(self.terms.channels.receiptTurn) + 1).await.unwrap();
        // What nobody was shown by now makes its batch void; its users are refunded.
        for b in self.batches.extract_if(.., |b| b.hides).collect::<Vec<_>>() {
            let node = self.nodes[b.node].clone();
            for c in b.parts.iter().map(|p| p.channelId) {
                let (first, last) = b.parts.iter().find(|p| p.channelId == c).map(|p| (p.first, p.last)).unwrap();
                for sequence in first..=last {
                    let demand = self.net.chain.channels().receiptDemand(b.id, c, sequence).call().await.unwrap();
                    if demand.payer == watcher.address() && demand.state as u8 == 1 {
                        let call = IChannels::receiptTimeoutCall { batchId: b.id, channelId: c, sequence };
                        self.send(&watcher, channels, &call).await;
                    }
                }
            }
            self.hidden += 1;
            let amount: u128 = b.parts.iter().map(|p| p.amount).sum();
            let p = &self.terms.channels;
            let bond = share(amount, p.bondFactorBps).max(p.minBond);
            let reward = share(bond, p.challengerShareBps);
            self.ledger.moves(node.address(), watcher.address(), reward);
            self.ledger.burns(node.address(), bond - reward);
            self.refund(&b).await;
        }
    }

    async fn refund(&mut self, b: &Batch) {
        for part in &b.parts {
            let place = place(b.id, &b.parts, part.channelId).unwrap();
            let user = self.channels.iter().find(|c| c.id == part.channelId).unwrap().user;
            let (who, channels) = (self.users[user].clone(), self.net.deployment.channels);
            self.send(&who, channels, &IChannels::refundCall { place }).await;
        }
    }

    async fn release(&mut self) {
        let channels = self.net.deployment.channels;
        let batches = std::mem::take(&mut self.batches);
        join_all(batches.iter().map(async |b| {
            self.send(&self.nodes[b.node], channels, &IChannels::releaseCall { batchId: b.id }).await;
        }))
        .await;
        for b in batches {
            let node = self.nodes[b.node].clone();
            for part in &b.parts {
                let user = self.channels.iter().find(|c| c.id == part.channelId).unwrap().user;
                let count = part.last - part.first + 1;
                self.ledger.pays(self.users[user].address(), node.address(), part.amount, count);
            }
        }
    }

    /// Jobs on chain: some name a node, some are auctioned; one node is late now and then.
    async fn jobs(&mut self) {
        let market = self.net.deployment.market;
        let mut asked = Vec::new();
        for user in self.users.clone() {
            let answer = self.rng.random_range(0..WHOLE);
            let node = self.rng.random_range(0..2 * self.serving());
            let named = if node < self.serving() { self.nodes[node].address() } else { Address::ZERO };
            let create = IMarket::createJobCall {
                modelId: self.model.id().into(),
                node: named,
                promptTokens: sequence::encode(&self.answers[answer].prompt).into(),
                maxNew: MAX_NEW,
                maxPrice: CEILING,
                sampling: U256::ZERO,
                userSeed: B256::ZERO,
            };
            asked.push((create, user, answer, (!named.is_zero()).then_some(node)));
        }
        let mut bought = join_all(asked.into_iter().map(async |(create, user, answer, node)| {
            let events = self.send(&user, market, &create).await;
            let id = events.into_iter().find_map(|e| match e {
                Event::Market(IMarketEvents::JobCreated(e)) => Some(e.jobId),
                _ => None,
            });
            (id.unwrap(), user, answer, node)
        }))
        .await;
        self.auction(&mut bought).await;
        let mut late = Vec::new();
        let mut answered = Vec::new();
        for (id, user, answer, node) in bought {
            let node = node.unwrap();
            if node == GULL && self.rng.random_range(0..3) == 0 {
                late.push((id, user, node));
                continue;
            }
            answered.push((id, user, answer, node));
        }
        join_all(answered.iter().map(async |(id, _, answer, node)| {
            let (id, who) = (*id, &self.nodes[*node]);
            let order = self.net.chain.market().orderHash(id).call().await.unwrap();
            let Answer { output, layers_root, .. } = &self.answers[*answer];
            let submit = IMarket::submitResultCall {
                jobId: id,
                order,
                outputTokens: sequence::encode(output).into(),
                layersRoot: *layers_root,
            };
            self.send(who, market, &submit).await;
        }))
        .await;
        let (submit, window) = (self.terms.market.submitTimeout, self.terms.market.challengeWindow);
        self.net.skip(seconds(submit) + seconds(window) + 1).await.unwrap();
        for (id, user, node) in late {
            let bond = self.net.chain.market().job(id).call().await.unwrap().bond;
            self.send(&user, market, &IMarket::expireCall { jobId: id }).await;
            let penalty = share(bond, self.terms.market.latePenaltyBps);
            self.ledger.moves(self.nodes[node].address(), user.address(), penalty);
            self.jobs[1] += 1;
        }
        join_all(answered.iter().map(async |(id, _, _, node)| {
            self.send(&self.nodes[*node], market, &IMarket::finalizeCall { jobId: *id }).await;
        }))
        .await;
        for (_, user, answer, node) in answered {
            let who = self.nodes[node].clone();
            let Answer { prompt, output, .. } = &self.answers[answer];
            let price = prompt.len() as u128 * INPUT + output.len() as u128 * OUTPUT[node];
            self.ledger.pays(user.address(), who.address(), price, 0);
            self.jobs[0] += 1;
        }
    }

    /// Offers rise, and the node that is content with least is first; the dearer ones are refused as long as it could bid.
    async fn auction(&mut self, bought: &mut [(U256, Arc<Actor>, usize, Option<usize>)]) {
        let market = self.net.deployment.market;
        let mut by_price: Vec<usize> = (0..self.serving()).collect();
        by_price.sort_by_key(|n| OUTPUT[*n]);
        let (cheap, dear) = (by_price[0], by_price[by_price.len() - 1]);
        let length = seconds(self.terms.market.auctionTime);
        // Every prompt's price at the cheap node, of the same ceiling: the longest prompt decides.
        let price =
            |node: usize, answer: &Answer| answer.prompt.len() as u128 * INPUT + u128::from(MAX_NEW) * OUTPUT[node];
        let most = bought.iter().map(|(_, _, answer, _)| price(cheap, &self.answers[*answer])).max().unwrap_or(0);
        let due = (most * u128::from(length)).div_ceil(CEILING) as u64;
        self.net.skip(due).await.unwrap();
        for (id, _, answer, node) in bought.iter_mut().filter(|b| b.3.is_none()) {
            let bid =
                |node: usize| IMarket::acceptJobCall { jobId: *id, perInputToken: INPUT, perOutputToken: OUTPUT[node] };
            let offer = self.net.chain.market().offerFor(*id).call().await.unwrap();
            assert!(offer < U256::from(price(dear, &self.answers[*answer])), "the auction is no auction");
            let refused = self.nodes[dear].send(&format!("too dear {id}"), market, &bid(dear)).await;
            assert!(refused.unwrap_err().to_string().contains("PriceOverCeiling"));
            let (who, call) = (self.nodes[cheap].clone(), bid(cheap));
            self.send(&who, market, &call).await;
            *node = Some(cheap);
            self.jobs[2] += 1;
        }
    }

    /// The node signs a second receipt for a request, and somebody shows both: all its stake is gone, and what it had claimed is void.
    async fn convict(&mut self) {
        let (domain, d) = (self.domain(), self.net.deployment.clone());
        let (gull, watcher) = (self.nodes[GULL].clone(), self.watcher.clone());
        let c = self.channels.iter().find(|c| c.node == GULL && !c.receipts.is_empty()).unwrap();
        let (user, a) = (self.users[c.user].address(), c.receipts[0].clone());
        let b = Receipt { cumulative: a.cumulative + 1, price: a.price + 1, ..a.clone() };
        let sign = |r: &Receipt| Bytes::from(sign_sync(&gull.signer, &domain, r).unwrap());
        let call = ITrials::convictEquivocationCall {
            a: (&a).into(),
            signatureA: sign(&a),
            b: (&b).into(),
            signatureB: sign(&b),
        };
        let stake = self.net.chain.nodes().node(gull.address()).call().await.unwrap();
        assert_eq!(stake.locked, 0, "no job of it is under way");
        self.send(&watcher, d.trials, &call).await;
        let p = &self.terms.channels;
        let (compensation, reward) = (share(stake.stake, p.userShareBps), share(stake.stake, p.challengerShareBps));
        self.ledger.moves(gull.address(), user, compensation);
        self.ledger.moves(gull.address(), watcher.address(), reward);
        self.ledger.burns(gull.address(), stake.stake - compensation - reward);
        for b in self.batches.extract_if(.., |b| b.node == GULL).collect::<Vec<_>>() {
            self.refund(&b).await;
        }
        self.gone = true;
        self.close(GULL).await;
    }

    /// Users leave a node, and take what is left in their channels.
    async fn close(&mut self, node: usize) {
        let channels = self.net.deployment.channels;
        let leaving: Vec<(B256, usize)> =
            self.channels.iter().filter(|c| c.open && c.node == node).map(|c| (c.id, c.user)).collect();
        for (channel, user) in &leaving {
            let who = self.users[*user].clone();
            self.send(&who, channels, &IChannels::requestCloseCall { channelId: *channel }).await;
        }
        self.net.skip(seconds(self.terms.channels.closeDelay) + 1).await.unwrap();
        for (channel, user) in &leaving {
            let who = self.users[*user].clone();
            self.send(&who, channels, &IChannels::closeCall { channelId: *channel }).await;
        }
        for c in self.channels.iter_mut().filter(|c| c.node == node) {
            c.open = false;
        }
    }

    /// A channel that is nearly used up gets more.
    async fn top_up(&mut self) {
        let channels = self.net.deployment.channels;
        for k in 0..self.channels.len() {
            let c = &self.channels[k];
            if !c.open || c.owed() < c.deposit * 4 / 5 {
                continue;
            }
            let (id, who) = (c.id, self.users[c.user].clone());
            self.send(&who, channels, &IChannels::depositCall { amount: CHANNEL / 2 }).await;
            self.send(&who, channels, &IChannels::topUpCall { channelId: id, amount: CHANNEL / 2 }).await;
            self.channels[k].deposit += CHANNEL / 2;
        }
    }

    fn everybody(&self) -> Vec<Arc<Actor>> {
        self.nodes.iter().chain(&self.users).chain([&self.watcher]).cloned().collect()
    }

    async fn withdraw(&mut self) {
        let d = self.net.deployment.clone();
        for who in self.everybody() {
            if !self.net.chain.market().withdrawable(who.address()).call().await.unwrap().is_zero() {
                self.send(&who, d.market, &IMarket::withdrawCall {}).await;
            }
            if !self.net.chain.channels().balanceOf(who.address()).call().await.unwrap().is_zero() {
                self.send(&who, d.channels, &IChannels::withdrawCall {}).await;
            }
        }
    }

    /// Every contract holds what it owes, and no token is lost or made.
    async fn balances(&self) {
        let (chain, d) = (&self.net.chain, &self.net.deployment);
        let (market, channels, nodes) = (chain.market(), chain.channels(), chain.nodes());
        let owed = market.totalEscrow().call().await.unwrap()
            + market.totalWithdrawable().call().await.unwrap()
            + market.totalFees().call().await.unwrap()
            + market.totalRewards().call().await.unwrap();
        assert_eq!(self.net.tokens_of(d.market).await.unwrap(), owed, "the market");
        let owed = channels.totalBalances().call().await.unwrap()
            + channels.totalCommitted().call().await.unwrap()
            + channels.totalFees().call().await.unwrap()
            + channels.totalRewards().call().await.unwrap();
        assert_eq!(self.net.tokens_of(d.channels).await.unwrap(), owed, "the channels");
        let mut stakes = U256::ZERO;
        for node in &self.nodes {
            stakes += U256::from(nodes.node(node.address()).call().await.unwrap().stake);
        }
        assert_eq!(self.net.tokens_of(d.nodes).await.unwrap(), stakes, "the nodes");
        let all = self.everybody();
        let all: Vec<&Actor> = all.iter().map(|a| &**a).collect();
        assert_eq!(self.net.all_tokens(&all).await.unwrap(), self.net.minted, "tokens are lost or made");
    }

    async fn day(&mut self, day: u32) {
        self.chat();
        self.jobs().await;
        self.redeem(day).await;
        self.look().await;
        if day == END_OF_GULL {
            self.convict().await;
        }
        self.net.skip(seconds(self.terms.channels.window) + seconds(self.terms.channels.lodgeTurn) + 1).await.unwrap();
        self.release().await;
        self.top_up().await;
        if day % 7 == 6 {
            self.withdraw().await;
        }
        self.balances().await;
    }

    /// What a verb of `sworn` prints as JSON.
    fn says(&self, verb: &[&str]) -> Value {
        let mut command = Command::new(sworn().unwrap());
        command.args(verb).args(["--json", "--rpc", &self.net.rpc]).arg("--deployment").arg(self.net.deployment_file());
        let told = command.output().unwrap();
        assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
        serde_json::from_slice(&told.stdout).unwrap()
    }

    /// Everybody leaves and takes what is theirs.
    async fn end(&mut self) {
        let nodes = self.net.deployment.nodes;
        for node in 0..GULL {
            self.close(node).await;
            let who = self.nodes[node].clone();
            let amount = self.net.chain.nodes().node(who.address()).call().await.unwrap().stake;
            self.send(&who, nodes, &INodes::requestUnstakeCall { amount }).await;
        }
        self.net.skip(self.terms.unstake_delay + 1).await.unwrap();
        for node in 0..GULL {
            let who = self.nodes[node].clone();
            self.send(&who, nodes, &INodes::withdrawStakeCall {}).await;
        }
        self.withdraw().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_month_of_trade_leaves_everybody_with_what_is_theirs() {
    let mut month = Month::new().await;
    let began = month.net.chain.now().await.unwrap();
    month.begin().await;
    for day in 0..DAYS {
        month.day(day).await;
        // To the next morning.
        let now = month.net.chain.now().await.unwrap();
        let morning = began + u64::from(day + 1) * DAY;
        month.net.skip(morning.saturating_sub(now)).await.unwrap();
    }
    let receipts: u64 = month.ledger.receipts.values().sum();
    let [paid, late, auctioned] = month.jobs;
    assert!(receipts > 2_000 && paid > 100 && late > 2 && auctioned > 30, "{receipts} {:?}", month.jobs);
    let lasted = month.net.chain.now().await.unwrap() - began;
    assert!(lasted >= u64::from(DAYS) * DAY, "{lasted} seconds");

    // What everybody can read of the nodes is what happened.
    let model = month.model.path().to_str().unwrap();
    let told = month.says(&["node", "list", "--sort", "volume", "--model", model]);
    let told = told.as_array().unwrap();
    assert_eq!(told.len(), month.nodes.len());
    for node in &month.nodes {
        let seen = told.iter().find(|n| n["node"].as_str().unwrap().parse() == Ok(node.address())).unwrap();
        let volume = month.ledger.volume[&node.address()].to_string();
        assert_eq!(
            (seen["volume"].as_str(), seen["receipts"].as_u64()),
            (Some(&*volume), Some(month.ledger.receipts[&node.address()]))
        );
        assert_eq!(
            (seen["convicted"].as_bool(), seen["timed_out"].as_u64()),
            match &*node.name {
                "gull" => (Some(true), Some(u64::from(late))),
                _ => (Some(false), Some(0)),
            }
        );
    }
    let told = month.says(&["network"]);
    let volume: u128 = month.ledger.volume.values().sum();
    assert_eq!(told["volume"], volume.to_string(), "{told}");
    assert_eq!(
        (&told["receipts"], &told["active_nodes"], &told["users"]),
        (&receipts.into(), &4.into(), &5.into()),
        "{told}"
    );
    let [jobs] = &told["models"].as_array().unwrap()[..] else { panic!("{told}") };
    assert_eq!((&jobs["served"], &jobs["late"], &jobs["created"]), (&paid.into(), &late.into(), &(paid + late).into()));
    assert!(jobs["seconds"]["p99"].is_number() && jobs["price"]["p50"].is_string(), "{told}");
    let failures = json!({ "late": late, "receipt_hidden": month.hidden, "two_receipts_for_one_request": 1 });
    assert_eq!(told["failures"], failures, "{told}");
    let week = month.says(&["network", "--days", "7"]);
    assert!(
        week["receipts"].as_u64() < told["receipts"].as_u64() && week["period"].as_u64() <= Some(7 * DAY),
        "{week}"
    );

    month.end().await;
    for who in month.everybody() {
        let gained = month.ledger.gained.get(&who.address()).copied().unwrap_or_default();
        let expected = U256::from(PURSE.checked_add_signed(gained).unwrap());
        assert_eq!(month.net.tokens_of(who.address()).await.unwrap(), expected, "{}", who.name);
    }
    let d = &month.net.deployment;
    for (name, contract) in [("market", d.market), ("channels", d.channels), ("nodes", d.nodes)] {
        assert_eq!(month.net.tokens_of(contract).await.unwrap(), U256::ZERO, "left in {name}");
    }
    assert_eq!(month.net.tokens_of(BURN).await.unwrap(), U256::from(month.ledger.burned));
    let figures = format!(
        "{DAYS} days: {paid} jobs paid ({auctioned} by auction), {late} late, {receipts} receipts paid, volume {volume}, burned {}",
        month.ledger.burned
    );
    tried("a month's market: transactions, no token lost", month.calls.into_inner().into(), 0, figures);
}
