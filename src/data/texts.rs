//! Columns of texts and prompts by the names that they usually have, for rows of no known data set.

use serde_json::Value;

use super::row::Columns;

/// Pairs of texts.
const PAIRS: [[&str; 2]; 9] = [
    ["text", "text_pair"],
    ["sentence1", "sentence2"],
    ["premise", "hypothesis"],
    ["question1", "question2"],
    ["question", "sentence"],
    ["question", "context"],
    ["question", "passage"],
    ["text1", "text2"],
    ["text_a", "text_b"],
];
/// Single texts, the likeliest first, and lists of words.
const SINGLES: [&str; 6] = ["text", "sentence", "prompt", "content", "tokens", "words"];
/// Prompts: a conversation, or a text.
const PROMPTS: [&str; 6] = ["messages", "conversations", "prompt", "text", "question", "instruction"];
/// Texts that are no input.
const NOT_TEXTS: [&str; 2] = ["label", "labels"];

/// Returns the columns of a row that hold its text, or its pair of texts: by their names, else the only text.
pub fn recognised(row: &Columns) -> Option<Vec<String>> {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    if let Some(pair) = PAIRS.iter().find(|pair| pair.iter().all(|name| row.contains_key(*name))) {
        return Some(owned(pair));
    }
    single(&SINGLES, row)
}

/// Returns the column of a row that holds a prompt: by its name, else the only text.
pub fn recognised_prompt(row: &Columns) -> Option<Vec<String>> {
    single(&PROMPTS, row)
}

fn single(known: &[&str], row: &Columns) -> Option<Vec<String>> {
    if let Some(name) = known.iter().find(|name| row.contains_key(**name)) {
        return Some(vec![(*name).to_owned()]);
    }
    let is_text = |value: &Value| value.as_str().is_some_and(|text| text.trim().parse::<f64>().is_err());
    let held = row.iter().filter(|(name, value)| !NOT_TEXTS.contains(&name.as_str()) && is_text(value));
    let names: Vec<&str> = held.map(|(name, _)| name.as_str()).collect();
    (names.len() == 1).then(|| names.iter().map(|name| (*name).to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn texts_are_found_by_name_or_as_the_only_one() {
        for (row, expected) in [
            (json!({"text": "a", "title": "b"}), Some("text")),
            (json!({"idx": 1, "sentence2": "b", "sentence1": "a"}), Some("sentence1 sentence2")),
            (json!({"sentence": "a", "question": "b", "text": "c"}), Some("question sentence")),
            (json!({"id": "17", "review": "a", "label": "good"}), Some("review")),
            (json!({"title": "a", "body": "b"}), None),
            (json!({"id": "17"}), None),
        ] {
            let found = recognised(row.as_object().unwrap()).map(|names| names.join(" "));
            assert_eq!(found.as_deref(), expected, "{row}");
        }
        let row = json!({"text": "a", "messages": [], "prompt": "b"});
        assert_eq!(recognised_prompt(row.as_object().unwrap()), Some(vec!["messages".to_owned()]));
    }
}
