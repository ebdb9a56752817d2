//! Hears of commits, of all relays on the database.

use std::time::Duration;

use futures_util::future::poll_fn;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_postgres::{AsyncMessage, Config};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::failure::chain;

/// The channel of notifications. The migrations' SQL does not name it: only [`super::writer`] sends.
pub(super) const CHANNEL: &str = "compute_market_events";

/// How soon a lost connection is made again. Until then followers look by themselves, this often.
const AGAIN: Duration = Duration::from_secs(1);

/// The task that hears of commits; it ends with this.
#[derive(Debug)]
pub(super) struct Listener(AbortHandle);

impl Listener {
    pub(super) fn start(config: Config, tls: MakeRustlsConnect, committed: watch::Sender<()>) -> Self {
        let task = tokio::spawn(async move {
            loop {
                if let Err(error) = listen(&config, tls.clone(), &committed).await {
                    tracing::warn!(error = %chain(&error), "the store's database cannot be listened to");
                }
                committed.send_replace(());
                tokio::time::sleep(AGAIN).await;
            }
        });
        Self(task.abort_handle())
    }

    pub(super) fn stop(&self) {
        self.0.abort();
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Listens until the connection ends.
async fn listen(
    config: &Config,
    tls: MakeRustlsConnect,
    committed: &watch::Sender<()>,
) -> Result<(), tokio_postgres::Error> {
    let (client, mut connection) = config.connect(tls).await?;
    let listen = format!("LISTEN {CHANNEL}");
    let subscribe = async {
        client.batch_execute(&listen).await?;
        // What was committed before counts too.
        committed.send_replace(());
        // The connection lasts as long as its client.
        std::future::pending::<Result<(), tokio_postgres::Error>>().await
    };
    let hear = async {
        while let Some(message) = poll_fn(|context| connection.poll_message(context)).await {
            match message? {
                AsyncMessage::Notification(_) => committed.send_replace(()),
                AsyncMessage::Notice(notice) => tracing::debug!(%notice, "the store's database says"),
                _ => {}
            }
        }
        Ok(())
    };
    tokio::select! {
        ended = subscribe => ended,
        ended = hear => ended,
    }
}
