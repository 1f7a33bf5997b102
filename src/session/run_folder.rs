//! Contents of a run's folder.
//!
//! | name | content | written |
//! |---|---|---|
//! | `recipe.toml` | the recipe with every default | at the start |
//! | `datasets.toml` | the catalog entries of its data sets, which whatever opens the run knows | at the start |
//! | `metrics.jsonl`, `events.out.tfevents.*` | log points and evaluations ([`crate::report::metrics_log`]) | as they come |
//! | `adapter/` | the best adapter so far ([`super::recorder`]) | after a better evaluation |
//! | `checkpoints/step-N/` | what a training resumes from ([`crate::train::checkpoint`]), and the adapter of its step | at `train.checkpoint_every` |
//! | `results.json` | the results; its presence means that the run is finished ([`super::results`]) | at the end |
//! | `failed.json` | of a sweep's run that diverged: the error and its step ([`super::sweep`]) | at the end |
//! | `rung-J.json` | of a sweep with halving: the results at its rung J ([`super::sweep`]) | at the rung |
//! | `eval/` | scores and predictions of the run ([`super::score`]) | by `eval`, or after a training with `eval.tasks` |
//! | `.lock` | nothing; locked by the process that trains ([`super::resume`]) | at the start |

use std::path::Path;

use crate::fault::{Result, fault};
use crate::recipe::{Recipe, SWEEP};

/// The recipe with every default.
pub const RECIPE: &str = "recipe.toml";
/// The catalog entries of its data sets.
pub const DATASETS: &str = "datasets.toml";
/// The results of a finished run.
pub const RESULTS: &str = "results.json";
/// In place of results: why a run of a sweep has none.
pub const FAILED: &str = "failed.json";
/// The folder of the best adapter.
pub const ADAPTER: &str = "adapter";
/// The folder of the checkpoints.
pub const CHECKPOINTS: &str = "checkpoints";
/// The folder of scores and predictions.
pub const EVAL: &str = "eval";
/// The file that the process which trains keeps locked.
pub const LOCK: &str = ".lock";

/// Returns the recipe of the run in `folder`, changed by `sets`.
/// Fails when the folder holds no run.
pub fn recipe_of(folder: &Path, sets: &[String]) -> Result<Recipe> {
    let path = folder.join(RECIPE);
    if !path.exists() {
        let missing = fault(format!("`{}` is not a run: it has no `recipe.toml`", folder.display()));
        let run = folder.parent().filter(|parent| parent.ends_with(CHECKPOINTS)).and_then(Path::parent);
        let hint = match (run, folder.file_name()) {
            (Some(run), Some(step)) => {
                format!("use `--run {} --checkpoint {}`", run.display(), step.to_string_lossy())
            }
            _ if folder.join(SWEEP).is_file() => {
                format!("it is a sweep: name one of its runs, such as `{}`", folder.join("NAME").display())
            }
            _ => "a run is a folder written by `loraxs train --out`".to_owned(),
        };
        return Err(missing.hint(hint).into());
    }
    Ok(Recipe::load(&path.to_string_lossy(), sets)?.0)
}
