//! JSON from strangers: whatever is wrong with it, it is an error that says where, and never a panic.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking")]

use serde::de::DeserializeOwned;
use serde_json::Value;
use taskmarket::{Domain, Message, Recorded, Signed, TaskRecord, replay};

mod by_type;
use by_type::by_type;

/// Stands in a JSON text for the value under test.
const PLACEHOLDER: &str = "@here@";

/// One good message of each type, with its signature.
fn examples() -> Vec<(String, Value, String)> {
    let file: Value = serde_json::from_str(include_str!("../../../vectors/eip712.json")).unwrap();
    let vectors = file["vectors"].as_array().unwrap();
    let plain = vectors.iter().filter(|vector| vector["id"].as_str().unwrap().ends_with("/unsettled/plain"));
    let text = |vector: &Value, key: &str| vector[key].as_str().unwrap().to_owned();
    plain.map(|vector| (text(vector, "type"), vector["message"].clone(), text(vector, "signature"))).collect()
}

/// The paths to all values of a message that are not objects.
fn leaves(value: &Value, path: &str) -> Vec<String> {
    match value {
        Value::Object(fields) => {
            fields.iter().flat_map(|(name, value)| leaves(value, &format!("{path}/{name}"))).collect()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            vec![path.to_owned()]
        }
    }
}

fn quoted(text: impl Into<String>) -> String {
    Value::String(text.into()).to_string()
}

/// JSON texts that cannot stand where `good` stands.
fn wrong_values(path: &str, good: &Value) -> Vec<String> {
    let mut wrong: Vec<String> =
        ["null", "true", "[]", "[1]", "{}", "{\"a\":{}}", "-1", "1.5", "1e400", "nul", "'a'"]
            .map(str::to_owned)
            .into();
    wrong.push("[".repeat(100_000));
    match good {
        Value::Number(_) => {
            let u32s = ["gpu_count", "max_attempts", "attempt", "provider_bps"];
            if u32s.iter().any(|name| path.ends_with(&format!("/{name}"))) {
                wrong.push("4294967296".to_owned());
            }
            wrong.extend(
                ["18446744073709551616", "-9223372036854775809", "1.0", "\"1\"", "0x10"].map(str::to_owned),
            );
        }
        Value::String(text) => {
            wrong.extend(["7", "0", "\"\u{1}\"", "\"\\ud800\""].map(str::to_owned));
            wrong.extend(wrong_texts(path, text).into_iter().map(quoted));
        }
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => {
            panic!("no message has such a field: {path}")
        }
    }
    wrong
}

/// Texts that a field of text refuses, by what its good value looks like; none where any text is right.
fn wrong_texts(path: &str, good: &str) -> Vec<String> {
    let long = "f".repeat(1 << 20);
    let mut wrong = if path.ends_with("_cid") {
        vec!["ftp://a".into(), "https://".into(), "https://a b".into(), format!("https://{long}")]
    } else if good.starts_with("0x") && good.len() == 66 {
        vec![good[2..].to_owned(), good[..65].to_owned(), format!("{good}0"), good.replace("0x", "0X")]
    } else if good.starts_with("0x") && good.len() == 42 {
        let swapped: String = good[2..]
            .chars()
            .map(|c| if c.is_lowercase() { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() })
            .collect();
        vec![good[2..].to_owned(), good[..41].to_owned(), format!("{good}0"), format!("0x{swapped}")]
    } else if good.len() == 64 {
        vec![good[1..].to_owned(), format!("{good}0"), "g".repeat(64), "é".repeat(32)]
    } else if good.ends_with('Z') {
        ["2026-11-23", "2026-13-01T00:00:00Z", "1969-12-31T23:59:59Z", "2026-11-23T00:00:00.5Z"]
            .into_iter()
            .chain(["10000-01-01T00:00:00Z", "2026-11-23T00:00:00", "1800000000", "-002026-01-01T00:00:00Z"])
            .map(str::to_owned)
            .collect()
    } else if good.bytes().all(|byte| byte.is_ascii_digit()) {
        let too_big = format!("{}0", taskmarket::U256::MAX);
        vec!["-1".into(), "+1".into(), "1.5".into(), "1e3".into(), "0x1".into(), " 1".into(), too_big]
    } else if path.ends_with("/runtime") || path.ends_with("/status") {
        vec![good.to_uppercase(), format!(" {good}"), "docker".into()]
    } else {
        return Vec::new();
    };
    wrong.extend(["".into(), "0x".into(), "\0".into(), "é".into(), long]);
    wrong
}

/// The text of `message` with `value` at `path`, and where in the text it begins.
fn with(message: &Value, path: &str, value: &str) -> (String, usize) {
    let mut message = message.clone();
    *message.pointer_mut(path).unwrap() = PLACEHOLDER.into();
    let text = message.to_string();
    let at = text.find(&quoted(PLACEHOLDER)).unwrap();
    (text.replacen(&quoted(PLACEHOLDER), value, 1), at)
}

fn check_values<M: Message + DeserializeOwned>(good: &Value) {
    assert!(serde_json::from_value::<M>(good.clone()).is_ok());
    for path in leaves(good, "") {
        for value in wrong_values(&path, good.pointer(&path).unwrap()) {
            let (text, at) = with(good, &path, &value);
            let shown = &value[..value.floor_char_boundary(60)];
            let error = match serde_json::from_str::<M>(&text) {
                Ok(_) => panic!("{}{path} takes {shown}", M::NAME),
                Err(error) => error,
            };
            let column = error.column();
            assert!(
                error.line() == 1 && (at..=at + value.len() + 1).contains(&column),
                "{}{path}: {shown} stands at {at}: {error}",
                M::NAME
            );
        }
    }
}

fn check_fields<M: Message + DeserializeOwned>(good: &Value) {
    let refused = |text: &str, named: &str| {
        let error = serde_json::from_str::<M>(text).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(&format!("`{named}`")), "{}: {named} is not named: {error}", M::NAME);
    };
    for path in leaves(good, "") {
        let (parent, name) = path.rsplit_once('/').unwrap();
        let mut message = good.clone();
        let removed = message.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(name).unwrap();
        refused(&message.to_string(), name);

        message.pointer_mut(parent).unwrap()["unknown_field"] = Value::Null;
        refused(&message.to_string(), "unknown_field");

        let doubled = format!("{removed},\"{name}\":{removed}");
        refused(&with(good, &path, &doubled).0, name);

        let camel = format!("{removed},\"{}X\":1", name.replace('_', ""));
        refused(&with(good, &path, &camel).0, &format!("{}X", name.replace('_', "")));
    }
    for text in ["", "null", "1", "\"\"", "[]", "{", "[[", "{\"a\"", "\u{feff}{}"] {
        let error = serde_json::from_str::<M>(text).map(|_| ()).unwrap_err();
        assert_eq!(error.line(), 1, "{}: {text}: {error}", M::NAME);
    }
    assert!(serde_json::from_str::<M>(&format!("{good} {good}")).is_err(), "two messages in one");
}

/// A message in the forms in which it travels and is kept: each cut short and with each byte spoilt. What still reads is only
/// taken on; nothing panics.
fn check_damage<M: Message + DeserializeOwned>(good: &Value, signature: &str) {
    let signed = serde_json::json!({ "message": good, "signature": signature }).to_string();
    assert!(serde_json::from_str::<Signed<M>>(&signed).is_ok());
    for end in 0..signed.len() {
        let Some(text) = signed.get(..end) else { continue };
        assert!(serde_json::from_str::<Signed<M>>(text).is_err(), "{}: cut at {end}", M::NAME);
    }
    for position in 0..signed.len() {
        for flip in [1, 4, 0x20, 0x80] {
            let mut bytes = signed.clone().into_bytes();
            bytes[position] ^= flip;
            if let Ok(damaged) = serde_json::from_slice::<Signed<M>>(&bytes) {
                // Some other message may carry a recoverable signature, but never of the party that it names.
                let named = damaged.message.named_signer();
                let changed = serde_json::from_str::<Signed<M>>(&signed).unwrap() != damaged;
                let verified = damaged.verify(&Domain::UNSETTLED);
                assert!(!changed || named.is_none() || verified.is_err(), "{}: byte {position}", M::NAME);
            }
        }
    }
}

#[test]
fn wrong_values_are_refused_where_they_stand() {
    for (name, message, _) in examples() {
        by_type!(name.as_str(), check_values(&message));
    }
}

#[test]
fn missing_extra_and_doubled_fields_are_named() {
    for (name, message, _) in examples() {
        by_type!(name.as_str(), check_fields(&message));
    }
}

#[test]
fn damaged_messages_never_panic() {
    for (name, message, signature) in examples() {
        by_type!(name.as_str(), check_damage(&message, &signature));
    }
}

#[test]
fn damaged_histories_never_panic() {
    let events = [
        ("Task", "published"),
        ("AcceptTask", "accepted"),
        ("FailTask", "attempt_failed"),
        ("ComputeProof", "submitted"),
        ("ApproveResult", "approved"),
        ("DisputeTask", "disputed"),
        ("ResolveDispute", "resolved"),
        ("CancelTask", "cancelled"),
    ];
    for (name, message, signature) in examples() {
        let Some((_, kind)) = events.iter().find(|(message, _)| *message == name) else { continue };
        let signed = serde_json::json!({ "message": message, "signature": signature });
        let event = if *kind == "published" {
            serde_json::json!({ "type": kind, "task": signed, "domain": Domain::UNSETTLED })
        } else {
            serde_json::json!({ "type": kind, "message": message, "signature": signature })
        };
        let recorded = serde_json::json!({ "version": 1, "at": "2026-11-23T11:40:00Z", "event": event });
        let text = recorded.to_string();
        serde_json::from_str::<Recorded>(&text).unwrap_or_else(|error| panic!("{kind}: {error}"));
        for position in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[position] ^= 4;
            if let Ok(recorded) = serde_json::from_slice::<Recorded>(&bytes) {
                // Most of these are no histories at all; the point is that each gets an answer.
                let _ = replay(&[recorded]);
            }
            assert!(text.get(..position).is_none_or(|cut| serde_json::from_str::<Recorded>(cut).is_err()));
        }
        for path in leaves(&recorded, "") {
            let mut missing = recorded.clone();
            let (parent, name) = path.rsplit_once('/').unwrap();
            missing.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(name);
            let error = serde_json::from_value::<Recorded>(missing).unwrap_err().to_string();
            assert!(error.contains(&format!("`{name}`")), "{kind}{path}: {error}");
        }
    }
    assert!(serde_json::from_str::<TaskRecord>(&"{\"id\":".repeat(100_000)).is_err());
    assert!(replay(&[]).is_err());
}
