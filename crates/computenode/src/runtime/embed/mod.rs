//! Sentence embeddings by a BERT-family model, in this process.
//!
//! The model is a folder as the sentence-transformers library writes it (see `model`); the input is a JSON
//! request or plain text (see `input`); the result is the JSON that OpenAI's embeddings endpoint answers
//! with, `model` being the model's digest. The result depends on the model, the input and the kind of processor alone:
//! processors of another kind may round the last digits differently.

mod encoder;
mod input;
mod model;
mod shape;
mod tokenizer;
mod workers;

use std::fs::File;
use std::io::Read;
use std::num::NonZero;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Device;
use futures_util::future::BoxFuture;
use serde::Serialize;
use taskmarket::params::Params;

use self::model::Embedder;
use self::workers::Workers;
use super::{Context, Job, Model, ModelShape, Output, Progress, RunCode, RunError, Runtime, Stop, blocking};

/// The models that stay in memory between jobs.
const CACHED_MODELS: usize = 2;

/// The fewest bytes that a number takes in the result, with its comma.
const BYTES_PER_NUMBER: u64 = 4;

/// Computes sentence embeddings.
pub struct EmbedRuntime {
    device: Device,
    cache: Arc<Cache>,
    workers: Arc<Workers>,
}

impl EmbedRuntime {
    /// What a model consists of.
    pub const MODEL_SHAPE: ModelShape =
        ModelShape::Folder { required: model::REQUIRED_FILES, optional: model::OPTIONAL_FILES };

    /// A runtime on the first GPU where the feature `cuda` is built in and there is one, else on all processors.
    ///
    /// # Errors
    /// The GPU does not work, or no thread can be started.
    pub fn new() -> candle_core::Result<Self> {
        let processors = std::thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN);
        Self::with_threads(processors)
    }

    /// As [`Self::new`], with so many threads for all jobs together.
    ///
    /// # Errors
    /// As those of [`Self::new`].
    pub fn with_threads(threads: NonZero<usize>) -> candle_core::Result<Self> {
        let device = crate::device::best()?;
        // One stream of work keeps a GPU busy.
        let threads = if device.is_cpu() { threads.get() } else { 1 };
        let workers = Workers::new(threads).map_err(candle_core::Error::wrap)?;
        Ok(Self { device, cache: Arc::default(), workers: Arc::new(workers) })
    }
}

impl Runtime for EmbedRuntime {
    fn run<'a>(&'a self, job: Job, context: &'a Context) -> BoxFuture<'a, Result<Output, RunError>> {
        let (device, progress) = (self.device.clone(), context.progress.clone());
        let (cache, workers) = (Arc::clone(&self.cache), Arc::clone(&self.workers));
        Box::pin(async move {
            let (stop, _ends_with_this_future) = Stop::guarded(job.limits.wall, context);
            blocking(move || embed(&job, &device, &cache, &workers, &progress, &stop)).await
        })
    }

    fn model_shape(&self) -> ModelShape {
        Self::MODEL_SHAPE
    }

    fn needs_folder(&self) -> bool {
        false
    }

    fn uses_gpu(&self) -> bool {
        self.device.is_cuda()
    }

    fn warm_models(&self) -> Vec<String> {
        self.cache.digests()
    }
}

fn embed(
    job: &Job,
    device: &Device,
    cache: &Cache,
    workers: &Workers,
    progress: &Progress,
    stop: &Stop,
) -> Result<Output, RunError> {
    Params::parse(taskmarket::params::Runtime::Embed, &job.params)
        .map_err(|error| RunError::new(RunCode::BadParams, error.to_string()))?;
    let texts = input::parse(&read_input(job)?)?;
    let embedder = match cache.get(&job.model) {
        Some(embedder) => embedder,
        None => cache.put(&job.model, Embedder::load(&job.model.files, device, job.limits)?),
    };
    stop.check()?;

    let smallest = (texts.len() as u64).saturating_mul(embedder.dimensions() as u64) * BYTES_PER_NUMBER;
    if smallest > job.limits.output_bytes {
        return Err(RunError::output_too_large(job.limits.output_bytes));
    }
    let embedded = embedder.embed(&texts, workers, progress, stop)?;
    let response = Response {
        object: "list",
        model: &job.model.digest,
        data: embedded
            .vectors
            .iter()
            .enumerate()
            .map(|(index, embedding)| Item { object: "embedding", index, embedding })
            .collect(),
        usage: Usage { prompt_tokens: embedded.tokens, total_tokens: embedded.tokens },
    };
    let bytes = serde_json::to_vec(&response)
        .map_err(|error| RunError::new(RunCode::Internal, format!("cannot write the result: {error}")))?;
    if bytes.len() as u64 > job.limits.output_bytes {
        return Err(RunError::output_too_large(job.limits.output_bytes));
    }
    Ok(Output::Bytes(bytes))
}

fn read_input(job: &Job) -> Result<Vec<u8>, RunError> {
    let failed = |error| RunError::new(RunCode::BadInput, format!("cannot read the input: {error}"));
    let mut bytes = Vec::new();
    let file = File::open(&job.input).map_err(failed)?;
    file.take(input::MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

#[derive(Serialize)]
struct Response<'a> {
    object: &'static str,
    model: &'a str,
    data: Vec<Item<'a>>,
    usage: Usage,
}

#[derive(Serialize)]
struct Item<'a> {
    object: &'static str,
    index: usize,
    embedding: &'a [f32],
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: u64,
    total_tokens: u64,
}

/// The models used last, the latest at the end.
#[derive(Default)]
struct Cache(Mutex<Vec<(String, Arc<Embedder>)>>);

impl Cache {
    fn digests(&self) -> Vec<String> {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.iter().map(|(digest, _)| digest.clone()).collect()
    }

    fn get(&self, model: &Model) -> Option<Arc<Embedder>> {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let position = entries.iter().position(|(digest, _)| *digest == model.digest)?;
        let entry = entries.remove(position);
        let embedder = Arc::clone(&entry.1);
        entries.push(entry);
        Some(embedder)
    }

    fn put(&self, model: &Model, embedder: Embedder) -> Arc<Embedder> {
        let embedder = Arc::new(embedder);
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|(digest, _)| *digest != model.digest);
        if entries.len() == CACHED_MODELS {
            entries.remove(0);
        }
        entries.push((model.digest.clone(), Arc::clone(&embedder)));
        embedder
    }
}
