//! A relay's id, which is one process's at a time: a lock of a session of its own, which ends with the process.
//!
//! A session that is lost is made again at once. Where somebody else holds the id by then, it is lost for good. While the database is out
//! of reach nobody can write to it, so that it is enough to find out before anybody does: the id is asked for again until it answers.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};
use tokio_postgres::{Client, Config, Error};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::failure::{chain, reading};
use crate::StoreError;

/// How soon the id is asked for again while the database does not answer.
const AGAIN: Duration = Duration::from_millis(250);

/// Tells these locks from others of the database.
const SEED: i64 = 7_206_103;

/// How the session is set up: the server finds out within a minute that a machine is gone, and lets its lock go.
const SETTINGS: &str =
    "SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3";

/// Ends the session that had the lock before, which the server may take for alive after its connection broke, if it is that session that
/// still has it.
const END_OLD: &str = "SELECT pg_terminate_backend(pid) FROM pg_locks
    WHERE locktype = 'advisory' AND granted AND pid = $3 AND objsubid = 1
      AND (classid::bigint << 32 | objid::bigint) = hashtextextended($1, $2)";

/// An id that is held until this is dropped.
#[derive(Debug)]
pub(super) struct Claim {
    task: AbortHandle,
    lost: watch::Receiver<bool>,
}

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
        let (tells, lost) = watch::channel(false);
        let task = tokio::spawn(async move {
            loop {
                held.ended().await;
                match lock_again(&config, &tls, &relay_id, held.pid).await {
                    Some(again) => held = again,
                    None => break,
                }
            }
            tracing::error!(relay_id, "another relay of this store runs under this one's id");
            tells.send_replace(true);
            // Whoever asks later is told as well.
            tells.closed().await;
        });
        Ok(Some(Self { task: task.abort_handle(), lost }))
    }

    /// Waits until the id is somebody else's.
    pub(super) fn lost(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut lost = self.lost.clone();
        async move {
            // Without a sender the claim was given up, which is no loss.
            if lost.wait_for(|lost| *lost).await.is_err() {
                std::future::pending().await
            }
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A session that has the lock.
struct Held {
    /// The session lasts as long as its client.
    _client: Client,
    connection: JoinHandle<Result<(), Error>>,
    /// The server's number of the session.
    pid: i32,
}

impl Held {
    async fn ended(&mut self) {
        if let Ok(Err(error)) = (&mut self.connection).await {
            tracing::warn!(error = %chain(&error), "the session that holds the relay's id is lost");
        }
    }
}

/// Takes the id again that an older session of ours had; `None` if it is somebody else's by now.
async fn lock_again(config: &Config, tls: &MakeRustlsConnect, relay_id: &str, old: i32) -> Option<Held> {
    loop {
        match retake(config, tls, relay_id, old).await {
            Ok(Retaken::Held(held)) => return Some(held),
            Ok(Retaken::Others) => return None,
            Ok(Retaken::OldEnds) => {}
            Err(error) => tracing::warn!(error = %chain(&error), "the relay's id cannot be held"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

enum Retaken {
    Held(Held),
    /// The server still had the older session, and ends it now.
    OldEnds,
    Others,
}

async fn retake(
    config: &Config,
    tls: &MakeRustlsConnect,
    relay_id: &str,
    old: i32,
) -> Result<Retaken, Error> {
    if let Some(held) = lock(config, tls.clone(), relay_id).await? {
        return Ok(Retaken::Held(held));
    }
    let (client, connection) = config.connect(tls.clone()).await?;
    let connection = tokio::spawn(connection);
    let ended = client.query(END_OLD, &[&relay_id, &SEED, &old]).await?;
    connection.abort();
    if !ended.is_empty() {
        return Ok(Retaken::OldEnds);
    }
    // The older session may have ended in between.
    Ok(lock(config, tls.clone(), relay_id).await?.map_or(Retaken::Others, Retaken::Held))
}

async fn lock(config: &Config, tls: MakeRustlsConnect, relay_id: &str) -> Result<Option<Held>, Error> {
    let (client, connection) = config.connect(tls).await?;
    let connection = tokio::spawn(connection);
    client.batch_execute(SETTINGS).await?;
    let sql = "SELECT pg_try_advisory_lock(hashtextextended($1, $2)), pg_backend_pid()";
    let row = client.query_one(sql, &[&relay_id, &SEED]).await?;
    let (is_ours, pid): (bool, i32) = (row.try_get(0)?, row.try_get(1)?);
    Ok(is_ours.then_some(Held { _client: client, connection, pid }))
}
