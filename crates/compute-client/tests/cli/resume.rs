//! Commands that end while money moves: given again, they go on with what they began, and pay once.

use std::process::Output;
use std::time::Duration;

use escrow::Status;
use escrow::abi::ZORAIComputeEscrowEvents as Event;
use escrow::anvil::ACCOUNTS;
use escrow::tx;
use serde_json::{Value, json};
use taskmarket::{Address, TaskId, U256};

use crate::again::TOKEN;
use crate::money::{Market, PATIENCE};
use crate::support::{Script, code, ended, json as json_of, said, stderr, stdout};

impl Market {
    /// Gives a command and kills it, without a word to it, once `then` is over.
    pub(crate) async fn killed(&self, command: impl Future<Output = Output>, then: impl Future<Output = ()>) {
        let then = tokio::time::timeout(PATIENCE, then);
        tokio::select! {
            out = command => panic!("it ended: {}", said(&out)),
            waited = then => waited.unwrap(),
        }
        // What it held is free once it is gone.
        for folder in ["outbox", "unpublished"] {
            let folder = std::fs::read_dir(self.relay.home.path().join("home/client").join(folder));
            for file in folder.into_iter().flatten() {
                std::fs::File::open(file.unwrap().path()).unwrap().lock().unwrap();
            }
        }
    }

    /// Waits until the requester's next transaction waits to be mined.
    pub(crate) async fn waits_to_be_mined(&self) {
        let count = async |tag: &'static str| -> U256 {
            let params = json!([ACCOUNTS[1], tag]);
            self.chain.rpc().request("eth_getTransactionCount", params).await.unwrap()
        };
        while count("pending").await == count("latest").await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until the relay was given so many tasks.
    async fn given(&self, tasks: usize) {
        while self.relay.seen(|seen| seen.given) < tasks {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn mines(&self, at_once: bool) {
        self.chain.rpc().request::<Value>("evm_setAutomine", json!([at_once])).await.unwrap();
        if at_once {
            self.chain.rpc().request::<Value>("evm_mine", json!([])).await.unwrap();
        }
    }

    /// The tasks that were paid, the first first.
    async fn funded(&self) -> Vec<TaskId> {
        let head = self.chain.head().await.unwrap().number;
        let logs = self.chain.logs(0, head, None).await.unwrap();
        let funded = logs.iter().filter_map(|log| {
            if let Event::TaskFunded(event) = &log.event { Some(TaskId(event.taskId)) } else { None }
        });
        funded.collect()
    }

    async fn own_stake(&self) -> U256 {
        self.chain.stake(Address::ZERO, ACCOUNTS[1]).await.unwrap().free.0
    }
}

fn id_of(out: &Output) -> TaskId {
    assert_eq!(code(out), 0, "{}", said(out));
    stdout(out).trim().parse().unwrap()
}

#[tokio::test]
async fn a_run_that_is_killed_while_it_pays_goes_on_with_the_same_task() {
    let Some(market) = Market::start(Script::NobodyThere).await else { return };
    market.mines(false).await;
    market.killed(market.run(&["--yes"]), market.waits_to_be_mined()).await;
    assert_eq!(market.relay.seen(|seen| seen.given), 0);
    let out = market.on_a_terminal(&[], json!([["pay? [y/N]", "n\r"]])).await;
    assert_eq!(code(&out), 1, "{}", said(&out));
    for words in ["going on with task 0x", "no more was paid", "may be paid and not published"] {
        assert!(stdout(&out).contains(words), "{words}: {}", said(&out));
    }
    assert_eq!(market.relay.seen(|seen| seen.given), 0);
    market.mines(true).await;

    let out = market.run(&["--yes"]).await;
    let id = id_of(&out);
    assert!(stderr(&out).contains(&format!("going on with task {id}")), "{}", said(&out));
    assert_eq!(market.funded().await, [id]);
    assert_eq!(market.published().await.id, id);

    // What is published is over: the same terms are another task.
    let other = id_of(&market.run(&["--yes"]).await);
    assert_eq!(market.funded().await, [id, other]);
}

#[tokio::test]
async fn a_run_that_is_killed_between_paying_and_publishing_goes_on_with_the_same_task() {
    let Some(market) = Market::start(Script::StallsOnce).await else { return };
    market.killed(market.run(&["--yes"]), market.given(1)).await;
    let paid = market.funded().await;
    assert_eq!(paid.len(), 1);

    // Other terms are another task.
    let other = id_of(&market.run(&["--yes", "--max-duration", "60"]).await);
    let later = id_of(&market.run(&["--yes", "--deadline", "2h"]).await);
    assert_eq!(market.funded().await, [paid[0], other, later]);
    assert_eq!(id_of(&market.run(&["--yes"]).await), paid[0]);
    assert_eq!(market.funded().await.len(), 3);
    assert_eq!(market.published().await.id, paid[0]);
}

#[tokio::test]
async fn a_task_that_is_published_and_paid_out_before_its_run_hears_of_it_is_not_paid_twice() {
    let Some(market) = Market::start(Script::TakesInSilenceOnce).await else { return };
    let run = ["--yes", "--dispute-window", "0"];
    let proven = async {
        let id = market.prove().await;
        assert_eq!(market.status(id).await, Status::Paid);
    };
    market.killed(market.run_on_terms(&run), proven).await;
    let paid = market.funded().await;
    assert_eq!(paid.len(), 1);
    assert_eq!(id_of(&market.run_on_terms(&run).await), paid[0]);
    assert_eq!(market.funded().await, paid);
}

#[tokio::test]
async fn watch_goes_on_with_what_run_began_to_pay() {
    let Some(market) = Market::start(Script::Honest).await else { return };
    market.mines(false).await;
    market.killed(market.run(&["--yes"]), market.waits_to_be_mined()).await;
    let kept = std::fs::read_dir(market.relay.home.path().join("home/client/tasks")).unwrap();
    let names: Vec<_> = kept.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    let [name] = names.as_slice() else { panic!("{names:?}") };
    let id: TaskId = name.strip_suffix(".json").unwrap().parse().unwrap();
    market.mines(true).await;

    let watch = ["watch", &id.to_string()];
    let (out, proven) = tokio::join!(market.cli(&watch), market.prove());
    assert_eq!((code(&out), proven), (0, id), "{}", said(&out));
    assert_eq!((market.funded().await, market.status(id).await), (vec![id], Status::Paid));
}

#[tokio::test]
async fn a_payment_that_was_handed_over_and_is_lost_is_handed_over_again_or_made_by_the_account() {
    let Some(market) = Market::start(Script::NobodyThere).await else { return };
    market.make_token().await;
    // As much may be taken, by Permit2 and by the contract.
    market.store(U256::ZERO, 10_000).await;
    for name in ["lost.json", "found.json"] {
        let file = market.relay.home.path().join(name);
        let path = file.to_str().unwrap();
        let run = ["--yes", "--token", TOKEN, "--permit2", "--permit-out", path];
        let written = async {
            while !file.exists() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        market.killed(market.run(&run), written).await;
    }
    let kept = std::fs::read_dir(market.relay.home.path().join("home/client/tasks")).unwrap();
    assert_eq!(kept.count(), 1);
    let id = id_of(&market.run(&["--yes", "--token", TOKEN]).await);
    assert_eq!((market.funded().await, market.published().await.id), (vec![id], id));
    let kept = std::fs::read_dir(market.relay.home.path().join("home/client/tasks")).unwrap();
    assert_eq!(kept.count(), 1);
}

#[tokio::test]
async fn a_task_that_another_command_is_at_is_left_to_it() {
    let Some(market) = Market::start(Script::StallsOnce).await else { return };
    let both = async {
        market.given(1).await;
        id_of(&market.run(&["--yes"]).await);
    };
    market.killed(market.run(&["--yes"]), both).await;
    let paid = market.funded().await;
    assert_eq!(paid.len(), 2, "the same terms twice at a time are two tasks");
    assert_eq!(market.published().await.id, paid[1]);
}

#[tokio::test]
async fn of_two_commands_that_make_the_same_task_one_pays_it() {
    let Some(market) = Market::start(Script::StallsOnce).await else { return };
    let deadline = market.chain.head().await.unwrap().time.plus(86_400).to_string();
    let run = ["--yes", "--salt", &format!("0x{:064x}", 7), "--deadline", &deadline];
    let other = async {
        market.given(1).await;
        let out = market.run(&run).await;
        assert_eq!(code(&out), 1, "{}", said(&out));
        assert!(stderr(&out).contains("another command is paying task 0x"), "{}", said(&out));
    };
    market.killed(market.run(&run), other).await;
    let paid = market.funded().await;
    assert_eq!(paid.len(), 1);
    assert_eq!(id_of(&market.run(&run).await), paid[0]);
    assert_eq!(market.funded().await, paid);
}

#[tokio::test]
async fn a_paid_task_that_the_relay_refuses_is_published_later_or_its_money_taken_back() {
    let Some(market) = Market::start(Script::RefusesOnce).await else { return };
    let out = market.run(&["--yes"]).await;
    let paid = market.funded().await;
    assert_ne!(code(&out), 0, "{}", said(&out));
    for command in ["watch", "cancel", "refund"] {
        let hint = format!("zorai-compute {command} {}", paid[0]);
        assert!(stderr(&out).contains(&hint), "{hint}: {}", said(&out));
    }
    assert_eq!(id_of(&market.run(&["--yes"]).await), paid[0]);
    assert_eq!(market.funded().await, paid);
}

#[tokio::test]
async fn where_the_deadline_passes_before_publishing_the_refund_is_named_and_nothing_else() {
    let Some(market) = Market::start(Script::RefusesAtLeisure).await else { return };
    let passed = async {
        market.given(1).await;
        market.pass(3601).await;
        market.relay.go_ahead();
    };
    let (out, ()) = tokio::join!(market.run(&["--yes", "--quiet"]), passed);
    let paid = market.funded().await;
    assert_ne!(code(&out), 0, "{}", said(&out));
    assert!(stderr(&out).contains(&format!("zorai-compute refund {}", paid[0])), "{}", said(&out));
    for wrong in ["nothing is paid", "zorai-compute cancel"] {
        assert!(!stderr(&out).contains(wrong), "{wrong}: {}", said(&out));
    }
}

#[cfg(unix)]
#[tokio::test]
async fn who_stops_a_run_waits_for_no_turn_and_is_told_how_to_go_on() {
    let Some(market) = Market::start(Script::StallsOnce).await else { return };
    let before: Value = market.chain.rpc().request("evm_snapshot", json!([])).await.unwrap();
    let arbiter = ACCOUNTS[3].to_string();
    let run = market.start_run(&["--yes", "--arbiter", &arbiter]);
    tokio::time::timeout(PATIENCE, market.given(1)).await.unwrap();
    // What became of the payment is in the outbox alone, and another command holds that.
    market.chain.rpc().request::<Value>("evm_revert", json!([before])).await.unwrap();
    let outbox = format!("home/client/outbox/outbox-31337-{}.lock", ACCOUNTS[1]);
    let outbox = std::fs::File::open(market.relay.home.path().join(outbox)).unwrap();
    outbox.lock().unwrap();
    let id = run.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    let out = ended(run, &["run"], b"").await;
    assert_eq!(code(&out), 130, "{}", said(&out));
    for words in ["may be paid and not published", "zorai-compute cancel 0x", "zorai-compute refund 0x"] {
        assert!(stderr(&out).contains(words), "{words}: {}", said(&out));
    }
}

#[tokio::test]
async fn a_payment_that_was_cancelled_is_not_gone_on_with() {
    let Some(market) = Market::start(Script::RefusesOnce).await else { return };
    assert_ne!(code(&market.run(&["--yes"]).await), 0);
    let paid = market.funded().await;
    let out = market.cli(&["cancel", &paid[0].to_string()]).await;
    assert_eq!(code(&out), 0, "{}", said(&out));
    let id = id_of(&market.run(&["--yes"]).await);
    assert_eq!(market.funded().await, [paid[0], id]);
}

#[tokio::test]
async fn stake_is_added_once_for_a_command_that_is_repeated_after_it_was_killed() {
    let Some(market) = Market::start(Script::NobodyThere).await else { return };
    let stake = ["wallet", "stake", "7"];
    market.mines(false).await;
    market.killed(market.cli(&stake), market.waits_to_be_mined()).await;
    market.mines(true).await;
    let out = market.cli(&stake).await;
    assert!(code(&out) == 0 && stderr(&out).contains("going on with the same command"), "{}", said(&out));
    assert_eq!(market.own_stake().await, U256::from(7));
    // It was told what became of it: this is another one.
    let out = market.cli(&stake).await;
    assert!(code(&out) == 0 && !stderr(&out).contains("going on"), "{}", said(&out));
    assert_eq!(market.own_stake().await, U256::from(14));

    // Another command brings the transaction to its end meanwhile.
    market.mines(false).await;
    market.killed(market.cli(&stake), market.waits_to_be_mined()).await;
    market.mines(true).await;
    let out = market.cli(&["wallet", "unstake", "1"]).await;
    assert_eq!(code(&out), 0, "{}", said(&out));
    let sent = market.sent().await;
    let again = ["--json", "wallet", "stake", "7"];
    let out = market.cli(&again).await;
    assert!(code(&out) == 0 && stderr(&out).contains("nothing was sent: the same command"), "{}", said(&out));
    assert_eq!((market.sent().await, &json_of(&out)["resumed"]), (sent, &json!(true)), "{}", said(&out));
    let out = market.cli(&again).await;
    assert_eq!((market.sent().await, json_of(&out).get("resumed")), (sent + 1, None), "{}", said(&out));
}

#[tokio::test]
async fn stake_of_another_contract_is_another_stake() {
    let Some(market) = Market::start(Script::NobodyThere).await else { return };
    let other = tx::deploy(&market.provider, "deploy another", tx::PERMIT2, PATIENCE).await.unwrap().chain;
    market.mines(false).await;
    market.killed(market.cli(&["wallet", "stake", "7"]), market.waits_to_be_mined()).await;
    market.mines(true).await;
    let (url, escrow) = (market.anvil.url().to_string(), other.escrow().to_string());
    let stake = ["wallet", "stake", "7", "--rpc-url", &url, "--escrow", &escrow];
    let out = market.relay.cli(&stake).await;
    assert!(code(&out) == 0 && !stderr(&out).contains("going on"), "{}", said(&out));
    let staked = other.stake(Address::ZERO, ACCOUNTS[1]).await.unwrap().free.0;
    assert_eq!((market.own_stake().await, staked), (U256::from(7), U256::from(7)));
}

#[tokio::test]
async fn permit2_is_let_take_a_token_once_for_a_command_that_is_repeated_after_it_was_killed() {
    let Some(market) = Market::start(Script::NobodyThere).await else { return };
    market.make_token().await;
    let permit2 = |amount| ["--json", "wallet", "permit2", amount, "--token", TOKEN];
    market.mines(false).await;
    market.killed(market.cli(&permit2("7")), market.waits_to_be_mined()).await;
    market.mines(true).await;
    let out = market.cli(&permit2("7")).await;
    assert_eq!((market.sent().await, &json_of(&out)["resumed"]), (1, &json!(true)), "{}", said(&out));
    // It was told what became of it. This token changes an allowance only from or to zero.
    for (amount, sent) in [("0", 2), ("7", 3), ("0", 4)] {
        let out = market.cli(&permit2(amount)).await;
        assert_eq!((market.sent().await, json_of(&out).get("resumed")), (sent, None), "{}", said(&out));
    }

    // One that another command brings to its end, and another amount after it, is not the last word.
    market.mines(false).await;
    market.killed(market.cli(&permit2("8")), market.waits_to_be_mined()).await;
    market.mines(true).await;
    for (amount, sent) in [("0", 6), ("8", 7)] {
        let out = market.cli(&permit2(amount)).await;
        assert_eq!((code(&out), market.sent().await), (0, sent), "{}", said(&out));
        let allowed = market.chain.allowance(TOKEN.parse().unwrap(), ACCOUNTS[1], tx::PERMIT2).await.unwrap();
        assert_eq!(allowed.to_string(), amount);
    }
}

#[tokio::test]
async fn another_contract_is_deployed_once_for_a_command_that_is_repeated_after_it_was_killed() {
    let Some(market) = Market::start(Script::NobodyThere).await else { return };
    let url = market.anvil.url().to_string();
    let deploy = ["--json", "escrow", "deploy", "--rpc-url", &url, "--chain-id", "31337", "--again"];
    market.mines(false).await;
    market.killed(market.relay.cli(&deploy), market.waits_to_be_mined()).await;
    market.mines(true).await;
    let out = market.relay.cli(&deploy).await;
    let first = json_of(&out);
    assert_eq!((market.sent().await, &first["resumed"]), (1, &json!(true)), "{}", said(&out));
    let other = json_of(&market.relay.cli(&deploy).await);
    assert_eq!((market.sent().await, other.get("resumed")), (2, None));
    assert_ne!(first["address"], other["address"]);
}
