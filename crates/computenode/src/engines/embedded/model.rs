//! A Llama-family model on the disk, a stranger's: loaded, with its tokenizer and chat template, and applied.
//!
//! It is one GGUF file, quantised or not, or a folder as the transformers library writes it: `config.json`,
//! `tokenizer.json`, `model.safetensors`, and where they exist `tokenizer_config.json`, `chat_template.jinja` and
//! `generation_config.json`. Where a file asks for what is not done here, it is refused: close would be wrong.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::safetensors::BufferedSafetensors;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Llama, LlamaConfig, LlamaEosToks};
use candle_transformers::models::quantized_llama::{self, ModelWeights};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokenizers::Tokenizer;

use super::template::ChatTemplate;
use super::tokenizer::{self, Words};

/// The largest description in a GGUF file, vocabulary and all, in bytes. It takes up to 32 times as much in memory.
const MAX_HEADER_BYTES: u64 = 64 << 20;

/// The largest JSON file beside the weights, in bytes; tokenizers of 250,000 words have some 30 MiB.
const MAX_JSON_BYTES: u64 = 64 << 20;

/// The longest context, in tokens: beyond it the tables and the cache of a small machine grow too large.
const MAX_CONTEXT: usize = 32_768;

/// More than any model of this family has: what a header may claim before memory is set aside for it.
const MAX_LAYERS: u64 = 512;
const MAX_EXPERTS: u64 = 256;
const MAX_ROPE: u64 = 1024;

/// A loaded model.
pub(super) struct Model {
    weights: Weights,
    device: Device,
    words: Words,
    template: Option<ChatTemplate>,
    /// Its context window, in tokens.
    pub(super) context: usize,
    /// Its quantisation, such as `q8_0`.
    pub(super) quantization: String,
}

enum Weights {
    Quantized(ModelWeights),
    Full { llama: Llama, cache: Cache },
}

/// One text that grows: what the model remembers of it.
pub(super) enum Session<'a> {
    Quantized { weights: Box<ModelWeights>, device: &'a Device },
    Full { llama: &'a Llama, cache: Box<Cache>, device: &'a Device },
}

impl Model {
    /// Loads the model at `path`, a GGUF file or a folder.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub(super) fn load(path: &Path) -> Result<Self, String> {
        let loading = || {
            let device = crate::device::best().map_err(told)?;
            let model = if path.is_dir() { load_folder(path, device)? } else { load_gguf(path, device)? };
            // What does not fit together shows at the first token.
            model.session().forward(&[0], 0).map_err(|error| format!("the model fails: {error}"))?;
            Ok(model)
        };
        // The library takes some of what it reads at its word.
        catch_unwind(AssertUnwindSafe(loading)).unwrap_or_else(|_| Err("reading the model failed".to_owned()))
    }

    /// A text that has not begun yet.
    pub(super) fn session(&self) -> Session<'_> {
        let device = &self.device;
        match &self.weights {
            // Clones share the weights. What is remembered of a text goes with its clone.
            Weights::Quantized(weights) => Session::Quantized { weights: Box::new(weights.clone()), device },
            Weights::Full { llama, cache } => Session::Full { llama, cache: Box::new(cache.clone()), device },
        }
    }

    /// How conversations become texts, where the model was trained for them.
    pub(super) fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// Its tokenizer.
    pub(super) fn tokenizer(&self) -> &Tokenizer {
        &self.words.tokenizer
    }

    /// Whether a token ends the answer.
    pub(super) fn is_end(&self, token: u32) -> bool {
        self.words.ends.contains(&token)
    }

    /// A text's tokens, with the one that all texts begin with.
    pub(super) fn tokens(&self, text: &str) -> Result<Vec<u32>, String> {
        let encoding = self.words.tokenizer.encode_fast(text, false).map_err(told)?;
        let mut tokens = encoding.get_ids().to_vec();
        // Chat templates write it themselves.
        if let Some(begin) = self.words.begin.filter(|begin| tokens.first() != Some(begin)) {
            tokens.insert(0, begin);
        }
        Ok(tokens)
    }
}

impl Session<'_> {
    /// Reads `tokens`, which follow on `at` earlier ones, and gives the likelihoods of the next, one number a word.
    pub(super) fn forward(&mut self, tokens: &[u32], at: usize) -> candle_core::Result<Tensor> {
        match self {
            Self::Quantized { weights, device } => {
                weights.forward(&Tensor::new(tokens, device)?.unsqueeze(0)?, at)?.squeeze(0)
            }
            Self::Full { llama, cache, device } => {
                llama.forward(&Tensor::new(tokens, device)?.unsqueeze(0)?, at, cache)?.squeeze(0)
            }
        }
    }
}

fn load_gguf(path: &Path, device: Device) -> Result<Model, String> {
    let file = File::open(path).map_err(told)?;
    let mut header = Header { left: MAX_HEADER_BYTES, file: io::BufReader::new(file) };
    let content = Content::read(&mut header).map_err(told)?;
    check_header(&content)?;
    let words = tokenizer::of_gguf(&content)?;
    let text = |key: &str| content.metadata.get(key).and_then(|value| value.to_string().ok());
    let template = text("tokenizer.chat_template").cloned();
    let template = template.map(|source| ChatTemplate::new(source, words.texts.clone())).transpose()?;
    let context = number(&content, "llama.context_length").unwrap_or(quantized_llama::MAX_SEQ_LEN as u64);
    let context = usize::try_from(context).unwrap_or(usize::MAX).min(quantized_llama::MAX_SEQ_LEN);
    // Most tensors tell the file's kind; norms are always whole.
    let quantization = content.tensor_infos.get("blk.0.ffn_down.weight").map(|info| info.ggml_dtype);
    let quantization = quantization.map(|kind| format!("{kind:?}").to_lowercase()).unwrap_or_default();
    let quantization =
        quantization.strip_suffix('k').map_or(quantization.clone(), |bits| format!("{bits}_k"));
    let weights = ModelWeights::from_gguf(content, &mut header.file, &device).map_err(told)?;
    Ok(Model { weights: Weights::Quantized(weights), device, words, template, context, quantization })
}

/// Refuses what the library would take otherwise than it is meant, and what would ask for endless memory.
fn check_header(content: &Content) -> Result<(), String> {
    let architecture = content.metadata.get("general.architecture").and_then(|value| value.to_string().ok());
    if architecture.is_none_or(|name| name != "llama") {
        return Err(format!("the architecture is {architecture:?}; this engine has llama's"));
    }
    let scaled = content.metadata.get("llama.rope.scaling.type").and_then(|value| value.to_string().ok());
    if content.tensor_infos.contains_key("rope_freqs.weight") || scaled.is_some_and(|kind| kind != "none") {
        return Err("its positions are scaled, which this engine does for safetensors only; \
                    use llama.cpp's server, or the safetensors folder"
            .to_owned());
    }
    for (key, most) in [
        ("llama.block_count", MAX_LAYERS),
        ("llama.expert_count", MAX_EXPERTS),
        ("llama.rope.dimension_count", MAX_ROPE),
    ] {
        if number(content, key).is_some_and(|number| number > most) {
            return Err(format!("{key} is larger than {most}"));
        }
    }
    Ok(())
}

fn number(content: &Content, key: &str) -> Option<u64> {
    content.metadata.get(key).and_then(|value: &Value| value.to_u64().ok())
}

/// A file whose reader may read so much and no more.
struct Header {
    left: u64,
    file: io::BufReader<File>,
}

impl Read for Header {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Err(io::Error::other(format!("the header has more than {MAX_HEADER_BYTES} bytes")));
        }
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.file.read(&mut buffer[..most])?;
        self.left -= read as u64;
        Ok(read)
    }
}

impl Seek for Header {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }

    fn stream_position(&mut self) -> io::Result<u64> {
        self.file.stream_position()
    }
}

/// What of `tokenizer_config.json` matters here.
#[derive(Default, Deserialize)]
struct TokenizerConfig {
    #[serde(default)]
    chat_template: Option<Templates>,
    #[serde(default)]
    bos_token: Option<Named>,
    #[serde(default)]
    eos_token: Option<Named>,
    #[serde(default)]
    add_bos_token: Option<bool>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Several(Vec<Template>),
}

#[derive(Deserialize)]
struct Template {
    name: String,
    template: String,
}

/// A token by its text, as it is written today and as it was before.
#[derive(Deserialize)]
#[serde(untagged)]
enum Named {
    Text(String),
    Token { content: String },
}

impl Named {
    fn text(self) -> String {
        match self {
            Self::Text(text) | Self::Token { content: text } => text,
        }
    }
}

#[derive(Default, Deserialize)]
struct GenerationConfig {
    #[serde(default)]
    eos_token_id: Option<LlamaEosToks>,
}

#[derive(Deserialize)]
struct Architecture {
    model_type: String,
}

fn load_folder(folder: &Path, device: Device) -> Result<Model, String> {
    let missing = |name: &str| format!("there is no {name}");
    let config = folder.join("config.json");
    let Architecture { model_type } = read_json(&config)?.ok_or_else(|| missing("config.json"))?;
    if model_type != "llama" {
        return Err(format!("the model is a {model_type:?}; this engine has llama's architecture"));
    }
    let config: LlamaConfig = read_json(&config)?.ok_or_else(|| missing("config.json"))?;
    let most = [config.num_hidden_layers as u64 > MAX_LAYERS, config.num_attention_heads == 0];
    if most.contains(&true) || config.num_key_value_heads() == 0 {
        return Err("config.json does not describe a model of this architecture".to_owned());
    }
    let mut ends = tokens(config.eos_token_id.clone());
    ends.extend(tokens(
        read_json::<GenerationConfig>(&folder.join("generation_config.json"))?
            .unwrap_or_default()
            .eos_token_id,
    ));
    let (words, template) = read_words(folder, ends, config.bos_token_id)?;

    let mut config = config.into_config(false);
    config.max_position_embeddings = config.max_position_embeddings.min(MAX_CONTEXT);
    let kind = if device.is_cpu() { DType::F32 } else { DType::BF16 };
    let bytes = std::fs::read(folder.join("model.safetensors"))
        .map_err(|error| format!("model.safetensors: {error}"))?;
    let stored = BufferedSafetensors::new(bytes).map_err(told)?;
    let variables = VarBuilder::from_backend(Box::new(stored), kind, device.clone());
    let llama = Llama::load(variables, &config).map_err(told)?;
    let cache = Cache::new(true, kind, &config, &device).map_err(told)?;
    let quantization = if device.is_cpu() { "f32" } else { "bf16" }.to_owned();
    let context = config.max_position_embeddings;
    Ok(Model { weights: Weights::Full { llama, cache }, device, words, template, context, quantization })
}

/// The tokenizer and the chat template of a folder.
fn read_words(
    folder: &Path,
    ends: Vec<u32>,
    begin: Option<u32>,
) -> Result<(Words, Option<ChatTemplate>), String> {
    let bytes = read(&folder.join("tokenizer.json"))?.ok_or("there is no tokenizer.json")?;
    let tokenizer = Tokenizer::from_bytes(&bytes).map_err(|error| format!("tokenizer.json: {error}"))?;
    let config: TokenizerConfig = read_json(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
    let written = read(&folder.join("chat_template.jinja"))?;
    let written = written.map(String::from_utf8).transpose().map_err(told)?;
    let in_config = config.chat_template.and_then(|templates| match templates {
        Templates::One(source) => Some(source),
        Templates::Several(all) => all.into_iter().find(|one| one.name == "default").map(|one| one.template),
    });
    let [begin_text, end_text] =
        [config.bos_token, config.eos_token].map(|named| named.map(Named::text).unwrap_or_default());
    let texts = [begin_text, end_text];
    let template =
        written.or(in_config).map(|source| ChatTemplate::new(source, texts.clone())).transpose()?;
    // Llama's own configurations leave it out, and mean yes.
    let begin = begin.filter(|_| config.add_bos_token.unwrap_or(true));
    Ok((Words { tokenizer, begin, ends, texts }, template))
}

fn tokens(named: Option<LlamaEosToks>) -> Vec<u32> {
    match named {
        None => Vec::new(),
        Some(LlamaEosToks::Single(token)) => vec![token],
        Some(LlamaEosToks::Multiple(tokens)) => tokens,
    }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, String> {
    let Some(bytes) = read(path)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| format!("{}: {error}", name(path).display()))
}

/// A file of bounded size, if there is one.
fn read(path: &Path) -> Result<Option<Vec<u8>>, String> {
    let failed = |error: io::Error| format!("{}: {error}", name(path).display());
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_JSON_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_JSON_BYTES {
        return Err(format!("{} has more than {MAX_JSON_BYTES} bytes", name(path).display()));
    }
    Ok(Some(bytes))
}

fn name(path: &Path) -> PathBuf {
    path.file_name().map(PathBuf::from).unwrap_or_default()
}

fn told(error: impl std::fmt::Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests;
