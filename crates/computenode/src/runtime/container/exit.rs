//! How a container is found to have ended.
//!
//! An engine can be asked to tell. Podman does so late: it looks every quarter of a second by itself, and tells of an end only once it
//! has cleared up after it. So once a container's streams have ended, as they do with its program, it is looked at besides.

use std::time::{Duration, Instant};

use bollard::errors::Error;
use bollard::query_parameters::WaitContainerOptionsBuilder;
use futures_util::StreamExt;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::{ContainerRuntime, engine, internal};
use crate::runtime::RunError;

/// The pause between two looks at a container: the shortest and the longest, as its program may have closed its streams and run on.
const LOOKS: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(500)];

/// How much longer the looks go on than the next pause takes.
const LOOKS_PER_PAUSE: u32 = 8;

/// The longest description of a container that is read, in bytes.
const MAX_DESCRIPTION_BYTES: usize = 4 << 20;

/// What an engine says of a container. Read without the library, which does not know all the states that Podman tells.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Described {
    state: State,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct State {
    status: String,
    exit_code: i64,
    #[serde(default, rename = "OOMKilled")]
    killed_for_memory: bool,
}

impl ContainerRuntime {
    /// Waits for a container to end, and gives its program's status. `silent` is cancelled once its streams have ended.
    pub(super) async fn exit_status(&self, name: &str, silent: &CancellationToken) -> Result<i64, RunError> {
        tokio::select! {
            told = self.told_exit(name) => told,
            seen = self.seen_exit(name, silent) => Ok(seen),
        }
    }

    async fn told_exit(&self, name: &str) -> Result<i64, RunError> {
        let options = WaitContainerOptionsBuilder::default().condition("not-running").build();
        match self.docker.wait_container(name, Some(options)).next().await {
            Some(Ok(response)) => Ok(response.status_code),
            // An engine's word for a status other than zero.
            Some(Err(Error::DockerContainerWaitError { code, .. })) => Ok(code),
            Some(Err(error)) => Err(internal(format!("the engine lost the container: {error}"))),
            None => Err(internal("the engine lost the container")),
        }
    }

    async fn seen_exit(&self, name: &str, silent: &CancellationToken) -> i64 {
        silent.cancelled().await;
        let began = Instant::now();
        loop {
            // Podman says `stopped` until it has cleared up.
            if let Some(state) = self.state(name).await
                && matches!(state.status.as_str(), "exited" | "stopped")
            {
                return state.exit_code;
            }
            let [shortest, longest] = LOOKS;
            tokio::time::sleep((began.elapsed() / LOOKS_PER_PAUSE).clamp(shortest, longest)).await;
        }
    }

    /// Whether the engine says that the kernel ended the container for its memory. Not all engines know of children.
    pub(super) async fn was_killed_for_memory(&self, name: &str) -> bool {
        self.state(name).await.is_some_and(|state| state.killed_for_memory)
    }

    /// How a container is, where the engine says.
    async fn state(&self, name: &str) -> Option<State> {
        let path = format!("/containers/{name}/json");
        let description = engine::get(&self.report.socket, &path, MAX_DESCRIPTION_BYTES).await;
        let described = description.and_then(|bytes| Ok(serde_json::from_slice::<Described>(&bytes)?));
        let described = described.inspect_err(|error| tracing::debug!(container = name, %error, "no state"));
        described.ok().map(|described| described.state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_read_that_the_library_does_not_know() {
        let text =
            r#"{"Id":"a","State":{"Status":"stopped","Running":false,"OOMKilled":true,"ExitCode":137}}"#;
        let Described { state } = serde_json::from_str(text).unwrap();
        assert_eq!((state.status.as_str(), state.exit_code, state.killed_for_memory), ("stopped", 137, true));
    }
}
