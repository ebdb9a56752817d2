//! The wallet signs as the committed test vectors say, byte for byte: both sides choose nonces by RFC 6979.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking")]

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use taskmarket::{
    AcceptTask, Address, ApproveResult, CancelTask, ComputeProof, DisputeTask, Domain, FailTask,
    InferenceReceipt, Message, ReadTask, RegisterNode, ResolveDispute, Task, UpdateNodeStatus,
};
use wallet::Wallet;

#[derive(Deserialize)]
struct File {
    vectors: Vec<Vector>,
}

#[derive(Deserialize)]
struct Vector {
    id: String,
    r#type: String,
    domain: Domain,
    message: Value,
    private_key: String,
    signer: Address,
    signature: String,
}

#[test]
fn signatures_are_those_of_the_vectors() {
    let file: File = serde_json::from_str(include_str!("../../../vectors/eip712.json")).unwrap();
    assert!(file.vectors.len() >= 22);
    for vector in &file.vectors {
        match vector.r#type.as_str() {
            "Task" => check::<Task>(vector),
            "CancelTask" => check::<CancelTask>(vector),
            "AcceptTask" => check::<AcceptTask>(vector),
            "FailTask" => check::<FailTask>(vector),
            "ComputeProof" => check::<ComputeProof>(vector),
            "ApproveResult" => check::<ApproveResult>(vector),
            "DisputeTask" => check::<DisputeTask>(vector),
            "ResolveDispute" => check::<ResolveDispute>(vector),
            "RegisterNode" => check::<RegisterNode>(vector),
            "UpdateNodeStatus" => check::<UpdateNodeStatus>(vector),
            "ReadTask" => check::<ReadTask>(vector),
            "InferenceReceipt" => check::<InferenceReceipt>(vector),
            other => panic!("no such message: {other}"),
        }
    }
}

fn check<M: Message + DeserializeOwned>(vector: &Vector) {
    let wallet = Wallet::from_hex(&vector.private_key).unwrap();
    assert_eq!(wallet.address(), vector.signer, "{}", vector.id);
    let message: M = serde_json::from_value(vector.message.clone()).unwrap();
    let signed = wallet.sign(&message, &vector.domain).unwrap_or_else(|e| panic!("{}: {e}", vector.id));
    assert_eq!(signed.signature.to_string(), vector.signature, "{}", vector.id);
}
