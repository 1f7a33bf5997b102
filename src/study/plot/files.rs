//! Plots as files: SVG in light and dark, and PNG.

use std::path::Path;
use std::sync::Arc;

use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{Options, Tree, fontdb};

use super::palette::rules_in;
use super::{Figure, figures};
use crate::fault::{Result, fault};
use crate::files;
use crate::study::Study;

/// Pixels of a PNG for each pixel of the plot.
const FINENESS: f32 = 2.0;
/// The font of PNG, which is part of the program.
const FONT: &str = "DejaVu Sans";

impl Study {
    /// Writes every plot as SVG and PNG into `folder` and returns their number.
    /// Fails where a file cannot be written.
    pub fn write_plots(&self, folder: &Path) -> Result<usize> {
        let figures = figures(self);
        let mut fonts = fontdb::Database::new();
        fonts.load_font_data(dejavu::sans::regular().to_vec());
        fonts.load_font_data(dejavu::sans::bold().to_vec());
        let fonts = Arc::new(fonts);
        let mut numbers = std::collections::HashMap::new();
        for figure in &figures {
            let number: &mut usize = numbers.entry(figure.kind).or_default();
            *number += 1;
            let stem = format!("{}-{number}", figure.kind);
            files::write_bytes(&folder.join(format!("{stem}.svg")), styled(figure, true).as_bytes())?;
            files::write_bytes(&folder.join(format!("{stem}.png")), &png(&styled(figure, false), &fonts)?)?;
        }
        Ok(figures.len())
    }
}

/// Returns the plot with its colours; with `both`, dark where the reader prefers that.
fn styled(figure: &Figure, both: bool) -> String {
    let dark =
        if both { format!("@media(prefers-color-scheme:dark){{{}}}", rules_in(true)) } else { String::new() };
    let style = format!(
        "<style>{}{dark}</style>\n<rect class=\"f-ground\" width=\"100%\" height=\"100%\"/>\n",
        rules_in(false)
    );
    let style = style.replace("var(--font)", "'DejaVu Sans',Helvetica,Arial,sans-serif");
    figure.svg.replacen(">\n", &format!(">\n{style}"), 1)
}

fn png(svg: &str, fonts: &Arc<fontdb::Database>) -> Result<Vec<u8>> {
    let options = Options { font_family: FONT.to_owned(), fontdb: Arc::clone(fonts), ..Options::default() };
    let tree =
        Tree::from_str(svg, &options).map_err(|error| fault(format!("cannot draw a plot: {error}")))?;
    let size = tree.size();
    let [width, height] = [size.width(), size.height()].map(|side| (side * FINENESS).ceil() as u32);
    let mut pixels = Pixmap::new(width, height).ok_or_else(|| fault("a plot is too large to draw"))?;
    resvg::render(&tree, Transform::from_scale(FINENESS, FINENESS), &mut pixels.as_mut());
    Ok(pixels.encode_png()?)
}
