//! `sworn dispute equivocation`.

use std::path::Path;
use std::process::ExitCode;

use sworn_bindings::{IChannels, ITrials};
use sworn_chain::Receipt as Mined;
use sworn_gateway::ReceiptFile;

use super::lodge::same_deployment;
use crate::answer::receipt_file;
use crate::args;
use crate::fault::{Fault, Result};
use crate::link::{Account, Viewed};
use crate::settings::Settings;

pub(super) async fn run(settings: &Settings, command: args::Equivocation) -> Result<ExitCode> {
    let [first, second] = [read(&command.first)?, read(&command.second)?];
    let (a, b) = (&first.signed.receipt, &second.signed.receipt);
    if (a.channelId, a.request) != (b.channelId, b.request) {
        return Err(Fault::failed(format!(
            "the receipts are for requests {} and {} of channels {} and {}: two for one request are what convicts",
            a.request, b.request, a.channelId, b.channelId
        )));
    }
    if first.digest == second.digest {
        return Err(Fault::failed("it is the same receipt twice: a node may show it as often as it likes"));
    }
    let account = Account::open(settings).await?;
    let d = account.link.chain.deployment().clone();
    for file in [&first, &second] {
        same_deployment(file, &d)?;
    }
    if account.link.chain.nodes().isConvicted(first.node).call().await.viewed()? {
        return Err(Fault::failed(format!("node {} is convicted already", first.node)));
    }
    let convict = ITrials::convictEquivocationCall {
        a: a.into(),
        signatureA: first.signed.signature.clone(),
        b: b.into(),
        signatureB: second.signed.signature.clone(),
    };
    let mut sent: Vec<Mined> = vec![account.send(d.trials, &convict).await?];
    if !account.link.chain.channels().balanceOf(account.address()).call().await.viewed()?.is_zero() {
        sent.push(account.send(d.channels, &IChannels::withdrawCall {}).await?);
    }
    settings.out.result(&sent, |sent| {
        sent.iter().map(|r| format!("{}  {}  gas {}", r.label, r.hash, r.gas_used)).collect::<Vec<_>>().join("\n")
    })?;
    Ok(ExitCode::SUCCESS)
}

fn read(path: &Path) -> Result<ReceiptFile> {
    match receipt_file(path)? {
        Some((file, _)) => Ok(file),
        None => Err(super::lodge::no_receipt(path)),
    }
}
