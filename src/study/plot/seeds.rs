//! How far seeds spread: a row of dots for each setting.

use super::canvas::{Anchor, AxisScale, Canvas, brief};
use super::curves::short;
use super::{Figure, Scene, data};

/// Most settings that are shown: the best.
const ROWS: usize = 20;
const ROW: f64 = 20.0;

/// Draws the plot where a setting has several seeds.
pub fn draw(scene: &Scene<'_>) -> Vec<Figure> {
    let mut rows = scene.by_merit();
    rows.retain(|(_, setting)| setting.best.count > 1);
    rows.reverse();
    let all = rows.len();
    rows.truncate(ROWS);
    if rows.is_empty() {
        return Vec::new();
    }
    let names: Vec<String> = rows.iter().map(|(_, setting)| short(&setting.label, 44)).collect();
    let longest = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    let left = (longest as f64 * 6.3 + 14.0).clamp(30.0, 310.0);
    let (top, right) = (24.0, 900.0 - 20.0);
    let bottom = top + ROW * rows.len() as f64;
    let mut canvas = Canvas::new(900.0, bottom + 40.0);
    let values = |runs: &[usize]| -> Vec<(usize, f64)> {
        runs.iter().filter_map(|&run| Some((run, scene.study.records[run].best_value()?))).collect()
    };
    let numbers = rows.iter().flat_map(|(_, setting)| values(&setting.runs)).map(|(_, value)| value);
    let x = AxisScale::of(numbers, false, (left, right));
    for tick in x.ticks(8.0) {
        canvas.line("grid", (x.at(tick), top - 4.0), (x.at(tick), bottom));
        canvas.text("t", (x.at(tick), bottom + 16.0), Anchor::Middle, &brief(tick));
    }
    canvas.text("l", (f64::midpoint(left, right), bottom + 33.0), Anchor::Middle, scene.metric());
    for (row, ((place, setting), name)) in rows.iter().zip(&names).enumerate() {
        let y = top + ROW * (row as f64 + 0.5);
        let colour = scene.colouring.colour(setting);
        let found = values(&setting.runs);
        canvas.text("f-ink", (left - 10.0, y + 4.0), Anchor::End, name);
        let ends = found
            .iter()
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), (_, v)| (low.min(*v), high.max(*v)));
        canvas.line(&format!("whisker s-{colour}"), (x.at(ends.0), y), (x.at(ends.1), y));
        for (run, value) in found {
            canvas.dot(
                &format!("point faint f-{colour}"),
                (x.at(value), y),
                4.0,
                &format!("{} data-r=\"{run}\"", data(*place)),
            );
        }
        if let Some(median) = setting.best.median {
            canvas.line(&format!("tick s-{colour}"), (x.at(median), y - 7.0), (x.at(median), y + 7.0));
        }
    }
    let some =
        if rows.len() < all { format!(" The best {} of {all} settings.", rows.len()) } else { String::new() };
    vec![Figure {
        kind: "seeds",
        title: String::new(),
        about: format!(
            "Each dot is a run at its best epoch, each bar the median of its setting, the best on top.{some}"
        ),
        svg: canvas.finish(&format!("{} of each seed", scene.metric())),
        is_wide: true,
    }]
}
