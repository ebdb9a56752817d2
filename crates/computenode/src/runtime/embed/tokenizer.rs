//! The tokenizer of a stranger's model: only what is known to work in time and memory that the text bounds.
//!
//! The library's format can ask for anything: a list of replacements each of which doubles the text, expressions that
//! backtrack without end. So the file is read into types that hold only what BERT models use, and what the library loads
//! is written from them: nothing reaches it that was not looked at.

mod charsmap;
mod vocabulary;

use std::collections::BTreeMap;
use std::fmt;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use tokenizers::{Tokenizer, TruncationParams};

use self::vocabulary::Vocabulary;
use super::model::bad;
use crate::runtime::RunError;

/// The most pairs of parts that become one.
const MAX_MERGES: usize = 1 << 20;
/// The most tokens beside the vocabulary.
const MAX_ADDED_TOKENS: usize = 2048;
/// The longest text of a special or added token, in bytes.
const MAX_TOKEN_BYTES: usize = 256;
/// The longest mark of a word's continuation, in bytes; it is written in front of each part of a word that is looked up.
const MAX_PREFIX_BYTES: usize = 16;
/// The longest word that is split into parts, in characters: the work grows with its square.
const MAX_WORD_CHARS: u64 = 200;
/// The most pieces of a template, and the most tokens of one of its pieces.
const MAX_TEMPLATE: usize = 16;
/// The most steps of a normalizer.
const MAX_STEPS: usize = 16;
/// The one expression that SentencePiece models bring: runs of spaces.
const SPACES: &str = " {2,}";
/// The length of SentencePiece's mark of a space, in bytes.
const MARK_BYTES: usize = 3;

/// Reads a `tokenizer.json`. Texts are truncated to `max_tokens`.
pub(super) fn load(bytes: &[u8], max_tokens: usize) -> Result<Tokenizer, RunError> {
    let wrong = |error: &dyn fmt::Display| bad(format!("tokenizer.json: {error}"));
    let file: File = serde_json::from_slice(bytes).map_err(|error| wrong(&error))?;
    file.check().map_err(|reason| wrong(&reason))?;
    let checked = serde_json::to_vec(&file).map_err(|error| wrong(&error))?;
    drop(file);
    let mut tokenizer = Tokenizer::from_bytes(checked).map_err(|error| wrong(&error))?;
    tokenizer
        .with_truncation(Some(TruncationParams { max_length: max_tokens, ..TruncationParams::default() }))
        .map_err(|error| wrong(&error))?;
    Ok(tokenizer)
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    // How long texts may be, how they are padded and what undoes the work are not the tokenizer's to say here.
    #[serde(default, skip_serializing, rename = "truncation")]
    _truncation: IgnoredAny,
    #[serde(default, skip_serializing, rename = "padding")]
    _padding: IgnoredAny,
    #[serde(default, skip_serializing, rename = "decoder")]
    _decoder: IgnoredAny,
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    normalizer: Option<Normalizer>,
    pre_tokenizer: Option<PreTokenizer>,
    post_processor: Option<PostProcessor>,
    model: Model,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AddedToken {
    id: u32,
    content: String,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
    special: bool,
}

// Plain structs rather than tagged enums: those would keep a copy of everything in memory first. Fields that they do not have
// do not reach the library; what each kind needs, the library asks for.
#[derive(Serialize, Deserialize)]
struct Normalizer {
    r#type: NormalizerKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    clean_text: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    handle_chinese_chars: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    strip_accents: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lowercase: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    strip_left: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    strip_right: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pattern: Option<Pattern>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    precompiled_charsmap: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    normalizers: Option<Vec<Normalizer>>,
}

/// What a replacement stands for.
#[derive(Serialize, Deserialize)]
enum Pattern {
    String(String),
    Regex(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::upper_case_acronyms, reason = "the names that the format has")]
enum NormalizerKind {
    BertNormalizer,
    Lowercase,
    NFC,
    NFD,
    NFKC,
    NFKD,
    Precompiled,
    Replace,
    Strip,
    StripAccents,
    Sequence,
}

#[derive(Serialize, Deserialize)]
struct PreTokenizer {
    r#type: PreTokenizerKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    add_prefix_space: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trim_offsets: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    use_regex: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replacement: Option<char>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prepend_scheme: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    split: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pretokenizers: Option<Vec<PreTokenizer>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum PreTokenizerKind {
    BertPreTokenizer,
    ByteLevel,
    Metaspace,
    Whitespace,
    WhitespaceSplit,
    Sequence,
}

#[derive(Serialize, Deserialize)]
struct PostProcessor {
    r#type: PostProcessorKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    sep: Option<(String, u32)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cls: Option<(String, u32)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trim_offsets: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    add_prefix_space: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    single: Option<Vec<Piece>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pair: Option<Vec<Piece>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    special_tokens: Option<BTreeMap<String, SpecialToken>>,
}

#[derive(Serialize, Deserialize)]
#[expect(clippy::enum_variant_names, reason = "the names that the format has")]
enum PostProcessorKind {
    BertProcessing,
    RobertaProcessing,
    TemplateProcessing,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
enum Piece {
    Sequence { id: SequenceId, type_id: u32 },
    SpecialToken { id: String, type_id: u32 },
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum SequenceId {
    A,
    B,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SpecialToken {
    id: String,
    ids: Vec<u32>,
    tokens: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Model {
    r#type: ModelKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    unk_token: Option<String>,
    /// The place in the vocabulary of what stands for text that is not in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    unk_id: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    byte_fallback: Option<bool>,
    /// The pairs of parts that become one, the most common first.
    #[serde(skip_serializing_if = "Option::is_none")]
    merges: Option<Vec<Merge>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    continuing_subword_prefix: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_input_chars_per_word: Option<u64>,
    vocab: Vocabulary,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::upper_case_acronyms, reason = "the names that the format has")]
enum ModelKind {
    WordPiece,
    WordLevel,
    BPE,
    Unigram,
}

/// A pair as it is written today, and as it was before.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Text(String),
}

impl File {
    fn check(&self) -> Result<(), String> {
        if self.added_tokens.len() > MAX_ADDED_TOKENS {
            return Err(format!("more than {MAX_ADDED_TOKENS} added_tokens"));
        }
        for token in &self.added_tokens {
            check_token("added_tokens", &token.content)?;
        }
        if let Some(normalizer) = &self.normalizer {
            normalizer.check()?;
        }
        if let Some(pre_tokenizer) = &self.pre_tokenizer {
            pre_tokenizer.check()?;
        }
        if let Some(post_processor) = &self.post_processor {
            post_processor.check()?;
        }
        self.model.check()
    }
}

impl Normalizer {
    fn check(&self) -> Result<(), String> {
        self.check_alone()?;
        // Each may make a text several times as long, so none may follow itself.
        let mut seen = Vec::new();
        let steps = self.normalizers.as_deref().unwrap_or_default();
        if steps.len() > MAX_STEPS {
            return Err(format!("a normalizer Sequence of more than {MAX_STEPS} steps"));
        }
        for step in steps {
            if step.r#type == NormalizerKind::Sequence || step.normalizers.is_some() {
                return Err("a normalizer Sequence within another".to_owned());
            }
            step.check_alone()?;
            if step.may_grow() {
                if seen.contains(&step.r#type) {
                    return Err(format!("the normalizer {:?} occurs twice", step.r#type));
                }
                seen.push(step.r#type);
            }
        }
        Ok(())
    }

    /// Whether a text may be longer after it than before.
    fn may_grow(&self) -> bool {
        self.r#type != NormalizerKind::Replace
            || self.pattern.as_ref().is_none_or(|pattern| {
                self.content.as_ref().is_some_and(|content| content.len() > pattern.shortest())
            })
    }

    fn check_alone(&self) -> Result<(), String> {
        match (&self.precompiled_charsmap, self.r#type) {
            (Some(table), NormalizerKind::Precompiled) => {
                charsmap::check(table).map_err(|reason| format!("precompiled_charsmap: {reason}"))?;
            }
            (None, NormalizerKind::Precompiled) => return Err("there is no precompiled_charsmap".to_owned()),
            (Some(_) | None, _) => {}
        }
        let (Some(pattern), Some(content)) = (&self.pattern, &self.content) else { return Ok(()) };
        if let Pattern::Regex(text) = pattern
            && text != SPACES
        {
            return Err(format!(
                "the normalizer Replace looks for {text:?}; the one expression known is {SPACES:?}"
            ));
        }
        let shortest = pattern.shortest();
        if content.len() > shortest.max(MARK_BYTES) {
            return Err(format!(
                "the normalizer Replace puts {} bytes in place of {shortest}",
                content.len()
            ));
        }
        Ok(())
    }
}

impl Pattern {
    /// The fewest bytes that it stands for.
    fn shortest(&self) -> usize {
        match self {
            Self::String(text) => text.len(),
            // Of the one expression that is known.
            Self::Regex(_) => 2,
        }
    }
}

impl PreTokenizer {
    fn check(&self) -> Result<(), String> {
        // Each may write something before every word, so none may follow itself.
        let mut seen = Vec::new();
        for step in self.pretokenizers.iter().flatten() {
            if step.r#type == PreTokenizerKind::Sequence || step.pretokenizers.is_some() {
                return Err("a pre_tokenizer Sequence within another".to_owned());
            }
            if seen.contains(&step.r#type) {
                return Err(format!("the pre_tokenizer {:?} occurs twice", step.r#type));
            }
            seen.push(step.r#type);
        }
        Ok(())
    }
}

impl PostProcessor {
    fn check(&self) -> Result<(), String> {
        for (token, _) in self.sep.iter().chain(&self.cls) {
            check_token("post_processor", token)?;
        }
        if let Some(single) = &self.single {
            check_template("single", single, &[SequenceId::A])?;
        }
        if let Some(pair) = &self.pair {
            check_template("pair", pair, &[SequenceId::A, SequenceId::B])?;
        }
        let special = self.special_tokens.iter().flatten();
        for (index, (name, token)) in special.enumerate() {
            if index == MAX_TEMPLATE || token.ids.len().max(token.tokens.len()) > MAX_TEMPLATE {
                return Err(format!("post_processor: more than {MAX_TEMPLATE} special tokens"));
            }
            for text in [name, &token.id].into_iter().chain(&token.tokens) {
                check_token("post_processor", text)?;
            }
        }
        Ok(())
    }
}

impl Model {
    fn check(&self) -> Result<(), String> {
        match (&self.unk_token, self.r#type) {
            (Some(token), _) => check_token("unk_token", token)?,
            (None, ModelKind::BPE | ModelKind::Unigram) => {}
            (None, ModelKind::WordPiece | ModelKind::WordLevel) => {
                return Err("there is no unk_token".to_owned());
            }
        }
        match (&self.vocab, self.r#type) {
            (Vocabulary::Scored(pieces), ModelKind::Unigram) => {
                if self.unk_id.is_none_or(|id| id >= pieces.len()) {
                    return Err("unk_id is no place in the vocabulary".to_owned());
                }
            }
            (Vocabulary::Words(_), ModelKind::WordPiece | ModelKind::WordLevel | ModelKind::BPE) => {}
            (Vocabulary::Scored(_) | Vocabulary::Words(_), kind) => {
                return Err(format!("the vocabulary is not one of {kind:?}"));
            }
        }
        if self.merges.as_ref().is_some_and(|merges| merges.len() > MAX_MERGES) {
            return Err(format!("more than {MAX_MERGES} merges"));
        }
        if self.continuing_subword_prefix.as_ref().is_some_and(|prefix| prefix.len() > MAX_PREFIX_BYTES) {
            return Err(format!("continuing_subword_prefix is longer than {MAX_PREFIX_BYTES} bytes"));
        }
        if self.max_input_chars_per_word.is_some_and(|chars| chars > MAX_WORD_CHARS) {
            return Err(format!("max_input_chars_per_word is larger than {MAX_WORD_CHARS}"));
        }
        Ok(())
    }
}

fn check_template(name: &str, pieces: &[Piece], expected: &[SequenceId]) -> Result<(), String> {
    if pieces.len() > MAX_TEMPLATE {
        return Err(format!("the template {name:?} has more than {MAX_TEMPLATE} pieces"));
    }
    let mut sequences = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Sequence { id, .. } => sequences.push(*id),
            Piece::SpecialToken { id, .. } => check_token("post_processor", id)?,
        }
    }
    if sequences == expected {
        Ok(())
    } else {
        Err(format!("the template {name:?} does not hold each text once"))
    }
}

fn check_token(of: &str, text: &str) -> Result<(), String> {
    if text.is_empty() || text.len() > MAX_TOKEN_BYTES {
        return Err(format!("{of}: a token must have 1 to {MAX_TOKEN_BYTES} bytes"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
