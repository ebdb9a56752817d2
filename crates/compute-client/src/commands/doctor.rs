//! `doctor`: what could keep tasks from running and models from answering, each with its fix.

use std::time::Duration;

use rpc::inference::{InferenceKind, ModelList};
use rpc::relay::Info;
use rpc::tasks::TaskPage;
use serde::Serialize;
use serde_json::{Value, json};
use taskmarket::CLOCK_TOLERANCE_SECS;

use crate::cli::Global;
use crate::commands::providers::online;
use crate::failure::{Exit, Failure, Outcome};
use crate::follow::now;
use crate::inference::{Answer, Body, Message, Role, ask};
use crate::key::{self, IfMissing};
use crate::receipt::{Claim, Exchange};
use crate::relay::{LOOK_CLOSER, Relay};
use crate::ui::{Style, Ui, clean, span};

/// How long the test completion may take.
const COMPLETION_PATIENCE: Duration = Duration::from_secs(60);
/// The longest answer of the test completion, in tokens.
const COMPLETION_TOKENS: u32 = 16;
/// The most models that are named.
const MAX_NAMED: usize = 5;

/// What to look at.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit codes: 0 all is well; 1 something is not.\n\n\
    The test completion uses a few tokens of the model.")]
pub(crate) struct Args {
    /// The model of the test completion [default: the first that can be talked to]
    #[arg(long, short, value_name = "MODEL")]
    model: Option<String>,
}

/// Checks one thing after the other.
pub(crate) async fn run(global: &Global, args: &Args, ui: &Ui) -> Outcome {
    let mut report = Report { ui, checks: Vec::new() };
    report.note("version", Ok(env!("CARGO_PKG_VERSION").to_owned()))?;
    report.note("key", check_key(global, ui).await)?;
    match global.relay(ui) {
        Err(failure) => drop(report.note("relay", Err(failure))?),
        Ok(relay) => check_relay(&relay, args.model.as_deref(), &mut report).await?,
    }
    report.end()
}

/// What was found out.
struct Report<'a> {
    ui: &'a Ui,
    checks: Vec<Check>,
}

#[derive(Serialize)]
struct Check {
    name: &'static str,
    status: Status,
    message: String,
    hints: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    Ok,
    Failed,
    Skipped,
}

impl Report<'_> {
    /// Notes how a check came out, and says whether it went well.
    fn note(&mut self, name: &'static str, check: Outcome<String>) -> Outcome<bool> {
        let (status, message, hints) = match check {
            Ok(message) => (Status::Ok, message, Vec::new()),
            Err(failure) => {
                let hints = failure.hints().iter().filter(|hint| *hint != LOOK_CLOSER).cloned().collect();
                (Status::Failed, failure.message().to_owned(), hints)
            }
        };
        self.add(Check { name, status, message, hints })?;
        Ok(status == Status::Ok)
    }

    /// Notes that a check could not be made, which is nothing wrong by itself.
    fn skip(&mut self, name: &'static str, why: &str) -> Outcome {
        self.add(Check { name, status: Status::Skipped, message: why.to_owned(), hints: Vec::new() })
    }

    fn add(&mut self, check: Check) -> Outcome {
        if !self.ui.json {
            let mark = match check.status {
                Status::Ok => self.ui.paint(Style::Good, "ok  "),
                Status::Failed => self.ui.paint(Style::Bad, "FAIL"),
                Status::Skipped => self.ui.paint(Style::Dim, "--  "),
            };
            self.ui.print(format_args!("{mark} {}: {}", check.name, check.message))?;
            for hint in &check.hints {
                self.ui.print(format_args!("       {hint}"))?;
            }
        }
        self.checks.push(check);
        Ok(())
    }

    fn end(self) -> Outcome {
        let failed: Vec<&str> = self
            .checks
            .iter()
            .filter(|check| check.status == Status::Failed)
            .map(|check| check.name)
            .collect();
        if self.ui.json {
            self.ui.print_json(&json!({ "ok": failed.is_empty(), "checks": self.checks }))?;
        }
        if failed.is_empty() {
            return Ok(());
        }
        Err(Failure::failed(format_args!("not as it should be: {}", failed.join(", "))))
    }
}

async fn check_key(global: &Global, ui: &Ui) -> Outcome<String> {
    let path = global.key_file.clone().unwrap_or_else(key::default_path);
    match (path.exists(), &global.key_file) {
        (true, _) => {
            // Files that others could read are refused.
            let wallet = key::load(global, ui, IfMissing::Refuse).await?;
            Ok(format!("{} in {}, which nobody else can read", wallet.address(), path.display()))
        }
        (false, None) => Ok("none yet; `run` makes one on first use".to_owned()),
        (false, Some(_)) => Err(Failure::usage(format_args!("{} does not exist", path.display()))
            .hint("make one: zorai-compute wallet new --out FILE")),
    }
}

async fn check_relay(relay: &Relay, model: Option<&str>, report: &mut Report<'_>) -> Outcome {
    let info = match relay.get::<Info>("v1/info").await {
        Ok(info) => info,
        Err(failure) => return report.note("relay", Err(failure)).map(drop),
    };
    let words = format!("{} is {} {}", relay.url(), clean(&info.relay_id), clean(&info.version));
    report.note("relay", Ok(words))?;
    report.note("TLS", check_tls(relay))?;
    report.note("clock", check_clock(&info))?;
    report.note("providers", check_providers(relay).await)?;
    let scopes = scopes(relay).await;
    let may_infer = scopes.as_ref().is_ok_and(|scopes| scopes.contains(&"inference"));
    let is_good = report.note("API key", scopes.and_then(told))?;
    if !may_infer {
        let why = if is_good { "the API key has no scope inference" } else { "they need a good API key" };
        return ["models", "completion", "receipt"].into_iter().try_for_each(|name| report.skip(name, why));
    }
    check_models(relay, model, report).await
}

fn check_tls(relay: &Relay) -> Outcome<String> {
    if relay.is_encrypted() {
        return Ok("the connection is encrypted, and the certificate is trusted".to_owned());
    }
    if relay.is_local() {
        return Ok("none, which is well on this machine alone".to_owned());
    }
    Err(Failure::failed("none: who is in between reads the API key, tasks and answers")
        .hint("use the relay's https:// URL; its operator turns that on by --tls-listen"))
}

fn check_clock(info: &Info) -> Outcome<String> {
    let skew = now().distance(info.now);
    if skew > CLOCK_TOLERANCE_SECS {
        return Err(Failure::failed(format_args!("{skew} s apart from the relay's")).hint(format_args!(
            "set this machine's clock: signatures may be {CLOCK_TOLERANCE_SECS} s off at most"
        )));
    }
    Ok(format!("{skew} s apart from the relay's"))
}

async fn check_providers(relay: &Relay) -> Outcome<String> {
    let hosts = online(relay).await?.providers;
    let closed: Vec<String> = hosts
        .iter()
        .filter_map(|host| Some(format!("{}: {}", host.provider, clean(host.closed_for.as_deref()?))))
        .collect();
    let told = format!("{} online", hosts.len());
    match closed.as_slice() {
        [] if hosts.is_empty() => {
            Err(Failure::failed("none is online")
                .hint("tasks wait until one connects; see compute-agent --help"))
        }
        [] => Ok(told),
        [first, ..] if closed.len() == hosts.len() => {
            Err(Failure::failed(format_args!("{told}, and none takes tasks now; {first}"))
                .hint("on its host: see that compute-node runs, and what it and compute-agent log; `compute-node check` finds what is missing")
                .hint("`zorai-compute providers` lists them all"))
        }
        [first, ..] => Ok(format!("{told}, {} of them closed to tasks now; {first}", closed.len())),
    }
}

/// What the API key may be used for, found out by asking.
async fn scopes(relay: &Relay) -> Outcome<Vec<&'static str>> {
    let asked = [
        ("tasks:read", relay.get::<TaskPage>("v1/tasks?limit=1").await.map(drop)),
        ("tasks:write", relay.may_publish().await),
        ("inference", relay.get::<ModelList>("v1/models").await.map(drop)),
        ("admin", relay.get::<Value>("v1/keys?limit=1").await.map(drop)),
    ];
    let mut scopes = Vec::new();
    for (scope, asked) in asked {
        match asked {
            Ok(()) => scopes.push(scope),
            Err(failure) if failure.code() == Some("forbidden") => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(scopes)
}

fn told(scopes: Vec<&'static str>) -> Outcome<String> {
    if scopes.is_empty() {
        return Err(Failure::new(Exit::NotAuthorised, "the relay knows it, but it is good for nothing")
            .hint("ask the relay's operator for one with scopes: compute-relay keys create --scope …"));
    }
    Ok(format!("good for {}", scopes.join(", ")))
}

async fn check_models(relay: &Relay, model: Option<&str>, report: &mut Report<'_>) -> Outcome {
    let list: Outcome<ModelList> = relay.get("v1/models").await;
    let list = match list {
        Ok(list) => list.data,
        Err(failure) => return report.note("models", Err(failure)).map(drop),
    };
    if list.is_empty() {
        report.skip("models", "no provider serves one just now")?;
    } else {
        let named: Vec<String> = list.iter().take(MAX_NAMED).map(|model| clean(&model.id)).collect();
        let more = if list.len() > MAX_NAMED { ", …" } else { "" };
        report.note("models", Ok(format!("{} served: {}{more}", list.len(), named.join(", "))))?;
    }
    let can_chat = list.iter().find(|model| model.kinds.contains(&InferenceKind::Chat));
    let Some(model) = model.or(can_chat.map(|model| model.id.as_str())) else {
        let why = "there is no model to talk to";
        return ["completion", "receipt"].into_iter().try_for_each(|name| report.skip(name, why));
    };
    let hello = Message { role: Role::User, content: "Say hello.".to_owned() };
    let messages = [&hello];
    let mut body = Body::new(model, &messages);
    body.max_tokens = Some(COMPLETION_TOKENS);
    let body = body.to_bytes()?;
    match complete(relay, &body).await {
        Err(failure) => {
            report.note("completion", Err(failure))?;
            report.skip("receipt", "there was no answer")
        }
        Ok(answer) => {
            report.note("completion", Ok(speed(model, &answer)))?;
            let exchange = Exchange { request: Some(&body), response: Some(&answer.bytes) };
            report.note("receipt", check_receipt(relay, &answer.request_id, exchange).await).map(drop)
        }
    }
}

async fn complete(relay: &Relay, body: &[u8]) -> Outcome<Answer> {
    let asked = ask(relay, body, std::future::pending(), |_| Ok(()));
    let answer = tokio::time::timeout(COMPLETION_PATIENCE, asked).await.map_err(|_| {
        let patience = COMPLETION_PATIENCE.as_secs();
        Failure::failed(format_args!("there was no answer within {patience} s"))
            .hint("the providers of this model are busy or slow; try another: --model NAME")
    })??;
    if answer.pieces == 0 {
        return Err(Failure::failed("the answer was empty").hint("try another model: --model NAME"));
    }
    Ok(answer)
}

fn speed(model: &str, answer: &Answer) -> String {
    let first = answer.first.map(|first| format!("first token after {}", span(first)));
    let speed = answer.tokens_per_second().map(|speed| format!("{speed:.1} tokens/s"));
    let by = answer.provider.as_deref().map(|provider| format!("by {}", clean(provider)));
    let known: Vec<String> = [first, speed, by].into_iter().flatten().collect();
    format!("{} answers: {}", clean(model), known.join(", "))
}

async fn check_receipt(relay: &Relay, request_id: &str, exchange: Exchange<'_>) -> Outcome<String> {
    let claim = Claim::Record(Box::new(relay.receipt(request_id).await?));
    claim.check(exchange)?;
    Ok(format!("{} signed for exactly this request and answer", claim.provider()))
}
