//! Tells the relay when the compute node drains, and when it takes tasks again.

use std::sync::Arc;

use rpc::tasks::SignedMutation;
use taskmarket::{Domain, NodeStatus, UpdateNodeStatus};

use crate::agent::{Shared, now};

/// Announces what changes until the agent closes. The heartbeat says the same of the moment; this word outlasts the connection.
pub(crate) async fn announce(shared: Arc<Shared>) {
    let mut host = shared.host.clone();
    let mut told = if shared.home.was_draining() { NodeStatus::Draining } else { NodeStatus::Online };
    let mut backoff = shared.config.timing.backoff();
    loop {
        // While the node is away, what was said last holds.
        let draining = host.borrow_and_update().report.as_ref().map(|report| report.draining);
        let wanted = match draining {
            Some(true) => NodeStatus::Draining,
            Some(false) => NodeStatus::Online,
            None => told,
        };
        let step = async {
            if wanted == told {
                // The sender lives as long as the agent.
                host.changed().await.is_ok()
            } else {
                match tell(&shared, wanted).await {
                    Ok(()) => {
                        tracing::info!(status = wanted.as_str(), "the relay knows");
                        told = wanted;
                        backoff.reset();
                    }
                    Err(error) => {
                        tracing::debug!(error, "the relay does not know yet whether the node drains");
                        tokio::time::sleep(backoff.next_delay()).await;
                    }
                }
                true
            }
        };
        if shared.closing.run_until_cancelled(step).await != Some(true) {
            return;
        }
    }
}

async fn tell(shared: &Shared, status: NodeStatus) -> Result<(), String> {
    let update = UpdateNodeStatus {
        provider: shared.wallet().address(),
        node_id: shared.home.node_id,
        status,
        issued_at: now(),
    };
    let signed = shared.wallet().sign(&update, &Domain::UNSETTLED).map_err(|error| error.to_string())?;
    // Noted before it is said: after a crash in between, saying again that tasks are taken does no harm.
    let draining = status == NodeStatus::Draining;
    if draining {
        shared.home.note_draining(true).map_err(|error| error.to_string())?;
    }
    shared.relay.set_status(&SignedMutation::from(signed)).await.map_err(|error| error.to_string())?;
    if !draining {
        shared.home.note_draining(false).map_err(|error| error.to_string())?;
    }
    Ok(())
}
