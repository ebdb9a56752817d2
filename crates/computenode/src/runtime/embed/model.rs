//! A sentence-embedding model: loaded from a folder of a stranger, and applied.
//!
//! The folder holds `config.json`, `tokenizer.json` and `model.safetensors`, and may hold `modules.json`,
//! `1_Pooling/config.json` and `sentence_bert_config.json`. Where the folder asks for something that is not done here
//! (another architecture, another pooling, a further module), it is refused: close would be wrong.

use std::fs::File;
use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};

use candle_core::safetensors::BufferedSafetensors;
use candle_core::{D, DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokenizers::Tokenizer;

use super::tokenizer;
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
/// Bounds of a model's shape: above those of published models.
const MAX_LAYERS: usize = 128;
const MAX_HEADS: usize = 128;
const MAX_TOKENS: usize = 8192;

/// The most tokens of one batch, padding included. It bounds how long a cancelled job goes on.
const BATCH_TOKENS: usize = 2048;
/// The most attention weights of one batch and layer: 128 MiB.
const BATCH_ATTENTION: usize = 32 << 20;
/// Keeps a division from failing on a vector of zeros, as PyTorch's `normalize` does.
const EPSILON: f64 = 1e-12;

/// A loaded model.
pub(super) struct Embedder {
    tokenizer: Tokenizer,
    bert: BertModel,
    config: Config,
    assembly: Assembly,
    max_tokens: usize,
    device: Device,
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
}

impl Embedder {
    /// Loads the model. Needs memory for the weights as stored and as 32-bit floats.
    pub(super) fn load(files: &ModelFiles, device: &Device, limits: Limits) -> Result<Self, RunError> {
        guarded(|| Self::load_unguarded(files, device, limits))
    }

    /// The length of a vector.
    pub(super) fn dimensions(&self) -> usize {
        self.config.hidden_size
    }

    /// Embeds `texts`.
    pub(super) fn embed(
        &self,
        texts: &[String],
        progress: &Progress,
        stop: &Stop,
    ) -> Result<Embedded, RunError> {
        guarded(|| self.embed_unguarded(texts, progress, stop))
    }

    fn load_unguarded(files: &ModelFiles, device: &Device, limits: Limits) -> Result<Self, RunError> {
        let config: Config =
            read_json(files, "config.json")?.ok_or_else(|| bad("there is no config.json"))?;
        check_config(&config)?;
        let sentence: SentenceConfig = read_json(files, "sentence_bert_config.json")?.unwrap_or_default();
        let assembly = Assembly::read(files, sentence.do_lower_case)?;
        let limit = config.max_position_embeddings.min(MAX_TOKENS);
        let max_tokens = sentence.max_seq_length.map_or(limit, |length| length.min(limit));
        let tokenizer = load_tokenizer(files, max_tokens)?;

        let (weights, weight_bytes) = load_weights(files, limits)?;
        if weight_bytes > limits.memory_bytes {
            return Err(too_large(limits));
        }
        let builder = VarBuilder::from_backend(Box::new(weights), DType::F32, device.clone());
        let bert = BertModel::load(builder, &config)
            .map_err(|error| bad(format!("model.safetensors does not fit config.json: {error}")))?;
        // The weights have confirmed the shape that this goes by.
        if weight_bytes.saturating_add(working_bytes(&config, max_tokens)) > limits.memory_bytes {
            return Err(too_large(limits));
        }
        Ok(Self { tokenizer, bert, config, assembly, max_tokens, device: device.clone() })
    }

    fn embed_unguarded(
        &self,
        texts: &[String],
        progress: &Progress,
        stop: &Stop,
    ) -> Result<Embedded, RunError> {
        let tokens = self.tokenize(texts, stop)?;
        let total: usize = tokens.iter().map(Vec::len).sum();
        let mut vectors = vec![Vec::new(); texts.len()];
        let mut done = 0;
        for batch in self.batches(&tokens) {
            stop.check()?;
            let rows: Vec<&[u32]> = batch.iter().map(|&index| tokens[index].as_slice()).collect();
            let embedded = self.forward(&rows).map_err(|error| bad(format!("the model fails: {error}")))?;
            for (&index, vector) in batch.iter().zip(embedded) {
                if vector.iter().any(|value| !value.is_finite()) {
                    return Err(bad("the model gives numbers that are not finite"));
                }
                done += tokens[index].len();
                vectors[index] = vector;
            }
            progress.report(u8::try_from(done * 100 / total.max(1)).unwrap_or(100));
        }
        Ok(Embedded { vectors, tokens: total as u64 })
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
            if ids.iter().any(|&id| id as usize >= self.config.vocab_size) {
                return Err(bad("the tokenizer gives tokens outside the model's vocabulary"));
            }
            tokens.push(ids.to_vec());
        }
        Ok(tokens)
    }

    /// Texts of similar length together, the longest first, so that little is padding.
    fn batches(&self, tokens: &[Vec<u32>]) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..tokens.len()).collect();
        order.sort_by_key(|&index| std::cmp::Reverse(tokens[index].len()));
        let mut batches: Vec<Vec<usize>> = Vec::new();
        let mut room = 0;
        for index in order {
            match batches.last_mut() {
                Some(batch) if room > 0 => batch.push(index),
                Some(_) | None => {
                    let length = tokens[index].len();
                    let attention = self.config.num_attention_heads * length * length;
                    room = (BATCH_TOKENS / length).min(BATCH_ATTENTION / attention).max(1);
                    batches.push(vec![index]);
                }
            }
            room -= 1;
        }
        batches
    }

    fn forward(&self, rows: &[&[u32]]) -> candle_core::Result<Vec<Vec<f32>>> {
        let length = rows.iter().map(|row| row.len()).max().unwrap_or(0);
        let shape = (rows.len(), length);
        let mut ids = Vec::with_capacity(rows.len() * length);
        let mut mask = Vec::with_capacity(rows.len() * length);
        for row in rows {
            ids.extend_from_slice(row);
            mask.extend(std::iter::repeat_n(1f32, row.len()));
            // What stands in the padding does not matter, it is masked; it has to be in the vocabulary.
            ids.resize(ids.len() + length - row.len(), 0);
            mask.resize(ids.len(), 0f32);
        }
        let ids = Tensor::from_vec(ids, shape, &self.device)?;
        let mask = Tensor::from_vec(mask, shape, &self.device)?;
        let hidden = self.bert.forward(&ids, &ids.zeros_like()?, Some(&mask))?;
        let pooled = match self.assembly.pooling {
            Pooling::Cls => hidden.narrow(1, 0, 1)?.squeeze(1)?,
            Pooling::Mean => {
                let sum = hidden.broadcast_mul(&mask.unsqueeze(D::Minus1)?)?.sum(1)?;
                sum.broadcast_div(&mask.sum_keepdim(1)?)?
            }
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
            _ => Err(bad(format!("unsupported pooling {modes:?}: one of mean and cls is needed"))),
        }
    }
}

fn check_config(config: &Config) -> Result<(), RunError> {
    if config.model_type.as_deref().is_some_and(|kind| kind != "bert") {
        return Err(bad(format!("config.json: model_type {:?} is not bert", config.model_type)));
    }
    let within = |name: &str, value: usize, most: usize| {
        if (1..=most).contains(&value) {
            Ok(())
        } else {
            Err(bad(format!("config.json: {name} is {value}; it must be 1 to {most}")))
        }
    };
    within("num_hidden_layers", config.num_hidden_layers, MAX_LAYERS)?;
    within("num_attention_heads", config.num_attention_heads, MAX_HEADS)?;
    within("hidden_size", config.hidden_size, 1 << 16)?;
    within("intermediate_size", config.intermediate_size, 1 << 18)?;
    within("vocab_size", config.vocab_size, 1 << 24)?;
    within("type_vocab_size", config.type_vocab_size, 1 << 16)?;
    within("max_position_embeddings", config.max_position_embeddings, 1 << 20)?;
    if !config.hidden_size.is_multiple_of(config.num_attention_heads) {
        return Err(bad("config.json: num_attention_heads does not divide hidden_size"));
    }
    Ok(())
}

fn load_tokenizer(files: &ModelFiles, max_tokens: usize) -> Result<Tokenizer, RunError> {
    let bytes = read_bounded(files, "tokenizer.json", MAX_TOKENIZER_BYTES)?
        .ok_or_else(|| bad("there is no tokenizer.json"))?;
    tokenizer::load(&bytes, max_tokens)
}

/// The memory that the largest batch needs beside the weights, in bytes: three times its attention weights and its
/// activations, for as many of them live at once.
fn working_bytes(config: &Config, max_tokens: usize) -> u64 {
    const LIVE_COPIES: u64 = 3 * size_of::<f32>() as u64;
    let [heads, length, hidden, inner] =
        [config.num_attention_heads, max_tokens, config.hidden_size, config.intermediate_size]
            .map(|size| size as u64);
    let tokens = length.max(BATCH_TOKENS as u64);
    let attention = (heads * length * tokens).min((BATCH_ATTENTION as u64).max(heads * length * length));
    (attention + tokens * (inner + 4 * hidden)).saturating_mul(LIVE_COPIES)
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
        ModelFiles::File(_) => Err(io::Error::other("the model is one file; a folder is needed")),
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
