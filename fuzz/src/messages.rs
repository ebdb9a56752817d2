//! The JSON of signed messages.

use rpc::tasks::{PublishTask, SignedMutation};
use serde::Serialize;
use serde::de::DeserializeOwned;
use taskmarket::{
    AcceptTask, Address, ApproveResult, CancelTask, ComputeProof, DisputeTask, Domain, Event, FailTask,
    InferenceReceipt, Message, ReadTask, Recorded, RegisterNode, ResolveDispute, Signature, Signed, Task,
    Timestamp, UpdateNodeStatus, publish, replay,
};

use crate::{Outcome, again, read};

/// The domain of the settled test vectors: the first contract that a fresh Anvil deploys.
pub(crate) const SETTLED: Domain = Domain {
    chain_id: 31_337,
    verifying_contract: Address::new([
        0x5f, 0xbd, 0xb2, 0x31, 0x56, 0x78, 0xaf, 0xec, 0xb3, 0x67, 0xf0, 0x32, 0xd9, 0x3f, 0x64, 0x2f, 0x64,
        0x18, 0x0a, 0xa3,
    ]),
};

/// A signed message of any kind, as it travels. Its digest is fixed by what was read and by the domain, and a check of its signature
/// comes to the same before and after a round trip.
pub fn signed_message(data: &[u8]) -> Outcome {
    let taken = [
        message::<Task>(data),
        message::<CancelTask>(data),
        message::<AcceptTask>(data),
        message::<FailTask>(data),
        message::<ComputeProof>(data),
        message::<ApproveResult>(data),
        message::<DisputeTask>(data),
        message::<ResolveDispute>(data),
        message::<RegisterNode>(data),
        message::<UpdateNodeStatus>(data),
        message::<ReadTask>(data),
        message::<InferenceReceipt>(data),
    ];
    let kinds = taken.iter().flatten().count();
    assert!(kinds <= 1, "one text is {kinds} kinds of message");
    Outcome::of(taken.into_iter().flatten().next())
}

/// The body that publishes a task: what the rules take from it founds a history that replays to the same record.
pub fn publish_task(data: &[u8]) -> Outcome {
    let Some(body) = read::<PublishTask>(data) else { return Outcome::Refused };
    let contract = body.verifying_contract;
    let domain = Domain {
        chain_id: if contract.is_zero() { Domain::UNSETTLED.chain_id } else { SETTLED.chain_id },
        verifying_contract: contract,
    };
    let signed = Signed { message: body.task, signature: body.signature };
    check(&signed, &domain);
    // Close to the deadline, so that the clock refuses nothing that the rules would take.
    let now = Timestamp::from_unix(signed.message.deadline.unix().saturating_sub(60));
    let Ok(verified) = signed.verify(&domain) else { return Outcome::Taken };
    if let Ok(record) = publish(now, &verified) {
        assert_eq!(record.id, verified.message().id(&domain));
        assert_eq!(again(&record), record);
        let event = Event::Published { task: Box::new(verified.into_signed()), domain };
        let replayed = replay(&[Recorded { version: 1, at: now, event }]);
        assert_eq!(replayed.expect("a published task is a history"), record);
    }
    Outcome::Taken
}

fn message<M: Message + Serialize + DeserializeOwned>(data: &[u8]) -> Option<()> {
    let body: SignedMutation<M> = read(data)?;
    let signed = Signed::from(body);
    assert_eq!(again(&signed), signed);
    check(&signed, &Domain::UNSETTLED);
    check(&signed, &SETTLED);
    assert_ne!(
        signed.message.digest(&Domain::UNSETTLED),
        signed.message.digest(&SETTLED),
        "a signature of one domain counts in another"
    );
    Some(())
}

/// Asserts what holds of a message and its signature under a domain.
fn check<M: Message + Serialize + DeserializeOwned>(signed: &Signed<M>, domain: &Domain) {
    let digest = signed.message.digest(domain);
    assert_eq!(again(&signed.message).digest(domain), digest, "the digest depends on the text");
    let bytes = *signed.signature.as_bytes();
    assert_eq!(Signature::from_bytes(bytes).expect("it was read"), signed.signature);
    let checked = signed.clone().verify(domain);
    assert_eq!(again(signed).verify(domain), checked);
    if let Ok(verified) = checked {
        assert_eq!(verified.digest(), digest);
        assert_eq!(signed.signature.recover(digest), Some(verified.signer()));
        let named = signed.message.named_signer();
        assert!(named.is_none_or(|named| named == verified.signer()), "a stranger's signature holds");
    }
}
