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
        let folder = folder("podman", &["podman", "runc", "conmon"])?;
        let (root, socket) = (folder.path().to_owned(), folder.path().join("engine.sock"));
        let witness = witness(&root);
        let config = format!("{PODMAN_CONFIG}[engine.runtimes]\n{WITNESS} = [\"{}\"]\n", witness.display());
        std::fs::write(root.join("containers.conf"), config).unwrap();
        let mut command = Command::new("podman");
        command.env("CONTAINERS_CONF", root.join("containers.conf")).arg("--root").arg(root.join("root"));
        command.arg("--runroot").arg(root.join("run")).args(["--storage-driver", "overlay"]);
        command.args(["system", "service", "-t", "0"]).arg(format!("unix://{}", socket.display()));
        Some(Self::start(command, folder, socket))
    }

    /// Starts Docker's daemon; `None`, with the reason printed, where that cannot be.
    pub(crate) fn docker() -> Option<Self> {
        let folder = folder("docker", &["dockerd", "runc", "containerd"])?;
        let (root, socket) = (folder.path().to_owned(), folder.path().join("engine.sock"));
        let mut command = Command::new("dockerd");
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

/// Writes the program [`WITNESS`] into a folder.
fn witness(folder: &Path) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;

    let program = folder.join(WITNESS);
    let told = folder.join("witnessed");
    std::fs::write(&program, format!("#!/bin/sh\necho \"$@\" >> {}\nexec runc \"$@\"\n", told.display()))
        .unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    program
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
