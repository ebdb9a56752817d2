//! The chat template that a model carries: Jinja, written by a stranger, with bounds on what it may use.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, context};
use serde::Serialize;

/// The longest template, in bytes: the longest in use have some 10 KiB.
const MAX_TEMPLATE_BYTES: usize = 128 << 10;

/// What a template may do for one conversation, in steps of the library. A message takes some tens.
const FUEL: u64 = 2_000_000;

const NAME: &str = "chat";

/// A compiled template.
pub(super) struct ChatTemplate {
    environment: Environment<'static>,
    begin: String,
    end: String,
}

/// One message of a conversation.
#[derive(Debug, Serialize)]
pub(super) struct Turn {
    pub(super) role: String,
    pub(super) content: String,
}

impl ChatTemplate {
    /// Compiles a template. `begin` and `end` are the texts of the tokens for begin and end.
    ///
    /// # Errors
    /// It is too long, or no Jinja.
    pub(super) fn new(source: String, [begin, end]: [String; 2]) -> Result<Self, String> {
        if source.len() > MAX_TEMPLATE_BYTES {
            return Err(format!("the chat template has more than {MAX_TEMPLATE_BYTES} bytes"));
        }
        let mut environment = Environment::new();
        // As the library for which such templates are written sets it.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| error.to_string())?);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |reason: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, reason))
        });
        let added = environment.add_template_owned(NAME, source);
        added.map_err(|error| format!("the chat template cannot be read: {error}"))?;
        Ok(Self { environment, begin, end })
    }

    /// The text of a conversation, to its end where the model is to go on.
    ///
    /// # Errors
    /// What the template objects to, such as an order of roles that the model was not trained for.
    pub(super) fn render(&self, messages: &[Turn]) -> Result<String, String> {
        let values = context! {
            messages => Serde(messages), add_generation_prompt => true, bos_token => &*self.begin, eos_token => &*self.end,
        };
        let template = self.environment.get_template(NAME).map_err(|error| error.to_string())?;
        template
            .render(values)
            .map_err(|error| error.detail().map_or_else(|| error.to_string(), str::to_owned))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, turns: &[(&str, &str)]) -> Result<String, String> {
        let turns: Vec<Turn> = turns
            .iter()
            .map(|(role, content)| Turn { role: (*role).to_owned(), content: (*content).to_owned() })
            .collect();
        ChatTemplate::new(source.to_owned(), ["<s>".to_owned(), "</s>".to_owned()])?.render(&turns)
    }

    #[test]
    fn the_usual_templates_are_understood() {
        let llama_3 = "{% set loop_messages = messages %}{% for message in loop_messages %}\
            {% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim \
            + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}\
            {% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}";
        assert_eq!(
            render(llama_3, &[("user", " hi ")]).unwrap(),
            "<s><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        );
        let chat_ml = "{% for message in messages %}\n    {{- '<|im_start|>' + message.role + '\\n' }}\n    \
            {%- if message.role == 'user' %}{{ message.content.strip() }}{% else %}{{ message.content }}{% endif %}\n    \
            {{- '<|im_end|>\\n' }}\n{%- endfor %}\n{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
        assert_eq!(
            render(chat_ml, &[("system", "be"), ("user", " hi ")]).unwrap(),
            "<|im_start|>system\nbe<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
        );
    }

    #[test]
    fn a_template_may_object_and_is_bounded() {
        assert_eq!(render("{{ raise_exception('roles!') }}", &[]).unwrap_err(), "roles!");
        assert!(render("{% for", &[]).unwrap_err().contains("cannot be read"));
        let endless = "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}";
        assert!(render(endless, &[]).is_err());
        assert!(render(&"x".repeat(MAX_TEMPLATE_BYTES + 1), &[]).is_err());
    }
}
