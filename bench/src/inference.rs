//! Inference from a client to an engine and back, over the market and over what people assemble from a proxy and a tunnel, in turn.
//!
//! The programs that are measured, the engine and the clients are processes of their own; this one starts them and asks Linux what they
//! used. Each figure of a chain is compared to the tunnel's of the same round, since a shared machine is never the same for long.

mod chains;
mod child;
mod figures;
mod load;
mod processes;
mod sessions;
mod upstream;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::de::DeserializeOwned;
use taskmarket::{ContentHash, Domain, InferenceReceipt};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{ChildStdin, ChildStdout, Command};
use tokio::time::{sleep, timeout};
use wallet::Wallet;

use self::chains::{Chain, Identity, Programs};
pub(crate) use self::child::Part;
use self::figures::{MARKET, Sample, Samples, Signature};
use self::load::{Outcome, Shape};
use self::processes::cpu_secs;
use self::upstream::Pace;
use crate::relay::resident_kib;
use crate::report::{Cell, Table};
use crate::timing;

/// What is measured, and by how many clients.
const CASES: [(Shape, usize); 6] = [
    (Shape::Whole, 1),
    (Shape::Whole, 64),
    (Shape::Whole, 256),
    (Shape::Stream, 256),
    (Shape::Echo, 1),
    (Shape::Echo, 8),
];
/// After the last answer, until what was left for later is done: records are gathered for 300 ms.
const SETTLE: Duration = Duration::from_millis(800);
/// The longest that clients may take for anything.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long sessions are left alone before their memory is measured: longer than from one heartbeat to the next.
const IDLE: Duration = Duration::from_secs(12);
/// Requests for each session between the two times that memory is measured.
const TRAFFIC: u64 = 3;
/// Of the files that a process may open, the part that a relay keeps for sessions.
const SESSIONS_OF_FILES: (u64, u64) = (3, 8);
/// Signatures whose cost is measured.
const SIGNATURES: u32 = 4000;

/// What `market-bench inference` is told.
#[derive(clap::Args)]
pub(crate) struct Inference {
    #[command(flatten)]
    programs: Programs,
    #[command(flatten)]
    pace: Pace,
    /// The program nginx [default: as PATH has it].
    #[arg(long, value_name = "FILE", default_value = "nginx", hide_default_value = true)]
    nginx: PathBuf,
    /// The program rathole [default: as PATH has it].
    #[arg(long, value_name = "FILE", default_value = "rathole", hide_default_value = true)]
    rathole: PathBuf,
    /// LiteLLM's program, to measure it besides.
    #[arg(long, value_name = "FILE")]
    litellm: Option<PathBuf>,
    /// How often everything is measured, in turn.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How long clients ask each time, in milliseconds.
    #[arg(long, default_value_t = 4000, value_name = "MS")]
    millis: u64,
    /// Providers' sessions whose memory is measured, as far as the limit of open files lets them; 0 for none.
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    sessions: u64,
    /// Everything in half a minute, to see that it runs: too short for figures to rely on.
    #[arg(long)]
    quick: bool,
}

/// Measures all of it.
pub(crate) async fn measure(dir: &Path, mut plan: Inference) -> anyhow::Result<Vec<Table>> {
    if plan.quick {
        (plan.rounds, plan.millis, plan.sessions) = (1, 500, plan.sessions.min(200));
    }
    let files = rlimit::increase_nofile_limit(u64::MAX)?;
    let identity = Identity::new(dir)?;
    let (mut upstream, address) = Copy::start(&pace_arguments(plan.pace))?.says::<SocketAddr>().await?;
    let mut chains = vec![
        chains::direct(address),
        chains::nginx(&plan.nginx, &dir.join("nginx"), &identity, address)?,
        chains::tunnel((&plan.nginx, &plan.rathole), &dir.join("tunnel"), &identity, address)?,
        plan.programs.market(&dir.join("market"), &identity, address).await?,
    ];
    if let Some(program) = &plan.litellm {
        chains.push(chains::litellm(program, &dir.join("litellm"), address)?);
    }
    let samples = sample_all(&chains, &plan).await?;
    let kept = records(&chains[MARKET]).await?;
    let processes = chains[MARKET].processes.iter().map(|process| process.name).collect::<Vec<_>>();
    drop(chains);
    upstream.ends().await;
    let signature = signature_cost()?;
    let mut tables = samples.tables(signature);
    tables.push(samples.processes(&processes));
    let served = samples.by_chain[MARKET].iter().flatten().map(|sample| sample.outcome.served).sum::<u64>();
    if let Some(table) = tables.last_mut() {
        table.note(format!(
            "A receipt takes its agent {:.0} us to sign and its relay {:.0} us to check. Of the {served} requests that the market \
             served, warming up aside, the relay kept records of {kept}, warming up included.",
            signature.sign * 1e6,
            signature.verify * 1e6
        ));
    }
    if plan.sessions > 0 {
        let sessions = plan.sessions.min(files / SESSIONS_OF_FILES.1 * SESSIONS_OF_FILES.0);
        tables.push(memory(&plan.programs, &dir.join("sessions"), &identity, sessions).await?);
    }
    Ok(tables)
}

async fn sample_all(chains: &[Chain], plan: &Inference) -> anyhow::Result<Samples> {
    let mut by_chain: Vec<[Vec<Sample>; CASES.len()]> = chains.iter().map(|_| Default::default()).collect();
    for chain in chains {
        sample(chain, Shape::Whole, 64, plan.millis / 4).await?;
    }
    for _ in 0..plan.rounds {
        for (case, (shape, clients)) in CASES.into_iter().enumerate() {
            for (chain, samples) in chains.iter().zip(&mut by_chain) {
                samples[case].push(sample(chain, shape, clients, plan.millis).await?);
            }
        }
    }
    Ok(Samples { names: chains.iter().map(|chain| chain.name).collect(), by_chain })
}

async fn sample(chain: &Chain, shape: Shape, clients: usize, millis: u64) -> anyhow::Result<Sample> {
    let mut arguments = target_arguments("load", chain.address, chain.certificate.as_deref());
    let shape = clap::ValueEnum::to_possible_value(&shape).context("a shape has a name")?;
    arguments.extend(["--shape".into(), shape.get_name().into()]);
    arguments.extend(["--clients".into(), clients.to_string(), "--millis".into(), millis.to_string()]);
    let (mut load, _) = Copy::start(&arguments)?.says::<String>().await.context(chain.name)?;
    let before = cpu_secs(&chain.processes)?;
    load.goes_on().await?;
    let (load, outcome) = load.says::<Outcome>().await.context(chain.name)?;
    sleep(SETTLE).await;
    let after = cpu_secs(&chain.processes)?;
    drop(load);
    ensure!(outcome.served > 0, "{} served nothing", chain.name);
    let cpu = after.iter().zip(before).map(|(after, before)| after - before).collect();
    Ok(Sample { outcome, cpu })
}

/// Of how many requests a relay kept records.
async fn records(market: &Chain) -> anyhow::Result<u64> {
    let usage = market.get("/v1/usage").await?;
    let rows = usage["usage"].as_array().context("no usage")?.iter();
    let models = rows.flat_map(|row| row["models"].as_array().into_iter().flatten());
    Ok(models.filter_map(|model| model["requests"].as_u64()).sum())
}

fn signature_cost() -> anyhow::Result<Signature> {
    let wallet = Wallet::random();
    let receipt = InferenceReceipt {
        request_id: "0123456789abcdef0123456789abcdef".to_owned(),
        provider: wallet.address(),
        node_id: taskmarket::Bytes32::default(),
        relay_id: chains::RELAY_ID.to_owned(),
        request_hash: ContentHash::UNPINNED,
        response_hash: ContentHash::UNPINNED,
        model: upstream::MODEL.to_owned(),
        engine: upstream::MODEL.to_owned(),
        quantization: String::new(),
        prompt_tokens: 32,
        completion_tokens: 48,
        started_at: sessions::now(),
        finished_at: sessions::now(),
    };
    let signed = wallet.sign(&receipt, &Domain::UNSETTLED)?;
    let begun = timing::cpu_secs()?;
    for _ in 0..SIGNATURES {
        wallet.sign(&receipt, &Domain::UNSETTLED)?;
    }
    let between = timing::cpu_secs()?;
    for _ in 0..SIGNATURES {
        signed.clone().verify(&Domain::UNSETTLED)?;
    }
    let each = |secs: f64| secs / f64::from(SIGNATURES);
    Ok(Signature { sign: each(between - begun), verify: each(timing::cpu_secs()? - between) })
}

/// What sessions cost a relay in memory.
async fn memory(
    programs: &Programs,
    folder: &Path,
    identity: &Identity,
    count: u64,
) -> anyhow::Result<Table> {
    let (relay, address) = programs.relay(folder, identity, &["--max-sessions", &count.to_string()])?;
    let certificate = Some(identity.certificate.clone());
    let id = relay.id();
    let chain = Chain { name: "relay", address, certificate, processes: vec![relay] };
    sleep(SETTLE).await;
    let empty = resident_kib(id)?;
    let mut arguments = target_arguments("sessions", address, chain.certificate.as_deref());
    arguments.extend(["--hosts".to_owned(), count.to_string()]);
    let (_hosts, _) = Copy::start(&arguments)?.says::<String>().await.context("sessions")?;
    sleep(IDLE).await;
    let idle = resident_kib(id)?;
    let mut asked = 0;
    while asked < count * TRAFFIC {
        asked += sample(&chain, Shape::Whole, 64, 1000).await?.outcome.served;
    }
    sleep(IDLE).await;
    let after = resident_kib(id)?;
    let mut table = Table::new(
        "Inference: a relay's memory for providers' sessions with TLS",
        &["sessions", "when", "relay_mib", "kib_per_session"],
    );
    for (sessions, when, kib) in [
        (0, "empty".to_owned(), empty),
        (count, "idle".to_owned(), idle),
        (count, format!("idle after {asked} requests"), after),
    ] {
        table.row([
            Cell::count(sessions),
            when.into(),
            Cell::Number(kib / 1024.0, 1),
            Cell::Number((kib - empty) / count as f64, 1),
        ]);
    }
    table.note("Resident memory. Goal: at most 32 KiB a session, after traffic too.");
    Ok(table)
}

fn target_arguments(part: &str, address: SocketAddr, certificate: Option<&Path>) -> Vec<String> {
    let mut arguments = vec![part.to_owned(), "--address".to_owned(), address.to_string()];
    if let Some(certificate) = certificate {
        arguments.extend(["--certificate".to_owned(), certificate.display().to_string()]);
    }
    arguments
}

fn pace_arguments(pace: Pace) -> Vec<String> {
    let Pace { tokens, token_ms } = pace;
    ["upstream", "--tokens", &tokens.to_string(), "--token-ms", &token_ms.to_string()]
        .map(str::to_owned)
        .to_vec()
}

/// A copy of this program that plays a part. It ends with this one.
struct Copy {
    child: tokio::process::Child,
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
}

impl Copy {
    fn start(arguments: &[String]) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("inference-part")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().context("a child has an output")?).lines();
        Ok(Self { child, input, output })
    }

    /// What it says next.
    async fn says<T: DeserializeOwned>(mut self) -> anyhow::Result<(Self, T)> {
        let line = timeout(PATIENCE, self.output.next_line()).await.context("a part takes too long")??;
        let line = line.context("a part ended early")?;
        Ok((self, serde_json::from_str(&line)?))
    }

    /// Tells it to go on.
    async fn goes_on(&mut self) -> anyhow::Result<()> {
        Ok(self.input.as_mut().context("a child has an input")?.write_all(b"\n").await?)
    }

    /// Ends it.
    async fn ends(&mut self) {
        self.input = None;
        // Otherwise it is killed as it is dropped.
        let _ = timeout(PATIENCE, self.child.wait()).await;
    }
}
