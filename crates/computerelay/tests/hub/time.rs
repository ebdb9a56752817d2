//! What time does: leases that lapse and deadlines that pass.

use taskmarket::Status;

use crate::agent::{Answer, Script, now};
use crate::support::{Relay, Requester, Times};

#[tokio::test]
async fn a_lapsed_lease_goes_to_another_provider_and_never_back() {
    let relay = Relay::start(Times::default()).await;
    let slow = Script::new().answers(Answer::Accept { lease_secs: 2 }).connect(&relay.url()).await;
    let requester = Requester::new();
    let task_id = relay.publish(&requester, &requester.task()).await;
    relay.reaches(task_id, Status::Accepted, 1).await;
    // Alone, it is not offered the task again.
    relay.reaches(task_id, Status::Open, 1).await;
    slow.sees("a call-off", |state| !state.called_off.is_empty()).await;
    let explanation = relay.explains(task_id, |_| true).await;
    let exclusions = &explanation.providers[0].exclusions;
    assert!(exclusions.contains(&"its lease on this task lapsed".to_owned()), "{exclusions:?}");

    let other = Script::new().connect(&relay.url()).await;
    let task = relay.reaches(task_id, Status::Accepted, 2).await;
    assert_eq!(task.provider, Some(other.address()));
    assert_eq!(slow.state().assignments.len(), 1);
}

#[tokio::test]
async fn a_task_expires_at_its_deadline_open_or_accepted() {
    let relay = Relay::start(Times::default()).await;
    let agent = Script::new().connect(&relay.url()).await;
    let requester = Requester::new();
    let mut held = requester.task();
    held.deadline = now().plus(3);
    let held_id = relay.publish(&requester, &held).await;
    relay.reaches(held_id, Status::Accepted, 1).await;
    let mut open = requester.task();
    open.deadline = now().plus(2);
    let open_id = relay.publish(&requester, &open).await;
    relay.reaches(open_id, Status::Expired, 0).await;
    relay.reaches(held_id, Status::Expired, 1).await;
    agent.sees("a call-off", |state| state.called_off.iter().any(|key| key.task_id == held_id)).await;
    assert!(!agent.state().assignments.iter().any(|assignment| assignment.task_id == open_id));
}

#[tokio::test]
async fn what_came_due_while_the_relay_was_away_happens_when_it_is_back() {
    let relay = Relay::start(Times::default()).await;
    let requester = Requester::new();
    let mut task = requester.task();
    task.deadline = now().plus(2);
    let task_id = relay.publish(&requester, &task).await;
    let relay = relay.restart(Times::default()).await;
    relay.reaches(task_id, Status::Expired, 0).await;
}
