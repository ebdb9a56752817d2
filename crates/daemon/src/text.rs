//! Words of others, fit for a log line or a message: in one line, and not too many.

use std::error::Error;

/// As much of another party's words as goes into logs and errors, in bytes.
pub const MAX_QUOTE_BYTES: usize = 300;

/// A text without control characters, cut to [`MAX_QUOTE_BYTES`].
pub fn quote(text: &str) -> String {
    clean(text, MAX_QUOTE_BYTES)
}

/// A text without control characters, cut to so many bytes.
pub fn clean(text: &str, max_bytes: usize) -> String {
    let mut cleaned: String = text.chars().filter(|c| !c.is_control()).take(max_bytes).collect();
    cleaned.truncate(cleaned.floor_char_boundary(max_bytes));
    cleaned
}

/// An error with its causes in one line, as [`quote`] gives it. HTTP clients' own first lines may name a URL: take it out
/// before a stranger reads this.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    quote(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_others_are_cut_at_a_character() {
        assert_eq!(clean("a\u{1b}[31m\nb", 100), "a[31mb");
        assert_eq!(clean("aéé", 4), "aé");
        assert_eq!(quote(&"é".repeat(10_000)).len(), MAX_QUOTE_BYTES);
    }

    #[test]
    fn an_error_tells_its_causes() {
        let inner = std::io::Error::other("the\ncause");
        let outer = crate::tls::TlsError::Setup(rustls::Error::General("outer".to_owned()));
        assert_eq!(chain(&inner), "thecause");
        assert!(chain(&outer).starts_with("TLS cannot be set up: "));
    }
}
