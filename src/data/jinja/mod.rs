//! Chat templates, in the Jinja that Transformers gives them (`utils/chat_template_utils.py`, 5.24): that of Jinja2 3.1
//! in its sandbox, with Python's values.
//!
//! Output matches that of Transformers to the character; anything unsupported is refused. A template is a
//! program that comes with a checkpoint, so [`meter`] bounds what it may use up.

mod access;
mod args;
mod ast;
mod case;
mod create;
mod eval;
mod expression;
mod filters;
mod format;
mod globals;
mod json;
mod lexer;
mod links;
mod loops;
mod macros;
mod meter;
mod methods;
mod number;
mod ops;
mod parser;
mod percent;
mod predicates;
mod print;
mod run;
mod scope;
mod statements;
mod symbols;
mod text;
mod unicode;
mod value;

use std::ops::Range;
use std::rc::Rc;

use self::ast::Program;
use self::meter::{Failure, Meter};
use self::run::Run;
use self::value::{Object, Value};
use super::row::Refusal;
use crate::fault::{Result, fault};

/// Bytes of the stack that a template runs on; memory is taken only for the part in use.
const STACK: usize = 64 << 20;

/// A parsed chat template.
#[derive(Debug)]
pub(super) struct ChatTemplate {
    program: Program,
    /// Special tokens by name.
    tokens: Vec<(&'static str, String)>,
}

/// Text of a conversation, and the byte ranges of it that are marked as the assistant's.
pub(super) type Rendered = (String, Vec<Range<usize>>);

impl From<Box<Failure>> for Refusal {
    fn from(failure: Box<Failure>) -> Self {
        let place = failure.line.map(|line| format!(", line {line}")).unwrap_or_default();
        let message = format!("chat template{place}: {}", failure.message);
        let hint = match failure.is_lacking {
            true => {
                "this construct is not supported here: render the rows beforehand, by `apply_chat_template` of \
                 Transformers, and train on them as an `instruction` data set"
            }
            false => "correct it in `chat_template.jinja` or `tokenizer_config.json`",
        };
        match failure.is_of_template {
            true => Self::All(fault(message).hint(hint)),
            false => Self::Row(message),
        }
    }
}

impl ChatTemplate {
    /// Parses a template that may name these special tokens.
    ///
    /// # Errors
    /// Says which line is wrong.
    pub fn new(source: &str, tokens: &[(&'static str, String)]) -> Result<Self> {
        let program = with_stack(|| Program::parse(source).map_err(Refusal::from))?;
        Ok(Self { program, tokens: tokens.to_vec() })
    }

    /// Returns true if it marks what an assistant writes.
    pub fn has_marks(&self) -> bool {
        self.program.has_marks
    }

    /// Opens a conversation for rendering.
    ///
    /// # Errors
    /// When it is too large.
    pub fn open(
        &self,
        messages: &[serde_json::Value],
        tools: Option<&serde_json::Value>,
    ) -> std::result::Result<Conversation<'_>, Refusal> {
        let bytes = messages.iter().chain(tools).map(size).sum();
        let meter = Meter::new(messages.len(), bytes);
        let texts = self.program.texts.iter().map(|text| meter.text(text.as_str()));
        let mut context = vec![None; self.program.names.len()];
        let mut set = |name: &str, value: Value| {
            if let Some(place) = self.program.names.iter().position(|known| known == name) {
                context[place] = Some(value);
            }
        };
        for function in globals::FUNCTIONS {
            set(function, meter.object(Object::Function(function))?);
        }
        set("documents", Value::None);
        set("tools", tools.map_or(Ok(Value::None), |tools| meter.json(tools))?);
        for (name, text) in &self.tokens {
            set(name, meter.text(text.as_str())?);
        }
        let messages = messages.iter().map(|message| meter.json(message)).collect::<meter::Outcome<_>>()?;
        Ok(Conversation {
            texts: texts.collect::<meter::Outcome<_>>()?,
            template: self,
            context,
            messages,
            meter,
        })
    }
}

/// Conversation that a template can render.
pub(super) struct Conversation<'a> {
    template: &'a ChatTemplate,
    texts: Vec<Value>,
    context: Vec<Option<Value>>,
    messages: Vec<Value>,
    meter: Rc<Meter>,
}

impl Conversation<'_> {
    /// Renders the first `count` messages, with or without the prompt for an assistant's turn.
    ///
    /// # Errors
    /// Says what the template objects to, and in which line.
    pub fn render(
        &mut self,
        count: usize,
        add_generation_prompt: bool,
    ) -> std::result::Result<Rendered, Refusal> {
        self.meter.rewind();
        let program = &self.template.program;
        let messages = self.meter.list(self.messages.iter().take(count).cloned().collect())?;
        let given = [("messages", messages), ("add_generation_prompt", Value::Bool(add_generation_prompt))];
        for (name, value) in given {
            if let Some(place) = program.names.iter().position(|known| known == name) {
                self.context[place] = Some(value);
            }
        }
        Ok(Run::render(program, &self.meter, &self.texts, &self.context)?)
    }
}

/// Runs a function that may nest as deep as templates may, on a large enough stack.
///
/// # Errors
/// When there is no thread for it.
pub(super) fn with_stack<T: Send>(
    run: impl FnOnce() -> std::result::Result<T, Refusal> + Send,
) -> std::result::Result<T, Refusal> {
    std::thread::scope(|scope| match std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, run) {
        Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
        Err(error) => Err(Refusal::All(fault(format!("no thread for the chat template: {error}")))),
    })
}

/// Estimates the bytes of a value as JSON.
fn size(value: &serde_json::Value) -> usize {
    match value {
        serde_json::Value::String(text) => text.len() + 2,
        serde_json::Value::Array(items) => items.iter().map(|item| size(item) + 1).sum::<usize>() + 2,
        serde_json::Value::Object(items) => {
            items.iter().map(|(key, item)| key.len() + size(item) + 4).sum::<usize>() + 2
        }
        _ => 8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Features that Transformers prints and this refuses; each is in the fixture.
    const REFUSED: [&str; 24] = [
        "a quotient of such large numbers",
        "a complex number",
        " as a key",
        "a number of other digits than 0 to 9",
        "`z` in a format specifier",
        "` of a text",
        " of other than ASCII characters",
        "the filter `pprint`",
        "the filter `random`",
        "the filter `urlize`",
        "which Python writes with its address",
        "`sameas` of two ",
        "` of a int",
        "` of a float",
        "` of a bool",
        "`striptags` of a text with `&`",
        "`lipsum`",
        "` of a time",
        "a character by its name",
        "to compare the keys or items of mappings",
        "a macro outside of the loop or block that it stands in",
        "`{% block %}`",
        "`{% autoescape %}`",
        "`self`",
    ];

    fn rendered(template: &str, fixture: &serde_json::Value) -> std::result::Result<String, Refusal> {
        let token = |name: &'static str| (name, fixture["tokens"][name].as_str().unwrap().to_owned());
        let tokens = [token("bos_token"), token("eos_token")];
        let template = ChatTemplate::new(template, &tokens)
            .map_err(|error| Refusal::All(error.downcast::<crate::fault::Fault>().unwrap()))?;
        let messages = fixture["messages"].as_array().unwrap();
        let mut conversation = template.open(messages, Some(&fixture["tools"]))?;
        Ok(conversation.render(messages.len(), false)?.0)
    }

    #[test]
    fn templates_print_what_transformers_prints_or_are_refused() {
        let path = std::env::var("LORAXS_JINJA_CASES").unwrap_or_else(|_| {
            concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/fixtures/rendering/jinja.json").to_owned()
        });
        let fixture: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let (mut equal, mut failed, mut refused, mut wrong) = (0, 0, Vec::new(), Vec::new());
        for case in fixture["cases"].as_array().unwrap() {
            let template = case[0].as_str().unwrap();
            let expected = case[1].as_str().filter(|text| !text.contains("ADDRESS"));
            match (rendered(template, &fixture), expected) {
                (Ok(text), Some(expected)) if text == expected => equal += 1,
                (Err(_), None) => failed += 1,
                (Err(Refusal::All(fault)), Some(_)) => refused.push(fault.to_string()),
                (found, _) => wrong.push(format!("{template:?}\n   {found:?}\n   {expected:?}")),
            }
        }
        assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
        let is_listed = |message: &String| REFUSED.iter().any(|what| message.contains(what));
        let others: Vec<&String> = refused.iter().filter(|message| !is_listed(message)).collect();
        assert!(others.is_empty(), "refused, but not listed: {others:#?}");
        for what in REFUSED {
            assert!(refused.iter().any(|message| message.contains(what)), "nothing is refused for `{what}`");
        }
        let share = format!("{equal} equal, {failed} refused by both, {} refused here alone", refused.len());
        assert!(equal > 40 * refused.len(), "{share}");
        tracing::info!("{share}");
    }
}
