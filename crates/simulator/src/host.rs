//! A provider's host: an agent with a journal on disk, and a node that takes a while for its work. What it does with an attempt, good or
//! bad, is decided when it accepts.

use std::collections::BTreeMap;

use taskmarket::{
    AcceptTask, B256, ComputeProof, ContentHash, Domain, FailTask, LEASE_MARGIN_SECS, Signed, Task, TaskId,
    latest_lease,
};

use crate::context::{Alarm, Context, Millis, Party};
use crate::coverage::Fault;
use crate::message::{AttemptKey, Message, Say, Verdict};
use crate::scenario::Key;

/// The code of a failure that would come again anywhere.
pub(crate) const NEVER_ENDS: &str = "out_of_fuel";
/// How often a host reports, and looks around.
const HEARTBEAT: Millis = 10_000;
/// The longest silence of a relay before the host dials again.
const SILENCE: Millis = 30_000;
/// How long a greeting may take.
const HANDSHAKE_TIMEOUT: Millis = 5_000;
/// How long after its lease an attempt's end is still handed in, in seconds.
const FORLORN_SECS: u64 = 120;
/// What an honest lease leaves of the margin, so that a clock that is ahead does not ask for too long.
const LEASE_RESERVE_SECS: u64 = 300;

/// What a host does with an attempt that it accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Work,
    GiveUp,
    Stall,
    Late,
    /// A proof that lies, in this way.
    Lie(Fault),
}

/// How far an attempt is.
#[derive(Debug, Clone)]
enum Stage {
    Computing,
    /// The message that ends it, until a relay has acknowledged it.
    Ending {
        say: Box<Say>,
        request: u64,
    },
}

/// What the journal holds of an attempt.
#[derive(Debug, Clone)]
struct Entry {
    task: Task,
    accept: Signed<AcceptTask>,
    fate: Fate,
    stage: Stage,
}

#[derive(Debug, Clone, Copy)]
enum Link {
    Off,
    Dialling { connection: u64, since: Millis },
    On { relay: usize, generation: u64, heard_at: Millis },
}

/// See the module.
pub(crate) struct Host {
    index: usize,
    me: Party,
    key: Key,
    up: bool,
    life: u64,
    skew: i64,
    /// Until when it says and hears nothing.
    mute_until: Millis,
    link: Link,
    /// Survives crashes.
    journal: BTreeMap<AttemptKey, Entry>,
}

impl Host {
    pub(crate) fn new(index: usize, cx: &mut Context) -> Self {
        let (me, key) = (Party::Host(index), cx.scenario.key(index));
        let skew = cx.scenario.skew(&mut cx.dice);
        cx.alarm(me, 0, 0, Alarm::Tick);
        Self {
            index,
            me,
            key,
            up: true,
            life: 0,
            skew,
            mute_until: 0,
            link: Link::Off,
            journal: BTreeMap::new(),
        }
    }

    /// Loses its memory; `false` if it was down already.
    pub(crate) fn crash(&mut self, cx: &mut Context) -> bool {
        if !self.up {
            return false;
        }
        cx.fault(Fault::HostCrashed);
        self.up = false;
        self.life += 1;
        self.link = Link::Off;
        true
    }

    /// Takes up what the journal holds.
    pub(crate) fn restart(&mut self, cx: &mut Context) {
        self.up = true;
        cx.alarm(self.me, self.life, 0, Alarm::Tick);
        for (key, entry) in &self.journal {
            let delay = cx.dice.pick(1_000..=30_000);
            let alarm = match entry.stage {
                Stage::Computing if entry.fate == Fate::Stall => continue,
                Stage::Computing => Alarm::Computed(*key),
                Stage::Ending { .. } => Alarm::Retry(*key),
            };
            cx.alarm(self.me, self.life, delay, alarm);
        }
    }

    pub(crate) fn alarm(&mut self, life: u64, alarm: Alarm, cx: &mut Context) {
        if !self.up || life != self.life {
            return;
        }
        match alarm {
            Alarm::Tick => self.tick(cx),
            Alarm::Computed(key) => self.computed(key, cx),
            Alarm::Retry(key) => self.retry(key, cx),
            Alarm::OfferOver(_) | Alarm::Publish(_) | Alarm::Look(_) => {}
        }
    }

    pub(crate) fn receive(&mut self, from: Party, message: Message, cx: &mut Context) {
        let Party::Relay(relay) = from else { return };
        if !self.up || cx.now < self.mute_until {
            return;
        }
        match message {
            Message::Hello { connection } if self.is_dialling(connection) => {
                let attempts = self.journal.keys().copied().collect();
                self.send(relay, Message::Register { connection, attempts }, cx);
            }
            Message::Welcome { connection, generation, drop } if self.is_dialling(connection) => {
                self.link = Link::On { relay, generation, heard_at: cx.now };
                drop.iter().for_each(|key| self.forget(key));
                self.beat(cx);
            }
            Message::Closed { generation } if self.is_on(relay, generation) => self.link = Link::Off,
            Message::Heard { generation } if self.is_on(relay, generation) => {
                self.link = Link::On { relay, generation, heard_at: cx.now };
            }
            Message::Assign { generation, offer, attempt, task } if self.is_on(relay, generation) => {
                let accept = self.consider(*task, attempt, cx);
                self.send(relay, Message::Answer { generation, offer, accept }, cx);
            }
            Message::CallOff { generation, key } if self.is_on(relay, generation) => self.forget(&key),
            Message::Told { request, verdict } => self.told(request, verdict, cx),
            Message::Hello { .. }
            | Message::Welcome { .. }
            | Message::Closed { .. }
            | Message::Heard { .. }
            | Message::Assign { .. }
            | Message::CallOff { .. }
            | Message::Connect { .. }
            | Message::Register { .. }
            | Message::Heartbeat { .. }
            | Message::Answer { .. }
            | Message::Ask { .. }
            | Message::Changed { .. } => {}
        }
    }

    fn is_dialling(&self, number: u64) -> bool {
        matches!(self.link, Link::Dialling { connection, .. } if connection == number)
    }

    fn is_on(&self, at: usize, number: u64) -> bool {
        matches!(self.link, Link::On { relay, generation, .. } if (relay, generation) == (at, number))
    }

    fn send(&self, relay: usize, message: Message, cx: &mut Context) {
        if cx.now >= self.mute_until {
            cx.send(self.me, Party::Relay(relay), message);
        }
    }

    fn ask(&self, say: Say, cx: &mut Context) -> u64 {
        let (relay, request) = (cx.dice.index(cx.scenario.relays), cx.unique());
        self.send(relay, Message::Ask { request, say }, cx);
        request
    }

    fn forget(&mut self, key: &AttemptKey) {
        self.journal.remove(key);
    }

    fn tick(&mut self, cx: &mut Context) {
        match self.link {
            Link::On { heard_at, .. } if heard_at + SILENCE > cx.now => self.beat(cx),
            Link::Dialling { since, .. } if since + HANDSHAKE_TIMEOUT > cx.now => {}
            Link::On { .. } | Link::Dialling { .. } | Link::Off => {
                let (relay, connection) = (cx.dice.index(cx.scenario.relays), cx.unique());
                self.link = Link::Dialling { connection, since: cx.now };
                self.send(relay, Message::Connect { connection }, cx);
            }
        }
        if !cx.scenario.quiet && cx.dice.chance(0.02) {
            self.grab(cx);
        }
        let on = matches!(self.link, Link::On { .. });
        cx.alarm(self.me, self.life, if on { HEARTBEAT } else { HANDSHAKE_TIMEOUT }, Alarm::Tick);
    }

    fn beat(&mut self, cx: &mut Context) {
        if let Link::On { relay, generation, .. } = self.link {
            let attempts = self.journal.keys().copied().collect();
            self.send(relay, Message::Heartbeat { generation, busy: self.computing(), attempts }, cx);
        }
    }

    fn computing(&self) -> u32 {
        self.journal.values().filter(|entry| matches!(entry.stage, Stage::Computing)).count() as u32
    }

    /// Takes an offer or not. The same offer gets the same answer.
    fn consider(&mut self, task: Signed<Task>, attempt: u32, cx: &mut Context) -> Option<Signed<AcceptTask>> {
        let task = task.verify(&Domain::UNSETTLED).ok()?;
        let key = AttemptKey { task_id: TaskId(task.digest()), attempt };
        if let Some(entry) = self.journal.get(&key) {
            return Some(entry.accept.clone());
        }
        let other = self.journal.keys().rfind(|other| other.task_id == key.task_id).copied();
        if other.is_some_and(|other| other.attempt > attempt) {
            return None;
        }
        if let Some(older) = other {
            self.forget(&older);
        }
        let slots = cx.scenario.offer(self.index).slots;
        if self.computing() >= slots || (!cx.scenario.quiet && cx.dice.chance(0.05)) {
            return None;
        }
        let accept = self.accept(task.message(), key, cx);
        let fate = self.fate(cx);
        let delay = match fate {
            Fate::Stall => None,
            Fate::Late => {
                let late = cx.dice.pick(1_000..=20_000);
                Some(cx.until(accept.message.lease_until) + late)
            }
            Fate::Work | Fate::GiveUp | Fate::Lie(_) => Some(cx.dice.pick(1_000..=40_000)),
        };
        if let Some(delay) = delay {
            cx.alarm(self.me, self.life, delay, Alarm::Computed(key));
        }
        let (task, stage) = (task.message().clone(), Stage::Computing);
        self.journal.insert(key, Entry { task, accept: accept.clone(), fate, stage });
        cx.oracle.given(self.me, self.computing() as usize, slots);
        Some(accept)
    }

    fn accept(&self, task: &Task, key: AttemptKey, cx: &mut Context) -> Signed<AcceptTask> {
        let now = cx.clock(self.skew);
        let usual = now.plus(task.config.max_duration + LEASE_MARGIN_SECS - LEASE_RESERVE_SECS);
        let lease_until = match cx.dice.pick(0..=9) {
            0..=2 if !cx.scenario.quiet => {
                cx.fault(Fault::LeaseShort);
                now.plus(cx.dice.pick(10..=90)).min(task.deadline)
            }
            3 if !cx.scenario.quiet => {
                cx.fault(Fault::LeaseTooLong);
                task.deadline.plus(60)
            }
            _ => latest_lease(task, now).min(usual),
        };
        let AttemptKey { task_id, attempt } = key;
        self.key.sign(&AcceptTask { task_id, provider: self.key.address(), attempt, lease_until })
    }

    fn fate(&mut self, cx: &mut Context) -> Fate {
        if cx.scenario.quiet {
            return Fate::Work;
        }
        match cx.dice.pick(0..=99) {
            0..=44 => Fate::Work,
            45..=52 => Fate::GiveUp,
            53..=64 => {
                cx.fault(Fault::HostStalled);
                Fate::Stall
            }
            65..=71 => {
                cx.fault(Fault::HostSilent);
                self.mute_until = cx.now + cx.dice.pick(30_000..=240_000);
                Fate::Work
            }
            72..=76 => Fate::Late,
            77..=80 => Fate::Lie(Fault::ProofWrongInput),
            81..=86 => Fate::Lie(Fault::ProofWrongAttempt),
            87..=91 => Fate::Lie(Fault::ProofOfOthers),
            92..=95 => Fate::Lie(Fault::ProofForged),
            _ => Fate::Lie(Fault::ProofChanged),
        }
    }

    /// The node is done: what ends the attempt goes to the journal, and then to a relay.
    fn computed(&mut self, key: AttemptKey, cx: &mut Context) {
        let Some(entry) = self.journal.get(&key).filter(|entry| matches!(entry.stage, Stage::Computing))
        else {
            return;
        };
        let (task, fate) = (entry.task.clone(), entry.fate);
        let say = Box::new(match fate {
            Fate::GiveUp => {
                cx.fault(Fault::HostFailed);
                let is_small = cx.dice.chance(0.25);
                let other = if is_small { "too_large" } else { "io" };
                let code = if cx.dice.chance(0.5) { NEVER_ENDS } else { other };
                self.give_up(key, code, cx)
            }
            Fate::Work | Fate::Stall => self.prove(&task, key, cx),
            Fate::Late => {
                cx.fault(Fault::ProofLate);
                self.prove(&task, key, cx)
            }
            Fate::Lie(lie) => {
                cx.fault(lie);
                let lie = self.lie(&task, key, lie, cx);
                self.ask(lie, cx);
                self.prove(&task, key, cx)
            }
        });
        if let Some(entry) = self.journal.get_mut(&key) {
            entry.stage = Stage::Ending { say, request: 0 };
        }
        self.retry(key, cx);
    }

    fn proof(&self, task: &Task, key: AttemptKey, cx: &mut Context) -> ComputeProof {
        let now = cx.clock(self.skew);
        let result_hash = ContentHash(B256::from(cx.dice.bytes()));
        let result_cid = format!("artifact://{result_hash}").parse();
        ComputeProof {
            task_id: key.task_id,
            provider: self.key.address(),
            attempt: key.attempt,
            model_hash: task.model_hash,
            input_hash: task.input_hash,
            result_hash,
            result_cid: result_cid.expect("a hash in hexadecimal is an artifact's reference"),
            started_at: now,
            finished_at: now,
            gpu_name: "NVIDIA A100".into(),
        }
    }

    fn prove(&self, task: &Task, key: AttemptKey, cx: &mut Context) -> Say {
        Say::Proof(Box::new(self.key.sign(&self.proof(task, key, cx))))
    }

    /// A proof that must not be taken, or that must not come second.
    fn lie(&self, task: &Task, key: AttemptKey, lie: Fault, cx: &mut Context) -> Say {
        let mut proof = self.proof(task, key, cx);
        if lie == Fault::ProofWrongInput {
            proof.input_hash = proof.result_hash;
        } else if lie == Fault::ProofWrongAttempt {
            proof.attempt =
                key.attempt.checked_sub(1).filter(|attempt| *attempt > 0).unwrap_or(key.attempt + 1);
        } else if lie == Fault::ProofOfOthers {
            let held =
                cx.store.tasks.values().find(|stored| {
                    stored.record.lease().is_some_and(|lease| lease.provider != proof.provider)
                });
            if let Some(stored) = held {
                proof.task_id = stored.record.id;
                proof.attempt = stored.record.attempts;
                (proof.model_hash, proof.input_hash) =
                    (stored.record.task.model_hash, stored.record.task.input_hash);
            }
        }
        let mut signed = self.key.sign(&proof);
        if lie == Fault::ProofForged {
            signed.message.provider = Key::provider((self.index + 1) % cx.scenario.hosts).address();
        }
        Say::Proof(Box::new(signed))
    }

    fn give_up(&self, key: AttemptKey, code: &str, cx: &Context) -> Say {
        Say::Fail(self.key.sign(&FailTask {
            task_id: key.task_id,
            provider: self.key.address(),
            attempt: key.attempt,
            code: code.into(),
            message: "it came to nothing".into(),
            issued_at: cx.clock(self.skew),
        }))
    }

    /// Hands an attempt's end in, again and again until a relay has acknowledged it or nobody can want it any more.
    fn retry(&mut self, key: AttemptKey, cx: &mut Context) {
        let Some(entry) = self.journal.get(&key) else { return };
        let Stage::Ending { say, request } = entry.stage.clone() else { return };
        if cx.clock(0) > entry.accept.message.lease_until.plus(FORLORN_SECS) {
            return self.forget(&key);
        }
        if request > 0 && matches!(*say, Say::Proof(_)) {
            cx.fault(Fault::ProofRepeated);
        }
        let request = self.ask((*say).clone(), cx);
        if let Some(entry) = self.journal.get_mut(&key) {
            entry.stage = Stage::Ending { say, request };
        }
        let delay = cx.dice.pick(2_000..=8_000);
        cx.alarm(self.me, self.life, delay, Alarm::Retry(key));
    }

    fn told(&mut self, request: u64, verdict: Verdict, cx: &mut Context) {
        let is_meant =
            |entry: &Entry| matches!(&entry.stage, Stage::Ending { request: asked, .. } if *asked == request);
        let Some((key, entry)) = self.journal.iter().find(|(_, entry)| is_meant(entry)) else { return };
        let (key, is_proof) =
            (*key, matches!(&entry.stage, Stage::Ending { say, .. } if matches!(**say, Say::Proof(_))));
        match verdict {
            Verdict::Later => {}
            // Where the proof itself is at fault the attempt is still ours, and somebody else may do better.
            Verdict::Refused("invalid_field") if is_proof => {
                let say = Box::new(self.give_up(key, "proof_refused", cx));
                if let Some(entry) = self.journal.get_mut(&key) {
                    entry.stage = Stage::Ending { say, request: 0 };
                }
            }
            Verdict::Done | Verdict::Refused(_) => self.forget(&key),
        }
    }

    /// Accepts a task by the public API without having been asked, to see whether a relay would let it.
    fn grab(&self, cx: &mut Context) {
        let open = |stored: &&crate::store::Stored| {
            stored.record.lease().is_none() && stored.record.submission().is_none()
        };
        let tasks: Vec<_> = cx.store.tasks.values().filter(open).collect();
        let lapsed = tasks.iter().find(|stored| stored.record.is_lapsed(self.key.address()));
        let any = || tasks.get(cx.now as usize % tasks.len().max(1));
        let Some(stored) = lapsed.or_else(any) else { return };
        let fault = if lapsed.is_some() { Fault::AcceptLapsed } else { Fault::AcceptUnasked };
        let (task_id, next, task) =
            (stored.record.id, stored.record.attempts + 1, stored.record.task.clone());
        let mut key = AttemptKey { task_id, attempt: next };
        if cx.dice.chance(0.3) {
            cx.fault(Fault::AcceptWrongAttempt);
            key.attempt = if next > 1 && cx.dice.chance(0.5) { next - 1 } else { next + 1 };
        }
        cx.fault(fault);
        let accept = self.accept(&task, key, cx);
        self.ask(Say::Accept(accept), cx);
    }
}
