//! Histories that the rules made: the input is read as a script of what people, time, the relay and the chain do to a task.
//!
//! Bytes seldom become a signed history by chance. Here each three bytes become one step, signed by well-known keys, so that a
//! fuzzer reaches every state and then asks whether what the rules recorded is what a replay takes.

use taskmarket::{
    AcceptTask, Address, Amount, ApproveResult, B256, Bytes32, CancelTask, ChainChange, ChainFact,
    ComputeProof, ContentHash, DisputeTask, Domain, Event, FailTask, Message, Mutation, Recorded,
    ReleaseReason, Resolution, ResolveDispute, Runtime, Task, TaskConfig, TaskRecord, Timestamp, U256,
    Verified, apply, decide, elapse, observe, publish, release, unworkable,
};
use wallet::Wallet;

use crate::Outcome;
use crate::history::check;
use crate::messages::SETTLED;

/// When every script begins, in unix seconds.
const START: u64 = 1_700_000_000;
/// More steps repeat what fewer did.
const MAX_STEPS: usize = 16;
/// How many kinds of things [`Script::cause`] tells apart.
const KINDS: u8 = 21;

/// A script: what it leads to replays to the same record, over a wire too, and no step counts twice.
pub fn history_script(data: &[u8]) -> Outcome {
    let Some(script) = Script::play(data) else { return Outcome::Refused };
    check(&script.history, &script.record);
    Outcome::Taken
}

/// The history that a script leads to; empty for a script of no bytes.
pub fn history_of(data: &[u8]) -> Vec<Recorded> {
    Script::play(data).map(|script| script.history).unwrap_or_default()
}

struct Script {
    requester: Wallet,
    providers: [Wallet; 2],
    arbiter: Wallet,
    now: Timestamp,
    record: TaskRecord,
    history: Vec<Recorded>,
}

impl Script {
    fn play(data: &[u8]) -> Option<Self> {
        let (settings, steps) = data.split_first()?;
        let mut script = Self::begin(*settings);
        for step in steps.chunks_exact(3).take(MAX_STEPS) {
            script.now = script.now.plus(u64::from(step[1]) * u64::from(step[1]));
            script.let_time_act();
            let cause = script.cause(step[0], step[2]);
            script.act(&cause);
        }
        Some(script)
    }

    fn begin(settings: u8) -> Self {
        let has = |bit: u8| settings & (1 << bit) != 0;
        let [requester, first, second, arbiter] = ["11", "22", "33", "44"]
            .map(|byte| Wallet::from_hex(&byte.repeat(32)).expect("below the group's order"));
        let domain = if has(0) { SETTLED } else { Domain::UNSETTLED };
        let is_arbitrated = has(1);
        let stake = if has(0) { Amount(U256::from(500)) } else { Amount::ZERO };
        let content = format!("artifact://{}", "ab".repeat(32));
        let task = Task {
            requester: requester.address(),
            model_cid: content.parse().expect("a reference"),
            model_hash: ContentHash::UNPINNED,
            input_cid: content.parse().expect("a reference"),
            input_hash: ContentHash::UNPINNED,
            config: TaskConfig {
                runtime: Runtime::Wasm,
                params: "{}".to_owned(),
                gpu_type: String::new(),
                gpu_count: 0,
                min_vram: 0,
                max_duration: 600,
                max_attempts: u32::from(settings >> 2 & 3) + 1,
            },
            token: Address::ZERO,
            budget: Amount(U256::from(1000)),
            provider_stake: stake,
            dispute_bond: stake,
            deadline: Timestamp::from_unix(START + if has(4) { 1_000 } else { 100_000 }),
            dispute_window: if is_arbitrated { 3_600 } else { 0 },
            arbiter_window: 7_200,
            arbiter: if is_arbitrated { arbiter.address() } else { Address::ZERO },
            salt: Bytes32(B256::repeat_byte(settings)),
        };
        let now = Timestamp::from_unix(START);
        let verified = sign(&requester, &task, &domain);
        let record = publish(now, &verified).expect("the script's task keeps the rules");
        let event = Event::Published { task: Box::new(verified.into_signed()), domain };
        let history = vec![Recorded { version: 1, at: now, event }];
        Self { requester, providers: [first, second], arbiter, now, record, history }
    }

    fn commit(&mut self, event: Event) {
        apply(&mut self.record, self.now, &event);
        self.history.push(Recorded { version: self.record.version, at: self.now, event });
    }

    fn let_time_act(&mut self) {
        while let Some(event) = elapse(&self.record, self.now) {
            self.commit(event);
        }
    }

    /// Commits what a cause leads to, if anything, and asserts that the same cause leads to nothing more.
    fn act(&mut self, cause: &Cause) {
        if let Some(event) = self.follows(cause) {
            self.commit(event);
            assert_eq!(self.follows(cause), None, "{cause:?} counts twice");
        }
    }

    fn follows(&self, cause: &Cause) -> Option<Event> {
        match cause {
            Cause::Signed(mutation) => decide(&self.record, self.now, mutation).ok().flatten(),
            Cause::Released(attempt, reason) => release(&self.record, *attempt, *reason),
            Cause::Unworkable => unworkable(&self.record),
            Cause::Chain(fact) => observe(&self.record, *fact).ok().flatten(),
        }
    }

    /// What somebody says: `kind` chooses what, `with` varies it.
    fn cause(&self, kind: u8, with: u8) -> Cause {
        let provider = &self.providers[usize::from(with & 1)];
        // Mostly who may say it, sometimes somebody else.
        let requester = if with & 2 == 0 { &self.requester } else { provider };
        let arbiter = if with & 2 == 0 { &self.arbiter } else { provider };
        let (task_id, issued_at) = (self.record.id, self.now);
        // Mostly the attempt that counts, sometimes the next.
        let attempt = self.record.attempts + u32::from(with >> 2 & 1);
        let result_hash = ContentHash(B256::repeat_byte(with >> 3 & 1));
        let of = provider.address();
        let mutation =
            match kind % KINDS {
                0 | 1 => Mutation::Accept(self.signed(
                    provider,
                    AcceptTask {
                        task_id,
                        provider: of,
                        attempt: self.record.attempts + 1,
                        lease_until: self.now.plus(u64::from(with) * 6),
                    },
                )),
                2 => Mutation::Fail(self.signed(
                    provider,
                    FailTask {
                        task_id,
                        provider: of,
                        attempt,
                        code: "out_of_fuel".to_owned(),
                        message: format!("try {with}"),
                        issued_at,
                    },
                )),
                3 | 4 => Mutation::Proof(self.signed(provider, self.proof(of, attempt, result_hash))),
                5 => Mutation::Approve(self.signed(
                    requester,
                    ApproveResult { task_id, provider: of, attempt, result_hash, issued_at },
                )),
                6 => Mutation::Dispute(self.signed(
                    requester,
                    DisputeTask {
                        task_id,
                        provider: of,
                        attempt,
                        result_hash,
                        reason: format!("wrong {with}"),
                        evidence: String::new(),
                        issued_at,
                    },
                )),
                7 => Mutation::Resolve(self.signed(
                    arbiter,
                    ResolveDispute { task_id, attempt, provider_bps: u32::from(with) * 40, issued_at },
                )),
                8 => Mutation::Cancel(self.signed(requester, CancelTask { task_id, issued_at })),
                9 => return Cause::Released(attempt, ReleaseReason::SessionLost),
                10 => return Cause::Released(attempt, ReleaseReason::AttemptDropped),
                20 => return Cause::Unworkable,
                chain => return Cause::Chain(self.fact(chain - 11, with, of, attempt)),
            };
        Cause::Signed(Box::new(mutation))
    }

    fn proof(&self, provider: Address, attempt: u32, result_hash: ContentHash) -> ComputeProof {
        ComputeProof {
            task_id: self.record.id,
            provider,
            attempt,
            model_hash: ContentHash(B256::repeat_byte(0xab)),
            input_hash: ContentHash(B256::repeat_byte(0xab)),
            result_hash,
            result_cid: self.record.task.input_cid.clone(),
            started_at: self.record.updated_at,
            finished_at: self.now,
            gpu_name: "CPU".to_owned(),
        }
    }

    fn fact(&self, kind: u8, with: u8, provider: Address, attempt: u32) -> ChainFact {
        let resolution = Resolution::Arbiter { provider_bps: u32::from(with) * 40 };
        let result_hash = ContentHash(B256::repeat_byte(with >> 3 & 1));
        let change = match kind {
            0 => ChainChange::Funded,
            1 => {
                let lease_until = self.now.plus(u64::from(with) * 6);
                ChainChange::Accepted { provider, attempt: self.record.next_attempt(), lease_until }
            }
            2 if with & 2 == 0 => ChainChange::Failed { provider, attempt },
            2 => ChainChange::Lapsed { provider, attempt },
            3 => {
                let dispute_until = self.now.plus(self.record.task.dispute_window);
                ChainChange::Proven { provider, attempt, result_hash, dispute_until }
            }
            4 => ChainChange::Paid { provider, attempt, result_hash },
            5 => {
                let (reason_hash, evidence_hash) = (Bytes32::default(), Bytes32::default());
                let resolve_until = self.now.plus(self.record.task.arbiter_window);
                ChainChange::Disputed { provider, attempt, reason_hash, evidence_hash, resolve_until }
            }
            6 if with & 2 == 0 => ChainChange::Split { provider, attempt, resolution },
            6 => ChainChange::Split { provider, attempt, resolution: Resolution::Timeout },
            7 => ChainChange::Refunded,
            _ => ChainChange::Cancelled,
        };
        // A transaction for each place in the history, so that none is known already.
        let tx = Bytes32(B256::from(U256::from(self.record.version)));
        let (block, block_hash) = (self.record.version, Bytes32::default());
        ChainFact { tx, log_index: 0, block, block_hash, block_time: self.now, change }
    }

    fn signed<M: Message>(&self, who: &Wallet, message: M) -> Verified<M> {
        sign(who, &message, &self.record.domain)
    }
}

/// Why something happens to a task.
#[derive(Debug)]
enum Cause {
    Signed(Box<Mutation>),
    Released(u32, ReleaseReason),
    Unworkable,
    Chain(ChainFact),
}

fn sign<M: Message>(who: &Wallet, message: &M, domain: &Domain) -> Verified<M> {
    let signed = who.sign(message, domain).expect("the message names its signer");
    signed.verify(domain).expect("it was just signed")
}
