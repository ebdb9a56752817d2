//! Signing and checking: EIP-712 digests, signatures, and the types that only a check can make.
//!
//! The domain is name `ZORAI Compute Market`, version `1`, with a chain id and a verifying contract. The verifying contract decides the
//! money: the escrow's address is a settled task; the zero address is an unsettled one, valid at any relay. The digest is that of
//! EIP-712, <https://eips.ethereum.org/EIPS/eip-712>.

use std::fmt;
use std::str::FromStr;

use alloy_primitives::{Address, B256, U256, keccak256};
use alloy_sol_types::{Eip712Domain, SolStruct};
use secp256k1::ecdsa::{RecoverableSignature, RecoveryId};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::messages;
use crate::primitives::{ParseError, TaskId, eip55, serde_as_string};

/// The typed structs exactly as they are signed.
mod sol {
    alloy_sol_types::sol! {
        struct TaskConfig {
            string runtime;
            string params;
            string gpuType;
            uint32 gpuCount;
            uint64 minVram;
            uint64 maxDuration;
            uint32 maxAttempts;
        }
        struct Task {
            address requester;
            string modelCid;
            bytes32 modelHash;
            string inputCid;
            bytes32 inputHash;
            TaskConfig config;
            address token;
            uint256 budget;
            uint256 providerStake;
            uint256 disputeBond;
            uint64 deadline;
            uint64 disputeWindow;
            uint64 arbiterWindow;
            address arbiter;
            bytes32 salt;
        }
        struct CancelTask { bytes32 taskId; uint64 issuedAt; }
        struct AcceptTask { bytes32 taskId; address provider; uint32 attempt; uint64 leaseUntil; }
        struct FailTask {
            bytes32 taskId;
            address provider;
            uint32 attempt;
            string code;
            string message;
            uint64 issuedAt;
        }
        struct ComputeProof {
            bytes32 taskId;
            address provider;
            uint32 attempt;
            bytes32 modelHash;
            bytes32 inputHash;
            bytes32 resultHash;
            string resultCid;
            uint64 startedAt;
            uint64 finishedAt;
            string gpuName;
        }
        struct ApproveResult { bytes32 taskId; address provider; uint32 attempt; bytes32 resultHash; uint64 issuedAt; }
        struct DisputeTask {
            bytes32 taskId;
            address provider;
            uint32 attempt;
            bytes32 resultHash;
            string reason;
            string evidence;
            uint64 issuedAt;
        }
        struct ResolveDispute { bytes32 taskId; uint32 attempt; uint32 providerBps; uint64 issuedAt; }
        struct RegisterNode {
            address provider;
            bytes32 nodeId;
            string relayId;
            string relayUrl;
            string sessionId;
            bytes32 nonce;
            uint64 timestamp;
            bytes32 metadataHash;
        }
        struct UpdateNodeStatus { address provider; bytes32 nodeId; string status; uint64 issuedAt; }
        struct ReadTask { bytes32 taskId; address reader; uint64 issuedAt; }
        struct InferenceReceipt {
            string requestId;
            address provider;
            bytes32 nodeId;
            string relayId;
            bytes32 requestHash;
            bytes32 responseHash;
            string model;
            string engine;
            string quantization;
            uint64 promptTokens;
            uint64 completionTokens;
            uint64 startedAt;
            uint64 finishedAt;
        }
    }
}

/// The signing domain: where a signature is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Domain {
    /// The EIP-155 chain id.
    pub chain_id: u64,
    /// The escrow contract, or zero.
    #[serde(with = "eip55")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::Provider"))]
    pub verifying_contract: Address,
}

impl Domain {
    /// The domain's name.
    pub const NAME: &str = "ZORAI Compute Market";
    /// The domain's version.
    pub const VERSION: &str = "1";

    /// The domain of unsettled tasks and of sessions, the same at every relay. No contract can stand at the zero address; the chain
    /// id is Ethereum's, so that browser wallets sign without switching networks.
    pub const UNSETTLED: Self = Self { chain_id: 1, verifying_contract: Address::ZERO };

    /// Whether a contract holds the money of tasks signed here.
    pub fn is_settled(&self) -> bool {
        !self.verifying_contract.is_zero()
    }

    /// The EIP-712 domain separator.
    pub fn separator(&self) -> B256 {
        self.typed().separator()
    }

    fn typed(&self) -> Eip712Domain {
        Eip712Domain::new(
            Some(Self::NAME.into()),
            Some(Self::VERSION.into()),
            Some(U256::from(self.chain_id)),
            Some(self.verifying_contract),
            None,
        )
    }
}

/// A message that can be signed.
pub trait Message: Clone + fmt::Debug + PartialEq {
    /// The EIP-712 struct's name.
    const NAME: &'static str;

    /// The digest that is signed.
    fn digest(&self, domain: &Domain) -> B256;

    /// The party that the message itself names as its signer, where it names one. A signature by anybody else is a wrong one.
    fn named_signer(&self) -> Option<Address>;

    /// The EIP-712 type string, nested types included.
    fn type_string() -> String;
}

/// Implements [`Message`] by the typed struct of the same name.
macro_rules! message {
    ($name:ident, $signer:expr, |$m:ident| $typed:expr) => {
        impl Message for messages::$name {
            const NAME: &'static str = stringify!($name);

            fn digest(&self, domain: &Domain) -> B256 {
                let $m = self;
                $typed.eip712_signing_hash(&domain.typed())
            }

            fn named_signer(&self) -> Option<Address> {
                let signer: fn(&Self) -> Option<Address> = $signer;
                signer(self)
            }

            fn type_string() -> String {
                <sol::$name as SolStruct>::eip712_encode_type().into_owned()
            }
        }
    };
}

message!(Task, |m| Some(m.requester), |m| sol::Task {
    requester: m.requester,
    modelCid: m.model_cid.to_string(),
    modelHash: m.model_hash.0,
    inputCid: m.input_cid.to_string(),
    inputHash: m.input_hash.0,
    config: sol::TaskConfig {
        runtime: m.config.runtime.to_string(),
        params: m.config.params.clone(),
        gpuType: m.config.gpu_type.clone(),
        gpuCount: m.config.gpu_count,
        minVram: m.config.min_vram,
        maxDuration: m.config.max_duration,
        maxAttempts: m.config.max_attempts,
    },
    token: m.token,
    budget: m.budget.0,
    providerStake: m.provider_stake.0,
    disputeBond: m.dispute_bond.0,
    deadline: m.deadline.unix(),
    disputeWindow: m.dispute_window,
    arbiterWindow: m.arbiter_window,
    arbiter: m.arbiter,
    salt: m.salt.0,
});
message!(CancelTask, |_| None, |m| sol::CancelTask { taskId: m.task_id.0, issuedAt: m.issued_at.unix() });
message!(AcceptTask, |m| Some(m.provider), |m| sol::AcceptTask {
    taskId: m.task_id.0,
    provider: m.provider,
    attempt: m.attempt,
    leaseUntil: m.lease_until.unix(),
});
message!(FailTask, |m| Some(m.provider), |m| sol::FailTask {
    taskId: m.task_id.0,
    provider: m.provider,
    attempt: m.attempt,
    code: m.code.clone(),
    message: m.message.clone(),
    issuedAt: m.issued_at.unix(),
});
message!(ComputeProof, |m| Some(m.provider), |m| sol::ComputeProof {
    taskId: m.task_id.0,
    provider: m.provider,
    attempt: m.attempt,
    modelHash: m.model_hash.0,
    inputHash: m.input_hash.0,
    resultHash: m.result_hash.0,
    resultCid: m.result_cid.to_string(),
    startedAt: m.started_at.unix(),
    finishedAt: m.finished_at.unix(),
    gpuName: m.gpu_name.clone(),
});
message!(ApproveResult, |_| None, |m| sol::ApproveResult {
    taskId: m.task_id.0,
    provider: m.provider,
    attempt: m.attempt,
    resultHash: m.result_hash.0,
    issuedAt: m.issued_at.unix(),
});
message!(DisputeTask, |_| None, |m| sol::DisputeTask {
    taskId: m.task_id.0,
    provider: m.provider,
    attempt: m.attempt,
    resultHash: m.result_hash.0,
    reason: m.reason.clone(),
    evidence: m.evidence.clone(),
    issuedAt: m.issued_at.unix(),
});
message!(ResolveDispute, |_| None, |m| sol::ResolveDispute {
    taskId: m.task_id.0,
    attempt: m.attempt,
    providerBps: m.provider_bps,
    issuedAt: m.issued_at.unix(),
});
message!(RegisterNode, |m| Some(m.provider), |m| sol::RegisterNode {
    provider: m.provider,
    nodeId: m.node_id.0,
    relayId: m.relay_id.clone(),
    relayUrl: m.relay_url.clone(),
    sessionId: m.session_id.clone(),
    nonce: m.nonce.0,
    timestamp: m.timestamp.unix(),
    metadataHash: m.metadata_hash.0,
});
message!(UpdateNodeStatus, |m| Some(m.provider), |m| sol::UpdateNodeStatus {
    provider: m.provider,
    nodeId: m.node_id.0,
    status: m.status.as_str().to_owned(),
    issuedAt: m.issued_at.unix(),
});
message!(ReadTask, |m| Some(m.reader), |m| sol::ReadTask {
    taskId: m.task_id.0,
    reader: m.reader,
    issuedAt: m.issued_at.unix(),
});
message!(InferenceReceipt, |m| Some(m.provider), |m| sol::InferenceReceipt {
    requestId: m.request_id.clone(),
    provider: m.provider,
    nodeId: m.node_id.0,
    relayId: m.relay_id.clone(),
    requestHash: m.request_hash.0,
    responseHash: m.response_hash.0,
    model: m.model.clone(),
    engine: m.engine.clone(),
    quantization: m.quantization.clone(),
    promptTokens: m.prompt_tokens,
    completionTokens: m.completion_tokens,
    startedAt: m.started_at.unix(),
    finishedAt: m.finished_at.unix(),
});

impl messages::Task {
    /// The task's id under a domain.
    pub fn id(&self, domain: &Domain) -> TaskId {
        TaskId(self.digest(domain))
    }
}

/// A secp256k1 signature of 65 bytes, `r ‖ s ‖ v` with `v` 27 or 28, `s` in the lower half. `0x` and 130 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signature([u8; 65]);

/// Half of the group order: signatures with a larger `s` are refused, as each would have a twin (EIP-2).
const HALF_ORDER: [u8; 32] =
    alloy_primitives::hex!("7fffffffffffffffffffffffffffffff5d576e7357a4501ddfe92f46681b20a0");

impl Signature {
    /// Takes 65 bytes apart and checks what can be checked without the message.
    ///
    /// # Errors
    /// `v` is not 27 or 28 (0 and 1 are taken too), or `s` is in the upper half.
    pub fn from_bytes(mut bytes: [u8; 65]) -> Result<Self, ParseError> {
        const WHAT: &str = "signature";
        bytes[64] = match bytes[64] {
            v @ (27 | 28) => v,
            v @ (0 | 1) => v + 27,
            v => return Err(ParseError::new(WHAT, format!("its last byte is {v}, expected 27 or 28"))),
        };
        if bytes[32..64] > HALF_ORDER[..] {
            return Err(ParseError::new(WHAT, "its s is in the upper half of the group order"));
        }
        Ok(Self(bytes))
    }

    /// The 65 bytes.
    pub fn as_bytes(&self) -> &[u8; 65] {
        &self.0
    }

    /// The address whose key made this signature over `digest`, if any key did.
    pub fn recover(&self, digest: B256) -> Option<Address> {
        let parity = RecoveryId::try_from(i32::from(self.0[64] - 27)).ok()?;
        let signature = RecoverableSignature::from_compact(&self.0[..64], parity).ok()?;
        let key = signature.recover_ecdsa(secp256k1::Message::from_digest(digest.0)).ok()?;
        Some(Address::from_slice(&keccak256(&key.serialize_uncompressed()[1..])[12..]))
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{}", hex::encode(self.0))
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Signature {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut bytes = [0; 65];
        text.strip_prefix("0x")
            .and_then(|digits| hex::decode_to_slice(digits, &mut bytes).ok())
            .ok_or_else(|| ParseError::new("signature", "expected 0x and 130 hex digits"))?;
        Self::from_bytes(bytes)
    }
}
serde_as_string!(Signature);

/// A message with a signature that nobody has checked yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Signed<M> {
    /// What was signed.
    pub message: M,
    /// By a key still unknown.
    pub signature: Signature,
}

/// Why a signature does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// No key can have made it.
    #[error("the signature of this {message} is malformed: no key can have made it")]
    Malformed {
        /// The message's EIP-712 name.
        message: &'static str,
    },
    /// Another key made it.
    #[error(
        "this {message} names {expected} as its signer, but the signature is of {actual} under chain id {}, verifying contract {}; \
         check the key, the domain and every field", domain.chain_id, domain.verifying_contract
    )]
    WrongSigner {
        /// The message's EIP-712 name.
        message: &'static str,
        /// Whom the message names.
        expected: Address,
        /// Whose signature it is.
        actual: Address,
        /// Under which domain it was checked.
        domain: Domain,
    },
}

impl<M: Message> Signed<M> {
    /// Checks the signature under a domain.
    ///
    /// # Errors
    /// No key made it, or the message names another signer than the one who did.
    pub fn verify(self, domain: &Domain) -> Result<Verified<M>, SignatureError> {
        let digest = self.message.digest(domain);
        let signer = self.signature.recover(digest).ok_or(SignatureError::Malformed { message: M::NAME })?;
        match self.message.named_signer() {
            Some(expected) if expected != signer => Err(SignatureError::WrongSigner {
                message: M::NAME,
                expected,
                actual: signer,
                domain: *domain,
            }),
            Some(_) | None => Ok(Verified { signed: self, signer, digest, domain: *domain }),
        }
    }
}

/// A message whose signature was checked. Only [`Signed::verify`] makes one.
#[derive(Debug, Clone, PartialEq)]
pub struct Verified<M> {
    signed: Signed<M>,
    signer: Address,
    digest: B256,
    domain: Domain,
}

impl<M> Verified<M> {
    /// What was signed.
    pub fn message(&self) -> &M {
        &self.signed.message
    }

    /// Who signed.
    pub fn signer(&self) -> Address {
        self.signer
    }

    /// The EIP-712 digest.
    pub fn digest(&self) -> B256 {
        self.digest
    }

    /// Under which domain.
    pub fn domain(&self) -> Domain {
        self.domain
    }

    /// The message with its signature, as evidence.
    pub fn signed(&self) -> &Signed<M> {
        &self.signed
    }

    /// The message with its signature, by value.
    pub fn into_signed(self) -> Signed<M> {
        self.signed
    }
}
