//! Containers on real engines, which these tests start for themselves: what works, and what programs that mean harm come to.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic")]

#[path = "images/egress.rs"]
mod egress;
#[path = "images/engines.rs"]
mod engines;
mod images;
#[path = "images/registry.rs"]
mod registry;
#[path = "images/stronger.rs"]
mod stronger;
mod support;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use artifact::{BlobStore, FetchPolicy, Fetcher};
use bollard::Docker;
use bollard::query_parameters::ListContainersOptionsBuilder;
use computenode::runtime::container::{ContainerRuntime, ContainerSettings, DetectError, EngineName};
use computenode::runtime::{
    Context, Job, Limits, Model, ModelFiles, Output, Place, RunCode, RunError, Runtime,
};
use reqwest::{Method, StatusCode};
use serde_json::json;
use taskmarket::params::{ContainerParams, Params};
use tempfile::TempDir;

use crate::engines::{Engine, WITNESS};
use crate::registry::Registry;
use crate::support::http::{compute_request, task_id};
use crate::support::process::Process;

/// No job here takes longer, by far.
const PATIENCE: Duration = Duration::from_secs(300);

/// How many jobs of one kind run at once.
const AT_ONCE: usize = 4;

/// What a script is to come to.
type Expected = Result<&'static str, RunCode>;

#[tokio::test(flavor = "multi_thread")]
async fn podman_keeps_programs_in() {
    if let Some(engine) = Engine::podman() {
        suite(engine, EngineName::Podman).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_keeps_programs_in() {
    if let Some(engine) = Engine::docker() {
        suite(engine, EngineName::Docker).await;
    }
}

/// An engine with the runtime on it, and the image that jobs have.
struct Bench {
    engine: Engine,
    runtime: Arc<ContainerRuntime>,
    folder: TempDir,
    image: Vec<u8>,
}

async fn suite(engine: Engine, name: EngineName) {
    let settings = settings(&engine);
    let bench = Bench::new(engine, settings).await;
    let report = bench.runtime.report();
    assert_eq!((report.name, report.unenforced.as_slice()), (name, &[][..]));
    let layer = images::busybox_layer();

    programs_come_to_what_they_should(&bench).await;
    the_surroundings_are_bare(&bench).await;
    stubborn_programs_are_ended(&bench).await;
    archives_are_checked(&bench, &layer).await;
    a_task_cannot_make_its_host_fail(&bench, &layer).await;
    registries_are_asked_by_the_node_itself(&bench, &layer).await;
    a_dropped_job_leaves_nothing(&bench).await;
    a_place_is_left_with_its_container(&bench).await;
    a_node_that_ends_leaves_nothing(&bench).await;
    what_a_former_life_left_is_removed(&bench).await;
    a_stronger_runtime_is_used_by_its_name(&bench).await;
    egress::domains_are_reached_by_the_proxy_only(&bench).await;
    egress::tunnels_lead_to_granted_domains_only(&bench).await;
    nothing_is_left(&bench).await;
}

fn settings(engine: &Engine) -> ContainerSettings {
    ContainerSettings {
        socket: Some(engine.socket.clone()),
        node: "this".to_owned(),
        cpu_millis: 1000,
        disk_mb: 64,
        pids: 64,
        grace: Duration::from_millis(300),
        ..ContainerSettings::default()
    }
}

/// What fetches images: also from this machine, or from public registries only.
fn fetcher(folder: &Path, allow_private_addresses: bool) -> Fetcher {
    let store = BlobStore::open(folder.join("blobs")).unwrap();
    Fetcher::new(FetchPolicy { allow_private_addresses, ..FetchPolicy::default() }, store).unwrap()
}

async fn detect(settings: ContainerSettings, fetcher: Fetcher) -> ContainerRuntime {
    ContainerRuntime::detect(settings, fetcher).await.unwrap().unwrap()
}

impl Bench {
    async fn new(engine: Engine, settings: ContainerSettings) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let runtime = detect(settings, fetcher(folder.path(), true)).await;
        let layer = images::busybox_layer();
        let config = images::config(images::architecture(), &[&layer]);
        let image = images::docker_archive(&config, &[&layer], "docker.io/library/stolen:latest");
        Self { engine, runtime: Arc::new(runtime), folder, image }
    }

    /// A job that runs `script` on the input `input`, in a folder of its own.
    fn job(&self, script: &str) -> (Job, TempDir) {
        let params = ContainerParams {
            args: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            env: [("GIVEN".to_owned(), "by the task".to_owned())].into(),
            disk_mb: Some(16),
            ..ContainerParams::default()
        };
        self.job_with(params, &self.image)
    }

    fn job_with(&self, params: ContainerParams, image: &[u8]) -> (Job, TempDir) {
        let folder = tempfile::tempdir_in(self.folder.path()).unwrap();
        let input = folder.path().join("input");
        std::fs::write(&input, "the input").unwrap();
        let job = Job {
            params: Params::Container(params).to_canonical(),
            model: Model {
                files: ModelFiles::File(images::write(self.folder.path(), image)),
                digest: images::digest(image),
            },
            input,
            limits: Limits { wall: PATIENCE, memory_bytes: 64 << 20, output_bytes: 4 << 20 },
            gpus: Vec::new(),
            folder: folder.path().to_owned(),
            label: "0xtask.1".to_owned(),
        };
        (job, folder)
    }

    async fn run(&self, job: Job) -> Result<Vec<u8>, RunError> {
        run(&self.runtime, job, &Context::default()).await
    }

    async fn containers(&self) -> Vec<String> {
        let options = ListContainersOptionsBuilder::default().all(true).build();
        let containers = match self.client().list_containers(Some(options)).await {
            Ok(containers) => containers,
            // The library does not know what Podman calls a container between running and being gone.
            Err(bollard::errors::Error::JsonDataError { .. }) => return vec!["one that stops".to_owned()],
            Err(error) => panic!("{error}"),
        };
        containers.into_iter().flat_map(|container| container.names.unwrap_or_default()).collect()
    }

    /// Waits until there is no container.
    async fn empty(&self, otherwise: &str) {
        let gone = async {
            while !self.containers().await.is_empty() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, gone).await.expect(otherwise);
    }

    fn client(&self) -> Docker {
        let socket = self.engine.socket.to_str().unwrap();
        Docker::connect_with_unix(socket, 60, &bollard::ClientVersion { major_version: 1, minor_version: 40 })
            .unwrap()
    }
}

async fn run(runtime: &ContainerRuntime, job: Job, context: &Context) -> Result<Vec<u8>, RunError> {
    let ended = tokio::time::timeout(PATIENCE, runtime.run(job, context)).await.expect("it never ended");
    ended.map(|output| match output {
        Output::Bytes(bytes) => bytes,
        Output::File(path) => std::fs::read(path).unwrap(),
    })
}

async fn programs_come_to_what_they_should(bench: &Bench) {
    let cases: [(&str, Expected); 19] = [
        ("cat /in/input > /out/copy", Ok("the input")),
        ("echo not this; echo this > /out/it", Ok("this\n")),
        ("cat /in/input; echo noise >&2", Ok("the input")),
        ("echo $GIVEN", Ok("by the task\n")),
        ("/bin/busybox-setuid id -u; id -g", Ok("65532\n65532\n")),
        ("echo first >&2; echo last >&2; exit 3", Err(RunCode::ExitNonzero)),
        // Memory: of the program itself, and of a child.
        ("exec dd if=/dev/zero of=/dev/null bs=200M count=1", Err(RunCode::OutOfMemory)),
        ("dd if=/dev/zero of=/dev/null bs=200M count=1; exit $?", Err(RunCode::OutOfMemory)),
        // Processes.
        ("while :; do sleep 60 & done", Err(RunCode::ExitNonzero)),
        // The disk: one file, many files, files without content, memory that looks like a disk, the image.
        ("exec dd if=/dev/zero of=/out/a bs=1M count=2000", Err(RunCode::OutOfDisk)),
        ("i=0; while :; do head -c 4000000 /dev/zero > /out/$i; i=$((i+1)); done", Err(RunCode::OutOfDisk)),
        (
            "head -c 30000000 /dev/zero > /out/a; true; for i in 1 2 3 4 5; do head -c 6000000 /dev/zero > /out/$i; done",
            Err(RunCode::OutOfDisk),
        ),
        (
            "set -e; for i in 1 2 3 4 5; do head -c 6000000 /dev/zero > /tmp/$i; done",
            Err(RunCode::ExitNonzero),
        ),
        ("echo x > /x", Err(RunCode::ExitNonzero)),
        // The result.
        ("head -c 5000000 /dev/zero > /out/a", Err(RunCode::OutputTooLarge)),
        ("ln -s /etc/shadow /out/a", Err(RunCode::BadOutput)),
        ("mkfifo /out/a", Err(RunCode::BadOutput)),
        ("yes", Err(RunCode::OutputTooLarge)),
        ("rm -r /out && ln -s /etc /out", Err(RunCode::ExitNonzero)),
    ];
    let mut jobs = Vec::new();
    for (script, expected) in cases {
        jobs.push(async move {
            let (job, _folder) = bench.job(script);
            let ended = bench.run(job).await.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            let fits = match (&ended, &expected) {
                (Ok(text), Ok(expected)) => text == expected,
                (Err(error), Err(code)) => error.code == *code,
                (Ok(_), Err(_)) | (Err(_), Ok(_)) => false,
            };
            if script.contains("last") {
                assert_eq!(ended.as_ref().unwrap_err().message, "exit status 3: last");
            }
            (!fits).then(|| format!("{script}: {ended:?}, not {expected:?}"))
        });
    }
    // Some at once: what one does must not touch the others.
    let mut wrong = Vec::new();
    for some in in_groups(jobs, AT_ONCE) {
        wrong.extend(futures_util::future::join_all(some).await.into_iter().flatten());
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    a_folder_is_packed(bench).await;

    let (mut job, _folder) = bench.job("true");
    job.params =
        Params::Container(ContainerParams { args: vec!["/nope".into()], ..ContainerParams::default() })
            .to_canonical();
    assert_eq!(bench.run(job).await.unwrap_err().code, RunCode::BadModel);
}

/// Also what the program has put out of its own reach.
async fn a_folder_is_packed(bench: &Bench) {
    let (job, _folder) = bench.job("mkdir /out/b; echo 1 > /out/b/c; echo 2 > /out/a; chmod 0 /out/b");
    let packed = bench.run(job).await.unwrap();
    let mut archive = tar::Archive::new(packed.as_slice());
    let names = archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string());
    assert_eq!(names.collect::<Vec<_>>(), ["a", "b/", "b/c"]);
}

fn in_groups<T>(mut all: Vec<T>, size: usize) -> Vec<Vec<T>> {
    let mut groups = Vec::new();
    while !all.is_empty() {
        let rest = all.split_off(all.len().min(size));
        groups.push(std::mem::replace(&mut all, rest));
    }
    groups
}

async fn the_surroundings_are_bare(bench: &Bench) {
    let script = "grep -E '^(CapPrm|CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; \
                  ls /sys/class/net; ls /dev | grep -E '^(sd|vd|nvme|kvm|fuse|mem)'; \
                  for f in / /etc /run/x/ /dev /in /data/x/ /proc/sys/kernel; do \
                  (echo x > $f/made) 2>/dev/null && echo wrote $f; done; hostname; \
                  (mknod /tmp/disk b 8 0) 2>/dev/null && echo a device; \
                  wget -q -T 2 http://10.0.0.1/ 2>/dev/null && echo a network; echo end";
    let (job, _folder) = bench.job(script);
    let said = String::from_utf8(bench.run(job).await.unwrap()).unwrap();
    let nothing = "0000000000000000";
    let expected = format!(
        "CapPrm:\t{nothing}\nCapEff:\t{nothing}\nCapBnd:\t{nothing}\nNoNewPrivs:\t1\nSeccomp:\t2\nlo\ntask\nend\n"
    );
    assert_eq!(said, expected);
}

async fn stubborn_programs_are_ended(bench: &Bench) {
    let (mut job, _folder) = bench.job("trap '' TERM INT HUP; while :; do sleep 1; done");
    job.limits.wall = Duration::from_secs(2);
    let started = Instant::now();
    assert_eq!(bench.run(job).await.unwrap_err().code, RunCode::TimedOut);
    assert!(started.elapsed() < Duration::from_secs(60), "it went on for {:?}", started.elapsed());

    let (job, _folder) = bench.job("echo ready; while :; do sleep 1; done");
    let context = Context::default();
    let cancelling = async {
        let mut next = context.logs.next();
        next.wait_for(|next| *next > 0).await.unwrap();
        context.cancel.cancel();
    };
    let (ended, ()) = tokio::join!(run(&bench.runtime, job, &context), cancelling);
    assert_eq!(ended.unwrap_err().code, RunCode::Cancelled);
    assert_eq!(context.logs.since(0, 9)[0].text, "ready");
}

async fn archives_are_checked(bench: &Bench, layer: &[u8]) {
    let params = || ContainerParams {
        args: ["/bin/cat", "/in/input"].map(str::to_owned).to_vec(),
        ..ContainerParams::default()
    };
    let architecture = images::architecture();
    let good = images::config(architecture, &[layer]);
    let (job, _folder) = bench.job_with(params(), &images::oci_archive(&good, layer));
    assert_eq!(bench.run(job).await.unwrap(), b"the input");

    let whole = images::docker_archive(&good, &[layer], "x:y");
    let with = |entry: images::Entry<'_>| [images::pack(&[entry]), whole.clone()].concat();
    let end = 1024;
    let prefixed = |entry| {
        let packed = with(entry);
        // Without the end of the first archive, both are one.
        let first = packed.len() - whole.len();
        [&packed[..first - end], &packed[first..]].concat()
    };
    let link = |name, kind, to| images::Entry { kind, link: to, ..images::file(name, b"") };
    let escape = bench.folder.path().join("escaped");
    let evil = images::pack(&[images::file(&format!("../../../../../../..{}", escape.display()), b"x")]);
    let cases = [
        ("no tar", b"not a tar".repeat(1000), RunCode::BadModel),
        ("no image", images::pack(&[images::file("a", b"b")]), RunCode::BadModel),
        ("cut off", whole[..whole.len() / 2].to_vec(), RunCode::BadModel),
        ("another layer", images::docker_archive(&good, &[&images::pack(&[])], "x:y"), RunCode::BadModel),
        ("a layer too few", images::docker_archive(&good, &[], "x:y"), RunCode::BadModel),
        ("upwards", prefixed(images::file("../../evil", b"x")), RunCode::BadModel),
        ("absolute", prefixed(images::file("/etc/evil", b"x")), RunCode::BadModel),
        ("a hard link", prefixed(link("a", tar::EntryType::Link, "/etc/shadow")), RunCode::BadModel),
        ("a device", prefixed(link("a", tar::EntryType::Block, "")), RunCode::BadModel),
        ("a name twice", prefixed(images::file("manifest.json", b"[]")), RunCode::BadModel),
        (
            "a link in place of a layer",
            {
                let config = good.to_string();
                let manifest = r#"[{"Config":"c","RepoTags":[],"Layers":["l"]}]"#;
                images::pack(&[
                    images::file("manifest.json", manifest.as_bytes()),
                    images::file("c", config.as_bytes()),
                    link("l", tar::EntryType::Symlink, "/etc/shadow"),
                ])
            },
            RunCode::BadModel,
        ),
        (
            "another processor",
            images::docker_archive(&images::config("s390x", &[layer]), &[layer], "x:y"),
            RunCode::ImageWithoutPlatform,
        ),
        (
            "a layer that leads out",
            images::docker_archive(&images::config(architecture, &[&evil]), &[&evil], "x:y"),
            RunCode::BadModel,
        ),
    ];
    for (what, image, code) in cases {
        let (job, _folder) = bench.job_with(params(), &image);
        let error = bench.run(job).await.expect_err(what);
        assert_eq!(error.code, code, "{what}: {error}");
    }
    assert!(!escape.exists());
    let stolen = bench.client().inspect_image("docker.io/library/stolen:latest").await;
    assert!(stolen.is_err(), "a name in an archive became a name at the engine");
}

/// What engines refuse because of the task is the task's fault.
async fn a_task_cannot_make_its_host_fail(bench: &Bench, layer: &[u8]) {
    let volume = |path: &str| json!({ "Volumes": { path: {} } });
    let folder = |path: &str| json!({ "WorkingDir": path });
    let long = format!("/{}", "x".repeat(300));
    let cases = [
        volume("/"),
        volume("/proc"),
        volume("/proc/x/y"),
        volume("/dev"),
        volume("/etc/passwd"),
        volume("/etc/passwd/x"),
        volume(&long),
        folder("/etc/passwd"),
        folder("no/root"),
        folder("/a\0b"),
        folder(&long),
        json!({ "Env": ["=x"] }),
    ];
    for case in cases {
        let mut config = images::config(images::architecture(), &[layer]);
        config["config"].as_object_mut().unwrap().extend(case.as_object().unwrap().clone());
        let params = ContainerParams { args: vec!["/bin/true".to_owned()], ..ContainerParams::default() };
        let (job, _folder) = bench.job_with(params, &images::docker_archive(&config, &[layer], "x:y"));
        let error = bench.run(job).await.expect_err(&case.to_string());
        assert_eq!(error.code, RunCode::BadModel, "{case}: {error}");
    }

    let with_cpu = |cpu_millis| {
        let params = ContainerParams {
            args: ["/bin/cat", "/in/input"].map(str::to_owned).to_vec(),
            cpu_millis,
            ..ContainerParams::default()
        };
        bench.job_with(params, &bench.image)
    };
    let (job, _folder) = with_cpu(Some(9));
    assert_eq!(bench.run(job).await.unwrap_err().code, RunCode::BadParams);
    let (job, _folder) = with_cpu(Some(10));
    assert_eq!(bench.run(job).await.unwrap(), b"the input");
    // A node that gives more processors than there are.
    let settings = ContainerSettings { cpu_millis: 1_024_000, ..settings(&bench.engine) };
    let runtime = detect(settings, fetcher(bench.folder.path(), true)).await;
    let (job, _folder) = with_cpu(None);
    assert_eq!(run(&runtime, job, &Context::default()).await.unwrap(), b"the input");
}

async fn registries_are_asked_by_the_node_itself(bench: &Bench, layer: &[u8]) {
    let registry = Registry::start().await;
    let config = |name: &str| {
        let mut config = images::config(images::architecture(), &[layer]);
        config["author"] = name.into();
        config
    };
    let job = |digest: &str| {
        let (mut job, folder) = bench.job("cat /in/input");
        job.model = Model { files: ModelFiles::Image(registry.reference(digest)), digest: digest.to_owned() };
        (job, folder)
    };
    let digest = registry.add(&config("one"), layer);
    for _ in 0..2 {
        let (job, _folder) = job(&digest);
        assert_eq!(bench.run(job).await.unwrap(), b"the input");
        assert_eq!(registry.asked(), 3, "for manifest, configuration and layer, and not again");
    }

    let (absent, _folder) = job(&"0".repeat(64));
    assert_eq!(bench.run(absent).await.unwrap_err().code, RunCode::ImageUnavailable);
    let foreign = registry.add(&images::config("s390x", &[layer]), layer);
    let (foreign, _folder) = job(&foreign);
    assert_eq!(bench.run(foreign).await.unwrap_err().code, RunCode::ImageWithoutPlatform);
    let forged = registry.add(&config("forged"), b"another layer");
    let (forged, _folder) = job(&forged);
    assert_eq!(bench.run(forged).await.unwrap_err().code, RunCode::BadModel);

    let other = registry.add(&config("two"), layer);
    let asked = registry.asked();
    let guarded = detect(settings(&bench.engine), fetcher(bench.folder.path(), false)).await;
    let (job, _folder) = job(&other);
    let error = run(&guarded, job, &Context::default()).await.unwrap_err();
    assert_eq!(error.code, RunCode::ImageUnavailable, "{error}");
    assert!(error.message.contains("not a public address"), "{error}");
    assert_eq!(registry.asked(), asked, "a registry in the operator's network was asked");
}

async fn a_dropped_job_leaves_nothing(bench: &Bench) {
    let (job, _folder) = bench.job("echo ready; while :; do sleep 1; done");
    let context = Context::default();
    let mut next = context.logs.next();
    tokio::select! {
        ended = run(&bench.runtime, job, &context) => panic!("it ended: {ended:?}"),
        started = next.wait_for(|next| *next > 0) => drop(started.unwrap()),
    }
    bench.empty("the container of a dropped job stays").await;
}

/// What holds a job's place tells when it is left.
struct Left(Option<tokio::sync::oneshot::Sender<()>>);

impl Drop for Left {
    fn drop(&mut self) {
        let _ = self.0.take().unwrap().send(());
    }
}

async fn a_place_is_left_with_its_container(bench: &Bench) {
    bench.empty("a container of another job stays").await;
    for script in ["echo done", "exit 1"] {
        let (left, leaving) = tokio::sync::oneshot::channel();
        let place = Place::new(Arc::new(Left(Some(left))));
        let (job, folder) = bench.job(script);
        let ended = run(&bench.runtime, job, &Context { place, ..Context::default() }).await;
        assert_eq!(ended.is_ok(), script == "echo done", "{ended:?}");
        // Whatever the job had on the disk can go before its container has gone.
        folder.close().unwrap();
        tokio::time::timeout(PATIENCE, leaving).await.expect("its place stays taken").unwrap();
        assert_eq!(bench.containers().await, Vec::<String>::new(), "its place is free, and it is there");
    }
}

async fn a_node_that_ends_leaves_nothing(bench: &Bench) {
    let folder = tempfile::tempdir_in(bench.folder.path()).unwrap();
    let script = "trap '' TERM INT HUP; echo ready; while :; do sleep 1; done";
    let params = ContainerParams {
        args: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        ..ContainerParams::default()
    };
    let mut request = compute_request(folder.path(), 1, "upper", "the input");
    let image = images::write(folder.path(), &bench.image);
    request["task"]["model_cid"] = format!("file://{}", image.display()).into();
    request["task"]["config"]["runtime"] = "container".into();
    request["task"]["config"]["params"] = Params::Container(params).to_canonical().into();

    let socket = bench.engine.socket.to_str().unwrap();
    let node = Process::start(folder.path(), &["--container-socket", socket]);
    let (status, answer) = node.api.json(Method::POST, "/compute", Some(&request)).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{answer}");
    let logs = format!("/logs/{}?follow=true", task_id(1));
    let mut logs = node.api.send(Method::GET, &logs, None).await;
    let mut said = Vec::new();
    let ready = async {
        while !String::from_utf8_lossy(&said).contains("ready") {
            said.extend(logs.chunk().await.unwrap().expect("it ended"));
        }
    };
    tokio::time::timeout(PATIENCE, ready).await.expect("it says nothing");
    // An open connection would keep the node a little longer.
    drop(logs);
    node.signal("TERM");
    assert!(node.end().success());
    assert_eq!(bench.containers().await, Vec::<String>::new(), "a container outlives its node");
}

async fn what_a_former_life_left_is_removed(bench: &Bench) {
    let client = bench.client();
    let (job, _folder) = bench.job("true");
    let image = format!("localhost/zorai-image:{}", job.model.digest);
    for (name, node) in [("old", "this"), ("other", "another")] {
        let labels = [("zorai.node", node), ("zorai.life", "former"), ("zorai.task", "0xtask.1")];
        let body = bollard::models::ContainerCreateBody {
            image: Some(image.clone()),
            labels: Some(HashMap::from(labels.map(|(name, value)| (name.to_owned(), value.to_owned())))),
            host_config: Some(bollard::models::HostConfig {
                network_mode: Some("none".to_owned()),
                ..bollard::models::HostConfig::default()
            }),
            ..bollard::models::ContainerCreateBody::default()
        };
        let options = bollard::query_parameters::CreateContainerOptionsBuilder::default().name(name).build();
        client.create_container(Some(options), body).await.unwrap();
    }
    bench.runtime.recover().await.unwrap();
    assert_eq!(bench.containers().await, ["/other"]);
    client.remove_container("other", None).await.unwrap();
}

async fn a_stronger_runtime_is_used_by_its_name(bench: &Bench) {
    let named = |name: &str| ContainerSettings { runtime: Some(name.to_owned()), ..settings(&bench.engine) };
    let missing = ContainerRuntime::detect(named("missing"), fetcher(bench.folder.path(), false)).await;
    assert!(matches!(missing.err(), Some(DetectError::NoRuntime(name)) if name == "missing"));
    let created = || {
        let calls = std::fs::read_to_string(&bench.engine.witnessed).unwrap_or_default();
        calls.lines().filter(|call| call.split(' ').any(|word| word == "create")).count()
    };
    assert_eq!(created(), 0, "the engine's own is another");
    if bench.runtime.report().name == EngineName::Podman {
        // It would run the job by runc all the same.
        let refused = ContainerRuntime::detect(named(WITNESS), fetcher(bench.folder.path(), false)).await;
        let refused = refused.err().expect("Podman takes no runtime");
        assert!(
            matches!(&refused, DetectError::PodmansRuntime { default, .. } if default == "runc"),
            "{refused}"
        );
        detect(named("runc"), fetcher(bench.folder.path(), false)).await;
        return;
    }
    let runtime = detect(named(WITNESS), fetcher(bench.folder.path(), false)).await;
    let (job, _folder) = bench.job("echo ran");
    assert_eq!(run(&runtime, job, &Context::default()).await.unwrap(), b"ran\n");
    assert_eq!(created(), 1);
}

async fn nothing_is_left(bench: &Bench) {
    bench.empty("a container stays").await;
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    let folder = bench.folder.path().display().to_string();
    assert!(!mounts.contains(&folder), "a job's folder is mounted still");
    assert!(Path::new(&folder).exists());
}
