//! A budget's way in a token, from the requester to the provider.

use escrow::anvil::ACCOUNTS;
use serde_json::json;
use system_tests::said;

use crate::market::{
    ARBITER, BUDGET, MINTED, PERMIT2, PROVIDER, Paid, REQUESTER, SPONSOR, STAKE, account, appears, parsed,
};

/// A token that changes an allowance only from or to zero, as some widespread ones do, in so few words that it knows one allowance
/// alone and gives what it is asked for: `approve`, `allowance`, `transferFrom` and `balanceOf`, in the machine's own code.
const CAUTIOUS: &str = concat!(
    "0x",
    "5f3560e01c8063095ea7b3146031578063dd62ed3e14604557806323b872dd14604b57806370a08231146067575b5f5ffd5b",
    "6024358015603f575f54602d575b5f55605d565b5f546060565b6044356024358054820190555f54035f555b60015b5f5260",
    "205ff35b60043554606056",
);

#[tokio::test]
async fn a_task_is_paid_in_a_token_from_funding_to_withdrawal() {
    let Some(mut paid) = Paid::start().await else { return };
    let arbiter = ACCOUNTS[ARBITER].to_string();
    let out = paid.run("not asked", &["--arbiter", &arbiter]).await;
    assert_eq!(out.status.code(), Some(2), "it asks before it pays: {}", said(&out));
    let none = paid.cli(REQUESTER, &["wallet", "balance", "--json"]).await;
    assert_eq!(parsed(&none)["tokens"].as_array().unwrap().len(), 1, "{}", said(&none));

    let out = paid.run("in a token", &["--arbiter", &arbiter, "--yes", "--poll"]).await;
    assert!(out.status.success(), "{}", said(&out));
    assert_eq!(out.stdout, b"IN A TOKEN", "{}", said(&out));
    let talk = String::from_utf8_lossy(&out.stderr).into_owned();
    let name = format!("USDX ({})", taskmarket::eip55::parse(&paid.token).unwrap());
    for words in [
        format!("2.5 {name}, from"),
        format!("(which has 100 {name})"),
        format!("a transaction before lets it take exactly 2.5 {name}"),
        format!("with a bond of 1.25 {name}"),
        "funded: in transaction 0x".to_owned(),
        "paid: ".to_owned(),
    ] {
        assert!(talk.contains(&words), "{words}: {}", said(&out));
    }
    assert_eq!(paid.balance(REQUESTER).await, MINTED - BUDGET);
    assert_eq!(paid.allowance(paid.escrow()).await, 0, "more was allowed than was paid");
    let task = paid.newest().await["task_id"].as_str().unwrap().to_owned();
    paid.market.until(&format!("/v1/tasks/{task}"), "paid", |view| view["settlement"] == "paid").await;
    let file = paid.evidence(&task).await;
    let out = paid.market.cli(&["verify", &file, "--rpc-url", paid.anvil.url().as_str()]).await;
    assert!(out.status.success(), "{}", said(&out));

    // The requester paid in it from this machine, so that it is shown unasked.
    let out = paid.cli(REQUESTER, &["wallet", "balance"]).await;
    assert!(
        String::from_utf8_lossy(&out.stdout).contains(&format!("has       97.5 {name}")),
        "{}",
        said(&out)
    );
    let out = paid.cli(PROVIDER, &["wallet", "balance", "--token", &paid.token, "--json"]).await;
    let wallet = parsed(&out);
    assert_eq!(
        (&wallet["withdrawable"], &wallet["stake"]["free"], &wallet["tokens"][1]["balance"]),
        (&json!(BUDGET.to_string()), &json!(STAKE.to_string()), &json!((MINTED - STAKE).to_string())),
        "{wallet:#}"
    );
    // From now on its account sends by hand.
    paid.agent.kill();
    let out = paid.cli(PROVIDER, &["wallet", "withdraw", "--token", &paid.token]).await;
    assert!(out.status.success(), "{}", said(&out));
    assert!(String::from_utf8_lossy(&out.stderr).contains(&format!("sent 2.5 {name}")), "{}", said(&out));
    assert_eq!(paid.balance(PROVIDER).await, MINTED - STAKE + BUDGET);
}

#[tokio::test]
async fn a_permit_pays_for_its_task_alone_whoever_sends_it() {
    let Some(paid) = Paid::start().await else { return };
    let permit2 = taskmarket::eip55::parse(PERMIT2).unwrap();
    let flags = ["--permit2", "--yes", "--poll", "--dispute-window", "0"];
    let out = paid.run("too early", &flags).await;
    assert_eq!(out.status.code(), Some(1), "{}", said(&out));
    assert!(String::from_utf8_lossy(&out.stderr).contains("wallet permit2 AMOUNT"), "{}", said(&out));
    let out = paid.cli(REQUESTER, &["wallet", "permit2", "10000000", "--token", &paid.token]).await;
    assert!(out.status.success(), "{}", said(&out));
    assert_eq!(paid.allowance(permit2).await, 10_000_000);

    let out = paid.run("by permit", &flags).await;
    assert_eq!(out.stdout, b"BY PERMIT", "{}", said(&out));
    assert_eq!(paid.balance(REQUESTER).await, MINTED - BUDGET);
    assert_eq!(paid.allowance(permit2).await, 10_000_000 - BUDGET);

    // The requester has no coins left for gas: another account sends what it signed.
    paid.node().ask("anvil_setBalance", json!([ACCOUNTS[REQUESTER], "0x0"])).await;
    let file = paid.market.path("permit.json");
    let path = file.to_str().unwrap();
    let handed = async {
        let text = appears(&file).await;
        assert!(!text.contains("artifact://"), "it tells of content: {text}");
        // The last byte of the signature is followed by the padding of its last word.
        let mut forged: serde_json::Value = serde_json::from_str(&text).unwrap();
        let data = forged["data"].as_str().unwrap().to_owned();
        let at = data.len() - 64 - 64;
        let other = if &data[at..=at] == "0" { "1" } else { "0" };
        forged["data"] = json!(format!("{}{other}{}", &data[..at], &data[at + 1..]));
        let forgery = paid.market.path("forged.json");
        std::fs::write(&forgery, forged.to_string()).unwrap();
        let out = paid.cli(SPONSOR, &["escrow", "fund", forgery.to_str().unwrap(), "--yes"]).await;
        assert_eq!(out.status.code(), Some(1), "{}", said(&out));
        assert!(String::from_utf8_lossy(&out.stderr).contains("InvalidSigner"), "{}", said(&out));
        let out = paid.cli(SPONSOR, &["escrow", "fund", path]).await;
        assert_eq!(out.status.code(), Some(2), "it asks before it sends: {}", said(&out));
        paid.cli(SPONSOR, &["escrow", "fund", path, "--yes"]).await
    };
    let flags = [&flags[..], &["--permit-out", path]].concat();
    let (out, sent) = tokio::join!(paid.run("by another", &flags), handed);
    assert!(sent.status.success(), "{}", said(&sent));
    assert_eq!(out.stdout, b"BY ANOTHER", "{}", said(&out));
    assert_eq!(paid.balance(REQUESTER).await, MINTED - 2 * BUDGET);
    assert_eq!(paid.balance(SPONSOR).await, 0);
    let again = paid.cli(SPONSOR, &["escrow", "fund", path, "--yes"]).await;
    assert_eq!(again.status.code(), Some(1), "a permit pays once: {}", said(&again));
    assert!(String::from_utf8_lossy(&again.stderr).contains("WrongStatus"), "{}", said(&again));
}

#[tokio::test]
async fn a_token_that_changes_allowances_only_from_zero_is_paid_too() {
    let Some(paid) = Paid::start().await else { return };
    let (node, token) = (paid.node(), "0x00000000000000000000000000000000000ca071");
    node.ask("anvil_setCode", json!([token, CAUTIOUS])).await;
    let allow = |units: u64| format!("0x095ea7b3{}{units:064x}", account(paid.escrow()));
    let call = |units: u64| json!({ "from": ACCOUNTS[REQUESTER], "to": token, "data": allow(units) });
    node.send(call(3)).await;
    assert!(node.refuses(call(5)).await, "it takes any change");
    let out = paid.cli(REQUESTER, &["wallet", "stake", "5", "--token", token]).await;
    assert!(out.status.success(), "{}", said(&out));
    let wallet = parsed(&paid.cli(REQUESTER, &["wallet", "balance", "--token", token, "--json"]).await);
    assert_eq!(wallet["stake"]["free"], "5", "{wallet:#}");
}
