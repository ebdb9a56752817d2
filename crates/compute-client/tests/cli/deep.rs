//! What is not final yet, and what a reorganisation took back after it was.

use std::time::Duration;

use escrow::Status;
use escrow::anvil::ACCOUNTS;
use serde_json::{Value, json};
use taskmarket::{Address, Amount, Task, TaskId, U256};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Child;

use crate::again::TOKEN;
use crate::money::{Market, PATIENCE};
use crate::support::{Script, code, ended, json as json_of, said, stdout};

impl Market {
    async fn mine(&self, blocks: u64) {
        self.ask("anvil_mine", json!([format!("{blocks:#x}")])).await;
    }

    /// Makes another transaction of the requester's, so that the nonce of what the chain took back is used.
    async fn uses_the_nonce(&self) {
        let sent = self.sent().await;
        let nothing = json!([{ "from": ACCOUNTS[1], "to": ACCOUNTS[1], "value": "0x0" }]);
        self.ask("eth_sendTransaction", nothing).await;
        while self.sent().await == sent {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Gives a command that ends a task's money in this way, has other transactions take the place of its own, and gives it again.
    async fn replaced(&self, command: &[&str], id: TaskId, ends: Status, others: u64) {
        let before = self.ask("evm_snapshot", json!([])).await;
        let out = self.cli(command).await;
        assert_eq!((code(&out), self.status(id).await), (0, ends), "{}", said(&out));
        self.ask("evm_revert", json!([before])).await;
        for _ in 0..others {
            self.uses_the_nonce().await;
        }
        assert_ne!(self.status(id).await, ends);
        let out = self.cli(command).await;
        assert_eq!((code(&out), self.status(id).await), (0, ends), "{}", said(&out));
    }

    /// The tasks that this machine keeps.
    fn kept(&self) -> Vec<Task> {
        let folder = self.relay.home.path().join("home/client/tasks");
        let files = std::fs::read_dir(folder).into_iter().flatten();
        let read = |path| serde_json::from_slice::<Value>(&std::fs::read(path).unwrap()).unwrap();
        files
            .map(|file| serde_json::from_value(read(file.unwrap().path())["task"].clone()).unwrap())
            .collect()
    }

    /// Waits, as a command says that it does, with nothing published; what the command needs is mined one block after the other.
    async fn waits_for_blocks(&self, mut command: Child, words: &str, blocks: u64) -> String {
        let mut lines = BufReader::new(command.stderr.take().unwrap()).lines();
        let says = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if line.contains(words) {
                    return;
                }
            }
            panic!("it never says {words:?}");
        };
        tokio::time::timeout(PATIENCE, says).await.unwrap();
        for _ in 0..blocks {
            assert_eq!(self.relay.seen(|seen| seen.given), 0);
            self.mine(1).await;
        }
        let rest = async { while lines.next_line().await.unwrap().is_some() {} };
        let (out, ()) = tokio::join!(ended(command, &["run"], b""), rest);
        assert_eq!(code(&out), 0, "{}", said(&out));
        stdout(&out).trim().to_owned()
    }
}

#[tokio::test]
async fn a_run_that_is_gone_on_with_publishes_once_the_payment_is_final() {
    let Some(market) = Market::start(Script::NobodyThere).await else { return };
    let arbiter = ACCOUNTS[3].to_string();
    let run = ["--yes", "--confirmations", "4", "--arbiter", &arbiter];
    let paid = async {
        while market.kept().is_empty() || market.sent().await == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    market.killed(market.run_on_terms(&run), paid).await;
    let id = market.kept()[0].id(&market.chain.domain());
    assert_eq!(market.status(id).await, Status::Funded);
    let shown = market.waits_for_blocks(market.start_run(&run), "until that is final", 3).await;
    assert_eq!((shown, market.sent().await), (id.to_string(), 1));
}

#[tokio::test]
async fn a_payment_by_another_account_is_final_before_its_task_is_published() {
    let Some(market) = Market::start(Script::NobodyThere).await else { return };
    market.make_token().await;
    market.store(U256::ZERO, 20_000).await;
    market.store(U256::from_be_slice(ACCOUNTS[2].as_slice()), 100_000).await;
    let (arbiter, file) = (ACCOUNTS[3].to_string(), market.relay.path("permit.json"));
    let run = market.start_run(&[
        "--yes",
        "--confirmations",
        "4",
        "--arbiter",
        &arbiter,
        "--token",
        TOKEN,
        "--permit2",
        "--permit-out",
        &file,
    ]);
    let handed = async {
        while !std::path::Path::new(&file).exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, handed).await.unwrap();
    let task = market.kept().remove(0);
    market.provider.send("fund it", market.chain.calls().fund(&task), PATIENCE).await.unwrap();
    let shown = market.waits_for_blocks(run, "4 blocks deep", 3).await;
    assert_eq!(shown, task.id(&market.chain.domain()).to_string());
}

#[tokio::test]
async fn a_payment_whose_nonce_another_transaction_took_is_made_again_before_its_task_is_published() {
    let Some(market) = Market::start(Script::RefusesOnce).await else { return };
    let before = market.ask("evm_snapshot", json!([])).await;
    assert_ne!(code(&market.run(&["--yes"]).await), 0);
    let [task] = market.kept().try_into().unwrap();
    let id = task.id(&market.chain.domain());
    assert_eq!(market.status(id).await, Status::Funded);
    market.ask("evm_revert", json!([before])).await;
    market.uses_the_nonce().await;
    assert_eq!(market.status(id).await, Status::None);
    let out = market.run(&["--yes"]).await;
    assert_eq!((code(&out), stdout(&out).trim()), (0, id.to_string().as_str()), "{}", said(&out));
    assert_eq!((market.status(id).await, market.sent().await), (Status::Funded, 2), "{}", said(&out));
}

#[tokio::test]
async fn a_refund_whose_nonce_another_transaction_took_is_made_again() {
    let Some(market) = Market::start(Script::NobodyThere).await else { return };
    let id = market.paid(&[]).await;
    market.pass(3601).await;
    market.replaced(&["refund", &id.to_string()], id, Status::Refunded, 1).await;
}

#[tokio::test]
async fn a_cancellation_whose_nonce_another_transaction_took_is_made_again() {
    let Some(market) = Market::start(Script::NobodyThere).await else { return };
    let id = market.paid(&[]).await;
    market.replaced(&["cancel", &id.to_string()], id, Status::Cancelled, 1).await;
}

#[tokio::test]
async fn a_dispute_in_a_token_whose_nonces_other_transactions_took_is_made_again() {
    // That of the allowance alone, and both.
    for others in [1, 2] {
        let Some(market) = Market::start(Script::NoResult).await else { return };
        market.make_token().await;
        let token: Address = TOKEN.parse().unwrap();
        // The provider's stake is in the token, which knows one allowance.
        market.store(U256::ZERO, 5000).await;
        let stake = market.chain.calls().stake(token, Amount(U256::from(5000)));
        market.provider.send("stake in a token", stake, PATIENCE).await.unwrap();
        let id = market.paid(&["--token", TOKEN]).await;
        market.prove().await;
        let command = ["dispute", &id.to_string(), "--reason", "no result"];
        market.replaced(&command, id, Status::Disputed, others).await;
        let allowed = market.chain.allowance(token, ACCOUNTS[1], market.chain.escrow()).await.unwrap();
        assert_eq!(allowed, Amount::ZERO);
    }
}

#[tokio::test]
async fn a_refund_that_somebody_else_sent_is_refunded() {
    let Some(market) = Market::start(Script::NobodyThere).await else { return };
    let id = market.paid(&[]).await;
    market.pass(3601).await;
    let [task] = market.kept().try_into().unwrap();
    market.provider.send("refund", market.chain.calls().refund(&task), PATIENCE).await.unwrap();
    let sent = market.sent().await;
    let out = market.cli(&["refund", &id.to_string()]).await;
    assert_eq!(
        (code(&out), stdout(&out).as_str(), market.sent().await),
        (0, "refunded\n", sent),
        "{}",
        said(&out)
    );
}

#[tokio::test]
async fn stake_in_a_token_that_was_taken_back_after_it_was_done_is_sent_again_with_its_allowance() {
    let Some(market) = Market::start(Script::NobodyThere).await else { return };
    market.make_token().await;
    let token: Address = TOKEN.parse().unwrap();
    let before = market.ask("evm_snapshot", json!([])).await;
    let stake = ["--json", "wallet", "stake", "7", "--token", TOKEN];
    market.mines(false).await;
    // The allowance is mined, and the stake waits.
    let sent = async {
        market.waits_to_be_mined().await;
        market.ask("evm_mine", json!([])).await;
        market.waits_to_be_mined().await;
    };
    market.killed(market.cli(&stake), sent).await;
    market.mines(true).await;
    // Another command brings it to its end.
    let out = market.cli(&["wallet", "stake", "1"]).await;
    assert_eq!((code(&out), market.sent().await), (0, 3), "{}", said(&out));
    let staked = async || market.chain.stake(token, ACCOUNTS[1]).await.unwrap().free.0;
    assert_eq!(staked().await, U256::from(7));

    market.ask("evm_revert", json!([before])).await;
    assert_eq!((staked().await, market.sent().await), (U256::ZERO, 0));
    let out = market.cli(&stake).await;
    assert_eq!((code(&out), &json_of(&out)["resumed"]), (0, &json!(true)), "{}", said(&out));
    assert_eq!((staked().await, market.sent().await), (U256::from(7), 2), "{}", said(&out));
    let allowed = market.chain.allowance(token, ACCOUNTS[1], market.chain.escrow()).await.unwrap();
    assert_eq!(allowed, Amount::ZERO);
}
