//! The plan of a sweep, as `--dry-run` shows it.

use std::collections::BTreeMap;

use super::AskedSweep;
use crate::fault::Result;
use crate::recipe::Sweep;

/// Most values of a key that are shown.
const MOST_VALUES: usize = 12;

/// Describes the runs, the keys that vary, and the groups that can be trained together.
/// Fails when a recipe cannot be written.
pub fn plan(asked: &AskedSweep) -> Result<String> {
    let (sweep, out) = (&asked.sweep, asked.out.display());
    let mut lines = vec![format!("{} in {out}", number(sweep.runs.len(), "run"))];
    lines.extend(varied(sweep).into_iter().map(|(key, values)| format!("  {key}: {}", some_of(&values))));
    let groups = groups(sweep)?;
    let (least, most) = (groups.iter().map(Vec::len).min(), groups.iter().map(Vec::len).max());
    let sizes = match (least.unwrap_or(0), most.unwrap_or(0)) {
        (least, most) if least == most => format!("{} each", number(most, "run")),
        (least, most) => format!("{least} to {most} runs each"),
    };
    let groups = number(groups.len(), "group");
    lines.push(format!("{groups} of runs that can be trained together, {sizes}"));
    if let [first, .., last] = sweep.runs.as_slice() {
        lines.push(format!("first: {}\nlast: {}", first.name, last.name));
    }
    Ok(lines.join("\n"))
}

fn number(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Returns the places of the runs that can be trained together, group by group, in the order of their first runs.
/// Fails when a recipe cannot be written.
pub fn groups(sweep: &Sweep) -> Result<Vec<Vec<usize>>> {
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (number, run) in sweep.runs.iter().enumerate() {
        let place = *places.entry(run.recipe.together_key()?).or_insert(groups.len());
        match groups.get_mut(place) {
            Some(group) => group.push(number),
            None => groups.push(vec![number]),
        }
    }
    Ok(groups)
}

/// Returns the keys that vary, each with its different values in their order.
fn varied(sweep: &Sweep) -> Vec<(&str, Vec<String>)> {
    let mut found: Vec<(&str, Vec<String>)> = Vec::new();
    for (key, value) in sweep.runs.iter().flat_map(|run| &run.varied) {
        let value = value.to_string();
        match found.iter_mut().find(|(known, _)| known == key) {
            Some((_, values)) if values.contains(&value) => {}
            Some((_, values)) => values.push(value),
            None => found.push((key, vec![value])),
        }
    }
    found
}

fn some_of(values: &[String]) -> String {
    let shown: Vec<&str> = values.iter().take(MOST_VALUES).map(String::as_str).collect();
    let others = values.len() - shown.len();
    if others > 0 { format!("{}, and {others} others", shown.join(", ")) } else { shown.join(", ") }
}
