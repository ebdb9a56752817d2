//! SentencePiece's table of replacements, which a model brings: looked through before the library has it.
//!
//! The library follows the table without looking where it leads, and copies whatever stands there. The format: the size of a trie in
//! bytes, the trie (a double array of 32-bit numbers, as the darts-clone library lays it out), and texts that end with NUL, at which
//! the trie's values point. See `spm_precompiled`, which reads it.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

/// The most numbers of a trie. Those of published models have some 60,000.
const MAX_UNITS: usize = 1 << 18;

/// How many bytes may stand in place of one. Unicode's own replacements (NFKC) have up to 11.
const MAX_GROWTH: usize = 12;

/// Looks through a table, in base64, wherever a text can lead in it.
pub(super) fn check(base64: &str) -> Result<(), String> {
    let bytes = BASE64_STANDARD.decode(base64).map_err(|error| format!("it is no base64: {error}"))?;
    Table::parse(&bytes)?.check()
}

struct Table<'a> {
    units: Vec<u32>,
    texts: &'a str,
}

impl<'a> Table<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        let (size, rest) = bytes.split_first_chunk().ok_or("it is cut off")?;
        let size = u32::from_le_bytes(*size) as usize;
        let trie = rest.get(..size).ok_or("it is cut off")?;
        let (units, odd) = trie.as_chunks();
        if !odd.is_empty() || units.is_empty() || units.len() > MAX_UNITS {
            return Err(format!("its trie has {size} bytes"));
        }
        let texts = str::from_utf8(&rest[size..]).map_err(|_| "its texts are no UTF-8")?;
        Ok(Self { units: units.iter().map(|unit| u32::from_le_bytes(*unit)).collect(), texts })
    }

    /// Visits each place that some text leads to, the nearest first. From a place on, the way depends on the place alone.
    fn check(&self) -> Result<(), String> {
        let root = self.units.first().copied().unwrap_or_default();
        let mut visited = vec![false; self.units.len()];
        let mut level = vec![offset(root)];
        let mut read = 0;
        while !level.is_empty() {
            read += 1;
            let mut next = Vec::new();
            for base in level {
                for byte in 1..=u8::MAX {
                    let place = base ^ usize::from(byte);
                    let unit = self.unit(place)?;
                    if label(unit) != u32::from(byte) || std::mem::replace(&mut visited[place], true) {
                        continue;
                    }
                    let base = place ^ offset(unit);
                    if has_value(unit) {
                        self.check_text(value(self.unit(base)?), read)?;
                    }
                    next.push(base);
                }
            }
            level = next;
        }
        Ok(())
    }

    fn unit(&self, place: usize) -> Result<u32, String> {
        self.units.get(place).copied().ok_or_else(|| "it leads out of its trie".to_owned())
    }

    /// The text at `start` stands in place of so many bytes.
    fn check_text(&self, start: usize, bytes: usize) -> Result<(), String> {
        let rest = self.texts.get(start..).ok_or("it leads out of its texts")?;
        let length = rest.find('\0').unwrap_or(rest.len());
        if length > bytes.saturating_mul(MAX_GROWTH) {
            return Err(format!("it puts {length} bytes in place of {bytes}"));
        }
        Ok(())
    }
}

fn has_value(unit: u32) -> bool {
    unit >> 8 & 1 == 1
}

fn value(unit: u32) -> usize {
    (unit & !(1 << 31)) as usize
}

/// The byte that leads here; more than a byte where none does.
fn label(unit: u32) -> u32 {
    unit & (1 << 31 | 0xff)
}

fn offset(unit: u32) -> usize {
    ((unit >> 10) << ((unit & 1 << 9) >> 6)) as usize
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use rand::rngs::ChaCha8Rng;
    use rand::{Rng as _, RngExt as _, SeedableRng as _};
    use tokenizers::normalizers::Precompiled;
    use tokenizers::{NormalizedString, Normalizer as _};

    use super::*;

    /// What SentencePiece made of six rules, two of them `ﬁ` to `fi` and `①` to `1`; see `tests/unigram.py`.
    fn table() -> Vec<u8> {
        let text: String = include_str!("few_rules.b64").lines().collect();
        BASE64_STANDARD.decode(text).unwrap()
    }

    fn check(table: &[u8]) -> Result<(), String> {
        super::check(&BASE64_STANDARD.encode(table))
    }

    fn apply(table: &[u8], text: &str) -> String {
        let mut normalized = NormalizedString::from(text);
        Precompiled::from(table).unwrap().normalize(&mut normalized).unwrap();
        normalized.get().to_owned()
    }

    /// A table of one rule, for the byte 1: a trie of one block, and the texts.
    fn one_rule(value: u32, texts: &str) -> Vec<u8> {
        let mut units = vec![0; 256];
        // From the root to place 1, from there to place 2, where the value stands.
        units[1] = 1 | 1 << 8 | 3 << 10;
        units[2] = 1 << 31 | value;
        let mut table = 1024_u32.to_le_bytes().to_vec();
        table.extend(units.iter().flat_map(|unit: &u32| unit.to_le_bytes()));
        table.extend_from_slice(texts.as_bytes());
        table
    }

    #[test]
    fn a_table_of_sentencepiece_passes() {
        check(&table()).unwrap();
        assert_eq!(apply(&table(), "ﬁve ①"), "five 1");
        let rule = one_rule(4, "abc\0de\0");
        check(&rule).unwrap();
        assert_eq!(apply(&rule, "x\u{1}y"), "xdey");
    }

    #[test]
    fn tables_that_lead_astray_are_refused() {
        for (table, what) in [
            (vec![], "cut off"),
            (vec![4, 0, 0, 0, 1], "cut off"),
            (0_u32.to_le_bytes().to_vec(), "0 bytes"),
            ([7_u32.to_le_bytes().to_vec(), vec![0; 7]].concat(), "7 bytes"),
            (one_rule(8, "abc\0de\0"), "out of its texts"),
            (one_rule(1, "\u{e9}\0"), "out of its texts"),
            (one_rule(0, &"a".repeat(13)), "puts 13 bytes in place of 1"),
            ([8_u32.to_le_bytes().to_vec(), vec![0; 8]].concat(), "out of its trie"),
            ([1024_u32.to_le_bytes().to_vec(), vec![0; 1024], vec![0xff]].concat(), "no UTF-8"),
        ] {
            let refused = check(&table).unwrap_err();
            assert!(refused.contains(what), "{refused:?} says nothing of {what:?}");
        }
        assert!(super::check("?").unwrap_err().contains("no base64"));
        check(&one_rule(0, &"a".repeat(12))).unwrap();
    }

    #[test]
    fn no_table_that_passes_makes_the_library_fail_or_a_text_grow_beyond_the_bound() {
        let whole = table();
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let (mut passed, mut refused) = (0, 0);
        for _ in 0..20_000 {
            let mut table = whole.clone();
            for _ in 0..random.random_range(1..4) {
                let at = random.random_range(0..table.len());
                table[at] = match random.random_range(0..3) {
                    0 => table[at] ^ 1 << random.random_range(0..8),
                    1 => 0,
                    _ => random.next_u32() as u8,
                };
            }
            if check(&table).is_err() {
                refused += 1;
                continue;
            }
            passed += 1;
            for text in
                ["ﬁve ① e\u{301}", "e\u{301}\u{301}e ＡＢ\u{feff}", "\u{3000}plain \u{1}\u{7f} e", "ﬁ"]
            {
                let applied = catch_unwind(|| apply(&table, text));
                let applied =
                    applied.unwrap_or_else(|_| panic!("{text:?} with {}", BASE64_STANDARD.encode(&table)));
                assert!(applied.len() <= text.len() * MAX_GROWTH, "{text:?} became {applied:?}");
            }
        }
        assert!(passed > 1000 && refused > 1000, "{passed} passed, {refused} were refused");
    }
}
