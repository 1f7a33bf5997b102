//! The rules of the code that no compiler checks: sizes, names, and which module may know which.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What each module may use of the crate, besides itself and [`BELOW`]: `commands → session → train → eval →
/// models → nn → adapters`, with data, hub, recipe and report beside them.
const MAY_USE: [(&str, &[&str]); 23] = [
    ("main", &["cli", "commands"]),
    ("lib", &[]),
    ("commands", &["adapters", "cli", "export", "models", "recipe", "report", "session", "study", "train"]),
    (
        "session",
        &["adapters", "data", "eval", "generate", "hub", "models", "recipe", "report", "scoring", "train"],
    ),
    ("cli", &[]),
    ("train", &["adapters", "data", "eval", "models", "nn", "report"]),
    ("export", &["adapters", "data", "eval", "models", "nn", "report"]),
    ("eval", &["adapters", "data", "generate", "models", "nn", "report", "scoring"]),
    ("generate", &["data", "models", "nn", "report"]),
    ("models", &["adapters", "nn", "report"]),
    ("nn", &["adapters"]),
    ("adapters", &["report"]),
    ("scoring", &[]),
    ("data", &["report"]),
    ("hub", &["report"]),
    ("recipe", &["adapters", "report"]),
    ("study", &["adapters", "recipe", "report"]),
    ("report", &[]),
    ("torch", &["report"]),
    ("files", &[]),
    ("fault", &[]),
    ("limits", &[]),
    ("spec", &[]),
];

/// What every module may use.
const BELOW: [&str; 5] = ["fault", "files", "limits", "spec", "torch"];

/// The modules that know nothing of tensors.
const WITHOUT_TENSORS: [&str; 7] = ["spec", "recipe", "cli", "data", "hub", "scoring", "study"];

/// Names of methods, and the modules where they may be written.
const METHODS: [&str; 12] = [
    "lora_xs", "lora-xs", "LoraXs", "lora_mini", "lora-mini", "LoraMini", "tiny_lora", "tiny-lora",
    "TinyLora", "vera::", "vera_", "Vera",
];
const KNOW_METHODS: [&str; 6] = ["adapters", "recipe", "session", "commands", "cli", "export"];
/// The one place outside where an adapter is put on the layers of a model.
const ATTACHES: &str = "models/adapt.rs";

struct Source {
    /// Below `src`.
    path: String,
    /// Up to the tests at the end.
    code: String,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn walk(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, ending, found);
        } else if path.extension().is_some_and(|e| e == ending) {
            found.push(path);
        }
    }
}

fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    walk(&root().join(folder), ending, &mut found);
    found.sort();
    found
}

fn sources() -> Vec<Source> {
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        let tests = ["#[cfg(test)]\nmod tests", "#[cfg(test)]\npub(crate) mod tests"];
        let end = tests.iter().filter_map(|start| text.find(start)).min().unwrap_or(text.len());
        let code = text[..end].to_owned();
        let path = path.strip_prefix(root().join("src")).unwrap().display().to_string();
        Source { path, code }
    };
    let found: Vec<Source> = files("src", "rs").into_iter().map(read).collect();
    assert!(found.len() > 40, "{} files", found.len());
    found
}

impl Source {
    /// The first part of the path: `train/order.rs` and `train.rs` are `train`.
    fn module(&self) -> &str {
        self.path.split('/').next().unwrap_or_default().trim_end_matches(".rs")
    }

    /// Lines of code with their numbers, without comments.
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let text = self.code.lines().map(|line| line.split("//").next().unwrap_or_default());
        (1..).zip(text)
    }

    /// What the code takes of the crate: `data::catalog::Catalog` for `use crate::data::catalog::Catalog`, each name
    /// of a list apart.
    fn uses(&self) -> Vec<String> {
        let code: String = self.lines().map(|(_, line)| line.trim()).collect();
        let mut found = Vec::new();
        for (start, _) in code.match_indices("crate::") {
            let rest = &code[start + "crate::".len()..];
            match rest.strip_prefix('{') {
                Some(list) => found.extend(names_of_list(list)),
                None => found.push(
                    rest.split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':')
                        .next()
                        .unwrap_or_default()
                        .to_owned(),
                ),
            }
        }
        found
    }
}

/// `cli, report, train::interrupt}; …` to its names; lists inside are passed over.
fn names_of_list(list: &str) -> Vec<String> {
    let (mut names, mut depth) = (vec![String::new()], 0);
    for c in list.chars() {
        match c {
            '}' if depth == 0 => break,
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => names.push(String::new()),
            c if depth == 0 => names.last_mut().unwrap().push(c),
            _ => {}
        }
    }
    names.into_iter().map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect()
}

fn assert_none(rule: &str, faults: &[String]) {
    assert!(faults.is_empty(), "{rule}:\n  {}", faults.join("\n  "));
}

/// Lines of code with any of these words, outside of the modules and files that may have them.
fn lines_with(words: &[&str], allowed: impl Fn(&Source) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources().iter().filter(|source| !allowed(source)) {
        for (number, line) in source.lines().filter(|(_, line)| words.iter().any(|word| line.contains(word)))
        {
            found.push(format!("{}:{number}: {}", source.path, line.trim()));
        }
    }
    found
}

#[test]
fn every_source_opens_with_what_it_is() {
    let faults: Vec<String> =
        sources().into_iter().filter(|s| !s.code.starts_with("//! ")).map(|s| s.path).collect();
    assert_none("a file opens with a `//!` sentence", &faults);
}

#[test]
fn no_source_is_longer_than_400_lines() {
    let long = |source: Source| {
        let lines = source.code.lines().count();
        (lines > 400).then(|| format!("{}: {lines}", source.path))
    };
    assert_none(
        "at most 400 lines besides the tests",
        &sources().into_iter().filter_map(long).collect::<Vec<_>>(),
    );
}

#[test]
fn a_command_is_one_function_of_a_short_file() {
    let mut faults = Vec::new();
    for source in sources().into_iter().filter(|source| source.module() == "commands") {
        let lines = source.code.lines().count();
        let public = source.code.lines().filter(|line| line.trim_start().starts_with("pub fn ")).count();
        if lines > 150 || public != 1 {
            faults.push(format!("{}: {lines} lines, {public} public functions", source.path));
        }
    }
    assert_none("a file of `commands/` has at most 150 lines and one public function", &faults);
}

#[test]
fn no_source_is_named_after_nothing() {
    let nothing = ["utils.rs", "util.rs", "common.rs", "base.rs", "helpers.rs", "misc.rs"];
    let faults: Vec<String> = sources()
        .into_iter()
        .map(|source| source.path)
        .filter(|path| path.rsplit('/').next().is_some_and(|name| nothing.contains(&name)))
        .collect();
    assert_none("a file is named after what it holds", &faults);
}

#[test]
fn modules_look_one_way() {
    let allowed: BTreeMap<&str, &[&str]> = MAY_USE.into();
    let mut faults = Vec::new();
    let mut seen = 0;
    for source in sources() {
        let module = source.module().to_owned();
        let Some(allowed) = allowed.get(module.as_str()) else {
            faults.push(format!("{}: the module `{module}` has no place in the order", source.path));
            continue;
        };
        for name in source.uses() {
            seen += 1;
            let is =
                |may: &str| name == may || name.strip_prefix(may).is_some_and(|rest| rest.starts_with("::"));
            if !(is(&module) || BELOW.into_iter().any(is) || allowed.iter().any(|may| is(may))) {
                faults.push(format!("{} uses crate::{name}", source.path));
            }
        }
    }
    assert!(seen > 100, "{seen} uses");
    assert_none("commands → session → train → eval → models → nn → adapters", &faults);
}

#[test]
fn a_list_of_uses_is_taken_apart() {
    let code = "//! Doc.\nuse crate::{cli, report::say, train::{order, task::Task}};\nuse crate::nn::Pass; // crate::hub\n\
                fn f() { crate::torch::cast(x) }\n";
    let source = Source { path: "eval/mod.rs".into(), code: code.into() };
    assert_eq!(source.uses(), ["cli", "report::say", "train::", "nn::Pass", "torch::cast"]);
    assert_eq!(source.module(), "eval");
}

#[test]
fn recipes_data_and_hub_know_nothing_of_tensors() {
    let faults = lines_with(&["tch::", "torch::"], |source| !WITHOUT_TENSORS.contains(&source.module()));
    assert_none("no tensors here", &faults);
}

#[test]
fn layers_name_their_axes() {
    let words: Vec<String> = (0..4).map(|axis| format!("size()[{axis}]")).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let faults = lines_with(&words, |source| !["nn", "models", "adapters"].contains(&source.module()));
    assert_none("axes by name, through `dims2` to `dims4`", &faults);
}

#[test]
fn methods_are_named_where_they_are_made() {
    let allowed = |source: &Source| KNOW_METHODS.contains(&source.module()) || source.path == ATTACHES;
    assert_none("models and loop know no method", &lines_with(&METHODS, allowed));
}

#[test]
fn nothing_is_printed_past_the_report() {
    let faults = lines_with(&["println!", "print!(", "eprint!("], |_| false);
    assert_none("use `report::say` or `tracing`", &faults);
}

#[test]
fn commands_and_their_session_talk_alone() {
    let faults = lines_with(&["say("], |source| ["commands", "session", "report"].contains(&source.module()));
    assert_none("return what is to be said", &faults);
}

#[test]
fn nothing_is_trained_by_its_name() {
    let faults = lines_with(&["contains(\"lora", "contains(\"head", "contains(\"classifier"], |_| false);
    assert_none("trained means in the trained store", &faults);
}

#[test]
fn every_script_is_valid_for_its_shell() {
    let scripts = files("scripts", "sh");
    assert!(!scripts.is_empty());
    for script in scripts {
        let output = Command::new("bash").arg("-n").arg(&script).output().unwrap();
        assert!(output.status.success(), "{}\n{}", script.display(), String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn no_type_is_defined_twice() {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for source in sources() {
        for (_, line) in source.lines() {
            let mut words = line.split_whitespace();
            let is_seen = words.next().is_some_and(|word| ["pub", "pub(crate)"].contains(&word));
            if is_seen && words.next().is_some_and(|word| ["struct", "enum", "trait"].contains(&word)) {
                let name = words.next().unwrap_or_default();
                let name = name.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
                found.entry(name.to_owned()).or_default().push(source.path.clone());
            }
        }
    }
    assert!(found.len() > 150 && found["Adapter"].len() == 1, "{found:?}");
    let twice: Vec<String> = (found.into_iter())
        .filter(|(name, places)| places.len() > 1 && !name.is_empty()) // a macro has `$name`
        .map(|(name, places)| format!("`{name}` in {}", places.join(", ")))
        .collect();
    assert_none("one name, one type", &twice);
}

/// Modules that import each other; each is to be taken apart.
const CIRCLES: [&[&str]; 0] = [];

/// The modules that each module imports from, besides those around it and inside it.
fn imports(sources: &[Source]) -> BTreeMap<String, Vec<String>> {
    let name = |path: &str| path.trim_end_matches(".rs").trim_end_matches("/mod").replace('/', "::");
    let names: Vec<String> = sources.iter().map(|source| name(&source.path)).collect();
    let mut found = BTreeMap::new();
    for (source, own) in sources.iter().zip(&names) {
        let code: String = source.lines().map(|(_, line)| format!("{} ", line.trim())).collect();
        let mut targets = Vec::new();
        for part in code.split("use ").skip(1).filter_map(|rest| rest.split(';').next()) {
            let mut folder: Vec<&str> = own.split("::").collect();
            let mut rest = part.trim();
            if let Some(after) = rest.strip_prefix("crate::") {
                (folder, rest) = (Vec::new(), after);
            } else if !rest.starts_with("super::") {
                continue;
            }
            while let Some(after) = rest.strip_prefix("super::") {
                folder.pop();
                rest = after;
            }
            let list = rest.strip_prefix('{').map_or_else(|| vec![rest.to_owned()], names_of_list);
            for item in list {
                let whole = folder.iter().copied().chain(item.split("::")).collect::<Vec<_>>().join("::");
                // The longest path that is a module.
                let is = |known: &&String| whole == **known || whole.starts_with(&format!("{known}::"));
                targets.extend(names.iter().filter(is).max_by_key(|known| known.len()).cloned());
            }
        }
        let inside = |one: &str, other: &str| format!("{one}::").starts_with(&format!("{other}::"));
        targets.retain(|target| !inside(target, own) && !inside(own, target));
        found.insert(own.clone(), targets);
    }
    found
}

#[test]
fn no_two_modules_import_each_other() {
    let graph = imports(&sources());
    assert!(graph.values().map(Vec::len).sum::<usize>() > 300, "{graph:?}");
    let reached = |start: &str| {
        let (mut seen, mut next) = (BTreeSet::new(), graph[start].clone());
        while let Some(module) = next.pop() {
            if seen.insert(module.clone()) {
                next.extend(graph.get(&module).into_iter().flatten().cloned());
            }
        }
        seen
    };
    let reach: BTreeMap<&String, BTreeSet<String>> =
        graph.keys().map(|module| (module, reached(module))).collect();
    let circles: BTreeSet<Vec<&str>> = (graph.keys().filter(|module| reach[module].contains(*module)))
        .map(|module| {
            let back = reach[module].iter().filter(|other| reach[other].contains(module));
            back.map(String::as_str).collect()
        })
        .collect();
    let known: BTreeSet<Vec<&str>> = CIRCLES.iter().map(|circle| circle.to_vec()).collect();
    assert_eq!(circles, known, "modules look one way inside a layer, too");
}
