//! In which direction positions look: what each layer and head sees of a document whose first part is input.
//!
//! A document stands at `a..e` of a row, its input at `a..c`; with l = max(a, c − 1), the position that predicts the first
//! token of the output,
//!
//! ```text
//!                     in the input, t < c     in the output, t ≥ c
//!   forward           a..t+1                  a..t+1
//!   both ways         a..c                    a..t+1
//!   backward          t..c                    l..t+1
//! ```
//! Nobody sees the output before it is written: neither in it nor in the input. Ends never decrease from a position to the
//! next, and no span is empty: the kernels of attention take them as they are. Without an input (c = a) all three are
//! forward. A matrix of scores whose rows see these spans is triangular going forward, and, going backward, triangular in
//! blocks: of full rank whatever the scores are. Of both ways it need not be (<https://kexue.fm/archives/9529>).

use calm_config::Problems;
use calm_kernels::{Sight, Span, Spans};
use candle_core::{Result, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ChunkBatch;

/// What positions see of the input: what stands before the part of a document that the loss is taken on (`data.loss_on`).
/// In the output every position sees what stands before it. Where all text counts there is no input, and a run must be
/// `causal`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// What stands before them.
    #[default]
    Causal,
    /// All of it, in both directions.
    Prefix,
    /// Some heads what stands before a position, the others what comes after it; in the output the others see the output
    /// alone, and the last position of the input.
    Mixed(MixedHeads),
    /// Every other layer, from the second on, looks backwards as the other heads of `mixed` do.
    Alternate,
}

/// How many heads look where, all heads together; of those that share a key head all look the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MixedHeads {
    /// Heads that look at what stands before a position: the first ones.
    pub forward: usize,
    /// Heads that look at what comes after it.
    pub backward: usize,
}

/// What a head of a layer looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Forward,
    Both,
    Backward,
}

impl Way {
    /// What position t of a document that begins at `a` sees, if its input ends at `c`.
    fn span(self, a: usize, c: usize, t: usize) -> Span {
        let (start, end) = match (self, t < c) {
            (Self::Both, true) => (a, c),
            (Self::Backward, true) => (t, c),
            (Self::Backward, false) => (a.max(c.saturating_sub(1)), t + 1),
            _ => (a, t + 1),
        };
        (start as u32, end as u32)
    }
}

impl Direction {
    /// Whether it is that of an ordinary language model.
    pub fn is_causal(&self) -> bool {
        *self == Self::Causal
    }

    /// Adds what is impossible with these heads, by its key.
    pub(super) fn validate(self, heads: usize, kv_heads: usize, problems: &mut Problems) {
        let Self::Mixed(MixedHeads { forward, backward }) = self else { return };
        if forward.checked_add(backward) != Some(heads) {
            problems.add(
                "attention.mixed",
                format!("{forward} + {backward} heads are not the {heads} of `heads`"),
            );
        }
        let group = heads / kv_heads.max(1);
        if !forward.is_multiple_of(group.max(1)) {
            problems.add(
                "attention.mixed",
                format!("forward {forward} must be a multiple of the {group} heads that share a key head"),
            );
        }
    }

    /// Layers after which ways repeat.
    fn period(self) -> usize {
        match self {
            Self::Alternate => 2,
            _ => 1,
        }
    }

    /// The ways of a layer, each of as many heads.
    fn ways(self, layer: usize) -> Vec<Way> {
        match self {
            Self::Causal => vec![Way::Forward],
            Self::Prefix => vec![Way::Both],
            Self::Alternate if layer.is_multiple_of(2) => vec![Way::Forward],
            Self::Alternate => vec![Way::Backward],
            Self::Mixed(MixedHeads { forward, backward }) => {
                let each = common_divisor(forward, backward).max(1);
                let of = |way, heads: usize| std::iter::repeat_n(way, heads / each);
                of(Way::Forward, forward).chain(of(Way::Backward, backward)).collect()
            }
        }
    }

    /// The spans of a layer, from those of each way.
    fn of_layer(self, layer: usize, spans: impl Fn(Way) -> Result<Spans>) -> Result<Spans> {
        let sets = self.ways(layer).into_iter().map(spans).collect::<Result<Vec<_>>>()?;
        Spans::of_heads(&sets)
    }

    /// What T new positions of each of B texts see after `cached` ones, if their first `input` positions are input.
    pub(super) fn after(self, layer: usize, [batch, new, cached]: [usize; 3], input: usize) -> Result<Spans> {
        let sizes = [batch, new, cached + new];
        self.of_layer(layer, |way| {
            let row: Vec<Span> = (cached..cached + new).map(|t| way.span(0, input, t)).collect();
            Spans::new(sizes, row.repeat(batch))
        })
    }
}

fn common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { common_divisor(b, a % b) }
}

/// Where the positions of whole rows stand, and what they see in each layer.
#[derive(Clone, Debug)]
pub struct Rows {
    /// U32 `[B, S]`, position in the document's window.
    pub(super) positions: Tensor,
    /// U32 `[B, S]`, runs of equal ids are documents.
    segments: Tensor,
    /// Of layer i that at i modulo their number; none where every position sees what stands before it.
    spans: Vec<Spans>,
}

impl Rows {
    /// Where every position sees what stands before it in its document: a run of equal ids in `segments`. Both U32 `[B, S]`.
    pub fn causal(positions: &Tensor, segments: &Tensor) -> Self {
        Self { positions: positions.clone(), segments: segments.clone(), spans: Vec::new() }
    }

    /// Those of a batch, for layers that look in this direction.
    pub(super) fn of(batch: &ChunkBatch, direction: Direction) -> Result<Self> {
        let causal = Self::causal(&batch.positions, &batch.segments);
        let Some(inputs) = batch.inputs.as_deref().filter(|_| !direction.is_causal()) else {
            return Ok(causal);
        };
        let (b, s) = batch.segments.dims2()?;
        let documents = documents(&batch.on_host.segments, inputs, s);
        let spans = |way: Way| {
            let list =
                documents.iter().flat_map(|[a, c, e]| (*a..*e).map(move |t| way.span(*a, *c, t))).collect();
            Spans::new([b, s, s], list)
        };
        let layers = (0..direction.period()).map(|layer| direction.of_layer(layer, spans));
        Ok(Self { spans: layers.collect::<Result<_>>()?, ..causal })
    }

    /// What positions see in a layer.
    pub(super) fn sight(&self, layer: usize) -> Sight<'_> {
        match self.spans.len() {
            0 => Sight::Segments(&self.segments),
            n => Sight::Spans(&self.spans[layer % n]),
        }
    }
}

/// Which keys each head of a layer sees, U8 `[B, H, S, S]`: for looking at the matrices of a batch.
pub(super) fn masks(batch: &ChunkBatch, direction: Direction, layer: usize, heads: usize) -> Result<Tensor> {
    let (b, s) = batch.segments.dims2()?;
    let segments = &batch.on_host.segments;
    let nothing = vec![false; segments.len()];
    let inputs = batch.inputs.as_deref().map_or(&nothing[..], Vec::as_slice);
    let ways = direction.ways(layer);
    let mut mask = vec![0u8; b * heads * s * s];
    for (row, (segments, inputs)) in segments.chunks(s).zip(inputs.chunks(s)).enumerate() {
        for [a, c, e] in documents(segments, inputs, s) {
            for (head, t) in (0..heads).flat_map(|head| (a..e).map(move |t| (head, t))) {
                let (start, end) = ways[head * ways.len() / heads].span(a, c, t);
                let at = ((row * heads + head) * s + t) * s;
                mask[at + start as usize..at + end as usize].fill(1);
            }
        }
    }
    Tensor::from_vec(mask, (b, heads, s, s), batch.segments.device())
}

/// Beginning, end of the input and end of every document in its row, one row after the other.
fn documents(segments: &[u32], inputs: &[bool], s: usize) -> Vec<[usize; 3]> {
    let mut all: Vec<[usize; 3]> = Vec::new();
    for (at, (segment, input)) in segments.iter().zip(inputs).enumerate() {
        let t = at % s;
        match all.last_mut() {
            Some([_, c, e]) if t > 0 && *segment == segments[at - 1] => {
                // The input is what stands at the beginning, without a gap.
                if *input && *c == *e {
                    *c = t + 1;
                }
                *e = t + 1;
            }
            _ => all.push([t, t + usize::from(*input), t + 1]),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAYS: [Way; 3] = [Way::Forward, Way::Both, Way::Backward];

    #[test]
    fn spans_are_those_of_the_table_and_kernels_can_take_them() {
        for n in 1..9 {
            for c in 0..=n {
                for a in [0, 3] {
                    for way in WAYS {
                        let list: Vec<Span> = (a..a + n).map(|t| way.span(a, a + c, t)).collect();
                        // Not empty, ends never decrease, all inside the document.
                        Spans::new([1, n, a + n], list.clone()).unwrap();
                        for (t, (start, end)) in (a..).zip(list) {
                            let (start, end) = (start as usize, end as usize);
                            assert!(
                                start >= a && start <= t && end > t,
                                "{way:?} {c} of {n}: {t} sees itself"
                            );
                            // Nothing of the output is seen before it is written.
                            assert!(end <= (a + c).max(t + 1), "{way:?} {c} of {n} at {t}");
                            let (low, high) = match way {
                                Way::Both if t < a + c => (a, a + c),
                                Way::Backward if t < a + c => (t, a + c),
                                Way::Backward if c > 0 => (a + c - 1, t + 1),
                                _ => (a, t + 1),
                            };
                            assert_eq!((start, end), (low, high), "{way:?} {c} of {n} at {t}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn documents_begin_where_segments_do_and_their_input_is_at_the_beginning() {
        let segments = [0, 0, 0, 1, 1, u32::MAX, 1, 1, 1, 1, 1, 1];
        let inputs = [1, 1, 0, 0, 1, 0, 1, 1, 1, 1, 1, 1].map(|x| x == 1);
        let want = [[0, 2, 3], [3, 3, 5], [5, 5, 6], [0, 6, 6]];
        assert_eq!(documents(&segments, &inputs, 6), want);
    }

    #[test]
    fn ways_are_those_of_layers_and_heads() {
        let mixed = |forward, backward| Direction::Mixed(MixedHeads { forward, backward });
        let (f, b) = (Way::Forward, Way::Backward);
        assert_eq!(mixed(2, 2).ways(3), [f, b]);
        assert_eq!(mixed(1, 3).ways(0), [f, b, b, b]);
        assert_eq!((mixed(4, 0).ways(0), mixed(0, 4).ways(0)), (vec![f], vec![b]));
        let layers = (0..4).flat_map(|layer| Direction::Alternate.ways(layer));
        assert_eq!(layers.collect::<Vec<_>>(), [f, b, f, b]);
        assert_eq!((Direction::Alternate.period(), mixed(2, 2).period()), (2, 1));
    }

    #[test]
    fn heads_that_do_not_add_up_are_refused() {
        let found = |forward, backward, heads, kv| {
            let mut problems = Problems::new();
            Direction::Mixed(MixedHeads { forward, backward }).validate(heads, kv, &mut problems);
            problems.iter().map(|p| p.what.clone()).collect::<Vec<_>>()
        };
        assert!(found(2, 2, 4, 4).is_empty() && found(2, 2, 4, 2).is_empty() && found(0, 4, 4, 1).is_empty());
        assert!(found(2, 1, 4, 4)[0].contains("2 + 1"), "{:?}", found(2, 1, 4, 4));
        assert!(found(1, 3, 4, 2)[0].contains("multiple of the 2 heads"));
    }
}
