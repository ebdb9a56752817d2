//! What texts a task wants embedded.
//!
//! Either JSON, `{"input": "text"}` or `{"input": ["text", …]}`, or plain UTF-8 text, whose paragraphs are the texts:
//! blank lines separate them, and white space within is folded to single spaces. Input that begins with `{` is JSON.

use serde::Deserialize;

use crate::runtime::{RunCode, RunError};

/// The largest input, in bytes.
pub(super) const MAX_BYTES: u64 = 16 << 20;

/// The most texts of one task.
const MAX_TEXTS: usize = 10_000;

/// The longest text, in bytes. Models read far less of it.
const MAX_TEXT_BYTES: usize = 64 << 10;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    input: OneOrMany,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "`input` must be a text or a list of texts")]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// Reads the texts: at least one, none of them blank.
pub(super) fn parse(bytes: &[u8]) -> Result<Vec<String>, RunError> {
    if bytes.len() as u64 > MAX_BYTES {
        return Err(bad(format!("the input is larger than {MAX_BYTES} bytes")));
    }
    let text =
        std::str::from_utf8(bytes).map_err(|error| bad(format!("the input is no UTF-8 text: {error}")))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let texts = if text.trim_start().starts_with('{') {
        let request: Request =
            serde_json::from_str(text).map_err(|error| bad(format!("the input is no request: {error}")))?;
        match request.input {
            OneOrMany::One(text) => vec![text],
            OneOrMany::Many(texts) => texts,
        }
    } else {
        paragraphs(text)
    };
    check(&texts)?;
    Ok(texts)
}

fn paragraphs(text: &str) -> Vec<String> {
    let mut paragraphs = Vec::new();
    let mut current = String::new();
    for line in text.lines() {
        for word in line.split_whitespace() {
            if !current.is_empty() {
                current.push(' ');
            }
            current.push_str(word);
        }
        if line.trim().is_empty() && !current.is_empty() {
            paragraphs.push(std::mem::take(&mut current));
        }
    }
    if !current.is_empty() {
        paragraphs.push(current);
    }
    paragraphs
}

fn check(texts: &[String]) -> Result<(), RunError> {
    if texts.is_empty() {
        return Err(bad("the input holds no text".to_owned()));
    }
    if texts.len() > MAX_TEXTS {
        return Err(bad(format!("the input holds {} texts; the most is {MAX_TEXTS}", texts.len())));
    }
    for (index, text) in texts.iter().enumerate() {
        if text.trim().is_empty() {
            return Err(bad(format!("text {index} is empty")));
        }
        if text.len() > MAX_TEXT_BYTES {
            return Err(bad(format!("text {index} is longer than {MAX_TEXT_BYTES} bytes")));
        }
    }
    Ok(())
}

fn bad(message: String) -> RunError {
    RunError::new(RunCode::BadInput, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_plain_text_are_read() {
        let texts = |input: &str| parse(input.as_bytes()).unwrap();
        assert_eq!(texts(r#"{"input":"a  b"}"#), ["a  b"]);
        assert_eq!(texts(" {\"input\":[\"a\",\"b\"]}\n"), ["a", "b"]);
        assert_eq!(texts("one\n two \t three\r\n\r\n \nfour\n"), ["one two three", "four"]);
        assert_eq!(texts("\u{feff}[1]"), ["[1]"]);
    }

    #[test]
    fn what_is_no_input_is_refused() {
        let large = format!("{{\"input\":\"{}\"}}", "a".repeat(MAX_TEXT_BYTES + 1));
        let many = "a\n\n".repeat(MAX_TEXTS + 1);
        for input in [
            "",
            " \n\n ",
            "{",
            r#"{"input":[]}"#,
            r#"{"input":""}"#,
            r#"{"input":["a"," "]}"#,
            r#"{"input":[1]}"#,
            r#"{"input":{}}"#,
            r#"{}"#,
            r#"{"input":"a","model":"b"}"#,
            &large,
            &many,
        ] {
            let code = parse(input.as_bytes()).unwrap_err().code;
            assert_eq!(code, RunCode::BadInput, "{}", &input[..input.len().min(40)]);
        }
        assert!(parse(b"\xff\xff").is_err());
        assert!(parse(&vec![b'a'; MAX_BYTES as usize + 1]).is_err());
    }
}
