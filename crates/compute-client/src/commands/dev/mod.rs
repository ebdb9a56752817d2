//! `dev`: a whole market on this machine. Relay, agent and compute node run as processes of their own, on loopback, and end with
//! this one, however it ends.

pub(crate) mod child;
mod demo;
mod market;
mod money;
mod toy;
mod weights;

use std::path::{Path, PathBuf};

use daemon::{Shutdown, ShutdownArgs, default_data_dir};
use serde_json::json;
use tempfile::TempDir;

use crate::commands::dev::market::Market;
use crate::commands::dev::money::Money;
use crate::failure::{Context as _, Exit, Failure, Outcome};
use crate::ui::{Style, Ui};

/// The name of this command's folder below the data root.
const PROGRAM: &str = "dev";
/// A program and an input to try.
const WORD_COUNT: &[u8] = include_bytes!("../../../../../demo/wordcount.wasm");
const TEXT: &str = include_str!("../../../../../demo/text.txt");

/// How to run a market here.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    Keep a market up to try commands against; Ctrl-C ends it:\n    \
    zorai-compute dev\n  \
    One task from publication to approval, and out:\n    \
    zorai-compute dev --demo\n  \
    The same without any download:\n    \
    zorai-compute dev --demo --weights none")]
pub(crate) struct Args {
    /// Run one task from publication to approval, and end
    #[arg(long)]
    demo: bool,
    /// Keep everything in this folder [default: a temporary one with --demo, else dev in the data folder]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// The model of the demo: a folder with the weights of all-MiniLM-L6-v2, or `none` for a WASM task instead [default: cached or fetched]
    #[arg(long, value_name = "DIR|none", requires = "demo")]
    weights: Option<String>,
}

/// Runs a market.
pub(crate) async fn run(args: Args, ui: &Ui) -> Outcome {
    let shutdown = Shutdown::install(ShutdownArgs::default()).or_failed("signals")?;
    let token = shutdown.token();
    if args.demo {
        return tokio::select! {
            done = Box::pin(run_demo(&args, ui)) => done,
            () = token.cancelled() => Err(interrupted()),
        };
    }
    let folder = args.data.unwrap_or_else(|| default_data_dir(PROGRAM));
    ui.say("starting a relay, an agent and a compute node");
    let mut market = tokio::select! {
        market = Box::pin(Market::start(&folder, None, ui)) => market?,
        () = token.cancelled() => return Err(interrupted()),
    };
    tokio::select! {
        served = Box::pin(market.serves_toy()) => served?,
        () = token.cancelled() => return Err(interrupted()),
    }
    announce(&market, ui)?;
    tokio::select! {
        failure = market.died() => {
            market.stop().await;
            Err(failure)
        }
        () = token.cancelled() => {
            ui.say("ending");
            market.stop().await;
            Ok(())
        }
    }
}

fn interrupted() -> Failure {
    Failure::new(Exit::Interrupted, "interrupted")
}

async fn run_demo(args: &Args, ui: &Ui) -> Outcome {
    let weights = weights::find(args.weights.as_deref(), ui).await?;
    let task = demo::Demo::new(weights)?;
    ui.say(format_args!("{} {}", ui.paint(Style::Bold, "demo:"), task.title()));
    let temporary = match &args.data {
        Some(_) => None,
        None => Some(TempDir::with_prefix("zorai-dev-").or_failed("a temporary folder")?),
    };
    let folder =
        temporary.as_ref().map(TempDir::path).or(args.data.as_deref()).unwrap_or(Path::new(".")).to_owned();
    ui.say("starting a relay, an agent and a compute node, each a process of its own on loopback");
    let outcome = Box::pin(demonstrate(&folder, &task, ui)).await;
    match (outcome, temporary) {
        (Err(failure), Some(temporary)) => {
            Err(failure.hint(format_args!("the logs are in {}", temporary.keep().display())))
        }
        (Err(failure), None) => Err(failure.hint(format_args!("the logs are in {}", folder.display()))),
        (Ok(()), _) => Ok(()),
    }
}

/// Runs the demo's task on a market of its own, with money where there can be a chain.
async fn demonstrate(folder: &Path, task: &demo::Demo, ui: &Ui) -> Outcome {
    market::prepare(folder)?;
    let money = Money::start(folder, ui).await?;
    let mut market = Market::start(folder, money.as_ref(), ui).await?;
    let relay = market.relay();
    let outcome = tokio::select! {
        outcome = Box::pin(task.run(&relay, money.as_ref(), ui)) => outcome,
        failure = market.died() => Err(failure),
    };
    market.stop().await;
    outcome
}

/// Says how to use the market that is up.
fn announce(market: &Market, ui: &Ui) -> Outcome {
    let (url, key) = (market.url(), market.api_key().expose());
    if ui.json {
        return ui.print_json(&json!({ "relay": url, "api_key": key, "data": market.folder() }));
    }
    let write = |name: &str, bytes: &[u8]| -> Outcome<String> {
        let path = market.folder().join(name);
        std::fs::write(&path, bytes).or_failed(path.display())?;
        Ok(quoted(&path.display().to_string()))
    };
    let program = write("wordcount.wasm", WORD_COUNT)?;
    let text = write("text.txt", TEXT.as_bytes())?;
    let own = std::env::current_exe()
        .map_or_else(|_| "zorai-compute".to_owned(), |path| path.display().to_string());
    let own = quoted(&own);
    ui.print(format_args!(
        "relay    {url}\nAPI key  {key}\ndata     {}\n\nIn another terminal:\n\n  \
         export ZORAI_RELAY={url} ZORAI_AI_API_KEY={key}\n  \
         {own} run --model {program} --input {text} --poll\n  \
         {own} list\n  \
         {own} providers\n  \
         curl $ZORAI_RELAY/v1/chat/completions -H \"Authorization: Bearer $ZORAI_AI_API_KEY\" \\\n    \
         -H 'Content-Type: application/json' \\\n    \
         -d '{{\"model\":\"{toy}\",\"messages\":[{{\"role\":\"user\",\"content\":\"hello\"}}]}}'\n\n\
         The OpenAI SDK takes base_url=\"{url}/v1\" and the API key. {toy} is a toy and knows nothing.\n\nCtrl-C ends it.",
        market.folder().display(),
        toy = toy::NAME
    ))
}

/// A word as shells read it.
fn quoted(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+:@%".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_a_shell_needs_it() {
        assert_eq!(quoted("/usr/bin/x-1.0"), "/usr/bin/x-1.0");
        assert_eq!(quoted("/a b/it's"), r"'/a b/it'\''s'");
        assert_eq!(quoted(""), "''");
    }

    #[test]
    fn the_committed_program_is_its_source() {
        let source = include_str!("../../../../../demo/wordcount.wat");
        assert_eq!(wat::parse_str(source).unwrap(), WORD_COUNT, "compile demo/wordcount.wat again");
    }
}
