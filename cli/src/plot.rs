//! Curves in the terminal.

use console::style;
use textplots::{Chart, ColorPlot, LabelBuilder, LabelFormat, Plot, Shape};

/// A width's curve: pairs of epoch and figure.
pub(crate) struct Curve {
    pub(crate) bits: u32,
    pub(crate) points: Vec<(f64, f64)>,
}

/// Told apart on dark and on light ground.
const COLORS: [(u8, u8, u8); 9] = [
    (214, 73, 73),
    (214, 138, 40),
    (173, 156, 36),
    (66, 160, 71),
    (40, 158, 158),
    (66, 120, 210),
    (130, 96, 205),
    (190, 84, 170),
    (140, 140, 140),
];

const DOTS_PER_COLUMN: u32 = 2;
const DOTS_PER_ROW: u32 = 4;
const MARGIN_COLUMNS: usize = 12;
const DOTS_HIGH: u32 = 48;

/// Draws the curves: with colours all in one chart, without a chart each. Figures that are not
/// finite are gaps. `None` when no curve has two points to connect.
pub(crate) fn chart(title: &str, curves: &[Curve], columns: usize, colors: bool) -> Option<String> {
    let drawable: Vec<&Curve> = curves.iter().filter(|curve| !segments(curve).is_empty()).collect();
    if drawable.is_empty() {
        return None;
    }
    let dots = (columns.clamp(40, 140) - MARGIN_COLUMNS) as u32 * DOTS_PER_COLUMN;
    if colors {
        let legend: Vec<String> = drawable
            .iter()
            .enumerate()
            .map(|(index, curve)| {
                let (r, g, b) = COLORS[index % COLORS.len()];
                style(format!("━ {}", curve.bits)).true_color(r, g, b).to_string()
            })
            .collect();
        let body = draw(&drawable, dots, DOTS_HIGH, colors)?;
        return Some(format!("{title}, by epoch; bits: {}\n{body}", legend.join("  ")));
    }
    let mut text = String::new();
    for curve in drawable {
        let body = draw(&[curve], dots, DOTS_HIGH / 2, colors)?;
        let gap = if text.is_empty() { "" } else { "\n" };
        text.push_str(&format!("{gap}{title} at {}, by epoch\n{body}", crate::text::bits(curve.bits)));
    }
    Some(text)
}

fn draw(curves: &[&Curve], dots: u32, high: u32, colors: bool) -> Option<String> {
    let all = || curves.iter().flat_map(|curve| segments(curve)).flatten();
    let (left, right) = bounds(all().map(|(x, _)| x))?;
    let (low, high_value) = bounds(all().map(|(_, y)| y))?;
    let shapes: Vec<(usize, Vec<(f32, f32)>)> = curves
        .iter()
        .enumerate()
        .flat_map(|(index, curve)| segments(curve).into_iter().map(move |points| (index, points)))
        .collect();
    let shapes: Vec<(usize, Shape<'_>)> =
        shapes.iter().map(|(index, points)| (*index, Shape::Lines(points))).collect();
    let mut chart = Chart::new_with_y_range(dots, high, left, right, low, high_value);
    let mut canvas = chart
        .x_label_format(LabelFormat::Custom(Box::new(|x| format!("{x:.1}"))))
        .y_label_format(LabelFormat::Custom(Box::new(|y| crate::text::loss(f64::from(y)))));
    for (index, shape) in &shapes {
        let (r, g, b) = COLORS[index % COLORS.len()];
        canvas = if colors { canvas.linecolorplot(shape, (r, g, b).into()) } else { canvas.lineplot(shape) };
    }
    canvas.axis();
    canvas.figures();
    let body = canvas.to_string();
    let mut lines: Vec<&str> = body.trim_end().lines().collect();
    // The labels stand at the first and the last row; this row's upper edge is the middle.
    let middle_row = (high / DOTS_PER_ROW / 2) as usize;
    let middle = lines.get(middle_row).map(|line| {
        format!("{} {}", line.trim_end(), crate::text::loss(f64::from(f32::midpoint(low, high_value))))
    });
    if let (Some(line), Some(middle)) = (lines.get_mut(middle_row), &middle) {
        *line = middle;
    }
    Some(lines.join("\n") + "\n")
}

/// Runs of at least two finite points.
fn segments(curve: &Curve) -> Vec<Vec<(f32, f32)>> {
    let points: Vec<(f32, f32)> = curve.points.iter().map(|&(x, y)| (x as f32, y as f32)).collect();
    points
        .split(|(x, y)| !(x.is_finite() && y.is_finite()))
        .filter(|run| run.len() > 1)
        .map(<[(f32, f32)]>::to_vec)
        .collect()
}

/// The range of the values, opened up where it is a point.
fn bounds(values: impl Iterator<Item = f32>) -> Option<(f32, f32)> {
    let (low, high) = values.fold(None, |range: Option<(f32, f32)>, value| {
        Some(range.map_or((value, value), |(low, high)| (low.min(value), high.max(value))))
    })?;
    let least = (low.abs() * 1e-3).max(1e-3);
    if high - low >= least { Some((low, high)) } else { Some((low - least, high + least)) }
}
