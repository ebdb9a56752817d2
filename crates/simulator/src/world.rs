//! One run: who takes part, what happens next, and when it is over.

use crate::Note;
use crate::context::{Context, Millis, Occurrence, Party};
use crate::coverage::Coverage;
use crate::host::Host;
use crate::message::Message;
use crate::oracle::{Failure, Invariant, Violation};
use crate::people::{Arbiter, Requester};
use crate::relay::{self, Relay};
use crate::scenario::FAULTS_END;

/// What comes late still comes within this after everything has ended.
const AFTERMATH: Millis = 60_000;

/// How to run.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Steps after which a run stops, whether or not everything has ended.
    pub max_steps: u64,
    /// A rule to break.
    pub sabotage: Option<Sabotage>,
}

impl Default for Config {
    fn default() -> Self {
        Self { max_steps: 200_000, sabotage: None }
    }
}

/// A rule of the driver that is broken on purpose, to see that the invariants find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Sabotage {
    /// The store takes changes whatever version they were decided on.
    BlindCommit,
    /// Relays acknowledge before the store has answered.
    AckBeforeDurable,
    /// Relays take proofs of other attempts.
    NoFencing,
    /// Relays take proofs of whoever computed.
    AnyProvider,
    /// Relays take a second proof.
    SecondProof,
    /// Relays let a provider take a task again after its lease lapsed.
    LapsedReturn,
    /// Relays offer without reserving a slot.
    NoReservation,
    /// Relays do not let time act by itself.
    NoTimer,
    /// Relays commit under their own clock, even if it is behind the history.
    TimeRunsBack,
    /// Relays refuse what they have committed.
    RefuseCommitted,
    /// Relays end a task once a provider failed it for whatever reason.
    HastyEnd,
    /// Relays offer a task again to who said that it fails anywhere.
    FaultReturn,
    /// Hosts and relays do as they should, but no relay ever offers a task.
    NoOffers,
}

impl Sabotage {
    /// All of them, with the invariants by which they may be found.
    pub const ALL: &[(Self, &[Invariant])] = &[
        (Self::BlindCommit, &[Invariant::InSequence]),
        (Self::AckBeforeDurable, &[Invariant::NoTaskLost, Invariant::NoChangeLost, Invariant::ProofStays]),
        (Self::NoFencing, &[Invariant::Fenced]),
        (Self::AnyProvider, &[Invariant::Fenced]),
        (Self::SecondProof, &[Invariant::OneProof]),
        (Self::LapsedReturn, &[Invariant::LapsedStayAway]),
        (Self::NoReservation, &[Invariant::SlotsKept]),
        (Self::NoTimer, &[Invariant::EndsInTime]),
        (Self::TimeRunsBack, &[Invariant::Replays]),
        (Self::RefuseCommitted, &[Invariant::RefusalChangesNothing]),
        (Self::HastyEnd, &[Invariant::EndedOnWord]),
        (Self::FaultReturn, &[Invariant::FaultsStayAway]),
        (Self::NoOffers, &[Invariant::QuietCompletes]),
    ];
}

/// What came of a run in which everything held.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Steps taken.
    pub steps: u64,
    /// A hash of the whole trace: equal seeds give equal ones.
    pub hash: u64,
    /// What went wrong on the way, and where the tasks ended.
    pub coverage: Coverage,
    /// The whole trace.
    pub notes: Vec<Note>,
}

/// Plays the history of one seed.
///
/// # Errors
/// The first invariant that does not hold.
pub fn run(seed: u64, config: Config) -> Result<Outcome, Box<Failure>> {
    let mut world = World::new(seed, config);
    let ended = world.play(config.max_steps);
    if let Some(violation) = world.cx.oracle.violation.take() {
        return Err(failure(seed, world.cx, violation));
    }
    if ended {
        world.last_look();
        if let Some(violation) = world.cx.oracle.violation.take() {
            return Err(failure(seed, world.cx, violation));
        }
    }
    let cx = world.cx;
    let hash = cx.hash();
    Ok(Outcome { steps: cx.step, hash, coverage: cx.coverage, notes: cx.notes })
}

fn failure(seed: u64, cx: Context, violation: Violation) -> Box<Failure> {
    let Violation { invariant, task, found } = violation;
    Box::new(Failure { seed, step: cx.step, invariant, found, task, notes: cx.notes })
}

struct World {
    cx: Context,
    relays: Vec<Relay>,
    hosts: Vec<Host>,
    requesters: Vec<Requester>,
    arbiter: Arbiter,
    /// When everything had ended, and only what is late is waited for.
    ended_at: Option<Millis>,
}

impl World {
    fn new(seed: u64, config: Config) -> Self {
        let mut cx = Context::new(seed, config.sabotage);
        let relays = (0..cx.scenario.relays).map(|index| Relay::new(index, &mut cx)).collect();
        let hosts = (0..cx.scenario.hosts).map(|index| Host::new(index, &mut cx)).collect();
        let requesters = (0..cx.scenario.requesters).map(|index| Requester::new(index, &mut cx)).collect();
        let arbiter = Arbiter::new(&mut cx);
        if cx.scenario.quiet {
            cx.coverage.quiet_runs = 1;
        } else {
            plan_crashes(&mut cx);
        }
        Self { cx, relays, hosts, requesters, arbiter, ended_at: None }
    }

    /// Plays until everything has ended; `false` where the steps were spent before.
    fn play(&mut self, max_steps: u64) -> bool {
        while self.cx.step < max_steps {
            let Some(occurrence) = self.cx.pop() else { return true };
            self.happen(occurrence);
            if self.cx.oracle.violation.is_some() {
                return false;
            }
            let done = self.requesters.iter().all(|requester| requester.is_done(&self.cx));
            let since = self.ended_at.filter(|_| done).unwrap_or(self.cx.now);
            if done && self.cx.now >= since + AFTERMATH {
                return true;
            }
            self.ended_at = done.then_some(since);
        }
        false
    }

    fn happen(&mut self, occurrence: Occurrence) {
        let cx = &mut self.cx;
        match occurrence {
            Occurrence::Deliver { from, to, sent, message } => {
                cx.arrived(from, to, sent, &message);
                self.deliver(from, to, message);
            }
            Occurrence::Alarm { party, life, alarm } => match party {
                Party::Relay(index) => self.relays[index].alarm(life, alarm, cx),
                Party::Host(index) => self.hosts[index].alarm(life, alarm, cx),
                Party::Requester(index) => self.requesters[index].alarm(alarm, cx),
                Party::Arbiter => self.arbiter.alarm(cx),
            },
            Occurrence::Commit(committing) => relay::commit(*committing, &self.relays, cx),
            Occurrence::Committed(answered) => self.relays[answered.relay].answered(*answered, cx),
            Occurrence::Crash { party, down } => {
                let crashed = match party {
                    Party::Relay(index) => self.relays[index].crash(cx),
                    Party::Host(index) => self.hosts[index].crash(cx),
                    Party::Requester(_) | Party::Arbiter => false,
                };
                if crashed {
                    cx.note(party, None, "crashes, for milliseconds", down);
                    cx.after(down, Occurrence::Restart(party));
                }
            }
            Occurrence::Restart(party) => {
                cx.note(party, None, "restarts", 0);
                match party {
                    Party::Relay(index) => self.relays[index].restart(cx),
                    Party::Host(index) => self.hosts[index].restart(cx),
                    Party::Requester(_) | Party::Arbiter => {}
                }
            }
            Occurrence::Bound(id) => cx.oracle.bound(id, &cx.store),
        }
    }

    fn deliver(&mut self, from: Party, to: Party, message: Message) {
        let cx = &mut self.cx;
        match to {
            Party::Relay(index) => self.relays[index].receive(from, message, cx),
            Party::Host(index) => self.hosts[index].receive(from, message, cx),
            Party::Requester(index) => self.requesters[index].receive(&message),
            Party::Arbiter => {}
        }
    }

    fn last_look(&mut self) {
        let cx = &mut self.cx;
        let quiet = cx.scenario.quiet;
        let wanted: Vec<_> = self.requesters.iter().filter(|_| quiet).flat_map(Requester::wanted).collect();
        cx.oracle.last_look(&cx.store, &wanted);
        for stored in cx.store.tasks.values() {
            *cx.coverage.statuses.entry(stored.record.status()).or_default() += 1;
        }
    }
}

/// Crashes of relays and hosts, none for longer than a minute.
fn plan_crashes(cx: &mut Context) {
    let relays = (0..cx.scenario.relays).map(Party::Relay);
    let parties: Vec<_> = relays.chain((0..cx.scenario.hosts).map(Party::Host)).collect();
    for party in parties {
        let mut at: Millis = 0;
        for _ in 0..cx.dice.pick(0..=3) {
            at += cx.dice.pick(2_000..=FAULTS_END / 4);
            let down = cx.dice.pick(500..=60_000);
            cx.after(at, Occurrence::Crash { party, down });
        }
    }
}
