//! Running a task again on this machine, with the code that nodes run: what decides whether a provider computed what it
//! signed for.
//!
//! A WebAssembly task gives the same bytes on every machine, so its results must be equal. Embeddings differ from one kind
//! of processor to the next in their last digits, so theirs must be close. Nothing else can be decided like this.

use std::path::Path;
use std::time::Duration;

use artifact::{BlobStore, Digest, Reference};
use computenode::runtime::embed::EmbedRuntime;
use computenode::runtime::wasm::WasmRuntime;
use computenode::runtime::{
    Context, Job, Limits, Model, ModelFiles, ModelShape, Output, RunCode, RunError, Runtime as _,
};
use serde::{Deserialize, Serialize};
use taskmarket::params::{Params, Runtime};
use taskmarket::{ContentHash, Task, TaskConfig};
use tempfile::TempDir;

use crate::commands::artifact::fetch_failed;
use crate::content::hash_of;
use crate::failure::{Context as _, Failure, Outcome};
use crate::proof::Checked;
use crate::relay::Relay;
use crate::ui::Ui;

/// How much longer than at the provider a program may take here.
const PATIENCE: u32 = 10;
/// The memory of a program that names no limit, or a lower one, in bytes: all that it can address.
const MEMORY_BYTES: u64 = 4 << 30;
/// The memory of an embedding model, in bytes.
const EMBED_MEMORY_BYTES: u64 = 16 << 30;
/// The least that a result may take here, in bytes: whoever gave a shorter one is shown by its hash.
const OUTPUT_BYTES: u64 = 64 << 20;
/// The largest embeddings that are compared, in bytes.
const MAX_EMBEDDINGS_BYTES: u64 = 1 << 30;
/// How far a number of an embedding may be from the provider's: a hundred times what processors differ by.
const TOLERANCE: f64 = 1e-4;

/// What running again showed: the provider's result is right.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Agreement {
    /// The SHA-256 of the result here.
    pub(crate) result_hash: ContentHash,
    /// For embeddings that are not equal: by how much their numbers differ at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) largest_difference: Option<f64>,
}

/// Whether a task of this runtime can be checked by running it again.
///
/// # Errors
/// Exit code 2.
pub(crate) fn check_runtime(runtime: Runtime) -> Outcome {
    match runtime {
        Runtime::Wasm | Runtime::Embed => Ok(()),
        Runtime::Container | Runtime::Openai => Err(Failure::usage(format_args!(
            "running again decides nothing for the runtime {runtime}: it may give other bytes on every machine"
        ))
        .hint("only wasm gives the same bytes everywhere; embed gives nearly the same numbers")),
    }
}

/// Runs a task again and compares.
///
/// # Errors
/// Exit code 5 where the provider's result is another one; 1 where this machine cannot tell.
pub(crate) async fn rerun(relay: &Relay, task: &Task, checked: &Checked, ui: &Ui) -> Outcome<Agreement> {
    check_runtime(task.config.runtime)?;
    let folder = tempfile::tempdir().or_failed("a temporary folder")?;
    let job = fetch(relay, task, checked, &folder, ui).await?;
    let spinner = ui.spinner("running it again");
    let ended = run(task, job).await;
    spinner.finish_and_clear();
    let proven = checked.proof.result_hash;
    let output = match ended {
        Ok(output) => output,
        Err(error) if is_of_the_task(task, &error) => {
            return Err(Failure::unverified(format_args!(
                "run again, the task fails: {error}; the provider claims the result {proven}"
            )));
        }
        Err(error) => return Err(Failure::failed(format_args!("the task cannot be run here: {error}"))),
    };
    let bytes = match output {
        Output::Bytes(bytes) => bytes,
        Output::File(path) => std::fs::read(path).or_failed("the result")?,
    };
    let result_hash = hash_of(Digest::of(&bytes));
    if result_hash == proven {
        return Ok(Agreement { result_hash, largest_difference: None });
    }
    if task.config.runtime == Runtime::Embed
        && let Some(difference) = difference(&bytes, &checked.result.read(MAX_EMBEDDINGS_BYTES)?)
    {
        if difference <= TOLERANCE {
            return Ok(Agreement { result_hash, largest_difference: Some(difference) });
        }
        return Err(differs(result_hash, proven).hint(format_args!(
            "the embeddings differ by {difference:e}; machines differ by {TOLERANCE:e} at most"
        )));
    }
    Err(differs(result_hash, proven))
}

fn differs(ours: ContentHash, proven: ContentHash) -> Failure {
    Failure::unverified(format_args!(
        "run again, the task gives another result: {ours} here, {proven} by the provider"
    ))
}

/// Whether the same error would come on every machine.
#[expect(clippy::wildcard_enum_match_arm, reason = "what is not the program's doing says nothing of it")]
fn is_of_the_task(task: &Task, error: &RunError) -> bool {
    let limits_memory = matches!(
        Params::parse(task.config.runtime, &task.config.params),
        Ok(Params::Wasm(params)) if params.memory_mb.is_some()
    );
    match error.code {
        RunCode::BadParams
        | RunCode::BadModel
        | RunCode::BadInput
        | RunCode::OutOfFuel
        | RunCode::Trapped
        | RunCode::ExitNonzero
        | RunCode::OutputTooLarge => true,
        RunCode::OutOfMemory => limits_memory,
        _ => false,
    }
}

/// Brings what the provider used here: what its proof names, whatever the task left open.
async fn fetch(relay: &Relay, task: &Task, checked: &Checked, folder: &TempDir, ui: &Ui) -> Outcome<Job> {
    let store = BlobStore::open(folder.path().join("blobs")).or_failed("a temporary folder")?;
    let fetcher = relay.fetcher(store)?;
    let origin = relay.origin()?;
    let proof = &checked.proof;
    let bar = ui.bytes("fetching model and input", 0);
    let progress = |done: u64, total: Option<u64>| {
        bar.set_length(total.unwrap_or(done));
        bar.set_position(done);
    };
    let reference =
        |text: &taskmarket::Reference| text.to_string().parse::<Reference>().or_failed("the task");
    let (model, input) = (reference(&task.model_cid)?, reference(&task.input_cid)?);
    let files = match shape(task.config.runtime) {
        ModelShape::File | ModelShape::Image | ModelShape::Named => {
            let pin = Some(digest(proof.model_hash));
            let file = fetcher.fetch_file(&model, pin, Some(&origin), progress).await;
            ModelFiles::File(file.map_err(fetch_failed)?.path)
        }
        ModelShape::Folder { required, optional } => {
            let pin = Some(digest(proof.model_hash));
            let fetched =
                fetcher.fetch_folder(&model, pin, Some(&origin), required, optional, progress).await;
            ModelFiles::Folder(fetched.map_err(fetch_failed)?.files)
        }
    };
    let pin = Some(digest(proof.input_hash));
    let input = fetcher.fetch_file(&input, pin, Some(&origin), progress).await.map_err(fetch_failed)?;
    bar.finish_and_clear();
    Ok(Job {
        params: task.config.params.clone(),
        model: Model { files, digest: proof.model_hash.to_string() },
        input: input.path,
        limits: Limits {
            wall: Duration::from_secs(task.config.max_duration) * PATIENCE,
            memory_bytes: memory_bytes(&task.config),
            output_bytes: OUTPUT_BYTES.max(checked.result.bytes),
        },
        gpus: Vec::new(),
        folder: work_folder(folder.path())?,
        label: format!("{}.{}", checked.id, proof.attempt),
    })
}

/// The memory that a task may be given here, in bytes: whatever it names, as its provider gave it that.
fn memory_bytes(config: &TaskConfig) -> u64 {
    match (config.runtime, Params::parse(config.runtime, &config.params)) {
        (Runtime::Embed, _) => EMBED_MEMORY_BYTES,
        (_, Ok(Params::Wasm(params))) => {
            params.memory_mb.map_or(MEMORY_BYTES, |mib| MEMORY_BYTES.max(u64::from(mib) << 20))
        }
        (Runtime::Wasm | Runtime::Container | Runtime::Openai, _) => MEMORY_BYTES,
    }
}

fn work_folder(folder: &Path) -> Outcome<std::path::PathBuf> {
    let work = folder.join("work");
    std::fs::create_dir(&work).or_failed("a temporary folder")?;
    Ok(work)
}

fn digest(hash: ContentHash) -> Digest {
    Digest(hash.0.0)
}

/// What a model of the runtime consists of.
fn shape(runtime: Runtime) -> ModelShape {
    match runtime {
        Runtime::Embed => EmbedRuntime::MODEL_SHAPE,
        Runtime::Wasm | Runtime::Container | Runtime::Openai => ModelShape::File,
    }
}

async fn run(task: &Task, job: Job) -> Result<Output, RunError> {
    let context = Context::default();
    let internal = |error: &dyn std::fmt::Display| RunError::new(RunCode::Internal, error.to_string());
    match task.config.runtime {
        Runtime::Wasm => WasmRuntime::new().map_err(|error| internal(&error))?.run(job, &context).await,
        Runtime::Embed | Runtime::Container | Runtime::Openai => {
            EmbedRuntime::new().map_err(|error| internal(&error))?.run(job, &context).await
        }
    }
}

/// The largest difference of two numbers, where both are embeddings of the same shape.
fn difference(ours: &[u8], theirs: &[u8]) -> Option<f64> {
    #[derive(Deserialize)]
    struct Response {
        data: Vec<Item>,
    }
    #[derive(Deserialize)]
    struct Item {
        embedding: Vec<f64>,
    }
    let read = |bytes: &[u8]| -> Option<Vec<Vec<f64>>> {
        let response: Response = serde_json::from_slice(bytes).ok()?;
        Some(response.data.into_iter().map(|item| item.embedding).collect())
    };
    let (ours, theirs) = (read(ours)?, read(theirs)?);
    let same_shape = ours.len() == theirs.len() && ours.iter().zip(&theirs).all(|(a, b)| a.len() == b.len());
    let pairs = ours.iter().flatten().zip(theirs.iter().flatten());
    same_shape.then(|| pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embeddings_are_compared_number_by_number() {
        let json = |numbers: &str| format!(r#"{{"data":[{{"embedding":{numbers}}}]}}"#).into_bytes();
        let close = difference(&json("[1.0,0.5]"), &json("[1.0,0.50005]")).unwrap();
        assert!((close - 5e-5).abs() < 1e-9, "{close}");
        assert_eq!(difference(&json("[1.0]"), &json("[1.0,2.0]")), None);
        assert_eq!(difference(&json("[1.0]"), b"no JSON"), None);
    }
}
