//! A plot as files of its own: an SVG with its legend, which needs no page around it, and its numbers as CSV.

use std::fmt::Write as _;

use crate::ReportError;
use crate::chart::{self, Chart, Mark, Point, SIZE, TEXT};
use crate::table::push_line;

/// Pixels between what stands beside each other in the legend, and from line to line.
const GAP: i32 = 6;
const LINE: i32 = 18;

/// The plot as an SVG document, with the names of those series that are in it.
pub fn svg(chart: &Chart, names: &[(usize, String)]) -> Result<String, ReportError> {
    let shown: Vec<&(usize, String)> = names.iter().filter(|(series, _)| has(chart, *series)).collect();
    let mut legend = String::new();
    let (mut x, mut y) = (GAP, SIZE.1 + GAP);
    for (series, name) in shown {
        let name = chart::shorten(name, 48);
        let wide = chart::KEY.0 + GAP + chart::width(&name);
        if x > GAP && x + wide > SIZE.0 {
            (x, y) = (GAP, y + LINE);
        }
        legend.push_str(&chart::key_of_a_file(*series, (x, y))?);
        let (at, base) = (x + chart::KEY.0 + GAP, y + 11);
        // Writing to a String cannot fail.
        let _ = write!(
            legend,
            r#"<text x="{at}" y="{base}" font-size="{TEXT}" fill="{}">{}</text>"#,
            chart::print("ink"),
            chart::escape(&name)
        );
        x += wide + 2 * GAP;
    }
    let height = if legend.is_empty() { SIZE.1 } else { y + LINE + GAP };
    let (width, title) = (SIZE.0, chart::escape(&chart.description));
    Ok(format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-family="sans-serif"><title>{title}</title><rect width="{width}" height="{height}" fill="#ffffff"/>{}{legend}</svg>
"##,
        chart.part_of_a_file()?
    ))
}

fn has(chart: &Chart, wanted: usize) -> bool {
    chart.marks.iter().any(|mark| match mark {
        Mark::Line { series, .. } => *series == wanted,
        Mark::Point(point) => point.series == wanted,
        Mark::Steps(_) | Mark::Level { .. } => false,
    })
}

/// The numbers of a plot: a line each point, in the order in which they are drawn.
pub fn csv(chart: &Chart, names: &[(usize, String)]) -> String {
    let (x, y) = (chart.x.label.as_str(), chart.y.label.as_str());
    let heads = ["mark", "drawn as", "name", x, y];
    let ranges = ["low", "high"].map(|end| [format!("{x}, {end}"), format!("{y}, {end}")]);
    let [low, high] = ranges;
    let mut out = String::new();
    let head = heads.iter().map(|head| (*head).to_owned());
    push_line(
        &mut out,
        &head.chain([low[0].clone(), high[0].clone(), low[1].clone(), high[1].clone()]).collect::<Vec<_>>(),
    );
    let named = |series: usize| names.iter().find(|(s, _)| *s == series).map_or("", |(_, name)| name);
    for (n, mark) in chart.marks.iter().enumerate() {
        let mut line = |drawn: &str, name: &str, x: Option<f64>, y: f64, ranges: [Option<(f64, f64)>; 2]| {
            let number = |value: Option<f64>| value.map(|value| value.to_string()).unwrap_or_default();
            let ends = ranges.iter().flat_map(|range| [range.map(|r| r.0), range.map(|r| r.1)]);
            let begin = [n.to_string(), drawn.to_owned(), name.to_owned(), number(x), number(Some(y))];
            push_line(&mut out, &begin.into_iter().chain(ends.map(number)).collect::<Vec<_>>());
        };
        match mark {
            Mark::Line { points, series, faint } => {
                let drawn = if *faint { "thin line" } else { "line" };
                points.iter().for_each(|(x, y)| line(drawn, named(*series), Some(*x), *y, [None; 2]));
            }
            Mark::Steps(points) => {
                points.iter().for_each(|(x, y)| line("steps", "", Some(*x), *y, [None; 2]));
            }
            Mark::Point(Point { x, y, x_range, y_range, series, label, .. }) => {
                let name = label.as_deref().unwrap_or(named(*series));
                line("point", name, Some(*x), *y, [*x_range, *y_range]);
            }
            Mark::Level { y, label } => line("level", label, None, *y, [None; 2]),
        }
    }
    out
}
