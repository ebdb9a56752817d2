//! A node in the test's own process.

use std::path::Path;
use std::time::Duration;

use computenode::{Args, Node};
use tokio_util::sync::CancellationToken;

use super::http::Api;

/// A node that serves.
pub(crate) struct TestNode {
    pub(crate) api: Api,
    shutdown: CancellationToken,
    serving: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl TestNode {
    pub(crate) async fn start(folder: &Path, flags: &[&str]) -> Self {
        let node = Node::build(args(folder, flags).into()).await.expect("the node starts");
        let token = std::fs::read_to_string(folder.join("data/compute-token")).expect("a token file");
        let api = Api::new(node.local_addr(), token.trim());
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(node.run(shutdown.clone()));
        Self { api, shutdown, serving }
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(30), self.serving).await;
        ended.expect("the node ends").expect("no panic").expect("no error");
    }
}

#[derive(clap::Parser)]
struct Program {
    #[command(flatten)]
    args: Args,
}

pub(crate) fn args(folder: &Path, flags: &[&str]) -> Args {
    let data = folder.join("data");
    let mut line = vec!["compute-node", "--listen", "127.0.0.1:0", "--data", data.to_str().expect("UTF-8")];
    line.extend(["--allow-dir", folder.to_str().expect("UTF-8"), "--grace", "0s"]);
    // An engine of the host is no business of these tests.
    line.push("--no-container");
    line.extend(flags);
    <Program as clap::Parser>::parse_from(line).args
}
