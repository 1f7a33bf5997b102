//! The methods: one file and one variant each, whose settings define all that differs between methods.

use std::ops::Deref;

use serde::{Deserialize, Serialize};

use super::lora::LoraConfig;
use super::lora_mini::LoraMiniConfig;
use super::lora_xs::LoraXsConfig;
use super::rules::{Built, Layer, Rules, Start};
use super::tiny_lora::TinyLoraConfig;
use super::vera::VeraConfig;
use super::{Frozen, Site, Trained};
use crate::fault::Result;
use crate::spec::reader::Reader;

/// A method with its settings, as adapter files record them; its [`Rules`] define it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "kebab-case")]
#[expect(missing_docs, reason = "each is documented by its file")]
pub enum Method {
    LoraXs(LoraXsConfig),
    Lora(LoraConfig),
    Vera(VeraConfig),
    LoraMini(LoraMiniConfig),
    TinyLora(TinyLoraConfig),
    /// Every weight of the base.
    Full,
    /// The head alone.
    Head,
}

impl Method {
    /// Returns every method with its default settings, the usual one first.
    pub fn all() -> [Self; 7] {
        let defaults = &mut Reader::default();
        [
            Self::LoraXs(LoraXsConfig::read(defaults)),
            Self::Lora(LoraConfig::read(defaults)),
            Self::Vera(VeraConfig::read(defaults)),
            Self::LoraMini(LoraMiniConfig::read(defaults)),
            Self::TinyLora(TinyLoraConfig::read(defaults)),
            Self::Full,
            Self::Head,
        ]
    }

    /// Reads the method's settings from a recipe.
    pub fn read(&self, recipe: &mut Reader) -> Self {
        let method = match self {
            Self::LoraXs(_) => Self::LoraXs(LoraXsConfig::read(recipe)),
            Self::Lora(_) => Self::Lora(LoraConfig::read(recipe)),
            Self::Vera(_) => Self::Vera(VeraConfig::read(recipe)),
            Self::LoraMini(_) => Self::LoraMini(LoraMiniConfig::read(recipe)),
            Self::TinyLora(_) => Self::TinyLora(TinyLoraConfig::read(recipe)),
            Self::Full | Self::Head => self.clone(),
        };
        method.check(recipe);
        method
    }

    /// Returns the keys of its settings, each with its meaning.
    pub fn documented(&self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::LoraXs(_) => LoraXsConfig::KEYS,
            Self::Lora(_) => LoraConfig::KEYS,
            Self::Vera(_) => VeraConfig::KEYS,
            Self::LoraMini(_) => LoraMiniConfig::KEYS,
            Self::TinyLora(_) => TinyLoraConfig::KEYS,
            Self::Full | Self::Head => &[],
        }
    }
}

impl Deref for Method {
    type Target = dyn Rules;

    fn deref(&self) -> &(dyn Rules + 'static) {
        match self {
            Self::LoraXs(config) => config,
            Self::Lora(config) => config,
            Self::Vera(config) => config,
            Self::LoraMini(config) => config,
            Self::TinyLora(config) => config,
            Self::Full => &WithoutAdapters("full"),
            Self::Head => &WithoutAdapters("head"),
        }
    }
}

/// The methods that put nothing on a layer, by name.
struct WithoutAdapters(&'static str);

impl Rules for WithoutAdapters {
    fn name(&self) -> &'static str {
        self.0
    }

    fn count(&self, _layers: &[Layer]) -> i64 {
        0
    }

    fn build(&self, _: &[Site], _: &Frozen, _: Start, _: &mut Trained) -> Result<Built> {
        Ok((Vec::new(), Vec::new()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Tying;

    #[test]
    fn settings_are_read_back_as_they_were_written() {
        let tiny =
            TinyLoraConfig { r: 2, u: 4, untied: 0.25, tying: Tying::Kind, projection_seed: u64::MAX / 2 };
        let xs = LoraXsConfig { r: 4, lora_alpha: 6.0 };
        for method in [Method::TinyLora(tiny), Method::Full, Method::LoraXs(xs)] {
            let text = serde_json::to_string(&method).unwrap();
            assert_eq!(serde_json::from_str::<Method>(&text).unwrap(), method, "{text}");
            assert!(text.contains(&format!("\"method\":\"{}\"", method.name())), "{text}");
        }
    }
}
