//! A relay's id, which is one process's at a time: a lock of a session of its own, which ends with the process.

use std::time::Duration;

use tokio::task::{AbortHandle, JoinHandle};
use tokio_postgres::{Client, Config, Error};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::failure::{chain, reading};
use crate::StoreError;

/// How soon a lost session is made again.
const AGAIN: Duration = Duration::from_secs(1);

/// Tells these locks from others of the database.
const SEED: i64 = 7_206_103;

/// How the session is set up: the server finds out within a minute that a machine is gone, and lets its lock go.
const SETTINGS: &str =
    "SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3";

/// An id that is held until this is dropped.
#[derive(Debug)]
pub(super) struct Claim(AbortHandle);

impl Claim {
    /// Takes an id; `None` if somebody else has it.
    pub(super) async fn take(
        config: Config,
        tls: MakeRustlsConnect,
        relay_id: String,
    ) -> Result<Option<Self>, StoreError> {
        let Some(mut held) = lock(&config, tls.clone(), &relay_id).await.map_err(reading)? else {
            return Ok(None);
        };
        let task = tokio::spawn(async move {
            loop {
                held.ended().await;
                held = lock_again(&config, &tls, &relay_id).await;
            }
        });
        Ok(Some(Self(task.abort_handle())))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A session that has the lock.
struct Held {
    /// The session lasts as long as its client.
    _client: Client,
    connection: JoinHandle<Result<(), Error>>,
}

impl Held {
    async fn ended(&mut self) {
        if let Ok(Err(error)) = (&mut self.connection).await {
            tracing::warn!(error = %chain(&error), "the session that holds the relay's id is lost");
        }
    }
}

async fn lock_again(config: &Config, tls: &MakeRustlsConnect, relay_id: &str) -> Held {
    loop {
        tokio::time::sleep(AGAIN).await;
        match lock(config, tls.clone(), relay_id).await {
            Ok(Some(held)) => return held,
            Ok(None) => tracing::error!(relay_id, "another relay of this store runs under this one's id"),
            Err(error) => tracing::warn!(error = %chain(&error), "the relay's id cannot be held"),
        }
    }
}

async fn lock(config: &Config, tls: MakeRustlsConnect, relay_id: &str) -> Result<Option<Held>, Error> {
    let (client, connection) = config.connect(tls).await?;
    let connection = tokio::spawn(connection);
    client.batch_execute(SETTINGS).await?;
    let sql = "SELECT pg_try_advisory_lock(hashtextextended($1, $2))";
    let is_ours: bool = client.query_one(sql, &[&relay_id, &SEED]).await?.try_get(0)?;
    Ok(is_ours.then_some(Held { _client: client, connection }))
}
