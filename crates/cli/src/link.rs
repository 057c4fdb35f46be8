//! The chain as verbs see it: contracts, payment token, and an account that sends.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use alloy::primitives::{Address, U256};
use alloy::sol_types::SolCall;
use sworn_bindings::IERC20;
use sworn_chain::{Chain, Error, Intent, Receipt, Sender, SenderOptions, Store};

use crate::account_key::AccountKey;
use crate::amount::Currency;
use crate::fault::Result;
use crate::output::note;
use crate::settings::Settings;

/// A deployment on its chain.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    /// The contracts.
    pub(crate) chain: Chain,
    /// What they are paid in.
    pub(crate) currency: Currency,
}

impl Link {
    /// Connects to the deployment that the settings name.
    pub(crate) async fn open(settings: &Settings) -> Result<Self> {
        Self::to(&settings.rpc, settings.deployment()?).await
    }

    /// Connects to a deployment.
    pub(crate) async fn to(rpc: &str, deployment: sworn_bindings::Deployment) -> Result<Self> {
        let chain = Chain::connect(rpc, deployment).await?;
        let token = chain.token();
        let (symbol, decimals) = (token.symbol().call().await?, token.decimals().call().await?);
        // A token's name is its author's text and goes to a terminal.
        let symbol = symbol.chars().filter(|c| !c.is_control()).take(16).collect();
        Ok(Self { chain, currency: Currency { symbol, decimals } })
    }
}

/// An account that sends transactions.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    /// The deployment.
    pub(crate) link: Link,
    sender: Sender,
    quiet: bool,
}

impl Account {
    /// The account of the settings' key.
    pub(crate) async fn open(settings: &Settings) -> Result<Self> {
        // Whatever is wrong with the call is said before a password is asked for.
        let deployment = settings.deployment()?;
        settings.key_place()?;
        let link = Link::to(&settings.rpc, deployment).await?;
        Self::with_key(link, settings.open_key().await?, settings.home.join("cli")).await
    }

    /// The account of a key, with its journal under `state`.
    pub(crate) async fn with_key(link: Link, key: AccountKey, state: PathBuf) -> Result<Self> {
        // One journal per chain: a new devnet must not trip over the last one's.
        let chain = &link.chain.genesis().to_string()[2..10];
        let path = state.join(chain).join(format!("{}.redb", key.address()));
        let mut patience = 50;
        let store = loop {
            match Store::open(&path, &link.chain) {
                // Another command of the same account is between two transactions; it will not be long.
                Err(Error::Locked { .. }) if patience > 0 => {
                    patience -= 1;
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                opened => break opened?,
            }
        };
        let sender = Sender::new(link.chain.clone(), key, store, SenderOptions::default());
        for finished in sender.resume().await? {
            note(format!("finished what an interrupted command had begun: {finished}"));
        }
        Ok(Self { link, sender, quiet: false })
    }

    pub(crate) fn address(&self) -> Address {
        self.sender.account()
    }

    /// The same account without words on stderr.
    #[must_use]
    pub(crate) fn quiet(mut self) -> Self {
        self.quiet = true;
        self
    }

    /// Sends one call and says what it cost.
    pub(crate) async fn send<C: SolCall>(&self, to: Address, call: &C) -> Result<Receipt> {
        // A command is an intention of its own, even if the same was typed before.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let receipt = self.sender.send(&Intent::call(format!("cli/{now}"), to, call)).await?;
        if !self.quiet {
            note(format!("{} in block {}: {} gas  {}", receipt.label, receipt.block, receipt.gas_used, receipt.hash));
        }
        Ok(receipt)
    }

    /// Lets `spender` take `amount` of the payment token, if it may not yet.
    pub(crate) async fn allow(&self, spender: Address, amount: U256) -> Result<Option<Receipt>> {
        let token = self.link.chain.token();
        if token.allowance(self.address(), spender).call().await? >= amount {
            return Ok(None);
        }
        let call = IERC20::approveCall { spender, value: amount };
        Ok(Some(self.send(self.link.chain.deployment().token, &call).await?))
    }
}

/// A view call's failure, decoded.
pub(crate) trait Viewed<T> {
    /// The value, or what the contract or the RPC says.
    fn viewed(self) -> Result<T>;
}

impl<T> Viewed<T> for std::result::Result<T, alloy::contract::Error> {
    fn viewed(self) -> Result<T> {
        Ok(self.map_err(Error::from)?)
    }
}
