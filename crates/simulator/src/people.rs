//! Those who ask for work and those who judge it: requesters with their tasks, and the arbiter. They read the public API without
//! trouble, for reading changes nothing; what they sign goes over the network.

use taskmarket::{
    Address, Amount, ApproveResult, B256, Bytes32, CancelTask, ContentHash, DisputeTask, Domain,
    ResolveDispute, Runtime, Signed, State, Task, TaskConfig, TaskId, U256,
};

use crate::context::{Alarm, Context, Dice, Millis, Party};
use crate::coverage::Fault;
use crate::message::{Message, Say, Verdict};
use crate::scenario::Key;
use crate::store::Stored;

/// How often they look, in milliseconds.
const LOOK: Millis = 8_000;
/// How often a publication is tried again.
const PUBLISH_AGAIN: Millis = 4_000;
/// The last task is published by this.
const LAST_PUBLICATION: Millis = 120_000;
/// How long somebody who knows how it will end waits before they say so, by the number of looks.
const PATIENCE: u64 = 3;

/// What a requester means to do about a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aim {
    Approve,
    Dispute,
    Leave,
    Cancel,
    ApproveAnother,
}

struct Plan {
    task: Signed<Task>,
    id: TaskId,
    aim: Aim,
    request: u64,
    /// Whether a relay has said yes or no.
    answered: bool,
    looks: u64,
}

/// Somebody who asks for work.
pub(crate) struct Requester {
    me: Party,
    key: Key,
    skew: i64,
    plans: Vec<Plan>,
}

impl Requester {
    pub(crate) fn new(index: usize, cx: &mut Context) -> Self {
        let (me, key) = (Party::Requester(index), Key::requester(index));
        let skew = cx.scenario.skew(&mut cx.dice);
        let tasks = cx.dice.pick(1..=3);
        let plan = |number: u64| {
            let at = cx.dice.pick(0..=LAST_PUBLICATION);
            let task = key.sign(&task(key.address(), at, cx));
            cx.alarm(me, 0, at, Alarm::Publish(number as usize));
            let id = task.message.id(&Domain::UNSETTLED);
            Plan { id, aim: aim(cx), task, request: 0, answered: false, looks: 0 }
        };
        let plans = (0..tasks).map(plan).collect();
        Self { me, key, skew, plans }
    }

    /// Whether nothing is left to be done or waited for.
    pub(crate) fn is_done(&self, cx: &Context) -> bool {
        self.plans.iter().all(|plan| {
            let stored = cx.store.task(&plan.id);
            plan.answered && stored.is_none_or(|stored| stored.record.status().is_final())
        })
    }

    /// Tasks that must be completed where nothing goes wrong.
    pub(crate) fn wanted(&self) -> impl Iterator<Item = TaskId> {
        self.plans.iter().filter(|plan| matches!(plan.aim, Aim::Approve | Aim::Leave)).map(|plan| plan.id)
    }

    pub(crate) fn alarm(&mut self, alarm: Alarm, cx: &mut Context) {
        match alarm {
            Alarm::Publish(number) => self.publish(number, cx),
            Alarm::Look(number) => self.look(number, cx),
            Alarm::Tick | Alarm::OfferOver(_) | Alarm::Computed(_) | Alarm::Retry(_) => {}
        }
    }

    pub(crate) fn receive(&mut self, message: &Message) {
        if let Message::Told { request, verdict: Verdict::Done | Verdict::Refused(_) } = message {
            let meant = self.plans.iter_mut().filter(|plan| plan.request == *request);
            meant.for_each(|plan| plan.answered = true);
        }
    }

    /// Publishes a task, again and again until somebody has answered; sometimes once more.
    fn publish(&mut self, number: usize, cx: &mut Context) {
        let Some(plan) = self.plans.get_mut(number) else { return };
        if plan.request == 0 {
            cx.alarm(self.me, 0, LOOK, Alarm::Look(number));
        } else if !plan.answered || cx.dice.chance(0.2) {
            cx.fault(Fault::PublishRepeated);
        }
        if plan.answered && plan.looks > 0 {
            return;
        }
        let say = Say::Publish(Box::new(plan.task.clone()));
        plan.request = ask(self.me, say, cx);
        if !plan.answered {
            cx.alarm(self.me, 0, PUBLISH_AGAIN, Alarm::Publish(number));
        }
    }

    /// Looks at a task and does what is meant to be done about it.
    fn look(&mut self, number: usize, cx: &mut Context) {
        let Some(plan) = self.plans.get_mut(number) else { return };
        plan.looks += 1;
        let (id, aim, looks) = (plan.id, plan.aim, plan.looks);
        let stored = cx.store.task(&id).cloned();
        if stored.as_ref().is_some_and(|stored| stored.record.status().is_final()) {
            return;
        }
        if let Some(say) = stored.as_ref().and_then(|stored| self.verdict(stored, aim, looks, cx)) {
            self.note_clock(cx);
            ask(self.me, say, cx);
        }
        if !cx.scenario.quiet && cx.dice.chance(0.03) {
            self.meddle(cx);
        }
        cx.alarm(self.me, 0, LOOK, Alarm::Look(number));
    }

    fn verdict(&self, stored: &Stored, aim: Aim, looks: u64, cx: &mut Context) -> Option<Say> {
        let task_id = stored.record.id;
        match (&stored.record.state, aim) {
            (State::Open, Aim::Cancel) if looks >= PATIENCE => {
                cx.fault(Fault::Cancelled);
                let issued_at = cx.clock(self.skew);
                Some(Say::Cancel(self.key.sign(&CancelTask { task_id, issued_at })))
            }
            (State::Submitted { .. }, Aim::Approve) => Some(Say::Approve(self.approval(stored, None, cx)?)),
            (State::Submitted { .. }, Aim::ApproveAnother) => {
                cx.fault(Fault::ApprovedWrongHash);
                let other = ContentHash(B256::from(cx.dice.bytes()));
                Some(Say::Approve(self.approval(stored, Some(other), cx)?))
            }
            (State::Submitted { .. }, Aim::Dispute) => {
                cx.fault(Fault::Disputed);
                Some(Say::Dispute(self.dispute(stored, cx)?))
            }
            _ => None,
        }
    }

    /// Signs something about a task of which it is not theirs to speak.
    fn meddle(&self, cx: &mut Context) {
        let others =
            cx.store.tasks.values().filter(|stored| stored.record.task.requester != self.key.address());
        let Some(stored) = others.max_by_key(|stored| stored.record.updated_at).cloned() else { return };
        cx.fault(Fault::StrangerSigned);
        let (task_id, issued_at) = (stored.record.id, cx.clock(self.skew));
        let say = match self.approval(&stored, None, cx) {
            Some(approval) => Say::Approve(approval),
            None => Say::Cancel(self.key.sign(&CancelTask { task_id, issued_at })),
        };
        ask(self.me, say, cx);
    }

    fn approval(
        &self,
        stored: &Stored,
        other: Option<ContentHash>,
        cx: &Context,
    ) -> Option<Signed<ApproveResult>> {
        let proof = &stored.record.submission()?.proof.message;
        Some(self.key.sign(&ApproveResult {
            task_id: stored.record.id,
            provider: proof.provider,
            attempt: proof.attempt,
            result_hash: other.unwrap_or(proof.result_hash),
            issued_at: cx.clock(self.skew),
        }))
    }

    fn dispute(&self, stored: &Stored, cx: &Context) -> Option<Signed<DisputeTask>> {
        let proof = &stored.record.submission()?.proof.message;
        Some(self.key.sign(&DisputeTask {
            task_id: stored.record.id,
            provider: proof.provider,
            attempt: proof.attempt,
            result_hash: proof.result_hash,
            reason: "the result is not what was asked for".into(),
            evidence: String::new(),
            issued_at: cx.clock(self.skew),
        }))
    }

    fn note_clock(&self, cx: &mut Context) {
        match self.skew.unsigned_abs() {
            0 => {}
            off if off > taskmarket::CLOCK_TOLERANCE_SECS => cx.fault(Fault::ClockBeyond),
            _ => cx.fault(Fault::ClockWithin),
        }
    }
}

/// Who ends disputes, or lets them be.
pub(crate) struct Arbiter;

impl Arbiter {
    pub(crate) fn new(cx: &mut Context) -> Self {
        cx.alarm(Party::Arbiter, 0, LOOK, Alarm::Tick);
        Self
    }

    pub(crate) fn alarm(&self, cx: &mut Context) {
        let disputed = |stored: &&Stored| matches!(stored.record.state, State::Disputed { .. });
        let disputed: Vec<_> =
            cx.store.tasks.values().filter(disputed).map(|stored| &stored.record).collect();
        let disputed: Vec<_> =
            disputed.iter().map(|record| (record.id, record.attempts, record.task.salt)).collect();
        for (task_id, attempt, salt) in disputed {
            // The salt decides, so that the arbiter stays of one mind about a task.
            if salt.0[0].is_multiple_of(2) {
                cx.fault(Fault::ArbiterSilent);
                continue;
            }
            let wrong = cx.dice.chance(0.3);
            cx.fault(if wrong { Fault::ArbiterWrongAttempt } else { Fault::ArbiterResolved });
            let resolve = ResolveDispute {
                task_id,
                attempt: attempt + u32::from(wrong),
                provider_bps: cx.dice.pick(0..=10_000) as u32,
                issued_at: cx.clock(0),
            };
            ask(Party::Arbiter, Say::Resolve(Key::ARBITER.sign(&resolve)), cx);
        }
        cx.alarm(Party::Arbiter, 0, LOOK, Alarm::Tick);
    }
}

fn ask(me: Party, say: Say, cx: &mut Context) -> u64 {
    let (relay, request) = (cx.dice.index(cx.scenario.relays), cx.unique());
    cx.send(me, Party::Relay(relay), Message::Ask { request, say });
    request
}

fn aim(cx: &mut Context) -> Aim {
    match cx.dice.pick(0..=9) {
        0..=2 => Aim::Approve,
        3..=4 => Aim::Leave,
        _ if cx.scenario.quiet => Aim::Approve,
        5..=7 => Aim::Dispute,
        8 => Aim::Cancel,
        _ => Aim::ApproveAnother,
    }
}

fn task(requester: Address, at: Millis, cx: &mut Context) -> Task {
    let quiet = cx.scenario.quiet;
    let published = cx.clock(0).plus(at / 1000);
    let dice = &mut cx.dice;
    let life = if quiet { dice.pick(900..=1200) } else { dice.pick(60..=700) };
    let gpu = dice.chance(0.4);
    Task {
        requester,
        model_cid: "ipfs://bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"
            .parse()
            .expect("a CID is a reference"),
        model_hash: hash(dice),
        input_cid: "https://requester.example/input.json".parse().expect("a URL is a reference"),
        input_hash: ContentHash(B256::from(dice.bytes())),
        config: TaskConfig {
            runtime: if dice.chance(0.5) { Runtime::Wasm } else { Runtime::Embed },
            params: "{}".into(),
            gpu_type: if gpu { "a100".into() } else { String::new() },
            gpu_count: u32::from(gpu),
            min_vram: if gpu { 40_960 } else { 0 },
            max_duration: dice.pick(40..=120),
            max_attempts: dice.pick(1..=4) as u32,
        },
        token: Address::ZERO,
        budget: Amount(U256::from(1_000)),
        provider_stake: Amount::ZERO,
        dispute_bond: Amount::ZERO,
        deadline: published.plus(life),
        dispute_window: dice.pick(0..=90),
        arbiter_window: dice.pick(0..=90),
        arbiter: Key::ARBITER.address(),
        salt: Bytes32(B256::from(dice.bytes())),
    }
}

/// Two in three models are pinned.
fn hash(dice: &mut Dice) -> ContentHash {
    if dice.pick(0..=2) > 0 { ContentHash(B256::from(dice.bytes())) } else { ContentHash::default() }
}
