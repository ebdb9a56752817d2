//! What a task needs of the host that runs it.

use taskmarket::{ContentHash, Runtime, Task};

/// What a task needs of the host that runs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    pub(crate) runtime: Runtime,
    pub(crate) gpu_type: String,
    pub(crate) words: Vec<String>,
    pub(crate) gpu_count: u32,
    pub(crate) min_vram_mb: u64,
    pub(crate) model: Option<ContentHash>,
    pub(crate) served: Option<String>,
}

impl Need {
    /// What this task needs.
    pub fn of(task: &Task) -> Self {
        let config = &task.config;
        Self {
            runtime: config.runtime,
            gpu_type: config.gpu_type.clone(),
            words: words(&config.gpu_type),
            gpu_count: config.gpu_count,
            min_vram_mb: config.min_vram,
            model: task.model_hash.is_pinned().then_some(task.model_hash),
            served: served(task.model_cid.as_str()).map(str::to_owned),
        }
    }

    /// The model that an engine of the host must serve, where the task names one: `x` of `model://x`.
    pub fn served(&self) -> Option<&str> {
        self.served.as_deref()
    }
}

/// The name in a reference to a model that engines serve.
fn served(reference: &str) -> Option<&str> {
    reference.strip_prefix("model://")
}

/// The words of a device's name: runs of letters and digits, in lower case, each once, sorted.
pub(crate) fn words(name: &str) -> Vec<String> {
    let mut words: Vec<_> = name
        .split(|letter: char| !letter.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect();
    words.sort();
    words.dedup();
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_may_name_what_an_engine_serves() {
        assert_eq!(served("model://meta/llama-3"), Some("meta/llama-3"));
        assert_eq!(served("https://a.example/model://x"), None);
    }

    #[test]
    fn names_split_into_words() {
        assert_eq!(words("NVIDIA A100-SXM4-80GB"), ["80gb", "a100", "nvidia", "sxm4"]);
        assert_eq!(words("  GeForce RTX\t4090 (rtx)"), ["4090", "geforce", "rtx"]);
        assert_eq!(words("--"), [""; 0]);
    }
}
