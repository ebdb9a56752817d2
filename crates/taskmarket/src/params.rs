//! What a task asks of its runtime: the runtimes' names, and the parameters of each.
//!
//! `params` is signed as text: RFC 8785 (canonical) JSON of at most [`MAX_PARAMS_BYTES`], with keys that the runtime defines and
//! no others, so that a misspelt key is an error and not a silent default.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::primitives::{ParseError, serde_as_string};

/// The longest `params`, in bytes.
pub const MAX_PARAMS_BYTES: usize = 16 * 1024;

/// What executes a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Runtime {
    /// Sentence embeddings by a BERT-family model.
    Embed,
    /// A WebAssembly module with WASI preview 1: input on stdin, result from stdout, deterministic.
    Wasm,
    /// A container: input at `/in`, result from `/out`.
    Container,
    /// Requests to an OpenAI-compatible engine of the node: one, or a batch of lines.
    Openai,
}

impl Runtime {
    /// All of them, in the order in which help texts list them.
    pub const ALL: [Self; 4] = [Self::Embed, Self::Wasm, Self::Container, Self::Openai];

    /// The name as signed.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Embed => "embed",
            Self::Wasm => "wasm",
            Self::Container => "container",
            Self::Openai => "openai",
        }
    }
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Runtime {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        Self::ALL.into_iter().find(|runtime| runtime.as_str() == text).ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|runtime| runtime.as_str()).collect();
            ParseError::new("runtime", format!("{text:?} is not one of {}", known.join(", ")))
        })
    }
}
serde_as_string!(Runtime);

/// Parameters of the `embed` runtime: none so far, so its `params` is `{}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmbedParams {}

/// Parameters of the `wasm` runtime.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WasmParams {
    /// Arguments after the program's name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Environment variables.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Fuel, in WebAssembly instructions; the node's own limit where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fuel: Option<u64>,
    /// Linear memory at most, in MiB; the node's own limit where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u32>,
    /// Seed of what the program reads as randomness; zero where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

/// Parameters of the `container` runtime.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerParams {
    /// What runs in place of the image's own entry point; empty leaves that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// Arguments in place of the image's own; empty leaves those.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Environment variables over the image's own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Memory at most, in MiB; the node's own limit where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u32>,
    /// Processor time at most, in thousandths of one processor; the node's own limit where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u32>,
    /// Space for `/out` and `/tmp` at most, in MiB; the node's own limit where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_mb: Option<u32>,
    /// Domains that the container asks to reach by HTTP and HTTPS, such as `example.org` or `*.example.org`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<String>,
}

/// Parameters of the `openai` runtime.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenaiParams {
    /// Requests that are at the engine at once; the node's own limit where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
}

/// The parameters of a task, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Params {
    /// Of [`Runtime::Embed`].
    Embed(EmbedParams),
    /// Of [`Runtime::Wasm`].
    Wasm(WasmParams),
    /// Of [`Runtime::Container`].
    Container(ContainerParams),
    /// Of [`Runtime::Openai`].
    Openai(OpenaiParams),
}

impl Params {
    /// Reads the signed text of a runtime's parameters.
    ///
    /// # Errors
    /// Too long, not JSON, not canonical, or a key that the runtime does not know; the message names the key.
    pub fn parse(runtime: Runtime, text: &str) -> Result<Self, ParseError> {
        const WHAT: &str = "params";
        if text.len() > MAX_PARAMS_BYTES {
            return Err(ParseError::new(WHAT, format!("longer than {MAX_PARAMS_BYTES} bytes")));
        }
        let wrong = |error: serde_json::Error| ParseError::new(WHAT, error.to_string());
        let params = match runtime {
            Runtime::Embed => Self::Embed(serde_json::from_str(text).map_err(wrong)?),
            Runtime::Wasm => Self::Wasm(serde_json::from_str(text).map_err(wrong)?),
            Runtime::Container => Self::Container(serde_json::from_str(text).map_err(wrong)?),
            Runtime::Openai => Self::Openai(serde_json::from_str(text).map_err(wrong)?),
        };
        let value: serde_json::Value = serde_json::from_str(text).map_err(wrong)?;
        if !value.is_object() {
            return Err(ParseError::new(WHAT, "expected a JSON object"));
        }
        let canonical = serde_json_canonicalizer::to_string(&value).map_err(wrong)?;
        if canonical != text {
            return Err(ParseError::new(
                WHAT,
                format!("not canonical JSON (RFC 8785); expected {canonical}"),
            ));
        }
        Ok(params)
    }

    /// The canonical text to sign.
    pub fn to_canonical(&self) -> String {
        let text = match self {
            Self::Embed(params) => serde_json_canonicalizer::to_string(params),
            Self::Wasm(params) => serde_json_canonicalizer::to_string(params),
            Self::Container(params) => serde_json_canonicalizer::to_string(params),
            Self::Openai(params) => serde_json_canonicalizer::to_string(params),
        };
        text.expect("strings, numbers and maps with string keys always serialise")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_params_round_trip() {
        let params = Params::Wasm(WasmParams {
            args: vec!["--fast".into()],
            env: BTreeMap::from([("B".into(), "2".into()), ("A".into(), "é".into())]),
            fuel: Some(1_000_000),
            memory_mb: Some(64),
            seed: None,
        });
        let text = params.to_canonical();
        assert_eq!(text, r#"{"args":["--fast"],"env":{"A":"é","B":"2"},"fuel":1000000,"memory_mb":64}"#);
        assert_eq!(Params::parse(Runtime::Wasm, &text).unwrap(), params);
        assert_eq!(Params::parse(Runtime::Embed, "{}").unwrap(), Params::Embed(EmbedParams {}));

        let params = Params::Container(ContainerParams {
            args: vec!["-v".into()],
            memory_mb: Some(256),
            egress: vec!["example.org".into()],
            ..ContainerParams::default()
        });
        let text = params.to_canonical();
        assert_eq!(text, r#"{"args":["-v"],"egress":["example.org"],"memory_mb":256}"#);
        assert_eq!(Params::parse(Runtime::Container, &text).unwrap(), params);
        let params = Params::Openai(OpenaiParams { concurrency: Some(4) });
        assert_eq!(Params::parse(Runtime::Openai, &params.to_canonical()).unwrap(), params);
    }

    #[test]
    fn wrong_params_are_named() {
        for (text, named) in [
            (r#"{"fule":1}"#, "fule"),
            (r#"{ "fuel":1}"#, "canonical"),
            (r#"{"memory_mb":1,"fuel":1}"#, "canonical"),
            (r#"{"fuel":1,"fuel":2}"#, "duplicate"),
            (r#"{"fuel":-1}"#, "-1"),
            ("", "EOF"),
            ("[]", "object"),
        ] {
            let error = Params::parse(Runtime::Wasm, text).unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
        assert!(Params::parse(Runtime::Embed, r#"{"seed":1}"#).is_err());
        assert!(Params::parse(Runtime::Embed, &format!("{{}}{}", " ".repeat(MAX_PARAMS_BYTES))).is_err());
    }
}
