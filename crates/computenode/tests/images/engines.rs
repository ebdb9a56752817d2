//! Container engines that a test starts for itself, in a folder of its own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long an engine may take to answer, or to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// What Podman needs where nothing is set up for it: runc with groups by itself, and limits that can be had without the
/// right to raise them.
const PODMAN_CONFIG: &str = r#"
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"#;

/// The name of an OCI runtime besides the engine's own: runc, with a line for each call.
pub(crate) const WITNESS: &str = "witness";

/// The name of gVisor's OCI runtime.
pub(crate) const GVISOR: &str = "runsc";

/// The user of the host that is the first of a container's, where the engine gives them users of their own.
pub(crate) const FIRST_USER: u32 = 200_000;

/// The user in whose name Docker has users to give; it takes no user for that which is its own.
const DOCKERS_USER: &str = "daemon";

/// An engine, which ends when this is dropped.
pub(crate) struct Engine {
    pub(crate) socket: PathBuf,
    /// What [`WITNESS`] was called with.
    pub(crate) witnessed: PathBuf,
    process: Child,
    folder: TempDir,
}

impl Engine {
    /// Starts Podman's service; `None`, with the reason printed, where that cannot be.
    pub(crate) fn podman() -> Option<Self> {
        Self::podman_as(Command::new("podman"), folder("podman", &["podman", "runc", "conmon"])?)
    }

    /// As [`Self::podman`], where Podman has users of the host to give to the users of its containers.
    pub(crate) fn podman_with_users() -> Option<Self> {
        let folder = folder("podman", &["podman", "runc", "conmon", "unshare"])?;
        Self::podman_as(with_users("podman", &folder)?, folder)
    }

    fn podman_as(mut command: Command, folder: TempDir) -> Option<Self> {
        let (root, socket) = (folder.path().to_owned(), folder.path().join("engine.sock"));
        let witness = witness(&root);
        let config = format!("{PODMAN_CONFIG}[engine.runtimes]\n{WITNESS} = [\"{}\"]\n", witness.display());
        std::fs::write(root.join("containers.conf"), config).unwrap();
        command.env("CONTAINERS_CONF", root.join("containers.conf")).arg("--root").arg(root.join("root"));
        command.arg("--runroot").arg(root.join("run")).args(["--storage-driver", "overlay"]);
        command.args(["system", "service", "-t", "0"]).arg(format!("unix://{}", socket.display()));
        Some(Self::start(command, folder, socket))
    }

    /// Starts Docker's daemon; `None`, with the reason printed, where that cannot be.
    pub(crate) fn docker() -> Option<Self> {
        Self::docker_as(Command::new("dockerd"), folder("docker", &["dockerd", "runc", "containerd"])?)
    }

    /// As [`Self::docker`], with each user of a container another user of the host.
    pub(crate) fn docker_with_users() -> Option<Self> {
        let folder = folder("docker", &["dockerd", "runc", "containerd", "unshare"])?;
        let mut command = with_users("dockerd", &folder)?;
        command.arg(format!("--userns-remap={DOCKERS_USER}"));
        Self::docker_as(command, folder)
    }

    /// As [`Self::docker`], with gVisor as another OCI runtime, [`GVISOR`].
    pub(crate) fn docker_with_gvisor() -> Option<Self> {
        let folder = folder("docker", &["dockerd", "runc", "containerd", "runsc"])?;
        let program = folder.path().join(GVISOR);
        // Tracing works wherever processes do. Of the network there is nothing to take over: a job has none.
        script(&program, "exec runsc --platform=ptrace --network=none \"$@\"");
        let mut command = Command::new("dockerd");
        command.arg("--add-runtime").arg(format!("{GVISOR}={}", program.display()));
        Self::docker_as(command, folder)
    }

    fn docker_as(mut command: Command, folder: TempDir) -> Option<Self> {
        let (root, socket) = (folder.path().to_owned(), folder.path().join("engine.sock"));
        command.args(["--bridge=none", "--iptables=false", "--ip6tables=false"]);
        command.arg("--add-runtime").arg(format!("{WITNESS}={}", witness(&root).display()));
        command.arg("--data-root").arg(root.join("root")).arg("--exec-root").arg(root.join("exec"));
        command.arg("--pidfile").arg(root.join("pid")).arg("-H").arg(format!("unix://{}", socket.display()));
        Some(Self::start(command, folder, socket))
    }

    fn start(mut command: Command, folder: TempDir, socket: PathBuf) -> Self {
        let log = folder.path().join("log");
        let file = std::fs::File::create(&log).unwrap();
        // Nothing of the surroundings leads an engine elsewhere, or into its containers.
        for name in
            ["DOCKER_HOST", "CONTAINER_HOST", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"]
        {
            command.env_remove(name);
        }
        // Where it leaves notes of its own, such as conmon's on memory.
        command.current_dir(folder.path());
        let process = command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file).spawn();
        let witnessed = folder.path().join("witnessed");
        let engine = Self { socket, witnessed, process: process.unwrap(), folder };
        let started = Instant::now();
        while std::os::unix::net::UnixStream::connect(&engine.socket).is_err() {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            assert!(started.elapsed() < PATIENCE, "the engine does not start: {said}");
            std::thread::sleep(Duration::from_millis(20));
        }
        engine
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Docker ends its own children only when it is asked to end.
        let asked = Command::new("kill").arg(self.process.id().to_string()).status();
        let started = Instant::now();
        while asked.as_ref().is_ok_and(|status| status.success())
            && started.elapsed() < PATIENCE
            && matches!(self.process.try_wait(), Ok(None))
        {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
        // Podman leaves its storage mounted on itself, and what is mounted cannot be removed.
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
        let places = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        let mut ours: Vec<&str> =
            places.filter(|place| Path::new(place).starts_with(self.folder.path())).collect();
        ours.reverse();
        let _ = Command::new("umount").arg("--lazy").args(ours).stderr(Stdio::null()).status();
    }
}

/// The command `program`, which sees lists of users that it may give to containers. The host's own lists stay as they are.
#[expect(clippy::print_stdout, reason = "a test that is skipped says why")]
fn with_users(program: &str, folder: &TempDir) -> Option<Command> {
    const LISTS: [&str; 2] = ["/etc/subuid", "/etc/subgid"];
    if let Some(list) = LISTS.iter().find(|list| !Path::new(list).exists()) {
        println!("skipped for {program} with users of its own: there is no {list}");
        return None;
    }
    let users = folder.path().join("users");
    // Docker looks for the user that it is told, Podman for this name.
    std::fs::write(&users, format!("{DOCKERS_USER}:{FIRST_USER}:65536\ncontainers:{FIRST_USER}:655360\n"))
        .unwrap();
    let script =
        r#"for list in /etc/subuid /etc/subgid; do mount --bind "$0" $list || exit 1; done; exec "$@""#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script]).arg(users).arg(program);
    Some(command)
}

/// Writes the program [`WITNESS`] into a folder.
fn witness(folder: &Path) -> PathBuf {
    let program = folder.join(WITNESS);
    let told = folder.join("witnessed");
    script(&program, &format!("echo \"$@\" >> {}\nexec runc \"$@\"", told.display()));
    program
}

/// Writes a program.
fn script(program: &Path, content: &str) {
    use std::os::unix::fs::PermissionsExt;

    std::fs::write(program, format!("#!/bin/sh\n{content}\n")).unwrap();
    std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// A folder for an engine whose programs are all installed, where this process may run it.
#[expect(clippy::print_stdout, reason = "a test that is skipped says why")]
fn folder(name: &str, programs: &[&str]) -> Option<TempDir> {
    let places = ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/libexec/podman"].map(Path::new);
    for program in programs {
        if !places.iter().any(|place| place.join(program).exists()) {
            println!("skipped for {name}: {program} is not installed");
            return None;
        }
    }
    if std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").unwrap()) != 0 {
        println!("skipped for {name}: its service is started by root only");
        return None;
    }
    Some(tempfile::Builder::new().prefix("zorai").tempdir().unwrap())
}
