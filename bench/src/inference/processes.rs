//! Programs that are measured: started, waited for, and asked what they cost.

use std::collections::HashMap;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// How long a program may take until it listens.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a program that does not listen yet is tried again.
const RETRY: Duration = Duration::from_millis(20);
/// The clock ticks of `/proc/PID/stat`: a hundred in a second on every machine that runs Linux.
const TICKS_PER_SEC: f64 = 100.0;

/// A running program, killed with all that it started when it is dropped.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) name: &'static str,
    child: Child,
}

impl Process {
    /// Starts a program, whose words go into a file.
    pub(super) fn start(folder: &Path, name: &'static str, command: &mut Command) -> anyhow::Result<Self> {
        let log = File::create(folder.join(format!("{name}.log")))?;
        let program = command.get_program().to_owned();
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Self { name, child })
    }

    /// Its id.
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it listens.
    pub(super) fn listens(&mut self, address: SocketAddr) -> anyhow::Result<()> {
        let begun = Instant::now();
        while TcpStream::connect(address).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status}", self.name);
            }
            if begun.elapsed() > PATIENCE {
                bail!("{} does not listen on {address}", self.name);
            }
            sleep(RETRY);
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Who ends in order ends their own children, too. All of this fails only where the process has ended already.
        let _ = Command::new("kill").arg(self.id().to_string()).stderr(Stdio::null()).status();
        let begun = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && begun.elapsed() < Duration::from_secs(2) {
            sleep(RETRY);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An address that nobody listens on. Nobody else is known to want it.
pub(super) fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// The seconds of processors that each of these processes has used, with all that it started.
pub(super) fn cpu_secs(processes: &[Process]) -> anyhow::Result<Vec<f64>> {
    let mut used = HashMap::new();
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc")? {
        let Some(id) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // It may have ended since.
        let Ok(stat) = fs::read_to_string(format!("/proc/{id}/stat")) else { continue };
        // The second field is the program's name in parentheses; the parent is the 4th, user and system time are the 14th and 15th.
        let (_, fields) = stat.rsplit_once(')').context("/proc/PID/stat: no name")?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let [_, parent, ..] = fields[..] else { bail!("/proc/{id}/stat is too short") };
        let ticks: Result<Vec<f64>, _> = fields.iter().skip(11).take(2).map(|field| field.parse()).collect();
        used.insert(id, ticks?.iter().sum::<f64>() / TICKS_PER_SEC);
        children.entry(parent.parse()?).or_default().push(id);
    }
    let of = |root: &Process| {
        let (mut sum, mut next) = (0.0, vec![root.id()]);
        while let Some(id) = next.pop() {
            sum += used.get(&id).copied().unwrap_or_default();
            next.extend(children.get(&id).into_iter().flatten());
        }
        sum
    };
    Ok(processes.iter().map(of).collect())
}
