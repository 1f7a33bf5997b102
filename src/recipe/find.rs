//! Finds a recipe: a path, a name in `recipes/` of the current folder, or a name compiled into the binary.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::fault::{Result, usage, which};
use crate::files::read_text;

/// Pairs each name with the text of its recipe.
macro_rules! recipes {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../recipes/", $name, ".toml")))),*]
    };
}

/// The recipes compiled into the binary, by name. A test holds this list against the folder `recipes/`.
pub(super) const BUILT_IN: &[(&str, &str)] = recipes! {
    "commonsense-llama2-7b", "commonsense-llama3-8b", "compare-methods", "glue-cola", "glue-mnli",
    "glue-mrpc", "glue-qnli", "glue-qqp", "glue-rte", "glue-sst2", "glue-stsb", "glue-wnli", "lora-cola",
    "lora-mrpc", "lora-qnli", "lora-rte", "lora-sst2", "lora-stsb", "metamath-gemma-7b",
    "metamath-llama-3.2-3b", "metamath-mistral-7b", "quickstart-pretrain", "quickstart",
    "smollm2-commonsense", "smollm2-metamath", "sweep-glue-from-mnli", "sweep-glue-from-scratch",
    "sweep-methods", "sweep-quickstart", "vera-cola", "vera-mrpc", "vera-qnli", "vera-rte", "vera-sst2",
    "vera-stsb",
};

/// Source that a recipe was found in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A file.
    File(PathBuf),
    /// The binary itself; the name of the recipe.
    BuiltIn(&'static str),
}

impl Origin {
    /// Returns the folder of a file.
    pub(super) fn folder(&self) -> Option<&Path> {
        if let Self::File(path) = self { path.parent() } else { None }
    }

    /// Returns the recipe's name without folder and `.toml`, such as `glue-qnli`.
    pub fn stem(&self) -> String {
        match self {
            Self::File(path) => path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            Self::BuiltIn(name) => (*name).to_owned(),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::BuiltIn(name) => write!(f, "built-in {name}.toml"),
        }
    }
}

/// Returns the first sentence of a recipe's header.
pub(super) fn about(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map_while(|line| line.strip_prefix('#')).map(str::trim).collect();
    let header = lines.join(" ");
    header.split(". ").next().unwrap_or_default().trim().trim_end_matches('.').to_owned()
}

/// Returns the text of the recipe `name` and its origin.
pub(super) fn find(name: &str) -> Result<(String, Origin)> {
    let plain = name.strip_suffix(".toml").unwrap_or(name);
    let with_ending = format!("{plain}.toml");
    let folder = Path::new("recipes");
    let places =
        [PathBuf::from(name), PathBuf::from(&with_ending), folder.join(name), folder.join(&with_ending)];
    if let Some(path) = places.into_iter().find(|place| place.is_file()) {
        let text = read_text(&path).map_err(|error| {
            let hint = "a recipe is a TOML file that can be read, of UTF-8 text";
            usage(format!("{error:#}")).hint(hint)
        })?;
        return Ok((text, Origin::File(path)));
    }
    let known = plain.strip_prefix("recipes/").unwrap_or(plain);
    match BUILT_IN.iter().find(|(built_in, _)| *built_in == known) {
        Some((built_in, text)) => Ok(((*text).to_owned(), Origin::BuiltIn(built_in))),
        None => Err(missing(name).into()),
    }
}

fn missing(name: &str) -> crate::fault::Fault {
    if Path::new(name).is_dir() {
        let inside = Path::new(name).join("recipe.toml");
        let hint = if inside.is_file() { format!("use `{}`", inside.display()) } else { String::new() };
        let fault = usage(format!("expected a recipe file, found the folder `{name}`"));
        return if hint.is_empty() { fault } else { fault.hint(hint) };
    }
    let stem = Path::new(name).file_stem().unwrap_or_default().to_string_lossy();
    let hint = which("built-in recipes", &stem, BUILT_IN.iter().map(|(built_in, _)| *built_in));
    usage(format!("cannot find the recipe `{name}`, neither as a file, nor in `recipes/`, nor built in"))
        .hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Recipe;

    #[test]
    fn the_built_in_list_equals_the_recipes_folder() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".toml"))
            .collect();
        names.sort();
        let listed: Vec<String> = BUILT_IN.iter().map(|(name, _)| format!("{name}.toml")).collect();
        assert_eq!(listed, names);
    }

    #[test]
    fn every_built_in_recipe_says_in_a_sentence_what_it_is() {
        for (name, text) in BUILT_IN {
            let about = about(text);
            assert!((15..140).contains(&about.len()) && !about.contains('#'), "{name}: {about}");
        }
    }

    #[test]
    fn a_name_is_found_with_and_without_ending_from_any_folder() {
        for name in ["glue-rte", "glue-rte.toml"] {
            let (recipe, origin) = Recipe::load(name, &[]).unwrap();
            assert_eq!(origin.stem(), "glue-rte");
            assert_eq!(recipe.data.dataset, "glue/rte");
        }
    }

    #[test]
    fn a_path_goes_before_a_built_in_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("glue-rte.toml");
        std::fs::write(&path, "model.name = \"m\"\ndata.dataset = \"mine\"\n").unwrap();
        for name in [path.clone(), path.with_extension("")] {
            let (recipe, origin) = Recipe::load(name.to_str().unwrap(), &[]).unwrap();
            assert_eq!(recipe.data.dataset, "mine");
            assert_eq!(origin, Origin::File(path.clone()));
        }
    }

    #[test]
    fn a_folder_beside_the_recipe_is_used_where_the_current_folder_has_none() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("tiny-base");
        std::fs::create_dir(&base).unwrap();
        let path = folder.path().join("mine.toml");
        std::fs::write(&path, "model.name = \"tiny-base\"\ndata.dataset = \"d\"\n").unwrap();
        let (recipe, _) = Recipe::load(path.to_str().unwrap(), &[]).unwrap();
        assert_eq!(recipe.model.name, base.to_str().unwrap());
        assert_eq!(recipe.train.init_from, "");
    }

    #[test]
    fn a_missing_recipe_names_the_nearest_and_all() {
        let error = Recipe::load("glue-qnly.toml", &[]).unwrap_err();
        assert_eq!(crate::fault::exit_code(&error), 2);
        assert!(error.to_string().contains("cannot find the recipe `glue-qnly.toml`"), "{error}");
        let hint = crate::fault::hint_of(&error).unwrap();
        assert!(hint.starts_with("did you mean `glue-qnli`?") && hint.contains("`glue-wnli`"), "{hint}");
    }

    #[test]
    fn a_run_folder_instead_of_a_file_is_explained() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("recipe.toml"), "").unwrap();
        let error = Recipe::load(folder.path().to_str().unwrap(), &[]).unwrap_err();
        assert!(error.to_string().contains("found the folder"), "{error}");
        assert!(crate::fault::hint_of(&error).unwrap().ends_with("recipe.toml`"));
    }
}
