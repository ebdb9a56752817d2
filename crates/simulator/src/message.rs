//! What the parties say to each other.

use taskmarket::{
    AcceptTask, ApproveResult, CancelTask, ComputeProof, DisputeTask, Domain, FailTask, Mutation,
    ResolveDispute, SignatureError, Signed, Task, TaskId,
};

/// One attempt of one task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct AttemptKey {
    pub(crate) task_id: TaskId,
    pub(crate) attempt: u32,
}

/// A message on the network. Those of a session carry its generation.
#[derive(Debug, Clone)]
pub(crate) enum Message {
    /// A host dials.
    Connect { connection: u64 },
    /// The relay greets; the connection's number stands for the nonce.
    Hello { connection: u64 },
    /// The host says what it holds, proofs that were not acknowledged included.
    Register { connection: u64, attempts: Vec<AttemptKey> },
    /// The relay opens the session, and says which attempts are held in vain.
    Welcome { connection: u64, generation: u64, drop: Vec<AttemptKey> },
    /// The relay knows no such session.
    Closed { generation: u64 },
    /// The host reports.
    Heartbeat { generation: u64, busy: u32, attempts: Vec<AttemptKey> },
    /// The relay heard it.
    Heard { generation: u64 },
    /// The relay offers an attempt.
    Assign { generation: u64, offer: u64, attempt: u32, task: Box<Signed<Task>> },
    /// The host takes it or does not.
    Answer { generation: u64, offer: u64, accept: Option<Signed<AcceptTask>> },
    /// The relay calls an attempt off.
    CallOff { generation: u64, key: AttemptKey },
    /// Somebody uses the public API.
    Ask { request: u64, say: Say },
    /// The relay's answer.
    Told { request: u64, verdict: Verdict },
    /// A relay tells the others of a change.
    Changed { task_id: TaskId },
}

impl Message {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Connect { .. } => "connect",
            Self::Hello { .. } => "hello",
            Self::Register { .. } => "register",
            Self::Welcome { .. } => "welcome",
            Self::Closed { .. } => "closed",
            Self::Heartbeat { .. } => "heartbeat",
            Self::Heard { .. } => "heard",
            Self::Assign { .. } => "assign",
            Self::Answer { .. } => "answer",
            Self::CallOff { .. } => "call off",
            Self::Ask { say, .. } => say.name(),
            Self::Told { verdict, .. } => verdict.as_str(),
            Self::Changed { .. } => "changed",
        }
    }

    pub(crate) fn task_id(&self) -> Option<TaskId> {
        match self {
            Self::Assign { task, .. } => Some(task.message.id(&Domain::UNSETTLED)),
            Self::Answer { accept, .. } => accept.as_ref().map(|accept| accept.message.task_id),
            Self::CallOff { key, .. } => Some(key.task_id),
            Self::Ask { say, .. } => Some(say.task_id()),
            Self::Changed { task_id } => Some(*task_id),
            Self::Connect { .. }
            | Self::Hello { .. }
            | Self::Register { .. }
            | Self::Welcome { .. }
            | Self::Closed { .. }
            | Self::Heartbeat { .. }
            | Self::Heard { .. }
            | Self::Told { .. } => None,
        }
    }
}

/// What one asks of the public API.
#[derive(Debug, Clone)]
pub(crate) enum Say {
    Publish(Box<Signed<Task>>),
    Cancel(Signed<CancelTask>),
    Accept(Signed<AcceptTask>),
    Fail(Signed<FailTask>),
    Proof(Box<Signed<ComputeProof>>),
    Approve(Signed<ApproveResult>),
    Dispute(Signed<DisputeTask>),
    Resolve(Signed<ResolveDispute>),
}

impl Say {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Publish(_) => "ask: publish",
            Self::Cancel(_) => "ask: cancel",
            Self::Accept(_) => "ask: accept",
            Self::Fail(_) => "ask: fail",
            Self::Proof(_) => "ask: proof",
            Self::Approve(_) => "ask: approve",
            Self::Dispute(_) => "ask: dispute",
            Self::Resolve(_) => "ask: resolve",
        }
    }

    pub(crate) fn task_id(&self) -> TaskId {
        match self {
            Self::Publish(m) => m.message.id(&Domain::UNSETTLED),
            Self::Cancel(m) => m.message.task_id,
            Self::Accept(m) => m.message.task_id,
            Self::Fail(m) => m.message.task_id,
            Self::Proof(m) => m.message.task_id,
            Self::Approve(m) => m.message.task_id,
            Self::Dispute(m) => m.message.task_id,
            Self::Resolve(m) => m.message.task_id,
        }
    }

    /// Checks the signature and says what is to be done.
    pub(crate) fn verify(self) -> Result<Intent, SignatureError> {
        let domain = &Domain::UNSETTLED;
        let mutation = match self {
            Self::Publish(m) => return Ok(Intent::Publish(Box::new(m.verify(domain)?))),
            Self::Cancel(m) => Mutation::Cancel(m.verify(domain)?),
            Self::Accept(m) => Mutation::Accept(m.verify(domain)?),
            Self::Fail(m) => Mutation::Fail(m.verify(domain)?),
            Self::Proof(m) => Mutation::Proof(m.verify(domain)?),
            Self::Approve(m) => Mutation::Approve(m.verify(domain)?),
            Self::Dispute(m) => Mutation::Dispute(m.verify(domain)?),
            Self::Resolve(m) => Mutation::Resolve(m.verify(domain)?),
        };
        Ok(Intent::Mutate(Box::new(mutation), None))
    }
}

/// What a relay is to do to a task.
#[derive(Debug, Clone)]
pub(crate) enum Intent {
    Publish(Box<taskmarket::Verified<Task>>),
    /// With the host that an accepted attempt runs on.
    Mutate(Box<Mutation>, Option<taskmarket::Bytes32>),
    Release(AttemptKey, taskmarket::ReleaseReason),
    /// End the task as one that fails anywhere.
    End(TaskId),
    Elapse(TaskId),
}

/// A relay's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is so, durably.
    Done,
    /// It will not be, by the word for why.
    Refused(&'static str),
    /// Ask again.
    Later,
}

impl Verdict {
    fn as_str(self) -> &'static str {
        match self {
            Self::Done => "told: done",
            Self::Refused(_) => "told: refused",
            Self::Later => "told: later",
        }
    }
}
