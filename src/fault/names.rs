//! Suggestions for unknown names: the nearest known ones.

use std::borrow::Cow;

use super::{Fault, usage};

/// Returns the nearest of `known`, or `None` if none is near.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (similarity(name, candidate), candidate))
        .filter(|(similarity, _)| *similarity > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// Returns the similarity of two names, at most 1; for `glue/qnli` the last part is compared too.
fn similarity(name: &str, candidate: &str) -> f64 {
    let [name, whole] = [name, candidate].map(str::to_lowercase);
    let part = whole.rsplit('/').next().unwrap_or_default();
    strsim::jaro_winkler(&name, &whole).max(0.99 * strsim::jaro_winkler(&name, part))
}

/// Maximum number of names listed in full; of more, only the nearest are shown.
const ALL: usize = 12;
/// Number of nearest names shown of a longer list.
const NEAREST: usize = 6;

/// Returns the fault that `what` has no such name, with the nearest one as a hint.
pub fn unknown(what: &str, name: &str, known: &[&str]) -> Fault {
    let fault = usage(format!("unknown {what} `{name}`, expected one of `{}`", known.join("`, `")));
    match nearest(name, known.iter().copied()) {
        Some(near) => fault.hint(format!("did you mean `{near}`?")),
        None => fault,
    }
}

/// Returns `did you mean …?` if a name is near, and the known names; of many, only the nearest.
pub fn which<'a>(what: &str, wanted: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    let near = nearest(wanted, known.clone());
    let near = near.map(|near| format!("did you mean `{}`? ", short(near))).unwrap_or_default();
    let mut names: Vec<&str> = known.collect();
    let others = if names.len() > ALL { names.len() - NEAREST } else { 0 };
    if others > 0 {
        names.sort_by_cached_key(|name| std::cmp::Reverse((similarity(wanted, name) * 1e9) as u64));
        names.truncate(NEAREST);
    }
    let list: Vec<String> = names.iter().map(|name| format!("`{}`", short(name))).collect();
    match others {
        0 => format!("{near}{what}: {}", list.join(", ")),
        _ => format!("{near}similar {what}: {}, and {others} others", list.join(", ")),
    }
}

/// Returns at most the first 80 characters of a text quoted in a message.
pub fn short(text: &str) -> Cow<'_, str> {
    beginning(text, 80)
}

/// Returns at most the first `most` characters of a text, and `…` if there are more.
pub fn beginning(text: &str, most: usize) -> Cow<'_, str> {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]).into(),
        None => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_names_are_shown_as_they_are_and_of_many_the_nearest_first() {
        let known = ["glue/mnli", "glue/qnli", "math"];
        assert_eq!(
            which("sets", "QNLI", known.into_iter()),
            "did you mean `glue/qnli`? sets: `glue/mnli`, `glue/qnli`, `math`"
        );
        assert_eq!(which("sets", "zzz", known.into_iter()), "sets: `glue/mnli`, `glue/qnli`, `math`");
        let many: Vec<String> =
            (0..100_000).map(|i| format!("column{i}")).chain([String::from("text")]).collect();
        let found = which("columns", "texts", many.iter().map(String::as_str));
        assert!(found.starts_with("did you mean `text`? similar columns: `text`, `column"), "{found}");
        assert!(found.ends_with(", and 99995 others") && found.len() < 200, "{found}");
        let long = "é".repeat(1000);
        assert_eq!(which("columns", "x", [long.as_str()].into_iter()).chars().count(), 92);
    }
}
