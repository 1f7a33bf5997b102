//! The metric against the number of trainable parameters, with the settings that no other beats in both.

use super::canvas::{Anchor, AxisScale, Canvas};
use super::curves::{axes, short};
use super::{Figure, Scene, data};
use crate::study::settings::Setting;

const SIZE: (f64, f64) = (440.0, 300.0);
const FRAME: (f64, f64, f64, f64) = (46.0, 400.0, 28.0, 262.0);

/// Draws the plot where settings differ in their parameters.
pub fn draw(scene: &Scene<'_>) -> Vec<Figure> {
    let point = |(place, setting): &(usize, &'_ Setting)| {
        Some((*place, setting.parameters? as f64, setting.best.median?)).filter(|(_, x, _)| *x > 0.0)
    };
    let points: Vec<(usize, f64, f64)> = scene.settings.iter().filter_map(point).collect();
    if points.iter().all(|(_, x, _)| Some(*x) == points.first().map(|first| first.1)) {
        return Vec::new();
    }
    let (left, right, top, bottom) = FRAME;
    let mut canvas = Canvas::new(SIZE.0, SIZE.1);
    let x = AxisScale::of(points.iter().map(|point| point.1), true, (left + 6.0, right));
    let y = AxisScale::of(points.iter().map(|point| point.2), false, (bottom, top));
    axes(
        &mut canvas,
        (x, y),
        (left, right, bottom),
        ("trainable parameters without the head", scene.metric()),
    );
    let front = front(&points, scene.is_up());
    // Up to each point of the front, the one before it is the best there is.
    let mut steps: Vec<(f64, f64)> = Vec::new();
    for &(_, px, py) in &front {
        steps.extend(steps.last().map(|last| (x.at(px), last.1)));
        steps.push((x.at(px), y.at(py)));
    }
    steps.extend(steps.last().map(|last| (right, last.1)));
    canvas.path("front", &steps, "");
    let is_front = |place: usize| front.iter().any(|point| point.0 == place);
    for &(place, px, py) in points.iter().filter(|point| !is_front(point.0)).chain(&front) {
        let setting = &scene.study.settings[place];
        let colour = scene.colouring.colour(setting);
        let at = (x.at(px), y.at(py));
        if let (true, Some(deviation)) = (is_front(place), setting.best.deviation) {
            let [low, high] = [py - deviation, py + deviation].map(|end| y.at(end).clamp(top - 8.0, bottom));
            canvas.line(&format!("whisker s-{colour}"), (at.0, low), (at.0, high));
        }
        let (faint, radius) = if is_front(place) { ("", 5.0) } else { ("faint ", 3.5) };
        canvas.dot(&format!("point {faint}f-{colour}"), at, radius, &data(place));
    }
    label_front(&mut canvas, scene, &front, (x, y));
    let better = if scene.is_up() { "higher" } else { "lower" };
    vec![Figure {
        kind: "pareto",
        title: format!("{} against parameters", scene.metric()),
        about: format!(
            "A dot is a setting: median over seeds at the best epoch, {better} is better. Joined: those that none beats with as few \
             parameters, ± one standard deviation."
        ),
        svg: canvas.finish(&format!("{} against trainable parameters", scene.metric())),
        is_wide: false,
    }]
}

/// Returns the points that no other beats with as few parameters, by parameters.
fn front(points: &[(usize, f64, f64)], is_up: bool) -> Vec<(usize, f64, f64)> {
    let merit = |value: f64| if is_up { value } else { -value };
    let mut sorted = points.to_vec();
    sorted.sort_by(|a, b| a.1.total_cmp(&b.1).then(merit(b.2).total_cmp(&merit(a.2))));
    let mut best = f64::NEG_INFINITY;
    sorted.retain(|point| {
        let is_better = merit(point.2) > best;
        best = best.max(merit(point.2));
        is_better
    });
    sorted
}

/// Writes what the points of the front are, each above, left or below its point, where it lies over nothing else.
fn label_front(
    canvas: &mut Canvas,
    scene: &Scene<'_>,
    front: &[(usize, f64, f64)],
    (x, y): (AxisScale, AxisScale),
) {
    let mut taken: Vec<[f64; 4]> = front
        .iter()
        .map(|point| (x.at(point.1), y.at(point.2)))
        .map(|(x, y)| [x - 6.0, y - 6.0, x + 6.0, y + 6.0])
        .collect();
    for &(place, px, py) in front.iter().rev() {
        let setting = &scene.study.settings[place];
        let words = short(&scene.words(setting), 24);
        let (at, width) = ((x.at(px), y.at(py)), words.chars().count() as f64 * 6.6);
        let corners = [
            (at.0 - width / 2.0, at.1 - 9.0),
            (at.0 - width - 9.0, at.1 + 4.0),
            (at.0 - width / 2.0, at.1 + 18.0),
            (at.0 + 9.0, at.1 + 4.0),
        ];
        let inside = |left: f64| left.clamp(FRAME.0, SIZE.0 - 4.0 - width);
        let boxes = corners.map(|(left, low)| [inside(left), low - 10.0, inside(left) + width, low + 2.0]);
        let is_free =
            |a: &[f64; 4]| taken.iter().all(|b| a[0] > b[2] || b[0] > a[2] || a[1] > b[3] || b[1] > a[3]);
        if let Some(found) = boxes.into_iter().find(is_free) {
            let class = format!("d f-{}", scene.colouring.colour(setting));
            canvas.text(&class, (found[0], found[3] - 2.0), Anchor::Start, &words);
            taken.push(found);
        }
    }
}
