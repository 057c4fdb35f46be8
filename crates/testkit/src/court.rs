//! All contracts on one chain in memory (revm): thousands of whole challenges in seconds, judged by the code that is deployed.

use alloy::primitives::{Address, B256, Bytes, I256, TxKind, U256};
use alloy::sol_types::{SolCall, SolEvent, SolValue};
use revm::context::result::{ExecutionResult, Output};
use revm::context::{BlockEnv, CfgEnv, TxEnv};
use revm::database::{CacheDB, EmptyDB};
use revm::primitives::hardfork::SpecId;
use revm::{Context, ExecuteCommitEvm, MainBuilder, MainContext};
use sworn_bindings::{
    IChallenges, IChannels, IDevToken, IERC20, IMarket, IModels, INodes, IStepVerifier, Revert, order_hash,
};
use sworn_commit::{Hash, RunParams, sequence};
use sworn_model::Model;

use crate::devnet::creation_code;

/// Who asks.
pub const USER: Address = Address::repeat_byte(0xA1);
/// Who answers.
pub const NODE: Address = Address::repeat_byte(0xA2);
/// Who challenges.
pub const WATCHER: Address = Address::repeat_byte(0xA3);

/// Gas of a transaction at most; [`Court::judge`] takes more.
const GAS: u64 = 100_000_000;

/// The chain: Prague's rules, so that calldata's floor price is in every figure of gas.
pub struct Court {
    db: CacheDB<EmptyDB>,
    /// Number and time of the block in which the next transaction is.
    pub block: BlockEnv,
    created: u64,
    /// Seconds in which a result can be challenged.
    pub window: u64,
    /// The payment token.
    pub token: Address,
    /// The registry of models.
    pub models: Address,
    /// Stakes.
    pub nodes: Address,
    /// Jobs.
    pub market: Address,
    /// Challenges.
    pub challenges: Address,
    verifier: Address,
    /// The model that was registered last.
    pub model: B256,
}

/// What a call did.
#[derive(Debug)]
pub struct Done<R> {
    /// Gas that its transaction used.
    pub gas: u64,
    /// What it returned.
    pub returned: R,
    logs: Vec<alloy::primitives::Log>,
}

impl<R> Done<R> {
    /// The first event of this kind.
    pub fn event<E: SolEvent>(&self) -> Option<E> {
        self.logs.iter().find_map(|l| E::decode_log(l).ok().map(|l| l.data))
    }
}

impl Court {
    /// Deploys everything; a challenge window and turns in seconds.
    ///
    /// # Panics
    /// The contracts are not built.
    pub fn new(window: u64, turn: u64) -> Self {
        let mut block = BlockEnv { number: U256::from(100), timestamp: U256::from(1_000_000), ..BlockEnv::default() };
        block.gas_limit = 1 << 40;
        let zero = Address::ZERO;
        let mut w = Court {
            db: CacheDB::new(EmptyDB::new()),
            block,
            created: 0,
            window,
            token: zero,
            models: zero,
            nodes: zero,
            market: zero,
            challenges: zero,
            verifier: zero,
            model: B256::ZERO,
        };
        w.token = w.create("DevToken", Vec::new());
        w.verifier = w.create("StepVerifier", Vec::new());
        w.models = w.create("Models", Vec::new());
        let at = |n| USER.create(w.created + n);
        let [nodes, market, channels, trials, challenges] = [0, 1, 2, 3, 4].map(at);
        w.nodes = w.create("Nodes", (w.token, w.models, market, channels, 10_000_000u64).abi_encode_params());
        let params = IMarket::Params {
            acceptTimeout: 60u64.try_into().unwrap(),
            auctionTime: 20u64.try_into().unwrap(),
            submitTimeout: 600u64.try_into().unwrap(),
            challengeWindow: window.try_into().unwrap(),
            minBond: 1_000_000,
            bondFactorBps: 20_000,
            latePenaltyBps: 500,
            userShareBps: 3_000,
            challengerShareBps: 4_000,
        };
        w.market = w.create("Market", (w.token, w.models, nodes, challenges, params).abi_encode_params());
        let params = IChannels::Params {
            window: 600u64.try_into().unwrap(),
            closeDelay: 600u64.try_into().unwrap(),
            receiptTurn: 60u64.try_into().unwrap(),
            lodgeTurn: 60u64.try_into().unwrap(),
            receiptFee: 1000,
            minBond: 1_000_000,
            bondFactorBps: 20_000,
            userShareBps: 3_000,
            challengerShareBps: 4_000,
        };
        w.create("Channels", (w.token, nodes, trials, zero, params).abi_encode_params());
        w.create("Trials", (channels, w.models, challenges).abi_encode_params());
        let turns = IChallenges::Params {
            nodeTurn: turn.try_into().unwrap(),
            challengerTurn: turn.try_into().unwrap(),
            demandFee: 1000,
        };
        w.challenges = w.create("Challenges", (market, trials, w.models, w.verifier, turns).abi_encode_params());
        assert_eq!((w.nodes, w.market, w.challenges), (nodes, market, challenges));
        for who in [USER, NODE, WATCHER] {
            w.send(who, w.token, &IDevToken::mintCall { to: who, amount: U256::from(1) << 100 });
            for spender in [market, nodes] {
                w.send(who, w.token, &IERC20::approveCall { spender, value: U256::MAX });
            }
        }
        w
    }

    fn run(&mut self, from: Address, kind: TxKind, data: Bytes, gas: u64) -> ExecutionResult {
        let mut cfg = CfgEnv::default();
        cfg.set_spec_and_mainnet_gas_params(SpecId::PRAGUE);
        cfg.disable_nonce_check = true;
        let context = Context::mainnet().with_db(&mut self.db).with_block(self.block.clone()).with_cfg(cfg);
        let tx = TxEnv::builder().caller(from).kind(kind).data(data).gas_limit(gas).gas_price(0);
        context.build_mainnet().transact_commit(tx.build().unwrap()).unwrap()
    }

    fn create(&mut self, name: &str, arguments: Vec<u8>) -> Address {
        let mut code = creation_code(name).unwrap_or_else(|e| panic!("{e}"));
        code.extend(arguments);
        self.created += 1;
        match self.run(USER, TxKind::Create, code.into(), GAS) {
            ExecutionResult::Success { output: Output::Create(_, Some(address)), .. } => address,
            other => panic!("{name}: {other:?}"),
        }
    }

    /// Calls a contract.
    ///
    /// # Errors
    /// It reverts; nothing has changed then.
    ///
    /// # Panics
    /// It runs out of gas.
    pub fn call<C: SolCall>(&mut self, from: Address, to: Address, call: &C) -> Result<Done<C::Return>, Revert> {
        let result = self.run(from, TxKind::Call(to), call.abi_encode().into(), GAS);
        let gas = result.tx_gas_used();
        match result {
            ExecutionResult::Success { output, logs, .. } => {
                Ok(Done { gas, returned: C::abi_decode_returns(output.data()).unwrap(), logs })
            }
            ExecutionResult::Revert { output, .. } => Err(Revert::decode(&output)),
            ExecutionResult::Halt { reason, .. } => panic!("{}: {reason:?}", C::SIGNATURE),
        }
    }

    /// [`Self::call`] that must not revert: gas and what it returned.
    ///
    /// # Panics
    /// It reverts.
    pub fn send<C: SolCall>(&mut self, from: Address, to: Address, call: &C) -> (u64, C::Return) {
        let done = self.call(from, to, call).unwrap_or_else(|e| panic!("{}: {e}", C::SIGNATURE));
        (done.gas, done.returned)
    }

    /// The claimed and the computed value, if the verifier accepts the witness for so much gas.
    pub fn judge(&mut self, call: &IStepVerifier::judgeCall, gas: u64) -> Option<(I256, I256)> {
        let ExecutionResult::Success { output, .. } =
            self.run(WATCHER, TxKind::Call(self.verifier), call.abi_encode().into(), gas)
        else {
            return None;
        };
        let verdict = IStepVerifier::judgeCall::abi_decode_returns(output.data()).unwrap();
        Some((verdict.claimed, verdict.computed))
    }

    /// Lets time pass, in blocks of a second.
    pub fn pass(&mut self, seconds: u64) {
        self.block.number += U256::from(seconds);
        self.block.timestamp += U256::from(seconds);
    }

    /// Registers a model, and the node with plenty of stake and a price.
    pub fn register(&mut self, model: &Model) {
        self.model = model.id().into();
        let call = IModels::registerCall {
            manifest: model.manifest().encode().into(),
            program: model.program().encode().into(),
            hint: String::new(),
        };
        self.send(NODE, self.models, &call);
        self.send(NODE, self.nodes, &INodes::configureCall { endpoint: "http://node".into(), capacity: 10_000 });
        self.send(NODE, self.nodes, &INodes::depositCall { amount: 1 << 90 });
        let ask = INodes::setAskCall { modelId: self.model, perInputToken: 1, perOutputToken: 2, maxTokens: 8192 };
        self.send(NODE, self.nodes, &ask);
    }

    /// A job, and the node's answer to it: its id and the gas of both.
    pub fn job(&mut self, model: &Model, prompt: &[u32], max_new: u32, output: &[u32], root: Hash) -> (U256, [u64; 2]) {
        let create = IMarket::createJobCall {
            modelId: model.id().into(),
            node: NODE,
            promptTokens: sequence::encode(prompt).into(),
            maxNew: max_new,
            maxPrice: 1 << 40,
            sampling: U256::ZERO,
            userSeed: B256::ZERO,
        };
        let (created, job) = self.send(USER, self.market, &create);
        let submit = IMarket::submitResultCall {
            jobId: job,
            order: order_hash(create.modelId, sequence::hash(prompt), create.maxNew, &RunParams::default()),
            outputTokens: sequence::encode(output).into(),
            layersRoot: root.into(),
        };
        (job, [created, self.send(NODE, self.market, &submit).0])
    }
}
