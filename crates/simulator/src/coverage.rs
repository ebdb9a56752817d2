//! What went wrong in a run, counted, so that a run without faults cannot pass for a good one.

use std::collections::BTreeMap;
use std::fmt;

use taskmarket::Status;

/// The words by which relays refuse, all of which a long run must have heard.
pub const REFUSALS: [&str; 5] =
    ["conflict", "invalid_field", "invalid_signature", "stale_attempt", "wrong_party"];

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// One kind of thing that goes wrong, or of misbehaviour.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Fault {
            $($(#[$doc])* $name,)*
        }

        impl Fault {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The name in summaries.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

faults! {
    /// A message took seconds.
    Delayed = "delayed",
    /// A message came before one that was sent earlier.
    Reordered = "reordered",
    /// A message came twice.
    Duplicated = "duplicated",
    /// A message was lost.
    Dropped = "dropped",
    /// A message met a partition.
    Partitioned = "partitioned",
    /// A relay lost its memory.
    RelayCrashed = "relay_crashed",
    /// A commit under way when its relay crashed did not land.
    CommitLost = "commit_lost",
    /// A commit under way when its relay crashed landed.
    CommitLanded = "commit_landed",
    /// Another change came first.
    CommitConflict = "commit_conflict",
    /// A relay's clock was set back or forth.
    ClockStepped = "clock_stepped",
    /// A host opened a session while an older one was open.
    SessionFenced = "session_fenced",
    /// A session came to its end by silence.
    SessionLost = "session_lost",
    /// A relay released an attempt after the grace.
    GraceOver = "grace_over",
    /// A relay released an attempt that its host did not list.
    AttemptDropped = "attempt_dropped",
    /// A relay told a host to forget an attempt.
    CalledOff = "called_off",
    /// A host lost its memory.
    HostCrashed = "host_crashed",
    /// A host accepted and never finished.
    HostStalled = "host_stalled",
    /// A host accepted and fell silent for a while.
    HostSilent = "host_silent",
    /// A host gave an attempt up.
    HostFailed = "host_failed",
    /// A relay ended a task that providers say fails anywhere.
    Unworkable = "unworkable",
    /// A host refused an offer.
    OfferRefused = "offer_refused",
    /// A host did not answer an offer in time.
    OfferTimedOut = "offer_timed_out",
    /// A host accepted for a moment only.
    LeaseShort = "lease_short",
    /// A host accepted for longer than the rules allow.
    LeaseTooLong = "lease_too_long",
    /// Somebody accepted without having been asked.
    AcceptUnasked = "accept_unasked",
    /// A host accepted a task that a lease of its provider lapsed on.
    AcceptLapsed = "accept_lapsed",
    /// Somebody accepted another attempt than the next.
    AcceptWrongAttempt = "accept_wrong_attempt",
    /// A proof over another input.
    ProofWrongInput = "proof_wrong_input",
    /// A proof of another attempt.
    ProofWrongAttempt = "proof_wrong_attempt",
    /// A proof of somebody else's task.
    ProofOfOthers = "proof_of_others",
    /// A proof in somebody else's name.
    ProofForged = "proof_forged",
    /// A proof after the lease.
    ProofLate = "proof_late",
    /// A proof sent again.
    ProofRepeated = "proof_repeated",
    /// A second proof with another result.
    ProofChanged = "proof_changed",
    /// A task published again.
    PublishRepeated = "publish_repeated",
    /// A requester cancelled.
    Cancelled = "cancelled",
    /// A requester approved another result.
    ApprovedWrongHash = "approved_wrong_hash",
    /// A requester disputed.
    Disputed = "disputed",
    /// A requester signed for somebody else's task.
    StrangerSigned = "stranger_signed",
    /// A message by a clock that is off, within tolerance.
    ClockWithin = "clock_within",
    /// A message by a clock that is off beyond tolerance.
    ClockBeyond = "clock_beyond",
    /// The arbiter let a dispute be.
    ArbiterSilent = "arbiter_silent",
    /// The arbiter resolved a dispute.
    ArbiterResolved = "arbiter_resolved",
    /// The arbiter resolved another attempt.
    ArbiterWrongAttempt = "arbiter_wrong_attempt",
}

/// What happened in one run, or in many.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage {
    /// How often each fault happened.
    pub faults: BTreeMap<Fault, u64>,
    /// How often relays refused, by the word for why.
    pub refusals: BTreeMap<&'static str, u64>,
    /// Tasks by where they ended.
    pub statuses: BTreeMap<Status, u64>,
    /// Runs on a quiet network with honest parties.
    pub quiet_runs: u64,
}

impl Coverage {
    pub(crate) fn count(&mut self, fault: Fault) {
        *self.faults.entry(fault).or_default() += 1;
    }

    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        add(&mut self.faults, &other.faults);
        add(&mut self.refusals, &other.refusals);
        add(&mut self.statuses, &other.statuses);
        self.quiet_runs += other.quiet_runs;
    }

    /// What should have happened by now and did not: faults, refusals and final statuses, by name.
    pub fn missing(&self) -> Vec<&'static str> {
        let faults = Fault::ALL.iter().filter(|fault| !self.faults.contains_key(fault));
        let refusals = REFUSALS.into_iter().filter(|code| !self.refusals.contains_key(code));
        let statuses =
            Status::ALL.into_iter().filter(|status| status.is_final() && !self.statuses.contains_key(status));
        let quiet = (self.quiet_runs == 0).then_some("quiet runs");
        faults
            .map(|fault| fault.as_str())
            .chain(refusals)
            .chain(statuses.map(Status::as_str))
            .chain(quiet)
            .collect()
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        list(f, "tasks", self.statuses.iter().map(|(status, count)| (status.as_str(), *count)))?;
        list(f, "\nfaults", self.faults.iter().map(|(fault, count)| (fault.as_str(), *count)))?;
        list(f, "\nrefusals", self.refusals.iter().map(|(code, count)| (*code, *count)))
    }
}

fn add<K: Ord + Copy>(sum: &mut BTreeMap<K, u64>, other: &BTreeMap<K, u64>) {
    for (key, count) in other {
        *sum.entry(*key).or_default() += count;
    }
}

fn list<'a>(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    mut items: impl Iterator<Item = (&'a str, u64)>,
) -> fmt::Result {
    write!(f, "{name}:")?;
    items.try_for_each(|(name, count)| write!(f, " {name} {count}"))
}
