//! Scores of a language model on prompts: its completions, judged.

use std::time::Instant;

use serde_json::{Value, json};

use super::Scorer;
use crate::adapters::file::AdapterFile;
use crate::data::dataset::Dataset;
use crate::data::examples::Split;
use crate::data::prompts::{self, Prompts, Shots};
use crate::eval::generation::{PromptSet, answer};
use crate::eval::harness::{self, Scored};
use crate::eval::results::TaskResult;
use crate::fault::{Result, usage};
use crate::files;
use crate::generate::Settings as Generation;
use crate::models::CausalLm;
use crate::report::say;
use crate::scoring::Rule;
use crate::session::precedence::arguments;
use crate::train::interrupt;

impl Scorer<'_> {
    /// Continues and judges the prompts of a data set, adapters merged; `None` when interrupted.
    /// Fails when the data set or its answers of an earlier run cannot be used, or generation fails.
    pub(super) fn generation(
        &self,
        dataset: &Dataset,
        generation: &Generation,
        model: &CausalLm,
    ) -> Result<Option<TaskResult>> {
        let start = Instant::now();
        let rules: Vec<Rule> = dataset.scorers.iter().map(|name| Rule::named(name)).collect::<Result<_>>()?;
        if rules.is_empty() {
            let message = format!("`{}` has no scorer", dataset.name);
            return Err(usage(message).hint("name them as `scorers` in its catalog entry").into());
        }
        let split = self.settings.split(dataset);
        let found = self.prompts(dataset, split)?;
        let has = |column: &String| found.prompts.iter().any(|prompt| prompt.columns.contains_key(column));
        if let Some(column) = dataset.group_by.iter().find(|column| !has(column)) {
            let message = format!("`{}.group_by`: the rows have no column `{column}`", dataset.name);
            return Err(usage(message).into());
        }
        if generation.ends.is_empty() {
            tracing::warn!(
                "no token is known that ends a text: completions go on to a stop text or for {} tokens",
                generation.max_new_tokens
            );
        }
        let identity = json!({
            "base": self.subject.base.hash,
            "config": self.subject.base.config_hash,
            "adapter": self.subject.adapter.as_ref().map(AdapterFile::hash).transpose()?,
            "precision": self.settings.precision,
            "split": split, "prompts": found.hash, "scorers": dataset.scorers,
            "max_new_tokens": generation.max_new_tokens, "stop": generation.stop, "ends": generation.ends,
            "sampling": generation.sampling, "search": generation.search,
            "penalties": generation.penalties, "seed": generation.seed,
        });
        let earlier = self.as_earlier(&identity, generation);
        let task = PromptSet {
            name: &dataset.name,
            rules: &rules,
            prompts: &found.prompts,
            identity: &identity,
            earlier: &earlier,
        };
        files::hold_for_good(&self.settings.out)?;
        let _awaited = interrupt::awaited();
        let file = self.settings.out.join("predictions").join(format!("{}.jsonl", dataset.name));
        let Some(records) = answer(&task, (model, &self.tokenizer), generation, &file)? else {
            return Ok(None);
        };
        let seconds = start.elapsed().as_secs_f64();
        let arguments = arguments(generation);
        let scored = Scored {
            name: &dataset.name,
            rules: &rules,
            prompts: &found.prompts,
            records: &records,
            shots: self.request.generation.shots,
            arguments: &arguments,
        };
        harness::write(&self.settings.out, &self.subject.base.name, &[scored], seconds)?;
        let tokens: usize = records.iter().map(|record| record.tokens).sum();
        say(&format!("{}: {} completions of {tokens} tokens in {seconds:.1} s", dataset.name, records.len()));
        let mut result = TaskResult::of_answers(dataset, split, (&rules, &found, &records), seconds);
        result.generation = Some(arguments);
        Ok(Some(result))
    }

    /// Returns the identity of answers as earlier releases wrote it, with values as Rust prints them.
    fn as_earlier(&self, identity: &Value, generation: &Generation) -> Value {
        let mut earlier = identity.clone();
        earlier["adapter"] = self.subject.adapter.as_ref().map(AdapterFile::earlier_hash).into();
        earlier["precision"] = format!("{:?}", self.settings.precision).into();
        earlier["sampling"] = format!("{:?}", generation.sampling).into();
        earlier["search"] = format!("{:?}", generation.search).into();
        earlier
    }

    fn prompts(&self, dataset: &Dataset, name: &str) -> Result<Prompts> {
        let files = self.place.files(dataset, name)?;
        let split = Split { dataset, name, files: &files, limit: self.request.limit };
        let count = self.request.generation.shots;
        let longest = usize::try_from(self.subject.base.base.config.longest_sequence())?;
        if count == 0 {
            return prompts::load(&split, None, &self.tokenizer, longest);
        }
        let files = self.place.files(dataset, &dataset.shot_split)?;
        let split_of_shots = Split { dataset, name: &dataset.shot_split, files: &files, limit: 0 };
        prompts::load(&split, Some(&Shots { count, split: split_of_shots }), &self.tokenizer, longest)
    }
}
