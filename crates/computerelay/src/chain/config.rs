//! Which escrow contract is followed, and how.

use std::fmt;
use std::time::Duration;

use taskmarket::{Address, Domain};
use url::Url;

use crate::misuse::Misuse;

/// How the chain of settled tasks is followed.
#[derive(Clone, clap::Args)]
pub struct EscrowArgs {
    /// The escrow contract that holds the money of settled tasks: CHAIN_ID:0xADDRESS. Without it, only unsettled tasks are taken.
    #[arg(long, env = "ZORAI_RELAY_ESCROW", value_name = "CHAIN_ID:0xADDRESS", value_parser = parse_escrow, requires = "rpc_urls")]
    pub escrow: Option<Domain>,

    /// A JSON-RPC endpoint of the escrow's chain. Repeat it for several: where one fails, the next is asked.
    #[arg(
        id = "rpc_urls",
        long = "rpc-url",
        env = "ZORAI_RPC_URL",
        hide_env_values = true,
        value_name = "URL",
        value_delimiter = ',',
        requires = "escrow"
    )]
    pub rpc_urls: Vec<Url>,

    /// How many blocks, its own included, make a block final. What was final is never taken back: choose more than the chain ever
    /// reorganises.
    #[arg(
        long,
        env = "ZORAI_RELAY_CONFIRMATIONS",
        default_value_t = 12,
        value_name = "N",
        value_parser = clap::value_parser!(u64).range(1..=10_000)
    )]
    pub confirmations: u64,

    /// The block from which on the escrow is followed where it was not followed before: that of its deployment, or a later one that is
    /// older than any task that matters.
    #[arg(long, env = "ZORAI_RELAY_ESCROW_FROM_BLOCK", default_value_t = 0, value_name = "N")]
    pub escrow_from_block: u64,

    /// How often the chain is asked for new blocks, in milliseconds.
    #[arg(
        long,
        env = "ZORAI_RELAY_CHAIN_POLL_MS",
        default_value_t = 4000,
        value_name = "MS",
        value_parser = clap::value_parser!(u64).range(50..=60_000)
    )]
    pub chain_poll_ms: u64,
}

/// An escrow contract to follow.
#[derive(Clone)]
pub struct EscrowConfig {
    /// The domain of the tasks whose money it holds.
    pub domain: Domain,
    /// Endpoints of its chain, in the order in which they are asked.
    pub rpc_urls: Vec<Url>,
    /// How many blocks make a block final.
    pub confirmations: u64,
    /// The first block that is read.
    pub from_block: u64,
    /// How often the chain is asked.
    pub poll: Duration,
}

impl EscrowConfig {
    /// What the flags say; `None` without an escrow.
    ///
    /// # Errors
    /// An endpoint that is not HTTP.
    pub(crate) fn from_args(args: &EscrowArgs) -> Result<Option<Self>, Misuse> {
        let Some(domain) = args.escrow else { return Ok(None) };
        if let Some(url) = args.rpc_urls.iter().find(|url| !matches!(url.scheme(), "http" | "https")) {
            let origin = url.scheme();
            return Err(Misuse::because(
                format_args!("--rpc-url takes http and https, not {origin}"),
                "give the endpoint's HTTP URL",
            ));
        }
        Ok(Some(Self {
            domain,
            rpc_urls: args.rpc_urls.clone(),
            confirmations: args.confirmations,
            from_block: args.escrow_from_block,
            poll: Duration::from_millis(args.chain_poll_ms),
        }))
    }
}

// Endpoints often carry access keys in their paths: only where they are is shown.

impl fmt::Debug for EscrowArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EscrowArgs")
            .field("escrow", &self.escrow)
            .field("rpc_urls", &origins(&self.rpc_urls))
            .field("confirmations", &self.confirmations)
            .field("escrow_from_block", &self.escrow_from_block)
            .field("chain_poll_ms", &self.chain_poll_ms)
            .finish()
    }
}

impl fmt::Debug for EscrowConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EscrowConfig")
            .field("domain", &self.domain)
            .field("rpc_urls", &origins(&self.rpc_urls))
            .field("confirmations", &self.confirmations)
            .field("from_block", &self.from_block)
            .field("poll", &self.poll)
            .finish()
    }
}

fn origins(urls: &[Url]) -> Vec<String> {
    urls.iter().map(|url| url.origin().ascii_serialization()).collect()
}

fn parse_escrow(text: &str) -> Result<Domain, String> {
    let form = "CHAIN_ID:0xADDRESS, such as 8453:0x5FbDB2315678afecb367f032d93F642f64180aa3";
    let (chain_id, address) = text.split_once(':').ok_or(form)?;
    let chain_id = chain_id.parse().map_err(|_| form)?;
    let verifying_contract: Address = address.parse().map_err(|_| form)?;
    if verifying_contract.is_zero() {
        return Err("the zero address is no contract".to_owned());
    }
    Ok(Domain { chain_id, verifying_contract })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_escrow_is_a_chain_and_an_address() {
        let address = "0x5FbDB2315678afecb367f032d93F642f64180aa3";
        let domain = parse_escrow(&format!("8453:{address}")).unwrap();
        assert_eq!((domain.chain_id, domain.verifying_contract), (8453, address.parse().unwrap()));
        for wrong in ["", "8453", address, "x:0x00", &format!("-1:{address}"), &format!("1:{}", "0x0")] {
            assert!(parse_escrow(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn access_keys_of_endpoints_are_not_shown() {
        let config = EscrowConfig {
            domain: Domain { chain_id: 1, verifying_contract: Address::repeat_byte(1) },
            rpc_urls: vec!["https://user:word@rpc.example/v1/s3cret?key=s3cret".parse().unwrap()],
            confirmations: 12,
            from_block: 0,
            poll: Duration::from_secs(4),
        };
        let shown = format!("{config:?}");
        assert!(shown.contains("https://rpc.example"), "{shown}");
        assert!(!shown.contains("s3cret") && !shown.contains("word"), "{shown}");
    }
}
