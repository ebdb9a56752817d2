//! The flags about the money of settled tasks.

use taskmarket::{Address, Amount, Domain, ParseError, eip55};
use url::Url;

use crate::money::{EscrowConfig, EscrowTiming, Terms};

/// What an operator says about settled tasks.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Settled tasks")]
pub struct EscrowArgs {
    /// Take tasks whose money this contract holds, besides unsettled ones. The provider's account pays for gas: give each host a
    /// key of its own.
    #[arg(long, env = "ZORAI_AGENT_ESCROW", value_name = "CHAIN_ID:ADDRESS", value_parser = parse_escrow, requires = "rpc_url")]
    pub escrow: Option<Domain>,

    /// An endpoint of the chain, which is asked where the money stands; repeat it for others to fall back on.
    #[arg(
        long,
        env = "ZORAI_AGENT_RPC_URL",
        hide_env_values = true,
        value_name = "URL",
        value_delimiter = ',',
        requires = "escrow"
    )]
    pub rpc_url: Vec<Url>,

    /// Bring the stake at the contract up to this much at the start, in the token's smallest unit. What is lost later is not
    /// replaced before the next start.
    #[arg(long, env = "ZORAI_AGENT_STAKE", value_name = "AMOUNT", requires = "escrow")]
    pub stake: Option<Amount>,

    /// The token of that stake [default: the native coin].
    #[arg(long, env = "ZORAI_AGENT_STAKE_TOKEN", value_name = "ADDRESS", value_parser = parse_address, requires = "stake")]
    pub stake_token: Option<Address>,

    /// Take tasks that pay in this token, the zero address for the native coin; repeat it for several [default: the native coin,
    /// and the token of the stake].
    #[arg(
        long,
        env = "ZORAI_AGENT_ACCEPT_TOKEN",
        value_name = "ADDRESS",
        value_delimiter = ',',
        value_parser = parse_address,
        requires = "escrow"
    )]
    pub accept_token: Vec<Address>,

    /// Take tasks of which this address resolves the disputes: with its word the requester can take the budget and your stake.
    /// Repeat it for several [default: only tasks without an arbiter, which pay on proof].
    #[arg(
        long,
        env = "ZORAI_AGENT_ACCEPT_ARBITER",
        value_name = "ADDRESS",
        value_delimiter = ',',
        value_parser = parse_address,
        requires = "escrow"
    )]
    pub accept_arbiter: Vec<Address>,

    /// Take no task that asks for a larger stake, in its token's smallest unit.
    #[arg(long, env = "ZORAI_AGENT_MAX_STAKE", value_name = "AMOUNT", requires = "escrow")]
    pub max_stake: Option<Amount>,

    /// Take no task whose dispute window or arbiter's window is longer, in seconds.
    #[arg(
        long,
        env = "ZORAI_AGENT_MAX_WINDOW",
        value_name = "SECONDS",
        default_value_t = Terms::DEFAULT_MAX_WINDOW_SECS
    )]
    pub max_window: u64,

    /// Work for this requester before the chain binds anybody, and be paid in one step by its approval: cheaper, but it can withdraw
    /// the task meanwhile. Repeat it for several.
    #[arg(
        long,
        env = "ZORAI_AGENT_TRUST_REQUESTER",
        value_name = "ADDRESS",
        value_delimiter = ',',
        value_parser = parse_address,
        requires = "escrow"
    )]
    pub trust_requester: Vec<Address>,

    /// Pay no more for a unit of gas, in the native coin's smallest unit; take no settled task while gas costs more than half of it.
    #[arg(long, env = "ZORAI_AGENT_MAX_GAS_PRICE", value_name = "AMOUNT", default_value = "200000000000")]
    pub max_gas_price: u64,

    /// So many blocks make a transaction final, its own included.
    #[arg(
        long,
        env = "ZORAI_AGENT_CONFIRMATIONS",
        value_name = "N",
        default_value = "2",
        value_parser = clap::value_parser!(u64).range(1..=1_000)
    )]
    pub confirmations: u64,
}

impl EscrowArgs {
    /// What they mean; `None` where no settled tasks are taken.
    pub(super) fn into_config(self) -> Option<EscrowConfig> {
        let domain = self.escrow?;
        let stake_token = self.stake_token.unwrap_or(Address::ZERO);
        let mut tokens = self.accept_token;
        if tokens.is_empty() {
            tokens.push(Address::ZERO);
            tokens.extend(self.stake_token.filter(|token| !token.is_zero()));
        }
        Some(EscrowConfig {
            domain,
            rpc_urls: self.rpc_url,
            terms: Terms {
                tokens,
                arbiters: self.accept_arbiter,
                max_stake: self.max_stake,
                max_window_secs: self.max_window,
                trusted: self.trust_requester,
            },
            stake: self.stake.map(|amount| (stake_token, amount)),
            max_gas_price: self.max_gas_price,
            confirmations: self.confirmations,
            timing: EscrowTiming::default(),
        })
    }
}

/// Why a text names no contract.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("write CHAIN_ID:ADDRESS, such as 1:0x…, with a contract's address: {0}")]
pub(crate) struct ParseEscrowError(String);

fn parse_escrow(text: &str) -> Result<Domain, ParseEscrowError> {
    let wrong = |why: &str| ParseEscrowError(why.to_owned());
    let (chain_id, address) = text.split_once(':').ok_or_else(|| wrong("there is no colon"))?;
    let chain_id = chain_id.parse().map_err(|_| wrong("the chain's id is no number"))?;
    let verifying_contract = eip55::parse(address).map_err(|error| wrong(&error.to_string()))?;
    let domain = Domain { chain_id, verifying_contract };
    if chain_id == 0 || !domain.is_settled() {
        return Err(wrong("neither may be zero"));
    }
    Ok(domain)
}

fn parse_address(text: &str) -> Result<Address, ParseError> {
    eip55::parse(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_contract_is_named_with_its_chain() {
        let domain = parse_escrow("31337:0x5FbDB2315678afecb367f032d93F642f64180aa3").unwrap();
        assert_eq!((domain.chain_id, domain.is_settled()), (31_337, true));
        for wrong in [
            "",
            "1",
            "0x5FbDB2315678afecb367f032d93F642f64180aa3",
            "1:0x12",
            "x:0x5FbDB2315678afecb367f032d93F642f64180aa3",
        ] {
            assert!(parse_escrow(wrong).is_err(), "{wrong}");
        }
        assert!(parse_escrow("0:0x5FbDB2315678afecb367f032d93F642f64180aa3").is_err());
        assert!(parse_escrow("1:0x0000000000000000000000000000000000000000").is_err());
    }
}
