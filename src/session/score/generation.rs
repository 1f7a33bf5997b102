//! Scores of a language model on prompts: its completions, judged.

use std::time::Instant;

use serde_json::{Value, json};

use super::Scorer;
use crate::adapters::file::AdapterFile;
use crate::data::dataset::Dataset;
use crate::data::prompts::{self, Prompts, Shots};
use crate::data::split::Split;
use crate::data::task::Generation;
use crate::eval::deal::answer;
use crate::eval::generation::PromptSet;
use crate::eval::harness::{self, Scored};
use crate::eval::results::TaskResult;
use crate::fault::{Result, usage};
use crate::files;
use crate::generate::{GenerationSettings, SamplingParams};
use crate::models::CausalLm;
use crate::report::say;
use crate::scoring::Rule;
use crate::session::facts::agree_on_values;
use crate::session::precedence::arguments;
use crate::train::interrupt;

impl Scorer<'_> {
    /// Continues and judges the prompts of a data set, adapters merged; `None` when interrupted.
    /// Fails when the data set or its answers of an earlier run cannot be used, or generation fails.
    pub(super) fn generation(
        &self,
        (dataset, keys): (&Dataset, &Generation),
        generation: &GenerationSettings,
        model: &CausalLm,
    ) -> Result<Option<TaskResult>> {
        let start = Instant::now();
        let rules: Vec<Rule> = keys.scorers.iter().map(|name| Rule::named(name)).collect::<Result<_>>()?;
        self.warn_of_plain_prompts((dataset, keys));
        let split = self.settings.split(dataset);
        let found = self.prompts((dataset, keys), split)?;
        check_groups((dataset, keys), &found)?;
        let params = &generation.params;
        if params.ends.is_empty() {
            tracing::warn!(
                "no end-of-text token is known: completions end at a stop text or after {} tokens",
                params.max_new_tokens
            );
        }
        let identity = json!({
            "base": self.subject.base.hash,
            "config": self.subject.base.config_hash,
            "adapter": self.subject.adapter.as_ref().map(AdapterFile::hash).transpose()?,
            "precision": self.settings.precision,
            "split": split, "prompts": found.hash, "scorers": keys.scorers,
            "max_new_tokens": params.max_new_tokens, "stop": generation.stop, "ends": params.ends,
            "sampling": params.sampling, "search": params.search,
            "penalties": params.penalties, "seed": params.seed,
        });
        let earlier = self.as_earlier(&identity, params);
        let task = PromptSet {
            name: &dataset.name,
            rules: &rules,
            prompts: &found.prompts,
            identity: &identity,
            earlier: &earlier,
        };
        let world = &self.place.world;
        agree_on_values(world, "other prompts or settings", &identity)?;
        world.on_first(|| files::hold_for_good(&self.settings.out))?;
        let _awaited = interrupt::awaited();
        let file = self.settings.out.join("predictions").join(format!("{}.jsonl", dataset.name));
        let Some(records) = answer(&task, world, (model, &self.tokenizer), generation, &file)? else {
            return Ok(None);
        };
        let seconds = start.elapsed().as_secs_f64();
        let arguments = arguments(generation);
        let shots = self.request.shots;
        let scored = Scored { task: &task, records: &records, shots, arguments: &arguments, seconds };
        let scoring = match rules.is_empty() {
            true => ", not scored: its catalog entry has no `scorers`",
            false => {
                let base = &self.subject.base.name;
                world.on_first(|| harness::write(&self.settings.out, base, &scored).map(drop))?;
                ""
            }
        };
        let tokens: usize = records.iter().filter_map(|record| record.tokens).sum();
        let (name, count) = (&dataset.name, records.len());
        say(&format!("{name}: {count} completions of {tokens} tokens in {seconds:.1} s{scoring}"));
        let mut result = TaskResult::of_answers(&keys.group_by, split, (&rules, &found, &records), seconds);
        result.generation = Some(arguments);
        Ok(Some(result))
    }

    /// Warns of prompts in plain text for a base that has a chat template.
    fn warn_of_plain_prompts(&self, (dataset, keys): (&Dataset, &Generation)) {
        if self.tokenizer.chat_template().is_some() && !keys.is_chat() && self.subject.adapter.is_none() {
            tracing::warn!(
                "the base has a chat template, but the prompts of `{0}` are plain text: `chat = true` in an entry with \
                 `like = \"{0}\"` makes each a user's turn",
                dataset.name
            );
        }
    }

    /// Returns the identity of answers as earlier releases wrote it, with values as Rust prints them.
    fn as_earlier(&self, identity: &Value, params: &SamplingParams) -> Value {
        let mut earlier = identity.clone();
        earlier["adapter"] = self.subject.adapter.as_ref().map(AdapterFile::earlier_hash).into();
        earlier["precision"] = format!("{:?}", self.settings.precision).into();
        earlier["sampling"] = format!("{:?}", params.sampling).into();
        earlier["search"] = format!("{:?}", params.search).into();
        earlier
    }

    fn prompts(&self, (dataset, keys): (&Dataset, &Generation), name: &str) -> Result<Prompts> {
        let files = self.place.files(dataset, name)?;
        let split = Split { dataset, name, files: &files, limit: self.request.limit };
        let count = self.request.shots;
        let longest = usize::try_from(self.subject.base.base.config.longest_sequence())?;
        if count == 0 {
            return prompts::load(&split, None, Some((&self.tokenizer, longest)));
        }
        let files = self.place.files(dataset, &keys.shot_split)?;
        let split_of_shots = Split { dataset, name: &keys.shot_split, files: &files, limit: 0 };
        let shots = Shots { count, split: split_of_shots };
        prompts::load(&split, Some(&shots), Some((&self.tokenizer, longest)))
    }
}

/// Refuses to group by columns that no row has.
fn check_groups((dataset, keys): (&Dataset, &Generation), found: &Prompts) -> Result<()> {
    let has = |column: &String| found.prompts.iter().any(|prompt| prompt.columns.contains_key(column));
    match keys.group_by.iter().find(|column| !has(column)) {
        Some(column) => {
            let message = format!("`{}.group_by`: the rows have no column `{column}`", dataset.name);
            Err(usage(message).into())
        }
        None => Ok(()),
    }
}
