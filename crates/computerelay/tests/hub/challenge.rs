//! Hosts that offer a GPU prove what it computes.

use std::time::Duration;

use crate::agent::Script;
use crate::support::{Relay, Times};

const GPU: Option<&str> = Some("NVIDIA A100");

fn often() -> Times {
    Times { challenge: Some(Duration::from_millis(100)), ..Times::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_gpu_computes_is_checked_and_shown() {
    let relay = Relay::start(often()).await;
    let host = Script { gpu: GPU, ..Script::new() }.connect(&relay.url()).await;
    let list = relay.lists(|list| list.providers.iter().any(|host| !host.measured.is_empty())).await;
    let measured = &list.providers[0].measured;
    assert_eq!(measured.len(), 1);
    assert_eq!((measured[0].device, &measured[0].problem), (0, &None));
    // The host takes a second for 512^3 multiply-adds, and what the network takes.
    let most = 512u64.pow(3);
    let found = measured[0].multiply_adds_per_second.unwrap();
    assert!((most / 10..=most).contains(&found), "{found}");
    host.stop().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_that_computes_wrongly_is_shown_as_such() {
    let relay = Relay::start(often()).await;
    let liar = Script { gpu: GPU, miscalculates: true, ..Script::new() }.connect(&relay.url()).await;
    let list = relay.lists(|list| list.providers.iter().any(|host| !host.measured.is_empty())).await;
    let measured = &list.providers[0].measured[0];
    assert_eq!(measured.multiply_adds_per_second, None);
    assert_eq!(measured.problem.as_deref(), Some("product 0 is not the one that was committed to"));
    liar.stop().await;
    relay.stop().await;
}

#[tokio::test]
async fn nobody_is_asked_unless_the_operator_wants_it() {
    let relay = Relay::start(Times::default()).await;
    let host = Script { gpu: GPU, ..Script::new() }.connect(&relay.url()).await;
    let list = relay.lists(|list| list.providers.len() == 1).await;
    assert!(list.providers[0].measured.is_empty());
    host.stop().await;
    relay.stop().await;
}
