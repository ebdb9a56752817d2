//! The gateway's limits and deadlines: what an operator can say of them, and what nobody needs to.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::builder::RangedU64ValueParser;

use super::ask::is_plain_id;

/// The longest of the times that can be set, in seconds.
const MAX_SECS: u64 = 86_400;
/// The largest body of a request that can be allowed, in bytes: bodies are held in memory.
const MAX_BODY_BYTES: u64 = 1 << 30;

/// The most that bodies can be allowed to take together, in bytes.
const MAX_BODIES_BYTES: u64 = 1 << 40;

/// What can be said of inference on the command line.
#[derive(Debug, Clone, clap::Args)]
pub struct GatewayArgs {
    /// The largest body of an inference request, in bytes.
    #[arg(
        long,
        env = "ZORAI_RELAY_MAX_INFERENCE_BODY",
        default_value_t = 32 << 20,
        value_name = "BYTES",
        value_parser = RangedU64ValueParser::<u64>::new().range(1024..=MAX_BODY_BYTES)
    )]
    pub max_inference_body: u64,

    /// What the bodies of inference requests may take of the memory together until their answers begin, in bytes. Those of 64 KiB and
    /// less do not count.
    #[arg(
        long,
        env = "ZORAI_RELAY_MAX_INFERENCE_BODIES",
        default_value_t = 1 << 30,
        value_name = "BYTES",
        value_parser = RangedU64ValueParser::<u64>::new().range(1024..=MAX_BODIES_BYTES)
    )]
    pub max_inference_bodies: u64,

    /// The longest answer to an inference request, in bytes. A host that sends more is cut off.
    #[arg(
        long,
        env = "ZORAI_RELAY_MAX_INFERENCE_ANSWER",
        default_value_t = 256 << 20,
        value_name = "BYTES",
        value_parser = RangedU64ValueParser::<u64>::new().range(1024..)
    )]
    pub max_inference_answer: u64,

    /// How long a host may take until the first byte of a streamed answer, in seconds, before another is asked. Its time begins when
    /// it is asked.
    #[arg(
        long,
        env = "ZORAI_RELAY_FIRST_BYTE_TIMEOUT",
        default_value_t = 60,
        value_name = "SECS",
        value_parser = RangedU64ValueParser::<u64>::new().range(1..=MAX_SECS)
    )]
    pub first_byte_timeout: u64,

    /// The same for one model, instead of --first-byte-timeout; it may be longer. Repeat it for several.
    #[arg(
        long = "first-byte",
        env = "ZORAI_RELAY_FIRST_BYTE",
        value_name = "MODEL=SECS",
        value_delimiter = ',',
        value_parser = model_deadline
    )]
    pub first_bytes: Vec<ModelDeadline>,

    /// How long a host may pause within a streamed answer, in seconds.
    #[arg(
        long,
        env = "ZORAI_RELAY_TOKEN_TIMEOUT",
        default_value_t = 60,
        value_name = "SECS",
        value_parser = RangedU64ValueParser::<u64>::new().range(1..=MAX_SECS)
    )]
    pub token_timeout: u64,

    /// How long an inference request may take from its first to its last byte, in seconds.
    #[arg(
        long,
        env = "ZORAI_RELAY_INFERENCE_TIMEOUT",
        default_value_t = 600,
        value_name = "SECS",
        value_parser = RangedU64ValueParser::<u64>::new().range(1..=MAX_SECS)
    )]
    pub inference_timeout: u64,

    /// How long a request waits for a free slot where all hosts of its model are busy, in seconds. A request may say otherwise by
    /// x-queue-timeout.
    #[arg(
        long,
        env = "ZORAI_RELAY_QUEUE_TIMEOUT",
        default_value_t = 30,
        value_name = "SECS",
        value_parser = RangedU64ValueParser::<u64>::new().range(0..=MAX_SECS)
    )]
    pub queue_timeout: u64,

    /// How long the records of inference requests are kept, in days. Usage totals stay.
    #[arg(
        long,
        env = "ZORAI_RELAY_KEEP_RECEIPTS",
        default_value_t = 90,
        value_name = "DAYS",
        value_parser = RangedU64ValueParser::<u64>::new().range(1..=36_500)
    )]
    pub keep_receipts: u64,
}

/// A deadline of one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelDeadline {
    /// Which model, as requests name it.
    pub model: String,
    /// The deadline, in seconds.
    pub secs: u64,
}

/// Reads `MODEL=SECS`. A model's id may hold further equals signs.
fn model_deadline(text: &str) -> Result<ModelDeadline, String> {
    let wrong = || format!("expected MODEL=SECS, such as llama-70b=180, with 1 to {MAX_SECS} seconds");
    let (model, secs) = text.rsplit_once('=').ok_or_else(wrong)?;
    let secs = secs.parse().ok().filter(|secs| (1..=MAX_SECS).contains(secs)).ok_or_else(wrong)?;
    if is_plain_id(model) { Ok(ModelDeadline { model: model.to_owned(), secs }) } else { Err(wrong()) }
}

/// The gateway's limits and deadlines. [`GatewayConfig::default`] gives those of the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayConfig {
    /// The largest body of a request, in bytes.
    pub max_body_bytes: usize,
    /// What all bodies that are held may take together, in bytes.
    pub max_bodies_bytes: u64,
    /// The longest answer, in bytes.
    pub max_answer_bytes: u64,
    /// How long a host may take until the first byte of a streamed answer.
    pub first_byte: Duration,
    /// The same, of models that have a deadline of their own.
    pub first_byte_of: BTreeMap<String, Duration>,
    /// How long a host may pause within a streamed answer.
    pub between_tokens: Duration,
    /// How long a request may take in all.
    pub total: Duration,
    /// How long a request waits for a free slot unless it says otherwise.
    pub queue: Duration,
    /// The longest that it may ask to wait.
    pub max_queue: Duration,
    /// Requests that may wait at once; further ones are answered 503.
    pub max_queued: usize,
    /// How often a stream whose host has sent nothing yet gets a comment, so that nothing in between takes it for dead.
    pub keep_alive: Duration,
    /// Hosts that are asked for one request at most.
    pub max_attempts: u32,
    /// How long records are kept.
    pub keep_receipts: Duration,
}

impl GatewayConfig {
    /// How long a host may take until the first byte of this model's streamed answer.
    pub(super) fn first_byte(&self, model: &str) -> Duration {
        self.first_byte_of.get(model).copied().unwrap_or(self.first_byte)
    }
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            max_body_bytes: 32 << 20,
            max_bodies_bytes: 1 << 30,
            max_answer_bytes: 256 << 20,
            first_byte: Duration::from_secs(60),
            first_byte_of: BTreeMap::new(),
            between_tokens: Duration::from_secs(60),
            total: Duration::from_secs(600),
            queue: Duration::from_secs(30),
            max_queue: Duration::from_secs(600),
            max_queued: 4096,
            keep_alive: Duration::from_secs(15),
            max_attempts: 3,
            keep_receipts: Duration::from_secs(90 * 24 * 60 * 60),
        }
    }
}

impl From<&GatewayArgs> for GatewayConfig {
    fn from(args: &GatewayArgs) -> Self {
        Self {
            max_body_bytes: usize::try_from(args.max_inference_body).unwrap_or(usize::MAX),
            max_bodies_bytes: args.max_inference_bodies,
            max_answer_bytes: args.max_inference_answer,
            first_byte: Duration::from_secs(args.first_byte_timeout),
            first_byte_of: args
                .first_bytes
                .iter()
                .map(|of| (of.model.clone(), Duration::from_secs(of.secs)))
                .collect(),
            between_tokens: Duration::from_secs(args.token_timeout),
            total: Duration::from_secs(args.inference_timeout),
            queue: Duration::from_secs(args.queue_timeout),
            keep_receipts: Duration::from_secs(args.keep_receipts * 24 * 60 * 60),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_have_deadlines_of_their_own() {
        let read = |text: &str| model_deadline(text).map(|of| (of.model, of.secs));
        assert_eq!(read("llama-70b=180"), Ok(("llama-70b".to_owned(), 180)));
        assert_eq!(read("org/a=b=1"), Ok(("org/a=b".to_owned(), 1)));
        for wrong in ["", "m", "m=", "=1", "m=0", "m=1.5", "m=-1", "m=86401", "m=x", "m\n=1"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
