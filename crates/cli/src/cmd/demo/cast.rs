//! Who takes part, with what money, in which process.

use std::path::Path;

use alloy::primitives::{Address, U256, address};
use sworn_bindings::{IERC20, INodes};
use sworn_chain::Balances;
use tokio::sync::mpsc;

use crate::args;
use crate::fault::Result;
use crate::link::Viewed;
use crate::localnet::{Localnet, Purse, whole};
use crate::process::{Line, Process, free_port};
use crate::settings::Settings;

/// Where the burned part of a slash goes.
pub(super) const BURN: Address = address!("000000000000000000000000000000000000dEaD");
/// What everybody begins with.
const PURSE: u64 = 1_000;
const STAKE: u64 = 100;
/// Thousandths of a token per prompt token and per output token.
const PRICE: (u64, u64) = (1, 10);

/// The accounts.
pub(super) struct Cast {
    pub(super) honest: Purse,
    pub(super) liar: Purse,
    pub(super) user: Purse,
    pub(super) watcher: Purse,
    /// Signs vouchers, holds no money.
    pub(super) gateway: Purse,
    /// Ports of the nodes' HTTP sides.
    ports: [u16; 2],
}

/// What somebody has, and what there is in all.
#[derive(Clone, Copy, Debug)]
pub(super) struct Books {
    pub(super) honest: Balances,
    pub(super) liar: Balances,
    pub(super) user: Balances,
    pub(super) watcher: Balances,
    pub(super) burned: U256,
    /// Token balances of the three contracts that hold money.
    pub(super) contracts: U256,
    /// Of that, what is in channels: deposits, batches, and what they owe.
    pub(super) channels: U256,
    /// All tokens that were ever minted.
    pub(super) supply: U256,
}

impl Cast {
    /// Makes the accounts and gives them money.
    pub(super) async fn assemble(net: &Localnet) -> Result<Self> {
        let purse = |name: &'static str| net.purse(name, whole(PURSE));
        let (honest, liar, user, watcher, gateway) = tokio::try_join!(
            purse("honest-node"),
            purse("dishonest-node"),
            purse("user"),
            purse("watcher"),
            net.purse("gateway", U256::ZERO)
        )?;
        Ok(Self { honest, liar, user, watcher, gateway, ports: [free_port()?, free_port()?] })
    }

    /// Stakes, endpoint and price of both nodes.
    pub(super) async fn register(&self, net: &Localnet, model: alloy::primitives::B256) -> Result<()> {
        let nodes = net.link.chain.deployment().nodes;
        let milli = whole(1) / U256::from(1000);
        let price = |thousandths: u64| u128::try_from(milli * U256::from(thousandths)).unwrap_or(u128::MAX);
        let one = async |purse: &Purse, port: u16| -> Result<()> {
            let account = &purse.account;
            let amount = u128::try_from(whole(STAKE)).unwrap_or(u128::MAX);
            account
                .send(net.link.chain.deployment().token, &IERC20::approveCall { spender: nodes, value: whole(STAKE) })
                .await?;
            account.send(nodes, &INodes::depositCall { amount }).await?;
            account
                .send(nodes, &INodes::configureCall { endpoint: format!("http://127.0.0.1:{port}"), capacity: 4 })
                .await?;
            let ask = INodes::setAskCall {
                modelId: model,
                perInputToken: price(PRICE.0),
                perOutputToken: price(PRICE.1),
                maxTokens: 512,
            };
            account.send(nodes, &ask).await?;
            Ok(())
        };
        tokio::try_join!(one(&self.honest, self.ports[0]), one(&self.liar, self.ports[1]))?;
        Ok(())
    }

    /// The accounts with the names they go by.
    pub(super) fn named(&self) -> [(&'static str, Address); 4] {
        [
            ("honest node", self.honest.account.address()),
            ("dishonest node", self.liar.account.address()),
            ("user", self.user.account.address()),
            ("watcher", self.watcher.account.address()),
        ]
    }

    /// What everybody has now.
    pub(super) async fn balances(&self, net: &Localnet) -> Result<Books> {
        let chain = &net.link.chain;
        let of = |purse: &Purse| {
            let address = purse.account.address();
            async move { chain.balances(address).await }
        };
        let (honest, liar, user, watcher) =
            tokio::try_join!(of(&self.honest), of(&self.liar), of(&self.user), of(&self.watcher))?;
        let token = chain.token();
        let d = chain.deployment();
        let held = async |who: Address| token.balanceOf(who).call().await.viewed();
        Ok(Books {
            honest,
            liar,
            user,
            watcher,
            burned: held(BURN).await?,
            contracts: held(d.market).await? + held(d.nodes).await? + held(d.channels).await?,
            channels: {
                let c = chain.channels();
                let totals = (c.totalBalances(), c.totalCommitted(), c.totalFees(), c.totalRewards());
                totals.0.call().await.viewed()?
                    + totals.1.call().await.viewed()?
                    + totals.2.call().await.viewed()?
                    + totals.3.call().await.viewed()?
            },
            supply: token.totalSupply().call().await.viewed()?,
        })
    }
}

impl Books {
    /// Everybody with what they have.
    pub(super) fn rows(&self) -> [(&'static str, Balances); 4] {
        [("honest node", self.honest), ("dishonest node", self.liar), ("user", self.user), ("watcher", self.watcher)]
    }

    /// Whether wallets, contracts and the burned tokens are all the tokens there are, and the contracts hold exactly what they
    /// owe to these four and to channels.
    pub(super) fn balance(&self) -> bool {
        let wallets = self.rows().iter().fold(U256::ZERO, |sum, (_, b)| sum + b.token);
        let owed = self.rows().iter().fold(U256::ZERO, |sum, (_, b)| sum + b.withdrawable + U256::from(b.stake));
        wallets + self.contracts + self.burned == self.supply && owed + self.channels == self.contracts
    }
}

/// The processes, beside the chain's.
pub(super) struct Processes(Vec<(&'static str, Process)>);

impl Processes {
    /// Starts both nodes and the watcher.
    #[allow(clippy::too_many_arguments, reason = "one caller, and all of it is needed")]
    pub(super) fn start(
        settings: &Settings,
        command: &args::Demo,
        net: &Localnet,
        cast: &Cast,
        liar: &Path,
        model: &str,
        dir: &Path,
        lines: mpsc::UnboundedSender<Line>,
    ) -> Result<Self> {
        let me = std::env::current_exe()?;
        let backend = match command.backend {
            args::BackendChoice::Auto => "auto",
            args::BackendChoice::Cpu => "cpu",
            args::BackendChoice::Wgpu => "wgpu",
        };
        let path = |p: &Path| p.display().to_string();
        let common = |purse: &Purse, backend: &str| {
            let pairs = [
                ("--home", path(&settings.home)),
                ("--rpc", net.rpc.clone()),
                ("--deployment", path(&net.deployment_file)),
                ("--key", path(&purse.key_file)),
                ("--password-file", path(&net.password_file())),
                ("--model", model.to_owned()),
                ("--backend", backend.to_owned()),
                ("--log", "info".to_owned()),
            ];
            let mut arguments = vec!["--json".to_owned()];
            arguments.extend(pairs.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]));
            arguments
        };
        let verb =
            |words: &[&str], rest: Vec<String>| words.iter().map(|w| (*w).to_owned()).chain(rest).collect::<Vec<_>>();
        let listen = |port: u16| vec!["--listen".to_owned(), format!("127.0.0.1:{port}")];
        let state = |name: &str| vec!["--state".to_owned(), path(&dir.join("state").join(name))];

        let honest =
            verb(&["node", "run"], [common(&cast.honest, backend), listen(cast.ports[0]), state("honest")].concat());
        // A batch for every receipt, so that there is something to see.
        let honest = [honest, vec!["--redeem-at".to_owned(), "0.001".to_owned()]].concat();
        let lies = ["--lie", &command.lie, "--seed", &command.seed.to_string(), "--redeem-at", "1"];
        let lies = lies.map(str::to_owned).to_vec();
        // Tampering is done on the cpu, whatever the others run on.
        let dishonest = [common(&cast.liar, "cpu"), listen(cast.ports[1]), state("liar"), lies].concat();
        let watching = verb(&["watch"], [common(&cast.watcher, backend), state("watcher")].concat());
        let mut running = Vec::new();
        for (name, program, arguments) in [
            ("honest node", me.as_path(), honest),
            ("dishonest node", liar, dishonest),
            ("watcher", me.as_path(), watching),
        ] {
            running.push((name, Process::start(name, program, arguments, dir, Some(lines.clone()))?));
        }
        Ok(Self(running))
    }

    /// Who runs.
    pub(super) fn names(&self) -> Vec<&'static str> {
        self.0.iter().map(|(name, _)| *name).collect()
    }

    /// Fails if one of them has ended.
    pub(super) fn check(&mut self) -> Result<()> {
        self.0.iter_mut().try_for_each(|(_, process)| process.check())
    }
}
