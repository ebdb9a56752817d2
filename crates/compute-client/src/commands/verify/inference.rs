//! The receipt of a model's answer: what it proves against the bytes at hand, and whose word each statement is.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::cli::Global;
use crate::failure::{Context as _, Failure, Outcome};
use crate::receipt::{Claim, Exchange, Word};
use crate::ui::{Ui, clean};

/// The largest file that is read, in bytes: as long as any answer that a relay passes on by default.
const MAX_FILE_BYTES: u64 = 512 << 20;

/// Which receipt, and what to check it against.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Receipts of models' answers")]
pub(super) struct ReceiptArgs {
    /// Fetch and check the receipt of this inference request: the x-request-id of its answer
    #[arg(long, value_name = "REQUEST_ID", conflicts_with_all = ["subject", "result", "rerun"])]
    receipt: Option<String>,
    /// Check that this file is the request's body, to the byte
    #[arg(long, value_name = "FILE", conflicts_with_all = ["result", "rerun"])]
    request: Option<PathBuf>,
    /// Check that this file is the answer's body, to the byte
    #[arg(long, value_name = "FILE", conflicts_with_all = ["result", "rerun"])]
    response: Option<PathBuf>,
}

/// Checks a receipt, if that is what is asked for, and says whether it was.
pub(super) async fn run(
    global: &Global,
    subject: Option<&str>,
    args: &ReceiptArgs,
    ui: &Ui,
) -> Outcome<bool> {
    let claim = match (&args.receipt, subject) {
        (Some(id), _) => Claim::Record(Box::new(global.relay(ui)?.receipt(id).await?)),
        (None, subject) => match subject.map(Path::new).filter(|path| path.is_file()).map(read) {
            None if args.request.is_none() && args.response.is_none() => return Ok(false),
            None => return Err(no_receipt(subject.unwrap_or_default())),
            Some(bytes) => match Claim::read(&bytes?) {
                Some(claim) => claim?,
                None if args.request.is_none() && args.response.is_none() => return Ok(false),
                None => return Err(no_receipt(subject.unwrap_or_default())),
            },
        },
    };
    if let Some(id) = &args.receipt
        && claim.request_id() != id
    {
        return Err(Failure::unverified(format_args!(
            "the relay shows the receipt of another request, {}",
            clean(claim.request_id())
        )));
    }
    let request = args.request.as_deref().map(read).transpose()?;
    let response = args.response.as_deref().map(read).transpose()?;
    let exchange = Exchange { request: request.as_deref(), response: response.as_deref() };
    tell(&claim, exchange, ui)?;
    Ok(true)
}

fn read(path: &Path) -> Outcome<Vec<u8>> {
    let length = std::fs::metadata(path).or_usage(path.display())?.len();
    if length > MAX_FILE_BYTES {
        return Err(Failure::usage(format_args!("{} is larger than {MAX_FILE_BYTES} bytes", path.display())));
    }
    std::fs::read(path).or_usage(path.display())
}

fn no_receipt(subject: &str) -> Failure {
    Failure::usage(format_args!("--request and --response are for receipts, and {subject} is none"))
        .hint("save one with its bytes: zorai-compute chat --save-exchange DIR")
        .hint("or fetch one: zorai-compute verify --receipt REQUEST_ID")
}

fn tell(claim: &Claim, exchange: Exchange<'_>, ui: &Ui) -> Outcome {
    let statements = claim.check(exchange)?;
    if ui.json {
        return ui.print_json(&json!({
            "request_id": claim.request_id(),
            "verified": true,
            "provider": claim.provider().to_string(),
            "request_checked": exchange.request.is_some(),
            "response_checked": exchange.response.is_some(),
            "statements": statements,
        }));
    }
    for statement in &statements {
        ui.print(format_args!("{}  [{}]", statement.text, statement.word.as_str()))?;
    }
    let count = |word| statements.iter().filter(|statement| statement.word == word).count();
    let (shown, signed, relay) = (count(Word::Shown), count(Word::Provider), count(Word::Relay));
    ui.print(format_args!(
        "the signature of {} holds: {shown} of its statements were checked against bytes, {signed} are its word alone, {relay} \
         the relay's",
        claim.provider()
    ))?;
    if exchange.request.is_none() || exchange.response.is_none() {
        ui.say("to check the bytes too: --request FILE --response FILE");
    }
    Ok(())
}
