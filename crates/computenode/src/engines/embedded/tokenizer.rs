//! The tokenizer that a GGUF file carries in its metadata.
//!
//! How a text is cut before its parts are merged is told by a name alone. Where that name is not known the file is
//! refused: close would be wrong.

use std::collections::HashMap;

use candle_core::quantized::gguf_file::{Content, Value};
use tokenizers::decoders::{byte_fallback::ByteFallback, fuse::Fuse, strip::Strip};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{Prepend, Replace};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer,
};

/// How the families cut their texts, as their own tokenizers say.
const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN_2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Stands for a space in vocabularies of SentencePiece.
const SPACE: &str = "\u{2581}";

/// What a token is, by the numbers that the format has.
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;

/// Tokens that end an answer, whatever the file says of them.
const ENDS: [&str; 7] =
    ["<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "<|im_end|>", "<|end|>", "</s>"];

/// A tokenizer with what goes with it.
pub(super) struct Words {
    pub(super) tokenizer: Tokenizer,
    /// The token that every text begins with, where it does.
    pub(super) begin: Option<u32>,
    /// The tokens that end an answer.
    pub(super) ends: Vec<u32>,
    /// The texts of the tokens for begin and end, for the chat template.
    pub(super) texts: [String; 2],
}

/// Reads it from the metadata.
///
/// # Errors
/// What the file lacks, or what is not known here.
pub(super) fn of_gguf(content: &Content) -> Result<Words, String> {
    let metadata = Metadata(content);
    let tokens = metadata.texts("tokens")?;
    let kind = metadata.text("model").ok_or("the file has no tokenizer.ggml.model")?;
    let mut tokenizer = match kind {
        "gpt2" => byte_level(&metadata, &tokens)?,
        "llama" => sentence_piece(&metadata, &tokens)?,
        other => return Err(format!("tokenizers of the kind {other:?} are not known here")),
    };
    add_special(&mut tokenizer, &metadata, &tokens)?;
    let named = |name: &str| metadata.number(name).and_then(|id| u32::try_from(id).ok());
    let begin = named("bos_token_id");
    let mut ends: Vec<u32> = ["eos_token_id", "eot_token_id"].into_iter().filter_map(named).collect();
    ends.extend(ENDS.iter().filter_map(|text| tokenizer.token_to_id(text)));
    let text = |id: Option<u32>| {
        id.and_then(|id| tokens.get(id as usize)).map(|text| (*text).to_owned()).unwrap_or_default()
    };
    let texts = [text(begin), text(named("eos_token_id"))];
    let begins = metadata.flag("add_bos_token").unwrap_or(kind == "llama");
    Ok(Words { tokenizer, begin: begin.filter(|_| begins), ends, texts })
}

/// GPT-2's kind: all bytes are characters of the vocabulary.
fn byte_level(metadata: &Metadata<'_>, tokens: &[&str]) -> Result<Tokenizer, String> {
    let pair = |merge: &&str| {
        let pair = merge.split_once(' ').ok_or_else(|| format!("{merge:?} is no merge"))?;
        Ok((pair.0.to_owned(), pair.1.to_owned()))
    };
    let merges: Vec<_> = metadata.texts("merges")?.iter().map(pair).collect::<Result<_, String>>()?;
    let pre = metadata.text("pre").unwrap_or("gpt-2");
    let split = |pattern: &str| -> Result<PreTokenizerWrapper, String> {
        let pattern = SplitPattern::Regex(pattern.to_owned());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(told)?;
        Ok(sequence(vec![split.into(), ByteLevel::new(false, true, false).into()]))
    };
    let is_llama_3 = matches!(pre, "llama-bpe" | "llama3" | "llama-v3");
    let pre_tokenizer = match pre {
        _ if is_llama_3 => split(LLAMA_3)?,
        "gpt-2" => ByteLevel::new(false, true, true).into(),
        "smollm" => sequence(vec![Digits::new(true).into(), ByteLevel::new(false, true, true).into()]),
        "qwen2" => split(QWEN_2)?,
        other => return Err(format!("texts cut in the way {other:?} are not known here")),
    };
    let vocabulary: Vocab = tokens.iter().zip(0..).map(|(token, id)| ((*token).to_owned(), id)).collect();
    let bpe = BPE::builder().vocab_and_merges(vocabulary, merges).ignore_merges(is_llama_3);
    let mut tokenizer = Tokenizer::new(bpe.build().map_err(told)?);
    tokenizer.with_pre_tokenizer(Some(pre_tokenizer));
    tokenizer.with_decoder(Some(ByteLevel::new(false, true, true)));
    Ok(tokenizer)
}

/// SentencePiece's kind, as a BPE: the better a piece's score, the earlier two parts are merged to it.
fn sentence_piece(metadata: &Metadata<'_>, tokens: &[&str]) -> Result<Tokenizer, String> {
    let scores = metadata.scores()?;
    let ids: HashMap<&str, u32> = tokens.iter().copied().zip(0..).collect();
    let mut merges = Vec::new();
    for (token, score) in tokens.iter().zip(&scores) {
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(left_id), Some(right_id)) = (ids.get(left), ids.get(right)) {
                merges.push((*score, *left_id, *right_id, left, right));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let merges =
        merges.into_iter().map(|(_, _, _, left, right)| (left.to_owned(), right.to_owned())).collect();
    let vocabulary: Vocab = ids.iter().map(|(token, id)| ((*token).to_owned(), *id)).collect();
    let unknown = metadata.number("unknown_token_id").unwrap_or(0);
    let unknown = usize::try_from(unknown).ok().and_then(|id| tokens.get(id)).ok_or("no unknown token")?;
    let bpe = BPE::builder().vocab_and_merges(vocabulary, merges);
    let bpe = bpe.unk_token((*unknown).to_owned()).fuse_unk(true).byte_fallback(true);
    let mut tokenizer = Tokenizer::new(bpe.build().map_err(told)?);
    let spaces: NormalizerWrapper = Replace::new(" ", SPACE).map_err(told)?.into();
    let mut steps = vec![spaces];
    let is_prefixed = metadata.flag("add_space_prefix").unwrap_or(true);
    if is_prefixed {
        steps.insert(0, Prepend::new(SPACE.to_owned()).into());
    }
    tokenizer.with_normalizer(Some(tokenizers::normalizers::Sequence::new(steps))).map_err(told)?;
    let mut steps: Vec<DecoderWrapper> =
        vec![Replace::new(SPACE, " ").map_err(told)?.into(), ByteFallback::new().into(), Fuse::new().into()];
    if is_prefixed {
        steps.push(Strip::new(' ', 1, 0).into());
    }
    tokenizer.with_decoder(Some(tokenizers::decoders::sequence::Sequence::new(steps)));
    Ok(tokenizer)
}

fn sequence(steps: Vec<PreTokenizerWrapper>) -> PreTokenizerWrapper {
    tokenizers::pre_tokenizers::sequence::Sequence::new(steps).into()
}

/// Makes the tokens that are no text known as such.
fn add_special(tokenizer: &mut Tokenizer, metadata: &Metadata<'_>, tokens: &[&str]) -> Result<(), String> {
    let Some(kinds) = metadata.array("token_type") else { return Ok(()) };
    let kinds: Vec<u64> = kinds.iter().filter_map(number).collect();
    let of = |wanted: &[u64]| -> Vec<AddedToken> {
        let all = tokens.iter().zip(&kinds);
        all.filter(|(text, kind)| wanted.contains(kind) && !text.is_empty())
            .map(|(text, kind)| AddedToken::from(*text, *kind != USER_DEFINED).normalized(false))
            .collect()
    };
    tokenizer.add_special_tokens(of(&[UNKNOWN, CONTROL])).map_err(told)?;
    tokenizer.add_tokens(of(&[USER_DEFINED])).map_err(told)?;
    Ok(())
}

/// What a GGUF file says of its tokenizer.
struct Metadata<'a>(&'a Content);

impl<'a> Metadata<'a> {
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.0.metadata.get(&format!("tokenizer.ggml.{name}"))
    }

    fn text(&self, name: &str) -> Option<&'a str> {
        self.get(name).and_then(|value| value.to_string().ok()).map(String::as_str)
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.get(name).and_then(number)
    }

    fn flag(&self, name: &str) -> Option<bool> {
        self.get(name).and_then(|value| value.to_bool().ok())
    }

    fn array(&self, name: &str) -> Option<&'a [Value]> {
        self.get(name).and_then(|value| value.to_vec().ok()).map(Vec::as_slice)
    }

    fn texts(&self, name: &str) -> Result<Vec<&'a str>, String> {
        let wrong = || format!("tokenizer.ggml.{name} is no list of texts");
        let texts = self.array(name).ok_or_else(wrong)?.iter();
        texts.map(|value| value.to_string().map(String::as_str).map_err(|_| wrong())).collect()
    }

    fn scores(&self) -> Result<Vec<f32>, String> {
        let wrong = || "tokenizer.ggml.scores is no list of numbers".to_owned();
        let scores = self.array("scores").ok_or_else(wrong)?.iter();
        scores.map(|value| value.to_f32().map_err(|_| wrong())).collect()
    }
}

/// A number that is not negative, of whatever width.
fn number(value: &Value) -> Option<u64> {
    let signed = value.to_i32().ok().and_then(|number| u64::try_from(number).ok());
    signed.or_else(|| value.to_u64().ok())
}

fn told(error: impl std::fmt::Display) -> String {
    error.to_string()
}
