//! `sworn watch`.

use std::process::ExitCode;

use crate::args::Watch;
use crate::backend;
use crate::events::{EventLog, stop_signal};
use crate::fault::Result;
use crate::models;
use crate::monitoring::Monitoring;
use crate::settings::Settings;

pub(super) async fn run(settings: &Settings, command: Watch) -> Result<ExitCode> {
    let deployment = settings.deployment()?;
    // A dead RPC is told before the model is loaded and the password asked for.
    sworn_chain::Chain::connect(&settings.rpc, deployment.clone()).await?;
    let key = if command.dry_run { None } else { Some(settings.open_key().await?) };
    let who = key.as_ref().map_or_else(|| "dry-run".to_owned(), |k| k.address().to_string());
    let state = command.state.unwrap_or_else(|| settings.home.join("watch").join(who));
    let model = models::load(settings, &command.engine.model)?;
    let choice = command.engine.backend;
    let chosen = backend::blocking(move || backend::open(model, choice)).await?;

    let mut config = sworn_watcher::Config::new(settings.rpc.clone(), deployment, state);
    config.backends = vec![chosen.backend];
    config.dry_run = command.dry_run;
    config.once = command.once;
    let monitoring = Monitoring::start(command.monitoring, config.pulse.clone()).await?;
    let (log, mut finished) = EventLog::new(settings.out);
    let stop = async move {
        tokio::select! {
            () = stop_signal() => {}
            _ = finished.recv() => {}
        }
    };
    let ended = sworn_watcher::watch(config, key.map(Into::into), move |event| log.tell(event), stop).await;
    monitoring.stop().await;
    ended?;
    Ok(ExitCode::SUCCESS)
}
