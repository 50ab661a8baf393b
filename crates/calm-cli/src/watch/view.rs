//! The screen of `calm watch`, and its keys.
//!
//! ```text
//! runs         one line each: where it is, loss, tokens a second, time left, state
//! curves       one value of all runs over the steps of one stage
//! validation   the last one of the chosen run
//! sample       the last one of the chosen run
//! keys
//! ```
//! Small screens lose the sample first, then the validation.

use ratatui::Frame;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Block, Cell, Chart, Dataset, GraphType, Paragraph, Row, Table, Wrap};

use calm_run::Stage;

use super::followed::{Followed, Validated};
use crate::ui::{format, visible};

/// Colours that tell the runs apart on a light and on a dark ground.
const COLORS: [Color; 6] =
    [Color::Blue, Color::Red, Color::Green, Color::Magenta, Color::Cyan, Color::Yellow];
/// Values that are shown before all others.
const FIRST: [&str; 4] = ["train/loss", "validation/loss", "validation/brierlm", "validation/brier_1"];
/// Most lines of runs; more are scrolled.
const ROWS: usize = 8;

/// What a key leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The next picture.
    Draw,
    /// The end.
    Quit,
    /// The end, as by Ctrl-C.
    Interrupt,
}

/// What is shown.
#[derive(Debug)]
pub struct View {
    /// The runs.
    pub runs: Vec<Followed>,
    /// Whether runs are told apart by colours.
    colors: bool,
    chosen: usize,
    /// The value that is shown.
    value: String,
    /// The stage that is shown; none: the one that wrote last.
    stage: Option<Stage>,
    log: bool,
}

impl View {
    /// Of these runs.
    pub fn new(runs: Vec<Followed>, colors: bool) -> Self {
        Self { runs, colors, chosen: 0, value: FIRST[0].to_owned(), stage: None, log: false }
    }

    /// Takes a key.
    pub fn key(&mut self, key: KeyEvent) -> Next {
        let runs = self.runs.len().max(1);
        match key.code {
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Next::Interrupt,
            KeyCode::Char('q') | KeyCode::Esc => return Next::Quit,
            KeyCode::Right => self.turn(1),
            KeyCode::Left => self.turn(-1),
            KeyCode::Down => self.chosen = (self.chosen + 1) % runs,
            KeyCode::Up => self.chosen = (self.chosen + runs - 1) % runs,
            KeyCode::Tab => {
                let now = self.stage();
                self.stage = Stage::ALL.into_iter().find(|stage| *stage != now);
            }
            KeyCode::Char('l') => self.log = !self.log,
            _ => {}
        }
        Next::Draw
    }

    /// The stage that is shown.
    fn stage(&self) -> Stage {
        let last = || self.runs.iter().filter_map(Followed::stage).max_by_key(|stage| *stage == Stage::Lm);
        self.stage.or_else(last).unwrap_or(Stage::Lm)
    }

    /// Values that there are: the most asked for first, the others by name.
    fn values(&self) -> Vec<String> {
        let stage = self.stage();
        let mut names: Vec<String> =
            self.runs.iter().flat_map(|run| run.names(stage)).map(str::to_owned).collect();
        names.sort_by_key(|name| (FIRST.iter().position(|f| f == name).unwrap_or(FIRST.len()), name.clone()));
        names.dedup();
        names
    }

    fn turn(&mut self, by: isize) {
        let values = self.values();
        let Some(last) = values.len().checked_sub(1) else { return };
        let now = values.iter().position(|v| *v == self.value).unwrap_or(0);
        self.value = values[(now + values.len()).saturating_add_signed(by).rem_euclid(last + 1)].clone();
    }

    fn style(&self, run: usize) -> Style {
        if self.colors { Style::new().fg(COLORS[run % COLORS.len()]) } else { Style::new() }
    }

    /// Draws everything.
    pub fn draw(&self, frame: &mut Frame<'_>) {
        let rows = self.runs.len().min(ROWS) as u16 + 1;
        let height = frame.area().height;
        let sample = if height >= rows + 20 { 7 } else { 5 };
        let areas = Layout::vertical([
            Constraint::Length(rows),
            Constraint::Fill(1),
            Constraint::Length(if height >= rows + 10 { 2 } else { 0 }),
            Constraint::Length(if height >= rows + 16 { sample } else { 0 }),
            Constraint::Length(1),
        ])
        .split(frame.area());
        self.draw_runs(frame, areas[0]);
        self.draw_curves(frame, areas[1]);
        if let Some(run) = self.runs.get(self.chosen) {
            draw_validation(run, frame, areas[2]);
            draw_sample(run, frame, areas[3]);
        }
        let keys = "←→ value   ↑↓ run   tab stage   l logarithm   q quit";
        frame.render_widget(Paragraph::new(keys).style(Style::new().add_modifier(Modifier::DIM)), areas[4]);
    }

    fn draw_runs(&self, frame: &mut Frame<'_>, area: Rect) {
        let first = (self.chosen + 1).saturating_sub(ROWS);
        let rows = self.runs.iter().enumerate().skip(first).take(ROWS).map(|(i, run)| {
            let mark = if i == self.chosen { "▶ " } else { "  " };
            let cells = row(run);
            let name = Line::from(vec![
                Span::raw(mark),
                Span::styled("● ", self.style(i)),
                Span::raw(cells[0].clone()),
            ]);
            let number = |text: &String| Cell::from(Line::from(text.clone()).alignment(Alignment::Right));
            Row::new(
                std::iter::once(Cell::from(name))
                    .chain(cells[1..5].iter().map(number))
                    .chain([Cell::from(cells[5].clone())]),
            )
        });
        let head = |(i, text): (usize, &&'static str)| {
            let side = if matches!(i, 0 | 5) { Alignment::Left } else { Alignment::Right };
            Cell::from(Line::from(*text).alignment(side))
        };
        let header =
            Row::new(HEADERS.iter().enumerate().map(head)).style(Style::new().add_modifier(Modifier::BOLD));
        let widths = [
            Constraint::Fill(1),
            Constraint::Length(21),
            Constraint::Length(7),
            Constraint::Length(8),
            Constraint::Length(11),
            Constraint::Length(8),
        ];
        frame.render_widget(Table::new(rows, widths).header(header).column_spacing(1), area);
    }

    fn draw_curves(&self, frame: &mut Frame<'_>, area: Rect) {
        let stage = self.stage();
        let scale = |v: f64| if self.log { (v > 0.0).then(|| v.log10()) } else { Some(v) };
        // Two points a cell are what braille can show.
        let places = 2 * usize::from(area.width).max(1);
        let curves: Vec<(usize, Vec<(f64, f64)>)> = (0..self.runs.len())
            .filter(|i| self.colors || *i == self.chosen)
            .map(|i| {
                let points = self.runs[i].curve(stage, &self.value);
                let points = points.into_iter().filter_map(|(x, y)| Some((x, scale(y)?))).collect();
                (i, thinned(points, places))
            })
            .collect();
        let all = || curves.iter().flat_map(|(_, points)| points);
        let title =
            format!(" {} of stage {}{} ", self.value, stage, if self.log { ", logarithmic" } else { "" });
        let block = Block::bordered().title(title);
        if all().next().is_none() {
            let nothing = Paragraph::new("nothing to show yet").block(block).alignment(Alignment::Center);
            return frame.render_widget(nothing, area);
        }
        let right = all().map(|(x, _)| *x).fold(1.0, f64::max);
        let (low, high) = bounds(all().map(|(_, y)| *y));
        let datasets = curves.iter().map(|(i, points)| {
            let one = if points.len() == 1 { GraphType::Scatter } else { GraphType::Line };
            Dataset::default().marker(Marker::Braille).graph_type(one).style(self.style(*i)).data(points)
        });
        let shown = |y: f64| value(if self.log { 10f64.powf(y) } else { y });
        let chart = Chart::new(datasets.collect())
            .block(block)
            .x_axis(Axis::default().bounds([0.0, right]).labels(["0".to_owned(), format::count(right)]))
            .y_axis(Axis::default().bounds([low, high]).labels([low, (low + high) / 2.0, high].map(shown)));
        frame.render_widget(chart, area);
    }
}

/// Headers of the table of runs.
pub const HEADERS: [&str; 6] = ["run", "step", "loss", "tok/s", "stage left", "state"];

/// A run in that table.
pub fn row(run: &Followed) -> [String; 6] {
    let at = run.stage().map_or_else(String::new, |stage| match run.steps(stage) {
        (done, Some(planned)) => format!("{stage} {done}/{planned}"),
        (done, None) => format!("{stage} {done}"),
    });
    let last = |name: &str, show: &dyn Fn(f64) -> String| run.last(name).map_or_else(String::new, show);
    [
        visible(&run.name).replace(['\n', '\t'], " "),
        at,
        last("train/loss", &value),
        last("train/tokens_per_second", &format::count),
        run.left().map_or_else(String::new, format::duration),
        run.state().name().to_owned(),
    ]
}

fn draw_validation(run: &Followed, frame: &mut Frame<'_>, area: Rect) {
    let text = match run.validation() {
        None => "no validation yet".to_owned(),
        Some(Validated { stage, step, values }) => {
            let known = values.iter().filter(|(name, _)| !name.ends_with("_se"));
            let known = known.map(|(name, v)| format!("{name} {}", v.map_or("undefined".into(), value)));
            format!("validation at step {step} of {stage}: {}", known.collect::<Vec<_>>().join(", "))
        }
    };
    frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }), area);
}

fn draw_sample(run: &Followed, frame: &mut Frame<'_>, area: Rect) {
    let (title, text) = match run.sample() {
        Some((stage, step, text)) => {
            (format!(" sample of {} at step {step} of {stage} ", run.name), visible(text))
        }
        None => {
            (" sample ".to_owned(), "none yet: one is drawn at each validation of the language model".into())
        }
    };
    let block = Block::bordered().title(visible(&title).into_owned());
    frame
        .render_widget(Paragraph::new(text.replace('\t', " ")).block(block).wrap(Wrap { trim: false }), area);
}

/// A number in about four digits.
fn value(v: f64) -> String {
    match v.abs() {
        0.0 => "0".to_owned(),
        small if small < 1e-3 => format!("{v:.1e}"),
        large if large >= 1e4 => format::count(v),
        middle => format!("{v:.*}", if middle < 10.0 { 3 } else { 1 }),
    }
}

/// Where the axis begins and ends.
fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    let margin = match high - low {
        0.0 => high.abs().max(1.0),
        span => span,
    } * 0.05;
    (low - margin, high + margin)
}

/// At most so many points: means of neighbours, so that noise does not fill the picture.
fn thinned(points: Vec<(f64, f64)>, most: usize) -> Vec<(f64, f64)> {
    let together = points.len().div_ceil(most.max(1)).max(1);
    let mean = |part: &[(f64, f64)]| {
        let n = part.len() as f64;
        (part.iter().map(|p| p.0).sum::<f64>() / n, part.iter().map(|p| p.1).sum::<f64>() / n)
    };
    points.chunks(together).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::followed::tests::followed;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn screen(view: &View, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| view.draw(frame)).unwrap();
        let cells = terminal.backend().buffer().clone();
        let line = |y| (0..width).map(|x| cells[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        (0..height).map(|y| line(y) + "\n").collect()
    }

    fn press(view: &mut View, code: KeyCode) {
        assert_eq!(view.key(code.into()), Next::Draw);
    }

    #[test]
    fn two_runs_stand_side_by_side_on_eighty_columns() {
        let view = View::new(vec![followed("k4", 20, true), followed("baseline", 100, false)], true);
        let shown = screen(&view, 80, 24);
        let has = |words: &[&str]| assert!(words.iter().all(|w| shown.contains(w)), "{words:?} in\n{shown}");
        has(&["run", "step", "loss", "tok/s", "stage left", "state"]);
        has(&["▶ ● k4", "lm 200/1000", "4.100", "1.2 k", "13 min 20 s", "training"]);
        has(&["  ● baseline", "lm 1000/1000", "4.020", "finished"]);
        has(&["train/loss of stage lm", "validation at step 200", "brierlm undefined", "loss 4.500"]);
        has(&["sample of k4 at step 200 of lm", "Once \\u{1b}[31m upon k4", "q quit"]);
        assert!(shown.chars().any(|c| ('\u{2801}'..='\u{28ff}').contains(&c)), "a curve in\n{shown}");
    }

    #[test]
    fn keys_choose_run_value_stage_and_scale() {
        let mut view = View::new(vec![followed("k4", 20, true), followed("other", 30, false)], false);
        press(&mut view, KeyCode::Down);
        assert!(screen(&view, 80, 24).contains("▶ ● other"));
        press(&mut view, KeyCode::Right);
        assert!(screen(&view, 80, 24).contains("validation/loss of stage lm"));
        press(&mut view, KeyCode::Left);
        press(&mut view, KeyCode::Left);
        assert!(screen(&view, 80, 24).contains("train/tokens_per_second of stage lm"));
        press(&mut view, KeyCode::Char('l'));
        assert!(screen(&view, 80, 24).contains("of stage lm, logarithmic"));
        press(&mut view, KeyCode::Tab);
        assert!(screen(&view, 80, 24).contains("of stage autoencoder"));
        assert!(screen(&view, 80, 24).contains("nothing to show yet"));
        assert_eq!(view.key(KeyCode::Char('q').into()), Next::Quit);
        assert_eq!(view.key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), Next::Interrupt);
    }

    #[test]
    fn no_screen_is_too_small_and_no_run_too_empty() {
        let waiting = || Followed::new(std::path::Path::new("runs/later"));
        for runs in [Vec::new(), vec![waiting()], (0..30).map(|_| followed("name", 3, true)).collect()] {
            let mut view = View::new(runs, true);
            for (width, height) in [(1, 1), (5, 3), (20, 8), (80, 12), (300, 100)] {
                screen(&view, width, height);
                press(&mut view, KeyCode::Right);
                press(&mut view, KeyCode::Up);
                press(&mut view, KeyCode::Char('l'));
            }
        }
    }

    #[test]
    fn points_are_thinned_to_means_and_bounds_hold_them() {
        let points: Vec<(f64, f64)> = (0..1000).map(|i| (f64::from(i), f64::from(i % 2))).collect();
        let thin = thinned(points, 100);
        assert_eq!((thin.len(), thin[0]), (100, (4.5, 0.5)));
        assert_eq!(bounds([2.0, 4.0].into_iter()), (1.9, 4.1));
        assert_eq!(bounds([0.0].into_iter()), (-0.05, 0.05));
    }
}
