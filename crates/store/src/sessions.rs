//! The sessions of providers' hosts, and whether each host takes work.

use async_trait::async_trait;
use taskmarket::{Address, Bytes32, NodeStatus, Timestamp};

use crate::StoreError;

/// Why a session ended that a newer one of the same host replaced.
pub const SUPERSEDED: &str = "superseded";

/// Sessions that one write removes at most.
pub(crate) const PRUNED_AT_ONCE: u64 = 1000;

/// The sessions of providers' hosts.
///
/// Every method fails with [`StoreError`] as its variants say.
#[async_trait]
pub trait Sessions: Send + Sync {
    /// Keeps a new session, ends the host's older ones as [`SUPERSEDED`], and answers the session's generation: it counts the sessions
    /// of this provider and host from 1, so that of two the greater one is the newer.
    async fn open_session(&self, session: NewSession) -> Result<u64, StoreError>;

    /// Replaces the metadata of a session that has not ended. `false` if there is none such; then nothing changes.
    async fn update_session_metadata(
        &self,
        session_id: &str,
        metadata_json: &str,
    ) -> Result<bool, StoreError>;

    /// Ends a session. `false` if it is unknown or has ended already; then nothing changes.
    async fn close_session(&self, session_id: &str, at: Timestamp, reason: &str) -> Result<bool, StoreError>;

    /// Takes a relay's id for as long as the store is open: its sessions are nobody else's to end. `false` if another process has it.
    async fn claim_relay(&self, relay_id: &str) -> Result<bool, StoreError>;

    /// Waits until a relay's id that was [taken](Self::claim_relay) is another process's, for ever where that cannot be. A store that is
    /// out of reach for a while takes nothing away, for nobody can write to it meanwhile.
    async fn claim_lost(&self);

    /// The clock by which relays live or are silent: the store's own where relays on several machines share it, for their clocks differ;
    /// otherwise `own`.
    async fn relays_clock(&self, own: Timestamp) -> Result<Timestamp, StoreError>;

    /// Keeps that a relay lived at this time of the [relays' clock](Self::relays_clock).
    async fn relay_lives(&self, relay_id: &str, at: Timestamp) -> Result<(), StoreError>;

    /// Ends all sessions at a relay that have not ended, and answers how many: for its start, when none can be alive. They ended at `at`,
    /// or when the relay [lived](Self::relay_lives) last, if that is known.
    async fn close_sessions_of(&self, relay_id: &str, at: Timestamp, reason: &str)
    -> Result<u64, StoreError>;

    /// Ends the sessions that have not ended at relays that [lived](Self::relay_lives) last before `silent_since`, as of then, and answers
    /// how many. Relays that never said that they live are passed over.
    async fn close_sessions_of_silent(
        &self,
        silent_since: Timestamp,
        reason: &str,
    ) -> Result<u64, StoreError>;

    /// Which of these sessions have ended for this reason.
    async fn sessions_ended_for(
        &self,
        session_ids: Vec<String>,
        reason: &str,
    ) -> Result<Vec<String>, StoreError>;

    /// The relays that lived at this time or later.
    async fn living_relays(&self, since: Timestamp) -> Result<Vec<String>, StoreError>;

    /// A provider's sessions, newest first, `limit` at most.
    async fn sessions(&self, provider: Address, limit: usize) -> Result<Vec<StoredSession>, StoreError>;

    /// The newest session of a host, which may have ended.
    async fn newest_session(
        &self,
        provider: Address,
        node_id: Bytes32,
    ) -> Result<Option<StoredSession>, StoreError>;

    /// A provider's sessions that had not ended before `since`, newest first, `limit` at most.
    async fn sessions_since(
        &self,
        provider: Address,
        since: Timestamp,
        limit: usize,
    ) -> Result<Vec<StoredSession>, StoreError>;

    /// Removes the sessions that ended before a time, and answers how many. One that lasts is never removed.
    ///
    /// They go in parts, each by itself, so that other writes need not wait for all; after an error, some are gone. A host with none
    /// left is counted from 1 again.
    async fn prune_sessions(&self, before: Timestamp) -> Result<u64, StoreError>;

    /// Keeps what a provider signed of a host. `false`, and nothing changes, if it is not newer than what is kept.
    async fn set_node_status(
        &self,
        provider: Address,
        node_id: Bytes32,
        status: NodeStatus,
        issued_at: Timestamp,
    ) -> Result<bool, StoreError>;

    /// What a provider last signed of a host.
    async fn node_status(
        &self,
        provider: Address,
        node_id: Bytes32,
    ) -> Result<Option<NodeStatus>, StoreError>;
}

/// A session that begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSession {
    /// Its id, of which no other session has the same.
    pub session_id: String,
    /// Whose host.
    pub provider: Address,
    /// Which host.
    pub node_id: Bytes32,
    /// At which relay.
    pub relay_id: String,
    /// The metadata text that the provider signed for.
    pub metadata_json: String,
    /// When it begins.
    pub at: Timestamp,
}

/// A session as kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredSession {
    /// Its id.
    pub session_id: String,
    /// Whose host.
    pub provider: Address,
    /// Which host.
    pub node_id: Bytes32,
    /// At which relay.
    pub relay_id: String,
    /// The metadata text that the provider signed for.
    pub metadata_json: String,
    /// Counts the host's sessions, from 1.
    pub generation: u64,
    /// When it began.
    pub connected_at: Timestamp,
    /// When and why it ended; `None` while it lasts.
    pub ended: Option<(Timestamp, String)>,
}

/// Reads a host status's word.
pub(crate) fn parse_node_status(word: &str) -> Result<NodeStatus, StoreError> {
    [NodeStatus::Online, NodeStatus::Draining, NodeStatus::Offline]
        .into_iter()
        .find(|status| status.as_str() == word)
        .ok_or_else(|| StoreError::corrupt(format_args!("{word:?} is not a host's status")))
}
