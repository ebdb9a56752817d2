//! A market moves from one kind of store to the other and back, whole.

use std::path::Path;

use store::{
    CopyError, Deadlines, KeyId, NewArtifact, NewKey, NewSession, NewWebhook, Scope, Sqlite, Store,
    StoredAnswer, TABLES, TaskFilter, Usage, Value,
};
use taskmarket::{ContentHash, NodeStatus};

use crate::fixtures::{
    accepted, address, at, cancelled, commit, failed, node, owner, publish, receipt, task,
};
use crate::server::{Durability, Server};

/// Puts something into every table.
async fn fill(store: &dyn Store) {
    for salt in 0..600 {
        let mut record = publish(store, task(salt), at(salt / 7)).await;
        if salt % 3 == 0 {
            let accept = accepted(&record, address(7), at(600));
            commit(store, &mut record, at(500), vec![accept], Some(node(1))).await;
        }
        if salt % 6 == 0 {
            let fail = failed(&record, address(7));
            let cancel = cancelled(&record);
            commit(store, &mut record, at(501), vec![fail, cancel], None).await;
        }
        if salt % 100 == 0 {
            let webhook = NewWebhook {
                task_id: record.id,
                url: format!("https://hooks.example/{salt}"),
                secret_name: "webhooks".into(),
                created_at: at(1),
            };
            store.add_webhook(webhook).await.unwrap();
        }
    }
    for (number, id) in (0..).zip(["a", "b", "c"]) {
        let session = NewSession {
            session_id: id.into(),
            provider: address(7),
            node_id: node(1),
            relay_id: "hz-1".into(),
            metadata_json: "{}".into(),
            at: at(number),
        };
        store.open_session(session).await.unwrap();
    }
    let (domain, head, facts) = crate::conformance::chain::portion(7);
    assert!(store.advance_chain(domain, None, head, facts).await.unwrap());
    store.relay_lives("hz-1", at(4)).await.unwrap();
    store.set_node_status(address(7), node(1), NodeStatus::Draining, at(3)).await.unwrap();
    let artifact = |number: u8, seconds| NewArtifact {
        digest: ContentHash(node(number).0),
        size: 1 << 40,
        owner: owner(),
        at: at(seconds),
    };
    store.add_artifact(artifact(5, 1), None).await.unwrap();
    store.add_artifact(artifact(6, 2), None).await.unwrap();
    assert!(store.doom_artifact(artifact(6, 2).digest, at(3), at(4)).await.unwrap());
    store.secret("attempt tokens").await.unwrap();
    let key = NewKey {
        id: owner(),
        hash: [7; 32],
        name: "somebody \u{e9}".into(),
        scopes: vec![Scope::Admin, Scope::TasksRead],
        requests_per_minute: None,
        tokens_per_minute: Some(60),
        deadlines: Deadlines { total: Some(600), first_byte: None, between_tokens: Some(5) },
        created_at: at(0),
        expires_at: Some(at(9)),
    };
    store.add_key(key).await.unwrap();
    store.add_usage(vec![Usage { owner: owner(), day: 20_000, requests: 3 }]).await.unwrap();
    store.add_receipts(vec![receipt("r-1", 5)]).await.unwrap();
    store.begin(&owner(), "in flight", [1; 32], at(0)).await.unwrap();
    store.begin(&owner(), "done", [2; 32], at(0)).await.unwrap();
    let headers = vec![("x-cost".into(), "41".into())];
    let answer = StoredAnswer { status: 201, content_type: "text/plain".into(), headers, body: vec![0, 255] };
    store.finish(&owner(), "done", answer).await.unwrap();
}

/// All rows of all tables.
async fn dump(store: &dyn Store) -> Vec<(&'static str, Vec<Vec<Value>>)> {
    let mut tables = Vec::new();
    for table in &TABLES {
        let rows = store.rows(table, None, usize::MAX).await.unwrap();
        assert!(!rows.is_empty(), "{} is not tested", table.name);
        tables.push((table.name, rows));
    }
    tables
}

async fn sqlite(dir: &Path) -> Sqlite {
    Sqlite::open(dir).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_market_moves_there_and_back_again() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let server = Server::start(Durability::None);
    let first = store::open(dirs[0].path().to_str().unwrap()).await.unwrap();
    fill(&*first).await;
    let second = store::open(&server.database()).await.unwrap();
    let third = store::open(dirs[1].path().to_str().unwrap()).await.unwrap();

    let mut told = Vec::new();
    store::copy(&*first, &*second, |progress| told.push(progress)).await.unwrap();
    let of_tasks: Vec<_> = told.iter().filter(|step| step.table == "tasks").map(|step| step.rows).collect();
    assert_eq!(of_tasks, [500, 600]);
    store::copy(&*second, &*third, |_| {}).await.unwrap();

    let expected = dump(&*first).await;
    assert_eq!(dump(&*second).await, expected);
    assert_eq!(dump(&*third).await, expected);
    for copied in [&*second, &*third] {
        let filter = TaskFilter { provider: Some(address(7)), ..TaskFilter::default() };
        let page = copied.list(filter.clone(), None, 100).await.unwrap();
        assert_eq!(page, first.list(filter, None, 100).await.unwrap());
        assert_eq!(copied.counts().await.unwrap(), first.counts().await.unwrap());
        assert_eq!(
            copied.attempts(address(7), at(0), 1000).await.unwrap(),
            first.attempts(address(7), at(0), 1000).await.unwrap()
        );
        // And it goes on from there.
        let seq = copied.last_seq().await.unwrap();
        let mut record = publish(copied, task(5000), at(999)).await;
        let accept = accepted(&record, address(7), at(1999));
        assert_eq!(commit(copied, &mut record, at(1000), vec![accept], None).await, seq + 2);
        assert_eq!(copied.list(TaskFilter::default(), None, 1).await.unwrap().tasks[0].record, record);
        let session = copied.sessions(address(7), 1).await.unwrap().remove(0);
        assert_eq!(session.generation, 3);
    }
}

#[tokio::test]
async fn only_an_empty_store_is_copied_into() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (from, to) = (sqlite(dirs[0].path()).await, sqlite(dirs[1].path()).await);
    publish(&from, task(1), at(0)).await;
    let key = NewKey {
        id: KeyId::of_api_key("k"),
        hash: [0; 32],
        name: String::new(),
        scopes: vec![],
        requests_per_minute: None,
        tokens_per_minute: None,
        deadlines: Deadlines::default(),
        created_at: at(0),
        expires_at: None,
    };
    store::Keys::add_key(&to, key).await.unwrap();
    let refused = store::copy(&from, &to, |_| {}).await.unwrap_err();
    assert!(matches!(refused, CopyError::NotEmpty { table: "api_keys" }), "{refused}");
    assert_eq!(store::Tasks::last_seq(&to).await.unwrap(), 0);
}
