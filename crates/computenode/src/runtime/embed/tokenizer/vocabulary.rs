//! The words of a tokenizer, counted while they are read.

use std::collections::HashMap;
use std::fmt;

use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// The most entries of a vocabulary; LaBSE, for 109 languages, has half as many.
const MAX_WORDS: usize = 1 << 20;

/// The longest piece of a Unigram vocabulary, in bytes. All pieces that a text goes on with are looked at, at each of its characters.
const MAX_PIECE_BYTES: usize = 96;

/// The most nodes of the tree that the library makes of a Unigram vocabulary: it takes some 350 bytes for each.
const MAX_NODES: usize = 2 << 20;

/// What a tokenizer knows.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Vocabulary {
    /// Words with their numbers.
    Words(HashMap<String, u32>),
    /// Pieces in the order of their numbers, with the logarithm of how likely each is: those of Unigram.
    Scored(Vec<(String, f64)>),
}

impl<'de> Deserialize<'de> for Vocabulary {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Counted;

        impl<'de> Visitor<'de> for Counted {
            type Value = Vocabulary;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a vocabulary")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocabulary, A::Error> {
                let mut words = HashMap::new();
                while let Some((word, id)) = map.next_entry()? {
                    check_count(words.len()).map_err(A::Error::custom)?;
                    words.insert(word, id);
                }
                Ok(Vocabulary::Words(words))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vocabulary, A::Error> {
                let mut pieces: Vec<(String, f64)> = Vec::new();
                while let Some((piece, score)) = list.next_element::<(String, f64)>()? {
                    check_count(pieces.len()).map_err(A::Error::custom)?;
                    if piece.len() > MAX_PIECE_BYTES {
                        return Err(A::Error::custom(format!(
                            "the vocabulary has a piece of more than {MAX_PIECE_BYTES} bytes"
                        )));
                    }
                    pieces.push((piece, score));
                }
                if nodes(&pieces) > MAX_NODES {
                    return Err(A::Error::custom(format!(
                        "the vocabulary's pieces have more than {MAX_NODES} beginnings"
                    )));
                }
                Ok(Vocabulary::Scored(pieces))
            }
        }

        deserializer.deserialize_any(Counted)
    }
}

fn check_count(before: usize) -> Result<(), String> {
    if before == MAX_WORDS {
        return Err(format!("the vocabulary has more than {MAX_WORDS} words"));
    }
    Ok(())
}

/// How many different beginnings the pieces have, in bytes.
fn nodes(pieces: &[(String, f64)]) -> usize {
    let mut sorted: Vec<&[u8]> = pieces.iter().map(|(piece, _)| piece.as_bytes()).collect();
    sorted.sort_unstable();
    let mut before: &[u8] = &[];
    let mut nodes = 0;
    for piece in sorted {
        let shared = piece.iter().zip(before).take_while(|(a, b)| a == b).count();
        nodes += piece.len() - shared;
        before = piece;
    }
    nodes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beginnings_are_counted_once() {
        let pieces = |texts: &[&str]| texts.iter().map(|text| ((*text).to_owned(), 0.0)).collect::<Vec<_>>();
        assert_eq!(nodes(&pieces(&[])), 0);
        assert_eq!(nodes(&pieces(&["abc", "ab", "abd", "x", "abc"])), 5);
    }

    #[test]
    fn vocabularies_beyond_any_model_are_refused() {
        let refused =
            |json: String| serde_json::from_str::<Vocabulary>(&json).map(drop).unwrap_err().to_string();
        let long = serde_json::json!([["<unk>", 0.0], ["a".repeat(97), -1.0]]);
        assert!(refused(long.to_string()).contains("more than 96 bytes"));
        // Nothing shared: a tree of as many nodes as there are bytes.
        let scattered: Vec<(String, f64)> =
            (0..30_000).map(|n| (format!("{n:05}{}", "x".repeat(90)), 0.0)).collect();
        assert!(refused(serde_json::to_string(&scattered).unwrap()).contains("beginnings"));
        let many: Vec<(&str, f64)> = vec![("a", 0.0); MAX_WORDS + 1];
        assert!(refused(serde_json::to_string(&many).unwrap()).contains("words"));
    }
}
