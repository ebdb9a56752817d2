//! What evidence says, in sentences.

use taskmarket::{
    Address, ChainChange, ChainFact, ChainHead, Event, ReleaseReason, Resolution, Status, TaskRecord,
    Timestamp, Word, chain_due, keccak256,
};

use super::{Evidence, EvidenceEvent, SessionEvidence, Statement};

/// Said of what nobody did: there is no signature under nothing.
const ABSENCE: &str = "so says the relay's record; absence is proved by the chain alone";

/// What the document as a whole says.
pub(super) fn frame(evidence: &Evidence) -> Statement {
    let Evidence { relay_id, relay_version, status, events, .. } = evidence;
    let text = format!(
        "relay {relay_id:?} (version {relay_version:?}) says that the task is {status}, and that nothing followed the last of these {} events",
        events.len()
    );
    Statement { at: evidence.written_at, word: Word::Relay, signer: None, text }
}

/// What an event says. `before` is the task as it was until then.
pub(super) fn event(entry: &EvidenceEvent, before: &TaskRecord) -> Statement {
    let (signer, text) = match &entry.event {
        Event::Published { .. } => {
            let requester = before.task.requester;
            (Some(requester), format!("requester {requester} published task {}", before.id))
        }
        Event::Accepted(accept) => {
            let message = &accept.message;
            let (provider, attempt, until) = (message.provider, message.attempt, message.lease_until);
            (Some(provider), format!("provider {provider} took attempt {attempt}, until {until}"))
        }
        Event::AttemptFailed(fail) => {
            let message = &fail.message;
            let (provider, attempt) = (message.provider, message.attempt);
            let text = format!(
                "provider {provider} gave attempt {attempt} up: {} ({:?})",
                message.code, message.message
            );
            (Some(provider), text)
        }
        Event::Submitted(proof) => {
            let message = &proof.message;
            let text = format!(
                "provider {} delivered result {} in attempt {}, made from {} to {} on {:?}",
                message.provider,
                message.result_hash,
                message.attempt,
                message.started_at,
                message.finished_at,
                message.gpu_name
            );
            (Some(message.provider), text)
        }
        Event::Approved(approve) => {
            let requester = before.task.requester;
            let text = format!("requester {requester} approved result {}", approve.message.result_hash);
            (Some(requester), text)
        }
        Event::Disputed(dispute) => {
            let requester = before.task.requester;
            let message = &dispute.message;
            let text = format!(
                "requester {requester} disputed result {}: {:?}",
                message.result_hash, message.reason
            );
            (Some(requester), text)
        }
        Event::Resolved(resolve) => {
            let arbiter = before.task.arbiter;
            let share = resolve.message.provider_bps;
            let text = format!("arbiter {arbiter} gave {share} of 10000 parts to the provider");
            (Some(arbiter), text)
        }
        Event::Cancelled(_) => {
            let requester = before.task.requester;
            (Some(requester), format!("requester {requester} withdrew the task"))
        }
        Event::LeaseLapsed => (None, lapsed(before)),
        Event::Expired => {
            (None, format!("no proof came before the deadline, {}: {ABSENCE}", before.task.deadline))
        }
        Event::WindowClosed => (None, format!("the requester did not dispute in time: {ABSENCE}")),
        Event::ArbiterTimedOut => (None, format!("the arbiter did not decide in time: {ABSENCE}")),
        Event::Released { attempt, reason } => (None, released(before, *attempt, *reason)),
        Event::Unworkable => (None, unworkable(before)),
        Event::Chain(fact) => (None, chain(fact)),
        Event::ChainTime(head) => (None, chain_time(before, head)),
    };
    Statement { at: entry.at, word: entry.word, signer, text }
}

fn lapsed(before: &TaskRecord) -> String {
    match before.lease() {
        Some(lease) => format!(
            "provider {} brought no proof of attempt {} before its lease ended, {}: {ABSENCE}",
            lease.provider, lease.attempt, lease.until
        ),
        None => format!("no proof came before the lease ended: {ABSENCE}"),
    }
}

fn released(before: &TaskRecord, attempt: u32, reason: ReleaseReason) -> String {
    let provider = before.provider.map_or(Address::ZERO, |provider| provider.0);
    let what = match reason {
        ReleaseReason::SessionLost => "the session was lost",
        ReleaseReason::AttemptDropped => "the host no longer held the attempt",
    };
    format!(
        "the relay took attempt {attempt} from provider {provider}, because {what}; nothing else proves it"
    )
}

fn unworkable(before: &TaskRecord) -> String {
    let said: Vec<_> =
        before.faults.iter().map(|fault| format!("provider {} ({})", fault.provider, fault.code)).collect();
    format!(
        "the relay ended the task, which fails anywhere as {} signed; that no other provider was there for it is the relay's word",
        said.join(", ")
    )
}

fn chain_time(before: &TaskRecord, head: &ChainHead) -> String {
    let due = chain_due(before).unwrap_or(head.block_time);
    let what = match before.status() {
        Status::Open => "nobody had taken the task by its deadline",
        Status::Accepted => "no proof came before the lease or the deadline ended",
        Status::Submitted => "the time to dispute the result, or to prove it on chain, ended",
        Status::Disputed => "the arbiter did not decide in time",
        Status::Completed | Status::Resolved | Status::Cancelled | Status::Expired | Status::Failed => {
            "the time ended"
        }
    };
    format!("{what}, {due}: the chain says so up to block {} of {}", head.block, head.block_time)
}

fn chain(fact: &ChainFact) -> String {
    let what = match fact.change {
        ChainChange::Funded => "the budget was paid in".to_owned(),
        ChainChange::Accepted { provider, attempt, lease_until } => {
            format!("provider {provider} was bound to attempt {attempt}, until {lease_until}")
        }
        ChainChange::Failed { attempt, .. } => {
            format!("attempt {attempt} was given up; its stake is free again")
        }
        ChainChange::Lapsed { provider, attempt } => {
            format!(
                "the lease of {provider} on attempt {attempt} had lapsed; its stake went to the requester"
            )
        }
        ChainChange::Proven { attempt, result_hash, dispute_until, .. } => {
            format!(
                "a proof of attempt {attempt} came, with result {result_hash}; it may be disputed until {dispute_until}"
            )
        }
        ChainChange::Paid { provider, .. } => format!("{provider} was paid"),
        ChainChange::Disputed { resolve_until, .. } => {
            format!("the requester disputed; the arbiter has until {resolve_until}")
        }
        ChainChange::Split { resolution: Resolution::Arbiter { provider_bps }, .. } => {
            format!("the arbiter gave {provider_bps} of 10000 parts to the provider")
        }
        ChainChange::Split { resolution: Resolution::Timeout, .. } => {
            "the money was split, as the arbiter said nothing in time".to_owned()
        }
        ChainChange::Refunded => "the requester has the budget back".to_owned(),
        ChainChange::Cancelled => "the requester cancelled".to_owned(),
    };
    format!(
        "{what}, by transaction {} (log {} of block {}, {}): look it up there",
        fact.tx, fact.log_index, fact.block, fact.block_hash
    )
}

/// What a session says: the provider's word for it, where the relay kept that, and the relay's.
pub(super) fn session(session: &SessionEvidence) -> Vec<Statement> {
    let SessionEvidence { session_id, provider, node_id, relay_id, connected_at, .. } = session;
    let signed = session.registration.as_ref().map(|registration| {
        let (message, at) = (&registration.mutation, registration.mutation.timestamp);
        let text = format!(
            "provider {provider} registered host {node_id} with relay {relay_id:?}, which it dialled as {:?}, as session {session_id}",
            message.relay_url
        );
        Statement { at, word: Word::Signature, signer: Some(*provider), text }
    });
    let end = match (session.disconnected_at, &session.reason) {
        (Some(at), Some(reason)) => format!("until {at} ({reason:?})"),
        (Some(at), None) => format!("until {at}"),
        (None, _) => "and lasts".to_owned(),
    };
    let offered = match &session.registration {
        Some(_) => String::new(),
        None => format!(", offering what has the Keccak-256 {}", keccak256(session.metadata.as_bytes())),
    };
    let text = format!(
        "session {session_id} of host {node_id} of provider {provider} with relay {relay_id:?}, the host's {}, began {connected_at} {end}{offered}",
        Ordinal(session.generation)
    );
    let said = Statement { at: last_change(session), word: Word::Relay, signer: None, text };
    signed.into_iter().chain([said]).collect()
}

fn last_change(session: &SessionEvidence) -> Timestamp {
    session.disconnected_at.unwrap_or(session.connected_at)
}

/// A number as people count.
struct Ordinal(u64);

impl std::fmt::Display for Ordinal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ending = match (self.0 % 10, self.0 % 100) {
            (_, 11..=13) => "th",
            (1, _) => "st",
            (2, _) => "nd",
            (3, _) => "rd",
            _ => "th",
        };
        write!(f, "{}{ending}", self.0)
    }
}
