//! MATH as Minerva is scored: a fixed phrase, a normal form of the answer, then equivalence.
//!
//! EleutherAI/lm-evaluation-harness 0.4.13, `lm_eval/tasks/minerva_math/utils.py`, after appendix D of Lewkowycz et al.
//! (2022). The original ends in SymPy's `simplify`; here [`equivalent`] takes its place.

use std::sync::LazyLock;

use regex::{Captures, Regex};

use super::equivalence::equivalent;
use super::python::pattern;
use super::{Verdict, boxed};

const END: &str = "I hope it is correct.";

static PHRASE: LazyLock<Regex> =
    LazyLock::new(|| pattern("Final Answer: The final answer is(.*?). I hope it is correct."));

const SUBSTITUTIONS: [(&str, &str); 10] = [
    ("an ", ""),
    ("a ", ""),
    (".$", "$"),
    ("\\$", ""),
    ("\\ ", ""),
    (" ", ""),
    ("mbox", "text"),
    (",\\text{and}", ","),
    ("\\text{and}", ","),
    ("\\text{m}", "\\text{}"),
];

/// Removed in this order: words on their own, then anywhere outside commands; the rest literally.
const REMOVED: [&str; 42] = [
    "square", "ways", "integers", "dollars", "mph", "inches", "ft", "hours", "km", "units", "\\ldots", "sue",
    "points", "feet", "minutes", "digits", "cents", "degrees", "cm", "gm", "pounds", "meters", "meals",
    "edges", "students", "childrentickets", "multiples", "\\text{s}", "\\text{.}", "\\text{\ns}",
    "\\text{}^2", "\\text{}^3", "\\text{\n}", "\\text{}", "\\mathrm{th}", "^\\circ", "^{\\circ}", "\\;",
    ",\\!", "{,}", "\"", "\\dots",
];

static WORDS: LazyLock<Vec<Regex>> = LazyLock::new(|| {
    REMOVED.iter().filter(|word| is_word(word)).map(|word| pattern(&format!(r"(\\?)\b{word}\b"))).collect()
});
static COMMAND: LazyLock<Regex> = LazyLock::new(|| pattern(r"\\[a-zA-Z]+"));
static GROUPED: LazyLock<Regex> = LazyLock::new(|| pattern(r"\A-?\d{1,3}(,\d{3})+\z"));
/// Patterns to unwrap or to give braces, with their replacements.
static REWRITES: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    vec![
        (pattern(r"(.*?)(\$)(.*?)(\$)(.*)"), "$$${3}$$"),
        (pattern(r"(\\text\{)(.*?)(\})"), "${2}"),
        (pattern(r"(\\textbf\{)(.*?)(\})"), "${2}"),
        (pattern(r"(\\overline\{)(.*?)(\})"), "${2}"),
        (pattern(r"(\\boxed\{)(.*)(\})"), "${2}"),
        (pattern(r"(frac)([^{])(.)"), "frac{${2}}{${3}}"),
        (pattern(r"(sqrt)(\[[^\]]*\])(\w)"), "${1}${2}{${3}}"),
        (pattern(r"(sqrt)([^{\[])"), "sqrt{${2}}"),
    ]
});

/// Compares the text between the phrase and the hope, normalised, with the normalised box.
pub fn judge(completion: &str, gold: &str) -> Verdict {
    let text = format!("{completion}{END}");
    let Some(found) = PHRASE.captures(&text).and_then(|groups| groups.get(1)) else { return Verdict::none() };
    let found = normalise(found.as_str().trim());
    let correct = boxed::last_content(gold).map(normalise).is_some_and(|gold| {
        if found.is_empty() { gold.is_empty() } else { found == gold || equivalent(&gold, &found) }
    });
    Verdict::of(found, correct)
}

fn is_word(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphabetic())
}

/// `normalize_final_answer`.
pub fn normalise(answer: &str) -> String {
    let mut answer = answer.rsplit('=').next().unwrap_or_default().to_owned();
    for word in WORDS.iter() {
        // A word after a backslash is a command: kept.
        let keep =
            |groups: &Captures| if groups[1].is_empty() { String::new() } else { groups[0].to_owned() };
        answer = word.replace_all(&answer, keep).into_owned();
    }
    for (before, after) in SUBSTITUTIONS {
        answer = answer.replace(before, after);
    }
    for gone in REMOVED {
        answer =
            if is_word(gone) { without_outside_commands(&answer, gone) } else { answer.replace(gone, "") };
    }
    for (from, to) in REWRITES.iter() {
        answer = from.replace_all(&answer, *to).into_owned();
    }
    answer = answer.replace('$', "");
    if GROUPED.is_match(&answer) { answer.replace(',', "") } else { answer }
}

/// Removes a word everywhere but in the names of commands, so that `ft` leaves `\left` alone.
fn without_outside_commands(text: &str, word: &str) -> String {
    let (mut whole, mut end) = (String::new(), 0);
    for command in COMMAND.find_iter(text) {
        whole.push_str(&text[end..command.start()].replace(word, ""));
        whole.push_str(command.as_str());
        end = command.end();
    }
    whole.push_str(&text[end..].replace(word, ""));
    whole
}
