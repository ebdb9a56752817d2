//! A conversation: what was said, and what is said to the program itself.

use crate::inference::{Message, Role};

/// What was said so far.
#[derive(Debug, Default)]
pub(super) struct Conversation {
    system: Option<Message>,
    turns: Vec<Message>,
}

impl Conversation {
    /// A conversation in which nothing was said, with a model that is to behave so.
    pub(super) fn new(system: Option<String>) -> Self {
        let mut conversation = Self::default();
        conversation.set_system(system.unwrap_or_default());
        conversation
    }

    /// Says how the model is to behave from now on; an empty text takes that back.
    pub(super) fn set_system(&mut self, text: String) {
        self.system = (!text.is_empty()).then_some(Message { role: Role::System, content: text });
    }

    /// Forgets what was said.
    pub(super) fn reset(&mut self) {
        self.turns.clear();
    }

    /// The user says something.
    pub(super) fn ask(&mut self, text: String) {
        self.turns.push(Message { role: Role::User, content: text });
    }

    /// The model answered; an empty answer leaves no trace of the question either.
    pub(super) fn answered(&mut self, text: &str) {
        if text.is_empty() {
            self.take_back();
        } else {
            self.turns.push(Message { role: Role::Assistant, content: text.to_owned() });
        }
    }

    /// Takes a question back that was not answered.
    pub(super) fn take_back(&mut self) {
        if self.turns.last().is_some_and(|message| message.role == Role::User) {
            self.turns.pop();
        }
    }

    /// All messages, as the model is to see them.
    pub(super) fn messages(&self) -> Vec<&Message> {
        self.system.iter().chain(&self.turns).collect()
    }

    /// Forgets the older half, so that the rest begins with a question, and says how many messages that were: none where there is but one
    /// question.
    pub(super) fn forget(&mut self) -> usize {
        let half = self.turns.len().div_ceil(2);
        let is_question = |message: &Message| message.role == Role::User;
        let begin = (half..self.turns.len()).find(|place| is_question(&self.turns[*place])).unwrap_or(0);
        self.turns.drain(..begin).count()
    }
}

/// What the user enters.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Nothing.
    Nothing,
    /// Something for the model.
    Say(String),
    /// `/model [NAME]`
    Model(Option<String>),
    /// `/system [TEXT]`
    System(String),
    /// `/reset`
    Reset,
    /// `/save FILE`
    Save(Option<String>),
    /// `/help`
    Help,
    /// `/exit`
    Exit,
    /// Another word after a slash.
    Unknown(String),
}

/// What there is besides talking.
pub(super) const HELP: &str = "\
/model [NAME]   go on with another model; without a name, list them
/system [TEXT]  how the model is to behave; without a text, as it likes
/reset          forget what was said
/save FILE      write the conversation to a file, as JSON
/help           this
/exit           end, as Ctrl-D does
Ctrl-C stops an answer. A message that begins with / is written with two.";

impl Entry {
    /// Reads a line.
    pub(super) fn parse(line: &str) -> Self {
        let line = line.trim();
        if line.is_empty() {
            return Self::Nothing;
        }
        let Some(command) = line.strip_prefix('/') else { return Self::Say(line.to_owned()) };
        if command.starts_with('/') {
            return Self::Say(command.to_owned());
        }
        let (word, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let rest = rest.trim();
        let given = (!rest.is_empty()).then(|| rest.to_owned());
        match word {
            "model" => Self::Model(given),
            "system" => Self::System(rest.to_owned()),
            "reset" => Self::Reset,
            "save" => Self::Save(given),
            "help" | "?" => Self::Help,
            "exit" | "quit" | "bye" => Self::Exit,
            other => Self::Unknown(other.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(conversation: &Conversation) -> Vec<&str> {
        conversation.messages().iter().map(|message| message.content.as_str()).collect()
    }

    #[test]
    fn the_older_half_is_forgotten_and_the_last_question_never() {
        let mut conversation = Conversation::new(Some("be brief".to_owned()));
        for turn in 0..3 {
            conversation.ask(format!("q{turn}"));
            conversation.answered(&format!("a{turn}"));
        }
        conversation.ask("q3".to_owned());
        assert_eq!(conversation.forget(), 4);
        assert_eq!(contents(&conversation), ["be brief", "q2", "a2", "q3"]);
        assert_eq!(conversation.forget(), 2);
        assert_eq!(contents(&conversation), ["be brief", "q3"]);
        assert_eq!(conversation.forget(), 0);
        assert_eq!(contents(&conversation), ["be brief", "q3"]);
    }

    #[test]
    fn what_was_not_answered_leaves_no_trace() {
        let mut conversation = Conversation::new(None);
        conversation.ask("q".to_owned());
        conversation.answered("");
        assert!(contents(&conversation).is_empty());
        conversation.ask("q".to_owned());
        conversation.take_back();
        conversation.take_back();
        assert!(contents(&conversation).is_empty());
        conversation.set_system("x".to_owned());
        conversation.set_system(String::new());
        assert!(contents(&conversation).is_empty());
    }

    #[test]
    fn commands_begin_with_a_slash() {
        for (line, entry) in [
            ("  ", Entry::Nothing),
            (" hi there ", Entry::Say("hi there".to_owned())),
            ("//etc/hosts?", Entry::Say("/etc/hosts?".to_owned())),
            ("/model", Entry::Model(None)),
            ("/model org/name", Entry::Model(Some("org/name".to_owned()))),
            ("/system be  brief", Entry::System("be  brief".to_owned())),
            ("/save a b.json", Entry::Save(Some("a b.json".to_owned()))),
            ("/help", Entry::Help),
            ("/exit", Entry::Exit),
            ("/etc/hosts", Entry::Unknown("etc/hosts".to_owned())),
        ] {
            assert_eq!(Entry::parse(line), entry, "{line}");
        }
    }
}
