//! `result`: a task's result, checked against its proof before a byte of it is handed out.

use std::path::PathBuf;

use serde_json::json;
use taskmarket::TaskId;

use crate::cli::Global;
use crate::failure::{Failure, Outcome};
use crate::proof;
use crate::ui::{Ui, size};

/// Whose result, and where to.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The task: 0x and 64 hex digits
    #[arg(value_name = "TASK_ID")]
    id: TaskId,
    /// Write it to this file; `-` is standard output
    #[arg(long, short, value_name = "FILE", default_value = "-")]
    output: PathBuf,
}

/// Fetches and checks a result.
pub(crate) async fn run(global: &Global, args: &Args, ui: &Ui) -> Outcome {
    let output = Some(args.output.as_path()).filter(|path| path.as_os_str() != "-");
    if ui.json && output.is_none() {
        return Err(Failure::usage("--json and the result would share standard output")
            .hint("write the result to a file: --output FILE"));
    }
    let relay = global.reading_relay(ui).await?;
    let view = relay.task(args.id).await?;
    let checked = proof::fetch(&relay, &view, args.id, ui).await?;
    checked.result.write(output).await?;
    if ui.json {
        let (hash, bytes) = (checked.result.hash, checked.result.bytes);
        return ui.print_json(
            &json!({ "task_id": args.id, "result_hash": hash, "bytes": bytes, "output": output }),
        );
    }
    let (provider, bytes) = (checked.proof.provider, size(checked.result.bytes));
    ui.say(format_args!("{bytes}, proven by {provider}"));
    Ok(())
}
