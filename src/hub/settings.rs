//! The settings of the hub, from the variables that `huggingface_hub` reads.

use std::env::{self, VarError};
use std::path::PathBuf;

use crate::fault::{Result, fault};
use crate::report::hide;

/// Variables that would be ignored silently if not valid text.
const TEXTS: [&str; 9] = [
    "HF_ENDPOINT",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_TOKEN",
    "HF_TOKEN_PATH",
    "HOME",
    "HUGGINGFACE_HUB_CACHE",
    "HUGGING_FACE_HUB_TOKEN",
    "XDG_CACHE_HOME",
];

/// Settings of a [`super::Hub`].
#[derive(Clone)]
pub struct Settings {
    /// URL of the hub, such as `https://huggingface.co`.
    pub endpoint: String,
    /// The folder of the cache, which holds `models--owner--name`.
    pub cache: PathBuf,
    /// The access token, sent only to the endpoint.
    pub token: Option<String>,
    /// True if the network is never used.
    pub offline: bool,
    /// True if the progress of each download is shown.
    pub progress: bool,
}

impl Settings {
    /// Reads `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_OFFLINE` and
    /// `HF_HUB_DISABLE_PROGRESS_BARS`, with the defaults of `huggingface_hub`.
    ///
    /// # Errors
    /// When there is no place for the cache, or a variable is not valid UTF-8.
    pub fn from_environment(offline: bool) -> Result<Self> {
        if let Some(name) =
            TEXTS.into_iter().find(|name| matches!(env::var(name), Err(VarError::NotUnicode(_))))
        {
            return Err(fault(format!("`{name}` is not valid UTF-8")).hint("set it to UTF-8 text").into());
        }
        Self::read(offline, &|name| env::var(name).ok())
    }

    fn read(offline: bool, variable: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let first = |names: &[&str]| {
            names
                .iter()
                .filter_map(|name| variable(name))
                .map(|v| v.trim().to_owned())
                .find(|v| !v.is_empty())
        };
        let path = |names: &[&str]| first(names).map(|text| from_home(&text, variable));
        let user = path(&["XDG_CACHE_HOME"]).or_else(|| path(&["HOME"]).map(|home| home.join(".cache")));
        let home = path(&["HF_HOME"]).or_else(|| user.map(|folder| folder.join("huggingface")));
        let cache = path(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"])
            .or_else(|| home.as_ref().map(|home| home.join("hub")))
            .ok_or_else(|| fault("cannot locate the hub's cache: neither `HF_HOME` nor `HOME` is set"))?;
        let token_file = path(&["HF_TOKEN_PATH"]).or_else(|| home.map(|home| home.join("token")));
        let token = first(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]).or_else(|| {
            let text = std::fs::read_to_string(token_file?).ok()?;
            Some(text.trim().to_owned()).filter(|text| !text.is_empty())
        });
        let is_on = |names: &[&str]| {
            first(names).is_some_and(|v| ["1", "ON", "YES", "TRUE"].contains(&v.to_uppercase().as_str()))
        };
        Ok(Self {
            endpoint: first(&["HF_ENDPOINT"]).unwrap_or_else(|| "https://huggingface.co".to_owned()),
            cache,
            token,
            offline: offline || is_on(&["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]),
            progress: !is_on(&["HF_HUB_DISABLE_PROGRESS_BARS"]),
        })
    }

    /// Validates the settings and normalises the endpoint. From here on no message shows the endpoint's
    /// password or the token.
    pub(super) fn checked(mut self) -> Result<Self> {
        let address = self.endpoint.split_once("://").map_or(self.endpoint.as_str(), |(_, rest)| rest);
        if let Some((user, _)) = address.rsplit_once('@') {
            hide(user);
        }
        if let Some(token) = &self.token {
            hide(token);
        }
        self.endpoint = self.endpoint.trim_end_matches('/').to_owned();
        let host = self.endpoint.strip_prefix("https://").or_else(|| self.endpoint.strip_prefix("http://"));
        if host.is_none_or(|host| host.is_empty() || host.contains(char::is_whitespace)) {
            let message = format!("the hub's endpoint `{}` is not a URL", self.endpoint);
            return Err(fault(message)
                .hint("set `HF_ENDPOINT` to a URL such as `https://huggingface.co`")
                .into());
        }
        if self.token.as_ref().is_some_and(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(fault("the hub's token has a space or a character that is not ASCII")
                .hint("check `HF_TOKEN` and the file that `HF_TOKEN_PATH` names")
                .into());
        }
        Ok(self)
    }
}

/// Expands `~` at the start of a path, which the shell does not expand inside quotes.
fn from_home(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> PathBuf {
    match (text.strip_prefix("~/"), variable("HOME")) {
        (Some(rest), Some(home)) => PathBuf::from(home).join(rest),
        _ => PathBuf::from(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Settings {
        let variable =
            |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Settings::read(false, &variable).unwrap()
    }

    #[test]
    fn the_defaults_are_those_of_huggingface_hub() {
        let settings = read(&[("HOME", "/home/x")]);
        assert_eq!(settings.endpoint, "https://huggingface.co");
        assert_eq!(settings.cache, PathBuf::from("/home/x/.cache/huggingface/hub"));
        assert!(!settings.offline && settings.token.is_none());
        assert_eq!(
            read(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/c")]).cache,
            PathBuf::from("/c/huggingface/hub")
        );
    }

    #[test]
    fn every_variable_is_honoured() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), "hf_home\n").unwrap();
        std::fs::write(folder.path().join("other"), "hf_other\n").unwrap();
        let home = folder.path().to_str().unwrap();
        let other = folder.path().join("other");
        let settings = read(&[("HF_HOME", home), ("HF_HUB_OFFLINE", "1"), ("HF_ENDPOINT", "http://mirror/")]);
        assert_eq!(settings.cache, folder.path().join("hub"));
        assert_eq!(settings.token.as_deref(), Some("hf_home"));
        assert!(settings.offline);
        assert_eq!(settings.checked().unwrap().endpoint, "http://mirror");
        let by_path = read(&[("HF_HOME", home), ("HF_TOKEN_PATH", other.to_str().unwrap())]);
        assert_eq!(by_path.token.as_deref(), Some("hf_other"));
        let direct =
            read(&[("HF_HOME", home), ("HF_TOKEN", " hf_env "), ("HF_HUB_CACHE", "~/c"), ("HOME", "/h")]);
        assert_eq!(direct.token.as_deref(), Some("hf_env"));
        assert_eq!(direct.cache, PathBuf::from("/h/c"));
    }

    #[test]
    fn an_endpoint_and_a_token_that_cannot_be_used_are_refused() {
        let wrong = read(&[("HOME", "/h"), ("HF_ENDPOINT", "huggingface.co")]).checked().err().unwrap();
        assert_eq!(wrong.to_string(), "the hub's endpoint `huggingface.co` is not a URL");
        assert!(read(&[("HOME", "/h"), ("HF_TOKEN", "two words")]).checked().is_err());
    }
}
