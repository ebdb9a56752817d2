use axum::body::Body;
use futures_util::poll;
use http::{Request, StatusCode};
use rpc::tasks::PublishTask;
use taskmarket::{Address, Signed, Task};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tower::ServiceExt as _;

use super::*;
use crate::testing::{eventually, publish_untold, task};

const KEY: &str = "key-of-the-tests";

/// A relay in this process, with its parts at hand.
struct Rig {
    app: App,
    shutdown: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
    _dir: TempDir,
}

impl Rig {
    async fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = Config::new(listen, dir.path().join("store"), daemon::Secret::new(KEY));
        let relay = build(config).await.unwrap();
        let (app, shutdown) = (relay.app.clone(), CancellationToken::new());
        let running = tokio::spawn(relay.run(shutdown.clone()));
        let rig = Self { app, shutdown, running, _dir: dir };
        // From here on tasks are found by what is told of them.
        let (_, status) = rig.publish(&task(&rig.app.market)).await;
        assert_eq!(status, StatusCode::CREATED);
        rig.waits(1).await;
        rig
    }

    fn request(&self, task: &Signed<Task>) -> impl Future<Output = StatusCode> + use<> {
        let body = PublishTask {
            task: task.message.clone(),
            signature: task.signature,
            verifying_contract: Address::ZERO,
            callback_url: None,
        };
        let request = Request::post("/v1/tasks")
            .header("authorization", format!("Bearer {KEY}"))
            .header("content-type", "application/json")
            .body(Body::from(serde_json::to_vec(&body).unwrap()))
            .unwrap();
        let router = router(self.app.clone());
        async move { router.oneshot(request).await.unwrap().status() }
    }

    async fn publish(&self, task: &Signed<Task>) -> (taskmarket::TaskId, StatusCode) {
        (task.message.id(&taskmarket::Domain::UNSETTLED), self.request(task).await)
    }

    /// Waits until so many tasks wait for a host.
    async fn waits(&self, tasks: u64) {
        eventually("the tasks wait", async || self.app.hub.totals().waiting == tasks).await;
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.running.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_task_that_is_there_already_is_on_offer_once_it_is_published_again() {
    let rig = Rig::start().await;
    let task = task(&rig.app.market);
    let id = publish_untold(&rig.app.market, &task).await;
    assert_eq!(rig.publish(&task).await, (id, StatusCode::OK));
    rig.waits(2).await;
    rig.stop().await;
}

#[tokio::test]
async fn a_task_whose_client_left_is_published_and_told() {
    let rig = Rig::start().await;
    let task = task(&rig.app.market);
    {
        let mut request = std::pin::pin!(rig.request(&task));
        assert!(poll!(&mut request).is_pending());
    }
    rig.waits(2).await;
    rig.stop().await;
}
