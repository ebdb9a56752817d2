//! Plain text out of a stranger's words: what would steer a terminal is taken out, whatever pieces it comes in.

/// The longest string of a control sequence that is waited out, in characters: an unfinished one must not swallow the rest.
const MAX_STRING_CHARS: usize = 4096;

/// Takes control characters and control sequences (ECMA-48) out of a text that comes in pieces. Of control characters only line ends and
/// tabs stay.
#[derive(Debug, Default)]
pub(crate) struct Plain {
    state: State,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Text,
    /// After ESC.
    Escape,
    /// After ESC and an intermediate character, such as of `ESC ( B`.
    Intermediate,
    /// Within a control sequence: ESC [, until its final character.
    Sequence,
    /// Within a string that a terminal takes as a command: ESC ], ESC P, ESC X, ESC ^ or ESC _, until BEL or ESC \.
    String { chars: usize },
}

impl Plain {
    /// What of a piece is text.
    pub(crate) fn take(&mut self, piece: &str) -> String {
        let mut text = String::with_capacity(piece.len());
        for char in piece.chars() {
            self.state = match (self.state, char) {
                (_, '\u{1b}') => State::Escape,
                (State::Escape, '[') | (_, '\u{9b}') => State::Sequence,
                (State::Escape, ']' | 'P' | 'X' | '^' | '_')
                | (_, '\u{9d}' | '\u{90}' | '\u{98}' | '\u{9e}' | '\u{9f}') => State::String { chars: 0 },
                (State::Escape | State::Intermediate, ' '..='/') => State::Intermediate,
                (State::Sequence, ' '..='?') => State::Sequence,
                // These end what they stand in; a line's end in the middle of a sequence shows that it was none.
                (State::Escape | State::Intermediate | State::Sequence, '0'..='~') => State::Text,
                (State::String { .. }, '\u{7}' | '\u{9c}') => State::Text,
                (State::String { chars }, _) if char != '\n' && chars < MAX_STRING_CHARS => {
                    State::String { chars: chars + 1 }
                }
                (_, char) => {
                    if matches!(char, '\n' | '\t') || !char.is_control() {
                        text.push(char);
                    }
                    State::Text
                }
            };
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_terminal_is_gone_in_whatever_pieces() {
        for (words, plain) in [
            ("a\tb\nc é 模型 🦀", "a\tb\nc é 模型 🦀"),
            ("\u{1b}[31;1mred\u{1b}[0m", "red"),
            ("\u{1b}[2J\u{1b}[Hgone?", "gone?"),
            ("\u{1b}]0;title\u{7}x\u{1b}]8;;https://evil.example\u{1b}\\link\u{1b}]8;;\u{1b}\\", "xlink"),
            ("\u{1b}]52;c;cm0gLXJm\u{7}copied", "copied"),
            ("\u{9b}31mC1\u{9d}0;t\u{9c}!", "C1!"),
            ("\u{1b}P$q\"p\u{1b}\\dcs", "dcs"),
            ("over\rwritten\u{8}\u{7f}\u{0}", "overwritten"),
            ("\u{1b}(Bset\u{1b}c\u{1b}7", "set"),
            ("\u{1b}[12\nnext", "\nnext"),
            ("\u{1b}]0;unfinished\nnext", "\nnext"),
            ("two lines\r\n", "two lines\n"),
        ] {
            assert_eq!(Plain::default().take(words), plain, "{words:?}");
            let mut by_char = Plain::default();
            let joined: String = words.chars().map(|char| by_char.take(&char.to_string())).collect();
            assert_eq!(joined, plain, "{words:?}");
        }
    }

    #[test]
    fn an_unfinished_string_does_not_swallow_the_rest() {
        let mut plain = Plain::default();
        let text = plain.take(&format!("\u{1b}]0;{}", "x".repeat(2 * MAX_STRING_CHARS)));
        assert!(text.len() >= MAX_STRING_CHARS, "{}", text.len());
    }

    #[test]
    fn nothing_that_is_left_is_a_control_character() {
        let mut plain = Plain::default();
        let all: String = (0..0x180).filter_map(char::from_u32).collect();
        let text = plain.take(&all.repeat(3));
        assert!(text.chars().all(|char| !char.is_control() || matches!(char, '\n' | '\t')));
    }
}
