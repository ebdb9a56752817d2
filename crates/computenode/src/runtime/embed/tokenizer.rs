//! The tokenizer of a stranger's model: only what is known to work in time and memory that the text bounds.
//!
//! The library's format can ask for anything: a list of replacements each of which doubles the text, expressions that
//! backtrack without end. So the file is read into types that hold only what BERT models use, and what the library loads
//! is written from them: nothing reaches it that was not looked at.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use tokenizers::{Tokenizer, TruncationParams};

use crate::runtime::RunError;

use super::model::bad;

/// The most entries of a vocabulary; LaBSE, for 109 languages, has half as many.
const MAX_VOCABULARY: usize = 1 << 20;
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

/// Reads a `tokenizer.json`. Texts are truncated to `max_tokens`.
pub(super) fn load(bytes: &[u8], max_tokens: usize) -> Result<Tokenizer, RunError> {
    let wrong = |error: &dyn fmt::Display| bad(format!("tokenizer.json: {error}"));
    let file: File = match serde_json::from_slice(bytes) {
        Ok(file) => file,
        Err(_) if is_unigram(bytes) => return Err(wrong(&UNIGRAM)),
        Err(error) => return Err(wrong(&error)),
    };
    file.check().map_err(|reason| wrong(&reason))?;
    let checked = serde_json::to_vec(&file).map_err(|error| wrong(&error))?;
    drop(file);
    let mut tokenizer = Tokenizer::from_bytes(checked).map_err(|error| wrong(&error))?;
    tokenizer
        .with_truncation(Some(TruncationParams { max_length: max_tokens, ..TruncationParams::default() }))
        .map_err(|error| wrong(&error))?;
    Ok(tokenizer)
}

/// Why SentencePiece's tokenizers are refused. Their normalizer is a table that the model brings: its entries may be of any length, and
/// may lead anywhere in it.
const UNIGRAM: &str = "a Unigram tokenizer (SentencePiece) is not run here, as most multilingual models have; name a model whose \
                       tokenizer is WordPiece, WordLevel or BPE";

/// Whether a file is a SentencePiece tokenizer, whatever else it holds.
fn is_unigram(bytes: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Looked {
        model: LookedModel,
    }
    #[derive(Deserialize)]
    struct LookedModel {
        r#type: String,
    }
    serde_json::from_slice::<Looked>(bytes).is_ok_and(|looked| looked.model.r#type == "Unigram")
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
    normalizers: Option<Vec<Normalizer>>,
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
}

#[derive(Serialize, Deserialize)]
enum PreTokenizerKind {
    BertPreTokenizer,
    ByteLevel,
    Whitespace,
    WhitespaceSplit,
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
    unk_token: Option<String>,
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
}

/// A pair as it is written today, and as it was before.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Text(String),
}

/// The words with their numbers, counted while they are read.
#[derive(Serialize)]
#[serde(transparent)]
struct Vocabulary(HashMap<String, u32>);

impl<'de> Deserialize<'de> for Vocabulary {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Words;

        impl<'de> Visitor<'de> for Words {
            type Value = Vocabulary;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a vocabulary")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocabulary, A::Error> {
                let mut words = HashMap::new();
                while let Some((word, id)) = map.next_entry()? {
                    if words.len() == MAX_VOCABULARY {
                        return Err(A::Error::custom(format!(
                            "the vocabulary has more than {MAX_VOCABULARY} words"
                        )));
                    }
                    words.insert(word, id);
                }
                Ok(Vocabulary(words))
            }
        }

        deserializer.deserialize_map(Words)
    }
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
        if let Some(post_processor) = &self.post_processor {
            post_processor.check()?;
        }
        self.model.check()
    }
}

impl Normalizer {
    fn check(&self) -> Result<(), String> {
        // Each may make a text several times as long, so none may follow itself.
        let mut seen = Vec::new();
        for step in self.normalizers.iter().flatten() {
            if step.r#type == NormalizerKind::Sequence || step.normalizers.is_some() {
                return Err("a normalizer Sequence within another".to_owned());
            }
            if seen.contains(&step.r#type) {
                return Err(format!("the normalizer {:?} occurs twice", step.r#type));
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
        match &self.unk_token {
            Some(token) => check_token("unk_token", token)?,
            None if self.r#type == ModelKind::BPE => {}
            None => return Err("there is no unk_token".to_owned()),
        }
        if self.merges.as_ref().is_some_and(|merges| merges.len() > MAX_VOCABULARY) {
            return Err(format!("more than {MAX_VOCABULARY} merges"));
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
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn tokenizer() -> Value {
        json!({
            "version": "1.0", "truncation": {"anything": [1]}, "padding": null, "decoder": {"type": "WordPiece"},
            "added_tokens": [{"id": 1, "content": "[UNK]", "single_word": false, "lstrip": false, "rstrip": false,
                              "normalized": false, "special": true}],
            "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                           "strip_accents": null, "lowercase": true},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]}}
            },
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                      "max_input_chars_per_word": 100,
                      "vocab": {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "a": 3, "##b": 4}}
        })
    }

    fn refused(tokenizer: &Value, what: &str) {
        let error = load(tokenizer.to_string().as_bytes(), 8).map(drop).unwrap_err();
        assert_eq!(error.code, crate::runtime::RunCode::BadModel);
        assert!(error.message.contains(what), "{error} says nothing of {what}");
    }

    #[test]
    fn what_bert_models_use_is_loaded() {
        let loaded = load(tokenizer().to_string().as_bytes(), 8).unwrap();
        assert_eq!(loaded.encode_fast("AB x", true).unwrap().get_ids(), [2, 3, 4, 1]);
        let mut sequence = tokenizer();
        sequence["normalizer"] =
            json!({"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "StripAccents"}]});
        let loaded = load(sequence.to_string().as_bytes(), 8).unwrap();
        assert_eq!(loaded.encode_fast("áb", true).unwrap().get_ids(), [2, 3, 4]);
    }

    #[test]
    fn what_roberta_models_use_is_loaded() {
        let mut roberta = tokenizer();
        roberta["normalizer"] = Value::Null;
        roberta["pre_tokenizer"] =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        roberta["post_processor"] = json!({"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1],
                                           "trim_offsets": true, "add_prefix_space": false});
        let vocabulary = json!({"<s>": 1, "</s>": 2, "a": 3, "b": 4, "ab": 5, "\u{120}": 6, "\u{120}ab": 7});
        for merges in [json!(["a b", "\u{120} ab"]), json!([["a", "b"], ["\u{120}", "ab"]])] {
            roberta["model"] = json!({"type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false,
                                      "continuing_subword_prefix": "", "end_of_word_suffix": "",
                                      "vocab": vocabulary, "merges": merges});
            let loaded = load(roberta.to_string().as_bytes(), 8).unwrap();
            assert_eq!(loaded.encode_fast("ab abb", true).unwrap().get_ids(), [1, 5, 7, 4, 2]);
        }
    }

    #[test]
    fn a_text_cannot_be_made_to_grow() {
        let replace = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
        let mut bomb = tokenizer();
        bomb["normalizer"] = json!({"type": "Sequence", "normalizers": vec![replace.clone(); 40]});
        refused(&bomb, "Replace");
        bomb["normalizer"] = replace;
        refused(&bomb, "Replace");
        let twice = json!({"type": "Sequence", "normalizers": [{"type": "NFKD"}, {"type": "NFKD"}]});
        bomb["normalizer"] = twice.clone();
        refused(&bomb, "NFKD");
        bomb["normalizer"] = json!({"type": "Sequence", "normalizers": [twice]});
        refused(&bomb, "Sequence");
    }

    #[test]
    fn sentencepiece_is_refused_by_name() {
        let mut xlm = tokenizer();
        xlm["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"});
        xlm["model"] = json!({"type": "Unigram", "unk_id": 1, "vocab": [["<s>", 0.0], ["\u{2581}a", -1.5]]});
        refused(&xlm, "a Unigram tokenizer (SentencePiece) is not run here");
        refused(&xlm, "WordPiece, WordLevel or BPE");
    }

    #[test]
    fn what_is_not_known_to_be_bounded_is_refused() {
        let sequence = || json!({"Sequence": {"id": "A", "type_id": 0}});
        for (at, value, what) in [
            ("/pre_tokenizer", json!({"type": "Split", "pattern": {"Regex": "(a+)+$"}}), "Split"),
            ("/post_processor", json!({"type": "ByteLevel"}), "ByteLevel"),
            ("/post_processor/single", json!([sequence(), sequence()]), "single"),
            ("/post_processor/special_tokens/[CLS]/ids", json!(vec![2; 17]), "special tokens"),
            ("/model/type", json!("Unigram"), "Unigram"),
            ("/model/max_input_chars_per_word", json!(201), "max_input_chars_per_word"),
            ("/model/continuing_subword_prefix", json!("#".repeat(17)), "continuing_subword_prefix"),
            ("/model/unk_token", json!("u".repeat(257)), "unk_token"),
            ("/added_tokens/0/content", json!(""), "added_tokens"),
        ] {
            let mut changed = tokenizer();
            *changed.pointer_mut(at).unwrap() = value;
            refused(&changed, what);
        }
    }
}
