//! What the contract refuses with, in words.

use std::fmt;

use alloy_sol_types::{Revert, SolError, SolInterface, sol};

use crate::abi::ZORAIComputeEscrowErrors as Errors;

sol! {
    /// What Permit2 refuses with.
    #[derive(Debug)]
    interface Permit2 {
        error InvalidNonce();
        error InvalidSignature();
        error InvalidSigner();
        error SignatureExpired(uint256 signatureDeadline);
    }
}

/// Why a call was reverted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevertReason {
    /// The contract's error by name (`TooLate`), `Error` for a plain text, or `unknown`.
    pub name: String,
    /// The error with its values, or the data in hex.
    pub details: String,
    /// What to do about it, where there is something to say.
    pub hint: Option<&'static str>,
}

impl RevertReason {
    /// Reads what a call was reverted with: `0x` and hex digits.
    pub fn decode(data: &str) -> Self {
        let bytes = data.strip_prefix("0x").and_then(|digits| hex::decode(digits).ok()).unwrap_or_default();
        if let Ok(error) = Errors::abi_decode(&bytes) {
            let details = format!("{error:?}");
            // The derived text is `Name(Name { fields })`.
            let name = details.split(['(', ' ', '{']).next().unwrap_or("unknown").to_owned();
            let details = details
                .strip_prefix(&name)
                .and_then(|rest| rest.strip_prefix('(')?.strip_suffix(')'))
                .unwrap_or(&details)
                .to_owned();
            let hint = hint(&error);
            return Self { name, details, hint };
        }
        if let Ok(error) = Permit2::Permit2Errors::abi_decode(&bytes) {
            return permit_refused(&error);
        }
        if let Ok(text) = Revert::abi_decode(&bytes) {
            return Self { name: "Error".to_owned(), details: text.reason, hint: None };
        }
        Self { name: "unknown".to_owned(), details: data.chars().take(200).collect(), hint: None }
    }
}

fn permit_refused(error: &Permit2::Permit2Errors) -> RevertReason {
    use Permit2::Permit2Errors as Refusal;
    let (name, hint) = match error {
        Refusal::InvalidNonce(_) => ("InvalidNonce", "this permit was used before"),
        Refusal::InvalidSignature(_) => ("InvalidSignature", "the permit is not signed"),
        Refusal::InvalidSigner(_) => {
            ("InvalidSigner", "the permit is not signed by the payer, or for something else")
        }
        Refusal::SignatureExpired(_) => ("SignatureExpired", "the permit's time is over"),
    };
    RevertReason { name: name.to_owned(), details: format!("{name} (Permit2)"), hint: Some(hint) }
}

impl fmt::Display for RevertReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.details.starts_with(&self.name) {
            f.write_str(&self.details)?;
        } else {
            write!(f, "{}: {}", self.name, self.details)?;
        }
        match self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "most errors say themselves what to do")]
fn hint(error: &Errors) -> Option<&'static str> {
    Some(match error {
        Errors::WrongStatus(_) => "the task's money has moved on; `status` shows where it stands",
        Errors::DeadlineOutOfRange(_) => "publish the task again with a later deadline",
        Errors::StakeOrBondTooSmall(_) => "stake and bond are each at least half the budget",
        Errors::PartialArbiter(_) => "name an arbiter that is neither party",
        Errors::LeaseHolds(_) => "a provider holds the task; wait until its lease ends",
        Errors::StakeTooSmall(_) => "the provider has too little free stake; add some with `wallet stake`",
        Errors::TooEarly(_) => "the time for this has not come yet by the chain's clock",
        Errors::TooLate(_) => "the time for this is over by the chain's clock",
        Errors::NothingToWithdraw(_) => "there is nothing to withdraw in this token",
        Errors::InexactTransfer(_) | Errors::TokenShrank(_) => {
            "this token changes amounts by itself and cannot be used"
        }
        Errors::SafeERC20FailedOperation(_) => {
            "the token refused: is the allowance set, and the balance enough?"
        }
        _ => return None,
    })
}
