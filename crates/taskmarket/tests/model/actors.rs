//! Who takes part, and their keys.

use std::sync::LazyLock;

use secp256k1::ecdsa::RecoverableSignature;
use secp256k1::{PublicKey, SecretKey};
use taskmarket::{Address, Domain, Message, Signature, Signed, keccak256};

/// A party with its key.
#[derive(Debug)]
pub(crate) struct Actor {
    key: SecretKey,
    pub(crate) address: Address,
}

/// The parties: the requester, the arbiter, three providers, and somebody who is none of them.
pub(crate) static ACTORS: LazyLock<[Actor; 6]> = LazyLock::new(|| {
    [1, 2, 3, 4, 5, 6].map(|number| {
        let key = SecretKey::from_secret_bytes([number; 32]).unwrap();
        let public = PublicKey::from_secret_key(&key).serialize_uncompressed();
        Actor { key, address: Address::from_slice(&keccak256(&public[1..])[12..]) }
    })
});
pub(crate) const REQUESTER: usize = 0;
pub(crate) const ARBITER: usize = 1;
pub(crate) const FIRST_PROVIDER: usize = 2;

impl Actor {
    /// Signs whatever it is told to, true or not.
    pub(crate) fn sign<M: Message>(&self, message: M, domain: &Domain) -> Signed<M> {
        let digest = secp256k1::Message::from_digest(message.digest(domain).0);
        let (parity, compact) =
            RecoverableSignature::sign_ecdsa_recoverable(digest, &self.key).serialize_compact();
        let mut bytes = [0; 65];
        bytes[..64].copy_from_slice(&compact);
        bytes[64] = u8::from(parity);
        Signed { message, signature: Signature::from_bytes(bytes).unwrap() }
    }
}
