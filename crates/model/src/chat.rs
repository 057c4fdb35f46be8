//! Conversations to prompts, by the model's own template.

use minijinja::{Environment, ErrorKind, context};
use serde::{Deserialize, Serialize};

use crate::error::{ModelError, Result};

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl Message {
    /// A turn of this role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Message { role: role.into(), content: content.into() }
    }
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    present: bool,
    bos: String,
    eos: String,
}

const NAME: &str = "chat";
/// Steps a template may take: far above any real one, and an end for one that loops.
const FUEL: u64 = 1_000_000;

impl ChatTemplate {
    /// Compiles a template. An empty one is a model without a template.
    ///
    /// # Errors
    /// It is no valid template.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self> {
        let mut environment = Environment::new();
        // As the reference implementation of these templates sets it up.
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_keep_trailing_newline(true);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_fuel(Some(FUEL));
        environment.add_function(
            "raise_exception",
            |message: String| -> std::result::Result<String, minijinja::Error> {
                Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
            },
        );
        let present = !source.trim().is_empty();
        environment.add_template_owned(NAME, source.to_owned()).map_err(failed)?;
        Ok(ChatTemplate { environment, present, bos: bos.to_owned(), eos: eos.to_owned() })
    }

    /// Whether the model has one.
    pub fn is_present(&self) -> bool {
        self.present
    }

    /// The prompt of a conversation; `generate` opens the assistant's turn.
    ///
    /// # Errors
    /// The model has no template, or the template rejects the conversation.
    pub fn render(&self, messages: &[Message], generate: bool) -> Result<String> {
        if !self.present {
            return Err(ModelError::Template(
                "this model has none; give it a plain prompt instead of a conversation".into(),
            ));
        }
        if messages.is_empty() {
            return Err(ModelError::Template("a conversation has at least one message".into()));
        }
        let template = self.environment.get_template(NAME).map_err(failed)?;
        template
            .render(
                context! { messages, add_generation_prompt => generate, bos_token => self.bos, eos_token => self.eos },
            )
            .map_err(failed)
    }
}

fn failed(e: minijinja::Error) -> ModelError {
    ModelError::Template(format!("{e:#}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHATML: &str = "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'].strip() + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

    #[test]
    fn renders_with_python_methods_and_does_not_escape() {
        let t = ChatTemplate::new(CHATML, "<s>", "</s>").unwrap();
        let turns = [Message::new("user", " a < b & \"c\" ")];
        assert_eq!(
            t.render(&turns, true).unwrap(),
            "<|im_start|>user\na < b & \"c\"<|im_end|>\n<|im_start|>assistant\n"
        );
        assert_eq!(t.render(&turns, false).unwrap(), "<|im_start|>user\na < b & \"c\"<|im_end|>\n");
        assert!(t.render(&[], true).is_err());
    }

    /// What the templates of Llama 3, Qwen 3, Gemma and Mistral are made of, one construct each.
    #[test]
    fn constructs_of_published_templates() {
        let turns = [
            Message::new("system", " be brief\n"),
            Message::new("user", "one"),
            Message::new("assistant", "<think>\nhm\n</think>\n\ntwo"),
            Message::new("user", "three"),
        ];
        for (source, want) in [
            (
                "{%- if messages[0]['role'] == 'system' %}{%- set first = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}{%- endif %}{{ first + '/' + messages | length | string }}",
                "be brief/3",
            ),
            (
                "{%- if not tools is defined %}{%- set tools = none %}{%- endif %}{{ 'no tools' if tools is none }}",
                "no tools",
            ),
            (
                "{%- if strftime_now is defined %}{{ strftime_now('%d') }}{%- else %}{%- set day = 'a day' %}{%- endif %}{{ day }}",
                "a day",
            ),
            (
                "{%- set ns = namespace(last=0, found=false) %}{%- for m in messages[::-1] %}{%- set index = (messages | length - 1) - loop.index0 %}{%- if not ns.found and m.role == 'assistant' %}{%- set ns.last = index %}{%- set ns.found = true %}{%- endif %}{%- endfor %}{{ ns.last }}",
                "2",
            ),
            ("{{ messages[2].content.split('</think>')[-1].lstrip('\\n') }}", "two"),
            ("{{ messages[2].content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].strip() }}", "hm"),
            (
                "{%- for m in messages %}{%- if m.content is string and m.content.startswith('t') and loop.last and not loop.first and loop.previtem.role != m.role %}{{ m.content }}{%- endif %}{%- endfor %}",
                "three",
            ),
            (
                "{%- for m in messages[1:] %}{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('order') }}{%- endif %}{{ ('model' if m['role'] == 'assistant' else m['role']) + '\n' }}{%- endfor %}",
                "user\nmodel\nuser\n",
            ),
            (
                "{%- set loop_messages = messages | selectattr('role', 'equalto', 'user') | list %}{{ loop_messages | map(attribute='content') | join(' ') }}",
                "one three",
            ),
            (
                "{{ bos_token }}{%- for m in messages -%}{%- if m.role == 'system' -%}{%- continue -%}{%- endif -%}{{ m.content | length }},{%- endfor %}{{ messages[1].content | tojson }}",
                "<s>3,24,5,\"one\"",
            ),
            (
                "{%- if enable_thinking is defined and enable_thinking is false %}x{%- endif %}{{ '[' ~ (documents or 'none') ~ ']' }}",
                "[none]",
            ),
            (
                "{%- macro turn(m) %}<{{ m.role }}>{%- endmacro %}{{ turn(messages[0]) }}{{ messages[-1].content.upper() }}",
                "<system>THREE",
            ),
        ] {
            let rendered = ChatTemplate::new(source, "<s>", "</s>").and_then(|t| t.render(&turns, true));
            assert_eq!(rendered.unwrap(), want, "{source}");
        }
    }

    #[test]
    fn bad_templates_are_errors() {
        assert!(ChatTemplate::new("{% for %}", "", "").is_err());
        let endless = "{% for i in range(100000) %}{% for j in range(100000) %}{{ j }}{% endfor %}{% endfor %}";
        assert!(ChatTemplate::new(endless, "", "").unwrap().render(&[Message::new("user", "x")], true).is_err());
        let refuses = ChatTemplate::new("{{ raise_exception('roles must alternate') }}", "", "").unwrap();
        let e = refuses.render(&[Message::new("user", "x")], true).unwrap_err().to_string();
        assert!(e.contains("roles must alternate"), "{e}");
        assert!(!ChatTemplate::new("", "", "").unwrap().is_present());
    }
}
