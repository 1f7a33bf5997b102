//! What a line of a chat asks for: a message to the model, or a command.

use std::path::PathBuf;

use crate::fault::{Result, unknown, usage};

/// Commands and what they do, for `/help`.
pub const COMMANDS: [(&str, &str, &str); 7] = [
    ("/reset", "", "forget the conversation; the system message and the settings stay"),
    ("/system", "TEXT", "set the system message; without TEXT, take it away"),
    ("/adapter", "DIR|none", "answer with another adapter, or with the base alone"),
    ("/set", "NAME=VALUE", "change a setting, `default` takes it back; without arguments, show all"),
    ("/help", "", "show this"),
    ("/quit", "", "leave, as Ctrl-D does"),
    ("//", "", "begin a message with one `/`"),
];

/// Parsed line.
#[derive(Debug, PartialEq)]
pub enum ChatLine {
    Message(String),
    Reset,
    System(Option<String>),
    Adapter(Option<PathBuf>),
    Set(String, String),
    ShowSettings,
    Help,
    Quit,
}

impl ChatLine {
    /// Parses a line that is not blank.
    /// Fails when it begins with `/` and is no command, or the command lacks something.
    pub fn parse(line: &str) -> Result<Self> {
        if let Some(message) = line.strip_prefix('/').filter(|rest| rest.starts_with('/')) {
            return Ok(Self::Message(message.to_owned()));
        }
        if !line.starts_with('/') {
            return Ok(Self::Message(line.to_owned()));
        }
        let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line.trim_end(), ""));
        let rest = rest.trim();
        let lacks = |what: &str| usage(format!("`{name}` needs {what}"));
        match (name, rest) {
            ("/reset", _) => Ok(Self::Reset),
            ("/system", text) => Ok(Self::System((!text.is_empty()).then(|| text.to_owned()))),
            ("/adapter", "") => Err(lacks("a folder, or `none`").into()),
            ("/adapter", "none") => Ok(Self::Adapter(None)),
            ("/adapter", folder) => Ok(Self::Adapter(Some(folder.into()))),
            ("/set", "") => Ok(Self::ShowSettings),
            ("/set", text) => match text.split_once('=') {
                Some((name, value)) => Ok(Self::Set(name.trim().to_owned(), value.trim().to_owned())),
                None => Err(lacks("a name and a value, such as `/set temperature=0.7`").into()),
            },
            ("/help", _) => Ok(Self::Help),
            ("/quit" | "/exit", _) => Ok(Self::Quit),
            _ => {
                let names = COMMANDS.map(|(name, ..)| name);
                Err(unknown("command", name, &names).into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::{exit_code, hint_of};

    #[test]
    fn a_line_is_a_message_or_a_command() {
        for (line, order) in [
            ("Hi /reset", ChatLine::Message("Hi /reset".into())),
            ("//etc/fstab?", ChatLine::Message("/etc/fstab?".into())),
            ("/reset", ChatLine::Reset),
            ("/system  Be brief. ", ChatLine::System(Some("Be brief.".into()))),
            ("/system", ChatLine::System(None)),
            ("/adapter none", ChatLine::Adapter(None)),
            ("/adapter my runs/a", ChatLine::Adapter(Some("my runs/a".into()))),
            ("/set top_p = 0.9", ChatLine::Set("top_p".into(), "0.9".into())),
            ("/set", ChatLine::ShowSettings),
            ("/help", ChatLine::Help),
            ("/exit", ChatLine::Quit),
        ] {
            assert_eq!(ChatLine::parse(line).unwrap(), order, "{line}");
        }
    }

    #[test]
    fn a_wrong_command_is_answered_with_the_nearest() {
        for (line, message, hint) in [
            ("/sytem Be brief.", "unknown command `/sytem`", "`/system`"),
            ("/set temperature", "`/set` needs a name and a value", ""),
            ("/adapter", "`/adapter` needs a folder, or `none`", ""),
        ] {
            let error = ChatLine::parse(line).unwrap_err();
            assert!(error.to_string().contains(message), "{error}");
            assert!(hint_of(&error).unwrap_or_default().contains(hint), "{error:?}");
            assert_eq!(exit_code(&error), 2);
        }
    }
}
