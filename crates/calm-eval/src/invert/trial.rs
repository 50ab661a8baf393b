//! How often, and how fast, texts that are known are found behind their states.

use std::time::Instant;

use calm_lm::Inversion;
use calm_stats::proportion::{Proportion, proportion};
use candle_core::{DType, Result};
use serde::Serialize;

use super::kept::{Kept, add_noise};
use super::policy::Policy;
use super::radius::{Radius, median};
use super::search::{Position, Search};

/// How the states of a text were computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pass {
    /// All positions in one pass.
    #[default]
    Whole,
    /// Each position as the last one of its prefix.
    Prefixes,
}

/// What is tried.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Setting {
    /// Which state of a position.
    pub depth: usize,
    /// In which order.
    pub policy: Policy,
    /// What became of the states.
    pub kept: Kept,
    /// Noise on them, as a share of the root of their mean square.
    pub noise: f64,
    /// How they were computed.
    pub pass: Pass,
    /// Of the noise.
    pub seed: u64,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Trial {
    /// Of what.
    pub setting: Setting,
    /// What the states are of.
    pub state: String,
    /// The measured radius.
    pub radius: Radius,
    /// Texts of which every token was found, and no other.
    pub texts: Proportion,
    /// Positions whose token, or chunk, was found, after the true ones before them: the tokens of a chunk stand or fall together.
    pub exact: Proportion,
    /// Tokens of chunks that were taken for another.
    pub wrong: usize,
    /// Tokens that the nearest state that was tried would have given, found or not.
    pub nearest: Proportion,
    /// Alternatives that were tried for a position, as a share of the vocabulary: the mean.
    pub tried: f64,
    /// For a text: median, least and most.
    pub seconds: [f64; 3],
}

/// Finds these texts of whole chunks behind their states. Where a position is not found the search goes on after the true
/// chunk, so that each position is one trial.
///
/// # Errors
/// What a GPU answers.
pub fn trial(
    model: &dyn Inversion,
    texts: &[Vec<u32>],
    setting: Setting,
    radius: Radius,
    mut done: impl FnMut(usize),
) -> Result<Trial> {
    let k = model.chunk_size();
    let vocab = model.table().dim(0)? as f64;
    let search = Search::new(model, setting.depth, radius, setting.policy, setting.kept)?;
    let (mut whole, mut tokens, mut exact, mut wrong, mut nearest) = (0, 0, 0, 0, 0);
    let (mut tried, mut positions, mut seconds) = (0usize, 0usize, Vec::with_capacity(texts.len()));
    for (number, text) in texts.iter().enumerate() {
        let mut states = states_of(model, text, setting.depth, setting.pass)?;
        let width = (states.len() * k).checked_div(text.len()).unwrap_or(0);
        add_noise(&mut states, width, setting.noise, setting.seed, number as u32);
        states.chunks_mut(width.max(1)).for_each(|state| setting.kept.round(state));
        let begin = Instant::now();
        let mut known = model.begin()?;
        let mut all = true;
        for (state, truth) in states.chunks_exact(width.max(1)).zip(text.chunks_exact(k)) {
            let position = search.position(&known, state)?;
            model.extend(truth, &mut known)?;
            positions += 1;
            tokens += k;
            tried += position.tried();
            nearest += position.nearest().iter().zip(truth).filter(|(a, b)| a == b).count();
            match &position {
                Position::Found { tokens, .. } if tokens == truth => exact += 1,
                Position::Found { .. } => {
                    wrong += k;
                    all = false;
                }
                Position::NotFound { .. } => all = false,
            }
        }
        seconds.push(begin.elapsed().as_secs_f64());
        whole += usize::from(all);
        done(number + 1);
    }
    seconds.sort_by(f64::total_cmp);
    let at = |i: usize| seconds.get(i).copied().unwrap_or(0.0);
    Ok(Trial {
        setting,
        state: model.depth_name(setting.depth),
        radius,
        texts: proportion(whole, texts.len()),
        exact: proportion(exact, positions),
        wrong,
        nearest: proportion(nearest, tokens),
        tried: tried as f64 / positions.max(1) as f64 / vocab,
        seconds: [median(&seconds), at(0), at(seconds.len().saturating_sub(1))],
    })
}

/// The states `[S, D]` of a text, row-major.
///
/// # Errors
/// What a GPU answers.
pub fn states_of(model: &dyn Inversion, text: &[u32], depth: usize, pass: Pass) -> Result<Vec<f32>> {
    let k = model.chunk_size();
    let last = |text: &[u32], all: bool| -> Result<Vec<f32>> {
        let states = model.of_texts(text, 1)?.swap_remove(depth);
        let s = states.dim(1)?;
        let states = if all { states } else { states.narrow(1, s - 1, 1)? };
        states.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
    };
    match pass {
        Pass::Whole => last(text, true),
        Pass::Prefixes => {
            let prefixes = (1..=text.len() / k).map(|chunks| last(&text[..chunks * k], false));
            Ok(prefixes.collect::<Result<Vec<_>>>()?.concat())
        }
    }
}
