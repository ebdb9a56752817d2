//! The agent as a whole: built from its configuration, run until it is told to stop or must not go on.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use daemon::drain;
use link::ConnectError;
use rpc::link::AttemptKey;
use rustls::ClientConfig;
use taskmarket::{Bytes32, Timestamp};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wallet::{SignError, Wallet};

use crate::announce::announce;
use crate::attempts::Attempts;
use crate::config::Config;
use crate::driver::Driver;
use crate::home::{Home, HomeError};
use crate::host::{Host, watch_node};
use crate::http_client::{ClientError, client};
use crate::journal::{Entry, Journal};
use crate::money::{self, Money, MoneyError};
use crate::node::NodeClient;
use crate::relay::RelayClient;
use crate::session::{connect_hint, stay_connected};

/// How long the agent's own tasks may take to end once all is over.
const END_PATIENCE: Duration = Duration::from_secs(5);
/// How often old entries of the journal are looked for.
const PRUNE_EVERY: Duration = Duration::from_secs(3600);

/// What all parts of the agent share.
pub(crate) struct Shared {
    pub(crate) config: Arc<Config>,
    /// The money of settled tasks, where the operator takes such. Above `home`: its own lock in the folder is let go first.
    pub(crate) money: Option<Arc<Money>>,
    /// Locks the data folder until the last task of the agent has ended.
    pub(crate) home: Home,
    pub(crate) tls: Arc<ClientConfig>,
    pub(crate) node: Arc<NodeClient>,
    pub(crate) relay: RelayClient,
    pub(crate) journal: Journal,
    pub(crate) attempts: Attempts,
    pub(crate) host: watch::Receiver<Host>,
    /// Cancelled when no more offers are taken.
    pub(crate) draining: CancellationToken,
    /// Cancelled when everything is to end.
    pub(crate) closing: CancellationToken,
    /// Owns what runs beside the connection: the watch of the node, the admissions, the drivers.
    pub(crate) tasks: TaskTracker,
}

impl Shared {
    pub(crate) fn wallet(&self) -> &Wallet {
        &self.config.wallet
    }
}

/// The host's clock.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix(since.as_secs())
}

/// An agent that holds its data folder and has not begun.
pub struct Agent {
    shared: Arc<Shared>,
    host: watch::Sender<Host>,
}

/// Why an agent cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The data folder.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] daemon::tls::TlsError),
    /// HTTP.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The money of settled tasks.
    #[error(transparent)]
    Money(#[from] MoneyError),
}

impl BuildError {
    /// Whether the command line is to blame, rather than the machine.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Tls(daemon::tls::TlsError::CaFile { .. }) | Self::Money(MoneyError::Rpc(_)))
    }
}

/// Why an agent stopped of its own accord.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The journal cannot be read.
    #[error("the journal cannot be read: {0}")]
    Journal(#[from] std::io::Error),
    /// The money of settled tasks cannot be kept.
    #[error(transparent)]
    Money(#[from] MoneyError),
    /// Another relay answers than the one meant.
    #[error(
        "the relay calls itself {actual:?}, not {expected:?}\nhint: check --relay and --relay-id; its /v1/info tells its id"
    )]
    WrongRelay {
        /// The id that `--relay-id` gave.
        expected: String,
        /// The id that the relay gave.
        actual: String,
    },
    /// The relay serves no domain that this agent signs for.
    #[error("the relay does not serve unsettled tasks, the only ones that this agent takes")]
    NoCommonDomain,
    /// A newer connection of the same key and node id took over.
    #[error(
        "another agent with this provider key and node id took over\nhint: a copy of the data folder must not be used twice; give \
         each host a --data folder of its own"
    )]
    Superseded,
    /// The relay does not want this agent, and asking again would not change that.
    #[error("the relay refuses this agent: {code}: {message}")]
    Refused {
        /// The relay's stable word.
        code: String,
        /// Its reason.
        message: String,
    },
    /// The relay cannot be reached, and trying again would not change that.
    #[error("{}\nhint: {}", .0, connect_hint(.0))]
    Connect(ConnectError),
    /// The node sees no GPU, and the operator tells only a part of what is to be announced.
    #[error(
        "{given} is given, but the compute node sees no GPU, and {missing} is missing\nhint: give both to announce a GPU on your \
         word, or neither to announce none"
    )]
    PartOfGpu {
        /// The flag that is given.
        given: &'static str,
        /// The other one.
        missing: &'static str,
    },
    /// The registration cannot be signed.
    #[error(transparent)]
    Sign(#[from] SignError),
}

/// Opens the data folder and sets the clients up. Nothing is sent yet.
///
/// # Errors
/// [`BuildError`]: the folder is in use or cannot be used, or TLS cannot be set up.
pub fn build(config: Config) -> Result<Agent, BuildError> {
    let home = Home::open(&config.data)?;
    let tls = Arc::new(daemon::tls::client_config(config.ca_file.as_deref())?);
    let http = client(&tls)?;
    let (host, seen) = watch::channel(Host::default());
    let node = NodeClient::new(http.clone(), config.compute_url.clone(), config.compute_token_file.clone());
    let money =
        config.escrow.clone().map(|escrow| Money::open(escrow, &config.data, &tls, config.wallet.clone()));
    let shared = Shared {
        money: money.transpose()?.map(Arc::new),
        tls,
        node: Arc::new(node),
        relay: RelayClient::new(http, config.relay.api().clone()),
        journal: Journal::new(home.attempts.clone()),
        home,
        attempts: Attempts::new(),
        host: seen,
        draining: CancellationToken::new(),
        closing: CancellationToken::new(),
        tasks: TaskTracker::new(),
        config: Arc::new(config),
    };
    Ok(Agent { shared: Arc::new(shared), host })
}

impl Agent {
    /// Who this host is to relays.
    pub fn node_id(&self) -> Bytes32 {
        self.shared.home.node_id
    }

    /// Works until `shutdown`, and then lets running attempts finish for [`Config::drain`], and with them what the chain waits for. The
    /// journal and the book keep the rest.
    ///
    /// # Errors
    /// [`RunError`]: the agent must not go on without somebody's doing. Settled attempts are proven or given back before it ends. A relay
    /// or a node that is away is no error.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), RunError> {
        let Self { shared, host } = self;
        let config = &shared.config;
        warn_of_clear_text(config);
        tracing::info!(provider = %config.wallet.address(), node_id = %shared.home.node_id, "starting");
        // Whatever ends this function, also being dropped, ends what it started.
        let closing = shared.closing.clone().drop_guard();
        shared.tasks.spawn(watch_node(
            Arc::clone(&shared.node),
            Arc::clone(config),
            host,
            shared.closing.clone(),
        ));
        shared.tasks.spawn(announce(Arc::clone(&shared)));
        restore(&shared).await?;
        let result = {
            let mut connection = pin!(connect(&shared));
            let mut stopped = pin!(stop(&shared, shutdown));
            tokio::select! {
                result = &mut connection => {
                    if let Err(error) = &result {
                        tokio::select! {
                            () = let_go(&shared, error) => {}
                            () = &mut stopped => {}
                        }
                    }
                    result
                }
                () = &mut stopped => connection.await,
            }
        };
        warn_of_stakes(&shared).await;
        drop(closing);
        shared.tasks.close();
        drain("the agent's tasks", END_PATIENCE, shared.tasks.wait()).await;
        tracing::info!("stopped");
        result
    }
}

/// Takes up the attempts that the journal holds.
async fn restore(shared: &Arc<Shared>) -> Result<(), RunError> {
    let entries = shared.journal.unfinished(oldest(shared)).await?;
    if let Some(money) = &shared.money {
        money.restore().await?;
        let worked_on: Vec<_> = entries.iter().map(Entry::key).collect();
        money.give_up_others(&worked_on).await.map_err(MoneyError::from)?;
        let keeper = Arc::clone(shared);
        shared.tasks.spawn(async move {
            if let Some(money) = &keeper.money {
                money::run(money, &keeper.closing).await;
            }
        });
    }
    for entry in entries {
        let key = entry.key();
        if entry.domain.is_settled()
            && shared.money.as_ref().map(|money| money.domain()) != Some(entry.domain)
        {
            tracing::warn!(task = %key.task_id, attempt = key.attempt, "left alone: --escrow does not name its contract");
            continue;
        }
        tracing::info!(task = %key.task_id, attempt = key.attempt, "taken up again");
        let place = shared.attempts.restore(entry.accept.clone());
        shared.tasks.spawn(Driver { shared: Arc::clone(shared), place, entry, begun: Instant::now() }.run());
    }
    shared.tasks.spawn(prune(Arc::clone(shared)));
    Ok(())
}

/// Forgets old entries now and then.
async fn prune(shared: Arc<Shared>) {
    while shared.closing.run_until_cancelled(tokio::time::sleep(PRUNE_EVERY)).await.is_some() {
        if let Err(error) = shared.journal.unfinished(oldest(&shared)).await {
            tracing::warn!(%error, "old entries of the journal cannot be removed");
        }
    }
}

fn oldest(shared: &Shared) -> Timestamp {
    Timestamp::from_unix(now().unix().saturating_sub(shared.config.timing.retention.as_secs()))
}

/// Waits for the node, which tells what to register with, and stays connected from then on.
async fn connect(shared: &Arc<Shared>) -> Result<(), RunError> {
    let mut host = shared.host.clone();
    let known = host.wait_for(|host| host.metadata.is_some());
    if shared.closing.run_until_cancelled(known).await.is_none() {
        return Ok(());
    }
    if let Some((given, missing)) = host.borrow().part_of_gpu(&shared.config.gpu) {
        return Err(RunError::PartOfGpu { given, missing });
    }
    stay_connected(shared).await
}

/// Waits for `shutdown`, takes no more offers, lets running attempts and their money come to rest for a while, and closes.
async fn stop(shared: &Shared, shutdown: CancellationToken) {
    shutdown.cancelled().await;
    shared.draining.cancel();
    let rest = async {
        shared.attempts.none_left().await;
        if let Some(money) = &shared.money {
            money.at_rest().await;
        }
    };
    drain("running attempts", shared.config.drain, rest).await;
    shared.closing.cancel();
}

/// Sees to it that no stake hangs on an agent which no relay listens to any more: what has a result is proven, the rest is given back.
/// That ends with the last lease at the latest.
async fn let_go(shared: &Shared, error: &RunError) {
    let Some(money) = &shared.money else { return };
    shared.draining.cancel();
    let exposed = money.exposed().await;
    if let Some(until) = exposed.iter().map(|(_, lease_end)| *lease_end).max() {
        tracing::error!(%error, attempts = exposed.len(), %until, "no more tasks are taken; the agent ends once none of its stakes can be lost");
    }
    while !money.exposed().await.is_empty() {
        for key in money.unproven().await {
            shared.attempts.call_off_unfinished(&key);
        }
        money.pause().await;
    }
    drain("transactions", shared.config.drain, money.at_rest()).await;
}

/// Says which stakes are lost unless the agent is started again in time.
async fn warn_of_stakes(shared: &Shared) {
    let Some(money) = &shared.money else { return };
    for (AttemptKey { task_id, attempt }, until) in money.owed().await {
        tracing::error!(task = %task_id, attempt, %until, "the chain waits for this agent: start it again before the lease ends, or the stake is lost");
    }
}

/// Tokens go to the relay and to the node: say so where others on the way could read them.
fn warn_of_clear_text(config: &Config) {
    for url in [config.relay.api(), &config.compute_url] {
        let is_loopback = match url.host() {
            Some(url::Host::Domain(name)) => name == "localhost",
            Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
            Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
            None => false,
        };
        if url.scheme() == "http" && !is_loopback {
            tracing::warn!(%url, "this connection is not encrypted: use it on a trusted network only");
        }
    }
}
