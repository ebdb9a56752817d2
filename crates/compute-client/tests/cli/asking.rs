//! Questions about money, answered on a terminal.

use std::process::Output;

use escrow::Status;
use escrow::anvil::ACCOUNTS;
use serde_json::{Value, json};

use crate::money::{Market, PATIENCE};
use crate::support::{API_KEY, Script, code, said, stdout};

impl Market {
    /// Pays for a task on a terminal, which types what a script says once it has seen what the script waits for.
    pub(crate) async fn on_a_terminal(&self, more: &[&str], script: Value) -> Output {
        let mut python = tokio::process::Command::new("python3");
        let relay = &self.relay;
        python
            .args(["-I", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli/terminal.py"), &script.to_string()])
            .arg(env!("CARGO_BIN_EXE_zorai-compute"))
            .args(["run", "--model", &relay.path("program.wasm"), "--input", &relay.path("input.txt")])
            .args(["--settle", "escrow", "--budget", "10000", "--arbiter", &ACCOUNTS[3].to_string()])
            .args(["--rpc-url", self.anvil.url().as_str(), "--escrow", &self.chain.escrow().to_string()])
            .args(more)
            .env("ZORAI_HOME", relay.home.path().join("home"))
            .env("ZORAI_RELAY", &relay.url)
            .env("ZORAI_AI_API_KEY", API_KEY)
            .env("ZORAI_KEY_FILE", relay.path("key"))
            .env("TERM", "xterm")
            .kill_on_drop(true);
        tokio::time::timeout(PATIENCE, python.output()).await.unwrap().unwrap()
    }
}

#[tokio::test]
async fn who_does_not_say_yes_pays_nothing() {
    let Some(market) = Market::start(Script::NobodyThere).await else { return };
    for answer in ["n\r", "\r"] {
        let out = market.on_a_terminal(&[], json!([["pay? [y/N]", answer]])).await;
        assert_eq!(code(&out), 1, "{}", said(&out));
        assert!(stdout(&out).contains("nothing was paid or published"), "{}", said(&out));
    }
    assert_eq!(market.sent().await, 0);
    assert!(market.relay.seen(|seen| seen.given == 0));
}

#[tokio::test]
async fn a_result_is_approved_or_left_as_is_answered() {
    for (answer, ends) in [("y\r", Status::Paid), ("n\r", Status::Proven)] {
        let Some(market) = Market::start(Script::Honest).await else { return };
        let script = json!([["pay? [y/N]", "y\r"], ["approve it? [y/N]", answer]]);
        let asked = market.on_a_terminal(&["--poll", "--approve", "ask"], script);
        let (out, id) = tokio::join!(asked, market.prove());
        assert_eq!(code(&out), 0, "{}", said(&out));
        assert_eq!(market.status(id).await, ends, "{}", said(&out));
    }
}
