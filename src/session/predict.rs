//! Answers to new rows: for `predict`.

mod answer;
mod classes;
mod input;
mod language;
mod output;

use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::time::Duration;

use input::{Form, Input, Source};

use super::environment::Environment;
use super::fit::check_fit;
use super::precedence::ScoreSettings;
use super::sources;
use super::subject::Subject;
use crate::data::dataset::Dataset;
use crate::data::rows::TEXT;
use crate::data::template::Template;
use crate::data::texts::recognised;
use crate::data::tokenize::Tokenizer;
use crate::fault::{Result, fault, usage};
use crate::files;
use crate::report::say;
use crate::spec::request::{AnswerFormat, PredictRequest, ScoreRequest};
use crate::train::{Ending, interrupt};

/// Time between two looks whether a signal came, while nothing else does.
const PATIENCE: Duration = Duration::from_millis(50);
/// The column of the second text of a pair.
const PAIR: &str = "text_pair";

/// Answers every row of the input, in order.
/// Fails when subject, input or output cannot be used, or some rows could not be answered.
pub fn predict(place: &Environment, request: &PredictRequest) -> Result<Ending> {
    check(request)?;
    let subject = Subject::open(place, &request.subject, &[])?;
    let scored = ScoreRequest {
        precision: request.precision,
        batch_size: request.batch_size,
        max_length: request.max_length,
        ..ScoreRequest::default()
    };
    let settings = ScoreSettings::new(&scored, &subject, &place.devices)?;
    let base = &subject.base.base;
    let tokenizer = Tokenizer::load(&base.folder)?;
    check_fit(base, &tokenizer, settings.max_length)?;
    let predictor = Predictor { place, subject: &subject, request, settings, tokenizer };
    let _awaited = interrupt::awaited();
    let told = match &request.out {
        Some(path) => predictor.write_file(path)?,
        None => predictor.write(&mut io::stdout())?,
    };
    match told.end {
        End::Interrupted => return Ok(Ending::Interrupted),
        // Whoever read the answers wants no more of them.
        End::Unwritten(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(Ending::Finished),
        End::Unwritten(error) => {
            return Err(fault(format!("cannot write the answers: {error}"))
                .hint("free some disk space, or write to another place")
                .into());
        }
        End::Finished => {}
    }
    let Told { rows, bad: (bad, first), .. } = told;
    if let Some(path) = &request.out {
        say(&format!("wrote {}: {rows} rows", path.display()));
    }
    match bad {
        0 => Ok(Ending::Finished),
        _ => Err(fault(format!("{bad} of {rows} rows have no answer; the first is {first}")).into()),
    }
}

/// A subject with everything to answer rows.
struct Predictor<'a> {
    place: &'a Environment,
    subject: &'a Subject,
    request: &'a PredictRequest,
    settings: ScoreSettings,
    tokenizer: Tokenizer,
}

/// What came of the rows.
struct Told {
    rows: usize,
    /// Number of rows without an answer, and the first one's place and reason.
    bad: (usize, String),
    end: End,
}

/// Why there are no more answers.
enum End {
    Finished,
    Interrupted,
    Unwritten(io::Error),
}

impl Predictor<'_> {
    /// Writes the answers to a file, which gets its name when it is whole.
    fn write_file(&self, path: &Path) -> Result<Told> {
        let mut told = None;
        let written = files::write_atomically(path, |out| {
            let mut found = self.write(out);
            let unfinished = match &mut found {
                Ok(Told { end: End::Finished, .. }) => None,
                Ok(Told { end: End::Unwritten(error), .. }) => {
                    Some(io::Error::new(error.kind(), error.to_string()).into())
                }
                _ => Some(fault("it is not whole").into()),
            };
            told = Some(found);
            unfinished.map_or(Ok(()), Err)
        });
        match (told, written) {
            (Some(Ok(Told { end: End::Finished | End::Unwritten(_), .. })) | None, Err(error)) => Err(error),
            (Some(found), _) => found,
            (None, Ok(())) => Err(fault("nothing was written").into()),
        }
    }

    fn write(&self, out: &mut dyn Write) -> Result<Told> {
        match self.subject.head()? {
            Some(head) => self.classes(head, out),
            None => self.completions(out),
        }
    }

    /// Returns the data set that columns, names and templates come from, if one is known.
    /// Fails when the command line names one that does not exist.
    fn dataset(&self) -> Result<Option<Dataset>> {
        if let Some(task) = &self.request.task {
            return sources::open(self.place, task).map(Some);
        }
        let of_run = self.subject.run.as_ref().and_then(|(_, recipe)| recipe.data.names().first().copied());
        let name = of_run.or(self.subject.adapter.as_ref().map(|adapter| adapter.config.dataset.as_str()));
        let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok(None) };
        let found = sources::open(self.place, name).ok();
        if found.is_none() {
            tracing::info!(
                "the data set `{name}` is not in the catalog: columns are recognised by their names"
            );
        }
        Ok(found)
    }

    /// Returns the columns of the texts of a classifier.
    fn text_form(&self, dataset: Option<&Dataset>) -> Form {
        let request = self.request;
        let named = dataset.and_then(|dataset| dataset.task.labelled()).unwrap_or_default().0;
        let columns = if request.columns.is_empty() { columns_of(named) } else { request.columns.clone() };
        let plain = match columns.is_empty() {
            true => [TEXT, PAIR].map(str::to_owned).to_vec(),
            false => columns.clone(),
        };
        let field = dataset.and_then(|dataset| dataset.field.clone());
        let is_given = !request.columns.is_empty();
        Form { columns, find: recognised, is_given, plain, field }
    }

    /// Begins to read the rows.
    fn input(&self, mut form: Form) -> Result<Input> {
        let request = self.request;
        let source = match &request.input {
            Some(path) => Source::File(path.clone()),
            None if request.text.is_empty() => Source::Stream,
            None => {
                let width = if request.text_pair.is_empty() { 1 } else { 2 };
                check_width(&form, width)?;
                form.plain.truncate(width);
                let pair = |i: usize| request.text_pair.get(i).cloned();
                let texts = request.text.iter().enumerate();
                Source::Texts(
                    texts.map(|(i, text)| std::iter::once(text.clone()).chain(pair(i)).collect()).collect(),
                )
            }
        };
        Input::open(source, form)
    }

    fn format(&self) -> AnswerFormat {
        let of_name = self.request.out.as_ref().and_then(|path| path.extension()?.to_str());
        self.request.format.unwrap_or(match of_name {
            Some("csv") => AnswerFormat::Csv,
            Some("tsv") => AnswerFormat::Tsv,
            _ => AnswerFormat::Jsonl,
        })
    }
}

/// Returns the columns that templates need, or if they need none, all that they name.
fn columns_of(templates: &[Template]) -> Vec<String> {
    let needed: Vec<&str> = templates.iter().flat_map(Template::needed).collect();
    let all = || templates.iter().flat_map(Template::columns).collect();
    let mut found: Vec<String> = Vec::new();
    for name in if needed.is_empty() { all() } else { needed } {
        if !found.iter().any(|known| known == name) {
            found.push(name.to_owned());
        }
    }
    found
}

/// Refuses options that do not go together, and files that cannot be replaced.
fn check(request: &PredictRequest) -> Result<()> {
    let (texts, pairs) = (request.text.len(), request.text_pair.len());
    if pairs != 0 && pairs != texts {
        let message = format!("there are {texts} `--text`, but {pairs} `--text-pair`");
        return Err(usage(message).hint("give one second text for each text").into());
    }
    if request.columns.len() > 2 {
        let message = format!("expected one or two `--columns`, found {}", request.columns.len());
        return Err(usage(message).hint("name the column of the text, or those of the pair").into());
    }
    if let Some(out) = request.out.as_ref().filter(|out| out.exists() && !out.is_file()) {
        let message = format!("`{}` is not a file that can be replaced", out.display());
        return Err(usage(message).hint("leave `--out` out to write to standard output").into());
    }
    Ok(())
}

/// Refuses a text where a pair is expected, and the other way round.
fn check_width(form: &Form, width: usize) -> Result<()> {
    let wanted = form.columns.len();
    if wanted == width || wanted == 0 && width <= form.plain.len() {
        return Ok(());
    }
    let names = if wanted == 0 { &form.plain } else { &form.columns }.join("`, `");
    Err(match wanted {
        0 | 1 => {
            usage(format!("the model reads one text, `{names}`, not a pair")).hint("leave out `--text-pair`")
        }
        2 => usage(format!("the model reads pairs, `{names}`")).hint("give the second text as `--text-pair`"),
        _ => usage(format!("the model reads the columns `{names}`")).hint("give them as rows, in JSON lines"),
    }
    .into())
}
