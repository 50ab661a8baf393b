//! Whether two texts have the same last state: the smallest distance among many, and among all continuations of the closest.

use std::time::Instant;

use calm_lm::Inversion;
use candle_core::{DType, Result};
use serde::Serialize;

use super::alternatives::BLOCK;
use super::closest::{Pair, closest, pairs_of};

/// Texts whose states are computed together.
const TOGETHER: usize = 128;
/// Pairs that are listed, and continued.
pub const CLOSEST: usize = 10;

/// What was found at a depth.
#[derive(Clone, Debug, Serialize)]
pub struct Collisions {
    /// Which state of a position.
    pub depth: usize,
    /// What it is of.
    pub state: String,
    /// Texts, all different.
    pub texts: usize,
    /// The root of the mean square of the states' numbers.
    pub size: f64,
    /// Pairs of them.
    pub pairs: u64,
    /// The closest, the closest first.
    pub closest: Vec<Pair>,
    /// For all distances.
    pub seconds: f64,
    /// Products of that, FLOP a second.
    pub rate: f64,
    /// The texts of the closest pairs with every token behind them.
    pub continued: Continued,
}

/// States of continued texts.
#[derive(Clone, Debug, Serialize)]
pub struct Continued {
    /// Texts that were continued.
    pub texts: usize,
    /// States: texts times vocabulary.
    pub states: usize,
    /// Pairs of these.
    pub pairs: u64,
    /// The smallest distance.
    pub smallest: f64,
    /// Whether it is between continuations of one text.
    pub of_one_text: bool,
}

/// The last states of these texts of S chunks each `[texts, D]`, row-major, at each of the depths.
///
/// # Errors
/// What a GPU answers.
pub fn last_states(
    model: &dyn Inversion,
    texts: &[Vec<u32>],
    depths: &[usize],
    mut done: impl FnMut(usize),
) -> Result<Vec<Vec<f32>>> {
    let mut out: Vec<Vec<f32>> = vec![Vec::new(); depths.len()];
    for some in texts.chunks(TOGETHER) {
        let states = model.of_texts(&some.concat(), some.len())?;
        for (out, depth) in out.iter_mut().zip(depths) {
            let states = &states[*depth];
            let last = states.narrow(1, states.dim(1)? - 1, 1)?.contiguous()?;
            out.extend(last.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?);
        }
        done(some.len());
    }
    Ok(out)
}

/// The closest of the last states `[texts, D]` of these texts, and of their continuations.
///
/// # Errors
/// What a GPU answers.
pub fn collisions(
    model: &dyn Inversion,
    texts: &[Vec<u32>],
    depth: usize,
    states: &[f32],
) -> Result<Collisions> {
    let width = states.len().checked_div(texts.len()).unwrap_or(0);
    let begin = Instant::now();
    let found = closest(states, width, CLOSEST);
    let seconds = begin.elapsed().as_secs_f64();
    let pairs = pairs_of(texts.len());
    let square: f64 = states.iter().map(|x| f64::from(*x).powi(2)).sum();
    Ok(Collisions {
        depth,
        state: model.depth_name(depth),
        texts: texts.len(),
        size: (square / states.len().max(1) as f64).sqrt(),
        pairs,
        seconds,
        rate: 2.0 * width as f64 * pairs as f64 / seconds.max(1e-9),
        continued: continued(model, texts, depth, &found)?,
        closest: found,
    })
}

/// Every token behind each text of these pairs; of a model of chunks, in the last place of a chunk that repeats the text's last.
fn continued(model: &dyn Inversion, texts: &[Vec<u32>], depth: usize, pairs: &[Pair]) -> Result<Continued> {
    let (k, vocab) = (model.chunk_size(), model.table().dim(0)?);
    let mut those: Vec<usize> = pairs.iter().flat_map(|pair| [pair.a, pair.b]).collect();
    those.sort_unstable();
    those.dedup();
    let mut states: Vec<f32> = Vec::new();
    for text in &those {
        let text = &texts[*text];
        let mut known = model.begin()?;
        model.extend(text, &mut known)?;
        let next = (0..vocab as u32).flat_map(|token| {
            let mut chunk = text[text.len() - k..].to_vec();
            chunk[k - 1] = token;
            chunk
        });
        for block in next.collect::<Vec<u32>>().chunks(BLOCK * k) {
            let some = model.states(&model.embed(block)?, &known, depth)?.detach();
            states.extend(some.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?);
        }
    }
    let n = those.len() * vocab;
    let first = closest(&states, states.len().checked_div(n).unwrap_or(0), 1).first().copied();
    Ok(Continued {
        texts: those.len(),
        states: n,
        pairs: pairs_of(n),
        smallest: first.map_or(f64::NAN, |pair| pair.distance),
        of_one_text: first.is_some_and(|pair| pair.a / vocab == pair.b / vocab),
    })
}
