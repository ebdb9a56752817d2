//! Several endpoints: which is asked, and when another is.

use escrow::{Rpc, RpcConfig, RpcError};
use serde_json::{Value, json};

use crate::support::{Mood, Proxy, anvil, rpc_to, tls};

#[tokio::test]
async fn the_next_endpoint_is_asked_where_one_is_down() {
    let Some(anvil) = anvil(&[]).await else { return };
    let first = Proxy::start(anvil.url(), Mood::Down).await;
    let second = Proxy::start(anvil.url(), Mood::Honest).await;
    let rpc = rpc_to(vec![first.url(), second.url()]);
    assert_eq!(rpc.chain_id().await.unwrap(), 31337);
    second.set(Mood::Down);
    let error = rpc.request::<Value>("eth_blockNumber", json!([])).await.unwrap_err();
    assert!(matches!(error, RpcError::Unreachable(_)) && !error.is_answer(), "{error}");
    first.set(Mood::Honest);
    rpc.request::<Value>("eth_blockNumber", json!([])).await.unwrap();
}

#[tokio::test]
async fn an_endpoint_that_comes_back_within_the_time_is_waited_for() {
    let Some(anvil) = anvil(&[]).await else { return };
    let proxy = Proxy::start(anvil.url(), Mood::Down).await;
    let config = RpcConfig::new(vec![proxy.url()], Some(31337));
    let rpc = Rpc::new(config, &tls()).unwrap();
    let asked = tokio::spawn(async move { rpc.request::<Value>("eth_blockNumber", json!([])).await });
    tokio::task::yield_now().await;
    proxy.set(Mood::Honest);
    asked.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_endpoint_of_another_chain_is_never_asked_anything_else() {
    let Some(anvil_a) = anvil(&[]).await else { return };
    let Some(anvil_b) = anvil(&["--chain-id", "5"]).await else { return };
    let rpc = rpc_to(vec![anvil_b.url(), anvil_a.url()]);
    assert_eq!(rpc.chain_id().await.unwrap(), 5);
    let config = RpcConfig::new(vec![anvil_b.url(), anvil_a.url()], Some(31337));
    let rpc = Rpc::new(config, &tls()).unwrap();
    let id: String = rpc.request("eth_chainId", json!([])).await.unwrap();
    assert_eq!(id, "0x7a69");
    let config = RpcConfig::new(vec![anvil_b.url()], Some(31337));
    let error =
        Rpc::new(config, &tls()).unwrap().request::<Value>("eth_blockNumber", json!([])).await.unwrap_err();
    assert!(matches!(&error, RpcError::Setup(why) if why.contains("chain 5, not 31337")), "{error}");
}

#[tokio::test]
async fn answers_of_the_chain_are_not_tried_elsewhere_and_urls_are_not_shown() {
    let Some(anvil) = anvil(&[]).await else { return };
    let rpc = rpc_to(vec![anvil.url()]);
    let error = rpc.request::<Value>("eth_nothing", json!([])).await.unwrap_err();
    assert!(matches!(error, RpcError::Refused { .. }) && error.is_answer(), "{error}");
    let error = rpc.request::<u8>("eth_chainId", json!([])).await.unwrap_err();
    assert!(matches!(error, RpcError::Malformed { .. }), "{error}");

    let rpc = rpc_to(vec!["http://127.0.0.1:1/secret-access-key?k=secret".parse().unwrap()]);
    let error = rpc.chain_id().await.unwrap_err().to_string();
    assert!(error.contains("127.0.0.1:1") && !error.contains("secret"), "{error}");
    for wrong in [vec![], vec!["ws://127.0.0.1:1".parse().unwrap()]] {
        assert!(matches!(Rpc::new(RpcConfig::new(wrong, None), &tls()), Err(RpcError::Setup(_))));
    }
}
