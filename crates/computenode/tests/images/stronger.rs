//! Stronger walls than an engine's own: users that the host does not know, and a kernel of the container's own.

use computenode::runtime::RunCode;
use computenode::runtime::container::ContainerSettings;

use crate::engines::{Engine, FIRST_USER, GVISOR};
use crate::{
    Bench, a_folder_is_packed, nothing_is_left, settings, stubborn_programs_are_ended,
    the_surroundings_are_bare,
};

#[tokio::test(flavor = "multi_thread")]
async fn podman_gives_programs_users_of_their_own() {
    if let Some(engine) = Engine::podman_with_users() {
        users_of_their_own(engine, Some("auto")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_gives_programs_users_of_their_own() {
    if let Some(engine) = Engine::docker_with_users() {
        users_of_their_own(engine, None).await;
    }
}

async fn users_of_their_own(engine: Engine, mode: Option<&str>) {
    let settings = ContainerSettings { user_namespace: mode.map(str::to_owned), ..settings(&engine) };
    let bench = Bench::new(engine, settings).await;
    assert!(bench.runtime.report().user_namespace);
    let (job, _folder) = bench.job("id -u; cat /proc/self/uid_map");
    let said = String::from_utf8(bench.run(job).await.unwrap()).unwrap();
    let [user, first, on_host, _many] = *said.split_whitespace().collect::<Vec<_>>() else {
        panic!("not one range of users: {said}");
    };
    let on_host: u32 = on_host.parse().unwrap();
    assert_eq!((user, first), ("65532", "0"));
    assert!(on_host >= FIRST_USER, "root of a container is {on_host}");
    a_folder_is_packed(&bench).await;
    the_surroundings_are_bare(&bench).await;
    stubborn_programs_are_ended(&bench).await;
    nothing_is_left(&bench).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_runs_programs_on_gvisors_kernel() {
    let Some(engine) = Engine::docker_with_gvisor() else { return };
    // Its own threads count among the container's.
    let settings = ContainerSettings { runtime: Some(GVISOR.to_owned()), pids: 512, ..settings(&engine) };
    let bench = Bench::new(engine, settings).await;
    let (job, _folder) = bench.job("cat /proc/version; cat /in/input");
    let said = String::from_utf8(bench.run(job).await.unwrap()).unwrap();
    let own = std::fs::read_to_string("/proc/version").unwrap();
    assert!(said.starts_with("Linux version ") && said.ends_with("the input"), "{said}");
    assert!(!said.starts_with(&own), "it ran on this machine's kernel");
    a_folder_is_packed(&bench).await;
    stubborn_programs_are_ended(&bench).await;
    for (script, expected) in [
        ("exec dd if=/dev/zero of=/dev/null bs=200M count=1", RunCode::OutOfMemory),
        ("exec dd if=/dev/zero of=/out/a bs=1M count=2000", RunCode::OutOfDisk),
        ("echo x > /x", RunCode::ExitNonzero),
    ] {
        let (job, _folder) = bench.job(script);
        let ended = bench.run(job).await.map(drop).unwrap_err();
        assert_eq!(ended.code, expected, "{script}: {ended}");
    }
    nothing_is_left(&bench).await;
}
