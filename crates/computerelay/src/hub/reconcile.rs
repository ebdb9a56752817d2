//! Comparing what a host that (re)connects holds with what the store says. The state counts, not the way to it: no log is replayed.

use std::collections::HashSet;

use rpc::link::{AttemptKey, Register};
use scheduler::NodeKey;
use store::StoredTask;
use taskmarket::{ReleaseReason, Timestamp};

use super::Hub;
use crate::error::MarketError;

/// Tasks that are read from the store at once.
const PAGE: usize = 256;
/// An attempt accepted this shortly before the host was greeted may have been on its way when the host wrote its list, in seconds. Its
/// reports will tell.
const SETTLE_SECS: u64 = 2;

/// Releases the attempts that a host should hold and does not list, and answers those that it holds in vain.
///
/// # Errors
/// The store fails.
pub(super) async fn returned(
    hub: &Hub,
    key: NodeKey,
    register: &Register,
    greeted_at: Timestamp,
) -> Result<Vec<AttemptKey>, MarketError> {
    let mut drop = Vec::new();
    for held in &register.attempts {
        let attempt = held.progress.attempt;
        let stored = hub.market.task(held.task_id).await?;
        if stored.is_some_and(|stored| is_wanted(&stored, key, attempt)) {
            hub.floor().claim(held.task_id, attempt, key);
        } else {
            drop.push(AttemptKey { task_id: held.task_id, attempt });
        }
    }
    let listed: HashSet<AttemptKey> = register
        .attempts
        .iter()
        .map(|held| AttemptKey { task_id: held.task_id, attempt: held.progress.attempt })
        .chain(register.unacked_proofs.iter().copied())
        .collect();
    release_unlisted(hub, key, &listed, greeted_at).await?;
    Ok(drop)
}

/// Whether the host's attempt is the one that counts: it holds the task, or its proof stands and only the acknowledgement is missing.
fn is_wanted(stored: &StoredTask, key: NodeKey, attempt: u32) -> bool {
    let record = &stored.record;
    match (record.lease(), record.submission()) {
        (Some(lease), _) => {
            lease.provider == key.provider
                && lease.attempt == attempt
                && stored.node.is_none_or(|node| node == key.node_id)
        }
        (None, Some(submission)) => {
            let proof = &submission.proof.message;
            proof.provider == key.provider && proof.attempt == attempt
        }
        (None, None) => false,
    }
}

async fn release_unlisted(
    hub: &Hub,
    key: NodeKey,
    listed: &HashSet<AttemptKey>,
    greeted_at: Timestamp,
) -> Result<(), MarketError> {
    let mut cursor = None;
    loop {
        let page = hub.market.store().held(Some(key.provider), cursor, PAGE).await?;
        for stored in &page.tasks {
            let Some(lease) = stored.record.lease() else { continue };
            let attempt = AttemptKey { task_id: stored.record.id, attempt: lease.attempt };
            if stored.node == Some(key.node_id)
                && !listed.contains(&attempt)
                && lease.since.plus(SETTLE_SECS) <= greeted_at
            {
                hub.release(attempt.task_id, attempt.attempt, ReleaseReason::AttemptDropped).await;
            }
        }
        cursor = page.next;
        if cursor.is_none() {
            return Ok(());
        }
    }
}
