//! `artifact`: files at the relay, named by their hash.

use std::path::{Path, PathBuf};

use artifact::{BlobStore, FetchError, Reference};
use serde_json::json;

use crate::cli::Global;
use crate::content::{Content, Named};
use crate::failure::{Context as _, Exit, Failure, Outcome};
use crate::ui::{Ui, binary, count, is_unfit_for_stdout, size};

/// What to do with files at the relay.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Store a file or a folder, and print the reference that tasks name it by
    Put {
        /// The file or folder; `-` is standard input
        path: String,
    },
    /// Fetch a file or a folder, checked against its hash
    Get {
        /// artifact://SHA256, with a slash at its end for a folder
        reference: Reference,
        /// Write it to this file or new folder; `-` is standard output
        #[arg(long, short, value_name = "PATH", default_value = "-")]
        output: PathBuf,
    },
}

/// Stores or fetches.
pub(crate) async fn run(global: &Global, args: &Args, ui: &Ui) -> Outcome {
    match &args.command {
        Command::Put { path } => {
            let relay = global.relay(ui)?;
            let named = Named::look("PATH", path).await?;
            let content = named.content(None, relay.limits().await?.max_artifact_bytes).await?;
            Content::upload(&[&content], &relay, ui).await?;
            if ui.json {
                return ui.print_json(&json!({ "reference": content.reference, "hash": content.hash }));
            }
            ui.print(&content.reference)
        }
        Command::Get { reference, output } => Box::pin(get(global, reference, output, ui)).await,
    }
}

async fn get(global: &Global, reference: &Reference, output: &Path, ui: &Ui) -> Outcome {
    if reference.as_str().split_once("://").is_none_or(|(scheme, _)| scheme != "artifact") {
        return Err(Failure::usage(format_args!(
            "{}: only artifact:// is fetched from a relay",
            reference.redacted()
        )));
    }
    let relay = global.relay(ui)?;
    let origin = relay.origin()?;
    let folder = tempfile::tempdir().or_failed("a temporary folder")?;
    let store = BlobStore::open(folder.path()).or_failed("a temporary folder")?;
    let fetcher = relay.fetcher(store)?;
    let bar = ui.bytes("fetching", 0);
    let progress = |done: u64, total: Option<u64>| {
        bar.set_length(total.unwrap_or(done));
        bar.set_position(done);
    };
    let to_stdout = output.as_os_str() == "-";
    if reference.is_folder() {
        if to_stdout {
            return Err(Failure::usage("a folder needs a place to go").hint("give --output FOLDER"));
        }
        let folder = fetcher
            .fetch_folder(reference, None, Some(&origin), &[], &[], progress)
            .await
            .map_err(fetch_failed)?;
        for (name, path) in &folder.files {
            let target = output.join(name);
            std::fs::create_dir_all(target.parent().unwrap_or(output)).or_failed(output.display())?;
            std::fs::copy(path, &target).or_failed(target.display())?;
        }
        ui.say(format_args!("{} in {}", count(folder.files.len() as u64, "file"), output.display()));
        return Ok(());
    }
    let file = fetcher.fetch_file(reference, None, Some(&origin), progress).await.map_err(fetch_failed)?;
    bar.finish_and_clear();
    if to_stdout {
        if is_unfit_for_stdout(&file.path)? {
            return Err(binary(format_args!("{reference}, {},", size(file.size))));
        }
        let mut source = std::fs::File::open(&file.path)?;
        std::io::copy(&mut source, &mut std::io::stdout().lock())?;
    } else {
        std::fs::copy(&file.path, output).or_failed(output.display())?;
        ui.say(format_args!("{} in {}", size(file.size), output.display()));
    }
    Ok(())
}

/// What a fetch that failed means for the exit code.
pub(crate) fn fetch_failed(error: FetchError) -> Failure {
    let exit = match &error {
        FetchError::HashMismatch { .. } | FetchError::BadManifest { .. } => Exit::Unverified,
        FetchError::Unauthorized { .. } => Exit::NotAuthorised,
        FetchError::Unreachable { .. } | FetchError::TimedOut { .. } => Exit::Unreachable,
        FetchError::BadReference { .. } | FetchError::UnsupportedScheme { .. } => Exit::Usage,
        FetchError::NotAllowed { .. }
        | FetchError::ForbiddenAddress { .. }
        | FetchError::NotFound { .. }
        | FetchError::TooLarge { .. }
        | FetchError::TooManyRedirects { .. }
        | FetchError::CacheBusy { .. }
        | FetchError::Io { .. } => Exit::Failed,
    };
    let is_missing = matches!(error, FetchError::NotFound { .. });
    let failure = Failure::new(exit, error);
    if is_missing {
        failure.hint(
            "check the reference and --relay: a relay has what was stored there, for as long as it keeps it",
        )
    } else {
        failure
    }
}
