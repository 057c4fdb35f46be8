//! The command tree: nouns, then verbs. The doc comments are the help texts.

use std::num::NonZeroU16;
use std::path::PathBuf;

use alloy::primitives::{Address, B256};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::account_key::KeyPlace;
use crate::logprobs::LogProbFlags;
use crate::sampling::{SamplingFlags, parse_seed};

/// AI inference under oath: answers backed by a bond, wrong ones proven wrong on chain.
///
/// Results go to stdout, everything else to stderr. Exit codes: 0 done; 1 failed, or the answer to the question asked is
/// no; 2 called wrongly (flags, environment, configuration, a missing key).
///
/// Every flag can also be given as an environment variable (SWORN_ and the flag's name: SWORN_RPC, SWORN_MAX_TOKENS) or as
/// a line of sworn.toml (rpc = "…", max-tokens = 64; under [node.run] for one verb alone). A flag overrides the environment,
/// the environment the file.
#[derive(Debug, Parser)]
#[command(name = "sworn", version, propagate_version = true, arg_required_else_help = true, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) noun: Noun,
}

/// Flags of every verb.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Everywhere")]
pub(crate) struct Global {
    /// Print the result as JSON on stdout: one object, or one per line for logs
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Configuration file
    ///
    /// Without this flag ./sworn.toml is read, or else sworn.toml in the home directory; neither needs to exist.
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    pub(crate) config: Option<PathBuf>,
    /// Where models, keys and state are kept [default: ~/.sworn]
    #[arg(long, global = true, value_name = "DIR", hide_short_help = true)]
    pub(crate) home: Option<PathBuf>,
    /// The chain's JSON-RPC endpoint
    #[arg(long, global = true, value_name = "URL", default_value = "http://127.0.0.1:8545")]
    pub(crate) rpc: String,
    /// The deployment's file: addresses of the contracts and their chain's id
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) deployment: Option<PathBuf>,
    /// The key of the account that signs: a keystore v3 file, made by `sworn key new`; or aws-kms:ID, or ledger:N
    ///
    /// aws-kms:ID is a key (id, ARN or alias/NAME) of AWS's key management service, of type ECC_SECG_P256K1, found as every AWS tool
    /// finds it (AWS_REGION, AWS_PROFILE, AWS_ENDPOINT_URL). ledger:N is account N of a Ledger that is plugged in, as Ledger Live
    /// counts. Either needs a build with that feature. Such a key signs transactions; vouchers and receipts, many a second, want a
    /// keystore: a channel's --signer, a node's --session-key.
    #[arg(long, global = true, value_name = "KEY")]
    pub(crate) key: Option<KeyPlace>,
    /// File that holds the keystore's password
    ///
    /// Otherwise the environment variable SWORN_KEYSTORE_PASSWORD is used, otherwise the terminal asks. A password is never a flag.
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    pub(crate) password_file: Option<PathBuf>,
    /// What to log on stderr, as a tracing filter: info, debug, sworn_node=trace
    #[arg(long, global = true, value_name = "FILTER", default_value = "warn", hide_short_help = true)]
    pub(crate) log: String,
}

/// What a verb acts on.
#[derive(Debug, Subcommand)]
pub(crate) enum Noun {
    /// A chain, the contracts, a model and funded accounts on this machine, until Ctrl-C
    Devnet(Devnet),
    /// The whole protocol in a few minutes: an honest answer paid, a lie proven wrong and slashed
    Demo(Demo),
    /// Models: fetch, import, inspect, verify, register
    #[command(subcommand)]
    Model(Model),
    /// Serve models for pay: stake, prices, the serving process
    #[command(subcommand)]
    Node(Node),
    /// OpenAI's API on this machine, answered by nodes under oath and paid from channels
    Gateway(Gateway),
    /// Channels to nodes: deposit, open, top up, close, withdraw, show, list
    #[command(subcommand)]
    Channel(Channel),
    /// Buy an answer on chain and print it
    Ask(Ask),
    /// Jobs: create, list, show, cancel, settle
    #[command(subcommand)]
    Job(Job),
    /// Re-execute every answer, challenge wrong ones, collect the rewards
    Watch(Watch),
    /// Challenges: list, show
    #[command(subcommand)]
    Dispute(Dispute),
    /// The market: nodes, users, jobs by model, latency and prices, failures by reason
    Network(Network),
    /// Every bucket an account has money in, and when each is released
    Money(Money),
    /// Check this machine and its surroundings, with the cure for each fault
    Doctor(Doctor),
    /// Answer a prompt on this machine, without a chain, with the trace an oath would bind
    Run(Run),
    /// Re-execute a saved answer and compare its trace
    Audit(Audit),
    /// Compare the integer model with the float reading of its source: perplexity, agreement
    Eval(Eval),
    /// Measure this machine: speed beside llama.cpp and candle, the oath's price, audits, memory
    Bench(Bench),
    /// Keys: make, show
    #[command(subcommand)]
    Key(Key),
    /// Completions for a shell, to stdout
    Completions {
        /// The shell
        #[arg(value_name = "SHELL")]
        shell: clap_complete::Shell,
    },
    /// Manual pages of every verb, into a directory
    Man {
        /// The directory
        #[arg(value_name = "DIR", default_value = "man")]
        dir: PathBuf,
    },
}

/// Where inference runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BackendChoice {
    /// The GPU if a usable adapter is found, otherwise the CPU; says which
    Auto,
    /// Plain Rust with threads and SIMD
    Cpu,
    /// Vulkan, Metal or DX12 through wgpu
    Wgpu,
}

/// Which model and what executes it.
#[derive(Clone, Debug, Args)]
pub(crate) struct Engine {
    /// Model by name or id, as `sworn model list` shows them
    #[arg(long, value_name = "MODEL", default_value = "smollm2-135m")]
    pub(crate) model: String,
    /// Where to execute; every backend gives the same bits
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) backend: BackendChoice,
}

/// A chain, the contracts, a model and funded accounts on this machine, until Ctrl-C.
///
/// Starts anvil, deploys the contracts with script/Deploy.s.sol, registers the model, and writes the deployment file, keystores
/// of funded accounts (operator, user, watcher) and a sworn.toml under --dir. Prints what to export. The turns and windows are
/// short, as a developer wants them; a real deployment chooses its own.
#[derive(Clone, Debug, Args)]
pub(crate) struct Devnet {
    /// Where to write keys, deployment and configuration
    #[arg(long, value_name = "DIR", default_value = "devnet")]
    pub(crate) dir: PathBuf,
    /// Port of the chain; 0 for a free one
    #[arg(long, value_name = "PORT", default_value_t = 8545)]
    pub(crate) port: u16,
    /// Model to register: smollm2-135m, a stored model, or none
    #[arg(long, value_name = "MODEL", default_value = "smollm2-135m")]
    pub(crate) model: String,
    /// Checkout with the contracts and the npm tools [default: the one that holds this program or the working directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,
}

/// The whole protocol in a few minutes: an honest answer paid, a lie proven wrong and slashed.
///
/// Starts anvil, an honest node, a dishonest node and a watcher as processes of their own, has a user ask both nodes, and shows
/// what happens as a timeline. With --json prints one object instead: honest {job, status, paid, answer}, fraud {job, status, lie
/// {layer, position, op, element, claimed, computed}, answers, transactions, gas {by_call, total}, reward, refund}, conserved.
#[derive(Clone, Debug, Args)]
pub(crate) struct Demo {
    /// What the dishonest node does: an opcode's name (MIX, LINEAR, …) for a wrong element of that operator, or token (another
    /// token than selected), model (another model's answer), withhold (no answers to demands), malformed (garbage answers)
    #[arg(long, value_name = "LIE", default_value = "LINEAR")]
    pub(crate) lie: String,
    /// Varies where the lie is
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
    /// smollm2-135m, or synthetic for a small random model that answers at once
    #[arg(long, value_name = "MODEL", default_value = "smollm2-135m")]
    pub(crate) model: String,
    /// Where the nodes and the watcher execute
    #[arg(long, value_enum, default_value = "cpu")]
    pub(crate) backend: BackendChoice,
    /// Tokens of the longest answer
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub(crate) max_tokens: u32,
    /// Keep logs and state even if all goes well
    #[arg(long)]
    pub(crate) keep: bool,
    /// Checkout with the contracts and the npm tools [default: the one that holds this program or the working directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,
}

/// Models: fetch, import, inspect, verify, register.
#[derive(Debug, Subcommand)]
pub(crate) enum Model {
    /// Fetch a known model and import it; resumes what was interrupted
    Pull {
        /// Name of a known model
        #[arg(value_name = "NAME", default_value = "smollm2-135m")]
        name: String,
    },
    /// Import a model. The same files and flags give the same model id everywhere
    Import(Import),
    /// The models on this machine
    List,
    /// A model's manifest, program and sizes
    Show {
        /// Model by name or id
        #[arg(value_name = "MODEL", default_value = "smollm2-135m")]
        model: String,
        /// Also list every operator of the program
        #[arg(long)]
        program: bool,
    },
    /// Hash every byte of a model and compare with its manifest
    Verify {
        /// Model by name or id
        #[arg(value_name = "MODEL", default_value = "smollm2-135m")]
        model: String,
    },
    /// Register a model on chain, so that jobs can name it
    Register {
        /// Model by name or id
        #[arg(value_name = "MODEL", default_value = "smollm2-135m")]
        model: String,
        /// Where the files may be found, for others; nothing depends on it
        #[arg(long, value_name = "URL", default_value = "")]
        hint: String,
    },
}

/// Import a model. The same files and flags give the same model id everywhere.
#[derive(Clone, Debug, Args)]
pub(crate) struct Import {
    /// A GGUF file, or a directory with config.json, tokenizer.json and safetensors
    #[arg(value_name = "PATH")]
    pub(crate) path: PathBuf,
    /// Name to store it under [default: the file's or the directory's name]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// How weights are stored
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) weights: Weights,
    /// Round int8 weights so that products with what this text puts in come out right (GPTQ); the text's some thousand words should be
    /// like what the model will read. Blocks of a file are kept as they are: combine it with --weights int8
    #[arg(long, value_name = "FILE")]
    pub(crate) calibrate: Option<PathBuf>,
    /// Leave out what runs need to sample (--temperature and the like): the most likely token is taken always
    #[arg(long)]
    pub(crate) greedy: bool,
    /// Leave out the log-probabilities that runs commit to beside the tokens
    #[arg(long)]
    pub(crate) no_logprobs: bool,
    /// Most tokens of prompt and answer together [default: the model's context, at most 8192]
    #[arg(long, value_name = "N")]
    pub(crate) max_positions: Option<u32>,
}

/// How an import stores weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Weights {
    /// Keep the blocks of 4 and 8 bits of files that have them; int8 per row otherwise
    Auto,
    /// Int8 with one scale per row, whatever the file has
    Int8,
}

/// Serve models for pay: stake, prices, the serving process.
#[derive(Debug, Subcommand)]
pub(crate) enum Node {
    /// Set where this node serves traces and how many jobs it takes at a time
    Register {
        /// Public HTTP address of the node's trace server
        #[arg(long, value_name = "URL")]
        endpoint: String,
        /// Jobs at a time
        #[arg(long, value_name = "N", default_value_t = 4)]
        capacity: u32,
    },
    /// Serve: take jobs, answer, defend, collect. Survives being killed at any moment
    Run(NodeRun),
    /// Set a price for a model: posted on chain, or with --unposted at once and for nothing
    Price(SetPrice),
    /// Add to the stake that backs this node's bonds
    Stake {
        /// Payment tokens
        #[arg(value_name = "AMOUNT")]
        amount: String,
    },
    /// Start unbonding stake; withdrawable when the delay is over
    Unstake {
        /// Payment tokens
        #[arg(value_name = "AMOUNT")]
        amount: String,
    },
    /// Collect what is owed: pay, and stake whose unbonding is over
    Withdraw,
    /// A price from what this machine costs and does, and from what others ask
    Suggest(SuggestPrice),
    /// Every node: prices, stake, paid volume, record, age
    List(ListNodes),
    /// Stake, bonds, prices and record of a node
    Status {
        /// The node [default: the key's account]
        #[arg(value_name = "ADDRESS")]
        address: Option<Address>,
    },
}

/// Set a price for a model.
///
/// Posting it is a transaction, and consent to jobs that name this node at that price. With --unposted nothing is sent: a running node
/// signs its offers for channels, and bids for open jobs, at that price from now on, whatever is posted.
#[derive(Clone, Debug, Args)]
pub(crate) struct SetPrice {
    /// Model by name or id
    #[arg(value_name = "MODEL", default_value = "smollm2-135m")]
    pub(crate) model: String,
    /// Price of a prompt token, in payment tokens
    #[arg(long, value_name = "AMOUNT", required_unless_present = "as_posted")]
    pub(crate) input: Option<String>,
    /// Price of an output token, in payment tokens
    #[arg(long, value_name = "AMOUNT", required_unless_present = "as_posted")]
    pub(crate) output: Option<String>,
    /// Longest prompt and answer together, in tokens; 0 withdraws the offer
    #[arg(long, value_name = "N", default_value_t = 2048)]
    pub(crate) longest: u32,
    /// Write it to the node's price list instead of the chain
    #[arg(long)]
    pub(crate) unposted: bool,
    /// Take the model off the node's price list: what is posted counts again
    #[arg(long, conflicts_with_all = ["input", "output", "unposted"])]
    pub(crate) as_posted: bool,
    /// The node's journal and state, where its price list is [default: node/ADDRESS in the home directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
}

/// A price from what this machine costs and does, and from what others ask.
#[derive(Clone, Debug, Args)]
pub(crate) struct SuggestPrice {
    #[command(flatten)]
    pub(crate) engine: Engine,
    /// What the machine draws when it answers, in watts
    #[arg(long, value_name = "W", default_value_t = 300)]
    pub(crate) watts: u32,
    /// Price of a kilowatt-hour, in payment tokens
    #[arg(long, value_name = "AMOUNT", default_value = "0.3")]
    pub(crate) kwh: String,
    /// What the machine costs besides, an hour, in payment tokens
    #[arg(long, value_name = "AMOUNT", default_value = "0")]
    pub(crate) hour: String,
    /// Added to the cost, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 20, value_parser = clap::value_parser!(u16).range(0..=1000))]
    pub(crate) margin: u16,
}

/// The market: nodes, users, jobs by model, latency and prices, failures by reason.
///
/// All of it is read from the chain: answers that were paid, seconds from a node's assignment to its answer, what a token cost, and for every
/// failure why.
#[derive(Clone, Debug, Args)]
pub(crate) struct Network {
    /// Only the last days
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub(crate) days: Option<u32>,
}

/// Every node: prices, stake, paid volume, record, age.
#[derive(Clone, Debug, Args)]
pub(crate) struct ListNodes {
    /// Model that prices are shown for, by name or id
    #[arg(long, value_name = "MODEL", default_value = "smollm2-135m")]
    pub(crate) model: String,
    /// By what to order
    #[arg(long, value_enum, default_value = "record")]
    pub(crate) sort: NodeOrder,
    /// Only nodes that offer the model and are not convicted
    #[arg(long)]
    pub(crate) offering: bool,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub(crate) limit: u64,
}

/// An order of nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum NodeOrder {
    /// Fewest faults for what it was paid first, then most paid
    Record,
    /// Cheapest first
    Price,
    /// Most paid by users first
    Volume,
    /// Largest stake first
    Stake,
    /// Oldest first
    Age,
}

/// Serve: take jobs, answer, defend, collect. Survives being killed at any moment.
#[derive(Clone, Debug, Args)]
pub(crate) struct NodeRun {
    #[command(flatten)]
    pub(crate) engine: Engine,
    /// Where to serve traces, for watchers and users
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:9545")]
    pub(crate) listen: std::net::SocketAddr,
    /// Journal and state [default: node/ADDRESS in the home directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// Also bid for open jobs, at the own price
    #[arg(long)]
    pub(crate) open_jobs: bool,
    /// Jobs that run together; more wait, the oldest first
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) concurrency: u16,
    /// HTTP requests a second that one address may send; 0: any number. This machine's own addresses always may
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(crate) rate_limit: u32,
    #[command(flatten)]
    pub(crate) receipts: Receipts,
    #[command(flatten)]
    pub(crate) monitoring: Monitoring,
}

/// What an operator's monitoring reads.
#[derive(Clone, Debug, Args)]
pub(crate) struct Monitoring {
    /// Serve /metrics (Prometheus), /health and /ready here; nowhere unless given
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) metrics: Option<std::net::SocketAddr>,
}

/// Payment by receipts.
#[derive(Clone, Debug, Args)]
pub(crate) struct Receipts {
    /// Serve on-chain jobs alone: no channels, no receipts
    #[arg(long)]
    pub(crate) no_channels: bool,
    /// Keystore of a key that signs receipts instead of the account's own; it is authorised on chain if it is not yet
    #[arg(long, value_name = "FILE")]
    pub(crate) session_key: Option<PathBuf>,
    /// File with the session key's password [default: the account's password]
    #[arg(long, value_name = "FILE", requires = "session_key")]
    pub(crate) session_key_password_file: Option<PathBuf>,
    /// Redeem receipts when they have earned this much in tokens; a channel that closes is redeemed in any case
    #[arg(long, value_name = "AMOUNT", default_value = "1")]
    pub(crate) redeem_at: String,
    /// Raise prices by up to so many percent when the node is busy
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=500))]
    pub(crate) surge_max: u16,
    /// Also serve channels whose signer is a contract (ERC-1271), which can disown its vouchers until they are redeemed
    #[arg(long)]
    pub(crate) contract_signers: bool,
    /// Also sell spot requests for so many percent less: they give way to others, and then cost nothing
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=99))]
    pub(crate) spot_discount: u16,
    /// Hold so many of the places of --streams for requests that pay for a reserved one
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) reserved: u16,
    /// What a reserved place costs more, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u16).range(0..=500))]
    pub(crate) reserved_premium: u16,
    /// Answers for channels at a time; more are refused
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) streams: u16,
}

/// OpenAI's API on this machine, answered by nodes under oath and paid from channels.
///
/// Any client of OpenAI's API works with --listen's address and /v1 as its base URL. The key signs vouchers for the channels that name it
/// as their signer; it holds no money and needs none. Every answer carries its node's signed receipt, which `sworn audit` checks. What was
/// promised and paid is kept in --state: a gateway that is killed loses nothing.
#[derive(Clone, Debug, Args)]
pub(crate) struct Gateway {
    /// Where to listen for clients
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    pub(crate) listen: std::net::SocketAddr,
    /// Models to serve, by name or id; may be given several times
    #[arg(long, value_name = "MODEL", default_value = "smollm2-135m")]
    pub(crate) model: Vec<String>,
    /// Accounts and receipts [default: gateway/ADDRESS in the home directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// The most that one request may cost, in payment tokens [default: what nodes ask]
    #[arg(long, value_name = "AMOUNT")]
    pub(crate) max_price: Option<String>,
    /// Ask only this node; may be given several times
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) allow: Vec<Address>,
    /// Never ask this node; may be given several times
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) deny: Vec<Address>,
    /// File with API keys, one a line, of which clients must send one [default: everybody may ask]
    #[arg(long, value_name = "FILE")]
    pub(crate) api_key_file: Option<PathBuf>,
    /// Web pages of this origin may ask; may be given several times
    #[arg(long, value_name = "ORIGIN")]
    pub(crate) allow_origin: Vec<String>,
    /// Serve the API alone, without the page
    #[arg(long)]
    pub(crate) no_page: bool,
    /// Where the page's browsers may read the chain [default: the gateway's RPC if it is on this machine, else their wallets]
    #[arg(long, value_name = "URL")]
    pub(crate) page_rpc: Option<String>,
    /// Tokens of an answer whose length the client leaves open
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub(crate) default_max_tokens: u32,
    /// Answers under way at a time; more are refused
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(crate) concurrency: u16,
    /// Requests a second that one address may send; 0: any number. This machine's own addresses always may
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) rate_limit: u32,
    /// Bytes of the longest request
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20)]
    pub(crate) body_limit: usize,
    /// Seconds that an answer may take
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub(crate) answer_time: u64,
    #[command(flatten)]
    pub(crate) auto: AutoOpen,
}

/// Channels that the gateway opens by itself.
#[derive(Clone, Debug, Args)]
pub(crate) struct AutoOpen {
    /// Open channels to nodes by itself, with this much each, and add as much when one holds less than half of it
    ///
    /// The key's account pays, so it needs payment tokens and gas. Nodes that are not convicted and offer a model are taken in the
    /// order of `sworn node list --sort record`.
    #[arg(long, value_name = "AMOUNT")]
    pub(crate) auto_open: Option<String>,
    /// To how many nodes for each model
    #[arg(long, value_name = "N", default_value = "2", requires = "auto_open")]
    pub(crate) auto_open_nodes: NonZeroU16,
    /// The most that open channels may hold in all, in payment tokens [default: ten times --auto-open]
    #[arg(long, value_name = "AMOUNT", requires = "auto_open")]
    pub(crate) auto_open_limit: Option<String>,
}

/// Channels to nodes: deposit, open, top up, close, withdraw, show, list.
#[derive(Debug, Subcommand)]
pub(crate) enum Channel {
    /// Deposit payment tokens, to open channels with
    Deposit {
        /// Payment tokens
        #[arg(value_name = "AMOUNT")]
        amount: String,
    },
    /// Open a channel to a node; deposits what is missing
    Open {
        /// The node
        #[arg(value_name = "NODE")]
        node: Address,
        /// Payment tokens that the channel can pay at most
        #[arg(value_name = "AMOUNT")]
        amount: String,
        /// Key that signs vouchers, a gateway's for instance [default: the account itself]
        #[arg(long, value_name = "ADDRESS")]
        signer: Option<Address>,
    },
    /// Add to a channel; deposits what is missing
    Topup {
        /// The channel
        #[arg(value_name = "CHANNEL")]
        channel: B256,
        /// Payment tokens
        #[arg(value_name = "AMOUNT")]
        amount: String,
    },
    /// Begin to close a channel; called again after the delay, get back what the node has not claimed
    Close {
        /// The channel
        #[arg(value_name = "CHANNEL")]
        channel: B256,
    },
    /// Pay out what is in no channel
    Withdraw,
    /// A channel
    Show {
        /// The channel
        #[arg(value_name = "CHANNEL")]
        channel: B256,
    },
    /// The channels of a user or to a node
    List {
        /// The account [default: the key's]
        #[arg(long, value_name = "ADDRESS")]
        of: Option<Address>,
        /// Closed ones too
        #[arg(long)]
        all: bool,
    },
}

/// Buy an answer on chain and print it.
///
/// The prompt and the answer are public: they are posted in calldata, so that anybody can check them. The node's bond stands
/// behind the answer; if it is late or wrong, the price comes back.
#[derive(Clone, Debug, Args)]
pub(crate) struct Ask {
    #[command(flatten)]
    pub(crate) order: Purchase,
    /// Cut the answer that is shown before this text; may be given several times
    ///
    /// The node knows the model's stop tokens only: it goes on after this text, and what it adds is paid for and under oath as well.
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    #[command(flatten)]
    pub(crate) logprobs: LogProbFlags,
    /// Wait until the job is final, not only answered
    #[arg(long)]
    pub(crate) wait_final: bool,
    /// Give up waiting after this many seconds; the job goes on without us
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub(crate) patience: u64,
}

/// What to buy, and from whom.
#[derive(Clone, Debug, Args)]
pub(crate) struct Purchase {
    /// What to ask; - reads it from stdin
    #[arg(value_name = "PROMPT")]
    pub(crate) prompt: String,
    /// Model by name or id
    #[arg(long, value_name = "MODEL", default_value = "smollm2-135m")]
    pub(crate) model: String,
    /// Tokens of the longest answer
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(crate) max_tokens: u32,
    /// The node to ask [default: the cheapest that offers the model]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) node: Option<Address>,
    /// Leave the job open to any node at or under --max-price
    #[arg(long, conflicts_with = "node")]
    pub(crate) open: bool,
    /// The most to pay, in payment tokens [default: the node's quote]
    #[arg(long, value_name = "AMOUNT")]
    pub(crate) max_price: Option<String>,
    /// Send the prompt as it is, without the model's chat template
    #[arg(long)]
    pub(crate) raw: bool,
    #[command(flatten)]
    pub(crate) sampling: SamplingFlags,
    /// Your part of the seed, 32 bytes in hex after 0x or a number; the block adds its own [default: random]
    #[arg(long, value_name = "SEED", value_parser = parse_seed)]
    pub(crate) seed: Option<B256>,
}

/// Jobs: create, list, show, cancel, settle.
#[derive(Debug, Subcommand)]
pub(crate) enum Job {
    /// Buy an answer without waiting for it; `sworn ask` waits
    Create(Purchase),
    /// Jobs, newest first
    List {
        /// Only those of this user or node
        #[arg(long, value_name = "ADDRESS")]
        of: Option<Address>,
        /// At most so many
        #[arg(long, value_name = "N", default_value_t = 20)]
        limit: u64,
    },
    /// A job with its texts, money and deadlines
    Show {
        /// The job
        #[arg(value_name = "JOB")]
        job: u64,
        /// Take the prompt's and answer's text from this model instead of the one the job names
        #[arg(long, value_name = "MODEL", hide = true)]
        model: Option<String>,
    },
    /// Take back a job that no node has accepted
    Cancel {
        /// The job
        #[arg(value_name = "JOB")]
        job: u64,
    },
    /// End a job that is due: finalize an answered one after its window, expire a late one
    Settle {
        /// The job
        #[arg(value_name = "JOB")]
        job: u64,
    },
}

/// Re-execute every answer, challenge wrong ones, collect the rewards.
///
/// Checks itself first: the model's bytes against the id on chain and a self-test of the backend, so that a broken machine
/// accuses nobody. With --json every event is one line.
#[derive(Clone, Debug, Args)]
pub(crate) struct Watch {
    #[command(flatten)]
    pub(crate) engine: Engine,
    /// Journal and state [default: watch/ADDRESS in the home directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// Find faults but send nothing; needs no key
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Stop when nothing is left to do
    #[arg(long)]
    pub(crate) once: bool,
    #[command(flatten)]
    pub(crate) monitoring: Monitoring,
}

/// Challenges: list, show.
#[derive(Debug, Subcommand)]
pub(crate) enum Dispute {
    /// Jobs with a demand, a proof or a slash
    List {
        /// At most so many
        #[arg(long, value_name = "N", default_value_t = 20)]
        limit: u64,
    },
    /// Every step of a challenge, of a job or of a receipt on trial
    Show {
        /// The job, or the trial's number
        #[arg(value_name = "JOB")]
        job: u64,
    },
    /// Bring a false receipt to trial, prove it wrong and collect: costs the node its stake
    Lodge(Lodge),
    /// Show two receipts that a node signed for one request: costs the node its stake at once
    Equivocation(Equivocation),
}

/// Show two receipts that a node signed for one request.
///
/// Nothing is re-executed: the signatures alone convict the node, at once, and the reward is yours.
#[derive(Clone, Debug, Args)]
pub(crate) struct Equivocation {
    /// A receipt that `sworn gateway` kept
    #[arg(value_name = "FIRST")]
    pub(crate) first: PathBuf,
    /// Another one for the same request
    #[arg(value_name = "SECOND")]
    pub(crate) second: PathBuf,
}

/// Bring a false receipt to trial, prove it wrong and collect: costs the node its stake.
#[derive(Clone, Debug, Args)]
pub(crate) struct Lodge {
    /// A receipt that `sworn gateway` kept
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Model by name, id or directory [default: the receipt's id]
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: Option<String>,
    /// Where to re-execute
    #[arg(long, value_enum, default_value_t = BackendChoice::Auto)]
    pub(crate) backend: BackendChoice,
    /// Journal and state [default: disputes/DIGEST in the home directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
}

/// Every bucket an account has money in, and when each is released.
#[derive(Clone, Debug, Args)]
pub(crate) struct Money {
    /// The account [default: the key's]
    #[arg(value_name = "ADDRESS")]
    pub(crate) address: Option<Address>,
    /// Collect what the market owes the key's account
    #[arg(long, conflicts_with = "address")]
    pub(crate) withdraw: bool,
}

/// Check this machine and its surroundings, with the cure for each fault.
///
/// Looks at GPU adapters, the model's bytes, disk space, tools, the RPC endpoint, chain id, contracts, key and clock. Exit code 1
/// if something is wrong.
#[derive(Clone, Debug, Args)]
pub(crate) struct Doctor {
    #[command(flatten)]
    pub(crate) engine: Engine,
    /// Only what needs no chain
    #[arg(long)]
    pub(crate) offline: bool,
}

/// Answer a prompt on this machine, without a chain, with the trace an oath would bind.
#[derive(Clone, Debug, Args)]
pub(crate) struct Run {
    /// The prompt; - reads it from stdin
    #[arg(value_name = "PROMPT")]
    pub(crate) prompt: String,
    #[command(flatten)]
    pub(crate) engine: Engine,
    /// Tokens of the longest answer
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub(crate) max_tokens: u32,
    /// Execute the prompt as it is, without the model's chat template
    #[arg(long)]
    pub(crate) raw: bool,
    /// End the answer before this text; may be given several times
    ///
    /// Nothing is generated after it. The tokens and the trace cover what was generated, with this text.
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    #[command(flatten)]
    pub(crate) sampling: SamplingFlags,
    /// Seed of the noise, 32 bytes in hex after 0x or a number [default: random]
    #[arg(long, value_name = "SEED", value_parser = parse_seed)]
    pub(crate) seed: Option<B256>,
    #[command(flatten)]
    pub(crate) logprobs: LogProbFlags,
    /// Save the answer with its trace root, for `sworn audit`
    #[arg(long, value_name = "FILE")]
    pub(crate) save: Option<PathBuf>,
}

/// Re-execute a saved answer and compare its trace.
///
/// One pass over the known tokens, on whichever backend; exit code 1 and the first difference if it is not what was saved.
#[derive(Clone, Debug, Args)]
pub(crate) struct Audit {
    /// What `sworn run --save` wrote, what `sworn run --json` or `sworn job show --json` printed, or a receipt from a gateway
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Where to execute; every backend gives the same bits
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) backend: BackendChoice,
    /// Model by name or id [default: the one the answer names]
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: Option<String>,
}

/// Compare the integer model with the float reading of its source: perplexity, agreement.
#[derive(Clone, Debug, Args)]
pub(crate) struct Eval {
    /// Model by name or id; its GGUF must be on this machine
    #[arg(long, value_name = "MODEL", default_value = "smollm2-135m")]
    pub(crate) model: String,
    /// The GGUF for the float reading [default: the file the model was imported from]
    #[arg(long, value_name = "FILE")]
    pub(crate) gguf: Option<PathBuf>,
    /// UTF-8 text to predict
    #[arg(long, value_name = "FILE")]
    pub(crate) text: PathBuf,
    /// Tokens of the text to use at most
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<usize>,
}

/// Measure this machine: speed beside llama.cpp and candle, the oath's price, audits, memory.
///
/// What is compared is measured in turns, each in a process of its own; medians are given with the least and the greatest value.
/// The machine should be quiet. Takes about ten minutes, two with --quick. `make bench` also builds llama.cpp and rewrites
/// docs/benchmarks.md.
#[derive(Clone, Debug, Args)]
pub(crate) struct Bench {
    /// Model by name or id; peers run the GGUF it was imported from
    #[arg(value_name = "MODEL", default_value = "smollm2-135m")]
    pub(crate) model: String,
    /// Where to execute; peers run on the CPU and are left out beside a GPU
    #[arg(long, value_enum, default_value = "cpu")]
    pub(crate) backend: BackendChoice,
    /// Threads [default: one per processor]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<NonZeroU16>,
    /// Repetitions of each comparison [default: 7 beside peers, 15 pairs for the oath, 5 audits]
    #[arg(long, value_name = "N")]
    pub(crate) runs: Option<NonZeroU16>,
    /// Fewer repetitions, short contexts, no larger models
    #[arg(long)]
    pub(crate) quick: bool,
    /// The GGUF for the peers and the float reading [default: the file the model was imported from]
    #[arg(long, value_name = "FILE")]
    pub(crate) gguf: Option<PathBuf>,
    /// llama.cpp's llama-bench [default: what script/bench-peers built, or the one on the PATH]
    #[arg(long, value_name = "FILE")]
    pub(crate) llama_bench: Option<PathBuf>,
    /// Also write the result as a page of Markdown
    #[arg(long, value_name = "FILE")]
    pub(crate) markdown: Option<PathBuf>,
    /// Measure nothing: read what --json printed
    #[arg(long, value_name = "FILE")]
    pub(crate) from: Option<PathBuf>,
    /// What was measured, for instance a commit; printed with the versions
    #[arg(long, value_name = "TEXT")]
    pub(crate) label: Option<String>,
    /// Measure on request: lines of JSON on stdin and stdout
    #[arg(long, hide = true)]
    pub(crate) worker: bool,
}

/// Keys: make, show.
#[derive(Debug, Subcommand)]
pub(crate) enum Key {
    /// Make a key and write it as an encrypted keystore v3 file
    New {
        /// File to write [default: keys/ADDRESS.json in the home directory]
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// The address of a keystore file; needs no password
    Show {
        /// The file [default: --key's]
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
}
