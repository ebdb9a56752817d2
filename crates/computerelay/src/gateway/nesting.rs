//! Whether a JSON text that passes in pieces came to its end.
//!
//! Not every engine says how long its answer is: one that closes its connection where the answer ends, closes it just so where it dies in
//! mid-answer. Only the text itself tells the two apart.

use memchr::memchr2;

/// Follows brackets and strings, and nothing else: no part of an object or a list passes for all of it. Whether it is JSON, its reader
/// finds out.
#[derive(Debug, Default)]
pub(super) struct Nesting {
    depth: u64,
    is_string: bool,
    is_escaped: bool,
    has_begun: bool,
}

impl Nesting {
    /// Takes a piece in.
    pub(super) fn pass(&mut self, mut piece: &[u8]) {
        while let Some((first, rest)) = piece.split_first() {
            piece = rest;
            if self.is_escaped {
                self.is_escaped = false;
            } else if self.is_string {
                match first {
                    b'"' => self.is_string = false,
                    b'\\' => self.is_escaped = true,
                    _ => piece = &rest[memchr2(b'"', b'\\', rest).unwrap_or(rest.len())..],
                }
            } else {
                match first {
                    b'"' => self.is_string = true,
                    b'{' | b'[' => self.depth += 1,
                    b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                    _ => {}
                }
                self.has_begun |= !first.is_ascii_whitespace();
            }
        }
    }

    /// Whether what passed is no mere beginning.
    pub(super) fn is_whole(&self) -> bool {
        self.has_begun && self.depth == 0 && !self.is_string
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const JSON: &str = " {\"a\\\"}\": [1, {\"\\\\\": \"]\\u007d[{\"}, \"\u{1f600}\"], \"b\": {}}";

    fn is_whole(pieces: &[&[u8]]) -> bool {
        let mut nesting = Nesting::default();
        pieces.iter().for_each(|piece| nesting.pass(piece));
        nesting.is_whole()
    }

    #[test]
    fn no_beginning_of_a_text_is_whole() {
        let json = JSON.as_bytes();
        for end in 0..json.len() {
            assert!(!is_whole(&[&json[..end]]), "{end}");
        }
        assert!(is_whole(&[json]) && is_whole(&[json, b"\n"]) && is_whole(&[b"null"]));
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(cut in 0..JSON.len(), length in 0..JSON.len()) {
            let json = JSON.as_bytes();
            let end = (cut + length).min(json.len());
            prop_assert!(is_whole(&[&json[..cut], &json[cut..end], &json[end..]]));
            prop_assert_eq!(is_whole(&[&json[..cut], &json[cut..end]]), end == json.len());
        }
    }
}
