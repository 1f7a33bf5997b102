//! Scores of a language model: the loss of responses, and the answers to prompts.

use std::collections::{BTreeMap, BTreeSet};

use super::{Results, Scorer};
use crate::data::Task;
use crate::data::dataset::Dataset;
use crate::data::task::Generation;
use crate::eval::language::evaluate;
use crate::eval::results::TaskResult;
use crate::fault::{Result, usage};
use crate::generate::GenerationSettings;
use crate::generate::config::Asked;
use crate::session::environment::use_precision;
use crate::session::precedence::decoding;
use crate::session::sources;

impl Scorer<'_> {
    /// Scores a language model, first on what it only reads.
    pub(super) fn language(&self) -> Result<Results> {
        let Self { place, subject, request, settings, tokenizer } = self;
        if request.predict {
            return Err(usage("`--predict` writes GLUE submissions, but the base is a language model")
                .hint("leave it out: completions are always written")
                .into());
        }
        let datasets: Vec<Dataset> =
            settings.tasks.iter().map(|task| self.readable(task)).collect::<Result<_>>()?;
        let (mut continued, mut read) = (Vec::new(), Vec::new());
        for dataset in &datasets {
            match &dataset.task {
                Task::Generation(task) => continued.push((dataset, task)),
                _ => read.push(dataset),
            }
        }
        let base = &subject.base.base;
        let of = |(_, task): &(&Dataset, &Generation)| {
            let asked = Asked::read(&base.folder, base.config.vocabulary)?;
            decoding(&request.generation, task, tokenizer, &asked)
        };
        let (generations, remarks): (Vec<_>, Vec<_>) =
            continued.iter().map(of).collect::<Result<Vec<_>>>()?.into_iter().unzip();
        for remark in remarks.into_iter().flatten().collect::<BTreeSet<String>>() {
            tracing::warn!("{remark}");
        }
        let (mut model, _trained) = subject.build(place, use_precision(settings.precision)?, None)?;
        let mut results = BTreeMap::new();
        for dataset in read {
            let examples = self.examples(dataset)?;
            let tokens = settings.batch_size * settings.max_length;
            let evaluation = evaluate(model.language()?, 0, &examples.examples, (tokens, &place.world))?;
            let result = TaskResult::new(&evaluation, settings.split(dataset), &examples);
            results.insert(dataset.name.clone(), result);
        }
        if !continued.is_empty() {
            model.merge_adapters();
            model.pack();
        }
        for ((dataset, task), generation) in continued.into_iter().zip(generations) {
            let generation = GenerationSettings { max_slots: request.batch_size.unwrap_or(0), ..generation };
            let Some(result) = self.generation((dataset, task), &generation, model.language()?)? else {
                return Ok(None);
            };
            results.insert(dataset.name.clone(), result);
        }
        Ok(Some(results))
    }

    /// Returns the data set of this name, if a language model can be scored on it.
    fn readable(&self, task: &str) -> Result<Dataset> {
        let dataset = sources::open(self.place, task)?;
        match &dataset.task {
            Task::Instruction(_) | Task::Text(_) | Task::Chat(_) | Task::Generation(_) => Ok(dataset),
            other => {
                let found = other.name();
                Err(usage(format!("data set `{task}` is for `{found}`, but the base is a language model"))
                    .hint("score it on data sets for `instruction`, `text`, `chat` or `generation`")
                    .into())
            }
        }
    }
}
