//! Asks an engine what it serves.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use reqwest::{Client, StatusCode, Url};
use rpc::inference::{InferenceKind, MAX_MODEL_ID_BYTES, MAX_MODELS};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::embedded::OWNER;

/// The longest answer to a question that is read, in bytes. FastAPI's descriptions of vLLM have some 500 KiB.
const MAX_ANSWER_BYTES: usize = 4 << 20;

/// The slots of an engine that batches requests by itself.
const BATCHING_SLOTS: u32 = 64;

/// The slots of an engine of which nothing is known.
const UNKNOWN_SLOTS: u32 = 4;

/// Why an engine does not tell what it serves.
#[derive(Debug)]
pub(super) struct Problem {
    /// Whether nothing listens there.
    pub(super) refused: bool,
    /// What it answered instead, if anything.
    pub(super) status: Option<StatusCode>,
    pub(super) text: String,
}

/// What an engine serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Served {
    pub(super) kind: Kind,
    pub(super) models: Vec<ServedModel>,
    pub(super) slots: u32,
    pub(super) endpoints: Vec<InferenceKind>,
}

/// A model that an engine serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServedModel {
    pub(super) id: String,
    pub(super) quantization: String,
    pub(super) context_tokens: Option<u32>,
    /// Whether it is in memory, where the engine tells.
    pub(super) warm: Option<bool>,
}

/// What kind of engine it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    LlamaCpp,
    Vllm,
    Sglang,
    Ollama,
    LmStudio,
    Embedded,
    Other,
}

impl Kind {
    /// As offers and receipts name it, where it is known.
    pub(super) fn name(self) -> Option<&'static str> {
        match self {
            Self::LlamaCpp => Some("llama.cpp"),
            Self::Vllm => Some("vllm"),
            Self::Sglang => Some("sglang"),
            Self::Ollama => Some("ollama"),
            Self::LmStudio => Some("lm-studio"),
            Self::Embedded => Some("embedded"),
            Self::Other => None,
        }
    }

    fn owner(owned_by: &str) -> Self {
        match owned_by {
            "llamacpp" => Self::LlamaCpp,
            "vllm" => Self::Vllm,
            "sglang" => Self::Sglang,
            "library" => Self::Ollama,
            "organization_owner" => Self::LmStudio,
            OWNER => Self::Embedded,
            _ => Self::Other,
        }
    }

    fn slots(self) -> u32 {
        match self {
            Self::Vllm | Self::Sglang => BATCHING_SLOTS,
            Self::LlamaCpp | Self::Ollama | Self::LmStudio | Self::Embedded => 1,
            Self::Other => UNKNOWN_SLOTS,
        }
    }

    /// What such engines answer where they do not describe themselves.
    fn endpoints(self) -> Vec<InferenceKind> {
        use InferenceKind::{Chat, Completions, Embeddings};
        match self {
            Self::Other => vec![Chat, Completions, Embeddings],
            Self::Embedded => vec![Chat, Completions],
            Self::LlamaCpp | Self::Vllm | Self::Sglang | Self::Ollama | Self::LmStudio => {
                InferenceKind::ALL.to_vec()
            }
        }
    }
}

#[derive(Deserialize)]
struct ModelList {
    data: Vec<ModelEntry>,
}

#[derive(Deserialize)]
struct ModelEntry {
    id: String,
    #[serde(default)]
    owned_by: Option<String>,
    /// vLLM and SGLang.
    #[serde(default)]
    max_model_len: Option<u32>,
    /// llama.cpp.
    #[serde(default)]
    meta: Option<ModelMeta>,
    /// The engine inside this program.
    #[serde(default)]
    quantization: Option<String>,
}

#[derive(Deserialize)]
struct ModelMeta {
    #[serde(default)]
    n_ctx_train: Option<u32>,
}

/// llama.cpp's `/props`.
#[derive(Deserialize)]
struct Props {
    #[serde(default)]
    total_slots: Option<u32>,
    #[serde(default)]
    default_generation_settings: Option<GenerationSettings>,
    #[serde(default)]
    model_path: Option<String>,
}

#[derive(Deserialize)]
struct GenerationSettings {
    #[serde(default)]
    n_ctx: Option<u32>,
}

/// Ollama's `/api/tags`.
#[derive(Deserialize)]
struct Tags {
    models: Vec<Tag>,
}

#[derive(Deserialize)]
struct Tag {
    name: String,
    #[serde(default)]
    details: TagDetails,
}

#[derive(Default, Deserialize)]
struct TagDetails {
    #[serde(default)]
    quantization_level: String,
}

/// Ollama's `/api/ps`: the models that are in memory.
#[derive(Deserialize)]
struct Loaded {
    models: Vec<LoadedModel>,
}

#[derive(Deserialize)]
struct LoadedModel {
    name: String,
}

/// LM Studio's `/api/v0/models`.
#[derive(Deserialize)]
struct States {
    data: Vec<ModelState>,
}

#[derive(Deserialize)]
struct ModelState {
    id: String,
    state: String,
}

#[derive(Deserialize)]
struct OpenApi {
    paths: BTreeMap<String, serde::de::IgnoredAny>,
}

/// Asks an engine what it serves; each question has `deadline`. What was learnt before is not asked again, except for what is in
/// memory.
pub(super) async fn probe(
    http: &Client,
    base: &Url,
    before: Option<&Served>,
    deadline: Duration,
) -> Result<Served, Problem> {
    let ask = Ask { http, base, deadline };
    let list: ModelList = ask.get("v1/models").await?;
    let owner = list.data.iter().find_map(|entry| entry.owned_by.as_deref()).unwrap_or_default();
    let kind = Kind::owner(owner);
    let models = models(list);
    let same = |before: &&Served| {
        before.kind == kind
            && before.models.iter().map(|model| &model.id).eq(models.iter().map(|model| &model.id))
    };
    let mut served = match before.filter(same) {
        Some(before) => before.clone(),
        None => ask.all(kind, models).await?,
    };
    let loaded = ask.loaded(kind).await;
    for model in &mut served.models {
        model.warm = loaded.as_ref().map(|loaded| loaded.contains(&model.id));
    }
    Ok(served)
}

fn models(list: ModelList) -> Vec<ServedModel> {
    let mut models: Vec<ServedModel> = Vec::new();
    for entry in list.data {
        let fits = !entry.id.is_empty()
            && entry.id.len() <= MAX_MODEL_ID_BYTES
            && !entry.id.chars().any(char::is_control);
        if fits && models.len() < MAX_MODELS && models.iter().all(|model| model.id != entry.id) {
            let trained = entry.meta.and_then(|meta| meta.n_ctx_train);
            models.push(ServedModel {
                quantization: quantization(entry.quantization.as_deref().unwrap_or(&entry.id)),
                id: entry.id,
                context_tokens: entry.max_model_len.or(trained),
                warm: None,
            });
        }
    }
    models
}

fn add_props(served: &mut Served, props: &Props) {
    served.slots = props.total_slots.filter(|slots| *slots > 0).unwrap_or(served.slots);
    let context = props.default_generation_settings.as_ref().and_then(|settings| settings.n_ctx);
    for model in &mut served.models {
        model.context_tokens = context.or(model.context_tokens);
        if model.quantization.is_empty() {
            model.quantization = quantization(props.model_path.as_deref().unwrap_or_default());
        }
    }
}

fn add_tags(served: &mut Served, tags: &Tags) {
    for model in &mut served.models {
        if let Some(tag) = tags.models.iter().find(|tag| tag.name == model.id) {
            let level: String = tag.details.quantization_level.chars().take(MAX_QUANTIZATION_CHARS).collect();
            model.quantization = level.to_ascii_lowercase();
        }
    }
}

/// The longest name of a quantisation that is passed on, in characters.
const MAX_QUANTIZATION_CHARS: usize = 32;

/// The quantisation that a model's name tells, such as `q4_k_m`, or nothing.
fn quantization(name: &str) -> String {
    let name = name.to_ascii_lowercase();
    let words = name.split(['-', '.', ':', '/', ' ']);
    let is_quantization = |word: &&str| {
        let numbered = |prefix: &str| {
            let digit = word.strip_prefix(prefix).and_then(|rest| rest.chars().next());
            digit.is_some_and(|c| c.is_ascii_digit())
                && word.len() <= MAX_QUANTIZATION_CHARS
                && word.contains('_')
        };
        matches!(
            *word,
            "awq" | "gptq" | "fp8" | "int8" | "int4" | "bf16" | "fp16" | "f16" | "f32" | "nvfp4" | "mxfp4"
        ) || numbered("q")
            || numbered("iq")
    };
    words.into_iter().rfind(is_quantization).unwrap_or_default().to_owned()
}

struct Ask<'a> {
    http: &'a Client,
    base: &'a Url,
    deadline: Duration,
}

impl Ask<'_> {
    /// All that an engine tells of its models beside their names.
    async fn all(&self, kind: Kind, models: Vec<ServedModel>) -> Result<Served, Problem> {
        let mut served = Served { kind, models, slots: kind.slots(), endpoints: kind.endpoints() };
        match kind {
            Kind::LlamaCpp => {
                match self.get::<Props>("props").await {
                    Ok(props) => add_props(&mut served, &props),
                    // It lists its model before it has loaded it, and answers this to everything else until then.
                    Err(problem) if problem.status == Some(StatusCode::SERVICE_UNAVAILABLE) => {
                        return Err(problem);
                    }
                    Err(_) => {}
                }
            }
            Kind::Ollama => {
                if let Ok(tags) = self.get::<Tags>("api/tags").await {
                    add_tags(&mut served, &tags);
                }
            }
            Kind::Vllm | Kind::Sglang | Kind::LmStudio | Kind::Embedded | Kind::Other => {}
        }
        if let Ok(described) = self.get::<OpenApi>("openapi.json").await {
            let has = |kind: &InferenceKind| described.paths.contains_key(kind.path());
            let endpoints: Vec<_> = InferenceKind::ALL.into_iter().filter(has).collect();
            if !endpoints.is_empty() {
                served.endpoints = endpoints;
            }
        }
        Ok(served)
    }

    /// The models that are in memory, of engines that keep only some there and tell which. Others have theirs there.
    async fn loaded(&self, kind: Kind) -> Option<HashSet<String>> {
        match kind {
            Kind::Ollama => {
                let loaded: Loaded = self.get("api/ps").await.ok()?;
                Some(loaded.models.into_iter().map(|model| model.name).collect())
            }
            Kind::LmStudio => {
                let states: States = self.get("api/v0/models").await.ok()?;
                let loaded = states.data.into_iter().filter(|model| model.state == "loaded");
                Some(loaded.map(|model| model.id).collect())
            }
            Kind::LlamaCpp | Kind::Vllm | Kind::Sglang | Kind::Embedded | Kind::Other => None,
        }
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Problem> {
        let problem = |text: String| Problem { refused: false, status: None, text };
        let url = self.base.join(path).map_err(|error| problem(error.to_string()))?;
        let response = self.http.get(url).timeout(self.deadline).send().await;
        let response = response
            .map_err(|error| Problem { refused: error.is_connect(), ..problem(daemon::chain(&error)) })?;
        let status = response.status();
        if !status.is_success() {
            return Err(Problem { status: Some(status), ..problem(format!("/{path} answers {status}")) });
        }
        let bytes = super::read_body(response, MAX_ANSWER_BYTES).await;
        let bytes = bytes.map_err(|error| problem(error.to_string()))?;
        serde_json::from_slice(&bytes).map_err(|error| problem(format!("/{path}: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_quantisations() {
        for (name, expected) in [
            ("/srv/Llama-3-8B-Instruct.Q4_K_M.gguf", "q4_k_m"),
            ("qwen2.5:7b-iq3_xs", "iq3_xs"),
            ("TheBloke/Mistral-7B-AWQ", "awq"),
            ("llama3:8b", ""),
            ("q", ""),
            ("", ""),
        ] {
            assert_eq!(quantization(name), expected, "{name}");
        }
    }

    #[test]
    fn hostile_lists_of_models_are_bounded() {
        let mut ids: Vec<String> = (0..1000).map(|n| format!("m{n}")).collect();
        ids.insert(0, "a\nb".to_owned());
        ids.insert(0, "x".repeat(MAX_MODEL_ID_BYTES + 1));
        ids.insert(0, "m1".to_owned());
        let data: Vec<_> = ids.iter().map(|id| serde_json::json!({ "id": id })).collect();
        let list = serde_json::from_value(serde_json::json!({ "data": data })).unwrap();
        let models = models(list);
        assert_eq!(models.len(), MAX_MODELS);
        assert_eq!((models[0].id.as_str(), models[1].id.as_str(), models[2].id.as_str()), ("m1", "m0", "m2"));
    }
}
