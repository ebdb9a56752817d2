//! What must hold for any input that a stranger can send: one function for each way in.
//!
//! A target takes bytes and panics where a promise is broken: reading never panics, what was read is written back alike, a digest
//! or a signature does not depend on how the text was spelt, a history that replays still does after it went over a wire.
//! `tests/corpus.rs` feeds each target its seeds and a few thousand variants of them; `targets/` wraps them for cargo-fuzz.

mod content;
mod history;
mod messages;
mod script;
mod wire;

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use content::{folder_manifest, params, reference};
pub use history::{evidence, history};
pub use messages::{publish_task, signed_message};
pub use script::{history_of, history_script};
pub use wire::{handshake, task_query};

/// What a target made of its input. A broken promise is a panic, never an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is well-formed, and everything held.
    Taken,
    /// It is not well-formed.
    Refused,
}

impl Outcome {
    fn of<T>(read: Option<T>) -> Self {
        if read.is_some() { Self::Taken } else { Self::Refused }
    }
}

/// A way in, by the name of its folder of seeds and of its cargo-fuzz target.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// The name.
    pub name: &'static str,
    /// What to feed.
    pub run: fn(&[u8]) -> Outcome,
}

/// Every target.
pub const TARGETS: [Target; 10] = [
    Target { name: "signed_message", run: signed_message },
    Target { name: "publish_task", run: publish_task },
    Target { name: "history", run: history },
    Target { name: "history_script", run: history_script },
    Target { name: "evidence", run: evidence },
    Target { name: "handshake", run: handshake },
    Target { name: "reference", run: reference },
    Target { name: "folder_manifest", run: folder_manifest },
    Target { name: "params", run: params },
    Target { name: "task_query", run: task_query },
];

/// Reads a value of JSON text, if the text is one. Asserts that it comes back from its own text unchanged, that writing it again gives
/// the same text, and that a reader who parses the text into a tree first reads the same.
fn read<T: DeserializeOwned + Serialize + PartialEq + Debug>(data: &[u8]) -> Option<T> {
    let value: T = serde_json::from_slice(data).ok()?;
    let text = written(&value);
    assert_eq!(again(&value), value, "changed by a round trip: {text}");
    assert_eq!(written(&again(&value)), text, "written in two ways");
    // A tree holds what a typed reader skips, such as numbers too big for any type: not every text has one.
    if let Ok(tree) = serde_json::from_slice::<serde_json::Value>(data) {
        let by_tree: T = serde_json::from_value(tree).expect("what reads from text reads from its tree");
        assert_eq!(by_tree, value, "text and tree are read differently");
    }
    Some(value)
}

/// The value after it went over a wire.
fn again<T: DeserializeOwned + Serialize>(value: &T) -> T {
    let text = written(value);
    match serde_json::from_str(&text) {
        Ok(value) => value,
        Err(error) => panic!("what was written does not read: {error}: {text}"),
    }
}

fn written<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("wire types always serialise")
}
