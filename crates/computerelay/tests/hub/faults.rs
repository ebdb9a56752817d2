//! Failures that would come again on every host: they end a task before its attempts are spent.

use std::time::Duration;

use rpc::tasks::TaskView;
use taskmarket::{Status, TaskId};

use crate::agent::{Agent, Script};
use crate::support::{Relay, Requester, Times};

/// Has the host that is offered the task fail it as one that fails anywhere.
async fn fails(relay: &Relay, agent: &Agent, task_id: TaskId) {
    let assignment = agent.is_offered(task_id).await;
    relay.reaches(task_id, Status::Accepted, assignment.attempt).await;
    let failure = agent.failure_with(&assignment, "out_of_fuel");
    assert_eq!(relay.tell(task_id, "fail", &failure).await.0, 200);
    agent.finish(&assignment);
}

fn failure(task: &TaskView) -> Option<&str> {
    task.failure.as_ref().map(|failure| failure.code.as_str())
}

#[tokio::test]
async fn two_providers_that_agree_end_a_task_though_a_third_is_free() {
    let relay = Relay::start(Times::default()).await;
    let requester = Requester::new();
    let mut task = requester.task();
    task.config.max_attempts = 9;
    let first = Script::new().connect(&relay.url()).await;
    let task_id = relay.publish(&requester, &task).await;
    first.is_offered(task_id).await;
    let second = Script::new().connect(&relay.url()).await;
    relay.lists(|list| list.providers.len() == 2).await;
    fails(&relay, &first, task_id).await;
    second.is_offered(task_id).await;
    relay.reaches(task_id, Status::Accepted, 2).await;
    let third = Script::new().connect(&relay.url()).await;
    relay.lists(|list| list.providers.len() == 3).await;
    fails(&relay, &second, task_id).await;
    let ended = relay.reaches(task_id, Status::Failed, 2).await;
    assert_eq!(failure(&ended), Some("out_of_fuel"));
    let summary = relay.explains(task_id, |_| true).await.summary;
    assert!(
        summary.starts_with("ended after 2 of 9 attempts, as it fails anywhere: out_of_fuel"),
        "{summary}"
    );
    assert!(third.state().assignments.is_empty());
}

#[tokio::test]
async fn a_task_that_no_other_provider_could_have_ends_with_the_one_word() {
    let relay = Relay::start({
        let soon = Duration::from_millis(100);
        Times { grace: soon, alone: soon, ..Times::default() }
    })
    .await;
    let requester = Requester::new();
    let only = Script::new().slots(2).connect(&relay.url()).await;
    let task_id = relay.publish(&requester, &requester.task()).await;
    fails(&relay, &only, task_id).await;
    let ended = relay.reaches(task_id, Status::Failed, 1).await;
    assert_eq!(failure(&ended), Some("out_of_fuel"));
    assert_eq!(only.state().assignments.len(), 1);
}
