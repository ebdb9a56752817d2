//! A PostgreSQL server of the tests' own: in a temporary folder, on a Unix socket there, stopped at the end.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// How a server is to be started.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// Every commit is flushed.
    Full,
    /// Nothing is: what the tests are about does not need it.
    None,
}

/// A running server.
pub(crate) struct Server {
    dir: tempfile::TempDir,
    port: u16,
    settings: Vec<String>,
    process: Option<Child>,
    databases: AtomicU32,
}

impl Server {
    pub(crate) fn start(durability: Durability) -> Self {
        let settings: &[&str] = match durability {
            Durability::Full => &["listen_addresses="],
            Durability::None => &["listen_addresses=", "fsync=off", "full_page_writes=off"],
        };
        // A Unix socket's name has the port in it, too.
        Self::start_with(5432, settings, &[])
    }

    /// A server that speaks TLS with this certificate and key, both PEM, and its port on the loopback address.
    pub(crate) fn start_tls(certificate: &str, key: &str) -> (Self, u16) {
        // Free now; nobody else is known to want it.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let settings = ["listen_addresses=127.0.0.1", "ssl=on", "fsync=off"];
        (Self::start_with(port, &settings, &[("server.crt", certificate), ("server.key", key)]), port)
    }

    fn start_with(port: u16, settings: &[&str], files: &[(&str, &str)]) -> Self {
        // Sockets' paths are short.
        let dir = tempfile::Builder::new().prefix("pg").tempdir_in("/tmp").unwrap();
        give_away(dir.path());
        let data = dir.path().join("data");
        let made = run(as_nobody("initdb")
            .args(["--username=market", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync", "-D"])
            .arg(&data));
        assert!(made.status.success(), "initdb: {}", text(&made));
        for (name, text) in files {
            let path = data.join(name);
            std::fs::write(&path, text).unwrap();
            // Or the server takes no key from it.
            assert!(run(Command::new("chmod").arg("600").arg(&path)).status.success());
            give_away(&path);
        }
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let mut server = Self { dir, port, settings, process: None, databases: AtomicU32::new(0) };
        server.launch();
        server
    }

    /// A connection string of a new, empty database.
    pub(crate) fn database(&self) -> String {
        let name = format!("market_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let made = run(self.client("createdb").arg("--username=market").arg(&name));
        assert!(made.status.success(), "createdb: {}", text(&made));
        let socket = self.dir.path().to_str().unwrap().replace('/', "%2F");
        format!("postgres://market:open-sesame@{socket}/{name}")
    }

    /// Ends the server without any warning to its clients or its files.
    pub(crate) fn kill(&mut self) {
        self.control(&["stop", "--mode=immediate"]);
        self.reap();
    }

    /// Starts it again on the same data.
    pub(crate) fn launch(&mut self) {
        let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
        let mut server = as_nobody("postgres");
        server.arg("-D").arg(self.dir.path().join("data")).arg("-k").arg(self.dir.path());
        server.args(["-c", "shared_buffers=32MB", "-p", &self.port.to_string()]);
        server.args(self.settings.iter().flat_map(|setting| ["-c", setting]));
        let process = server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.process = Some(process);
        // It answers once its socket is there.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while !self.is_ready() {
            let log = || std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            assert!(std::time::Instant::now() < deadline, "the server does not start: {}", log());
            std::thread::yield_now();
        }
    }

    fn is_ready(&self) -> bool {
        let asked = run(self.client("pg_isready").arg("--quiet"));
        asked.status.success()
    }

    /// A program that connects.
    pub(crate) fn client(&self, name: &str) -> Command {
        let mut command = Command::new(binary(name));
        command.arg("--host").arg(self.dir.path()).args(["--port", &self.port.to_string()]);
        command
    }

    fn control(&self, arguments: &[&str]) {
        let done = run(as_nobody("pg_ctl").args(arguments).arg("-D").arg(self.dir.path().join("data")));
        assert!(done.status.success(), "pg_ctl: {}", text(&done));
    }

    fn reap(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.wait().unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.process.is_some() {
            let data = self.dir.path().join("data");
            let _ = as_nobody("pg_ctl").args(["stop", "--mode=immediate", "-D"]).arg(data).output();
            self.reap();
        }
    }
}

/// A program of PostgreSQL's, to be run as a user that it accepts: it refuses to run as root.
fn as_nobody(name: &str) -> Command {
    let binary = binary(name);
    let mut command = if is_root() {
        let mut command = Command::new("runuser");
        command.args(["-u", "nobody", "--"]).arg(binary);
        command
    } else {
        Command::new(binary)
    };
    command.current_dir("/").env("LC_ALL", "C.UTF-8");
    command
}

fn give_away(dir: &Path) {
    if is_root() {
        let done = run(Command::new("chown").arg("nobody").arg(dir));
        assert!(done.status.success(), "chown: {}", text(&done));
    }
}

fn is_root() -> bool {
    run(Command::new("id").arg("-u")).stdout.trim_ascii() == b"0"
}

/// Where a program of PostgreSQL's is: in PATH, or where Debian has its server.
fn binary(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&path).map(|dir| dir.join(name));
    // Debian's wrappers in PATH find clusters of the system only; its real programs come first.
    let mut of_debian: Vec<_> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|version| Some(version.ok()?.path().join("bin").join(name)))
        .collect();
    of_debian.sort();
    of_debian.into_iter().rev().chain(in_path).find(|path| path.is_file()).unwrap_or_else(|| {
        panic!("these tests need PostgreSQL's {name}: install it (apt-get install postgresql)")
    })
}

fn run(command: &mut Command) -> Output {
    let program: &OsStr = command.get_program();
    let program = program.to_owned();
    command.output().unwrap_or_else(|error| panic!("{}: {error}", program.display()))
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
}
