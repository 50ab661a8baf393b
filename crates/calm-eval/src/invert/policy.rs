//! In which order alternatives are tried.

use candle_core::Result;
use serde::{Deserialize, Serialize};

use super::alternatives::{Alternatives, BLOCK};
use super::relaxed::Relaxed;
use super::rows::Rows;

/// Steps of the gradient for a token, before the rest of the vocabulary is tried.
const STEPS: usize = 48;
/// Tokens that are tried together after a step.
const TOGETHER: usize = 32;
/// Steps of the gradient for a chunk.
const CHUNK_STEPS: usize = 80;
/// A chunk's embeddings are as good as they get when their state is so near, as a share of the first distance.
const ARRIVED: f64 = 1e-3;
/// Tokens of each place of a chunk that are combined.
const PLACES: usize = 24;
/// Tokens of two places that are combined after a sweep.
const PAIRED: usize = 32;
/// How often a chunk's search begins anew, from the best found.
const ROUNDS: usize = 6;

/// How alternatives are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// The gradient of the distance leads free embeddings; tokens near them are tried first.
    #[default]
    Guided,
    /// All tokens, those first that are nearest to the mean of the table.
    Brute,
}

/// Tries all tokens, in blocks.
pub(super) fn brute(to: &mut Alternatives<'_>, rows: &Rows, near: Option<f64>) -> Result<()> {
    rest(to, rows, &rows.mean(), near)
}

/// Tries the tokens that have not been tried, those nearest to `at` first.
fn rest(to: &mut Alternatives<'_>, rows: &Rows, at: &[f32], near: Option<f64>) -> Result<()> {
    for block in rows.nearest(at, rows.count(), |v| !to.has(&[v])).chunks(BLOCK) {
        to.test(block)?;
        if to.within(near) {
            break;
        }
    }
    Ok(())
}

/// One token: after each step of the gradient the nearest rows.
pub(super) fn guided(to: &mut Alternatives<'_>, rows: &Rows, near: Option<f64>) -> Result<()> {
    // Layers add to what goes in: a state of the same width begins nearer than the mean does.
    let start = if to.target.len() == rows.width { to.target.to_vec() } else { rows.mean() };
    let mut free = Relaxed::from(start, rows.width);
    for step in 0..STEPS {
        if step > 0 {
            free.step(to)?;
        }
        let next = rows.nearest(&free.at, TOGETHER, |v| !to.has(&[v]));
        if next.is_empty() || free.at.iter().any(|x| !x.is_finite()) {
            break;
        }
        to.test(&next)?;
        if to.within(near) {
            return Ok(());
        }
    }
    rest(to, rows, &free.at, near)
}

/// A chunk of K tokens: all K embeddings move together. There are more numbers in them than in a state, so that they arrive
/// somewhere between: the move of each place points to its token all the same, and combinations of those it points to are tried,
/// the best sums of cosines first. Then each place of the best chunk goes over the whole vocabulary, and the nearest tokens of
/// the places are combined, two places at a time and all, as long as that helps; then the same from there.
pub(super) fn together(to: &mut Alternatives<'_>, rows: &Rows, near: Option<f64>) -> Result<()> {
    let (k, width) = (to.model.chunk_size(), rows.width);
    let mut from = rows.mean().repeat(k);
    for _ in 0..ROUNDS {
        let free = relaxed(&from, width, to)?;
        let best_before = to.best().cloned();
        let fixed = best_before.as_ref().map(|best| best.tokens.as_slice());
        let chunks = combined(rows, &from, &free, fixed);
        let new: Vec<u32> = chunks.into_iter().filter(|chunk| !to.has(chunk)).flatten().collect();
        to.test(&new)?;
        if to.within(near) {
            return Ok(());
        }
        while improved(to, rows, near)? {
            if to.within(near) {
                return Ok(());
            }
        }
        match to.best() {
            Some(best) if Some(best) != best_before.as_ref() => {
                from = best.tokens.iter().flat_map(|token| rows.row(*token).to_vec()).collect();
            }
            _ => break,
        }
    }
    Ok(())
}

/// Embeddings that lead to the state, near where they begin.
fn relaxed(from: &[f32], width: usize, to: &Alternatives<'_>) -> Result<Vec<f32>> {
    let mut free = Relaxed::from(from.to_vec(), width);
    let (mut nearest, mut first, mut best) = (f64::INFINITY, None, from.to_vec());
    for _ in 0..CHUNK_STEPS {
        let at = free.at.clone();
        let distance = free.step(to)?;
        if distance < nearest {
            (nearest, best) = (distance, at);
        }
        let first = *first.get_or_insert(distance);
        if nearest <= ARRIVED * first || free.at.iter().any(|x| !x.is_finite()) {
            break;
        }
    }
    Ok(best)
}

/// Chunks of tokens that the move of their places points to: the best sums, at most [`BLOCK`]. A place may also stay as it is.
fn combined(rows: &Rows, from: &[f32], to: &[f32], fixed: Option<&[u32]>) -> Vec<Vec<u32>> {
    let mut chunks: Vec<(Vec<u32>, f32)> = vec![(Vec::new(), 0.0)];
    for (place, (from, to)) in from.chunks(rows.width).zip(to.chunks(rows.width)).enumerate() {
        let mut tokens = rows.towards(from, to, PLACES);
        if let Some(fixed) = fixed
            && !tokens.iter().any(|(token, _)| *token == fixed[place])
        {
            tokens.push((fixed[place], tokens.first().map_or(0.0, |best| best.1)));
        }
        let mut longer: Vec<(Vec<u32>, f32)> = Vec::with_capacity(chunks.len() * tokens.len());
        for (chunk, sum) in &chunks {
            for (token, cosine) in &tokens {
                longer.push(([chunk.as_slice(), &[*token]].concat(), sum + cosine));
            }
        }
        longer.sort_by(|a, b| b.1.total_cmp(&a.1));
        longer.truncate(BLOCK);
        chunks = longer;
    }
    chunks.into_iter().map(|(chunk, _)| chunk).collect()
}

/// Each place of the best chunk over the whole vocabulary, then its nearest tokens together; whether a better one was found.
fn improved(to: &mut Alternatives<'_>, rows: &Rows, near: Option<f64>) -> Result<bool> {
    let Some(before) = to.best().cloned() else { return Ok(false) };
    let k = before.tokens.len();
    let mut ranked: Vec<Vec<u32>> = Vec::with_capacity(k);
    for place in 0..k {
        let all = (0..rows.count() as u32).flat_map(|token| with(&before.tokens, &[(place, token)]));
        let distances = to.test(&all.collect::<Vec<u32>>())?;
        if to.within(near) {
            return Ok(true);
        }
        let mut order: Vec<u32> = (0..rows.count() as u32).collect();
        order.sort_by(|a, b| distances[*a as usize].total_cmp(&distances[*b as usize]));
        ranked.push(order);
    }
    let first = |place: usize, n: usize| &ranked[place][..n.min(ranked[place].len())];
    // Two tokens may be wrong that neither alone makes better.
    for (a, b) in (0..k).flat_map(|a| (a + 1..k).map(move |b| (a, b))) {
        let pairs = first(a, PAIRED).iter().flat_map(|x| first(b, PAIRED).iter().map(move |y| (*x, *y)));
        let chunks: Vec<Vec<u32>> = pairs.map(|(x, y)| with(&before.tokens, &[(a, x), (b, y)])).collect();
        let new: Vec<u32> = chunks.into_iter().filter(|chunk| !to.has(chunk)).flatten().collect();
        to.test(&new)?;
        if to.within(near) {
            return Ok(true);
        }
    }
    // As many of each place as a block takes the combinations of.
    let each =
        (1..=rows.count()).take_while(|n| n.checked_pow(k as u32).is_some_and(|all| all <= BLOCK)).last();
    let mut chunks: Vec<Vec<u32>> = vec![Vec::new()];
    for place in 0..k {
        let tokens = first(place, each.unwrap_or(1));
        chunks = chunks
            .iter()
            .flat_map(|chunk| tokens.iter().map(move |token| [chunk.as_slice(), &[*token]].concat()))
            .collect();
    }
    let new: Vec<u32> = chunks.into_iter().filter(|chunk| !to.has(chunk)).flatten().collect();
    to.test(&new)?;
    Ok(to.best().is_some_and(|best| best.distance < before.distance))
}

/// A chunk with other tokens at some places.
fn with(chunk: &[u32], others: &[(usize, u32)]) -> Vec<u32> {
    let mut chunk = chunk.to_vec();
    for (place, token) in others {
        chunk[*place] = *token;
    }
    chunk
}
