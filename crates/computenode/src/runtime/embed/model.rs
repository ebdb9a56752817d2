//! A sentence-embedding model: loaded from a folder of a stranger, and applied.
//!
//! The folder holds `config.json`, `tokenizer.json` and `model.safetensors`, and may hold `modules.json`,
//! `1_Pooling/config.json` and `sentence_bert_config.json`. Where the folder asks for something that is not done here
//! (another architecture, another pooling, a further module), it is refused: close would be wrong.

use std::fs::File;
use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use candle_core::safetensors::BufferedSafetensors;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokenizers::Tokenizer;

use super::encoder::{Encoder, Group};
use super::shape::{Config, Shape};
use super::tokenizer;
use super::workers::Workers;
use crate::runtime::{Limits, ModelFiles, Progress, RunCode, RunError, Stop};

/// The files without which there is no model.
pub(super) const REQUIRED_FILES: &[&str] = &["config.json", "tokenizer.json", WEIGHTS];
/// The files that are used where they exist.
pub(super) const OPTIONAL_FILES: &[&str] = &["modules.json", POOLING, "sentence_bert_config.json"];
const WEIGHTS: &str = "model.safetensors";
const POOLING: &str = "1_Pooling/config.json";

/// The largest JSON file beside the tokenizer, in bytes.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// The largest tokenizer, in bytes.
const MAX_TOKENIZER_BYTES: u64 = 32 << 20;
/// The largest header of the weights, in bytes: some 100,000 tensors.
const MAX_HEADER_BYTES: u64 = 16 << 20;
/// The most tokens of one text.
const MAX_TOKENS: usize = 8192;

/// The most tokens of one batch of several texts, on a processor and on a GPU. It bounds how long a cancelled job goes on;
/// what is computed of a batch at once should fit into a processor's cache.
const CPU_BATCH_TOKENS: usize = 512;
const GPU_BATCH_TOKENS: usize = 16_384;
/// Keeps a division from failing on a vector of zeros, as PyTorch's `normalize` does.
const EPSILON: f64 = 1e-12;

/// A loaded model.
pub(super) struct Embedder {
    tokenizer: Tokenizer,
    encoder: Encoder,
    shape: Shape,
    assembly: Assembly,
    max_tokens: usize,
    batch_tokens: usize,
    /// How many batches may be computed at once, for the memory that they need.
    batches_at_once: usize,
}

/// What a job gave.
pub(super) struct Embedded {
    /// One vector per text, in their order.
    pub(super) vectors: Vec<Vec<f32>>,
    /// The tokens that the model read, those it adds itself included.
    pub(super) tokens: u64,
}

/// What is done around the transformer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Assembly {
    pooling: Pooling,
    normalize: bool,
    lower_case: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pooling {
    Mean,
    Cls,
    Max,
}

impl Embedder {
    /// Loads the model. Needs memory for the weights as stored and as 32-bit floats.
    pub(super) fn load(files: &ModelFiles, device: &Device, limits: Limits) -> Result<Self, RunError> {
        guarded(|| Self::load_unguarded(files, device, limits))
    }

    /// The length of a vector.
    pub(super) fn dimensions(&self) -> usize {
        self.shape.width
    }

    /// Embeds `texts`.
    pub(super) fn embed(
        self: &Arc<Self>,
        texts: &[String],
        workers: &Workers,
        progress: &Progress,
        stop: &Stop,
    ) -> Result<Embedded, RunError> {
        let tokens = Arc::new(guarded(|| self.tokenize(texts, stop))?);
        let batches = Arc::new(self.batches(&tokens));
        let total: usize = tokens.iter().map(Vec::len).sum();
        let step = {
            let (this, tokens, batches) = (Arc::clone(self), Arc::clone(&tokens), Arc::clone(&batches));
            let stop = stop.clone();
            move |index: usize| {
                stop.check()?;
                guarded(|| this.forward(&batches[index], &tokens))
            }
        };
        let mut vectors = vec![Vec::new(); texts.len()];
        let mut done = 0;
        workers.run(batches.len(), self.batches_at_once, step, |index, embedded: Vec<Vec<f32>>| {
            for (&text, vector) in batches[index].iter().zip(embedded) {
                done += tokens[text].len();
                vectors[text] = vector;
            }
            progress.report(u8::try_from(done * 100 / total.max(1)).unwrap_or(100));
        })?;
        Ok(Embedded { vectors, tokens: total as u64 })
    }

    fn load_unguarded(files: &ModelFiles, device: &Device, limits: Limits) -> Result<Self, RunError> {
        let config: Config =
            read_json(files, "config.json")?.ok_or_else(|| bad("there is no config.json"))?;
        let shape = Shape::new(&config)?;
        let sentence: SentenceConfig = read_json(files, "sentence_bert_config.json")?.unwrap_or_default();
        let assembly = Assembly::read(files, sentence.do_lower_case)?;
        let limit = shape.max_tokens().min(MAX_TOKENS);
        let max_tokens = sentence.max_seq_length.map_or(limit, |length| length.min(limit));
        let tokenizer = load_tokenizer(files, max_tokens)?;

        let (weights, weight_bytes) = load_weights(files, limits)?;
        if weight_bytes > limits.memory_bytes {
            return Err(too_large(limits));
        }
        let builder = VarBuilder::from_backend(Box::new(weights), DType::F32, device.clone());
        let encoder = Encoder::load(&builder, &shape)
            .map_err(|error| bad(format!("model.safetensors does not fit config.json: {error}")))?;
        // The weights have confirmed the shape that this goes by.
        let batch_tokens = if device.is_cpu() { CPU_BATCH_TOKENS } else { GPU_BATCH_TOKENS };
        let room = limits.memory_bytes.saturating_sub(weight_bytes);
        let batches_at_once = room / working_bytes(&shape, max_tokens, batch_tokens).max(1);
        if batches_at_once == 0 {
            return Err(too_large(limits));
        }
        let batches_at_once = usize::try_from(batches_at_once).unwrap_or(usize::MAX);
        Ok(Self { tokenizer, encoder, shape, assembly, max_tokens, batch_tokens, batches_at_once })
    }

    fn tokenize(&self, texts: &[String], stop: &Stop) -> Result<Vec<Vec<u32>>, RunError> {
        let mut tokens = Vec::with_capacity(texts.len());
        for text in texts {
            stop.check()?;
            let lowered = self.assembly.lower_case.then(|| text.to_lowercase());
            let encoding = self
                .tokenizer
                .encode_fast(lowered.as_deref().unwrap_or(text), true)
                .map_err(|error| bad(format!("the tokenizer fails: {error}")))?;
            let ids = encoding.get_ids();
            if ids.is_empty() || ids.len() > self.max_tokens {
                return Err(bad(format!("the tokenizer gives {} tokens for a text", ids.len())));
            }
            if ids.iter().any(|&id| id as usize >= self.shape.words) {
                return Err(bad("the tokenizer gives tokens outside the model's vocabulary"));
            }
            tokens.push(ids.to_vec());
        }
        Ok(tokens)
    }

    /// Texts of similar length together, the longest first, so that no long one is left for the end.
    fn batches(&self, tokens: &[Vec<u32>]) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..tokens.len()).collect();
        order.sort_by_key(|&index| std::cmp::Reverse(tokens[index].len()));
        let mut batches: Vec<Vec<usize>> = Vec::new();
        let mut room = 0;
        for index in order {
            let length = tokens[index].len();
            match batches.last_mut() {
                Some(batch) if length <= room => {
                    batch.push(index);
                    room -= length;
                }
                Some(_) | None => {
                    batches.push(vec![index]);
                    room = self.batch_tokens.saturating_sub(length);
                }
            }
        }
        batches
    }

    /// The vectors of a batch's texts. Those of one length stand together in it.
    fn forward(&self, batch: &[usize], tokens: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, RunError> {
        let mut ids = Vec::new();
        let mut groups: Vec<Group> = Vec::new();
        for texts in batch.chunk_by(|a, b| tokens[*a].len() == tokens[*b].len()) {
            let start = ids.len();
            texts.iter().for_each(|&text| ids.extend_from_slice(&tokens[text]));
            groups.push(Group { rows: start..ids.len(), texts: texts.len() });
        }
        let failed = |error| bad(format!("the model fails: {error}"));
        let hidden = self.encoder.forward(&ids, &groups).map_err(failed)?;
        let mut vectors = Vec::with_capacity(batch.len());
        for group in &groups {
            vectors.extend(self.pool(&hidden, group).map_err(failed)?);
        }
        if vectors.iter().flatten().any(|value: &f32| !value.is_finite()) {
            return Err(bad("the model gives numbers that are not finite"));
        }
        Ok(vectors)
    }

    /// One vector for each text of a group.
    fn pool(&self, hidden: &Tensor, group: &Group) -> candle_core::Result<Vec<Vec<f32>>> {
        let rows = hidden.narrow(0, group.rows.start, group.rows.len())?;
        let texts = rows.reshape((group.texts, group.rows.len() / group.texts, ()))?;
        let pooled = match self.assembly.pooling {
            Pooling::Mean => texts.mean(1)?,
            Pooling::Cls => texts.narrow(1, 0, 1)?.squeeze(1)?,
            Pooling::Max => texts.max(1)?,
        };
        if !self.assembly.normalize {
            return pooled.to_vec2();
        }
        let norm = pooled.sqr()?.sum_keepdim(1)?.sqrt()?.maximum(EPSILON)?;
        pooled.broadcast_div(&norm)?.to_vec2()
    }
}

#[derive(Deserialize, Default)]
struct SentenceConfig {
    max_seq_length: Option<usize>,
    #[serde(default)]
    do_lower_case: bool,
}

#[derive(Deserialize)]
struct Module {
    path: String,
    r#type: String,
}

impl Assembly {
    fn read(files: &ModelFiles, lower_case: bool) -> Result<Self, RunError> {
        let modules: Option<Vec<Module>> = read_json(files, "modules.json")?;
        // Without the list of modules, the common ones are meant.
        let mut normalize = modules.is_none();
        for module in modules.iter().flatten() {
            match module.r#type.rsplit('.').next().unwrap_or_default() {
                "Transformer" if module.path.is_empty() => {}
                "Pooling" if module.path == "1_Pooling" => {}
                "Normalize" => normalize = true,
                _ => return Err(bad(format!("unsupported module {} in {:?}", module.r#type, module.path))),
            }
        }
        let pooling: Option<serde_json::Map<String, serde_json::Value>> = read_json(files, POOLING)?;
        let pooling = pooling.map_or(Ok(Pooling::Mean), |config| Pooling::read(&config))?;
        Ok(Self { pooling, normalize, lower_case })
    }
}

impl Pooling {
    fn read(config: &serde_json::Map<String, serde_json::Value>) -> Result<Self, RunError> {
        let modes: Vec<&str> = config
            .iter()
            .filter(|(key, value)| key.starts_with("pooling_mode_") && **value == true)
            .map(|(key, _)| key.as_str())
            .collect();
        match modes.as_slice() {
            ["pooling_mode_mean_tokens"] => Ok(Self::Mean),
            ["pooling_mode_cls_token"] => Ok(Self::Cls),
            ["pooling_mode_max_tokens"] => Ok(Self::Max),
            _ => Err(bad(format!("unsupported pooling {modes:?}: one of mean, cls and max is needed"))),
        }
    }
}

fn load_tokenizer(files: &ModelFiles, max_tokens: usize) -> Result<Tokenizer, RunError> {
    let bytes = read_bounded(files, "tokenizer.json", MAX_TOKENIZER_BYTES)?
        .ok_or_else(|| bad("there is no tokenizer.json"))?;
    tokenizer::load(&bytes, max_tokens)
}

/// The memory that the largest batch needs beside the weights, in bytes: three times its attention weights and its
/// activations, for as many of them live at once.
fn working_bytes(shape: &Shape, max_tokens: usize, batch_tokens: usize) -> u64 {
    const LIVE_COPIES: u64 = 3 * size_of::<f32>() as u64;
    let [heads, length, width, inner, batch] =
        [shape.heads, max_tokens, shape.width, shape.inner, batch_tokens].map(|size| size as u64);
    let tokens = length.max(batch);
    let attention = heads * length * tokens;
    (attention + tokens * (inner + 5 * width)).saturating_mul(LIVE_COPIES)
}

fn too_large(limits: Limits) -> RunError {
    RunError::new(RunCode::OutOfMemory, format!("the model needs more than {} bytes", limits.memory_bytes))
}

/// Reads the weights, and says what memory they take at most. Their sizes are checked before memory is taken for them.
fn load_weights(files: &ModelFiles, limits: Limits) -> Result<(BufferedSafetensors, u64), RunError> {
    let failed = |error: io::Error| bad(format!("cannot read {WEIGHTS}: {error}"));

    let mut file = open(files, WEIGHTS).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    if size > limits.memory_bytes {
        return Err(too_large(limits));
    }
    let mut head = [0; 8];
    file.read_exact(&mut head).map_err(failed)?;
    let header = u64::from_le_bytes(head);
    if header > MAX_HEADER_BYTES || header > size {
        return Err(bad(format!("{WEIGHTS} claims a header of {header} bytes")));
    }
    let mut bytes = Vec::new();
    let capacity = usize::try_from(size).map_err(|_| too_large(limits))?;
    bytes.try_reserve_exact(capacity).map_err(|_| too_large(limits))?;
    bytes.extend_from_slice(&head);
    file.take(size - 8).read_to_end(&mut bytes).map_err(failed)?;

    let weights = BufferedSafetensors::new(bytes).map_err(|error| bad(format!("{WEIGHTS}: {error}")))?;
    let numbers =
        weights.tensors().iter().map(|(_, view)| view.shape().iter().product::<usize>() as u64).sum();
    let as_floats = u64::checked_mul(numbers, size_of::<f32>() as u64);
    let needed = as_floats.and_then(|floats| floats.checked_add(size)).ok_or_else(|| too_large(limits))?;
    Ok((weights, needed))
}

fn read_json<T: DeserializeOwned>(files: &ModelFiles, name: &str) -> Result<Option<T>, RunError> {
    let Some(bytes) = read_bounded(files, name, MAX_CONFIG_BYTES)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| bad(format!("{name}: {error}")))
}

fn read_bounded(files: &ModelFiles, name: &str, most: u64) -> Result<Option<Vec<u8>>, RunError> {
    let failed = |error: io::Error| bad(format!("cannot read {name}: {error}"));
    let file = match open(files, name) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > most {
        return Err(bad(format!("{name} is larger than {most} bytes")));
    }
    Ok(Some(bytes))
}

fn open(files: &ModelFiles, name: &str) -> io::Result<File> {
    match files {
        ModelFiles::Folder(files) => files.get(name).map_or(Err(io::ErrorKind::NotFound.into()), File::open),
        ModelFiles::File(_) | ModelFiles::Image(_) | ModelFiles::Named(_) => {
            Err(io::Error::other("the model is one file; a folder is needed"))
        }
    }
}

/// The libraries are written for models that one trusts; where one of them panics on a stranger's, the model is bad.
fn guarded<T>(work: impl FnOnce() -> Result<T, RunError>) -> Result<T, RunError> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(bad("the model makes the inference library fail")))
}

pub(super) fn bad(message: impl Into<String>) -> RunError {
    RunError::new(RunCode::BadModel, message)
}
