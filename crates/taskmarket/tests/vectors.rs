//! The committed test vectors, which an independent implementation of EIP-712 made, hold here too.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking")]

use std::collections::{BTreeMap, BTreeSet};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use taskmarket::{Address, B256, Domain, Message, Signature, Signed, Task};

mod by_type;
use by_type::by_type;

#[derive(Deserialize)]
struct File {
    domain: Value,
    vectors: Vec<Vector>,
    malformed_signatures: Vec<Malformed>,
    mismatches: Vec<Mismatch>,
}

#[derive(Deserialize)]
struct Vector {
    id: String,
    r#type: String,
    type_string: String,
    domain: Domain,
    message: Value,
    domain_separator: B256,
    digest: B256,
    signer: Address,
    signature: String,
}

#[derive(Deserialize)]
struct Malformed {
    why: String,
    signature: String,
}

#[derive(Deserialize)]
struct Mismatch {
    why: String,
    r#type: String,
    domain: Domain,
    message: Value,
    signature: String,
    recovers: Option<Address>,
}

fn file() -> File {
    serde_json::from_str(include_str!("../../../vectors/eip712.json")).unwrap()
}

fn check<M: Message + Serialize + DeserializeOwned>(vector: &Vector) {
    let id = &vector.id;
    let message: M = serde_json::from_value(vector.message.clone()).unwrap_or_else(|e| panic!("{id}: {e}"));
    assert_eq!(serde_json::to_value(&message).unwrap(), vector.message, "{id}: its JSON form");
    assert_eq!(M::NAME, vector.r#type, "{id}");
    assert_eq!(M::type_string(), vector.type_string, "{id}");
    assert_eq!(vector.domain.separator(), vector.domain_separator, "{id}: the domain separator");
    assert_eq!(message.digest(&vector.domain), vector.digest, "{id}: the digest");

    let signature: Signature = vector.signature.parse().unwrap();
    assert_eq!(signature.to_string(), vector.signature, "{id}");
    assert_eq!(signature.recover(vector.digest), Some(vector.signer), "{id}");
    let signed = Signed { message, signature };
    let verified = signed.clone().verify(&vector.domain).unwrap_or_else(|e| panic!("{id}: {e}"));
    assert_eq!((verified.signer(), verified.digest()), (vector.signer, vector.digest), "{id}");
    assert_eq!(verified.into_signed(), signed, "{id}");
}

fn check_mismatch<M: Message + DeserializeOwned>(case: &Mismatch) {
    let why = &case.why;
    let message: M = serde_json::from_value(case.message.clone()).unwrap();
    let named = message.named_signer();
    let signed = Signed { message, signature: case.signature.parse().unwrap() };
    assert_eq!(signed.signature.recover(signed.message.digest(&case.domain)), case.recovers, "{why}");
    let verified = signed.verify(&case.domain);
    match (case.recovers, named) {
        (Some(other), None) => assert_eq!(verified.unwrap().signer(), other, "{why}"),
        (Some(_), Some(_)) | (None, _) => assert!(verified.is_err(), "{why}"),
    }
}

#[test]
fn every_vector_holds() {
    let file = file();
    let expected = serde_json::json!({ "name": Domain::NAME, "version": Domain::VERSION });
    assert_eq!(file.domain, expected);
    for vector in &file.vectors {
        by_type!(vector.r#type.as_str(), check(vector));
    }
}

#[test]
fn every_message_has_vectors_in_both_domains_and_no_two_digests_are_alike() {
    let vectors = file().vectors;
    let mut domains: BTreeMap<&str, BTreeSet<bool>> = BTreeMap::new();
    for vector in &vectors {
        domains.entry(&vector.r#type).or_default().insert(vector.domain.is_settled());
    }
    assert_eq!(domains.len(), 12);
    assert!(domains.values().all(|both| both.len() == 2), "{domains:?}");
    assert!(vectors.iter().any(|vector| vector.domain == Domain::UNSETTLED));
    let digests: BTreeSet<_> = vectors.iter().map(|vector| vector.digest).collect();
    assert_eq!(digests.len(), vectors.len());
}

#[test]
fn a_task_id_is_the_digest_of_its_task() {
    for vector in file().vectors.iter().filter(|vector| vector.r#type == "Task") {
        let task: Task = serde_json::from_value(vector.message.clone()).unwrap();
        assert_eq!(task.id(&vector.domain).0, vector.digest, "{}", vector.id);
    }
}

#[test]
fn malformed_signatures_are_refused() {
    let cases = file().malformed_signatures;
    assert!(cases.len() >= 9);
    for Malformed { why, signature } in cases {
        assert!(signature.parse::<Signature>().is_err(), "{why}");
    }
}

#[test]
fn signatures_of_something_else_recover_somebody_else() {
    let cases = file().mismatches;
    assert!(cases.len() >= 18);
    for case in &cases {
        by_type!(case.r#type.as_str(), check_mismatch(case));
    }
}
