//! The address for an operator's monitoring.

use sworn_ops::Pulse;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::args;
use crate::fault::{Doing, Result};

/// The pages of `--metrics`, if they are wanted.
#[derive(Debug)]
pub(crate) struct Monitoring(Option<(oneshot::Sender<()>, JoinHandle<std::io::Result<()>>)>);

impl Monitoring {
    /// Listens, before the agent does anything that is measured.
    pub(crate) async fn start(wanted: args::Monitoring, pulse: Pulse) -> Result<Self> {
        let Some(address) = wanted.metrics else { return Ok(Monitoring(None)) };
        let listener = TcpListener::bind(address)
            .await
            .doing(|| format!("cannot listen on {address}: give another address with --metrics"))?;
        sworn_ops::install();
        let (stop, stopped) = oneshot::channel();
        let until = async move {
            let _ = stopped.await;
        };
        Ok(Monitoring(Some((stop, tokio::spawn(sworn_ops::serve(listener, pulse, until))))))
    }

    /// Ends with the agent, so that monitoring sees it go.
    pub(crate) async fn stop(self) {
        if let Some((stop, serving)) = self.0 {
            let _ = stop.send(());
            let _ = serving.await;
        }
    }
}
