//! The thread that makes containers and removes them.
//!
//! A job's future can be dropped at any moment, and its threads with it. What has to happen all the same happens here:
//! a container that is being made while nobody wants it any more is removed once it is there.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error;
use bollard::models::ContainerCreateBody;
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, KillContainerOptionsBuilder, RemoveContainerOptionsBuilder,
};
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::engine::{self, ENGINE_TIME};
use super::images::Images;
use super::{LIFE_LABEL, NODE_LABEL};
use crate::runtime::Place;

/// How often a removal is tried in quick succession, and the pause between two tries.
const REMOVALS: u32 = 50;
const REMOVAL_PAUSE: Duration = Duration::from_millis(200);

/// The pause between later tries: the program may run on, so its place is not given away before the engine says that it is gone.
const LATER_PAUSE: Duration = Duration::from_secs(10);

/// The longest list of containers that is read, in bytes.
const MAX_LIST_BYTES: usize = 16 << 20;

/// How long an engine may take to make a container: some copy all layers of an image for its first one.
const MAKE_TIME: Duration = Duration::from_secs(600);

/// How long after a failure to make a container it is removed once more, in case the engine was at it still.
const LATE: Duration = Duration::from_secs(60);

/// Starts and ends the lives of containers. A job has two containers at most, and so a few commands in its queue.
pub(super) struct Keeper {
    commands: mpsc::UnboundedSender<Command>,
}

enum Command {
    Create {
        /// What it becomes, removed if nobody takes it.
        container: Container,
        body: Box<ContainerCreateBody>,
        created: oneshot::Sender<Result<Container, Error>>,
    },
    Remove {
        name: String,
        place: Place,
        removed: Option<oneshot::Sender<()>>,
    },
    End {
        ended: oneshot::Sender<()>,
    },
}

/// A container, which is removed when this is dropped.
pub(super) struct Container {
    name: String,
    /// Free for others once it is gone.
    place: Place,
    commands: mpsc::UnboundedSender<Command>,
    gone: bool,
}

impl Keeper {
    /// Starts the thread, which trims `images` after each container. It ends, with its work done, when it is told to, or after
    /// its owner.
    pub(super) fn start(docker: Docker, images: Arc<Images>) -> io::Result<Self> {
        let (commands, queue) = mpsc::unbounded_channel();
        let threads = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new()
            .name("containers".to_owned())
            .spawn(move || threads.block_on(work(docker, images, queue)))?;
        Ok(Self { commands })
    }

    /// Makes a container, which holds `place` until the engine says that it is gone.
    pub(super) async fn create(
        &self,
        name: String,
        body: ContainerCreateBody,
        place: Place,
    ) -> Result<Container, Error> {
        let (created, answer) = oneshot::channel();
        let ended = || Error::IOError { err: io::Error::other("the thread for containers has ended") };
        let container = Container { name, place, commands: self.commands.clone(), gone: false };
        let command = Command::Create { container, body: Box::new(body), created };
        self.commands.send(command).map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }

    /// Kills and removes all containers, whoever has them, and makes no more. Returns once none is left.
    pub(super) async fn end(&self) {
        let (ended, done) = oneshot::channel();
        if self.commands.send(Command::End { ended }).is_ok() {
            // Without an answer the thread has ended before.
            let _ = done.await;
        }
    }
}

impl Container {
    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Ends it, and removes it with all that it had. Goes on without being waited for where the engine takes too long: its place
    /// stays taken until then.
    pub(super) async fn remove(mut self) {
        let (removed, done) = oneshot::channel();
        // Without an answer the thread has ended with the process.
        if self.command_removal(Some(removed)) && tokio::time::timeout(ENGINE_TIME, done).await.is_err() {
            tracing::error!(
                container = self.name,
                "the engine takes long to end a container; its slot stays taken"
            );
        }
    }

    fn command_removal(&mut self, removed: Option<oneshot::Sender<()>>) -> bool {
        self.gone = true;
        let (name, place) = (self.name.clone(), std::mem::take(&mut self.place));
        self.commands.send(Command::Remove { name, place, removed }).is_ok()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if !self.gone {
            // Without the thread the process is about to end; the next one finds the container by its label.
            self.command_removal(None);
        }
    }
}

/// Removes the containers of `node` that another life of it made.
pub(super) async fn remove_former(
    docker: &Docker,
    socket: &Path,
    node: &str,
    life: &str,
) -> io::Result<usize> {
    let mut count = 0;
    for container in list(socket, node).await? {
        if container.labels.get(LIFE_LABEL).is_none_or(|of| of != life) {
            remove_soon(docker, &container.id).await;
            count += 1;
        }
    }
    Ok(count)
}

/// A container, as far as it matters here.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    id: String,
    #[serde(default)]
    labels: HashMap<String, String>,
}

/// The containers of `node`. Asked for without the library, which does not know all the states that Podman tells.
async fn list(socket: &Path, node: &str) -> io::Result<Vec<Listed>> {
    let filters = serde_json::json!({ "label": [format!("{NODE_LABEL}={node}")] }).to_string();
    let filters: String = filters.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let path = format!("/containers/json?all=true&filters={filters}");
    let list = engine::get(socket, &path, MAX_LIST_BYTES).await?;
    serde_json::from_slice(&list).map_err(io::Error::other)
}

async fn work(docker: Docker, images: Arc<Images>, mut queue: mpsc::UnboundedReceiver<Command>) {
    // Each says which container is gone, if one is.
    let mut tasks = JoinSet::new();
    let mut there = HashSet::new();
    let ending = CancellationToken::new();
    let ended = loop {
        tokio::select! {
            command = queue.recv() => match command {
                Some(Command::Create { container, body, created }) => {
                    there.insert(container.name.clone());
                    tasks.spawn(create(docker.clone(), container, *body, created, ending.clone()));
                }
                Some(Command::Remove { name, place, removed }) => {
                    let removing = removing(docker.clone(), name, place, removed, ending.clone());
                    let images = Arc::clone(&images);
                    tasks.spawn(async move {
                        let gone = removing.await;
                        images.trim().await;
                        gone
                    });
                }
                Some(Command::End { ended }) => break Some(ended),
                None => break None,
            },
            Some(done) = tasks.join_next() => {
                if let Ok(Some(name)) = done {
                    there.remove(&name);
                }
            }
        }
    };
    // Whoever asks for something from here on hears that this thread has ended.
    drop(queue);
    ending.cancel();
    for name in there {
        tasks.spawn(removing(docker.clone(), name, Place::default(), None, ending.clone()));
    }
    while tasks.join_next().await.is_some() {}
    if let Some(ended) = ended {
        // Nobody may wait any more.
        let _ = ended.send(());
    }
}

async fn removing(
    docker: Docker,
    name: String,
    place: Place,
    removed: Option<oneshot::Sender<()>>,
    ending: CancellationToken,
) -> Option<String> {
    remove(&docker, &name, &ending).await;
    drop(place);
    if let Some(removed) = removed {
        // Nobody may wait any more.
        let _ = removed.send(());
    }
    Some(name)
}

/// Makes a container for whoever waits. Where nobody does, or does any more before looking, it is removed as it is dropped.
async fn create(
    docker: Docker,
    mut container: Container,
    body: ContainerCreateBody,
    created: oneshot::Sender<Result<Container, Error>>,
    ending: CancellationToken,
) -> Option<String> {
    let options = CreateContainerOptionsBuilder::default().name(&container.name).build();
    let creating = docker.create_container(Some(options), body);
    let made = tokio::time::timeout(MAKE_TIME, creating).await.unwrap_or(Err(Error::RequestTimeoutError));
    if made.is_ok() && !ending.is_cancelled() {
        drop(created.send(Ok(container)));
        return None;
    }
    container.gone = true;
    let made = match made {
        Err(error) if is_unconnected(&error) => {
            let name = std::mem::take(&mut container.name);
            // Nothing was made, so others can have the place before anybody hears of it.
            drop(container);
            drop(created.send(Err(error)));
            return Some(name);
        }
        made => made,
    };
    // Whatever else came back, or did not: the engine may have made it.
    let refused = matches!(made, Err(Error::DockerResponseServerError { .. }));
    let late = made.is_err() && !refused;
    drop(made.map_or_else(|error| created.send(Err(error)), |_| Ok(())));
    remove(&docker, &container.name, &ending).await;
    if late {
        let _ = tokio::time::timeout(LATE, ending.cancelled()).await;
        remove(&docker, &container.name, &ending).await;
    }
    Some(container.name.clone())
}

/// Whether a request found no engine to connect to, and so had no effect.
fn is_unconnected(error: &Error) -> bool {
    matches!(error, Error::HyperLegacyError { err } if err.is_connect())
}

/// Kills a container and removes it, with its volumes, however often that has to be tried. Once the node ends it is tried a number of
/// times more: the next life finds what is left.
async fn remove(docker: &Docker, name: &str, ending: &CancellationToken) {
    while !remove_soon(docker, name).await {
        if ending.is_cancelled() {
            return;
        }
        let _ = tokio::time::timeout(LATER_PAUSE, ending.cancelled()).await;
    }
}

/// As [`remove`], tried a number of times; whether it is gone.
async fn remove_soon(docker: &Docker, name: &str) -> bool {
    let mut last = String::new();
    for _ in 0..REMOVALS {
        let kill = KillContainerOptionsBuilder::default().signal("SIGKILL").build();
        // Engines give a container time to end by itself unless it has ended already. It may have.
        let _ = tokio::time::timeout(ENGINE_TIME, docker.kill_container(name, Some(kill))).await;
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        match tokio::time::timeout(ENGINE_TIME, docker.remove_container(name, Some(options))).await {
            Ok(Ok(()) | Err(Error::DockerResponseServerError { status_code: 404, .. })) => return true,
            Ok(Err(error)) => last = error.to_string(),
            Err(error) => last = error.to_string(),
        }
        tokio::time::sleep(REMOVAL_PAUSE).await;
    }
    tracing::error!(container = name, error = last, "cannot remove a container");
    false
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Context, Wake, Waker};

    use artifact::{BlobStore, FetchPolicy, Fetcher};
    use tokio::io::AsyncReadExt;

    use super::super::fake::FakeEngine;
    use super::*;

    /// A keeper beside which there are no images.
    fn keeper(docker: Docker) -> Keeper {
        let folder = tempfile::tempdir().unwrap();
        let store = BlobStore::open(folder.path()).unwrap();
        let fetcher = Fetcher::new(FetchPolicy::default(), store).unwrap();
        let images = Images::new(docker.clone(), "amd64".to_owned(), 0, 0, fetcher);
        Keeper::start(docker, Arc::new(images)).unwrap()
    }

    #[tokio::test]
    async fn a_container_whose_making_was_not_answered_is_removed() {
        let engine = FakeEngine::start(|request| match request {
            "POST /containers/create" => (201, "not what engines say"),
            "DELETE /containers/name" => (204, ""),
            _ => (404, r#"{"message":"no such container"}"#),
        })
        .await;
        let keeper = keeper(engine.docker.clone());
        assert!(
            keeper.create("name".to_owned(), ContainerCreateBody::default(), Place::default()).await.is_err()
        );
        is_removed(&engine).await;
    }

    #[tokio::test]
    async fn a_container_that_is_made_while_its_job_stops_is_removed() {
        let engine = FakeEngine::start(|request| match request {
            "POST /containers/create" => (201, r#"{"Id":"name","Warnings":[]}"#),
            "DELETE /containers/name" => (204, ""),
            _ => (404, r#"{"message":"no such container"}"#),
        })
        .await;
        let keeper = keeper(engine.docker.clone());
        let mut creating =
            Box::pin(keeper.create("name".to_owned(), ContainerCreateBody::default(), Place::default()));
        let made = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&made));
        assert!(creating.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        // The answer is there, and the job is dropped before it looks.
        made.0.notified().await;
        drop(creating);
        is_removed(&engine).await;
    }

    #[tokio::test]
    async fn a_place_is_taken_until_the_engine_says_that_the_container_is_gone() {
        let works = Arc::new(AtomicBool::new(false));
        let answers = Arc::clone(&works);
        let engine = FakeEngine::start(move |request| match request {
            "POST /containers/create" => (201, r#"{"Id":"name","Warnings":[]}"#),
            "DELETE /containers/name" if answers.load(Ordering::SeqCst) => (204, ""),
            _ => (500, r#"{"message":"the engine hangs"}"#),
        })
        .await;
        let keeper = keeper(engine.docker.clone());
        let slot = Arc::new(());
        let place = Place::new(Arc::clone(&slot));
        let creating = keeper.create("name".to_owned(), ContainerCreateBody::default(), place);
        drop(creating.await.unwrap());
        is_asked(&engine, "DELETE /containers/name", 3).await;
        assert_eq!(Arc::strong_count(&slot), 2, "the program may run on");
        works.store(true, Ordering::SeqCst);
        let freed = async {
            while Arc::strong_count(&slot) > 1 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), freed).await.expect("the place is free");
    }

    #[tokio::test]
    async fn a_place_is_free_at_once_where_there_is_no_engine_to_make_anything() {
        let engine = FakeEngine::start(|_| (500, "")).await;
        let docker = engine.docker.clone();
        // The socket goes with it.
        drop(engine);
        let keeper = keeper(docker);
        let slot = Arc::new(());
        let place = Place::new(Arc::clone(&slot));
        let creating = keeper.create("name".to_owned(), ContainerCreateBody::default(), place);
        assert!(creating.await.is_err());
        assert_eq!(Arc::strong_count(&slot), 1, "nothing was made that could hold it");
    }

    #[tokio::test]
    async fn a_place_is_taken_where_the_engine_went_without_an_answer() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("engine.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let docker =
            Docker::connect_with_unix(socket.to_str().unwrap(), 60, bollard::API_DEFAULT_VERSION).unwrap();
        let keeper = keeper(docker);
        let slot = Arc::new(());
        let place = Place::new(Arc::clone(&slot));
        let creating = keeper.create("name".to_owned(), ContainerCreateBody::default(), place);
        let going = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_u8().await.unwrap();
            drop((stream, listener));
        };
        let (created, ()) = tokio::join!(creating, going);
        assert!(created.is_err());
        assert_eq!(Arc::strong_count(&slot), 2, "the container may be there");
    }

    /// Tells that a future can go on.
    #[derive(Default)]
    struct Woken(tokio::sync::Notify);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.notify_one();
        }
    }

    async fn is_removed(engine: &FakeEngine) {
        is_asked(engine, "DELETE /containers/name", 1).await;
    }

    async fn is_asked(engine: &FakeEngine, request: &str, times: usize) {
        let asked = async {
            while engine.asked.lock().unwrap().iter().filter(|asked| *asked == request).count() < times {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), asked).await.expect("it is never asked");
    }
}
