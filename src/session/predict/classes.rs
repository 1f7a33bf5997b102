//! Answers of a classifier: labels with probabilities, or numbers.

use std::io::Write;

use rayon::prelude::*;

use super::answer::{Kind, of_words};
use super::input::Next;
use super::output::Output;
use super::{End, PATIENCE, Predictor, Told};
use crate::data::examples::encode_texts;
use crate::data::row::{Columns, Row};
use crate::data::template::Template;
use crate::data::tokenize::Tokenizer;
use crate::data::words::{Sentence, sentence};
use crate::data::{Example, Whole};
use crate::eval::logits;
use crate::fault::{Result, usage};
use crate::models::{Classifier, HeadShape};
use crate::session::environment::use_precision;
use crate::session::fit::fitting;
use crate::spec::Problem;
use crate::spec::request::GenerationOptions;
use crate::torch::world::World;
use crate::train::interrupt;

/// Least rows that are taken at once, to be sorted by length.
const CHUNK: usize = 1024;

impl Predictor<'_> {
    /// Answers all rows.
    pub(super) fn classes(&self, head: HeadShape, out: &mut dyn Write) -> Result<Told> {
        let Self { place, subject, request, settings, .. } = self;
        if request.raw || request.shots > 0 || request.generation != GenerationOptions::default() {
            let message = "options of generation are for a language model, but the base is a classifier";
            return Err(usage(message).hint("leave them out").into());
        }
        let labels = subject.labels(Some(head));
        let fitted = self.dataset()?.map(|dataset| fitting(dataset, head, &labels));
        let (dataset, order) = fitted.transpose()?.unzip();
        let kind = match dataset.as_ref().map_or(labels, |dataset| dataset.task.labels().to_vec()) {
            _ if head.problem == Problem::Regression => Kind::Number,
            labels if head.problem == Problem::MultiLabel => Kind::Set(labels),
            labels if head.problem == Problem::Tokens => Kind::Tags(labels),
            labels => Kind::Class(labels),
        };
        let of_words = (head.problem == Problem::Tokens).then(|| self.tokenizer.of_words()).transpose()?;
        let mut input = self.input(self.text_form(dataset.as_ref()))?;
        let texts =
            dataset.as_ref().filter(|_| request.columns.is_empty()).and_then(|own| own.task.labelled());
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
            let examples = self.examples(&rows, &texts, of_words.as_ref());
            cut += examples.iter().flatten().filter(|read| read.is_cut()).count();
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

    /// Returns the tokens of each row, with `of_words` those of its words.
    fn examples(
        &self,
        rows: &[Row],
        texts: &[Template],
        of_words: Option<&Tokenizer>,
    ) -> Vec<std::result::Result<Read, String>> {
        let length = self.settings.max_length;
        let encode = |row: &Row| {
            let row = row.columns.as_ref().map_err(Clone::clone)?;
            let Some(tokenizer) = of_words else {
                return encode_texts(texts, row, &self.tokenizer, length)
                    .map(|(example, whole)| Read::Text(example, whole));
            };
            let column = texts.first().and_then(|text| text.columns().next()).unwrap_or_default();
            sentence(column, row.get(column), (tokenizer, length)).map(Read::Words)
        };
        rows.par_iter().map(encode).collect()
    }

    /// Returns the answer to each example; `order` has the head's output for each label, none if they agree.
    fn answers(
        &self,
        model: &Classifier,
        read: Vec<std::result::Result<Read, String>>,
        (kind, order): (&Kind, &[usize]),
    ) -> Result<Vec<std::result::Result<Columns, String>>> {
        let mut examples = Vec::new();
        let asked: Vec<std::result::Result<Option<Sentence>, String>> = (read.into_iter())
            .map(|read| {
                let (example, sentence) = match read? {
                    Read::Text(example, _) => (example, None),
                    Read::Words(mut sentence) => (std::mem::take(&mut sentence.example), Some(sentence)),
                };
                examples.push(example);
                Ok(sentence)
            })
            .collect();
        let mut found =
            logits(model, 0, &examples, (self.settings.batch_size, &World::alone()), |_| {})?.into_iter();
        let width = usize::try_from(model.shape.outputs)?.max(1);
        let ordered = |row: &[f32]| match order {
            [] => row.to_vec(),
            _ => order.iter().filter_map(|&output| row.get(output).copied()).collect(),
        };
        let answer = |asked: std::result::Result<Option<Sentence>, String>| {
            let sentence = asked?;
            let row = found.next().unwrap_or_default();
            match (kind, sentence) {
                (Kind::Tags(labels), Some(sentence)) => {
                    let words: Vec<Vec<f32>> = row.chunks(width).map(ordered).collect();
                    of_words(labels, &words, &sentence)
                }
                _ => kind.of_logits(&ordered(&row)),
            }
        };
        Ok(asked.into_iter().map(answer).collect())
    }
}

/// A row in tokens.
enum Read {
    /// A text, or a pair, and its length before it was cut.
    Text(Example, Whole),
    Words(Sentence),
}

impl Read {
    fn is_cut(&self) -> bool {
        let (Self::Text(_, whole) | Self::Words(Sentence { whole, .. })) = self;
        whole.is_cut
    }
}
