//! A conversation on a terminal: lines with an editor and a history, and answers as they come.

use rustyline::error::ReadlineError;
use rustyline::{Config, DefaultEditor};

use super::conversation::{Conversation, Entry, HELP};
use super::{Chat, chat_models};
use crate::failure::{Exit, Failure, Outcome};
use crate::inference::Body;
use crate::ui::{Style, clean, count};

/// What stands before the user's lines.
const PROMPT: &str = "> ";

/// Talks until the user ends it.
pub(super) async fn converse(mut chat: Chat, mut conversation: Conversation) -> Outcome {
    let ui = chat.ui.clone();
    ui.say(ui.paint(
        Style::Dim,
        format_args!("{} at {}; /help says what there is, Ctrl-D ends", clean(&chat.model), chat.relay.url()),
    ));
    let config = Config::builder().auto_add_history(true).build();
    let mut editor = DefaultEditor::with_config(config).map_err(Failure::failed)?;
    loop {
        let line;
        (editor, line) = read_line(editor).await?;
        let line = match line {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => {
                ui.say(ui.paint(Style::Dim, "Ctrl-D ends"));
                continue;
            }
            Err(ReadlineError::Eof) => return Ok(()),
            Err(error) => return Err(Failure::failed(error)),
        };
        match Entry::parse(&line) {
            Entry::Exit => return Ok(()),
            Entry::Say(text) => {
                conversation.ask(text);
                let answered = chat.answer(&mut conversation, true).await;
                if answered
                    .as_ref()
                    .is_ok_and(|(answer, _)| answer.is_stopped && answer.request_id.is_empty())
                {
                    ui.say(ui.paint(Style::Dim, "stopped before the answer began"));
                }
                if let Err(failure) = answered {
                    conversation.take_back();
                    ui.failure(&failure);
                    // Nothing that comes later would be any better.
                    if failure.exit() == Exit::NotAuthorised {
                        return Err(Failure::new(Exit::NotAuthorised, "the conversation ends here"));
                    }
                }
            }
            entry @ (Entry::Nothing
            | Entry::Model(_)
            | Entry::System(_)
            | Entry::Reset
            | Entry::Save(_)
            | Entry::Help
            | Entry::Unknown(_)) => {
                if let Err(failure) = obey(entry, &mut chat, &mut conversation).await {
                    ui.failure(&failure);
                }
            }
        }
    }
}

/// Reads a line on a thread that may block.
async fn read_line(mut editor: DefaultEditor) -> Outcome<(DefaultEditor, Result<String, ReadlineError>)> {
    let read = tokio::task::spawn_blocking(move || {
        let line = editor.readline(PROMPT);
        (editor, line)
    });
    read.await.map_err(Failure::failed)
}

/// Does what is said to the program itself.
async fn obey(entry: Entry, chat: &mut Chat, conversation: &mut Conversation) -> Outcome {
    let ui = chat.ui.clone();
    match entry {
        Entry::Nothing | Entry::Say(_) | Entry::Exit => {}
        Entry::Help => ui.say(HELP),
        Entry::Unknown(word) => {
            return Err(Failure::usage(format_args!("there is no /{}", clean(&word)))
                .hint("/help lists what there is; a message that begins with / is written with two"));
        }
        Entry::Reset => {
            conversation.reset();
            ui.say("forgot what was said");
        }
        Entry::System(text) => {
            let words =
                if text.is_empty() { "the model behaves as it likes" } else { "the model is told so" };
            conversation.set_system(text);
            ui.say(words);
        }
        Entry::Model(None) => {
            for model in chat_models(&chat.relay).await? {
                let mark = if model == chat.model { "*" } else { " " };
                ui.say(format_args!("{mark} {}", clean(&model)));
            }
        }
        Entry::Model(Some(model)) => {
            let models = chat_models(&chat.relay).await?;
            if !models.contains(&model) {
                return Err(Failure::usage(format_args!("no provider serves {} just now", clean(&model)))
                    .hint("/model lists those that there are"));
            }
            ui.say(format_args!("going on with {}", clean(&model)));
            chat.model = model;
        }
        Entry::Save(None) => return Err(Failure::usage("/save needs the name of a file")),
        Entry::Save(Some(name)) => {
            let path = std::path::Path::new(&name);
            let messages = conversation.messages();
            let text =
                serde_json::to_vec_pretty(&Body::new(&chat.model, &messages)).map_err(Failure::failed)?;
            daemon::private_file::create_new(path, &text)
                .map_err(|error| Failure::usage(format_args!("{}: {error}", path.display())))?;
            ui.say(format_args!("wrote {} to {}", count(messages.len() as u64, "message"), path.display()));
        }
    }
    Ok(())
}
