//! `doctor`: what could keep a task from running, each with its fix.

use rpc::relay::{Info, ProviderList};
use rpc::tasks::TaskPage;
use taskmarket::CLOCK_TOLERANCE_SECS;

use crate::cli::Global;
use crate::failure::{Exit, Failure, Outcome};
use crate::follow::now;
use crate::key::{self, IfMissing};
use crate::relay::{LOOK_CLOSER, Relay};
use crate::ui::{Style, Ui};

/// Checks one thing after the other; the exit code is that of the first that is wrong.
pub(crate) async fn run(global: &Global, ui: &Ui) -> Outcome {
    let mut first = None;
    let mut failed: Vec<String> = Vec::new();
    let mut report = |name: &str, check: Outcome<String>| -> Outcome {
        match check {
            Ok(words) => ui.print(format_args!("{} {name}: {words}", ui.paint(Style::Good, "ok  "))),
            Err(failure) => {
                ui.print(format_args!("{} {name}: {}", ui.paint(Style::Bad, "FAIL"), failure.message()))?;
                for hint in failure.hints().iter().filter(|hint| *hint != LOOK_CLOSER) {
                    ui.print(format_args!("       {hint}"))?;
                }
                first.get_or_insert(failure.exit());
                failed.push(name.to_owned());
                Ok(())
            }
        }
    };
    report("version", Ok(env!("CARGO_PKG_VERSION").to_owned()))?;
    report("key", check_key(global, ui).await)?;
    match global.relay(ui) {
        Err(failure) => report("relay", Err(failure))?,
        Ok(relay) => match relay.get::<Info>("v1/info").await {
            Err(failure) => report("relay", Err(failure))?,
            Ok(info) => {
                report("relay", Ok(format!("{} is {} {}", relay.url(), info.relay_id, info.version)))?;
                report("clock", check_clock(&info))?;
                report("API key", check_api_key(&relay).await)?;
                report("providers", check_providers(&relay).await)?;
            }
        },
    }
    match first {
        None => Ok(()),
        Some(exit) => Err(Failure::new(exit, format_args!("not as it should be: {}", failed.join(", ")))),
    }
}

async fn check_key(global: &Global, ui: &Ui) -> Outcome<String> {
    let path = global.key_file.clone().unwrap_or_else(key::default_path);
    match (path.exists(), &global.key_file) {
        (true, _) => {
            let wallet = key::load(global, ui, IfMissing::Refuse).await?;
            Ok(format!("{} in {}", wallet.address(), path.display()))
        }
        (false, None) => Ok("none yet; `run` makes one on first use".to_owned()),
        (false, Some(_)) => Err(Failure::usage(format_args!("{} does not exist", path.display()))
            .hint("make one: zorai-compute wallet new --out FILE")),
    }
}

fn check_clock(info: &Info) -> Outcome<String> {
    let skew = now().distance(info.now);
    if skew > CLOCK_TOLERANCE_SECS {
        return Err(Failure::new(Exit::Failed, format_args!("{skew} s apart from the relay's")).hint(
            format_args!("set this machine's clock: signatures may be {CLOCK_TOLERANCE_SECS} s off at most"),
        ));
    }
    Ok(format!("{skew} s apart from the relay's"))
}

async fn check_api_key(relay: &Relay) -> Outcome<String> {
    relay.get::<TaskPage>("v1/tasks?limit=1").await.map(|_| "the relay takes it".to_owned())
}

async fn check_providers(relay: &Relay) -> Outcome<String> {
    let list: ProviderList = relay.get("v1/providers").await?;
    match list.providers.len() {
        0 => {
            Err(Failure::failed("none is online")
                .hint("tasks wait until one connects; see compute-agent --help"))
        }
        count => Ok(format!("{count} online")),
    }
}
