//! PostgreSQL does what every store must do, and what only a shared store must.

use std::sync::Arc;
use std::time::Duration;

use store::{
    Commit, EventFilter, NewWebhook, Options, Placement, Postgres, Published, Sessions, Store, StoreError,
    Tasks, Webhooks,
};
use taskmarket::TaskId;
use tokio::task::JoinSet;
use tokio_postgres::NoTls;

use crate::conformance::each_case;
use crate::fixtures::{
    accepted, address, at, cancelled, commit, node, owner, publish, published, record_events, task,
};
use crate::server::{Durability, Server};

macro_rules! conforms {
    ($($concern:ident::$case:ident)*) => {
        /// All cases, on one server: it takes longer to start than a case.
        #[tokio::test(flavor = "multi_thread")]
        async fn does_what_every_store_must() {
            let server = Server::start(Durability::None);
            $(
                let store = Postgres::connect(&server.database()).await.unwrap();
                let case = crate::conformance::$concern::$case(Arc::new(store));
                let tasks = tokio::task::LocalSet::new();
                let ended = tasks.run_until(async { tokio::task::spawn_local(case).await }).await;
                assert!(ended.is_ok(), "{}: see the panic above", stringify!($concern::$case));
            )*
        }
    };
}

each_case!(conforms);

/// A connection that speaks for itself.
async fn client(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn relays_live_by_the_databases_clock_whatever_their_own_say() {
    let server = Server::start(Durability::None);
    let store = Postgres::connect(&server.database()).await.unwrap();
    let here = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    for own in [0, here + 100_000] {
        let clock = store.relays_clock(taskmarket::Timestamp::from_unix(own)).await.unwrap();
        assert!(clock.unix().abs_diff(here) < 60, "{clock}");
    }
    // What was on its way for long takes nothing back.
    store.relay_lives("hz-1", at(40)).await.unwrap();
    store.relay_lives("hz-1", at(10)).await.unwrap();
    assert_eq!(store.living_relays(at(40)).await.unwrap(), ["hz-1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_misses_nothing_while_a_writer_is_held_open() {
    const OTHERS: u64 = 40;
    let server = Server::start(Durability::None);
    let url = server.database();
    let named = |name| format!("{url}?application_name={name}");
    let [one, two] = ["one", "two"].map(named);
    let stores = [Postgres::connect(&one).await.unwrap(), Postgres::connect(&two).await.unwrap()];
    let stores = stores.map(Arc::new);
    publish(&*stores[0], task(0), at(0)).await;

    // A writer appends to the sequence, as the store does, and does not commit.
    let held = client(&url).await;
    held.batch_execute("BEGIN; SELECT take_commit_lock()").await.unwrap();
    let first = serde_json::to_string(&published(task(1), at(1)).1).unwrap();
    let append = "INSERT INTO events SELECT seq + 1, task, requester, status, $1 FROM events ORDER BY seq DESC LIMIT 1";
    assert_eq!(held.execute(append, &[&first]).await.unwrap(), 1);

    // Others on both relays want to commit, and a follower reads on.
    let mut others = JoinSet::new();
    for salt in 0..OTHERS {
        let store = stores[(salt % 2) as usize].clone();
        others.spawn(async move { publish(&*store, task(100 + salt), at(2)).await });
    }
    let follower = stores[1].clone();
    let (seen, mut sees) = tokio::sync::mpsc::unbounded_channel();
    let following = tokio::spawn(async move {
        let mut after = 0;
        while after < 2 + OTHERS {
            assert!(follower.wait_for_events(after, Duration::from_secs(30)).await.unwrap());
            for event in follower.events_after(after, EventFilter::default(), 7).await.unwrap() {
                after = event.seq;
                seen.send(event.seq).unwrap();
            }
        }
    });
    assert_eq!(sees.recv().await, Some(1));
    // Whoever overtook the held writer would be seen now: the server has them waiting for its lock.
    let watcher = client(&url).await;
    let waiting = "SELECT count(DISTINCT application_name) FROM pg_stat_activity JOIN pg_locks USING (pid)
                   WHERE locktype = 'advisory' AND NOT granted";
    let both_wait = async {
        while watcher.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), both_wait)
        .await
        .expect("both relays wait for the held writer");
    assert!(sees.try_recv().is_err());
    held.batch_execute("COMMIT").await.unwrap();
    following.await.unwrap();
    let mut seqs = vec![1];
    while let Some(seq) = sees.recv().await {
        seqs.push(seq);
    }
    assert!(seqs.iter().copied().eq(1..=2 + OTHERS), "{seqs:?}");
    others.join_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_relays_one_takes_each_attempt() {
    const RACES: u64 = 1000;
    const AT_ONCE: u64 = 50;
    let server = Server::start(Durability::None);
    let url = server.database();
    let stores = [1, 2].map(|_| Postgres::connect(&url));
    let [one, two] = stores;
    let stores = [Arc::new(one.await.unwrap()), Arc::new(two.await.unwrap())];
    for begin in (0..RACES).step_by(AT_ONCE as usize) {
        let mut races = JoinSet::new();
        for salt in begin..begin + AT_ONCE {
            let stores = stores.clone();
            races.spawn(async move {
                let record = publish(&*stores[0], task(salt), at(0)).await;
                let take = |relay: usize| {
                    let (store, mut record) = (stores[relay].clone(), record.clone());
                    let events = vec![accepted(&record, address(relay as u8), at(600))];
                    let events = record_events(&mut record, at(1), events);
                    let placement = Placement::from(node(relay as u8));
                    tokio::spawn(async move { store.commit(1, &record, events, Some(placement)).await })
                };
                let (first, second) = (take(0), take(1));
                let commits = [first.await.unwrap().unwrap(), second.await.unwrap().unwrap()];
                let won: Vec<_> = (0..2).filter(|relay| commits[*relay] != Commit::Conflict).collect();
                assert_eq!(won.len(), 1, "{commits:?}");
                let kept = stores[1].task(record.id).await.unwrap().unwrap();
                assert_eq!((kept.record.version, kept.node), (2, Some(node(won[0] as u8))));
                assert_eq!(kept.record.lease().unwrap().provider, address(won[0] as u8));
            });
        }
        races.join_all().await;
    }
    let events = stores[0].events_after(0, EventFilter::default(), usize::MAX).await.unwrap();
    assert!(events.iter().map(|event| event.seq).eq(1..=2 * RACES), "no place is empty");
    let counts = stores[1].counts().await.unwrap();
    assert_eq!(counts[&taskmarket::Status::Accepted], RACES);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relays_id_is_one_process_s_at_a_time() {
    let server = Server::start(Durability::None);
    let url = server.database();
    let [one, two] = [1, 2].map(|_| Postgres::connect(&url));
    let (one, two) = (one.await.unwrap(), two.await.unwrap());
    assert!(one.claim_relay("hz-1").await.unwrap());
    assert!(!two.claim_relay("hz-1").await.unwrap());
    assert!(two.claim_relay("jp-2").await.unwrap());

    // A session that is lost is made again, unless somebody else was faster.
    let admin = client(&url).await;
    let holders =
        "SELECT pid, pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted";
    let lost: Vec<i32> = admin.query(holders, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(lost.len(), 2);
    let held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid <> ALL($1)";
    let again = async {
        while admin.query_one(held, &[&lost]).await.unwrap().get::<_, i64>(0) < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), again).await.expect("both hold their ids again");
    assert!(!two.claim_relay("hz-1").await.unwrap());

    one.close().await;
    let freed = async {
        while !two.claim_relay("hz-1").await.unwrap() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), freed).await.expect("it is free again");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_lost_its_id_to_another_is_told() {
    let server = Server::start(Durability::None);
    let url = server.database();
    let one = Arc::new(Postgres::connect(&format!("{url}?application_name=one")).await.unwrap());
    assert!(one.claim_relay("hz-1").await.unwrap());
    let lost = {
        let one = one.clone();
        tokio::spawn(async move { one.claim_lost().await })
    };

    // Another waits for the lock, and has it as soon as the one who holds it is cut off.
    let (other, admin) = (client(&url).await, client(&url).await);
    let take =
        async { other.batch_execute("SELECT pg_advisory_lock(hashtextextended('hz-1', 7206103))").await };
    let cut = async {
        let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
        while admin.query_one(waits, &[]).await.unwrap().get::<_, i64>(0) < 1 {
            tokio::task::yield_now().await;
        }
        assert!(!lost.is_finished());
        let holder = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted";
        assert_eq!(admin.query(holder, &[]).await.unwrap().len(), 1);
    };
    let (taken, ()) = tokio::join!(take, cut);
    taken.unwrap();
    tokio::time::timeout(Duration::from_secs(30), lost).await.expect("it is told").unwrap();
    // And whoever asks later.
    tokio::time::timeout(Duration::from_secs(30), one.claim_lost()).await.expect("it is told again");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_connect_at_once_to_a_new_database() {
    let server = Server::start(Durability::None);
    let url = server.database();
    let mut connecting = JoinSet::new();
    for _ in 0..8 {
        let url = url.clone();
        connecting.spawn(async move { Postgres::connect(&url).await.unwrap() });
    }
    let stores = connecting.join_all().await;
    for (salt, store) in (0..).zip(&stores) {
        publish(store, task(salt), at(0)).await;
    }
    assert_eq!(stores[0].last_seq().await.unwrap(), 8);

    client(&url).await.batch_execute("UPDATE schema_version SET version = 99").await.unwrap();
    let newer = Postgres::connect(&url).await.unwrap_err();
    assert!(matches!(newer, StoreError::Schema { found: 99, .. }), "{newer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_the_servers_end_and_calls_work_again() {
    const CALLERS: u64 = 16;
    let mut server = Server::start(Durability::Full);
    let url = server.database();
    let options = Options { wait: Duration::from_secs(1), ..Options::default() };
    let store = Arc::new(Postgres::connect_with(&url, options).await.unwrap());
    let stopped = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (wrote, mut writes) = tokio::sync::mpsc::unbounded_channel();
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let (store, stopped, wrote) = (store.clone(), stopped.clone(), wrote.clone());
        callers.spawn(async move {
            let mut acknowledged: Vec<TaskId> = Vec::new();
            for number in 0.. {
                let (record, first) = published(task(caller << 32 | number), at(0));
                let id = record.id;
                match store.publish(record, first, owner()).await {
                    Ok(answer) => {
                        assert!(matches!(answer, Published::New { .. }), "{answer:?}");
                        acknowledged.push(id);
                        let _ = wrote.send(());
                    }
                    Err(error) => {
                        assert!(matches!(error, StoreError::Busy | StoreError::TimedOut), "{error:?}");
                        if stopped.load(std::sync::atomic::Ordering::Relaxed) {
                            break;
                        }
                    }
                }
            }
            acknowledged
        });
    }
    for _ in 0..200 {
        writes.recv().await.unwrap();
    }
    stopped.store(true, std::sync::atomic::Ordering::Relaxed);
    server.kill();
    let acknowledged = callers.join_all().await.concat();
    let down = store.last_seq().await.unwrap_err();
    assert!(matches!(down, StoreError::Busy), "{down:?}");

    server.launch();
    for id in &acknowledged {
        assert!(store.task(*id).await.unwrap().is_some(), "{id} was acknowledged");
    }
    let mut record = publish(&*store, task(u64::MAX), at(0)).await;
    // The listener comes back, too.
    let last = store.last_seq().await.unwrap();
    let waiting = {
        let store = store.clone();
        tokio::spawn(async move { store.wait_for_events(last, Duration::from_secs(30)).await.unwrap() })
    };
    let cancel = cancelled(&record);
    commit(&*store, &mut record, at(1), vec![cancel], None).await;
    assert!(waiting.await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_callers_share_commits() {
    const CALLERS: u64 = 64;
    const EACH: u64 = 40;
    let server = Server::start(Durability::Full);
    let store = Arc::new(Postgres::connect(&server.database()).await.unwrap());
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let store = store.clone();
        callers.spawn(async move {
            let mut seqs = Vec::new();
            for number in 0..EACH {
                let (record, first) = published(task(caller * EACH + number), at(number));
                let Published::New { seq } = store.publish(record, first, owner()).await.unwrap() else {
                    panic!("each task is new");
                };
                seqs.push(seq);
            }
            seqs
        });
    }
    let mut seqs = callers.join_all().await.concat();
    seqs.sort_unstable();
    assert!(seqs.iter().copied().eq(1..=CALLERS * EACH));
    let stats = store.write_stats();
    assert_eq!(stats.requests, CALLERS * EACH);
    assert!(stats.commits * 2 < stats.requests, "{stats:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_the_server_refuses_harms_no_other() {
    let server = Server::start(Durability::None);
    let store = Arc::new(Postgres::connect(&server.database()).await.unwrap());
    let mut requests = JoinSet::new();
    for salt in 0..50 {
        let store = store.clone();
        requests.spawn(async move {
            let mut task = task(salt);
            if salt == 25 {
                // No text of PostgreSQL's can hold it; the rules refuse it long before.
                task.config.gpu_type = "A\u{0}100".into();
            }
            let (record, first) = published(task, at(0));
            (salt, store.publish(record, first, owner()).await)
        });
    }
    for (salt, result) in requests.join_all().await {
        assert_eq!(result.is_err(), salt == 25, "{salt}: {result:?}");
    }
    assert_eq!(store.last_seq().await.unwrap(), 49);
    publish(&*store, task(99), at(0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_beside_a_delivery_is_not_missed() {
    let server = Server::start(Durability::None);
    let url = server.database();
    let store = Arc::new(Postgres::connect(&url).await.unwrap());
    for salt in 0..50 {
        let mut record = publish(&*store, task(salt), at(0)).await;
        let hook = NewWebhook {
            task_id: record.id,
            url: "https://hooks.example/a".into(),
            secret_name: "webhooks".into(),
            created_at: at(0),
        };
        store.add_webhook(hook).await.unwrap();
        let delivery = store.take_deliveries(at(1), at(31), 1).await.unwrap().remove(0);
        let done = {
            let store = store.clone();
            tokio::spawn(async move {
                store.delivery_done(delivery.webhook.id, delivery.event.seq, at(2)).await.unwrap()
            })
        };
        let cancel = cancelled(&record);
        commit(&*store, &mut record, at(2), vec![cancel], None).await;
        assert!(done.await.unwrap());
        let next = store.take_deliveries(at(2), at(32), 1).await.unwrap();
        assert_eq!(next.len(), 1, "{salt}");
        assert_eq!(next[0].event.task_id, record.id);
        store.delivery_done(next[0].webhook.id, next[0].event.seq, at(3)).await.unwrap();
    }
}

#[tokio::test]
async fn no_password_is_told() {
    for url in [
        "postgres://market:open-sesame@127.0.0.1:1/none",
        "postgres://market:open-sesame@127.0.0.1:none/none",
        "postgres://market:open-sesame@127.0.0.1:1/none?sslmode=open-sesame",
        "postgres://market:open-sesame@%2Fnowhere/none",
    ] {
        let error = Postgres::connect(url).await.unwrap_err();
        assert!(matches!(error, StoreError::Backend(_)), "{error:?}");
        assert!(!format!("{error} {error:?}").contains("sesame"), "{error} {error:?}");
    }
    let refused = Postgres::connect("postgres://market:open-sesame@127.0.0.1:1/none").await.unwrap_err();
    assert!(refused.to_string().contains("Connection refused"), "{refused}");
    let server = Server::start(Durability::None);
    let store = Postgres::connect(&server.database()).await.unwrap();
    assert!(!format!("{store:?}").contains("sesame"), "{store:?}");
}

const TLS_URL: &str = "STORE_TEST_TLS_URL";

#[test]
fn an_encrypted_connection_checks_the_servers_certificate() {
    let made = || rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (ours, other) = (made(), made());
    let (_server, port) = Server::start_tls(&ours.cert.pem(), &ours.signing_key.serialize_pem());
    let dir = tempfile::tempdir().unwrap();
    for (trusted, works) in [(&ours, true), (&other, false)] {
        let roots = dir.path().join("roots.pem");
        std::fs::write(&roots, trusted.cert.pem()).unwrap();
        // What a process trusts is in its environment.
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "postgres::child_that_connects"])
            .env("SSL_CERT_FILE", roots)
            .env(TLS_URL, format!("postgres://market@localhost:{port}/postgres?sslmode=require"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        assert_eq!(child.status.success(), works, "{said}");
        assert!(works || said.contains("certificate"), "{said}");
    }
}

/// The other half of [`an_encrypted_connection_checks_the_servers_certificate`]; without its variable it does nothing.
#[tokio::test]
async fn child_that_connects() {
    let Ok(url) = std::env::var(TLS_URL) else { return };
    let store = Postgres::connect(&url).await.unwrap();
    publish(&store, task(1), at(0)).await;
}
