//! Each deadline's edge: what may be done before it and what from it on, one second before, at, and one second after it; by the contract, by
//! the relay that follows it, and by the evidence.

use escrow::Call;
use reqwest::StatusCode;
use rpc::tasks::SignedMutation;
use taskmarket::{ApproveResult, FailTask, Money, ResolveDispute, Status, Task, Timestamp};

use crate::chain::{ARBITER, OTHER, PROVIDER, REQUESTER, WINDOW, World, eventually, result_hash, world};
use crate::relay::{CONFIRMATIONS, Relay};

/// Which of the three seconds a call is taken in.
const BEFORE: [bool; 3] = [true, false, false];
const FROM: [bool; 3] = [false, true, true];

/// The money of a task, and the second that is its edge.
struct Scene {
    task: Task,
    edge: u64,
}

/// Makes the call in each of the three seconds, each time on a chain and with a relay of its own. It leads to `taken`, or, where it is
/// refused, leaves the money where it was and the work `refused`; all who tell of it agree with the contract.
async fn edge(
    takes: [bool; 3],
    taken: (Money, Status),
    refused: Status,
    begin: impl AsyncFn(&World, &Relay, Task) -> Scene,
    call: impl Fn(&World, &Task, u64) -> Call,
) {
    for (offset, takes) in takes.into_iter().enumerate() {
        let Some(world) = world().await else { return };
        let relay = Relay::start(&world).await;
        let task = world.task(1).await;
        let id = relay.publish(&world, &task).await;
        let Scene { task, edge } = begin(&world, &relay, task).await;
        let at = edge - 1 + offset as u64;
        let before = world.chain.record(id).await.unwrap().status;
        let call = call(&world, &task, at);
        world.next_block_at(at).await;
        let sent = world.send(OTHER, &call).await;
        assert_eq!(sent.is_ok(), takes, "{offset}: {sent:?}");
        assert_eq!(world.now().await, at);
        let (money, work) = if takes { taken } else { (before, refused) };
        assert_eq!(world.chain.record(id).await.unwrap().status, money);
        // That block is the last one that is final.
        world.mine(CONFIRMATIONS - 1).await;
        relay.has_read(&world).await;
        eventually(&format!("{offset}: {} and {work}", money.as_str()), || async {
            let view = relay.task(id).await;
            ((view.settlement.as_str(), view.status) == (money.as_str(), work)).then_some(())
        })
        .await;
        if money == Money::None {
            continue;
        }
        let evidence = relay.evidence(&world, id).await;
        assert_eq!((evidence.settlement.as_str(), evidence.status), (money.as_str(), work));
        let last = evidence.chain.last().unwrap();
        assert_eq!(last.block_time.unix() == at, takes, "{offset}: {last:?}");
    }
}

async fn funded(world: &World, task: Task) -> Task {
    world.fund(&task).await;
    task
}

/// Bound, until the edge.
async fn accepted(world: &World, _: &Relay, task: Task) -> Scene {
    let task = funded(world, task).await;
    let edge = world.accept(&task, PROVIDER, 1).await;
    Scene { task, edge }
}

/// Proven, with the result handed in, and the edge is the dispute window's end.
async fn proven(world: &World, relay: &Relay, task: Task) -> Scene {
    let Scene { task, .. } = accepted(world, relay, task).await;
    let proof = world.proof(&task, PROVIDER, 1, world.now().await);
    world.prove(&task, &proof).await.unwrap();
    let edge = world.now().await + WINDOW;
    let id = world.id(&task);
    relay.finally(world, id, Money::Proven).await;
    relay.upload().await;
    assert_eq!(relay.say(id, "proof", SignedMutation::from(proof)).await, StatusCode::OK);
    Scene { task, edge }
}

/// Disputed, and the edge is the end of the arbiter's window.
async fn disputed(world: &World, relay: &Relay, task: Task) -> Scene {
    let Scene { task, .. } = proven(world, relay, task).await;
    let complaint = world.complaint(&task, world.now().await);
    world.dispute(&task, &complaint).await.unwrap();
    Scene { task, edge: world.now().await + WINDOW }
}

/// Funded, and the edge is the deadline.
async fn before_deadline(world: &World, _: &Relay, task: Task) -> Scene {
    let task = funded(world, task).await;
    let edge = task.deadline.unix();
    Scene { task, edge }
}

fn prove(world: &World, task: &Task, at: u64) -> Call {
    world.chain.calls().prove(task, &world.proof(task, PROVIDER, 1, at))
}

#[tokio::test]
async fn the_budget_comes_before_the_deadline() {
    let begin = async |_: &World, _: &Relay, task: Task| {
        let edge = task.deadline.unix();
        Scene { task, edge }
    };
    edge(BEFORE, (Money::Funded, Status::Open), Status::Expired, begin, |world, task, _| {
        world.chain.calls().fund(task)
    })
    .await;
}

#[tokio::test]
async fn another_accepts_from_the_leases_end() {
    edge(FROM, (Money::Accepted, Status::Accepted), Status::Accepted, accepted, |world, task, at| {
        world.acceptance(task, OTHER, 2, at + 400)
    })
    .await;
}

#[tokio::test]
async fn a_lease_is_five_minutes_or_more_until_the_deadline() {
    // The last second in which a lease can begin is the one before this edge.
    let begin = async |world: &World, relay: &Relay, task: Task| {
        let Scene { task, edge } = before_deadline(world, relay, task).await;
        Scene { task, edge: edge - 299 }
    };
    let accept = |world: &World, task: &Task, _| world.acceptance(task, PROVIDER, 1, task.deadline.unix());
    edge(BEFORE, (Money::Accepted, Status::Accepted), Status::Open, begin, accept).await;
}

#[tokio::test]
async fn a_proof_comes_before_the_leases_end() {
    edge(BEFORE, (Money::Proven, Status::Accepted), Status::Open, accepted, prove).await;
}

#[tokio::test]
async fn a_proof_comes_before_the_deadline() {
    let begin = async |world: &World, relay: &Relay, task: Task| {
        let Scene { task, edge } = before_deadline(world, relay, task).await;
        world.next_block_at(edge - 400).await;
        let accept = world.acceptance(&task, PROVIDER, 1, edge);
        world.send(OTHER, &accept).await.unwrap();
        Scene { task, edge }
    };
    edge(BEFORE, (Money::Proven, Status::Accepted), Status::Expired, begin, prove).await;
}

#[tokio::test]
async fn the_fast_path_ends_with_the_deadline() {
    let pay = |world: &World, task: &Task, at| {
        let approve = ApproveResult {
            task_id: world.id(task),
            provider: world.address(PROVIDER),
            attempt: 1,
            result_hash: result_hash(),
            issued_at: Timestamp::from_unix(at),
        };
        let (proof, approve) = (world.proof(task, PROVIDER, 1, at), world.sign(REQUESTER, &approve));
        world.chain.calls().accept_and_prove(task, &proof, &approve)
    };
    edge(BEFORE, (Money::Paid, Status::Accepted), Status::Expired, before_deadline, pay).await;
}

#[tokio::test]
async fn an_attempt_is_given_back_before_its_lease_ends() {
    let fail = |world: &World, task: &Task, at| {
        let fail = FailTask {
            task_id: world.id(task),
            provider: world.address(PROVIDER),
            attempt: 1,
            code: "io".to_owned(),
            message: String::new(),
            issued_at: Timestamp::from_unix(at),
        };
        world.chain.calls().fail(task, &world.sign(PROVIDER, &fail))
    };
    edge(BEFORE, (Money::Funded, Status::Open), Status::Open, accepted, fail).await;
}

#[tokio::test]
async fn a_dispute_comes_before_the_windows_end() {
    let dispute =
        |world: &World, task: &Task, at| world.chain.calls().dispute(task, &world.complaint(task, at));
    edge(BEFORE, (Money::Disputed, Status::Disputed), Status::Completed, proven, dispute).await;
}

#[tokio::test]
async fn payment_without_a_word_comes_from_the_windows_end_on() {
    edge(FROM, (Money::Paid, Status::Completed), Status::Submitted, proven, |world, task, _| {
        world.chain.calls().settle(task)
    })
    .await;
}

#[tokio::test]
async fn the_arbiters_word_comes_before_its_windows_end() {
    let resolve = |world: &World, task: &Task, at| {
        let issued_at = Timestamp::from_unix(at);
        let verdict = ResolveDispute { task_id: world.id(task), attempt: 1, provider_bps: 5000, issued_at };
        world.chain.calls().resolve(task, &world.sign(ARBITER, &verdict))
    };
    edge(BEFORE, (Money::Split, Status::Resolved), Status::Resolved, disputed, resolve).await;
}

#[tokio::test]
async fn an_arbiters_silence_counts_from_its_windows_end_on() {
    edge(FROM, (Money::Split, Status::Resolved), Status::Disputed, disputed, |world, task, _| {
        world.chain.calls().timeout(task)
    })
    .await;
}

#[tokio::test]
async fn a_budget_goes_back_from_the_deadline_on() {
    edge(FROM, (Money::Refunded, Status::Expired), Status::Open, before_deadline, |world, task, _| {
        world.chain.calls().refund(task)
    })
    .await;
}
