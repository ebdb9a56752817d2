//! Operating a host: draining it, pausing it, reading logs through it, and its configuration file.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support;

use std::ffi::OsString;
use std::path::Path;

use clap::CommandFactory;
use computeagent::{Args, OwnerUse};
use http::StatusCode;
use rpc::node::GpuUse;
use support::*;
use taskmarket::{NodeStatus, Runtime};

async fn refused(session: &link::Session, task: taskmarket::Task) -> (u16, String) {
    let (status, body) = offer(session, &signed_assignment(task)).await;
    (status.as_u16(), body["error"]["code"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn a_draining_node_is_announced_also_after_a_restart() {
    let mut world = World::new().await;
    let agent = world.start();
    let (_, session) = world.connected().await;
    world.node.report.lock().unwrap().draining = true;
    let told = soon("the status", world.inbox.statuses.recv()).await.unwrap().mutation;
    assert_eq!(told.status, NodeStatus::Draining);
    assert_eq!(refused(&session, task(1)).await, (503, "draining".to_owned()));
    agent.stop().await.unwrap();
    // What was said holds at the relay until something else is said.
    world.node.report.lock().unwrap().draining = false;
    world.relay.reply([Reply::Status(StatusCode::SERVICE_UNAVAILABLE)]);
    let agent = world.start_again().await;
    let (_, session) = world.connected().await;
    for _ in 0..2 {
        let told = soon("the status", world.inbox.statuses.recv()).await.unwrap().mutation;
        assert_eq!(told.status, NodeStatus::Online);
    }
    let offered = assignment(1);
    accepted(&session, &offered).await;
    world.node.finish(&offered.task_id, b"r");
    world.proof().await;
    agent.stop().await.unwrap();
    world.start_again().await.stop().await.unwrap();
    assert!(world.inbox.statuses.try_recv().is_err(), "the relay knows that tasks are taken");
}

#[tokio::test]
async fn the_owners_use_of_the_gpu_keeps_tasks_away() {
    let mut world = World::new().await;
    world.config.policy.owner = OwnerUse { vram_mb: Some(512), utilization_percent: None };
    let agent = world.start();
    let (_, session) = world.connected().await;
    let mut beats = Heartbeats::of(&session).await;
    beats.until(|beat| beat.slots == 2 && beat.unhealthy.is_none()).await;
    let uses = |vram_mb| vec![GpuUse { vram_mb, utilization_percent: 100 }];
    world.node.report.lock().unwrap().foreign_gpu_use = uses(600);
    let beat = beats.until(|beat| beat.slots == 0).await;
    assert_eq!(beat.unhealthy.as_deref(), Some("the GPU's owner uses it"));
    assert_eq!(refused(&session, task(1)).await, (503, "gpu_in_use".to_owned()));
    world.node.report.lock().unwrap().foreign_gpu_use = uses(500);
    beats.until(|beat| beat.slots == 2 && beat.unhealthy.is_none()).await;
    accepted(&session, &assignment(1)).await;
    agent.kill().await;
}

#[tokio::test]
async fn tasks_are_taken_at_the_operators_hours() {
    let mut world = World::new().await;
    // From two hours from now on, for one hour.
    let hour = (now().unix() / 3600 + 2) % 24;
    world.config.policy.hours = vec![format!("{hour}-{}UTC", (hour + 1) % 24).parse().unwrap()];
    let agent = world.start();
    let (_, session) = world.connected().await;
    let beat = Heartbeats::of(&session).await.next().await.unwrap();
    assert_eq!(beat.slots, 0);
    assert!(beat.unhealthy.unwrap().starts_with("this host takes tasks only at "));
    assert_eq!(refused(&session, task(1)).await, (503, "outside_hours".to_owned()));
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn only_the_operators_runtimes_are_offered() {
    let mut world = World::new().await;
    world.node.report.lock().unwrap().runtimes.push(Runtime::Embed);
    world.config.policy.runtimes = vec![Runtime::Embed];
    let agent = world.start();
    let (register, session) = world.connected().await;
    assert!(register.metadata.contains(r#""runtimes":["embed"]"#), "{}", register.metadata);
    assert_eq!(refused(&session, task(1)).await, (409, "runtime_not_offered".to_owned()));
    let mut embed = task(1);
    embed.config.runtime = Runtime::Embed;
    accepted(&session, &signed_assignment(embed)).await;
    agent.kill().await;
}

#[tokio::test]
async fn only_the_operators_images_run() {
    let mut world = World::new().await;
    world.node.report.lock().unwrap().runtimes.push(Runtime::Container);
    world.config.policy.images = vec!["oci://ghcr.io/org".parse().unwrap()];
    let agent = world.start();
    let (_, session) = world.connected().await;
    let container = |image: &str| {
        let mut task = task(1);
        task.config.runtime = Runtime::Container;
        task.model_cid = format!("oci://{image}@sha256:{}", "ab".repeat(32)).parse().unwrap();
        task
    };
    let other = refused(&session, container("ghcr.io/other/app")).await;
    assert_eq!(other, (409, "image_not_allowed".to_owned()));
    accepted(&session, &signed_assignment(container("ghcr.io/org/app"))).await;
    // Programs of other runtimes are no images.
    accepted(&session, &assignment(2)).await;
    agent.kill().await;
}

#[tokio::test]
async fn an_unwell_node_is_offered_nothing() {
    let mut world = World::new().await;
    let agent = world.start();
    let (_, session) = world.connected().await;
    let mut beats = Heartbeats::of(&session).await;
    world.node.report.lock().unwrap().unhealthy = Some("the disk has 1 MiB free".to_owned());
    beats.until(|beat| beat.unhealthy.as_deref() == Some("the disk has 1 MiB free")).await;
    assert_eq!(refused(&session, task(1)).await, (503, "node_unhealthy".to_owned()));
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn logs_pass_through_as_they_come() {
    let mut world = World::new().await;
    let agent = world.start();
    let (_, session) = world.connected().await;
    let offered = assignment(1);
    let path = format!("/tasks/{}/logs", offered.task_id);
    assert_eq!(fetch(&session, &path).await.0, StatusCode::NOT_FOUND);
    accepted(&session, &offered).await;
    world.node.log.send_modify(|lines| lines.extend(["zero".to_owned(), "one".to_owned()]));
    assert_eq!(fetch(&session, &path).await, (StatusCode::OK, "zero\none\n".to_owned()));
    assert_eq!(fetch(&session, &format!("{path}?from=1")).await.1, "one\n");
    assert_eq!(fetch(&session, &format!("{path}?from=x")).await.0, StatusCode::BAD_REQUEST);

    let mut following = Lines::of(&session, &format!("{path}?from=1&follow=true")).await;
    assert_eq!(following.next().await.as_deref(), Some("one"));
    world.node.log.send_modify(|lines| lines.push("two".to_owned()));
    assert_eq!(following.next().await.as_deref(), Some("two"));
    world.node.log.send_modify(|lines| lines.push(String::new()));
    assert_eq!(following.next().await, None);

    world.node_server.take().unwrap().stop().await;
    assert_eq!(fetch(&session, &path).await.0, StatusCode::SERVICE_UNAVAILABLE);
    agent.kill().await;
}

#[test]
fn the_example_configuration_is_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/compute-agent.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let read = |path: &Path| {
        let line = [OsString::from("compute-agent"), "--config".into(), path.into()];
        Args::read(line).unwrap_or_else(|error| panic!("{error}"))
    };
    assert_eq!(read(&path).relay_id, "hz-1");
    // Also what is commented out is a line that works, and every flag has one.
    let uncommented = |line: &str| {
        let rest = line.strip_prefix("# ")?;
        rest.split_once(" = ").is_some_and(|(key, _)| !key.contains(' ')).then(|| format!("{rest}\n"))
    };
    let all: String =
        text.lines().map(|line| uncommented(line).unwrap_or_else(|| format!("{line}\n"))).collect();
    for arg in Args::command().get_arguments().filter(|arg| !arg.is_hide_set()) {
        let flag = arg.get_long().unwrap();
        let excused = ["config", "help", "version", "provider-key"].contains(&flag);
        assert!(
            excused || all.lines().any(|line| line.starts_with(&format!("{flag} = "))),
            "{flag} has no line"
        );
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("all.toml");
    std::fs::write(&file, &all).unwrap();
    let args = read(&file);
    assert_eq!((args.hours.len(), args.allow_image.len(), args.slots), (2, 2, Some(1)));
    std::fs::write(&file, "provider-key = \"00\"").unwrap();
    let line = [OsString::from("compute-agent"), "--config".into(), file.into()];
    let error = Args::read(line).unwrap_err().to_string();
    assert!(error.contains("all.toml:1: provider-key: a secret has no place in this file"), "{error}");
}
