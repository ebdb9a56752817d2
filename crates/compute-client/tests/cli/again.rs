//! Money commands that are given again: what is done stays done, and what a reorganisation or another command took back is done again.

use std::process::Output;

use escrow::anvil::ACCOUNTS;
use escrow::{Call, Status};
use serde_json::{Value, json};
use taskmarket::{Address, Amount, TaskId, U256};

use crate::money::{Market, PATIENCE};
use crate::support::{Script, code, said, stderr, stdout};

/// A token that changes an allowance only from or to zero and gives no more than that, in so few words that it knows one allowance alone:
/// the first word of its storage. An account's balance is the word that its address numbers.
const TOKEN_CODE: &str = concat!(
    "0x",
    "5f3560e01c8063095ea7b3146031578063dd62ed3e14604557806323b872dd14604b57806370a0823114606e575b5f5ffd5b",
    "6024358015603f575f54602d575b5f556064565b5f546067565b604435805f5410602d576024358054820190555f54035f55",
    "5b60015b5f5260205ff35b60043554606756",
);
pub(crate) const TOKEN: &str = "0x00000000000000000000000000000000000ca071";

impl Market {
    pub(crate) async fn ask(&self, method: &'static str, params: Value) -> Value {
        self.chain.rpc().request(method, params).await.unwrap()
    }

    /// How many transactions the requester has in the chain.
    pub(crate) async fn sent(&self) -> u64 {
        let nonce = self.ask("eth_getTransactionCount", json!([ACCOUNTS[1], "latest"])).await;
        u64::from_str_radix(&nonce.as_str().unwrap()[2..], 16).unwrap()
    }

    /// Publishes and pays, and waits for nothing.
    pub(crate) async fn paid(&self, more: &[&str]) -> TaskId {
        let out = self.run(&[&["--yes"], more].concat()).await;
        assert_eq!(code(&out), 0, "{}", said(&out));
        stdout(&out).trim().parse().unwrap()
    }

    /// Gives a command that ends a task's money in this way, takes its block out of the chain, and gives it twice more.
    async fn taken_back(&self, command: &[&str], id: TaskId, ends: Status) {
        let done = |out: &Output| assert_eq!(code(out), 0, "{}", said(out));
        let (before, sent) = (self.ask("evm_snapshot", json!([])).await, self.sent().await);
        done(&self.cli(command).await);
        assert_eq!((self.status(id).await, self.sent().await), (ends, sent + 1));
        self.ask("evm_revert", json!([before])).await;
        assert_ne!(self.status(id).await, ends);
        done(&self.cli(command).await);
        assert_eq!((self.status(id).await, self.sent().await), (ends, sent + 1), "{command:?}");
    }

    /// Puts the token on the chain; the requester has some.
    pub(crate) async fn make_token(&self) {
        self.ask("anvil_setCode", json!([TOKEN, TOKEN_CODE])).await;
        self.store(U256::from_be_slice(ACCOUNTS[1].as_slice()), 100_000).await;
    }

    /// Sets a word of the token's storage.
    pub(crate) async fn store(&self, slot: U256, value: u64) {
        let [slot, value] = [slot, U256::from(value)].map(|word| format!("{word:#066x}"));
        self.ask("anvil_setStorageAt", json!([TOKEN, slot, value])).await;
    }
}

#[tokio::test]
async fn a_refund_that_a_reorganisation_took_back_is_sent_again() {
    let Some(market) = Market::start(Script::NobodyThere).await else { return };
    let id = market.paid(&[]).await;
    market.pass(3601).await;
    market.taken_back(&["refund", &id.to_string()], id, Status::Refunded).await;
}

#[tokio::test]
async fn a_cancellation_that_a_reorganisation_took_back_is_sent_again() {
    let Some(market) = Market::start(Script::NobodyThere).await else { return };
    let id = market.paid(&[]).await;
    market.taken_back(&["cancel", &id.to_string()], id, Status::Cancelled).await;
    let sent = market.sent().await;
    let out = market.cli(&["cancel", &id.to_string()]).await;
    assert_eq!((code(&out), market.sent().await), (0, sent), "it is cancelled: {}", said(&out));
}

#[tokio::test]
async fn a_dispute_that_a_reorganisation_took_back_is_sent_again() {
    let Some(market) = Market::start(Script::NoResult).await else { return };
    let id = market.paid(&[]).await;
    market.prove().await;
    let command = ["dispute", &id.to_string(), "--reason", "no result"];
    market.taken_back(&command, id, Status::Disputed).await;
}

#[tokio::test]
async fn an_allowance_that_was_used_up_elsewhere_is_given_again() {
    let Some(market) = Market::start(Script::NoResult).await else { return };
    let token: Address = TOKEN.parse().unwrap();
    market.make_token().await;
    let stake = "5000".parse().unwrap();
    let allow = Call::allow(token, market.chain.escrow(), stake);
    market.provider.send("allow", allow, PATIENCE).await.unwrap();
    let stake = market.chain.calls().stake(token, stake);
    market.provider.send("stake in a token", stake, PATIENCE).await.unwrap();
    let id = market.paid(&["--token", TOKEN]).await;
    market.prove().await;

    // Enough for the gas of an allowance, and not for that of a dispute.
    let base = u64::try_from(market.chain.head().await.unwrap().base_fee).unwrap();
    let (gas, most) = (80_000, 2 * base + 1_000_000_000);
    market.ask("anvil_setBalance", json!([ACCOUNTS[1], format!("{:#x}", gas * most)])).await;
    let command = ["dispute", &id.to_string(), "--reason", "no result"];
    let (out, sent) = (market.cli(&command).await, market.sent().await);
    assert!(code(&out) == 1 && stderr(&out).contains("send coins"), "{}", said(&out));
    let allowed = market.chain.allowance(token, ACCOUNTS[1], market.chain.escrow()).await.unwrap();
    assert_eq!(allowed, Amount(U256::from(5000)), "the bond");

    market.store(U256::ZERO, 0).await;
    market.ask("anvil_setBalance", json!([ACCOUNTS[1], "0xde0b6b3a7640000"])).await;
    let out = market.cli(&command).await;
    assert_eq!(code(&out), 0, "{}", said(&out));
    assert_eq!((market.status(id).await, market.sent().await), (Status::Disputed, sent + 2));
}

#[tokio::test]
async fn a_task_in_a_token_that_is_given_again_is_paid_once_and_leaves_no_allowance() {
    let Some(market) = Market::start(Script::NobodyThere).await else { return };
    market.make_token().await;
    let deadline = market.chain.head().await.unwrap().time.plus(86_400).to_string();
    let salt = format!("{:#066x}", U256::from(7));
    let terms = ["--token", TOKEN, "--salt", &salt, "--deadline", &deadline];
    let id = market.paid(&terms).await;
    let sent = market.sent().await;
    assert_eq!(market.paid(&terms).await, id);
    let token = TOKEN.parse().unwrap();
    let allowed = market.chain.allowance(token, ACCOUNTS[1], market.chain.escrow()).await.unwrap();
    assert_eq!((market.sent().await, allowed), (sent, Amount::ZERO));

    // Nor does what cannot be paid any more.
    assert_eq!(code(&market.cli(&["cancel", &id.to_string()]).await), 0);
    let out = market.run(&[&["--yes"], &terms[..]].concat()).await;
    assert!(code(&out) == 1 && stderr(&out).contains("cancelled"), "{}", said(&out));
    assert_eq!(market.sent().await, sent + 1, "{}", said(&out));
}

#[tokio::test]
async fn an_allowance_for_what_cannot_be_done_any_more_is_taken_back() {
    let Some(market) = Market::start(Script::NoResult).await else { return };
    let (token, escrow): (Address, _) = (TOKEN.parse().unwrap(), market.chain.escrow());
    market.make_token().await;
    market.store(U256::ZERO, 5000).await;
    let stake = market.chain.calls().stake(token, "5000".parse().unwrap());
    market.provider.send("stake in a token", stake, PATIENCE).await.unwrap();
    let id = market.paid(&["--token", TOKEN]).await;
    market.prove().await;
    let allowed = async || market.chain.allowance(token, ACCOUNTS[1], escrow).await.unwrap();

    // Enough for the gas of an allowance, and not for that of a dispute.
    let base = u64::try_from(market.chain.head().await.unwrap().base_fee).unwrap();
    let (gas, most) = (80_000, 2 * base + 1_000_000_000);
    market.ask("anvil_setBalance", json!([ACCOUNTS[1], format!("{:#x}", gas * most)])).await;
    let command = ["dispute", &id.to_string(), "--reason", "no result"];
    let out = market.cli(&command).await;
    assert!(code(&out) == 1 && stderr(&out).contains("the contract may take"), "{}", said(&out));
    assert_eq!(allowed().await, Amount(U256::from(5000)));

    market.ask("anvil_setBalance", json!([ACCOUNTS[1], "0xde0b6b3a7640000"])).await;
    market.pass(86_401).await;
    let out = market.cli(&command).await;
    assert!(code(&out) == 1 && stderr(&out).contains("could be disputed until"), "{}", said(&out));
    assert_eq!(allowed().await, Amount::ZERO, "{}", said(&out));
    let sent = market.sent().await;
    assert_eq!(code(&market.cli(&command).await), 1);
    assert_eq!(market.sent().await, sent);
}
