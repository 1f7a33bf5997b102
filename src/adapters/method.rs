//! The methods: one file and one variant each, whose settings define all that differs between methods.

use std::ops::Deref;

use serde::{Deserialize, Serialize};

use super::lora::LoraConfig;
use super::lora_mini::LoraMiniConfig;
use super::lora_xs::LoraXsConfig;
use super::rules::{Built, Kept, Layer, Rules, Start};
use super::tiny_lora::TinyLoraConfig;
use super::vera::VeraConfig;
use super::{Frozen, Site, Trained};
use crate::fault::{Result, usage};
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

    /// Returns the numerator α of its scale, if it has one.
    pub fn alpha(&self) -> Option<f64> {
        let found = self.keys().into_iter().find(|(key, _)| *key == "adapter.alpha");
        found.and_then(|(_, alpha)| alpha.as_float())
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

impl Method {
    /// Returns the method of a training that starts from an adapter of `start` on the layers `names`, with the settings
    /// that only the adapter's file records.
    ///
    /// # Errors
    /// Names the setting in which they differ: another scale, rank or tying would turn the same parameters into another
    /// model.
    pub fn continues(&self, start: &Self, names: &[&str]) -> Result<Self> {
        let mismatch = |what: &str, found: &str, wanted: &str| {
            let message =
                format!("`train.init_from`: the adapter's {what} is {found}, the recipe's {wanted}");
            usage(message).hint("use the settings of the adapter that you start from")
        };
        if start.name() != self.name() {
            return Err(mismatch("method", start.name(), self.name()).into());
        }
        for ((key, found), (_, wanted)) in start.keys().into_iter().zip(self.keys()) {
            if found != wanted && !self.taken_from_start().contains(&key) {
                let key = key.trim_start_matches("adapter.");
                return Err(mismatch(key, &found.to_string(), &wanted.to_string()).into());
            }
        }
        let [found, wanted] = [start, self].map(|method| method.groups(names));
        if found != wanted {
            let words =
                |groups: &[usize]| format!("{} groups", groups.iter().max().map_or(0, |last| last + 1));
            return Err(mismatch("tying of layers (`adapter.tie`)", &words(&found), &words(&wanted)).into());
        }
        Ok(match (start.clone(), self) {
            // Whether the pair is stored concerns the file that is written.
            (Self::Vera(found), Self::Vera(asked)) => {
                Self::Vera(VeraConfig { save_projection: asked.save_projection, ..found })
            }
            (found, _) => found,
        })
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

    fn kept(&self) -> Kept {
        if self.0 == "full" { Kept::Inputs } else { Kept::Nothing }
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

    #[test]
    fn a_training_goes_on_from_an_adapter_that_computes_the_same() {
        let xs = LoraXsConfig { r: 4, lora_alpha: 6.0 };
        let vera = VeraConfig { r: 8, d_initial: 0.1, projection_prng_key: 0, save_projection: true };
        let tiny = TinyLoraConfig { r: 2, u: 64, untied: 0.5, tying: Tying::Depth, projection_seed: 0 };
        let names = ["0.query", "0.value", "1.query", "1.value"];
        let from = |method: &Method, start: &Method| {
            method.continues(start, &names).map_err(|error| error.to_string())
        };
        let refused = |method: Method, start: Method| from(&method, &start).unwrap_err();
        let start = Method::Vera(VeraConfig { d_initial: 0.5, projection_prng_key: 7, ..vera.clone() });
        let kept = VeraConfig { save_projection: false, ..vera.clone() };
        let wanted = VeraConfig { d_initial: 0.5, projection_prng_key: 7, ..kept.clone() };
        assert_eq!(from(&Method::Vera(kept), &start), Ok(Method::Vera(wanted)));
        let start = Method::TinyLora(TinyLoraConfig { untied: 0.51, projection_seed: 3, ..tiny.clone() });
        assert_eq!(from(&Method::TinyLora(tiny.clone()), &start), Ok(start));
        let others = [
            (
                Method::LoraXs(xs.clone()),
                Method::LoraXs(LoraXsConfig { r: 5, ..xs.clone() }),
                "rank is 5, the recipe's 4",
            ),
            (
                Method::LoraXs(xs.clone()),
                Method::LoraXs(LoraXsConfig { lora_alpha: 4.0, ..xs }),
                "alpha is 4.0,",
            ),
            (Method::Head, Method::Full, "method is full, the recipe's head"),
            (Method::Vera(vera.clone()), Method::Vera(VeraConfig { r: 9, ..vera }), "rank is 9"),
            (
                Method::TinyLora(tiny.clone()),
                Method::TinyLora(TinyLoraConfig { tying: Tying::Kind, ..tiny.clone() }),
                "tying is \"kind\", the recipe's \"depth\"",
            ),
            (
                Method::TinyLora(tiny.clone()),
                Method::TinyLora(TinyLoraConfig { untied: 1.0, ..tiny }),
                "tying of layers (`adapter.tie`) is 4 groups, the recipe's 2 groups",
            ),
        ];
        for (method, start, words) in others {
            let message = refused(method, start);
            assert!(message.contains(words), "{message}");
        }
    }
}
