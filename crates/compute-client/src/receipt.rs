//! Inference receipts: what one proves of a request and its answer, against the bytes one has, and whose word each statement is.

use rpc::inference::{EngineUsage, ReceiptView, UsageSource};
use rpc::tasks::SignedMutation;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use taskmarket::{Address, Amount, ContentHash, Domain, InferenceReceipt, Signed, U256};

use crate::content::hash_of;
use crate::failure::{Failure, Outcome};
use crate::inference::Usage;
use crate::sse::Parser;
use crate::ui::{clean, count, span};

/// What prices are for, in tokens.
const PRICED_TOKENS: u64 = 1_000_000;
/// What a relay sends while it looks for a provider: it comes before the answer that the provider signs for.
const KEEP_ALIVE: &[u8] = b": keep-alive\n\n";

/// A document that claims what a request took.
#[derive(Debug)]
pub(crate) enum Claim {
    /// The relay's record, with the provider's receipt in it.
    Record(Box<ReceiptView>),
    /// The provider's receipt alone.
    Signed(Box<SignedMutation<InferenceReceipt>>),
}

/// Something that a claim says, in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Statement {
    /// What.
    pub(crate) text: String,
    /// By whose word it holds.
    pub(crate) word: Word,
}

/// By whose word a statement holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Word {
    /// The provider signed it.
    Provider,
    /// The provider signed it, and the bytes at hand show it.
    Shown,
    /// Nobody signed it: the relay says so.
    Relay,
}

impl Word {
    /// For people.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Provider => "signed by the provider",
            Self::Shown => "signed by the provider, and so it is",
            Self::Relay => "the relay's word alone",
        }
    }
}

/// The bytes at hand.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Exchange<'a> {
    /// The request's body.
    pub(crate) request: Option<&'a [u8]>,
    /// The answer's body.
    pub(crate) response: Option<&'a [u8]>,
}

impl Claim {
    /// Reads a document; `None` if it is about something else.
    ///
    /// # Errors
    /// It claims to be one, and cannot be read.
    pub(crate) fn read(bytes: &[u8]) -> Option<Outcome<Self>> {
        /// What tells claims from other documents.
        #[derive(Deserialize)]
        struct Kind {
            usage_source: Option<Value>,
            mutation: Option<Value>,
        }
        let kind: Kind = serde_json::from_slice(bytes).ok()?;
        let unsound = |error| Failure::unverified(format_args!("the receipt cannot be read: {error}"));
        if kind.usage_source.is_some() {
            let record = serde_json::from_slice(bytes).map(|record| Self::Record(Box::new(record)));
            return Some(record.map_err(unsound));
        }
        kind.mutation?;
        let signed = serde_json::from_slice(bytes).map(|signed| Self::Signed(Box::new(signed)));
        Some(signed.map_err(unsound))
    }

    /// The request's id.
    pub(crate) fn request_id(&self) -> &str {
        match self {
            Self::Record(record) => &record.request_id,
            Self::Signed(signed) => &signed.mutation.request_id,
        }
    }

    /// Who served the request, by this claim.
    pub(crate) fn provider(&self) -> Address {
        match self {
            Self::Record(record) => record.provider,
            Self::Signed(signed) => signed.mutation.provider,
        }
    }

    /// Checks all that can be checked with these bytes, and says what holds and by whose word.
    ///
    /// # Errors
    /// Exit code 5 where something does not hold, or nobody signed anything.
    pub(crate) fn check(&self, exchange: Exchange<'_>) -> Outcome<Vec<Statement>> {
        let (signed, record) = match self {
            Self::Signed(signed) => (&**signed, None),
            Self::Record(record) => {
                let signed = record.receipt.as_ref().ok_or_else(|| unsigned(record))?;
                (signed, Some(&**record))
            }
        };
        let verified = Signed::from(signed.clone()).verify(&Domain::UNSETTLED);
        verified.map_err(|error| Failure::unverified(format_args!("the receipt: {error}")))?;
        let receipt = &signed.mutation;
        let mut statements = vec![said(Word::Provider, origin(receipt))];
        statements.push(request(receipt, exchange.request)?);
        statements.push(response(receipt, exchange.response)?);
        statements.push(tokens(receipt, exchange.response)?);
        let took = receipt.finished_at.since(receipt.started_at);
        if receipt.started_at > receipt.finished_at {
            return Err(Failure::unverified("the receipt ends before it begins"));
        }
        let times = format!("it took from {} to {}, {took} s", receipt.started_at, receipt.finished_at);
        statements.push(said(Word::Provider, times));
        if let Some(record) = record {
            agree(record, receipt)?;
            statements.push(said(Word::Relay, seen(record)));
            statements.push(cost(record)?);
        }
        Ok(statements)
    }
}

fn said(word: Word, text: impl Into<String>) -> Statement {
    Statement { text: text.into(), word }
}

fn unsigned(record: &ReceiptView) -> Failure {
    let why = record.fault.as_deref().map_or_else(|| "none came".to_owned(), clean);
    Failure::unverified(format_args!(
        "nothing is proven: the relay has no receipt of {} for this request: {why}",
        record.provider
    ))
}

fn origin(receipt: &InferenceReceipt) -> String {
    let InferenceReceipt { request_id, provider, node_id, relay_id, model, engine, quantization, .. } =
        receipt;
    let quantization =
        if quantization.is_empty() { String::new() } else { format!(" in {}", clean(quantization)) };
    format!(
        "{provider} served request {} of relay {} by model {} on {}{quantization}, host {node_id}",
        clean(request_id),
        clean(relay_id),
        clean(model),
        clean(engine)
    )
}

fn request(receipt: &InferenceReceipt, bytes: Option<&[u8]>) -> Outcome<Statement> {
    let signed = receipt.request_hash;
    let Some(bytes) = bytes else {
        return Ok(said(
            Word::Provider,
            format!("the request has SHA-256 {signed}; its bytes were not checked"),
        ));
    };
    let hash = hash(bytes);
    if hash != signed {
        return Err(Failure::unverified(format_args!(
            "the request is not the one that was served: its SHA-256 is {hash}, the receipt says {signed}"
        ))
        .hint("give the body to the byte, as it was sent"));
    }
    Ok(said(Word::Shown, format!("the request is these {} bytes, SHA-256 {hash}", bytes.len())))
}

fn response(receipt: &InferenceReceipt, bytes: Option<&[u8]>) -> Outcome<Statement> {
    let signed = receipt.response_hash;
    let Some(bytes) = bytes else {
        return Ok(said(
            Word::Provider,
            format!("the answer has SHA-256 {signed}; its bytes were not checked"),
        ));
    };
    let of_provider = without_keep_alives(bytes);
    if let Some(own) = [bytes, of_provider].into_iter().find(|bytes| hash(bytes) == signed) {
        let besides = bytes.len() - own.len();
        let besides = if besides == 0 {
            String::new()
        } else {
            format!(", after {besides} of the relay's to keep alive")
        };
        return Ok(said(
            Word::Shown,
            format!("the answer is these {} bytes, SHA-256 {signed}{besides}", own.len()),
        ));
    }
    Err(Failure::unverified(format_args!(
        "the answer is not the provider's: its SHA-256 is {}, the receipt says {signed}",
        hash(of_provider)
    ))
    .hint("give the body to the byte, as it came"))
}

fn without_keep_alives(mut bytes: &[u8]) -> &[u8] {
    while let Some(rest) = bytes.strip_prefix(KEEP_ALIVE) {
        bytes = rest;
    }
    bytes
}

fn tokens(receipt: &InferenceReceipt, response: Option<&[u8]>) -> Outcome<Statement> {
    let (prompt, completion) = (receipt.prompt_tokens, receipt.completion_tokens);
    let text = format!("{} in, {completion} out", count(prompt, "token"));
    match response.and_then(usage_in) {
        None => Ok(said(Word::Provider, text)),
        Some(usage) if (usage.prompt_tokens, usage.completion_tokens) == (prompt, completion) => {
            Ok(said(Word::Shown, format!("{text}, as the engine's answer says too")))
        }
        Some(usage) => Err(Failure::unverified(format_args!(
            "the receipt says {text}, the engine's answer {} in, {} out",
            usage.prompt_tokens, usage.completion_tokens
        ))),
    }
}

/// What the engine says in its answer that it used; the last word counts.
fn usage_in(response: &[u8]) -> Option<Usage> {
    let usage = |value: &Value| {
        let usage = value.get("usage").or_else(|| value.get("response")?.get("usage"))?;
        Usage::of(EngineUsage::deserialize(usage).ok()?)
    };
    if let Ok(whole) = serde_json::from_slice::<Value>(response) {
        return usage(&whole);
    }
    let events = Parser::default().feed(response).ok()?;
    let mut values = events.iter().rev().filter_map(|event| serde_json::from_str::<Value>(event).ok());
    values.find_map(|value| usage(&value))
}

/// The relay's record and the receipt in it must tell of the same.
fn agree(record: &ReceiptView, receipt: &InferenceReceipt) -> Outcome {
    let is_counted = record.usage_source == UsageSource::Deltas;
    let agreed = [
        ("request_id", record.request_id == receipt.request_id),
        ("provider", record.provider == receipt.provider),
        ("node_id", record.node_id == receipt.node_id),
        ("model", record.model == receipt.model),
        ("prompt_tokens", record.prompt_tokens == receipt.prompt_tokens),
        ("completion_tokens", is_counted || record.completion_tokens == receipt.completion_tokens),
    ];
    match agreed.iter().find(|(_, agrees)| !agrees) {
        None => Ok(()),
        Some((field, _)) => {
            Err(Failure::unverified(format_args!("relay and provider do not agree on {field}")))
        }
    }
}

fn seen(record: &ReceiptView) -> String {
    let millis = |millis: u64| span(std::time::Duration::from_millis(millis));
    let outcome = match record.outcome {
        rpc::inference::Outcome::Completed => "it was answered in full",
        rpc::inference::Outcome::Failed => "its answer failed",
        rpc::inference::Outcome::Cancelled => "its client left before the end",
    };
    let counted = match record.usage_source {
        UsageSource::Usage => "by the engine's count",
        UsageSource::Deltas => "by the pieces that passed",
    };
    format!(
        "at {} {outcome}, asked of {}, first byte after {}, last after {}; {} out {counted}",
        record.at,
        count(record.attempts.into(), "host"),
        millis(record.first_byte_ms),
        millis(record.total_ms),
        count(record.completion_tokens, "token")
    )
}

/// Checks the cost's arithmetic, where the record has the prices. Neither is signed.
fn cost(record: &ReceiptView) -> Outcome<Statement> {
    let ReceiptView { cost, prompt_tokens, completion_tokens, .. } = record;
    if record.outcome == rpc::inference::Outcome::Failed {
        if *cost != Amount::ZERO {
            let why = format_args!("the cost is wrong: an answer that failed costs nothing, not {cost}");
            return Err(Failure::unverified(why));
        }
        return Ok(said(Word::Relay, "it cost nothing, as its answer failed"));
    }
    let (Some(prompt), Some(completion)) = (record.prompt_price, record.completion_price) else {
        return Ok(said(Word::Relay, format!("it cost {cost}; the record lacks the prices")));
    };
    let terms =
        format!("({prompt_tokens} × {prompt} + {completion_tokens} × {completion}) / {PRICED_TOKENS}");
    let due = due((*prompt_tokens, prompt), (*completion_tokens, completion));
    if due != Some(*cost) {
        let due = due.map_or_else(|| "more than there is".to_owned(), |due| due.to_string());
        return Err(Failure::unverified(format_args!("the cost is wrong: {terms} is {due}, not {cost}")));
    }
    Ok(said(Word::Relay, format!("it cost {cost} = {terms}, rounded up")))
}

fn due(prompt: (u64, Amount), completion: (u64, Amount)) -> Option<Amount> {
    let part = |(tokens, price): (u64, Amount)| price.0.checked_mul(U256::from(tokens));
    let sum = part(prompt)?.checked_add(part(completion)?)?;
    Some(Amount(sum.div_ceil(U256::from(PRICED_TOKENS))))
}

fn hash(bytes: &[u8]) -> ContentHash {
    hash_of(artifact::Digest::of(bytes))
}

#[cfg(test)]
mod tests {
    use rpc::inference::{InferenceKind, Outcome as Ended};
    use taskmarket::{B256, Bytes32, Timestamp};
    use wallet::Wallet;

    use super::*;

    const REQUEST: &[u8] = br#"{"model":"tiny"}"#;
    const RESPONSE: &[u8] = b"data: {\"choices\":[]}\n\ndata: {\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":5}}\n\ndata: [DONE]\n\n";

    fn record(change: impl FnOnce(&mut InferenceReceipt)) -> ReceiptView {
        let wallet = Wallet::random();
        let mut receipt = InferenceReceipt {
            request_id: "r-1".to_owned(),
            provider: wallet.address(),
            node_id: Bytes32(B256::repeat_byte(1)),
            relay_id: "hz-1".to_owned(),
            request_hash: hash(REQUEST),
            response_hash: hash(RESPONSE),
            model: "tiny".to_owned(),
            engine: "llama.cpp".to_owned(),
            quantization: String::new(),
            prompt_tokens: 3,
            completion_tokens: 5,
            started_at: Timestamp::from_unix(1),
            finished_at: Timestamp::from_unix(2),
        };
        change(&mut receipt);
        ReceiptView {
            request_id: receipt.request_id.clone(),
            at: Timestamp::from_unix(1),
            kind: InferenceKind::Chat,
            model: receipt.model.clone(),
            provider: receipt.provider,
            node_id: receipt.node_id,
            outcome: Ended::Completed,
            attempts: 1,
            first_byte_ms: 20,
            total_ms: 900,
            prompt_tokens: receipt.prompt_tokens,
            completion_tokens: receipt.completion_tokens,
            usage_source: UsageSource::Usage,
            cost: Amount(U256::from(13)),
            prompt_price: Some(Amount(U256::from(1_000_000))),
            completion_price: Some(Amount(U256::from(1_900_001))),
            receipt: Some(wallet.sign(&receipt, &Domain::UNSETTLED).unwrap().into()),
            fault: None,
        }
    }

    fn checked(record: ReceiptView) -> Outcome<Vec<Statement>> {
        let text = serde_json::to_vec(&record).unwrap();
        let claim = Claim::read(&text).unwrap().unwrap();
        claim.check(Exchange { request: Some(REQUEST), response: Some(RESPONSE) })
    }

    #[test]
    fn what_holds_is_said_with_whose_word_it_is() {
        let statements = checked(record(|_| {})).unwrap();
        let words: Vec<_> = statements.iter().map(|statement| statement.word).collect();
        let (provider, shown, relay) = (Word::Provider, Word::Shown, Word::Relay);
        assert_eq!(words, [provider, shown, shown, shown, provider, relay, relay], "{statements:#?}");
        assert!(statements[6].text.contains("13 = (3 × 1000000 + 5 × 1900001) / 1000000"), "{statements:#?}");
        let alone = Claim::Signed(Box::new(record(|_| {}).receipt.unwrap()));
        let statements = alone.check(Exchange::default()).unwrap();
        assert!(statements.iter().all(|statement| statement.word == Word::Provider), "{statements:#?}");
    }

    #[test]
    fn what_failed_costs_nothing() {
        let mut failed = record(|_| {});
        (failed.outcome, failed.cost) = (Ended::Failed, Amount::ZERO);
        let statements = checked(failed).unwrap();
        assert!(statements.last().unwrap().text.contains("it cost nothing"), "{statements:#?}");
    }

    #[test]
    fn usage_blocks_may_name_a_count_twice_or_not_know_it() {
        let both =
            br#"{"usage":{"prompt_tokens":3,"input_tokens":3,"completion_tokens":5,"output_tokens":5}}"#;
        assert_eq!(usage_in(both), Some(Usage { prompt_tokens: 3, completion_tokens: 5 }));
        assert_eq!(usage_in(br#"{"usage":{"prompt_tokens":null}}"#), None);
    }

    #[test]
    fn every_lie_is_found() {
        type Lie = fn(&mut ReceiptView);
        let lies: [(&str, Lie); 9] = [
            ("the cost is wrong", |view| view.outcome = Ended::Failed),
            ("receipt: ", |view| view.receipt.as_mut().unwrap().mutation.completion_tokens = 4),
            ("receipt: ", |view| view.receipt.as_mut().unwrap().mutation.provider = Address::ZERO),
            ("agree on provider", |view| view.provider = Address::ZERO),
            ("agree on model", |view| view.model = "large".to_owned()),
            ("agree on completion_tokens", |view| view.completion_tokens = 6),
            ("the cost is wrong", |view| view.cost = Amount(U256::from(14))),
            ("the cost is wrong", |view| view.prompt_price = Some(Amount(U256::MAX))),
            ("nothing is proven", |view| view.receipt = None),
        ];
        for (reason, lie) in lies {
            let mut view = record(|_| {});
            lie(&mut view);
            let failure = checked(view).unwrap_err();
            assert_eq!(failure.exit(), crate::failure::Exit::Unverified);
            assert!(failure.message().contains(reason), "{reason}: {failure:?}");
        }
        type Change = fn(&mut InferenceReceipt);
        let signed: [(&str, Change); 4] = [
            ("the request is not the one", |receipt| receipt.request_hash = ContentHash::UNPINNED),
            ("the answer is not the provider's", |receipt| receipt.response_hash = ContentHash::UNPINNED),
            ("the engine's answer 3 in, 5 out", |receipt| receipt.prompt_tokens = 4),
            ("ends before it begins", |receipt| receipt.started_at = Timestamp::from_unix(3)),
        ];
        for (reason, change) in signed {
            let failure = checked(record(change)).unwrap_err();
            assert!(failure.message().contains(reason), "{reason}: {failure:?}");
        }
    }

    #[test]
    fn what_the_relay_sent_before_the_answer_is_told_apart() {
        let view = record(|_| {});
        let response = [KEEP_ALIVE, KEEP_ALIVE, RESPONSE].concat();
        let exchange = Exchange { request: None, response: Some(&response) };
        let statements = Claim::Record(Box::new(view)).check(exchange).unwrap();
        assert!(statements[2].text.ends_with("after 28 of the relay's to keep alive"), "{statements:#?}");
    }

    #[test]
    fn other_documents_are_no_claims() {
        for text in ["{", "[]", "{}", r#"{"task_id":"0x"}"#, r#"{"format":"x"}"#] {
            assert!(Claim::read(text.as_bytes()).is_none(), "{text}");
        }
        assert!(Claim::read(br#"{"mutation":{},"signature":"0x"}"#).unwrap().is_err());
    }
}
