//! SVG drawing: shapes with classes, which a style sheet colours; axes with round ticks.

use std::fmt::Write as _;

/// An SVG picture that grows.
#[derive(Debug)]
pub struct Canvas {
    width: f64,
    height: f64,
    body: String,
}

/// Where a text is anchored.
#[derive(Debug, Clone, Copy)]
pub enum Anchor {
    /// It starts there.
    Start,
    /// It is centred there.
    Middle,
    /// It ends there.
    End,
}

impl Canvas {
    /// Returns an empty picture of this size in pixels.
    pub fn new(width: f64, height: f64) -> Self {
        Self { width, height, body: String::new() }
    }

    /// Adds an element; `rest` are its attributes.
    fn add(&mut self, name: &str, class: &str, rest: std::fmt::Arguments<'_>) {
        // Writing to a text cannot fail.
        let _ = writeln!(self.body, r#"<{name} class="{class}" {rest}/>"#);
    }

    /// Adds a line.
    pub fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let ((x1, y1), (x2, y2)) = (from, to);
        self.add("line", class, format_args!(r#"x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}""#));
    }

    /// Adds a line through points; `data` are further attributes.
    pub fn path(&mut self, class: &str, points: &[(f64, f64)], data: &str) {
        let mut d = String::new();
        for (place, (x, y)) in points.iter().enumerate() {
            let _ = write!(d, "{}{x:.1} {y:.1}", if place == 0 { "M" } else { "L" });
        }
        if points.len() > 1 {
            self.add("path", class, format_args!(r#"d="{d}" {data}"#));
        }
    }

    /// Adds a dot.
    pub fn dot(&mut self, class: &str, (x, y): (f64, f64), radius: f64, data: &str) {
        self.add("circle", class, format_args!(r#"cx="{x:.1}" cy="{y:.1}" r="{radius}" {data}"#));
    }

    /// Adds a rectangle.
    pub fn rect(&mut self, class: &str, (x, y): (f64, f64), (width, height): (f64, f64), data: &str) {
        let place = format_args!(r#"x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" {data}"#);
        self.add("rect", class, place);
    }

    /// Adds a text, whose baseline is at `y`.
    pub fn text(&mut self, class: &str, (x, y): (f64, f64), anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => r#" text-anchor="middle""#,
            Anchor::End => r#" text-anchor="end""#,
        };
        let text = escaped(text);
        let _ = writeln!(self.body, r#"<text class="{class}" x="{x:.1}" y="{y:.1}"{anchor}>{text}</text>"#);
    }

    /// Returns the picture, which `label` describes to those who do not see it.
    pub fn finish(self, label: &str) -> String {
        let Self { width, height, body } = self;
        let label = escaped(label);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"plot\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
             height=\"{height}\" role=\"img\" aria-label=\"{label}\">\n{body}</svg>"
        )
    }
}

/// Returns a text as HTML and XML hold it, in elements and in quoted attributes; what XML forbids becomes U+FFFD.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\t' | '\n' => out.push(' '),
            c if c.is_control() || ['\u{fffe}', '\u{ffff}'].contains(&c) => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// Numbers to pixels.
#[derive(Debug, Clone, Copy)]
pub struct AxisScale {
    low: f64,
    high: f64,
    is_log: bool,
    from: f64,
    to: f64,
}

impl AxisScale {
    /// Returns a scale that takes the numbers from one to another pixel, with some space around them. Numbers over more than two
    /// decades, all positive, get a logarithmic one if `may_be_log`.
    pub fn of(numbers: impl Iterator<Item = f64>, may_be_log: bool, (from, to): (f64, f64)) -> Self {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for number in numbers.filter(|number| number.is_finite()) {
            (low, high) = (low.min(number), high.max(number));
        }
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        let is_log = may_be_log && low > 0.0 && high / low > 30.0;
        if is_log {
            (low, high) = (low.ln(), high.ln());
        }
        let space = if high > low { (high - low) * 0.04 } else { (low.abs() * 0.1).max(1e-6) };
        Self { low: low - space, high: high + space, is_log, from, to }
    }

    /// Returns the scale from 0 on, for what cannot be less.
    pub fn and_zero(mut self) -> Self {
        if !self.is_log {
            self.low = 0.0;
        }
        self
    }

    /// Returns the pixel of a number.
    pub fn at(&self, number: f64) -> f64 {
        let number = if self.is_log { number.ln() } else { number };
        let share = (number - self.low) / (self.high - self.low);
        self.from + share.clamp(-0.05, 1.05) * (self.to - self.from)
    }

    /// Returns about `count` round numbers in its range.
    pub fn ticks(&self, count: f64) -> Vec<f64> {
        if self.is_log {
            let decades = ((self.high - self.low) / std::f64::consts::LN_10 / count).ceil().max(1.0) as i32;
            let first = (self.low / std::f64::consts::LN_10).ceil() as i32;
            let last = (self.high / std::f64::consts::LN_10).floor() as i32;
            return (first..=last)
                .step_by(decades.unsigned_abs() as usize)
                .map(|power| 10_f64.powi(power))
                .collect();
        }
        let rough = (self.high - self.low) / count;
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .into_iter()
            .map(|by| by * power)
            .find(|step| *step >= rough)
            .unwrap_or(rough);
        let (first, last) = ((self.low / step).ceil() as i64, (self.high / step).floor() as i64);
        (first..=last.min(first + 50)).map(|place| place as f64 * step).collect()
    }
}

/// Returns a number for an axis, in few characters.
pub fn brief(number: f64) -> String {
    let size = number.abs();
    // Steps such as 3 × 0.1 are not exact.
    let digits = |number: f64| {
        let text = format!("{number:.4}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    match size {
        0.0 => "0".to_owned(),
        1e9.. => format!("{}B", digits(number / 1e9)),
        1e6.. => format!("{}M", digits(number / 1e6)),
        1e4.. => format!("{}k", digits(number / 1e3)),
        ..0.001 => {
            let text = format!("{number:.2e}");
            let (mantissa, power) = text.split_once('e').unwrap_or((&text, "0"));
            format!("{}e{power}", mantissa.trim_end_matches('0').trim_end_matches('.'))
        }
        _ => digits(number),
    }
}

/// Moves labels apart to at least `gap` pixels, each as little as possible, within `low` and `high`.
pub fn apart(places: &mut [f64], gap: f64, (low, high): (f64, f64)) {
    let mut order: Vec<usize> = (0..places.len()).collect();
    order.sort_by(|&a, &b| places[a].total_cmp(&places[b]));
    let mut last = low - gap;
    for &place in &order {
        places[place] = places[place].max(last + gap);
        last = places[place];
    }
    let mut next = high + gap;
    for &place in order.iter().rev() {
        places[place] = places[place].min(next - gap);
        next = places[place];
    }
}
