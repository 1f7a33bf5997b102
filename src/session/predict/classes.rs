//! Answers of a classifier: labels with probabilities, or numbers.

use std::io::Write;

use rayon::prelude::*;

use super::answer::Kind;
use super::input::Next;
use super::output::Output;
use super::{End, PATIENCE, Predictor, Told};
use crate::cli::GenerationArgs;
use crate::data::examples::encode_texts;
use crate::data::row::{Columns, Row};
use crate::data::template::Template;
use crate::data::{Example, Whole};
use crate::eval::logits;
use crate::fault::{Result, usage};
use crate::models::{Classifier, HeadShape};
use crate::session::environment::use_precision;
use crate::session::fit::fitting;
use crate::spec::Problem;
use crate::train::interrupt;

/// Least rows that are taken at once, to be sorted by length.
const CHUNK: usize = 1024;

impl Predictor<'_> {
    /// Answers all rows.
    pub(super) fn classes(&self, head: HeadShape, out: &mut dyn Write) -> Result<Told> {
        let Self { place, subject, args, settings, .. } = self;
        if args.raw || args.generation != GenerationArgs::default() {
            let message = "options of generation are for a language model, but the base is a classifier";
            return Err(usage(message).hint("leave them out").into());
        }
        if head.problem == Problem::Tokens {
            let message =
                "`predict` answers classes, labels and numbers of texts, which this model does not tell";
            return Err(usage(message).hint("score it with `eval`, which writes its predictions").into());
        }
        let labels = subject.labels(Some(head));
        let fitted = self.dataset()?.map(|dataset| fitting(dataset, head, &labels));
        let (dataset, order) = fitted.transpose()?.unzip();
        let kind = match dataset.as_ref().map_or(labels, |dataset| dataset.task.labels().to_vec()) {
            _ if head.problem == Problem::Regression => Kind::Number,
            labels if head.problem == Problem::MultiLabel => Kind::Set(labels),
            labels => Kind::Class(labels),
        };
        let mut input = self.input(self.text_form(dataset.as_ref()))?;
        let texts = dataset.as_ref().filter(|_| args.columns.is_empty()).and_then(|own| own.task.labelled());
        let (model, _trained) = subject.build(place, use_precision(settings.precision)?, Some(head))?;
        let model = model.classifier()?;
        let mut output = Output::new(out, self.format(), &kind);
        let (mut cut, chunk) = (0, settings.batch_size.max(CHUNK));
        let end = loop {
            let rows = match input.next(chunk, PATIENCE)? {
                _ if interrupt::requested() => break End::Interrupted,
                Next::Rows(rows) => rows,
                Next::Later => continue,
                Next::End => break End::Finished,
            };
            let texts = match texts {
                Some((texts, _)) => texts.to_vec(),
                None => input.columns.iter().map(|column| Template::column(column)).collect(),
            };
            let examples = self.examples(&rows, &texts);
            cut += examples.iter().flatten().filter(|(_, whole)| whole.is_cut).count();
            let answers = self.answers(model, examples, (&kind, &order.clone().unwrap_or_default()))?;
            if let Err(error) = output.write(rows.into_iter().zip(answers), input.unit) {
                break End::Unwritten(output.failure.take().ok_or(error)?);
            }
        };
        if cut > 0 {
            let (rows, length) = (output.rows, settings.max_length);
            tracing::warn!("{cut} of {rows} rows have more than {length} tokens and were truncated");
        }
        Ok(Told { rows: output.rows, bad: output.bad, end })
    }

    /// Returns the tokens of each row, and its length before they were cut.
    fn examples(
        &self,
        rows: &[Row],
        texts: &[Template],
    ) -> Vec<std::result::Result<(Example, Whole), String>> {
        let encode = |row: &Row| {
            let row = row.columns.as_ref().map_err(Clone::clone)?;
            encode_texts(texts, row, &self.tokenizer, self.settings.max_length)
        };
        rows.par_iter().map(encode).collect()
    }

    /// Returns the answer to each example; `order` has the head's output for each label, none if they agree.
    fn answers(
        &self,
        model: &Classifier,
        examples: Vec<std::result::Result<(Example, Whole), String>>,
        (kind, order): (&Kind, &[usize]),
    ) -> Result<Vec<std::result::Result<Columns, String>>> {
        let (mut usable, mut refused) = (Vec::new(), Vec::new());
        for example in examples {
            refused.push(example.map(|(example, _)| usable.push(example)).err());
        }
        let mut found = logits(model, 0, &usable, self.settings.batch_size, |_| {})?.into_iter();
        let answer = |reason: Option<String>| match reason {
            Some(reason) => Err(reason),
            None => {
                let row = found.next().unwrap_or_default();
                let ordered: Vec<f32> = order.iter().filter_map(|&output| row.get(output).copied()).collect();
                kind.of_logits(if order.is_empty() { &row } else { &ordered })
            }
        };
        Ok(refused.into_iter().map(answer).collect())
    }
}
