//! `loraxs recipe`: the built-in recipes, one of them, and every key.

use crate::cli::RecipeArgs;
use crate::fault::Result;
use crate::recipe::Recipe;
use crate::report::{say, table};
use crate::session::reference::{all_keys, explained};

/// Prints a recipe as it is written or with every key, the reference of all keys, or the names of the built-in recipes.
/// Fails when there is no such recipe, or with `--all` one with faults.
pub fn run(args: &RecipeArgs) -> Result<()> {
    let text = match &args.name {
        Some(name) if args.all => explained(name)?,
        Some(name) => Recipe::text(name)?.0,
        None if args.keys => all_keys(),
        None => {
            let rows: Vec<Vec<String>> = Recipe::built_in().map(|(name, about)| vec![name, about]).collect();
            table(&["recipe", "about"], &rows)
        }
    };
    say(text.trim_end());
    Ok(())
}
