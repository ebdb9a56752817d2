//! The executor with a runtime that does what a test tells it.

use std::sync::atomic::AtomicU32;

use artifact::{BlobStore, FetchPolicy};
use futures_util::future::BoxFuture;
use gpu::Inventory;
use taskmarket::{B256, TaskConfig};

use super::*;
use crate::runtime::{Context, Job, LogStream, ModelShape, Output, Place, RunCode, RunError};

/// What fetched files may take, in bytes.
const ROOM: u64 = 1 << 20;

/// Says two lines, waits until it is told to go on, says a third and fails.
#[derive(Default)]
struct Talker {
    go_on: tokio::sync::Notify,
    recovered: AtomicU32,
    /// Whether its jobs leave something running, and what holds its place.
    leaves: AtomicBool,
    left: Mutex<Vec<Place>>,
}

impl Runtime for Talker {
    fn run<'a>(&'a self, _job: Job, context: &'a Context) -> BoxFuture<'a, Result<Output, RunError>> {
        Box::pin(async {
            context.logs.write(LogStream::Stdout, b"one\ntwo\n");
            self.go_on.notified().await;
            if self.leaves.load(Ordering::Relaxed) {
                self.left.lock().unwrap().push(context.place.clone());
            }
            context.logs.write(LogStream::Stderr, b"the end");
            Err(RunError::new(RunCode::Trapped, "as told"))
        })
    }

    fn model_shape(&self) -> ModelShape {
        ModelShape::File
    }

    fn recover(&self) -> BoxFuture<'_, Result<(), RunError>> {
        self.recovered.fetch_add(1, Ordering::Relaxed);
        Box::pin(async { Err(RunError::new(RunCode::Internal, "something is left")) })
    }
}

fn executor(folder: &std::path::Path, talker: &Arc<Talker>) -> Executor {
    executor_keeping(folder, talker, 1 << 20)
}

/// One that keeps so many bytes of what came of tasks.
fn executor_keeping(folder: &std::path::Path, talker: &Arc<Talker>, keep_bytes: u64) -> Executor {
    let settings = Settings {
        slots: 1,
        memory_bytes: 1 << 20,
        result_bytes: 1 << 20,
        data: folder.to_owned(),
        work: folder.join("work"),
        min_free_disk: MinFreeDisk::Bytes(0),
        keep: Duration::from_secs(60),
        keep_bytes,
        keep_artifacts_bytes: ROOM,
        gpu_name: None,
        cpu_name: "CPU".to_owned(),
    };
    let runtimes = BTreeMap::from([(RuntimeName::Wasm, Arc::clone(talker) as Arc<dyn Runtime>)]);
    let gpus = Gpus::new(Inventory::declared("Test GPU", 8), false);
    let store = BlobStore::open_bounded(folder.join("artifacts"), ROOM).unwrap();
    let policy = FetchPolicy {
        allowed_dirs: vec![folder.to_owned()],
        allow_private_addresses: true,
        ..FetchPolicy::default()
    };
    let tls = daemon::tls::client_config(None).unwrap();
    let fetcher = Fetcher::with_tls(policy, store, &tls).unwrap();
    let (results, records) = Results::open(folder.join("results")).unwrap();
    Executor::new(settings, runtimes, gpus, fetcher, results, records).unwrap()
}

fn request(folder: &std::path::Path) -> ComputeRequest {
    std::fs::write(folder.join("file"), "x").unwrap();
    let file = format!("file://{}/file", folder.display());
    let nobody = taskmarket::Address::ZERO;
    let task = taskmarket::Task {
        requester: nobody,
        model_cid: file.parse().unwrap(),
        model_hash: ContentHash::UNPINNED,
        input_cid: file.parse().unwrap(),
        input_hash: ContentHash::UNPINNED,
        config: TaskConfig {
            runtime: RuntimeName::Wasm,
            params: "{}".to_owned(),
            gpu_type: String::new(),
            gpu_count: 1,
            min_vram: 8,
            max_duration: 60,
            max_attempts: 1,
        },
        token: nobody,
        budget: taskmarket::Amount::ZERO,
        provider_stake: taskmarket::Amount::ZERO,
        dispute_bond: taskmarket::Amount::ZERO,
        deadline: taskmarket::Timestamp::from_unix(u64::from(u32::MAX)),
        dispute_window: 0,
        arbiter_window: 0,
        arbiter: nobody,
        salt: taskmarket::Bytes32(B256::ZERO),
    };
    ComputeRequest {
        task_id: TaskId(B256::repeat_byte(7)),
        attempt: 1,
        task,
        relay_url: "http://127.0.0.1:1".to_owned(),
        attempt_token: "token".to_owned(),
        hold: false,
    }
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.expect("in time")
}

/// The code of a failure, once it is there.
async fn failed(node: &Executor, task: TaskId) -> String {
    let failing = async {
        let mut seen = 0;
        loop {
            let status = node.changed_status(task, seen, Duration::from_secs(20)).await.unwrap();
            if let Some(failure) = status.failure {
                return failure.code;
            }
            seen = status.revision;
        }
    };
    soon(failing).await
}

async fn read(executor: &Executor, task: TaskId, from: u64) -> String {
    let mut reader = executor.logs(task, from, false).await.unwrap().unwrap();
    let mut text = String::new();
    while let Some(lines) = reader.next().await {
        text.push_str(std::str::from_utf8(&lines).unwrap());
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_followed_to_the_end_and_outlive_the_node() {
    let folder = tempfile::tempdir().unwrap();
    let talker = Arc::new(Talker::default());
    let node = executor(folder.path(), &talker);
    let request = request(folder.path());
    let task = request.task_id;
    assert!(node.logs(task, 0, false).await.is_none());
    node.take(request).await.unwrap();

    let mut follower = node.logs(task, 1, true).await.unwrap().unwrap();
    let second = soon(follower.next()).await.unwrap();
    assert_eq!(&second[..], b"{\"n\":1,\"stream\":\"stdout\",\"text\":\"two\"}\n");
    assert_eq!(read(&node, task, 2).await, "");
    talker.go_on.notify_one();
    let third = "{\"n\":2,\"stream\":\"stderr\",\"text\":\"the end\"}\n";
    assert_eq!(soon(follower.next()).await.unwrap(), third);
    assert_eq!(soon(follower.next()).await, None);
    assert_eq!(failed(&node, task).await, "trapped");
    assert_eq!(read(&node, task, 2).await, third);
    assert!(node.tasks()[&task].logs.is_none(), "what has ended takes no memory");
    drop((node, follower));

    let node = executor(folder.path(), &talker);
    let all = read(&node, task, 0).await;
    assert_eq!((all.lines().count(), all.ends_with(third)), (3, true));
    // They go with the record.
    node.0.results.remove(task, 1).unwrap();
    assert_eq!(std::fs::read_dir(folder.path().join("results")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_in_use_fail_a_fetch_and_remove_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let node = executor(folder.path(), &Arc::default());
    let store = node.0.fetcher.store();
    let unused = store.put_bytes(b"unused", None).await.unwrap().0;
    let used = store.put_bytes(&vec![b'u'; ROOM as usize / 2], None).await.unwrap().0;
    let kept = store.keep(&[store.path(&used)]).await.unwrap().unwrap();

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut request = request(folder.path());
    let task = request.task_id;
    request.task.model_cid = format!("http://{}/model", listener.local_addr().unwrap()).parse().unwrap();
    let router = axum::Router::new().fallback(|| async { vec![b'm'; ROOM as usize / 2 + 1] });
    let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    node.take(request).await.unwrap();
    assert_eq!(failed(&node, task).await, "cache_busy");
    assert!(store.path(&unused).exists(), "the disk is not full");
    drop(kept);
    serving.abort();
}

#[tokio::test]
async fn what_a_runtime_cannot_clear_up_stops_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let talker = Arc::new(Talker::default());
    executor(folder.path(), &talker).recover().await;
    assert_eq!(talker.recovered.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_attempt_is_fetched_and_begins_when_it_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let talker = Arc::new(Talker::default());
    let node = executor(folder.path(), &talker);
    let begin = request(folder.path());
    let held = ComputeRequest { hold: true, ..begin.clone() };
    let task = held.task_id;
    let until = async |what: fn(&ComputeStatus) -> bool| {
        let mut seen = 0;
        loop {
            let status = soon(node.changed_status(task, seen, Duration::from_secs(20))).await.unwrap();
            if what(&status) {
                return status;
            }
            seen = status.revision;
        }
    };
    node.take(held.clone()).await.unwrap();
    assert_eq!(until(|status| status.held).await.phase, Phase::Fetching);
    // The same again keeps it waiting; called off it ends, and may come again.
    assert!(node.take(held.clone()).await.unwrap().held);
    node.cancel(task).unwrap();
    assert!(!until(|status| status.phase == Phase::Cancelled).await.held);
    node.take(held).await.unwrap();
    until(|status| status.held).await;
    assert_eq!(node.busy(), 1);
    node.take(begin).await.unwrap();
    until(|status| status.phase == Phase::Running && !status.held).await;
    talker.go_on.notify_one();
    assert_eq!(until(|status| status.failure.is_some()).await.failure.unwrap().code, "trapped");

    let mut missing = request(folder.path());
    missing.attempt = 2;
    missing.hold = true;
    missing.task.input_cid = format!("file://{}/none", folder.path().display()).parse().unwrap();
    node.take(missing).await.unwrap();
    assert!(!until(|status| status.attempt == 2 && status.failure.is_some()).await.held);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_ended_keeps_its_slot_and_its_gpu() {
    let folder = tempfile::tempdir().unwrap();
    let talker = Arc::new(Talker::default());
    talker.leaves.store(true, Ordering::Relaxed);
    let node = executor(folder.path(), &talker);
    let first = request(folder.path());
    let (task, second) = (first.task_id, ComputeRequest { attempt: 2, ..first.clone() });
    node.take(first).await.unwrap();
    talker.go_on.notify_one();
    let mut seen = 0;
    let failed = loop {
        let status = soon(node.changed_status(task, seen, Duration::from_secs(20))).await.unwrap();
        if let Some(failure) = status.failure {
            break failure;
        }
        seen = status.revision;
    };
    // How it ended is told at once, and nobody gets its place.
    assert_eq!((failed.code.as_str(), node.busy()), ("trapped", 1));
    assert!(matches!(node.take(second.clone()).await, Err(TakeError::Busy)));
    talker.left.lock().unwrap().clear();
    assert_eq!(node.busy(), 0);
    node.take(second).await.unwrap();
    talker.go_on.notify_one();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_is_about_to_be_left_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let talker = Arc::new(Talker::default());
    talker.leaves.store(true, Ordering::Relaxed);
    let node = executor(folder.path(), &talker);
    let first = request(folder.path());
    let (task, second) = (first.task_id, ComputeRequest { attempt: 2, ..first.clone() });
    node.take(first).await.unwrap();
    talker.go_on.notify_one();
    failed(&node, task).await;
    assert_eq!(node.busy(), 1, "something of it is left");
    let taking = node.take(second);
    let mut taking = std::pin::pin!(taking);
    assert!(futures_util::poll!(&mut taking).is_pending(), "it is not refused");
    talker.left.lock().unwrap().clear();
    assert_eq!(soon(taking).await.unwrap().attempt, 2);
    talker.go_on.notify_one();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_task_that_ends_is_tidied_away_though_not_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let talker = Arc::new(Talker::default());
    let node = executor_keeping(folder.path(), &talker, 0);
    for number in 1..=3 {
        let task = TaskId(B256::repeat_byte(number));
        node.take(ComputeRequest { task_id: task, ..request(folder.path()) }).await.unwrap();
        talker.go_on.notify_one();
        let gone = async {
            while node.status(task).is_some() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        soon(gone).await;
    }
}

#[test]
fn an_attempt_that_nobody_began_is_its_hosts_failure() {
    assert!(rpc::failure::is_known(run::NOT_BEGUN));
    assert_eq!(rpc::failure::blame(run::NOT_BEGUN), rpc::failure::Blame::Provider);
}
