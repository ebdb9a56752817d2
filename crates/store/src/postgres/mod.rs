//! The store in a PostgreSQL database, which many relays share.
//!
//! Writes of tasks wait in one queue; a thread takes what waits, sends it to the server as one transaction without waiting in between,
//! and answers when that is durable, so that many callers share one flush. Whoever appends events holds the database's commit lock from
//! there to the transaction's end: so the sequence of events becomes visible in its own order, whichever relay writes. Other calls go to
//! a few connections of their own.

mod artifacts;
mod attempts;
mod chain;
mod claim;
mod failure;
mod idempotency;
mod keys;
mod listener;
mod receipts;
mod row;
mod schema;
mod secrets;
mod sessions;
mod tasks;
mod transfer;
mod usage;
mod webhooks;
mod writer;

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use deadpool_postgres::{Hook, HookError, Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime};
use tokio::sync::watch;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Config, Row};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::{Options, Store, StoreError, WriteStats};
use claim::Claim;
use failure::{Failed, connecting, is_lost, reading, why, writing};
use listener::Listener;
use writer::Writer;

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection is silent before it is asked whether it lives, where the connection string does not say: the listener's
/// may be silent for long, and the system's two hours are longer than followers can wait.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// How the writer's connection is set up besides: it looks up single rows by their keys only, also where a plan was made when a table
/// was small, and plans once.
const WRITER_SETTINGS: &str = "; SET enable_seqscan = off; SET plan_cache_mode = force_generic_plan";

/// A statement's parameters.
type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

/// The store in a PostgreSQL database.
pub struct Postgres {
    database: String,
    config: Config,
    tls: MakeRustlsConnect,
    pool: Pool,
    writer: Writer,
    listener: Listener,
    /// The relay's id, once it is taken.
    claim: Mutex<Option<Claim>>,
    /// Changes whenever events may have been committed, here or by another relay.
    committed: watch::Sender<()>,
}

impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Postgres").field("database", &self.database).finish_non_exhaustive()
    }
}

impl Postgres {
    /// Opens the store in the database of a connection string, `postgres://user:password@host:port/database?options` or `key=value`
    /// pairs, and makes its tables where there are none.
    ///
    /// Connections that leave this machine are encrypted, and the server's certificate is checked against the system's authorities (or
    /// those of the file that `SSL_CERT_FILE` names), unless the string says `sslmode=disable`.
    ///
    /// # Errors
    /// [`StoreError::Backend`] if the string is none or the database cannot be reached, [`StoreError::Schema`] if a newer version made
    /// its tables.
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        Self::connect_with(url, Options::default()).await
    }

    /// Opens the store of a connection string under other limits.
    ///
    /// # Errors
    /// As [`Postgres::connect`].
    pub async fn connect_with(url: &str, options: Options) -> Result<Self, StoreError> {
        let config = config(url)?;
        let database = config.get_dbname().unwrap_or_default().to_owned();
        let tls = tls()?;
        let pool = |size, settings| pool(config.clone(), tls.clone(), &options, size, settings);
        // The writer never waits for readers.
        let (writers, pool) = (pool(1, WRITER_SETTINGS)?, pool(options.readers.max(1), "")?);
        // The first connection says why there is none; later ones are tried again and again.
        let mut client = pool.get().await.map_err(|error| {
            StoreError::Backend(Arc::new(Failed(format!("the database cannot be opened: {}", why(&error)))))
        })?;
        schema::migrate(&mut client, &database).await?;
        drop(client);
        let committed = watch::Sender::new(());
        let writer = Writer::start(writers, &options)?;
        let listener = Listener::start(config.clone(), tls.clone(), committed.clone());
        let claim = Mutex::default();
        Ok(Self { database, config, tls, pool, writer, listener, claim, committed })
    }

    /// What this store's writer has done since it was opened.
    pub fn write_stats(&self) -> WriteStats {
        self.writer.stats()
    }

    async fn client(&self) -> Result<Object, StoreError> {
        self.pool.get().await.map_err(connecting)
    }

    /// Reads. A connection that turns out to be lost is replaced once.
    async fn query(&self, sql: &str, params: Params<'_>) -> Result<Vec<Row>, StoreError> {
        match self.try_query(sql, params).await? {
            Err(error) if is_lost(&error) => self.try_query(sql, params).await?.map_err(reading),
            result => result.map_err(reading),
        }
    }

    async fn try_query(
        &self,
        sql: &str,
        params: Params<'_>,
    ) -> Result<Result<Vec<Row>, tokio_postgres::Error>, StoreError> {
        let client = self.client().await?;
        let statement = match client.prepare_cached(sql).await {
            Ok(statement) => statement,
            Err(error) => return Ok(Err(error)),
        };
        Ok(client.query(&statement, params).await)
    }

    /// Reads the one row that there is at most.
    async fn query_opt(&self, sql: &str, params: Params<'_>) -> Result<Option<Row>, StoreError> {
        Ok(self.query(sql, params).await?.into_iter().next())
    }

    /// Carries out one statement that writes, and answers what it returns. It is one transaction.
    async fn write(&self, sql: &str, params: Params<'_>) -> Result<Vec<Row>, StoreError> {
        let client = self.client().await?;
        let statement = client.prepare_cached(sql).await.map_err(reading)?;
        client.query(&statement, params).await.map_err(writing)
    }

    /// Carries out one statement that writes, and answers how many rows it changed.
    async fn execute(&self, sql: &str, params: Params<'_>) -> Result<u64, StoreError> {
        let client = self.client().await?;
        let statement = client.prepare_cached(sql).await.map_err(reading)?;
        client.execute(&statement, params).await.map_err(writing)
    }
}

#[async_trait]
impl Store for Postgres {
    async fn close(&self) {
        self.listener.stop();
        self.writer.close().await;
        self.pool.close();
        self.claim.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

fn config(url: &str) -> Result<Config, StoreError> {
    let failed = |why: String| StoreError::Backend(Arc::new(Failed(why)));
    let mut config: Config =
        url.parse().map_err(|error| failed(format!("the database's connection string: {error}")))?;
    if config.get_application_name().is_none() {
        config.application_name("compute-relay");
    }
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(CONNECT_TIMEOUT);
    }
    if config.get_keepalives_idle() == Config::new().get_keepalives_idle() {
        config.keepalives_idle(KEEPALIVE);
    }
    if config.get_tcp_user_timeout().is_none() {
        config.tcp_user_timeout(KEEPALIVE);
    }
    if config.get_ssl_mode() == SslMode::Prefer {
        let is_local = config.get_hosts().iter().all(is_local);
        config.ssl_mode(if is_local { SslMode::Disable } else { SslMode::Require });
    }
    Ok(config)
}

/// Whether a connection to this host stays on this machine.
fn is_local(host: &Host) -> bool {
    match host {
        Host::Tcp(name) => {
            name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
        }
        #[cfg(unix)]
        Host::Unix(_) => true,
    }
}

fn tls() -> Result<MakeRustlsConnect, StoreError> {
    let mut roots = rustls::RootCertStore::empty();
    // A machine without any is found out by the connection that needs one.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| StoreError::Backend(Arc::new(error)))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}

fn pool(
    config: Config,
    tls: MakeRustlsConnect,
    options: &Options,
    size: usize,
    more: &str,
) -> Result<Pool, StoreError> {
    let manager_config = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    let settings = settings(options) + more;
    Pool::builder(Manager::from_config(config, tls, manager_config))
        .max_size(size)
        .wait_timeout(Some(options.wait))
        .create_timeout(Some(options.wait))
        .recycle_timeout(Some(options.wait))
        .runtime(Runtime::Tokio1)
        .post_create(Hook::async_fn(move |client, _| {
            let settings = settings.clone();
            Box::pin(async move { client.batch_execute(&settings).await.map_err(HookError::Backend) })
        }))
        .build()
        .map_err(|error| StoreError::Backend(Arc::new(error)))
}

/// How each connection is set up: a commit that was answered is on disk, no lock is held for a client that has gone, and pages of a few
/// rows are not planned like reports on whole tables.
fn settings(options: &Options) -> String {
    format!(
        "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off';
         SET default_transaction_isolation = 'read committed'; SET jit = off; SET max_parallel_workers_per_gather = 0;
         SET lock_timeout = {wait}; SET statement_timeout = {answer}; SET idle_in_transaction_session_timeout = {wait}",
        wait = options.wait.as_millis().max(1),
        answer = options.answer.as_millis().max(1),
    )
}
