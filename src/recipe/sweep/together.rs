//! Which runs can be trained together.

use super::super::Recipe;
use crate::fault::Result;

/// Keys in which runs that are trained together may differ: those of each run's own.
const DIFFERENT: [(&str, &[&str]); 3] = [
    ("adapter", &["alpha", "init_std"]),
    (
        "train",
        &[
            "learning_rate", "head_learning_rate", "seed", "schedule", "warmup_steps", "warmup_ratio",
            "weight_decay", "max_grad_norm", "epochs", "max_steps",
        ],
    ),
    ("eval", &["patience"]),
];

impl Recipe {
    /// Returns a text that is the same for recipes which can be trained together: the recipe without the keys in which they
    /// may differ.
    ///
    /// # Errors
    /// As [`Recipe::to_toml`].
    pub fn together_key(&self) -> Result<String> {
        let mut recipe: toml::Table = self.to_toml()?.parse()?;
        for (section, keys) in DIFFERENT {
            if let Some(section) = recipe.get_mut(section).and_then(toml::Value::as_table_mut) {
                section.retain(|key, _| !keys.contains(&key));
            }
        }
        Ok(toml::to_string(&recipe)?)
    }

    /// Returns this recipe with the keys of `other` in which runs that are trained together may differ.
    ///
    /// # Errors
    /// As [`Recipe::to_toml`] and [`Recipe::parse`].
    pub fn with_own_keys(&self, other: &Self) -> Result<Self> {
        let [mut mixed, own]: [toml::Table; 2] = [self.to_toml()?.parse()?, other.to_toml()?.parse()?];
        for (section, keys) in DIFFERENT {
            let Some(mixed) = mixed.get_mut(section).and_then(toml::Value::as_table_mut) else { continue };
            for key in keys {
                if let Some(value) = own.get(section).and_then(|own| own.get(*key)) {
                    mixed.insert((*key).to_owned(), value.clone());
                }
            }
        }
        Self::try_from(mixed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_that_differ_in_rates_and_seeds_can_be_trained_together_but_not_in_ranks() {
        let key = |set: &str| {
            let text = "model.name = 'm'\ndata.dataset = 'd'";
            Recipe::parse(text, "r", &[set.to_owned()]).unwrap().together_key().unwrap()
        };
        let base = key("train.seed=0");
        for set in [
            "train.seed=1",
            "train.learning_rate=1",
            "adapter.alpha=3",
            "train.max_steps=5",
            "eval.patience=2",
            "adapter.init_std=0",
            "train.warmup_steps=9",
            "train.schedule=cosine",
        ] {
            assert_eq!(key(set), base, "{set}");
        }
        for set in
            ["adapter.rank=4", "train.batch_size=8", "adapter.dropout=0.1", "eval.every=5", "model.name=n"]
        {
            assert_ne!(key(set), base, "{set}");
        }
    }
}
