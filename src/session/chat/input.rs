//! LineRules of a chat: edited in a terminal, or read from a pipe.

use std::io::{self, ErrorKind, IsTerminal as _, StdinLock};

use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Context, Editor, Helper};

use super::order::COMMANDS;
use crate::fault::{Result, fault};
use crate::report::say;

/// What begins and ends a block of lines.
const FENCE: &str = "\"\"\"";

/// Source of lines.
pub enum ChatInput {
    Terminal(Box<Editor<LineRules, DefaultHistory>>),
    Piped(io::Lines<StdinLock<'static>>),
}

impl ChatInput {
    /// Opens standard input: a line editor if a person sits before it.
    /// Fails when the terminal cannot be used.
    pub fn open() -> Result<Self> {
        if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
            return Ok(Self::Piped(io::stdin().lines()));
        }
        let mut editor = Editor::new()?;
        editor.set_helper(Some(LineRules));
        Ok(Self::Terminal(Box::new(editor)))
    }

    /// Returns true if a person sits before it.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal(_))
    }

    /// Returns the next line that is not blank, or lines that belong together; `None` at the end.
    /// Fails when it cannot be read, or is no text.
    pub fn next(&mut self) -> Result<Option<String>> {
        let mut is_leaving = false;
        loop {
            let text = match self {
                Self::Piped(lines) => match lines.next() {
                    None => return Ok(None),
                    Some(Err(error)) if error.kind() == ErrorKind::InvalidData => {
                        return Err(fault("a line of standard input is not UTF-8").into());
                    }
                    Some(line) => line?,
                },
                Self::Terminal(editor) => match editor.readline("> ") {
                    Ok(text) => {
                        is_leaving = false;
                        editor.add_history_entry(text.as_str())?;
                        joined(&text)
                    }
                    Err(ReadlineError::Interrupted) if !is_leaving => {
                        is_leaving = true;
                        say("Ctrl-C again, Ctrl-D or /quit to leave");
                        continue;
                    }
                    Err(ReadlineError::Interrupted | ReadlineError::Eof) => return Ok(None),
                    Err(error) => return Err(error.into()),
                },
            };
            if !text.trim().is_empty() {
                return Ok(Some(text));
            }
        }
    }
}

/// Returns the text of lines that belong together: without fences, and without the `\` that goes on on the next line.
fn joined(text: &str) -> String {
    let block = text.trim().strip_prefix(FENCE).and_then(|rest| rest.strip_suffix(FENCE));
    match block {
        Some(block) => block.trim_matches('\n').to_owned(),
        None => text.replace("\\\n", "\n"),
    }
}

/// Returns true if more lines belong to the text.
fn is_open(text: &str) -> bool {
    match text.trim().strip_prefix(FENCE) {
        Some(block) => !block.ends_with(FENCE),
        None => text.len() - text.trim_end_matches('\\').len() == 1,
    }
}

/// What the line editor knows of lines: their ends, and the names of commands.
pub struct LineRules;

impl Helper for LineRules {}
impl Hinter for LineRules {
    type Hint = String;
}
impl Highlighter for LineRules {}

impl Validator for LineRules {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(match is_open(context.input()) {
            true => ValidationResult::Incomplete,
            false => ValidationResult::Valid(None),
        })
    }
}

impl Completer for LineRules {
    type Candidate = String;

    fn complete(&self, line: &str, at: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        let begun = line.get(..at).filter(|begun| begun.starts_with('/'));
        let names = COMMANDS.iter().map(|(name, ..)| *name).filter(|name| *name != "//");
        let found = names.filter(|name| begun.is_some_and(|begun| name.starts_with(begun)));
        Ok((0, found.map(str::to_owned).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_belong_together_are_one_message() {
        for (text, is_more) in [
            ("a", false),
            ("a\\", true),
            ("a\\\\", false),
            ("\"\"\"", true),
            ("\"\"\"a\nb", true),
            ("\"\"\"a\nb\"\"\"", false),
        ] {
            assert_eq!(is_open(text), is_more, "{text}");
        }
        assert_eq!(joined("a\\\nb"), "a\nb");
        assert_eq!(joined("\"\"\"\na \"b\"\n\"\"\""), "a \"b\"");
    }
}
