//! What `calm invert` found, for programs and for people.

use calm_eval::invert::collisions::Collisions;
use calm_eval::invert::kept::Kept;
use calm_eval::invert::policy::Policy;
use calm_eval::invert::radius::Radius;
use calm_eval::invert::search::Position;
use calm_eval::invert::trial::{Pass, Setting, Trial};
use calm_stats::proportion::Proportion;
use serde::Serialize;

use crate::ui::{Table, format};

/// What was found behind the states of one text.
#[derive(Debug, Serialize)]
pub struct Found {
    /// Which of the prompts, from 0; none: states of a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<usize>,
    /// How it was searched.
    pub setting: Setting,
    /// How long that took.
    pub seconds: f64,
    /// What the states are of.
    pub state: String,
    /// What was found, up to the first position that was not.
    pub text: String,
    /// Whether every position was found.
    pub complete: bool,
    /// Each position that was searched.
    pub positions: Vec<Position>,
    /// What was measured before.
    pub radius: Radius,
}

/// Everything that is printed.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The run's folder.
    pub run: String,
    /// Step of the checkpoint.
    pub step: u64,
    /// V.
    pub vocabulary: usize,
    /// K.
    pub chunk_size: usize,
    /// Tokens of a prompt.
    pub tokens: usize,
    /// Known texts, found again.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trials: Vec<Trial>,
    /// Texts that were named, or only their states.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub found: Vec<Found>,
    /// The closest last states.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub collisions: Vec<Close>,
}

/// Closest last states, with the texts.
#[derive(Debug, Serialize)]
pub struct Close {
    /// The figures.
    #[serde(flatten)]
    pub figures: Collisions,
    /// Of each pair.
    pub texts: Vec<[String; 2]>,
}

/// Everything as tables.
pub fn tables(report: &Report) -> String {
    let mut parts = Vec::new();
    if !report.trials.is_empty() {
        parts.push(trials(report));
        parts.push(radii(&report.trials));
    }
    parts.extend(report.found.iter().map(found));
    if !report.collisions.is_empty() {
        parts.push(collisions(&report.collisions));
        parts.extend(report.collisions.iter().filter_map(closest));
    }
    parts.join("\n")
}

fn trials(report: &Report) -> String {
    let k = report.chunk_size;
    let of = report.trials.first().map_or(0, |trial| trial.texts.trials);
    let title = format!("{of} prompts of {} tokens, vocabulary {}", report.tokens, report.vocabulary);
    let mut table =
        Table::new(&["state", "how", "exact", "95 %", "wrong", "nearest", "tried", "s/prompt"]).title(title);
    for trial in &report.trials {
        let tried = if k == 1 { format::percent(trial.tried, 2) } else { format!("{:.1} V", trial.tried) };
        table.row([
            trial.state.trim_start_matches("behind ").to_owned(),
            how(trial.setting),
            format::percent(trial.exact.value, 2),
            interval(trial.exact),
            trial.wrong.to_string(),
            format::percent(trial.nearest.value, 2),
            tried,
            format!("{:.3}", trial.seconds[0]),
        ]);
    }
    format!(
        "{table}each position after the true tokens before it;\n\
         exact: positions found; wrong: tokens taken for another; nearest: the best guess, found or not;\n\
         tried: alternatives a position, against the vocabulary; s/prompt: median\n"
    )
}

/// What differs from exact states in one pass.
fn how(setting: Setting) -> String {
    let mut parts = vec![match setting.policy {
        Policy::Guided => "guided".to_owned(),
        Policy::Brute => "brute".to_owned(),
    }];
    match setting.kept {
        Kept::F32 => {}
        Kept::Bf16 => parts.push("bf16".to_owned()),
        Kept::Int8 => parts.push("int8".to_owned()),
    }
    if setting.noise > 0.0 {
        parts.push(format!("noise {}", setting.noise));
    }
    if setting.pass == Pass::Prefixes {
        parts.push("prefixes".to_owned());
    }
    parts.join(", ")
}

fn interval(of: Proportion) -> String {
    let (low, high) = of.interval;
    format!("{:.1} to {:.1}", 100.0 * low, 100.0 * high)
}

/// A line a state: the same for all its trials.
fn radii(trials: &[Trial]) -> String {
    let mut table =
        Table::new(&["state", "smallest gap", "median gap", "rounding", "radius", "size"]).title("radii");
    let mut last = None;
    for trial in trials {
        if last != Some(trial.setting.depth) {
            last = Some(trial.setting.depth);
            table.row(radius_cells(&trial.state, &trial.radius));
        }
    }
    table.to_string()
}

fn radius_cells(state: &str, radius: &Radius) -> [String; 6] {
    let short = |x: f64| format!("{x:.2e}");
    [
        state.trim_start_matches("behind ").to_owned(),
        short(radius.gap),
        short(radius.typical_gap),
        short(radius.floor),
        short(radius.radius()),
        short(radius.size),
    ]
}

fn found(found: &Found) -> String {
    let tried: usize = found.positions.iter().map(Position::tried).sum();
    let prompt = found.prompt.map_or_else(String::new, |number| format!("prompt {}, ", number + 1));
    let mut out = format!(
        "{prompt}{} ({}): {:?}\n{} positions, {tried} alternatives tried in {:.3} s, radius {:.2e}\n",
        found.state,
        how(found.setting),
        found.text,
        found.positions.len(),
        found.seconds,
        found.radius.radius()
    );
    if let Some((at, Position::NotFound { distance, .. })) =
        found.positions.iter().enumerate().find(|(_, position)| position.tokens().is_none())
    {
        out.push_str(&format!(
            "position {at} not found: the nearest that was tried is {distance:.2e} away\n"
        ));
    }
    out
}

fn collisions(found: &[Close]) -> String {
    let first = found.first().map(|close| &close.figures);
    let (texts, pairs) = first.map_or((0, 0), |figures| (figures.texts, figures.pairs));
    let title = format!("closest last states of {texts} prompts, {} pairs", format::count(pairs as f64));
    let mut table =
        Table::new(&["state", "smallest", "size", "continued", "pairs", "seconds", "GFLOP/s"]).title(title);
    for Close { figures, .. } in found {
        table.row([
            figures.state.trim_start_matches("behind ").to_owned(),
            figures.closest.first().map_or_else(String::new, |pair| format!("{:.3e}", pair.distance)),
            format!("{:.2e}", figures.size),
            format!("{:.3e}", figures.continued.smallest),
            format::count(figures.continued.pairs as f64),
            format!("{:.1}", figures.seconds),
            format!("{:.1}", figures.rate / 1e9),
        ]);
    }
    format!("{table}continued: the smallest distance among these with every token behind them\n")
}

/// The closest pair in words.
fn closest(close: &Close) -> Option<String> {
    let (pair, [a, b]) = (close.figures.closest.first()?, close.texts.first()?);
    Some(format!("{}, {:.3e}:\n  {a:?}\n  {b:?}\n", close.figures.state, pair.distance))
}
