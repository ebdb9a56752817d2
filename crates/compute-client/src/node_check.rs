//! Checking what evidence says of the chain with a node of that chain.

use std::path::Path;

use escrow::{Chain, Rpc, RpcConfig};
use rpc::evidence::Evidence;
use serde::Serialize;
use taskmarket::Domain;
use url::Url;

use crate::failure::{Exit, Failure, Outcome};

/// What a node said of evidence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct NodeCheck {
    /// How many facts were found on the chain, all of them.
    pub(crate) facts: usize,
    /// Where the money stands by the contract now. More may have happened since the evidence was written.
    pub(crate) settlement_now: &'static str,
}

/// Finds each of the chain's facts on the chain itself.
///
/// # Errors
/// Exit code 5 where the chain has no such fact; 4 where no node can be reached; 2 for evidence of an unsettled task.
pub(crate) async fn check(evidence: &Evidence, urls: &[Url], ca_file: Option<&Path>) -> Outcome<NodeCheck> {
    let domain =
        Domain { chain_id: evidence.domain.chain_id, verifying_contract: evidence.domain.verifying_contract };
    if !domain.is_settled() {
        return Err(
            Failure::usage("the task is unsettled: no chain has a word on it").hint("leave --rpc-url out")
        );
    }
    let unreachable = |error: &dyn std::fmt::Display| Failure::new(Exit::Unreachable, error);
    let tls = daemon::tls::client_config(ca_file).map_err(Failure::usage)?;
    let config = RpcConfig::new(urls.to_vec(), Some(domain.chain_id));
    let rpc = Rpc::new(config, &tls).map_err(|error| unreachable(&error))?;
    let chain = Chain::connect(rpc, domain.verifying_contract).await.map_err(|error| unreachable(&error))?;
    for fact in &evidence.chain {
        let is_there = escrow::is_on_chain(&chain, evidence.task_id, fact).await;
        if !is_there.map_err(|error| unreachable(&error))? {
            return Err(Failure::unverified(format_args!(
                "the chain does not have what the evidence says of it: {} by transaction {} (log {} of block {})",
                fact.change.name(),
                fact.tx,
                fact.log_index,
                fact.block
            )));
        }
    }
    let record = chain.record(evidence.task_id).await.map_err(|error| unreachable(&error))?;
    Ok(NodeCheck { facts: evidence.chain.len(), settlement_now: record.status.as_str() })
}
