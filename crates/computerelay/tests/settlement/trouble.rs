//! Chains that go back on their word, and endpoints that are gone.

use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::json;
use taskmarket::{Money, Status};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use url::Url;

use crate::chain::{PROVIDER, World, eventually, world};
use crate::relay::{CONFIRMATIONS, Relay};

#[tokio::test]
async fn a_reorganisation_withdraws_what_was_not_final() {
    let Some(world) = world().await else { return };
    let relay = Relay::start(&world).await;
    let task = world.task(1).await;
    let id = relay.publish(&world, &task).await;
    let before = world.anvil("evm_snapshot", json!([])).await;
    world.fund(&task).await;
    let pending = || async { relay.task(id).await.settlement_pending };
    eventually("funded is seen", || async { pending().await }).await;
    world.anvil("evm_revert", json!([before])).await;
    // Another block takes the place of the one with the money.
    world.mine(1).await;
    eventually("funded is withdrawn", || async { pending().await.is_none().then_some(()) }).await;
    world.mine(CONFIRMATIONS).await;
    assert_eq!(relay.task(id).await.settlement, "none");
    world.fund(&task).await;
    relay.finally(&world, id, Money::Funded).await;

    // The same of later steps: accepted, gone, accepted again.
    let before = world.anvil("evm_snapshot", json!([])).await;
    world.accept(&task, PROVIDER, 1).await;
    eventually("accepted is seen", || async { pending().await }).await;
    assert_eq!(relay.task(id).await.status, Status::Open);
    world.anvil("evm_revert", json!([before])).await;
    world.mine(1).await;
    eventually("accepted is withdrawn", || async { pending().await.is_none().then_some(()) }).await;
    world.accept(&task, PROVIDER, 1).await;
    let view = relay.finally(&world, id, Money::Accepted).await;
    assert_eq!(view.status, Status::Accepted);
    relay.evidence(&world, id).await;
}

#[tokio::test]
async fn a_chain_that_takes_back_what_was_final_is_not_followed() {
    let Some(world) = world().await else { return };
    let mut relay = Relay::start(&world).await;
    let task = world.task(2).await;
    let id = relay.publish(&world, &task).await;
    let before = world.anvil("evm_snapshot", json!([])).await;
    world.fund(&task).await;
    relay.finally(&world, id, Money::Funded).await;
    let evidence = relay.evidence(&world, id).await;
    world.anvil("evm_revert", json!([before])).await;
    let now = world.now().await;
    world.next_block_at(now + 100).await;
    world.mine(2 * CONFIRMATIONS).await;
    let stopped = || async {
        let error = relay_error(&relay).await?;
        error.contains("was final").then_some(error)
    };
    eventually("the relay stops there", stopped).await;
    // What was written before holds in itself, and the chain has it no more.
    rpc::evidence::verify(&evidence).unwrap();
    assert!(!escrow::is_on_chain(&world.chain, id, &evidence.chain[0]).await.unwrap());
    assert!(relay.explain(id).await.starts_with("waiting for the chain: "), "{}", relay.explain(id).await);
    // Nothing more is told of any task, also after a start.
    relay.restart().await;
    world.mine(CONFIRMATIONS).await;
    eventually("it stays there", || async { relay_error(&relay).await?.contains("was final").then_some(()) })
        .await;
    assert_eq!(relay.task(id).await.settlement, "funded");
}

async fn relay_error(relay: &Relay) -> Option<String> {
    relay.info().await.chain?.error
}

#[tokio::test]
async fn while_no_endpoint_answers_settled_tasks_wait() {
    let Some(world) = world().await else { return };
    let gate = Gate::open(&world).await;
    let nobody = "http://127.0.0.1:1".parse().unwrap();
    let relay = Relay::start_at(&world, &[nobody, gate.url()]).await;
    let task = world.task(3).await;
    let id = relay.publish(&world, &task).await;
    world.fund(&task).await;
    relay.finally(&world, id, Money::Funded).await;
    assert_eq!(relay.explain(id).await, "no provider is online");
    gate.close();
    world.accept(&task, PROVIDER, 1).await;
    world.mine(CONFIRMATIONS).await;
    let error = eventually("the relay says so", || relay_error(&relay)).await;
    assert!(!error.is_empty());
    assert!(relay.explain(id).await.starts_with("waiting for the chain: "));
    assert_eq!(relay.task(id).await.settlement, "funded");
    gate.reopen();
    let view = relay.settles(id, Money::Accepted).await;
    assert_eq!(view.status, Status::Accepted);
    eventually("all is well again", || async { relay_error(&relay).await.is_none().then_some(()) }).await;
    relay.evidence(&world, id).await;
}

/// A way to the chain that can be closed.
struct Gate {
    address: SocketAddr,
    is_open: watch::Sender<bool>,
}

impl Gate {
    async fn open(world: &World) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let is_open = watch::Sender::new(true);
        let url = world.anvil.url();
        let behind = Arc::new(format!("127.0.0.1:{}", url.port().unwrap()));
        let gate = is_open.subscribe();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (mut gate, behind) = (gate.clone(), Arc::clone(&behind));
                tokio::spawn(async move {
                    if !*gate.borrow() {
                        return;
                    }
                    let Ok(mut far) = TcpStream::connect(behind.as_str()).await else { return };
                    let closed = async { gate.wait_for(|open| !open).await.is_ok() };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = closed => {}
                    }
                });
            }
        });
        Self { address, is_open }
    }

    fn url(&self) -> Url {
        format!("http://{}", self.address).parse().unwrap()
    }

    fn close(&self) {
        self.is_open.send_replace(false);
    }

    fn reopen(&self) {
        self.is_open.send_replace(true);
    }
}
