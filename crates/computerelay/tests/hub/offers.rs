//! From a published task to a proof: who is asked, who takes it, and whose word does not count.

use std::time::Duration;

use rpc::link::AttemptKey;
use rpc::tasks::SignedMutation;
use taskmarket::{AcceptTask, ContentHash, Domain, Status, TaskId};

use crate::agent::{Agent, Answer, Lie, Script, now};
use crate::support::{Relay, Requester, Times, hash_of};

#[tokio::test]
async fn a_task_is_offered_accepted_and_proven() {
    let relay = Relay::start(Times::default()).await;
    let requester = Requester::new();
    // Published before anybody is there: it waits, and says why.
    let task = requester.task();
    let task_id = relay.publish(&requester, &task).await;
    let explanation = relay.explains(task_id, |_| true).await;
    assert_eq!(explanation.summary, "no provider is online");

    let agent = Script::new().connect(&relay.url()).await;
    let assignment = agent.is_offered(task_id).await;
    assert_eq!((assignment.attempt, &assignment.task), (1, &task));
    relay.reaches(task_id, Status::Accepted, 1).await;
    let explanation = relay.explains(task_id, |_| true).await;
    assert_eq!(explanation.summary, format!("accepted by {} attempt 1", agent.address()));
    let progress = crate::support::poll("progress", async || relay.task(task_id).await.progress).await;
    assert_eq!(progress.percent, Some(50));

    // A proof without its result, and one of another result than the one stored, are not taken.
    let missing = agent.proof(&assignment, hash_of(b"never stored"));
    assert_eq!(relay.tell(task_id, "proof", &missing).await, (409, "result_missing".into()));
    let result = relay.store_result(&assignment.attempt_token, b"result").await;
    assert_eq!(relay.tell(task_id, "proof", &missing).await, (409, "result_missing".into()));
    let mut mismatched = agent.proof(&assignment, result);
    mismatched.mutation.result_hash = hash_of(b"other");
    assert_eq!(relay.tell(task_id, "proof", &mismatched).await.0, 400);

    // Nor is another provider's.
    let stranger = Script::new().connect(&relay.url()).await;
    let stolen = stranger.proof(&assignment, result);
    assert_eq!(relay.tell(task_id, "proof", &stolen).await, (403, "wrong_party".into()));

    let proof = agent.proof(&assignment, result);
    assert_eq!(relay.tell(task_id, "proof", &proof).await.0, 200);
    relay.reaches(task_id, Status::Submitted, 1).await;
    // Said again, it changes nothing and is acknowledged.
    assert_eq!(relay.tell(task_id, "proof", &proof).await.0, 200);
    assert!(agent.state().called_off.is_empty());
}

#[tokio::test]
async fn a_refused_task_goes_to_the_next_provider() {
    let relay = Relay::start(Times::default()).await;
    let picky = Script::new().answers(Answer::Refuse("price below floor")).connect(&relay.url()).await;
    let requester = Requester::new();
    let task_id = relay.publish(&requester, &requester.task()).await;
    picky.is_offered(task_id).await;
    let reason = "refused: price below floor";
    let explanation = relay
        .explains(task_id, |explanation| {
            explanation.providers.iter().any(|host| host.exclusions.iter().any(|why| why.starts_with(reason)))
        })
        .await;
    assert!(
        explanation.summary.starts_with("1 provider online, none fits: refused"),
        "{}",
        explanation.summary
    );

    let willing = Script::new().connect(&relay.url()).await;
    willing.is_offered(task_id).await;
    let task = relay.reaches(task_id, Status::Accepted, 1).await;
    assert_eq!(task.provider, Some(willing.address()));
    assert_eq!(picky.state().assignments.len(), 1);
}

#[tokio::test]
async fn an_offer_without_an_answer_goes_to_the_next_provider() {
    let relay = Relay::start(Times { offer: Duration::from_millis(300), ..Times::default() }).await;
    let hanging = Script::new().answers(Answer::Hang).connect(&relay.url()).await;
    let requester = Requester::new();
    let task_id = relay.publish(&requester, &requester.task()).await;
    hanging.is_offered(task_id).await;
    let willing = Script::new().connect(&relay.url()).await;
    let task = relay.reaches(task_id, Status::Accepted, 1).await;
    assert_eq!(task.provider, Some(willing.address()));
    // Whatever it does with the offer, it is told that it is over.
    hanging.sees("a call-off", |state| state.called_off.iter().any(|key| key.task_id == task_id)).await;
}

#[tokio::test]
async fn acceptances_that_do_not_hold_are_refused_and_called_off() {
    let lies =
        [Lie::Attempt, Lie::Provider, Lie::Signature, Lie::Task, Lie::Lease, Lie::NoJson, Lie::Endless];
    let relay = Relay::start(Times::default()).await;
    let requester = Requester::new();
    for lie in lies {
        let liar = Script::new().answers(Answer::Lie(lie)).connect(&relay.url()).await;
        let task_id = relay.publish(&requester, &requester.task()).await;
        liar.is_offered(task_id).await;
        relay
            .explains(task_id, |explanation| {
                let barred = |why: &String| why.contains("its acceptance") || why.contains("its answer");
                explanation.providers.iter().any(|host| host.exclusions.iter().any(barred))
            })
            .await;
        assert_eq!(relay.task(task_id).await.status, Status::Open, "{lie:?}");
        let honest = Script::new().connect(&relay.url()).await;
        let task = relay.reaches(task_id, Status::Accepted, 1).await;
        assert_eq!(task.provider, Some(honest.address()), "{lie:?}");
        liar.stop().await;
        honest.stop().await;
        relay.lists(|list| list.providers.is_empty()).await;
    }
}

#[tokio::test]
async fn no_host_is_given_more_than_its_slots() {
    let relay = Relay::start(Times::default()).await;
    let requester = Requester::new();
    let mut tasks = Vec::new();
    for _ in 0..12 {
        tasks.push(relay.publish(&requester, &requester.task()).await);
    }
    let agent = Script::new().slots(4).connect(&relay.url()).await;
    let state = agent.sees("four tasks", |state| state.held.len() == 4).await;
    assert_eq!(state.assignments.len(), 4);
    // Oldest first, and one more for each that ends.
    for held in state.held {
        assert!(tasks[..].contains(&held.task_id));
    }
    let waiting =
        *tasks.iter().find(|id| !agent.state().assignments.iter().any(|a| a.task_id == **id)).unwrap();
    let explanation = relay.explains(waiting, |_| true).await;
    assert_eq!(explanation.summary, "1 provider online, none fits: 0 of 4 slots free");

    let mut done = 0;
    while done < tasks.len() {
        let seen = agent.sees("a task", |state| !state.held.is_empty()).await;
        assert!(seen.held.len() <= 4, "{:?}", seen.held);
        let key = seen.held[0];
        let assignment = agent.is_offered(key.task_id).await;
        relay.reaches(key.task_id, Status::Accepted, 1).await;
        let result = relay.store_result(&assignment.attempt_token, b"result").await;
        assert_eq!(relay.tell(key.task_id, "proof", &agent.proof(&assignment, result)).await.0, 200);
        agent.finish(&assignment);
        done += 1;
    }
    assert_eq!(agent.state().assignments.len(), tasks.len());
}

#[tokio::test]
async fn a_task_that_nobody_fits_waits_and_says_why() {
    let relay = Relay::start(Times::default()).await;
    let plain = Script::new().connect(&relay.url()).await;
    relay.lists(|list| list.providers.len() == 1).await;
    let requester = Requester::new();
    let mut task = requester.task();
    task.config.gpu_type = "A100".into();
    task.config.gpu_count = 1;
    let task_id = relay.publish(&requester, &task).await;
    let explanation = relay.explains(task_id, |_| true).await;
    assert_eq!(explanation.summary, "1 provider online, none fits: has no GPU named A100");
    assert_eq!(explanation.providers[0].provider, plain.address());

    let fitting = Script { gpu: Some("NVIDIA A100-SXM4-80GB"), ..Script::new() }.connect(&relay.url()).await;
    let task = relay.reaches(task_id, Status::Accepted, 1).await;
    assert_eq!(task.provider, Some(fitting.address()));
    assert!(plain.state().assignments.is_empty());
}

#[tokio::test]
async fn a_failed_attempt_goes_to_another_provider_and_the_old_proof_is_stale() {
    let relay = Relay::start(Times::default()).await;
    let first = Script::new().connect(&relay.url()).await;
    let requester = Requester::new();
    let task_id = relay.publish(&requester, &requester.task()).await;
    let old = first.is_offered(task_id).await;
    relay.reaches(task_id, Status::Accepted, 1).await;
    let second = Script::new().connect(&relay.url()).await;
    relay.lists(|list| list.providers.len() == 2).await;
    assert_eq!(relay.tell(task_id, "fail", &first.failure(&old)).await.0, 200);
    first.finish(&old);
    let task = relay.reaches(task_id, Status::Accepted, 2).await;
    assert_eq!(task.provider, Some(second.address()));

    let late = first.proof(&old, ContentHash([3; 32].into()));
    assert_eq!(relay.tell(task_id, "proof", &late).await, (409, "stale_attempt".into()));
}

#[tokio::test]
async fn attempts_are_spent_with_a_single_provider_and_then_the_task_failed() {
    let relay = Relay::start(Times::default()).await;
    let agent = Script::new().connect(&relay.url()).await;
    let requester = Requester::new();
    let mut task = requester.task();
    task.config.max_attempts = 2;
    let task_id = relay.publish(&requester, &task).await;
    for attempt in 1..=2 {
        relay.reaches(task_id, Status::Accepted, attempt).await;
        let assignment = agent.is_offered(task_id).await;
        assert_eq!(assignment.attempt, attempt);
        assert_eq!(relay.tell(task_id, "fail", &agent.failure(&assignment)).await.0, 200);
        agent.finish(&assignment);
    }
    relay.reaches(task_id, Status::Failed, 2).await;
    let explanation = relay.explains(task_id, |_| true).await;
    assert!(explanation.summary.contains("all 2 attempts failed"), "{}", explanation.summary);
}

/// A provider's word that it takes an attempt, of its own accord.
fn acceptance(agent: &Agent, task_id: TaskId, attempt: u32) -> SignedMutation<AcceptTask> {
    let lease_until = now().plus(60);
    let accept = AcceptTask { task_id, provider: agent.address(), attempt, lease_until };
    agent.script.wallet.sign(&accept, &Domain::UNSETTLED).unwrap().into()
}

#[tokio::test]
async fn an_acceptance_of_ones_own_accord_passes_by_neither_slots_nor_failures_nor_others() {
    let relay = Relay::start(Times::default()).await;
    let requester = Requester::new();
    let accept = async |agent: &Agent, task_id, attempt| {
        relay.tell(task_id, "accept", &acceptance(agent, task_id, attempt)).await
    };
    // Who is busy takes nothing more.
    let busy = Script::new().connect(&relay.url()).await;
    let first = relay.publish(&requester, &requester.task()).await;
    let held = busy.is_offered(first).await;
    relay.reaches(first, Status::Accepted, 1).await;
    let waits = relay.publish(&requester, &requester.task()).await;
    assert_eq!(accept(&busy, waits, 1).await, (503, "unavailable".into()));
    // What is on offer to somebody is theirs to take, one way or the other.
    let slow = Script::new().answers(Answer::Hang).connect(&relay.url()).await;
    slow.is_offered(waits).await;
    let free = Script::new().slots(2).answers(Answer::Refuse("not now")).connect(&relay.url()).await;
    relay.lists(|list| list.providers.len() == 3).await;
    assert_eq!(accept(&free, waits, 1).await, (409, "conflict".into()));
    slow.hold(AttemptKey { task_id: waits, attempt: 1 });
    assert_eq!(accept(&slow, waits, 1).await, (200, String::new()));
    let task = relay.reaches(waits, Status::Accepted, 1).await;
    assert_eq!(task.provider, Some(slow.address()));
    // Who refused a task, or failed it, is asked again in its turn.
    let refused = relay.publish(&requester, &requester.task()).await;
    free.is_offered(refused).await;
    let is_barred = |why: &String| why.starts_with("refused: not now");
    relay
        .explains(refused, |explanation| {
            explanation.providers.iter().any(|host| host.exclusions.iter().any(is_barred))
        })
        .await;
    assert_eq!(accept(&free, refused, 1).await, (409, "conflict".into()));
    assert_eq!(relay.task(refused).await.status, Status::Open);
    assert_eq!(relay.tell(first, "fail", &busy.failure(&held)).await.0, 200);
    busy.finish(&held);
    assert_eq!(accept(&busy, first, 2).await, (409, "conflict".into()));
}

#[tokio::test]
async fn a_mute_host_delays_a_task_once_and_comes_last_afterwards() {
    let offer = Duration::from_secs(1);
    let relay = Relay::start(Times { offer, ..Times::default() }).await;
    let hanging = Script::new().slots(4).answers(Answer::Hang).connect(&relay.url()).await;
    let requester = Requester::new();
    let first = relay.publish(&requester, &requester.task()).await;
    hanging.is_offered(first).await;
    let honest = Script::new().slots(4).connect(&relay.url()).await;
    relay.reaches(first, Status::Accepted, 1).await;
    for _ in 0..3 {
        let task_id = relay.publish(&requester, &requester.task()).await;
        let task = relay.reaches(task_id, Status::Accepted, 1).await;
        assert_eq!(task.provider, Some(honest.address()));
    }
    assert_eq!(hanging.state().assignments.len(), 1);
}

#[tokio::test]
async fn a_task_does_not_go_back_to_who_failed_it_by_its_own_fault_while_another_is_busy() {
    let relay = Relay::start(Times::default()).await;
    let first = Script::new().connect(&relay.url()).await;
    let requester = Requester::new();
    let busy_with = relay.publish(&requester, &requester.task()).await;
    relay.reaches(busy_with, Status::Accepted, 1).await;
    let second = Script::new().connect(&relay.url()).await;
    let task_id = relay.publish(&requester, &requester.task()).await;
    let old = second.is_offered(task_id).await;
    relay.reaches(task_id, Status::Accepted, 1).await;
    assert_eq!(relay.tell(task_id, "fail", &second.failure_with(&old, "out_of_fuel")).await.0, 200);
    second.finish(&old);
    let accuses = "it said that the task fails anywhere (attempt 1 failed: out_of_fuel; raise the fuel";
    relay.explains(task_id, |explanation| explanation.summary.contains(accuses)).await;

    let held = first.is_offered(busy_with).await;
    let result = relay.store_result(&held.attempt_token, b"result").await;
    assert_eq!(relay.tell(busy_with, "proof", &first.proof(&held, result)).await.0, 200);
    first.finish(&held);
    let task = relay.reaches(task_id, Status::Accepted, 2).await;
    assert_eq!(task.provider, Some(first.address()));
}

#[tokio::test]
async fn identities_that_cost_nothing_cost_few_tasks_an_attempt_and_none_more() {
    let relay = Relay::start(Times::default()).await;
    let requester = Requester::new();
    let honest = Script::new().slots(4).connect(&relay.url()).await;
    let prove = async |task_id| {
        let assignment = honest.is_offered(task_id).await;
        let result = relay.store_result(&assignment.attempt_token, b"result").await;
        assert_eq!(relay.tell(task_id, "proof", &honest.proof(&assignment, result)).await.0, 200);
        honest.finish(&assignment);
    };
    let first = relay.publish(&requester, &requester.task()).await;
    relay.reaches(first, Status::Accepted, 1).await;
    prove(first).await;

    // Three that accept and fail everything, each of which comes back as somebody new.
    let mut liars = Vec::new();
    for _ in 0..3 {
        liars.push(Script::new().slots(4).connect(&relay.url()).await);
    }
    let (mut lost, mut trials) = (0, 0);
    for _ in 0..16 {
        relay.lists(|list| list.providers.len() == 4).await;
        let task_id = relay.publish(&requester, &requester.task()).await;
        trials += usize::from(task_id.0[31] % 4 == 0);
        let mut task = relay.reaches(task_id, Status::Accepted, 1).await;
        if task.provider != Some(honest.address()) {
            lost += 1;
            let liar = liars.iter().position(|liar| task.provider == Some(liar.address())).unwrap();
            let liar = liars.swap_remove(liar);
            let failure = liar.failure(&liar.is_offered(task_id).await);
            assert_eq!(relay.tell(task_id, "fail", &failure).await.0, 200);
            liar.stop().await;
            liars.push(Script::new().slots(4).connect(&relay.url()).await);
            task = relay.reaches(task_id, Status::Accepted, 2).await;
        }
        assert_eq!(task.provider, Some(honest.address()));
        prove(task_id).await;
        relay.reaches(task_id, Status::Submitted, task.attempt).await;
    }
    assert!(lost <= trials, "{lost} lost an attempt, {trials} were open to newcomers");
}

#[tokio::test]
async fn a_newcomer_gets_work_beside_hosts_that_are_proven() {
    let relay = Relay::start(Times::default()).await;
    let requester = Requester::new();
    let proven = Script::new().slots(64).connect(&relay.url()).await;
    let first = relay.publish(&requester, &requester.task()).await;
    let assignment = proven.is_offered(first).await;
    relay.reaches(first, Status::Accepted, 1).await;
    let result = relay.store_result(&assignment.attempt_token, b"result").await;
    assert_eq!(relay.tell(first, "proof", &proven.proof(&assignment, result)).await.0, 200);
    let newcomer = Script::new().slots(64).connect(&relay.url()).await;
    relay.lists(|list| list.providers.len() == 2).await;
    // One in four tasks is open to it; that none of these is, happens once in a hundred million times.
    let mut published = 0;
    while newcomer.state().assignments.is_empty() {
        assert!(published < 64, "the newcomer gets nothing");
        let task_id = relay.publish(&requester, &requester.task()).await;
        relay.reaches(task_id, Status::Accepted, 1).await;
        published += 1;
    }
}
