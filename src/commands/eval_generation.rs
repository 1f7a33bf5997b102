//! `loraxs eval` of a language model on prompts: its completions, judged.

use std::time::Instant;

use serde_json::json;

use super::decoding::arguments;
use crate::adapters::file::AdapterFile;
use crate::cli::EvalArgs;
use crate::data::dataset::Dataset;
use crate::data::examples::Split;
use crate::data::prompts::{self, Prompts, Shots};
use crate::data::tokenize::Tokenizer;
use crate::eval::generation::{Task, answer};
use crate::eval::harness::{self, Scored};
use crate::eval::results::TaskResult;
use crate::fault::{Result, usage};
use crate::files;
use crate::generate::Settings as Generation;
use crate::models::CausalLm;
use crate::report::say;
use crate::scoring::Rule;
use crate::session::request::Request;
use crate::session::subject::Subject;
use crate::session::workplace::Workplace;
use crate::train::interrupt;

/// State shared by the tasks of one call.
pub struct Scoring<'a> {
    /// Source of the data.
    pub place: &'a Workplace,
    /// Model to score.
    pub subject: &'a Subject,
    /// Settings of all tasks.
    pub request: &'a Request,
    /// The command line.
    pub args: &'a EvalArgs,
    /// The tokenizer of the base.
    pub tokenizer: &'a Tokenizer,
}

impl Scoring<'_> {
    /// Continues and judges the prompts of a data set, adapters merged; `None` when interrupted.
    ///
    /// # Errors
    /// When the data set or its answers of an earlier run cannot be used, or generation fails.
    pub fn run(
        &self,
        (dataset, generation): (&Dataset, &Generation),
        model: &CausalLm,
    ) -> Result<Option<TaskResult>> {
        let start = Instant::now();
        let rules: Vec<Rule> = dataset.scorers.iter().map(|name| Rule::named(name)).collect::<Result<_>>()?;
        if rules.is_empty() {
            let message = format!("`{}` has no scoring rule", dataset.name);
            return Err(usage(message).hint("list them as `scorers` in its catalog entry").into());
        }
        let split = self.split(dataset);
        let found = self.prompts(dataset, split)?;
        let has = |column: &String| found.prompts.iter().any(|prompt| prompt.columns.contains_key(column));
        if let Some(column) = dataset.group_by.iter().find(|column| !has(column)) {
            let message = format!("`{}.group_by`: the rows have no column `{column}`", dataset.name);
            return Err(usage(message).into());
        }
        if generation.ends.is_empty() {
            tracing::warn!(
                "no end-of-text token is known: completions end at a stop text or after {} tokens",
                generation.max_new_tokens
            );
        }
        let identity = json!({
            "base": self.subject.base.hash,
            "config": self.subject.base.config_hash,
            "adapter": self.subject.adapter.as_ref().map(AdapterFile::hash),
            "precision": format!("{:?}", self.request.precision),
            "split": split, "prompts": found.hash, "scorers": dataset.scorers,
            "max_new_tokens": generation.max_new_tokens, "stop": generation.stop, "ends": generation.ends,
            "sampling": format!("{:?}", generation.sampling), "search": format!("{:?}", generation.search),
            "penalties": generation.penalties, "seed": generation.seed,
        });
        let task = Task { name: &dataset.name, rules: &rules, prompts: &found.prompts, identity: &identity };
        files::hold_for_good(&self.request.out)?;
        let _awaited = interrupt::awaited();
        let file = self.request.out.join("predictions").join(format!("{}.jsonl", dataset.name));
        let Some(records) = answer(&task, (model, self.tokenizer), generation, &file)? else {
            return Ok(None);
        };
        let seconds = start.elapsed().as_secs_f64();
        let arguments = arguments(generation);
        let scored = Scored {
            name: &dataset.name,
            rules: &rules,
            prompts: &found.prompts,
            records: &records,
            shots: self.args.generation.shots,
            arguments: &arguments,
        };
        harness::write(&self.request.out, &self.subject.base.name, &[scored], seconds)?;
        let tokens: usize = records.iter().map(|record| record.tokens).sum();
        say(&format!("{}: {} completions of {tokens} tokens in {seconds:.1} s", dataset.name, records.len()));
        let mut result = TaskResult::of_answers(dataset, split, (&rules, &found, &records), seconds);
        result.generation = Some(arguments);
        Ok(Some(result))
    }

    /// Returns the requested split, else the default split of generation tasks.
    fn split<'a>(&'a self, dataset: &Dataset) -> &'a str {
        let own = dataset.files.contains_key("test").then_some("test");
        self.args.split.as_deref().or(own).unwrap_or(&self.request.split)
    }

    fn prompts(&self, dataset: &Dataset, name: &str) -> Result<Prompts> {
        let files = self.place.files(dataset, name)?;
        let split = Split { dataset, name, files: &files, limit: self.args.limit };
        let count = self.args.generation.shots;
        let longest = usize::try_from(self.subject.base.base.config.longest_sequence())?;
        if count == 0 {
            return prompts::load(&split, None, self.tokenizer, longest);
        }
        let files = self.place.files(dataset, &dataset.shot_split)?;
        let split_of_shots = Split { dataset, name: &dataset.shot_split, files: &files, limit: 0 };
        prompts::load(&split, Some(&Shots { count, split: split_of_shots }), self.tokenizer, longest)
    }
}
