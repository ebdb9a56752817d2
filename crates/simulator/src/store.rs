//! The durable store that all relays share: tasks with their histories, and the sessions' generations. What is in it survives every crash.

use std::collections::BTreeMap;

use scheduler::NodeKey;
use taskmarket::{Bytes32, Recorded, TaskId, TaskRecord, Timestamp, next_due};

/// A task as stored.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) record: TaskRecord,
    pub(crate) history: Vec<Recorded>,
    /// The host that took the attempt, kept until the next one does.
    pub(crate) node: Option<Bytes32>,
}

/// The newest session of a host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SessionRow {
    pub(crate) generation: u64,
    pub(crate) relay: usize,
    pub(crate) open: bool,
}

/// A change to commit.
#[derive(Debug, Clone)]
pub(crate) struct Write {
    /// The version that it was decided on; zero for a new task.
    pub(crate) expected: u64,
    pub(crate) record: TaskRecord,
    pub(crate) recorded: Recorded,
    pub(crate) node: Option<Bytes32>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Store {
    pub(crate) tasks: BTreeMap<TaskId, Stored>,
    pub(crate) sessions: BTreeMap<NodeKey, SessionRow>,
}

impl Store {
    pub(crate) fn task(&self, id: &TaskId) -> Option<&Stored> {
        self.tasks.get(id)
    }

    /// Commits a change, unless another came first. `blind` leaves that check out.
    pub(crate) fn commit(&mut self, write: &Write, blind: bool) -> bool {
        let Write { expected, record, recorded, node } = write.clone();
        let Some(stored) = self.tasks.get_mut(&record.id) else {
            self.tasks.insert(record.id, Stored { record, history: vec![recorded], node });
            return true;
        };
        if stored.record.version != expected && !(blind && expected > 0) {
            return false;
        }
        stored.record = record;
        stored.history.push(recorded);
        stored.node = node.or(stored.node);
        true
    }

    /// Tasks on which time is to act.
    pub(crate) fn due(&self, now: Timestamp) -> Vec<TaskId> {
        let due = |stored: &&Stored| next_due(&stored.record).is_some_and(|due| due <= now);
        self.tasks.values().filter(due).map(|stored| stored.record.id).collect()
    }

    /// Opens a session of a host, the newest from now on.
    pub(crate) fn open_session(&mut self, key: NodeKey, relay: usize) -> u64 {
        let generation = self.sessions.get(&key).map_or(0, |row| row.generation) + 1;
        self.sessions.insert(key, SessionRow { generation, relay, open: true });
        generation
    }

    /// Closes a session, if it is the newest.
    pub(crate) fn close_session(&mut self, key: &NodeKey, generation: u64) {
        if let Some(row) = self.sessions.get_mut(key).filter(|row| row.generation == generation) {
            row.open = false;
        }
    }
}
