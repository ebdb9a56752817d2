//! A relay: it decides by the market's rules, commits under the version that it decided on, and decides again when another change came
//! first. Its memory ([`Floor`]) follows the commits and is never the truth.

mod floor;
mod sessions;

use taskmarket::{Event, Mutation, Recorded, Rejection, TaskRecord, Timestamp, Verified};

use self::floor::Floor;
use crate::context::{Alarm, Context, Millis, Occurrence, Party};
use crate::coverage::Fault;
use crate::message::{Intent, Message, Verdict};
use crate::store::Write;
use crate::world::Sabotage;

/// How often a change is decided again because another came first.
const MAX_ROUNDS: u32 = 16;
/// How long the store takes for a write, and then for its answer.
const STORE_DELAY: std::ops::RangeInclusive<Millis> = 1..=30;
/// How probable it is that a relay crashes while the store has a change of it: else a crash would hardly ever meet one.
const CRASH_IN_COMMIT: f64 = 0.02;
/// How long a host may think about an offer.
const OFFER_TIMEOUT: Millis = 10_000;
/// How often a relay looks at everything without an occasion.
const TICK: Millis = 5_000;

/// What a task's end may come late by: all relays may be down for a minute, their clocks be behind, and their ticks apart.
const SLACK: Millis = 120_000;

/// What a relay does for somebody, until the store has it.
#[derive(Debug, Clone)]
pub(crate) struct Operation {
    number: u64,
    intent: Intent,
    reply: Reply,
    rounds: u32,
    /// What was decided last for the intent itself.
    decided: Option<Event>,
}

/// Who waits for an operation.
#[derive(Debug, Clone, Copy)]
enum Reply {
    Nobody,
    Client { party: Party, request: u64 },
    Offer(u64),
}

/// A change on its way to the store.
#[derive(Debug)]
pub(crate) struct Committing {
    relay: usize,
    life: u64,
    operation: Operation,
    write: Write,
    /// Whether it is what time does, and not what was asked.
    by_time: bool,
}

/// The store's answer on its way back.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) relay: usize,
    life: u64,
    operation: Operation,
    write: Write,
    by_time: bool,
    done: bool,
}

/// See the module.
pub(crate) struct Relay {
    index: usize,
    me: Party,
    /// Whether it runs, and for which time.
    up: bool,
    life: u64,
    /// How far its clock is ahead, in seconds.
    skew: i64,
    floor: Floor,
}

impl Relay {
    pub(crate) fn new(index: usize, cx: &mut Context) -> Self {
        let me = Party::Relay(index);
        let skew = cx.scenario.relay_skew(&mut cx.dice);
        let relay = Self { index, me, up: true, life: 0, skew, floor: Floor::default() };
        cx.alarm(me, 0, 0, Alarm::Tick);
        relay
    }

    /// Loses its memory; `false` if it was down already.
    pub(crate) fn crash(&mut self, cx: &mut Context) -> bool {
        if !self.up {
            return false;
        }
        cx.fault(Fault::RelayCrashed);
        self.up = false;
        self.life += 1;
        self.floor = Floor::default();
        true
    }

    pub(crate) fn restart(&mut self, cx: &mut Context) {
        self.up = true;
        let skew = cx.scenario.relay_skew(&mut cx.dice);
        if skew != self.skew {
            cx.fault(Fault::ClockStepped);
        }
        self.skew = skew;
        self.close_left_open(cx);
        cx.alarm(self.me, self.life, 0, Alarm::Tick);
    }

    pub(crate) fn alarm(&mut self, life: u64, alarm: Alarm, cx: &mut Context) {
        if !self.up || life != self.life {
            return;
        }
        match alarm {
            Alarm::Tick => self.tick(cx),
            Alarm::OfferOver(offer) => self.offer_over(offer, cx),
            Alarm::Computed(_) | Alarm::Retry(_) | Alarm::Publish(_) | Alarm::Look(_) => {}
        }
    }

    pub(crate) fn receive(&mut self, from: Party, message: Message, cx: &mut Context) {
        if !self.up {
            return;
        }
        match message {
            Message::Ask { request, say } => {
                let task_id = say.task_id();
                let reply = Reply::Client { party: from, request };
                match say.verify() {
                    Ok(intent) => self.begin(intent, reply, cx),
                    Err(_) => {
                        *cx.coverage.refusals.entry("invalid_signature").or_default() += 1;
                        cx.note(self.me, Some(task_id), "signature refused", request);
                        let verdict = Verdict::Refused("invalid_signature");
                        cx.send(self.me, from, Message::Told { request, verdict });
                    }
                }
            }
            Message::Changed { task_id } => self.look_again(task_id, cx),
            message @ (Message::Connect { .. }
            | Message::Register { .. }
            | Message::Heartbeat { .. }
            | Message::Answer { .. }) => self.receive_in_session(from, message, cx),
            Message::Hello { .. }
            | Message::Welcome { .. }
            | Message::Closed { .. }
            | Message::Heard { .. }
            | Message::Assign { .. }
            | Message::CallOff { .. }
            | Message::Told { .. } => {}
        }
    }

    fn clock(&self, cx: &Context) -> Timestamp {
        cx.clock(self.skew)
    }

    /// Looks at everything: what is due, which hosts are silent, whose grace is over, what can be offered.
    fn tick(&mut self, cx: &mut Context) {
        if !cx.is_sabotaged(Sabotage::NoTimer) {
            for id in cx.store.due(self.clock(cx)) {
                self.begin(Intent::Elapse(id), Reply::Nobody, cx);
            }
        }
        let ids: Vec<_> = cx.store.tasks.keys().copied().collect();
        for id in ids {
            self.look_again(id, cx);
        }
        self.look_after_sessions(cx);
        self.assign(cx);
        cx.alarm(self.me, self.life, TICK, Alarm::Tick);
    }

    fn begin(&mut self, intent: Intent, reply: Reply, cx: &mut Context) {
        let number = cx.unique();
        self.advance(Operation { number, intent, reply, rounds: 0, decided: None }, cx);
    }

    /// Decides on what is stored now, and sends what comes of it to the store.
    fn advance(&mut self, mut operation: Operation, cx: &mut Context) {
        let now = self.clock(cx);
        match self.decide(&operation.intent, now, cx) {
            Decision::Nothing => self.finish(operation, Verdict::Done, cx),
            Decision::Refused(code) => self.finish(operation, Verdict::Refused(code), cx),
            Decision::Write { write, by_time } => {
                if !by_time {
                    operation.decided = Some(write.recorded.event.clone());
                }
                if cx.is_sabotaged(Sabotage::AckBeforeDurable) && !by_time {
                    self.finish(operation.clone(), Verdict::Done, cx);
                    operation.reply = Reply::Nobody;
                }
                let (relay, life) = (self.index, self.life);
                let committing = Committing { relay, life, operation, write: *write, by_time };
                let delay = cx.dice.pick(STORE_DELAY);
                if !cx.scenario.quiet && cx.dice.chance(CRASH_IN_COMMIT) {
                    let down = cx.dice.pick(500..=20_000);
                    cx.after(delay - 1, Occurrence::Crash { party: self.me, down });
                }
                cx.after(delay, Occurrence::Commit(Box::new(committing)));
            }
        }
    }

    fn decide(&self, intent: &Intent, now: Timestamp, cx: &Context) -> Decision {
        let id = task_id(intent);
        let stored = match (intent, cx.store.task(&id)) {
            (Intent::Publish(_), Some(_)) => return Decision::Nothing,
            (Intent::Publish(task), None) => return publish(task, now),
            (_, None) => return Decision::Refused("not_found"),
            (_, Some(stored)) => stored,
        };
        let record = &stored.record;
        // Clocks differ and are set back. A history's times do not run backwards, or nobody could replay it.
        let at = if cx.is_sabotaged(Sabotage::TimeRunsBack) { now } else { now.max(record.updated_at) };
        if let Some(event) = taskmarket::elapse(record, at) {
            return write(record, at, event, None, true);
        }
        match intent {
            Intent::Publish(_) | Intent::Elapse(_) => Decision::Nothing,
            Intent::Release(key, reason) => taskmarket::release(record, key.attempt, *reason)
                .map_or(Decision::Nothing, |event| write(record, at, event, None, false)),
            Intent::End(_) => {
                let hasty = (cx.is_sabotaged(Sabotage::HastyEnd)
                    && record.status() == taskmarket::Status::Open)
                    .then_some(Event::Unworkable);
                let Some(event) = taskmarket::unworkable(record).or(hasty) else { return Decision::Nothing };
                write(record, at, event, None, false)
            }
            Intent::Mutate(mutation, node) => match taskmarket::decide(record, at, mutation) {
                Ok(None) => Decision::Nothing,
                Ok(Some(event)) => write(record, at, event, *node, false),
                Err(rejection) => match sabotaged(record, mutation, &rejection, cx) {
                    Some(event) => write(record, at, event, *node, false),
                    None => Decision::Refused(rejection.code()),
                },
            },
        }
    }

    /// Takes the store's answer in.
    pub(crate) fn answered(&mut self, answered: Answered, cx: &mut Context) {
        if !self.up || answered.life != self.life {
            return;
        }
        let Answered { mut operation, write, by_time, done, .. } = answered;
        let id = write.record.id;
        if !done {
            cx.fault(Fault::CommitConflict);
            cx.note(self.me, Some(id), "conflict at version", write.expected);
            operation.rounds += 1;
            if operation.rounds >= MAX_ROUNDS {
                self.finish(operation, Verdict::Later, cx);
            } else {
                self.advance(operation, cx);
            }
            return;
        }
        self.look_again(id, cx);
        for other in (0..cx.scenario.relays).filter(|other| *other != self.index) {
            cx.send(self.me, Party::Relay(other), Message::Changed { task_id: id });
        }
        match by_time {
            true => self.advance(operation, cx),
            false if cx.is_sabotaged(Sabotage::RefuseCommitted) => {
                self.finish(operation, Verdict::Refused("conflict"), cx);
            }
            false => self.finish(operation, Verdict::Done, cx),
        }
        self.assign(cx);
    }

    /// Tells whoever waits what came of it.
    fn finish(&mut self, operation: Operation, verdict: Verdict, cx: &mut Context) {
        let id = task_id(&operation.intent);
        if let Verdict::Refused(code) = verdict {
            *cx.coverage.refusals.entry(code).or_default() += 1;
            cx.note(self.me, Some(id), code, operation.number);
            cx.oracle.refused(id, operation.number, code);
        }
        match operation.reply {
            Reply::Nobody => {}
            Reply::Client { party, request } => {
                if verdict == Verdict::Done {
                    cx.oracle.acknowledged(id, &operation.intent, operation.decided);
                }
                cx.send(self.me, party, Message::Told { request, verdict });
            }
            Reply::Offer(offer) => self.offer_decided(offer, verdict, cx),
        }
    }
}

/// Takes a change up in the store. Whether one of a relay that crashed meanwhile lands is for the dice to say.
pub(crate) fn commit(committing: Committing, relays: &[Relay], cx: &mut Context) {
    let relay = &relays[committing.relay];
    let Committing { life, operation, write, by_time, .. } = committing;
    let (me, id) = (relay.me, write.record.id);
    let crashed = !relay.up || life != relay.life;
    if crashed && cx.dice.chance(0.5) {
        cx.fault(Fault::CommitLost);
        cx.note(me, Some(id), "commit lost in the crash; version", write.record.version);
        return;
    }
    let blind = cx.is_sabotaged(Sabotage::BlindCommit);
    let done = cx.store.commit(&write, blind);
    if done {
        if crashed {
            cx.fault(Fault::CommitLanded);
        }
        if write.recorded.event == Event::Unworkable {
            cx.fault(Fault::Unworkable);
        }
        cx.note(me, Some(id), write.recorded.event.name(), write.record.version);
        if write.expected == 0 {
            let task = &write.record.task;
            let end = task.deadline.plus(task.dispute_window).plus(task.arbiter_window);
            cx.after(cx.until(end) + SLACK, Occurrence::Bound(id));
        }
        cx.oracle.committed(&write, (!by_time).then_some(operation.number));
    }
    let delay = cx.dice.pick(STORE_DELAY);
    let answered = Answered { relay: relay.index, life, operation, write, by_time, done };
    cx.after(delay, Occurrence::Committed(Box::new(answered)));
}

/// What comes of an operation.
enum Decision {
    Nothing,
    Refused(&'static str),
    Write { write: Box<Write>, by_time: bool },
}

fn publish(task: &Verified<taskmarket::Task>, now: Timestamp) -> Decision {
    match taskmarket::publish(now, task) {
        Err(rejection) => Decision::Refused(rejection.code()),
        Ok(record) => {
            let event = Event::Published { task: Box::new(task.signed().clone()), domain: task.domain() };
            let recorded = Recorded { version: record.version, at: now, event };
            let write = Box::new(Write { expected: 0, record, recorded, node: None });
            Decision::Write { write, by_time: false }
        }
    }
}

fn write(
    before: &TaskRecord,
    at: Timestamp,
    event: Event,
    node: Option<taskmarket::Bytes32>,
    by_time: bool,
) -> Decision {
    let mut record = before.clone();
    taskmarket::apply(&mut record, at, &event);
    let recorded = Recorded { version: record.version, at, event };
    Decision::Write { write: Box::new(Write { expected: before.version, record, recorded, node }), by_time }
}

/// What a relay that is broken on purpose makes of a message that the rules refuse.
fn sabotaged(record: &TaskRecord, mutation: &Mutation, rejection: &Rejection, cx: &Context) -> Option<Event> {
    let held = record.lease().is_some();
    match (cx.sabotage?, mutation, rejection) {
        (Sabotage::NoFencing, Mutation::Proof(proof), Rejection::StaleAttempt { .. }) if held => {
            Some(Event::Submitted(proof.signed().clone()))
        }
        (Sabotage::AnyProvider, Mutation::Proof(proof), Rejection::WrongParty { .. }) if held => {
            Some(Event::Submitted(proof.signed().clone()))
        }
        (Sabotage::SecondProof, Mutation::Proof(proof), Rejection::Conflict { status, .. })
            if *status == taskmarket::Status::Submitted =>
        {
            Some(Event::Submitted(proof.signed().clone()))
        }
        (Sabotage::LapsedReturn, Mutation::Accept(accept), Rejection::Conflict { .. })
            if record.is_lapsed(accept.message().provider)
                && record.status() == taskmarket::Status::Open
                && accept.message().attempt == record.attempts + 1 =>
        {
            Some(Event::Accepted(accept.signed().clone()))
        }
        _ => None,
    }
}

fn task_id(intent: &Intent) -> taskmarket::TaskId {
    match intent {
        Intent::Publish(task) => taskmarket::TaskId(task.digest()),
        Intent::Mutate(mutation, _) => mutation.task_id(),
        Intent::Release(key, _) => key.task_id,
        Intent::Elapse(id) | Intent::End(id) => *id,
    }
}
