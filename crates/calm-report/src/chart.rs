//! One plot: axes and marks in, an inline SVG out, drawn with plotters.
//!
//! Two things make plotters fit a page that is themed by CSS and read on a phone. Colours are sentinels
//! (`#01000N`, `#02000N`) that become `var(--…)` afterwards, so that one drawing serves light and dark. And
//! plotters' SVG backend counts whole pixels, so everything is drawn [`FINE`] times as large in a viewBox of
//! that size: lines and markers keep their place to a quarter of a pixel.

use std::fmt::Write as _;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::ReportError;
use crate::axis::Axis;

/// Drawn pixels per pixel of the layout.
const FINE: i32 = 4;
/// Width and height of a plot in pixels; it scales with the page.
pub(crate) const SIZE: (i32, i32) = (360, 270);
/// Width and height of a marker that stands alone.
pub(crate) const KEY: (i32, i32) = (14, 14);
pub(crate) const TEXT: f64 = 11.5;
/// plotters takes the height of a line and writes the size of the font, a fixed factor apart.
const LINE_HEIGHT: f64 = 1.24;
/// Width of an average character in parts of the font size: labels are placed without measuring them.
const CHARACTER: f64 = 0.56;

/// Colours of the palette, `--c0` to `--c7` of the style sheet.
pub const COLOURS: usize = 8;
/// Shapes of markers. Coprime to the number of colours: 56 series before a pair repeats.
const SHAPES: usize = 7;

const INK: RGBColor = RGBColor(2, 0, 0);
const GRID: RGBColor = RGBColor(2, 0, 1);
const PAPER: RGBColor = RGBColor(2, 0, 2);

/// A plot.
pub struct Chart {
    /// What it shows, for those who cannot see it.
    pub description: String,
    /// Along the bottom.
    pub x: Axis,
    /// Along the left.
    pub y: Axis,
    /// Drawn in this order.
    pub marks: Vec<Mark>,
}

/// Something drawn in a plot, in the numbers of its axes. `series` chooses colour and shape.
pub enum Mark {
    /// Points joined by straight lines; a faint one stays in the background.
    Line { points: Vec<(f64, f64)>, series: usize, faint: bool },
    /// A stepped line without a series: the best so far.
    Steps(Vec<(f64, f64)>),
    /// A point with its ranges.
    Point(Point),
    /// A dashed line across the plot at a height.
    Level { y: f64, label: String },
}

/// A marker, with bars where ranges are given.
#[derive(Default)]
pub struct Point {
    /// Where.
    pub x: f64,
    /// Where.
    pub y: f64,
    /// From, to.
    pub x_range: Option<(f64, f64)>,
    /// From, to.
    pub y_range: Option<(f64, f64)>,
    /// Colour and shape.
    pub series: usize,
    /// Written beside it where there is room.
    pub label: Option<String>,
    /// Smaller, for plots of many points.
    pub small: bool,
    /// Outline only.
    pub hollow: bool,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Pixel = (i32, i32);

impl Chart {
    /// The plot as an `<svg>` element.
    pub fn svg(&self) -> Result<String, ReportError> {
        let mut text = String::new();
        self.draw(&mut text).map_err(|e| ReportError::Plot(e.to_string()))?;
        let attributes = format!(r#"class="plot" role="img" aria-label="{}""#, escape(&self.description));
        Ok(element(&text, SIZE, &attributes, &page))
    }

    /// The plot for a file: an `<svg>` element at the upper left, in colours that need no style sheet.
    pub(crate) fn part_of_a_file(&self) -> Result<String, ReportError> {
        let mut text = String::new();
        self.draw(&mut text).map_err(|e| ReportError::Plot(e.to_string()))?;
        let (width, height) = SIZE;
        Ok(element(&text, SIZE, &format!(r#"width="{width}" height="{height}""#), &print))
    }

    /// The x axis without the labels that would touch the one before them.
    fn thinned(&self, pixels: i32) -> Axis {
        let mut axis = self.x.clone();
        let scale = f64::from(pixels) / (axis.high - axis.low);
        let mut free = f64::NEG_INFINITY;
        axis.ticks.retain(|(at, label)| {
            let (centre, half) = (at * scale, f64::from(width(label)) / 2.0);
            let fits = centre - half >= free;
            if fits {
                free = centre + half + 6.0;
            }
            fits
        });
        axis
    }

    fn draw(&self, text: &mut String) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
        let root = SVGBackend::with_string(text, fine(SIZE)).into_drawing_area();
        let left = self.y.ticks.iter().map(|t| width(&t.1)).max().unwrap_or(0) + 14;
        let mut chart = ChartBuilder::on(&root)
            .margin_top(26 * FINE)
            .margin_right(14 * FINE)
            .margin_left(FINE)
            .x_label_area_size(38 * FINE)
            .y_label_area_size(left * FINE)
            .build_cartesian_2d(self.thinned(SIZE.0 - 15 - left), self.y.clone())?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID.stroke_width(FINE as u32 * 3 / 4))
            .axis_style(INK.mix(0.5).stroke_width(FINE as u32 * 3 / 4))
            .set_all_tick_mark_size(4 * FINE)
            .label_style(font(TEXT))
            .draw()?;
        let at = |(x, y): (f64, f64)| -> Option<Pixel> {
            Some(chart.backend_coord(&(self.x.place(x)?, self.y.place(y)?)))
        };
        let (x_range, y_range) = chart.plotting_area().get_pixel_range();
        root.draw(&Text::new(
            self.y.label.clone(),
            (2 * FINE, 4 * FINE),
            font(TEXT).pos(Pos::new(HPos::Left, VPos::Top)),
        ))?;
        root.draw(&Text::new(
            self.x.label.clone(),
            (x_range.end, (SIZE.1 - 3) * FINE),
            font(TEXT).pos(Pos::new(HPos::Right, VPos::Bottom)),
        ))?;
        let mut taken = Taken { boxes: Vec::new(), x: x_range.clone(), y: y_range };
        for mark in &self.marks {
            match mark {
                Mark::Line { points, series, faint } => {
                    let pixels: Vec<Pixel> = points.iter().filter_map(|p| at(*p)).collect();
                    let style = if *faint {
                        colour(*series).mix(0.45).stroke_width(FINE as u32)
                    } else {
                        colour(*series).stroke_width(FINE as u32 * 7 / 4)
                    };
                    root.draw(&PathElement::new(pixels, style))?;
                }
                Mark::Steps(points) => {
                    let corners = points.windows(2).flat_map(|w| [w[0], (w[1].0, w[0].1)]);
                    let pixels: Vec<Pixel> = corners.chain(points.last().copied()).filter_map(at).collect();
                    root.draw(&PathElement::new(pixels, INK.mix(0.35).stroke_width(FINE as u32)))?;
                }
                Mark::Level { y, label } => {
                    let Some(y) = self.y.place(*y).filter(|y| (self.y.low..=self.y.high).contains(y)) else {
                        continue;
                    };
                    let y = chart.backend_coord(&(self.x.low, y)).1;
                    let (from, to) = (x_range.start, x_range.end);
                    let dash = 4 * FINE;
                    for start in (from..to).step_by(2 * dash as usize) {
                        let line = vec![(start, y), ((start + dash).min(to), y)];
                        root.draw(&PathElement::new(line, INK.mix(0.7).stroke_width(FINE as u32 * 3 / 4)))?;
                    }
                    taken.label(&root, label, (to, y), Side::Level)?;
                }
                Mark::Point(point) => {
                    if let Some(centre) = at((point.x, point.y)) {
                        let ends = [
                            point.y_range.map(|(a, b)| ((point.x, a), (point.x, b))),
                            point.x_range.map(|(a, b)| ((a, point.y), (b, point.y))),
                        ];
                        for (a, b) in ends.into_iter().flatten() {
                            if let (Some(a), Some(b)) = (at(a), at(b)) {
                                bar(&root, a, b, point)?;
                                taken.bar(a, b);
                            }
                        }
                        marker(&root, centre, point)?;
                        taken.bar(centre, centre);
                    }
                }
            }
        }
        // Labels last, when all markers are known.
        for mark in &self.marks {
            if let Mark::Point(Point { x, y, label: Some(label), .. }) = mark
                && let Some(centre) = at((*x, *y))
            {
                taken.label(&root, label, centre, Side::Marker)?;
            }
        }
        root.present()
    }
}

/// The marker of a series, to stand in a legend or a table.
pub fn key(series: usize, hollow: bool) -> Result<String, ReportError> {
    marked(series, hollow, r#"class="key" aria-hidden="true""#, &page)
}

/// The same for a file, at a place of it.
pub(crate) fn key_of_a_file(series: usize, (x, y): (i32, i32)) -> Result<String, ReportError> {
    let (width, height) = KEY;
    let attributes = format!(r#"x="{x}" y="{y}" width="{width}" height="{height}""#);
    marked(series, false, &attributes, &print)
}

fn marked(series: usize, hollow: bool, attributes: &str, paint: &Paint) -> Result<String, ReportError> {
    let mut text = String::new();
    let draw = |text: &mut String| {
        let root = SVGBackend::with_string(text, fine(KEY)).into_drawing_area();
        marker(&root, (7 * FINE, 7 * FINE), &Point { series, hollow, ..Point::default() })?;
        root.present()
    };
    draw(&mut text).map_err(|e: DrawingAreaErrorKind<std::io::Error>| ReportError::Plot(e.to_string()))?;
    Ok(element(&text, KEY, attributes, paint))
}

fn fine(size: (i32, i32)) -> (u32, u32) {
    ((size.0 * FINE) as u32, (size.1 * FINE) as u32)
}

fn font(size: f64) -> TextStyle<'static> {
    ("sans-serif", size * LINE_HEIGHT * f64::from(FINE)).into_font().color(&INK)
}

fn colour(series: usize) -> RGBColor {
    RGBColor(1, 0, (series % COLOURS) as u8)
}

/// Estimated width of a text in pixels.
pub(crate) fn width(text: &str) -> i32 {
    (text.chars().count() as f64 * TEXT * CHARACTER).ceil() as i32
}

/// A bar with caps between two pixels on a vertical or horizontal line.
fn bar(
    root: &Area<'_>,
    a: Pixel,
    b: Pixel,
    point: &Point,
) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
    let style = colour(point.series).stroke_width(FINE as u32 * if point.small { 3 } else { 5 } / 4);
    root.draw(&PathElement::new(vec![a, b], style))?;
    let cap = if point.small { 2 * FINE } else { 3 * FINE };
    let (dx, dy) = if a.0 == b.0 { (cap, 0) } else { (0, cap) };
    for (x, y) in [a, b] {
        root.draw(&PathElement::new(vec![(x - dx, y - dy), (x + dx, y + dy)], style))?;
    }
    Ok(())
}

fn marker(root: &Area<'_>, centre: Pixel, point: &Point) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
    let colour = colour(point.series);
    let radius = f64::from(FINE) * if point.small { 2.7 } else { 4.6 };
    let outline = shape(point.series % SHAPES)
        .into_iter()
        .map(|(x, y)| (centre.0 + (x * radius).round() as i32, centre.1 + (y * radius).round() as i32));
    let mut outline: Vec<Pixel> = outline.collect();
    let fill = if point.hollow { PAPER } else { colour };
    root.draw(&Polygon::new(outline.clone(), fill.filled()))?;
    // Closed a little beyond its start, so that the first corner is mitred like the others.
    outline.extend([outline[0], outline[1]]);
    // A rim in the colour of the paper parts overlapping markers.
    let rim = if point.hollow { colour } else { PAPER };
    let rim_width = FINE as u32 * if point.hollow { 6 } else { 3 } / 4;
    root.draw(&PathElement::new(outline, rim.stroke_width(rim_width)))?;
    Ok(())
}

/// Corners of a shape of about the area of the unit circle.
fn shape(index: usize) -> Vec<(f64, f64)> {
    let round = |corners: usize, radius: f64, turn: f64| -> Vec<(f64, f64)> {
        (0..corners)
            .map(|i| (i as f64 / corners as f64 + turn) * std::f64::consts::TAU)
            .map(|angle| (radius * angle.sin(), -radius * angle.cos()))
            .collect()
    };
    match index {
        0 => round(24, 1.0, 0.0),
        1 => round(4, 1.25, 0.125),
        2 => round(3, 1.4, 0.0),
        3 => round(4, 1.3, 0.0),
        4 => round(3, 1.4, 0.5),
        // A plus of arm 1.3 and half width 0.45.
        5 => [(1.3, 0.45), (0.45, 0.45), (0.45, 1.3)]
            .into_iter()
            .chain([(-0.45, 1.3), (-0.45, 0.45), (-1.3, 0.45)])
            .chain([(-1.3, -0.45), (-0.45, -0.45), (-0.45, -1.3)])
            .chain([(0.45, -1.3), (0.45, -0.45), (1.3, -0.45)])
            .collect(),
        _ => (0..10)
            .map(|i| (i, f64::from(i) / 10.0 * std::f64::consts::TAU))
            .map(|(i, angle)| (if i % 2 == 0 { 1.55 } else { 0.7 }, angle))
            .map(|(radius, angle)| (radius * angle.sin(), -radius * angle.cos()))
            .collect(),
    }
}

/// Where labels may not go.
struct Taken {
    boxes: Vec<(Pixel, Pixel)>,
    x: std::ops::Range<i32>,
    y: std::ops::Range<i32>,
}

/// What a label stands beside.
enum Side {
    Marker,
    Level,
}

impl Taken {
    /// A bar between two pixels, or the marker on one.
    fn bar(&mut self, a: Pixel, b: Pixel) {
        let r = 5 * FINE;
        self.boxes.push(((a.0.min(b.0) - r, a.1.min(b.1) - r), (a.0.max(b.0) + r, a.1.max(b.1) + r)));
    }

    /// Writes a label in the first free place beside `at`; leaves it out where there is none.
    fn label(
        &mut self,
        root: &Area<'_>,
        label: &str,
        at: Pixel,
        side: Side,
    ) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
        let label = shorten(label, 18);
        let (w, h) = (width(&label) * FINE, TEXT as i32 * FINE);
        let (gap, up) = (8 * FINE, h / 2 + 7 * FINE);
        // Centre of the text, relative to `at`.
        let places: &[Pixel] = match side {
            Side::Marker => &[
                (gap + w / 2, 0),
                (-gap - w / 2, 0),
                (0, -up),
                (0, up),
                (gap + w / 2, -up),
                (gap + w / 2, up),
                (-gap - w / 2, -up),
                (-gap - w / 2, up),
            ],
            Side::Level => &[(-w / 2, -h / 2 - 2 * FINE), (-w / 2, h / 2 + 2 * FINE)],
        };
        let free = places.iter().map(|(dx, dy)| (at.0 + dx, at.1 + dy)).find(|(x, y)| {
            let (low, high) = ((x - w / 2, y - h / 2), (x + w / 2, y + h / 2));
            let inside = low.0 >= self.x.start - FINE
                && high.0 <= self.x.end + 10 * FINE
                && low.1 >= self.y.start - 4 * FINE
                && high.1 <= self.y.end;
            inside
                && self
                    .boxes
                    .iter()
                    .all(|(a, b)| high.0 <= a.0 || b.0 <= low.0 || high.1 <= a.1 || b.1 <= low.1)
        });
        if let Some((x, y)) = free {
            self.boxes.push(((x - w / 2, y - h / 2), (x + w / 2, y + h / 2)));
            let style = font(TEXT - 0.5).pos(Pos::new(HPos::Center, VPos::Center));
            root.draw(&Text::new(label, (x, y), style))?;
        }
        Ok(())
    }
}

/// At most `most` characters.
pub fn shorten(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.into();
    }
    text.chars().take(most - 1).chain(['…']).collect()
}

/// What stands for a colour of the style sheet.
type Paint = dyn Fn(&str) -> String;

/// In a page: the colour of the scheme that it is read in.
fn page(name: &str) -> String {
    format!("var(--{name})")
}

/// In a file, which may be printed: that of the light scheme, on white.
pub(crate) fn print(name: &str) -> String {
    if name == "paper" {
        return "#ffffff".to_owned();
    }
    let light = include_str!("style.css").split('}').next().unwrap_or_default();
    let value = light.split_once(&format!("--{name}: ")).and_then(|(_, rest)| rest.split_once(';'));
    value.map_or("#000000", |(value, _)| value).to_owned()
}

/// plotters' document as an element of a page: its head replaced, fonts left to the page, colours to CSS.
fn element(document: &str, size: (i32, i32), attributes: &str, paint: &Paint) -> String {
    let body = document.split_once("<svg").map_or("", |(_, rest)| rest);
    let body = body.split_once('>').map_or("", |(_, rest)| rest);
    let mut svg = String::with_capacity(body.len());
    // Writing to a String cannot fail.
    let _ = write!(svg, r#"<svg viewBox="0 0 {} {}" {attributes}>"#, size.0 * FINE, size.1 * FINE);
    let mut body = body.replace(r#" font-family="sans-serif""#, "").replace(r#" opacity="1""#, "");
    let series = (0..COLOURS).map(|i| (colour(i), format!("c{i}")));
    let others = [(INK, "soft"), (GRID, "grid"), (PAPER, "paper")].map(|(c, name)| (c, name.into()));
    for (RGBColor(r, g, b), name) in series.chain(others) {
        body = body.replace(&format!("\"#{r:02X}{g:02X}{b:02X}\""), &format!("\"{}\"", paint(&name)));
    }
    svg.push_str(&body);
    svg
}

pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
