//! Sessions of hosts: opened with a generation, kept alive by heartbeats, reconciled when they begin, and mourned when they end.

use std::collections::BTreeSet;

use scheduler::NodeKey;
use taskmarket::{Mutation, ReleaseReason, TaskId};

use super::floor::{GRACE, Session};
use super::{Relay, Reply};
use crate::context::{Context, Millis, Party};
use crate::coverage::Fault;
use crate::message::{AttemptKey, Intent, Message};
use crate::store::Stored;

/// The longest silence of a host whose session lives.
const SILENCE: Millis = 30_000;
/// How long a host may leave an attempt out of its reports.
const SETTLE: Millis = 5_000;
/// An attempt accepted this shortly before a host was greeted may be missing from its list, in seconds.
const SETTLE_SECS: u64 = 2;

impl Relay {
    pub(super) fn receive_in_session(&mut self, from: Party, message: Message, cx: &mut Context) {
        let Party::Host(host) = from else { return };
        match message {
            Message::Connect { connection } => {
                self.floor.greeted.insert(connection, self.clock(cx));
                cx.send(self.me, from, Message::Hello { connection });
            }
            Message::Register { connection, attempts } => self.register(host, connection, &attempts, cx),
            Message::Heartbeat { generation, busy, attempts } => {
                if self.is_open(host, generation, cx) {
                    cx.send(self.me, from, Message::Heard { generation });
                    self.hear(cx.scenario.offer(host).key, busy, &attempts, cx);
                }
            }
            Message::Answer { generation, offer, accept } => {
                if self.is_open(host, generation, cx) {
                    self.answer(offer, accept, cx);
                }
            }
            Message::Hello { .. }
            | Message::Welcome { .. }
            | Message::Closed { .. }
            | Message::Heard { .. }
            | Message::Assign { .. }
            | Message::CallOff { .. }
            | Message::Ask { .. }
            | Message::Told { .. }
            | Message::Changed { .. } => {}
        }
    }

    /// Whether a host's session is open here; if not, it is told.
    fn is_open(&self, host: usize, generation: u64, cx: &mut Context) -> bool {
        let key = cx.scenario.offer(host).key;
        let open = self.floor.sessions.get(&key).is_some_and(|session| session.generation == generation);
        if !open {
            cx.send(self.me, Party::Host(host), Message::Closed { generation });
        }
        open
    }

    /// Opens a session, fences off an older one, and compares what the host holds with what the store says.
    fn register(&mut self, host: usize, connection: u64, attempts: &[AttemptKey], cx: &mut Context) {
        // Each greeting is good for one registration.
        let Some(greeted_at) = self.floor.greeted.remove(&connection) else { return };
        let offer = cx.scenario.offer(host).clone();
        let key = offer.key;
        if cx.store.sessions.get(&key).is_some_and(|row| row.open) {
            cx.fault(Fault::SessionFenced);
        }
        let generation = cx.store.open_session(key, self.index);
        cx.note(self.me, None, "session opened with generation", generation);
        let slots = offer.slots;
        self.floor.index.remove(&key);
        self.floor.forget_reservations(&key);
        self.floor.index.upsert(offer);
        self.floor.sessions.insert(key, Session { host, generation, slots, heard_at: cx.now });
        self.floor.lost.remove(&key);
        self.floor.reserve_all(&key);
        let is_wanted = |attempt: &AttemptKey| {
            cx.store.task(&attempt.task_id).is_some_and(|stored| is_wanted(stored, key, attempt.attempt))
        };
        let drop: Vec<_> = attempts.iter().filter(|attempt| !is_wanted(attempt)).copied().collect();
        let listed: BTreeSet<_> = attempts.iter().copied().collect();
        for (attempt, stored_since) in held_by(key, cx) {
            if !listed.contains(&attempt) && stored_since.plus(SETTLE_SECS) <= greeted_at {
                self.release(attempt, ReleaseReason::AttemptDropped, cx);
            }
        }
        cx.send(self.me, Party::Host(host), Message::Welcome { connection, generation, drop });
        self.assign(cx);
    }

    fn hear(&mut self, key: NodeKey, busy: u32, attempts: &[AttemptKey], cx: &mut Context) {
        let Some(session) = self.floor.sessions.get_mut(&key) else { return };
        session.heard_at = cx.now;
        self.floor.index.set_load(&key, busy, session.slots, Vec::new());
        let mut dropped = Vec::new();
        for (id, held) in self.floor.held.iter_mut().filter(|(_, held)| held.key == key) {
            let attempt = AttemptKey { task_id: *id, attempt: held.attempt };
            if attempts.contains(&attempt) {
                held.missing_since = None;
            } else if cx.now - *held.missing_since.get_or_insert(cx.now) >= SETTLE {
                dropped.push(attempt);
            }
        }
        for attempt in dropped {
            self.release(attempt, ReleaseReason::AttemptDropped, cx);
        }
        self.assign(cx);
    }

    /// Takes a host's answer to an offer.
    fn answer(
        &mut self,
        number: u64,
        accept: Option<taskmarket::Signed<taskmarket::AcceptTask>>,
        cx: &mut Context,
    ) {
        let Some(id) = self.offered(number) else { return };
        let Some(offering) = self.floor.offering.get_mut(&id).filter(|offering| !offering.accepted) else {
            return;
        };
        let Some(accept) = accept else {
            cx.fault(Fault::OfferRefused);
            return self.offer_ended(id, false, cx);
        };
        let said = (accept.message.task_id, accept.message.attempt, accept.message.provider);
        let (node, meant) = (offering.key.node_id, (id, offering.attempt, offering.key.provider));
        match accept.verify(&taskmarket::Domain::UNSETTLED) {
            Ok(accept) if said == meant => {
                offering.accepted = true;
                let intent = Intent::Mutate(Box::new(Mutation::Accept(accept)), Some(node));
                self.begin(intent, Reply::Offer(number), cx);
            }
            Ok(_) | Err(_) => self.offer_ended(id, true, cx),
        }
    }

    /// Ends sessions that fell silent or were fenced off, and releases what is held by hosts that stayed away.
    pub(super) fn look_after_sessions(&mut self, cx: &mut Context) {
        let newest = |key: &NodeKey| cx.store.sessions.get(key).map_or(0, |row| row.generation);
        let over = self.floor.sessions.iter().filter(|(key, session)| {
            session.heard_at + SILENCE <= cx.now || newest(key) > session.generation
        });
        let over: Vec<_> = over.map(|(key, session)| (*key, session.generation)).collect();
        for (key, generation) in over {
            cx.fault(Fault::SessionLost);
            self.floor.sessions.remove(&key);
            self.floor.index.remove(&key);
            self.floor.forget_reservations(&key);
            self.floor.lost.insert(key, cx.now + GRACE);
            cx.store.close_session(&key, generation);
        }
        let forsaken: Vec<_> = self.floor.lost.extract_if(.., |_, until| *until <= cx.now).collect();
        for (key, _) in forsaken {
            // A host that went to another relay is that relay's to judge.
            let mine = cx.store.sessions.get(&key).is_some_and(|row| row.relay == self.index && !row.open);
            if !mine {
                continue;
            }
            for (attempt, _) in held_by(key, cx) {
                self.release(attempt, ReleaseReason::SessionLost, cx);
            }
        }
    }

    /// Closes the sessions that a crash left open; their attempts are kept for the grace.
    pub(super) fn close_left_open(&mut self, cx: &mut Context) {
        for (key, row) in cx.store.sessions.iter_mut().filter(|(_, row)| row.open && row.relay == self.index)
        {
            row.open = false;
            self.floor.lost.insert(*key, cx.now + GRACE);
        }
    }
}

/// What a host holds by the store's word, and since when.
fn held_by(key: NodeKey, cx: &Context) -> Vec<(AttemptKey, taskmarket::Timestamp)> {
    let of = |(id, stored): (&TaskId, &Stored)| {
        let lease = stored.record.lease().filter(|lease| lease.provider == key.provider)?;
        let attempt = AttemptKey { task_id: *id, attempt: lease.attempt };
        (stored.node == Some(key.node_id)).then_some((attempt, lease.since))
    };
    cx.store.tasks.iter().filter_map(of).collect()
}

/// Whether a host's attempt is the one that counts: it holds the task, or its proof stands and only the acknowledgement is missing.
fn is_wanted(stored: &Stored, key: NodeKey, attempt: u32) -> bool {
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
