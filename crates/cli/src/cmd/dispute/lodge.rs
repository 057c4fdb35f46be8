//! `sworn dispute lodge`.

use std::path::Path;
use std::process::ExitCode;

use alloy::primitives::B256;
use sworn_bindings::IChannels::{BatchState, IChannelsEvents};
use sworn_bindings::{Deployment, Event, JobState, Place};
use sworn_gateway::ReceiptFile;
use sworn_receipts::{Receipt, place};
use sworn_watcher::{Case, Config, watch};

use crate::answer::receipt_file;
use crate::args;
use crate::backend;
use crate::events::{EventLog, stop_signal};
use crate::fault::{Fault, Result};
use crate::history;
use crate::link::{Link, Viewed};
use crate::models;
use crate::settings::Settings;

pub(super) async fn run(settings: &Settings, command: args::Lodge) -> Result<ExitCode> {
    let (file, _) = receipt_file(&command.file)?.ok_or_else(|| no_receipt(&command.file))?;
    let link = Link::open(settings).await?;
    let d = link.chain.deployment().clone();
    same_deployment(&file, &d)?;
    let ReceiptFile { signed, input_tokens, tokens, digest, node, .. } = file;
    let key = settings.open_key().await?;
    let model = models::load(settings, command.model.as_deref().unwrap_or(&signed.receipt.modelId.to_string()))?;
    let place = pending(&link, &signed.receipt).await?;
    let chosen = backend::blocking(move || backend::open(model, command.backend)).await?;

    let state = command.state.unwrap_or_else(|| settings.home.join("disputes").join(digest.to_string()));
    let mut config = Config::new(settings.rpc.clone(), d, state);
    config.backends = vec![chosen.backend];
    config.case = Some(Case { signed, prompt: input_tokens, output: tokens, place });
    let (log, mut finished) = EventLog::new(settings.out);
    let stop = async move {
        tokio::select! {
            () = stop_signal() => {}
            _ = finished.recv() => {}
        }
    };
    watch(config, Some(key.into()), move |event| log.tell(event), stop).await?;
    if convicted(&link, digest).await? {
        return Ok(ExitCode::SUCCESS);
    }
    Err(Fault::failed(format!("node {node} is not convicted of this receipt (yet): run the command again to go on")))
}

pub(super) fn no_receipt(path: &Path) -> Fault {
    Fault::usage(format!(
        "{} is no receipt: give a file that `sworn gateway` kept, or the body of its /v1/receipts/DIGEST",
        path.display()
    ))
}

pub(super) fn same_deployment(file: &ReceiptFile, d: &Deployment) -> Result<()> {
    let domain = file.domain;
    if (domain.chain_id, domain.channels) == (d.chain_id, d.channels) {
        return Ok(());
    }
    Err(Fault::failed(format!(
        "the receipt is for {} on chain {}, the deployment's channels are {} on chain {}",
        domain.channels, domain.chain_id, d.channels, d.chain_id
    )))
}

/// Where the receipt is in a batch that is not paid yet; `None` if it was not redeemed.
async fn pending(link: &Link, receipt: &Receipt) -> Result<Option<Place>> {
    let contract = link.chain.channels();
    let channel = contract.channel(receipt.channelId).call().await.viewed()?;
    if channel.sequence < receipt.sequence {
        return Ok(None);
    }
    let topics = [None, None, history::account(channel.node), None];
    for said in history::events(link, &[link.chain.deployment().channels], topics).await? {
        let Event::Channels(IChannelsEvents::BatchRedeemed(e)) = said.event else { continue };
        let ours = |p: &sworn_bindings::Part| {
            p.channelId == receipt.channelId && (p.first..=p.last).contains(&receipt.sequence)
        };
        if e.parts.iter().any(ours) {
            let batch = contract.batch(e.batchId).call().await.viewed()?;
            return match batch.state {
                BatchState::Pending => Ok(place(e.batchId, &e.parts, receipt.channelId)),
                _ => Err(Fault::failed(format!(
                    "its batch {} is over: a receipt can be tried until its batch is paid out or void",
                    e.batchId
                ))),
            };
        }
    }
    Err(Fault::failed("the receipt was redeemed, but no batch has it: use an RPC that serves all logs"))
}

async fn convicted(link: &Link, digest: B256) -> Result<bool> {
    let job = link.chain.trials().jobOf(digest).call().await.viewed()?;
    if job.is_zero() {
        // Convicted without a trial, or not at all: the watcher would have said.
        return Ok(true);
    }
    Ok(link.chain.receipt_court().stateOf(job).call().await.viewed()? == JobState::Slashed)
}
