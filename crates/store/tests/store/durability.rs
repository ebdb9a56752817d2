//! What was acknowledged stays, whatever happens to the process, and callers share flushes.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use store::{EventFilter, NewSession, Options, Published, Sqlite, Store, StoreError, Tasks};
use taskmarket::TaskId;
use tokio::task::JoinSet;

use crate::fixtures::{accepted, address, at, commit, node, owner, published, task};

const CHILD_DIR: &str = "STORE_TEST_CHILD_DIR";
const CALLERS: u64 = 64;

#[tokio::test(flavor = "multi_thread")]
async fn many_callers_share_commits_and_nothing_is_lost() {
    const EACH: u64 = 40;
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<Sqlite> = Arc::new(Sqlite::open(dir.path()).await.unwrap());
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let store = store.clone();
        callers.spawn(async move {
            let mut acknowledged = Vec::new();
            for number in 0..EACH {
                let (record, first) = published(task(caller * EACH + number), at(number));
                let id = record.id;
                let Published::New { seq } = store.publish(record, first, owner()).await.unwrap() else {
                    panic!("each task is new");
                };
                acknowledged.push((seq, id));
            }
            acknowledged
        });
    }
    let mut acknowledged: Vec<(u64, TaskId)> = callers.join_all().await.concat();
    let stats = store.write_stats();
    assert_eq!(stats.requests, CALLERS * EACH);
    assert!(stats.commits * 2 < stats.requests, "{stats:?}");
    // Dropped, not closed: that must do.
    drop(store);

    let store = Sqlite::open(dir.path()).await.unwrap();
    acknowledged.sort();
    let events = store.events_after(0, EventFilter::default(), usize::MAX).await.unwrap();
    let kept: Vec<_> = events.iter().map(|event| (event.seq, event.task_id)).collect();
    assert_eq!(kept, acknowledged);
    assert!(kept.iter().map(|(seq, _)| *seq).eq(1..=CALLERS * EACH));
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_kill() {
    const ENOUGH: usize = 400;
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "durability::child_that_is_killed", "--nocapture"])
        .env(CHILD_DIR, dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut acknowledged = Vec::new();
    let acknowledgement = |line: String| {
        let (_, rest) = line.split_once("acknowledged ")?;
        let (id, version) = rest.split_once(' ')?;
        Some((id.parse::<TaskId>().ok()?, version.strip_suffix('.')?.parse::<u64>().ok()?))
    };
    while acknowledged.len() < ENOUGH {
        let line = lines.next().expect("the child goes on until it is killed").unwrap();
        acknowledged.extend(acknowledgement(line));
    }
    child.kill().unwrap();
    acknowledged.extend(lines.map_while(Result::ok).filter_map(acknowledgement));
    child.wait().unwrap();

    let store = Sqlite::open(dir.path()).await.unwrap();
    for (id, version) in &acknowledged {
        let kept = store.task(*id).await.unwrap().expect("it was acknowledged").record;
        assert!(kept.version >= *version, "{id}: version {} of {version}", kept.version);
        let history = store.history(*id).await.unwrap();
        assert_eq!(history.len() as u64, kept.version);
        assert_eq!(history.last().map(|event| event.status), Some(kept.status()));
    }
    let events = store.events_after(0, EventFilter::default(), usize::MAX).await.unwrap();
    let tasks = events.iter().filter(|event| event.recorded.version == 1).count();
    assert_eq!(store.counts().await.unwrap().values().sum::<u64>(), tasks as u64);
}

/// The other half of [`what_was_acknowledged_survives_a_kill`]; without its variable it does nothing.
#[tokio::test(flavor = "multi_thread")]
async fn child_that_is_killed() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let store: Arc<dyn Store> = Arc::new(Sqlite::open(Path::new(&dir)).await.unwrap());
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let store = store.clone();
        callers.spawn(async move {
            // Ends by itself in case nobody kills it.
            for number in 0..2_000 {
                let (mut record, first) = published(task(caller << 32 | number), at(0));
                store.publish(record.clone(), first, owner()).await.unwrap();
                acknowledge(record.id, record.version);
                let accept = accepted(&record, address(7), at(600));
                commit(&*store, &mut record, at(1), vec![accept], Some(node(1))).await;
                acknowledge(record.id, record.version);
            }
        });
    }
    callers.join_all().await;
}

/// One write for the line, so that a kill cannot leave half of it looking whole.
fn acknowledge(id: TaskId, version: u64) {
    let line = format!("acknowledged {id} {version}.\n");
    std::io::stdout().write_all(line.as_bytes()).unwrap();
}

#[tokio::test]
async fn a_failed_request_leaves_its_neighbours_alone_and_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(Sqlite::open(dir.path()).await.unwrap());
    let session = |session_id: &str, host| NewSession {
        session_id: session_id.into(),
        provider: address(1),
        node_id: node(host),
        relay_id: "hz-1".into(),
        metadata_json: "{}".into(),
        at: at(0),
    };
    store.open_session(session("first", 1)).await.unwrap();
    let mut requests = JoinSet::new();
    for number in 0..50_u8 {
        // An id that is taken: the host's open session is ended first, and then the insertion fails.
        let session =
            if number == 25 { session("first", 1) } else { session(&format!("s{number}"), 100 + number) };
        let store = store.clone();
        requests.spawn(async move { (number, store.open_session(session).await) });
    }
    for (number, result) in requests.join_all().await {
        assert_eq!(result.is_err(), number == 25, "{number}: {result:?}");
    }
    let sessions = store.sessions(address(1), 100).await.unwrap();
    assert_eq!(sessions.len(), 50);
    assert!(sessions.iter().all(|session| session.ended.is_none()));
}

#[tokio::test]
async fn a_full_queue_makes_callers_wait_and_then_says_busy() {
    let dir = tempfile::tempdir().unwrap();
    let options =
        Options { queue: 1, batch: 1, wait: std::time::Duration::from_millis(20), ..Options::default() };
    let store: Arc<dyn Store> = Arc::new(Sqlite::open_with(dir.path(), options).await.unwrap());
    let blocker = rusqlite::Connection::open(dir.path().join("relay.db")).unwrap();
    blocker.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut requests = JoinSet::new();
    for salt in 0..8 {
        let store = store.clone();
        requests.spawn(async move {
            let (record, first) = published(task(salt), at(0));
            let id = record.id;
            (id, store.publish(record, first, owner()).await)
        });
    }
    let mut busy = Vec::new();
    let (id, first_answer) = requests.join_next().await.unwrap().unwrap();
    assert!(matches!(first_answer, Err(StoreError::Busy)), "{first_answer:?}");
    busy.push(id);
    blocker.execute_batch("ROLLBACK").unwrap();
    for (id, answer) in requests.join_all().await {
        match answer {
            Ok(_) => assert!(store.task(id).await.unwrap().is_some()),
            Err(error) => {
                assert!(matches!(error, StoreError::Busy), "{error}");
                busy.push(id);
            }
        }
    }
    assert!(busy.len() < 8, "those that were queued are carried out");
    for id in busy {
        assert_eq!(store.task(id).await.unwrap(), None, "busy means that nothing was done");
    }
}
