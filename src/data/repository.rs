//! The splits of a repository or folder of files: those that its `README.md` names, else by the names of the files.

use std::collections::BTreeMap;

use yaml_rust2::{Yaml, YamlLoader};

use crate::fault::{Fault, Result, usage, which};
use crate::files::is_data;

/// The files or patterns of each split.
pub type Splits = BTreeMap<String, Vec<String>>;

/// Words in the names of files, by split, as Hugging Face's `datasets` knows them.
const WORDS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// Returns the splits of the data set `name` whose files have these names. `readme` is its `README.md`, `config` the one
/// asked for.
///
/// # Errors
/// Names the configs if there is none of that name, or one must be chosen.
pub fn splits(name: &str, names: &[String], readme: Option<&str>, config: Option<&str>) -> Result<Splits> {
    let configs = readme.map(of_readme).unwrap_or_default();
    if !configs.is_empty() {
        let chosen = match config {
            Some(config) => configs.iter().find(|known| known.name == config),
            None => {
                let named = |known: &&Config| known.is_default || known.name == "default";
                configs.iter().find(named).or(configs.first().filter(|_| configs.len() == 1))
            }
        };
        let all = configs.iter().map(|config| config.name.as_str());
        return chosen.map(|config| config.splits.clone()).ok_or_else(|| choose(name, config, all).into());
    }
    // A text there is a licence or a remark, unless a README says otherwise.
    let is_rows = |name: &&str| is_data(name) && !name.ends_with(".txt");
    let files: Vec<&str> = names.iter().map(String::as_str).filter(is_rows).collect();
    let folders: Vec<&str> = top(&files).into_iter().filter(|folder| *folder != "data").collect();
    let inside: Vec<&str> = match config {
        Some(config) => {
            let prefix = format!("{config}/");
            files.iter().copied().filter(|name| name.starts_with(&prefix)).collect()
        }
        None => {
            files.iter().copied().filter(|name| !name.contains('/') || name.starts_with("data/")).collect()
        }
    };
    match (inside.is_empty(), folders.as_slice(), config) {
        (false, ..) => Ok(by_name(&inside)),
        (true, [_], None) => Ok(by_name(&files)),
        (true, [], _) => Err(usage(format!("`{name}` has no data file"))
            .hint("its files are `.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet` or `.arrow`")
            .into()),
        (true, all, _) => Err(choose(name, config, all.iter().copied()).into()),
    }
}

fn choose<'a>(name: &str, config: Option<&str>, all: impl Iterator<Item = &'a str> + Clone) -> Fault {
    let known = which("configs", config.unwrap_or_default(), all);
    match config {
        Some(config) => usage(format!("`{name}` has no config `{config}`")).hint(known),
        None => usage(format!("`{name}` has several configs"))
            .hint(format!("choose one as `hub:OWNER/NAME/CONFIG`; {known}")),
    }
}

/// Returns the folders that files lie in.
fn top<'a>(files: &[&'a str]) -> Vec<&'a str> {
    let mut found: Vec<&str> =
        files.iter().filter_map(|name| name.rsplit_once('/')).map(|(folder, _)| folder).collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// Sorts files into splits by a word in their names; all are of `train` if none has one.
fn by_name(files: &[&str]) -> Splits {
    let mut found = Splits::new();
    for name in files {
        let leaf = name.to_ascii_lowercase();
        let mut parts = leaf.split(|c: char| !c.is_ascii_alphanumeric());
        let split = parts.find_map(|part| WORDS.iter().find(|(_, words)| words.contains(&part)));
        if let Some((split, _)) = split {
            found.entry((*split).to_owned()).or_default().push((*name).to_owned());
        }
    }
    if found.is_empty() {
        found.insert("train".to_owned(), files.iter().map(|name| (*name).to_owned()).collect());
    }
    found
}

struct Config {
    name: String,
    is_default: bool,
    splits: Splits,
}

/// Returns the `configs` in the front matter of a `README.md`; none if there are none that can be read.
fn of_readme(text: &str) -> Vec<Config> {
    let matter =
        text.trim_start_matches('\u{feff}').strip_prefix("---").and_then(|rest| rest.split_once("\n---"));
    let parsed = matter.and_then(|(matter, _)| YamlLoader::load_from_str(matter).ok()).unwrap_or_default();
    let configs = parsed.first().and_then(|document| document["configs"].as_vec());
    configs.into_iter().flatten().filter_map(config).collect()
}

fn config(yaml: &Yaml) -> Option<Config> {
    let folder = yaml["data_dir"]
        .as_str()
        .map(|folder| format!("{}/", folder.trim_end_matches('/')))
        .unwrap_or_default();
    let paths = |yaml: &Yaml| -> Vec<String> {
        let list = yaml.as_vec().map_or(std::slice::from_ref(yaml), Vec::as_slice);
        list.iter().filter_map(Yaml::as_str).map(|path| format!("{folder}{path}")).collect()
    };
    let files = &yaml["data_files"];
    let mut splits = Splits::new();
    for part in files.as_vec().into_iter().flatten().filter(|part| !part["split"].is_badvalue()) {
        splits.entry(part["split"].as_str()?.to_owned()).or_default().extend(paths(&part["path"]));
    }
    if splits.is_empty() {
        splits.insert("train".to_owned(), paths(files));
    }
    let splits: Splits = splits.into_iter().filter(|(_, paths)| !paths.is_empty()).collect();
    let name = yaml["config_name"].as_str().unwrap_or("default").to_owned();
    (!splits.is_empty()).then(|| Config {
        name,
        is_default: yaml["default"].as_bool().unwrap_or(false),
        splits,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::hint_of;

    fn told(names: &[&str], readme: Option<&str>, config: Option<&str>) -> String {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        match splits("hub:o/n", &names, readme, config) {
            Ok(found) => {
                let shown = |(split, files): (&String, &Vec<String>)| format!("{split}={}", files.join("+"));
                found.iter().map(shown).collect::<Vec<_>>().join(" ")
            }
            Err(error) => format!("{error}: {}", hint_of(&error).unwrap_or_default()),
        }
    }

    #[test]
    fn splits_are_told_by_the_names_of_files() {
        let flat = ["README.md", "data/train-00000-of-00001.parquet", "data/test-0.parquet", "dev.csv"];
        assert_eq!(
            told(&flat, None, None),
            "test=data/test-0.parquet train=data/train-00000-of-00001.parquet validation=dev.csv"
        );
        assert_eq!(told(&["rows.jsonl", "x.txt"], None, None), "train=rows.jsonl");
        let two = ["cola/train-0.parquet", "mrpc/train-0.parquet", "mrpc/validation-0.parquet"];
        assert_eq!(
            told(&two, None, Some("mrpc")),
            "train=mrpc/train-0.parquet validation=mrpc/validation-0.parquet"
        );
        assert_eq!(
            told(&two, None, None),
            "`hub:o/n` has several configs: choose one as `hub:OWNER/NAME/CONFIG`; configs: `cola`, `mrpc`"
        );
        assert!(
            told(&two, None, Some("mrcp"))
                .starts_with("`hub:o/n` has no config `mrcp`: did you mean `mrpc`?")
        );
        assert_eq!(told(&two[..1], None, None), "train=cola/train-0.parquet");
        assert!(told(&["a.txt"], None, None).starts_with("`hub:o/n` has no data file"));
    }

    #[test]
    fn configs_of_the_front_matter_go_first() {
        let readme = "---\nlicense: mit\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n    path: main/train-*\n  \
                      - split: test\n    path:\n    - main/a*\n    - main/b*\n- config_name: socratic\n  data_dir: soc\n  \
                      data_files: rows.jsonl\n---\n# Title\n";
        let names = ["main/train-0.parquet"];
        assert_eq!(told(&names, Some(readme), Some("main")), "test=main/a*+main/b* train=main/train-*");
        assert_eq!(told(&names, Some(readme), Some("socratic")), "train=soc/rows.jsonl");
        assert!(told(&names, Some(readme), None).contains("has several configs"));
        let chosen = readme.replace("config_name: socratic", "config_name: socratic\n  default: true");
        assert_eq!(told(&names, Some(&chosen), None), "train=soc/rows.jsonl");
        // One that cannot be read says nothing.
        for broken in ["---\n\tx: [\n---\n", "no matter", "---\nconfigs: 3\n---\n"] {
            assert_eq!(told(&names, Some(broken), None), "train=main/train-0.parquet");
        }
    }
}
