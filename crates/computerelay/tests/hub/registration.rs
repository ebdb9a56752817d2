//! Who is let in, who is not, and whose session stays.

use rpc::error::ErrorBody;
use rpc::link::{Hello, Register};
use rpc::relay::RefreshNode;
use rpc::tasks::SignedMutation;
use taskmarket::{Bytes32, Domain, NodeStatus, RegisterNode, Status, UpdateNodeStatus};
use tokio_tungstenite::tungstenite::Message;
use wallet::Wallet;

use crate::agent::{Beats, Script, close_code_of, dial, now};
use crate::support::{PATIENCE, Relay, Requester, Times, within};

/// Registers as `change` makes it; the code of the refusal, the field it names, and the close code.
async fn refusal(
    relay: &Relay,
    change: impl FnOnce(&Script, &Hello, RegisterNode, String) -> String,
) -> (String, Option<String>, u16) {
    let script = Script::new();
    let (mut handshake, hello) = dial(&relay.url()).await;
    let metadata = serde_json::to_string(&script.metadata()).unwrap();
    let registration = script.registration(&hello, &relay.url(), &metadata);
    handshake.send(&change(&script, &hello, registration, metadata)).await.unwrap();
    let text = within("a refusal", handshake.recv()).await.unwrap();
    let body: ErrorBody = serde_json::from_str(&text).unwrap_or_else(|_| panic!("not refused: {text}"));
    (body.error.code, body.error.param, close_code_of(&mut handshake).await)
}

fn json(register: &Register) -> String {
    serde_json::to_string(register).unwrap()
}

#[tokio::test]
async fn a_host_is_let_in_and_listed_and_its_session_is_on_record() {
    let relay = Relay::start(Times::default()).await;
    let agent = Script::new().slots(3).connect(&relay.url()).await;
    assert_eq!(agent.hello.relay_id, "relay");
    assert_eq!(agent.hello.domains[0].verifying_contract, taskmarket::Address::ZERO);
    assert!(agent.welcome.accepted && agent.welcome.drop.is_empty());
    assert_eq!(agent.welcome.generation, 1);

    let list = relay.lists(|list| list.providers.len() == 1).await;
    let host = &list.providers[0];
    assert_eq!((host.provider, host.node_id), (agent.address(), agent.script.node_id));
    assert_eq!(host.endpoint, format!("relay://relay/{}", agent.hello.session_id));
    assert_eq!(host.metadata, agent.script.metadata());

    let address = agent.address();
    agent.stop().await;
    relay.lists(|list| list.providers.is_empty()).await;
    let ended = crate::support::poll("the session's end", async || {
        let sessions = relay.sessions(address).await.sessions;
        sessions[0].disconnected_at.is_some().then_some(sessions)
    });
    let sessions = ended.await;
    assert_eq!((sessions.len(), sessions[0].generation), (1, 1));
    assert!(sessions[0].reason.is_some());
}

#[tokio::test]
async fn registrations_that_do_not_hold_are_refused_by_their_fault() {
    let relay = Relay::start(Times::default()).await;
    type Change = fn(&mut RegisterNode);
    let fields: [(&str, Change); 6] = [
        ("relay_id", |registration| registration.relay_id = "other".into()),
        ("session_id", |registration| registration.session_id = "other".into()),
        ("nonce", |registration| registration.nonce = Bytes32([1; 32].into())),
        ("relay_url", |registration| {
            registration.relay_url = "wss://other.example/v1/provider/connect".into()
        }),
        ("timestamp", |registration| registration.timestamp = now().plus(400)),
        ("metadata_hash", |registration| registration.metadata_hash = Bytes32([1; 32].into())),
    ];
    for (field, change) in fields {
        let refused = refusal(&relay, |script, _, mut registration, metadata| {
            change(&mut registration);
            json(&script.register(registration, metadata))
        })
        .await;
        let code = if field == "metadata_hash" { "hash_mismatch" } else { "invalid_field" };
        assert_eq!(refused, (code.to_owned(), Some(field.to_owned()), 4003));
    }

    let stale = refusal(&relay, |script, _, mut registration, metadata| {
        registration.timestamp = taskmarket::Timestamp::from_unix(now().unix() - 400);
        json(&script.register(registration, metadata))
    });
    assert_eq!(stale.await.1.as_deref(), Some("timestamp"));

    let forged = refusal(&relay, |script, _, registration, metadata| {
        let mut register = script.register(registration, metadata);
        let stranger = Wallet::random();
        let theirs = RegisterNode { provider: stranger.address(), ..register.registration.clone() };
        register.signature = stranger.sign(&theirs, &Domain::UNSETTLED).unwrap().signature;
        json(&register)
    });
    assert_eq!(forged.await, ("invalid_signature".to_owned(), Some("signature".to_owned()), 4003));

    for metadata in ["", "{}", "[1]", "\u{0}"] {
        let refused = refusal(&relay, |script, hello, _, _| {
            let registration = script.registration(hello, &relay.url(), metadata);
            json(&script.register(registration, metadata.to_owned()))
        })
        .await;
        assert_eq!(refused, ("invalid_field".to_owned(), Some("metadata".to_owned()), 4003));
    }
    let slots = refusal(&relay, |script, hello, _, _| {
        let metadata = serde_json::to_string(&script.clone().slots(0).metadata()).unwrap();
        json(&script.register(script.registration(hello, &relay.url(), &metadata), metadata))
    });
    assert_eq!(slots.await.1.as_deref(), Some("metadata"));

    for garbage in ["", "{", "null", "[]", "{\"registration\":1}"] {
        let refused = refusal(&relay, |_, _, _, _| garbage.to_owned()).await;
        assert_eq!(refused, ("malformed_request".to_owned(), None, 4000));
    }
    relay.lists(|list| list.providers.is_empty()).await;

    // A registration cannot be used twice.
    let script = Script::new();
    let (_first, hello, _) = script.shake_hands(&relay.url()).await;
    let replayed = refusal(&relay, |_, _, _, _| {
        let metadata = serde_json::to_string(&script.metadata()).unwrap();
        json(&script.register(script.registration(&hello, &relay.url(), &metadata), metadata))
    });
    assert_eq!(replayed.await.1.as_deref(), Some("session_id"));
}

#[tokio::test]
async fn who_says_nothing_or_speaks_binary_is_closed_and_harms_nobody() {
    let relay = Relay::start(Times::default()).await;
    let request = tokio_tungstenite::tungstenite::client::ClientRequestBuilder::new(
        relay.url().as_str().parse().unwrap(),
    )
    .with_sub_protocol(link::SUBPROTOCOL);
    let stream =
        tokio::net::TcpStream::connect((relay.url().host_str().unwrap(), relay.url().port().unwrap()))
            .await
            .unwrap();
    let (mut binary, _) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    use futures_util::{SinkExt as _, StreamExt as _};
    assert!(binary.next().await.unwrap().unwrap().is_text());
    binary.send(Message::binary(vec![0_u8; 64])).await.unwrap();
    let closed = within("a close", binary.next()).await.unwrap().unwrap();
    let Message::Close(Some(frame)) = closed else { panic!("expected a close, got {closed:?}") };
    assert_eq!(u16::from(frame.code), 4000);

    let (mut silent, _) = dial(&relay.url()).await;
    let agent = Script::new().connect(&relay.url()).await;
    relay.lists(|list| list.providers.len() == 1).await;
    // The agent's side of the link gives up no sooner than the relay's.
    let ended = tokio::time::timeout(PATIENCE, silent.recv()).await.unwrap();
    assert!(ended.is_err(), "{ended:?}");
    assert_eq!(relay.lists(|_| true).await.providers[0].provider, agent.address());
}

#[tokio::test]
async fn a_newer_session_replaces_a_half_open_one_and_is_never_evicted_by_it() {
    let relay = Relay::start(Times::default()).await;
    let script = Script::new();
    // It shakes hands and then neither reads nor writes.
    let (half_open, _, welcome) = script.shake_hands(&relay.url()).await;
    assert_eq!(welcome.generation, 1);

    let agent = script.clone().connect(&relay.url()).await;
    assert_eq!(agent.welcome.generation, 2);
    let newest = |list: &rpc::relay::ProviderList| list.providers.iter().any(|host| host.generation == 2);
    relay.lists(newest).await;
    let sessions = relay.sessions(agent.address()).await.sessions;
    let old = sessions.iter().find(|session| session.generation == 1).unwrap();
    assert_eq!(old.reason.as_deref(), Some("superseded"));

    // The old connection's late end, whenever it is seen, leaves the new one where it is.
    drop(half_open);
    let requester = Requester::new();
    for _ in 0..5 {
        let task_id = relay.publish(&requester, &requester.task()).await;
        let assignment = agent.is_offered(task_id).await;
        relay.reaches(task_id, Status::Accepted, 1).await;
        relay.tell(task_id, "fail", &agent.failure(&assignment)).await;
        agent.finish(&assignment);
        assert!(newest(&relay.lists(|_| true).await));
    }
}

#[tokio::test]
async fn an_older_session_that_reads_is_told_why_it_ends() {
    let relay = Relay::start(Times::default()).await;
    let script = Script::new();
    let older = script.clone().connect(&relay.url()).await;
    let _newer = script.connect(&relay.url()).await;
    let (code, reason) = older.sent_away().await;
    assert_eq!(code, link::close_code::SUPERSEDED);
    assert!(reason.contains("superseded"), "{reason}");
}

#[tokio::test]
async fn two_hosts_of_one_provider_both_stay() {
    let relay = Relay::start(Times::default()).await;
    let one = Script::new();
    let two = Script { node_id: Bytes32([7; 32].into()), ..one.clone() };
    let one = one.connect(&relay.url()).await;
    let two = two.connect(&relay.url()).await;
    assert_eq!((one.welcome.generation, two.welcome.generation), (1, 1));
    relay.lists(|list| list.providers.len() == 2).await;

    let requester = Requester::new();
    let first = relay.publish(&requester, &requester.task()).await;
    let second = relay.publish(&requester, &requester.task()).await;
    relay.reaches(first, Status::Accepted, 1).await;
    relay.reaches(second, Status::Accepted, 1).await;
    assert_eq!((one.state().held.len(), two.state().held.len()), (1, 1));
}

#[tokio::test]
async fn a_draining_host_gets_nothing_and_a_refreshed_one_gets_what_it_offers() {
    let relay = Relay::start(Times::default()).await;
    let script = Script::new().slots(2);
    let agent = script.clone().connect(&relay.url()).await;
    relay.lists(|list| list.providers.len() == 1).await;
    let path = format!("/v1/providers/{}", agent.address());
    let status = |status, issued_at| {
        let update = UpdateNodeStatus {
            provider: script.wallet.address(),
            node_id: script.node_id,
            status,
            issued_at,
        };
        SignedMutation::from(script.wallet.sign(&update, &Domain::UNSETTLED).unwrap())
    };
    let earlier = now();
    let draining = status(NodeStatus::Draining, earlier);
    assert_eq!(relay.post(&format!("{path}/status"), &draining).await.0, 204);
    let list = relay.lists(|list| list.providers[0].closed_for.is_some()).await;
    assert_eq!(list.providers[0].closed_for.as_deref(), Some("it is draining"));
    let requester = Requester::new();
    let task_id = relay.publish(&requester, &requester.task()).await;
    let explanation = relay.explains(task_id, |_| true).await;
    assert_eq!(explanation.summary, "1 provider online, none fits: it is draining");

    // Another word of the same second is not newer.
    let not_newer = relay.post(&format!("{path}/status"), &status(NodeStatus::Online, earlier)).await;
    assert_eq!((not_newer.0.as_u16(), not_newer.1["error"]["code"].as_str()), (409, Some("conflict")));
    let online = status(NodeStatus::Online, earlier.plus(1));
    assert_eq!(relay.post(&format!("{path}/status"), &online).await.0, 204);
    relay.reaches(task_id, Status::Accepted, 1).await;
    relay.lists(|list| list.providers[0].closed_for.is_none()).await;

    let metadata = serde_json::to_string(&script.clone().slots(1).metadata()).unwrap();
    let refresh = |session_id: &str| {
        let mut registration = script.registration(&agent.hello, &relay.url(), &metadata);
        registration.session_id = session_id.to_owned();
        let register = script.register(registration, metadata.clone());
        RefreshNode {
            registration: register.registration,
            metadata: metadata.clone(),
            signature: register.signature,
        }
    };
    let other = relay.post(&format!("{path}/registration"), &refresh("other")).await;
    assert_eq!((other.0.as_u16(), other.1["error"]["code"].as_str()), (409, Some("no_session")));
    let own = refresh(&agent.hello.session_id);
    assert_eq!(relay.post(&format!("{path}/registration"), &own).await.0, 204);
    let list = relay.lists(|list| list.providers.len() == 1).await;
    assert_eq!(list.providers[0].metadata.slots, 1);
}

#[tokio::test]
async fn everybody_sees_that_a_host_is_unwell_and_why() {
    let relay = Relay::start(Times::default()).await;
    let _agent = Script::new().beats(Beats::Unwell("the node is dead")).connect(&relay.url()).await;
    let list = relay.lists(|list| list.providers.first().is_some_and(|host| host.closed_for.is_some())).await;
    assert_eq!(list.providers[0].closed_for.as_deref(), Some("it is unhealthy: the node is dead"));
    assert_eq!(list.providers[0].status, NodeStatus::Online, "its session lasts");
}

#[tokio::test]
async fn silent_connections_take_only_their_own_address_and_not_for_long() {
    let relay = Relay::start(Times::default()).await;
    let mut silent = Vec::new();
    for _ in 0..16 {
        silent.push(dial(&relay.url()).await.0);
    }
    let refused = link::connect(&relay.url(), None, link::Config::default()).await;
    assert!(refused.is_err(), "the seventeenth finds no place");
    let mut last = silent.pop().unwrap();
    assert!(within("the end of its patience", last.recv()).await.is_err());
    let connected = crate::support::poll("a place", async || {
        link::connect(&relay.url(), None, link::Config::default()).await.ok()
    });
    connected.await;
}

#[tokio::test]
async fn what_is_said_of_hosts_that_never_were_is_not_kept() {
    let relay = Relay::start(Times::default()).await;
    let stranger = Script::new();
    let update = UpdateNodeStatus {
        provider: stranger.wallet.address(),
        node_id: stranger.node_id,
        status: NodeStatus::Draining,
        issued_at: now(),
    };
    let body = SignedMutation::from(stranger.wallet.sign(&update, &Domain::UNSETTLED).unwrap());
    let path = format!("/v1/providers/{}/status", stranger.wallet.address());
    let (status, answer) = relay.post(&path, &body).await;
    assert_eq!((status.as_u16(), answer["error"]["code"].as_str()), (409, Some("no_session")), "{answer}");
}
