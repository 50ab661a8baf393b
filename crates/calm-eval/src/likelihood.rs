//! How probable a model finds the continuation of a text, as benchmarks of several choices ask it.
//!
//! Families with probabilities answer exactly, each token given all before it. A CALM answers by the bound of
//! [`calm_stats::bound`]: N latent vectors are drawn for a chunk without looking at it, and ln of the mean probability
//! of its tokens lies on average below ln p of this model with the share of uniform tokens that the floor is, after the
//! context that is seen. That is not always below the ln p of the model alone after all of the context: a chunk that no draw
//! comes near has that of the floor, and texts of equally many tokens that no draw comes near are equally probable. How a
//! continuation begins and ends where it likes:
//!
//! ```text
//! K = 4       context c0 .. c9, continuation x0 .. x4
//!
//! exact       BOS BOS BOS BOS | c0 c1 c2 c3 | c4 c5 c6 c7 | c8 c9 x0 x1 | x2 x3 x4 -     x0 .. x4 are counted
//! bound       BOS BOS BOS BOS | c2 c3 c4 c5 | c6 c7 c8 c9 | x0 x1 x2 x3 | x4 -  -  -     c0 and c1 are not seen
//! ```
//! - A chunk that is asked for in part has the product over that part: the rest is summed over.
//! - The first `context mod K` tokens are left out, so that the continuation begins a chunk. Otherwise its first tokens
//!   would have to be divided by the probability of those before them in their chunk, which is known from below alone.
//! - A context of less than a chunk is not left out. It counts with the continuation: ln p(c, x) ≤ ln p(x given c).
//!
//! A row holds S chunks. A longer text keeps its last S; a continuation of S chunks or more is read in windows, each of which
//! has one chunk of context at its start, the last one as much as it can.
//!
//! What is drawn depends on the seed and the context, not on the other questions: the choices of one question meet the
//! same draws, where the context and each of them fit into a row. Without a context it depends on the continuation: else all
//! documents would meet the same draws, and their errors would not average out.

use std::collections::BTreeMap;
use std::ops::Range;

use calm_data::Layout;
use calm_lm::{ChunkBatch, DrawRequest, Draws, LanguageModel};
use calm_stats::bound::{Bound, Floor};
use thiserror::Error;

/// A continuation and what it continues, as tokens without BOS and EOS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Question {
    /// What stands before; may be empty.
    pub context: Vec<u32>,
    /// What is asked for.
    pub continuation: Vec<u32>,
}

/// How probable a continuation is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answer {
    /// ln p of all its tokens in nats; from below where a model draws.
    pub log_p: f64,
    /// Whether each of its tokens is the most probable one given those before. Where a model draws: whether each of its
    /// chunks is more frequent among the draws than any other. Not looked at: false.
    pub greedy: bool,
}

/// How it is asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LikelihoodOptions {
    /// N, draws a chunk of a model that draws.
    pub samples: usize,
    /// The floor of the bound.
    pub floor: Floor,
    /// Seed of the draws.
    pub seed: u64,
    /// Whether [`Answer::greedy`] is looked at, which takes as long again.
    pub greedy: bool,
}

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum LikelihoodError {
    /// The model failed.
    #[error(transparent)]
    Model(#[from] candle_core::Error),
    /// Neither probabilities nor draws that a softmax decodes.
    #[error("this model has no probabilities and no bound on them")]
    None,
    /// A continuation that would begin the document, of a model that knows no beginning.
    #[error("this model knows no start of document: it says nothing of a text's first chunk of {0} tokens")]
    NoBeginning(usize),
}

impl LikelihoodError {
    /// What to do about it, where that is known.
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::Model(_) => None,
            Self::None => Some("generate text with it, or score it by BrierLM"),
            Self::NoBeginning(_) => Some("give a context of a chunk or more"),
        }
    }
}

/// Most tokens of a batch, so that memory stays bounded.
const BATCH_TOKENS: usize = 8192;

/// Part of a question that goes into a row.
struct Window {
    question: usize,
    /// Whole chunks.
    ids: Vec<u32>,
    /// The place in the row of the first chunk that is asked for.
    first: usize,
    /// The tokens asked for in each of these chunks.
    asked: Vec<Range<usize>>,
    /// What its noise is keyed by.
    row: u32,
}

/// Answers questions, in their order.
///
/// # Errors
/// A model that has no answer, or none to one of these questions; what a GPU answers.
pub fn likelihoods(
    model: &dyn LanguageModel,
    layout: Layout,
    questions: &[Question],
    options: &LikelihoodOptions,
) -> Result<Vec<Answer>, LikelihoodError> {
    let exact = model.draws() == calm_lm::DrawKind::Exact;
    let placed = Placed { layout, special: model.special(), exact };
    let mut windows = Vec::new();
    for (number, question) in questions.iter().enumerate() {
        placed.windows(number, question, &mut windows)?;
    }
    // Rows of one batch are of about the same length.
    windows.sort_by_key(|window| window.ids.len());
    let mut answers = vec![Answer { log_p: 0.0, greedy: options.greedy }; questions.len()];
    let mut rest = &windows[..];
    while let Some(shortest) = rest.first() {
        // The row is as long as the longest.
        let mut rows = (BATCH_TOKENS / shortest.ids.len()).clamp(1, rest.len());
        rows = (BATCH_TOKENS / rest[rows - 1].ids.len()).clamp(1, rows);
        let (these, after) = rest.split_at(rows);
        measure(model, &placed, these, options, &mut answers)?;
        rest = after;
    }
    Ok(answers)
}

/// How questions lie in rows.
struct Placed {
    layout: Layout,
    special: calm_lm::SpecialIds,
    exact: bool,
}

impl Placed {
    fn windows(
        &self,
        number: usize,
        question: &Question,
        out: &mut Vec<Window>,
    ) -> Result<(), LikelihoodError> {
        let Layout { chunk_size: k, context: s, bos_chunk } = self.layout;
        if question.continuation.is_empty() {
            return Ok(());
        }
        let mut context = &question.context[..];
        if !self.exact && context.len() >= k {
            context = &context[context.len() % k..];
        }
        let begin = usize::from(bos_chunk);
        let first = begin + context.len() / k;
        if first == 0 {
            return Err(LikelihoodError::NoBeginning(k));
        }
        let mut ids = vec![self.special.bos; begin * k];
        ids.extend(context);
        let known = ids.len();
        ids.extend(&question.continuation);
        let end = ids.len();
        ids.resize(end.next_multiple_of(k), self.special.pad);
        let asked = |chunk: usize| {
            let before = if self.exact { known } else { 0 };
            before.saturating_sub(chunk * k)..k.min(end - chunk * k)
        };
        let total = ids.len() / k;
        let key = if question.context.is_empty() { &question.continuation } else { &question.context };
        let mut from = first;
        while from < total {
            let at = (from - 1).min(total.saturating_sub(s));
            let end = (at + s).min(total);
            out.push(Window {
                question: number,
                ids: ids[at * k..end * k].to_vec(),
                first: from - at,
                asked: (from..end).map(asked).collect(),
                row: hash(key).wrapping_add(at as u32),
            });
            from = end;
        }
        Ok(())
    }

    /// Windows as a batch, filled up to the length of the longest.
    fn batch(&self, windows: &[Window], model: &dyn LanguageModel) -> candle_core::Result<ChunkBatch> {
        let k = self.layout.chunk_size;
        let context = windows.iter().map(|w| w.ids.len() / k).max().unwrap_or(0);
        let places = windows.len() * context;
        let mut ids = vec![self.special.pad; places * k];
        let (mut positions, mut segments) = (vec![0; places], vec![u32::MAX; places]);
        let mut predicts = vec![false; places];
        for (row, window) in windows.iter().enumerate() {
            let (at, chunks) = (row * context, window.ids.len() / k);
            ids[at * k..at * k + window.ids.len()].copy_from_slice(&window.ids);
            segments[at..at + chunks].fill(0);
            positions[at..at + chunks].iter_mut().zip(0..).for_each(|(p, i)| *p = i);
            predicts[at + window.first - 1..at + chunks - 1].fill(true);
        }
        let examples: Vec<u32> = windows.iter().map(|window| window.row).collect();
        let shape = (windows.len(), context, k);
        ChunkBatch::new(shape, &ids, &positions, &segments, &predicts, &examples, model.store().context())
    }
}

/// Of tokens (FNV-1a): choices of one question have that of their context, another question has another.
fn hash(tokens: &[u32]) -> u32 {
    tokens.iter().fold(0x811c_9dc5, |hash, token| (hash ^ token).wrapping_mul(0x0100_0193))
}

/// Adds what these windows say to the answers.
fn measure(
    model: &dyn LanguageModel,
    placed: &Placed,
    windows: &[Window],
    options: &LikelihoodOptions,
    answers: &mut [Answer],
) -> Result<(), LikelihoodError> {
    let k = placed.layout.chunk_size;
    let LikelihoodOptions { samples, floor, seed, greedy } = *options;
    let batch = placed.batch(windows, model)?;
    // Every chunk that is asked for, in the order of the batch: question, tokens of the chunk, which of them.
    let chunks = windows.iter().flat_map(|window| {
        let ids = window.ids.chunks_exact(k).skip(window.first);
        ids.zip(&window.asked).map(|(ids, asked)| (window.question, ids, asked.clone()))
    });
    if let Some(log_p) = model.log_probabilities(&batch)? {
        let most = if greedy { model.most_probable(&batch)? } else { None };
        for (row, (question, ids, asked)) in chunks.enumerate() {
            let of_row = row * k + asked.start..row * k + asked.end;
            let answer = &mut answers[question];
            answer.log_p += log_p[of_row.clone()].iter().sum::<f64>();
            answer.greedy &= most.as_ref().is_some_and(|most| most[of_row] == ids[asked]);
        }
        return Ok(());
    }
    let request = DrawRequest { samples, steps: 1, seed, purpose: "bound" };
    let tokens: Vec<usize> = windows.iter().flat_map(|w| w.asked.iter().map(|asked| asked.end)).collect();
    let Some(draws) = model.decoded_beginnings(&batch, &request, &tokens)? else {
        return Err(LikelihoodError::None);
    };
    let drawn = match greedy {
        true => Some(model.draw(&batch, &DrawRequest { purpose: "greedy", ..request })?),
        false => None,
    };
    let bound = Bound::new(samples, floor);
    for (row, (question, ids, asked)) in chunks.enumerate() {
        let nats = bound.of_chunk(&draws.log_p[row * samples..(row + 1) * samples], asked.end);
        let answer = &mut answers[question];
        answer.log_p -= nats.last().copied().unwrap_or(f64::INFINITY);
        answer.greedy &= matches!(&drawn, Some(Draws::Sampled(drawn)) if {
            let of_draw = |n| &drawn.chunk(row, 0, n)[asked.clone()];
            most_frequent((0..samples).map(of_draw), &ids[asked.clone()])
        });
    }
    Ok(())
}

/// Whether one is more frequent than any other.
fn most_frequent<'a>(draws: impl Iterator<Item = &'a [u32]>, one: &[u32]) -> bool {
    let mut counts: BTreeMap<&[u32], usize> = BTreeMap::new();
    draws.for_each(|draw| *counts.entry(draw).or_default() += 1);
    let own = counts.remove(one).unwrap_or(0);
    counts.values().all(|count| *count < own)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(exact: bool) -> Placed {
        Placed {
            layout: Layout { chunk_size: 4, context: 5, bos_chunk: true },
            special: calm_lm::SpecialIds { bos: 97, eos: 98, pad: 99 },
            exact,
        }
    }

    /// Chunks, first chunk asked for, tokens asked for of each.
    type Seen = (Vec<u32>, usize, Vec<(usize, usize)>);

    fn windows(exact: bool, context: Range<u32>, continuation: Range<u32>) -> Vec<Seen> {
        let question = Question { context: context.collect(), continuation: continuation.collect() };
        let mut out = Vec::new();
        placed(exact).windows(0, &question, &mut out).unwrap();
        let ends = |w: &Window| w.asked.iter().map(|r| (r.start, r.end)).collect();
        out.into_iter().map(|w| (w.ids.clone(), w.first, ends(&w))).collect()
    }

    #[test]
    fn the_continuation_begins_inside_a_chunk_or_where_one_begins() {
        let bos = [97; 4];
        let exact = [&bos[..], &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 50, 51, 52, 53, 54, 99]].concat();
        assert_eq!(windows(true, 0..10, 50..55), [(exact, 3, vec![(2, 4), (0, 3)])]);
        let bound = [&bos[..], &[2, 3, 4, 5, 6, 7, 8, 9, 50, 51, 52, 53, 54, 99, 99, 99]].concat();
        assert_eq!(windows(false, 0..10, 50..55), [(bound, 3, vec![(0, 4), (0, 1)])]);
        // Less than a chunk counts with the continuation.
        let short = [&bos[..], &[0, 1, 50, 51, 52, 99, 99, 99]].concat();
        assert_eq!(windows(false, 0..2, 50..53), [(short.clone(), 1, vec![(0, 4), (0, 1)])]);
        assert_eq!(windows(true, 0..2, 50..53), [(short, 1, vec![(2, 4), (0, 1)])]);
    }

    #[test]
    fn a_long_context_loses_its_beginning_and_a_long_continuation_is_read_in_windows() {
        assert_eq!(
            windows(true, 0..40, 50..52),
            [((24..40).chain([50, 51, 99, 99]).collect(), 4, vec![(0, 2)])]
        );
        let seen = windows(true, 0..0, 0..38);
        let firsts: Vec<_> = seen.iter().map(|(ids, first, asked)| (ids[4], *first, asked.len())).collect();
        // BOS and four chunks, then one chunk again and four more; three again and the last two.
        assert_eq!(firsts, [(0, 1, 4), (16, 1, 4), (24, 3, 2)]);
        let asked: usize = seen.iter().flat_map(|w| &w.2).map(|(from, to)| to - from).sum();
        assert_eq!(asked, 38);
    }

    #[test]
    fn a_model_without_a_beginning_needs_a_chunk_of_context() {
        let mut placed = placed(true);
        placed.layout.bos_chunk = false;
        let question = Question { context: vec![1, 2, 3], continuation: vec![4, 5] };
        let refused = placed.windows(0, &question, &mut Vec::new());
        assert!(matches!(refused, Err(LikelihoodError::NoBeginning(4))));
        let question = Question { context: vec![0, 1, 2, 3], ..question };
        assert!(placed.windows(0, &question, &mut Vec::new()).is_ok());
    }

    #[test]
    fn a_chunk_is_most_frequent_alone() {
        let draws: [&[u32]; 4] = [&[1, 2], &[1, 3], &[1, 2], &[4, 4]];
        let most = |one: &[u32]| most_frequent(draws.into_iter(), one);
        assert!(most(&[1, 2]) && !most(&[1, 3]) && !most(&[9, 9]));
        assert!(!most_frequent([&[1u32][..], &[2]].into_iter(), &[1]));
    }
}
