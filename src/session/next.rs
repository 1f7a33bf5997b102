//! What comes after a command: the next one, and how Python loads what was written.

use std::path::Path;

use super::subject::Subject;
use super::training::Training;
use crate::data::Task;
use crate::files::is_data;
use crate::models::HeadShape;
use crate::spec::Problem;
use crate::spec::request::{MergeFormat, SubjectSource};

/// Returns what to do with the run that was trained into `out`.
pub fn after_training(training: &Training, out: &Path) -> String {
    let run = quoted(out);
    let pair = format!("loraxs predict --run {run} --text \"…\" --text-pair \"…\"");
    let question = match &training.inputs.dataset.task {
        Task::Chat(_) => format!("loraxs chat --run {run}"),
        Task::Instruction(_) | Task::Text(_) | Task::Generation(_) => {
            format!("loraxs predict --run {run} --input FILE")
        }
        Task::Classification(task) if task.text.len() > 1 => pair,
        Task::MultiLabel(task) if task.text.len() > 1 => pair,
        Task::Regression(task) if task.text.len() > 1 => pair,
        _ => format!("loraxs predict --run {run} --text \"…\""),
    };
    let config = &training.adapters[0];
    let merge = format!("loraxs merge --run {run} --out {}", quoted(&beside(out, "-merged")));
    let class = auto_class(training.inputs.head);
    let python = match config.method.is_of_peft() {
        true => {
            let outputs =
                training.inputs.head.map(|head| format!(", num_labels={}", head.outputs)).unwrap_or_default();
            let base = format!("{class}.from_pretrained({:?}{outputs})", config.base_model_name_or_path);
            format!("PeftModel.from_pretrained({base}, {:?})", out.join(super::run_folder::ADAPTER))
        }
        false => format!("{class}.from_pretrained({:?}) after `{merge}`", beside(out, "-merged")),
    };
    format!("next: {question}, or {merge}\nin Python: {python}")
}

/// Returns what to do with a subject that was scored into `out`, one of whose data sets is `task`; `None` where the command was
/// another than `eval`.
pub fn after_eval(subject: &SubjectSource, out: &Path, task: &str) -> Option<String> {
    let SubjectSource { run, model, adapter, .. } = subject;
    let next = match (run, adapter, model) {
        (Some(run), ..) => {
            format!("loraxs merge {} --out {}", words(subject), quoted(&beside(run, "-merged")))
        }
        (_, Some(adapter), _) => {
            format!("loraxs merge {} --out {}", words(subject), quoted(&beside(adapter, "-merged")))
        }
        (.., Some(_)) => format!("loraxs predict {} --input FILE", words(subject)),
        _ => return None,
    };
    let predictions = out.join("predictions").join(format!("{task}.jsonl"));
    let python = match predictions.exists() {
        true => format!("pandas.read_json({predictions:?}, lines=True)"),
        false => format!("json.load(open({:?}))", out.join("results.json")),
    };
    Some(format!("next: {next}\nin Python: {python}"))
}

/// Returns what to do with a subject that was merged into `out`, and has this head.
pub fn after_merge(
    (out, format): (&Path, MergeFormat),
    subject: &Subject,
    head: Option<HeadShape>,
) -> String {
    let base = &subject.base;
    let config = subject.adapter.as_ref().map(|adapter| &adapter.config);
    let class = auto_class(head);
    let run = subject.run.as_ref().map(|(_, recipe)| recipe.data.dataset.as_str());
    let task = run.or(config.map(|config| config.dataset.as_str())).filter(|name| !name.is_empty());
    let (place, model) = (quoted(out), quoted(Path::new(&base.name)));
    // Data without an entry have no name that says their columns.
    let is_entry =
        |name: &&str| !is_data(name) && !Path::new(name).is_absolute() && !name.starts_with("hub:");
    let next = |subject: String| match task.filter(is_entry) {
        Some(task) => format!("loraxs eval {subject} --task {task}"),
        None => format!("loraxs predict {subject} --input FILE"),
    };
    match format {
        MergeFormat::Hf => {
            let next = next(format!("--model {place}"));
            format!("next: {next}\nin Python: {class}.from_pretrained({out:?})")
        }
        MergeFormat::Peft => {
            // The base's own config does not know the labels.
            let labels = match head {
                None => String::new(),
                Some(_) => format!(", config=AutoConfig.from_pretrained({out:?})"),
            };
            let next = next(format!("--model {model} --adapter {place}"));
            format!(
                "next: {next}\nin Python: \
                 PeftModel.from_pretrained({class}.from_pretrained({:?}{labels}), {out:?})",
                base.name
            )
        }
    }
}

/// Returns the class of Transformers that loads a model with this head.
fn auto_class(head: Option<HeadShape>) -> String {
    format!("AutoModel{}", Problem::class(head.map(|head| head.problem)))
}

/// Returns the options that name a subject.
fn words(subject: &SubjectSource) -> String {
    let SubjectSource { run, checkpoint, model, revision, adapter, basis } = subject;
    let path = |path: &Option<std::path::PathBuf>| path.as_deref().map(quoted);
    let plain = |text: &Option<String>| text.as_deref().map(|text| quoted(Path::new(text)));
    let all = [
        ("--run", path(run)),
        ("--checkpoint", plain(checkpoint)),
        ("--model", plain(model)),
        ("--revision", plain(revision)),
        ("--adapter", path(adapter)),
        ("--basis", path(basis)),
    ];
    let given = all.into_iter().filter_map(|(name, value)| Some(format!("{name} {}", value?)));
    given.collect::<Vec<_>>().join(" ")
}

/// Returns the folder beside `folder` with `ending` after its name.
fn beside(folder: &Path, ending: &str) -> std::path::PathBuf {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    folder.with_file_name(format!("{name}{ending}"))
}

/// Returns a path as a shell reads it.
pub fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+=:,@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_quoted_where_a_shell_needs_it() {
        let quoted = |text: &str| quoted(Path::new(text));
        assert_eq!(
            [quoted("runs/a-1.b"), quoted("my runs/x"), quoted("it's")],
            ["runs/a-1.b", "'my runs/x'", r"'it'\''s'"]
        );
    }

    #[test]
    fn what_is_merged_goes_beside_it() {
        assert_eq!(beside(Path::new("runs/x/"), "-merged"), Path::new("runs/x-merged"));
    }
}
