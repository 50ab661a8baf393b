//! How a model that cuts text into segments of its own does it: tokens a segment, and nats a token by its place in the segment.
//!
//! ```text
//! text        BOS  a   b   c   d   e   f   g
//! opens        x   .   .   x   .   x   .   .
//! place        0   1   2   0   1   0   1   2       of the token that is read
//! from the end -3  -2  -1  -2  -1  .   .   .       the last segment is not known to be whole
//! predicts     a   b   c   d   e   f   g           its nats count at the place of the token before it
//! ```

use std::collections::BTreeMap;

use calm_data::Batch;
use calm_lm::{LanguageModel, Segmentation};
use calm_stats::ratio::{self, Ratio};
use serde::{Deserialize, Serialize};

use crate::score::to_tensors;
use crate::workers::{Exact, Workers};

/// Places that are told apart, from either end of a segment; what lies further off counts with the last of them.
pub const PLACES: usize = 16;

/// Segments of a text.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Segments {
    /// Predicted tokens (chunks of a model of chunks).
    pub tokens: u64,
    /// Segments that begin at the positions that predict them.
    pub segments: u64,
    /// Tokens a segment.
    pub ratio: Ratio,
    /// Nats a token.
    pub nats: Ratio,
    /// By the place of the token before the predicted one, from the beginning of its segment: 0, 1, ..
    pub from_start: Vec<Place>,
    /// From the end, in segments that end before their window does: 1 is the last token.
    pub from_end: Vec<Place>,
}

/// What is predicted at one place of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Place {
    /// Which.
    pub place: usize,
    /// Whether all places beyond are counted in.
    pub and_beyond: bool,
    /// Predicted tokens.
    pub tokens: u64,
    /// Nats a token.
    pub nats: Ratio,
}

/// A predicting position: document, place in its segment, place from the end where that is known, nats.
type Predicted = (u32, usize, Option<usize>, Exact);

/// Sums of a document: tokens and nats.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    tokens: u64,
    nats: f64,
}

/// Sums by document, all and by place.
#[derive(Clone, Debug, Default)]
struct Document {
    all: Sum,
    segments: u64,
    from_start: [Sum; PLACES],
    from_end: [Sum; PLACES],
}

/// How the model cuts these batches; None of one that does not, or without probabilities.
///
/// # Errors
/// What a GPU answers; those of the workers.
pub fn segments<W: Workers>(
    model: &dyn LanguageModel,
    batches: impl Iterator<Item = Batch>,
    workers: W,
) -> Result<Option<Segments>, W::Error> {
    let mut documents = BTreeMap::<u32, Document>::new();
    let mut without = false;
    let measure = |batch: Batch| {
        if batch.predict_count() == 0 {
            return Ok(Some(Vec::new()));
        }
        let tensors = to_tensors(&batch, model.store().context())?;
        let Some(cut) = model.segmentation(&tensors)? else { return Ok(None) };
        Ok(model.log_probabilities(&tensors)?.map(|log_p| predicted(&batch, &cut, &log_p)))
    };
    workers.each(batches, measure, |batch| match batch {
        Some(batch) => batch.into_iter().for_each(|one| add(&mut documents, one)),
        None => without = true,
    })?;
    Ok((!without).then(|| of_documents(&documents)))
}

/// The place of each position `[B, S]` in its segment, and from the segment's end where another one follows in the same window
/// of the document.
pub fn places(batch: &Batch, opens: &[bool]) -> Vec<(usize, Option<usize>)> {
    let mut places = vec![(0, None); opens.len()];
    let s = batch.context;
    // Whether a window of a document begins here.
    let begins = |at: usize| at.is_multiple_of(s) || batch.segments[at] != batch.segments[at - 1];
    for at in 0..opens.len() {
        places[at].0 = if opens[at] || begins(at) { 0 } else { places[at - 1].0 + 1 };
    }
    for at in (0..opens.len()).rev() {
        let next = at + 1;
        places[at].1 = match next < opens.len() && !begins(next) {
            true if places[next].0 == 0 => Some(1),
            true => places[next].1.map(|place| place + 1),
            false => None,
        };
    }
    places
}

/// What a batch predicts, with ln p `[R, K]`.
fn predicted(batch: &Batch, cut: &Segmentation, log_p: &[f64]) -> Vec<Predicted> {
    let places = places(batch, &cut.opens);
    let rows = (0..batch.predicts.len()).filter(|at| batch.predicts[*at]);
    let chunks = log_p.chunks(batch.chunk_size.max(1));
    rows.zip(chunks)
        .map(|(at, log_p)| {
            (batch.documents[at], places[at].0, places[at].1, Exact(-log_p.iter().sum::<f64>()))
        })
        .collect()
}

fn add(documents: &mut BTreeMap<u32, Document>, (document, start, end, Exact(nats)): Predicted) {
    let own = documents.entry(document).or_default();
    own.segments += u64::from(start == 0);
    let end = end.map(|end| &mut own.from_end[(end - 1).min(PLACES - 1)]);
    for sum in [&mut own.all, &mut own.from_start[start.min(PLACES - 1)]].into_iter().chain(end) {
        sum.tokens += 1;
        sum.nats += nats;
    }
}

fn of_documents(documents: &BTreeMap<u32, Document>) -> Segments {
    let nats = |of: &dyn Fn(&Document) -> Sum| {
        let pairs: Vec<(f64, f64)> =
            documents.values().map(of).map(|sum| (sum.nats, sum.tokens as f64)).collect();
        ratio::of(pairs.into_iter())
    };
    let tokens = |of: &dyn Fn(&Document) -> Sum| documents.values().map(|d| of(d).tokens).sum::<u64>();
    let place = |i: usize, first: usize, of: &dyn Fn(&Document) -> Sum| {
        nats(of).map(|nats| Place { place: first + i, and_beyond: i + 1 == PLACES, tokens: tokens(of), nats })
    };
    let ratio = ratio::of(documents.values().map(|d| (d.all.tokens as f64, d.segments as f64)));
    Segments {
        tokens: tokens(&|d| d.all),
        segments: documents.values().map(|d| d.segments).sum(),
        ratio: ratio.unwrap_or_default(),
        nats: nats(&|d| d.all).unwrap_or_default(),
        from_start: (0..PLACES).filter_map(|i| place(i, 0, &|d| d.from_start[i])).collect(),
        from_end: (0..PLACES).filter_map(|i| place(i, 1, &|d| d.from_end[i])).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two rows: a document of eight positions, and one of three before filler.
    fn batch() -> Batch {
        let row = |length: usize| (0..8).map(move |i| i + 1 < length);
        let segment = |length: usize| (0..8).map(move |i| if i < length { 0 } else { u32::MAX });
        Batch {
            rows: 2,
            context: 8,
            chunk_size: 1,
            predicts: row(8).chain(row(3)).collect(),
            segments: segment(8).chain(segment(3)).collect(),
            documents: segment(8).map(|_| 4).chain(segment(3).map(|s| s.max(7))).collect(),
            ..Batch::default()
        }
    }

    fn opens(marks: &str) -> Vec<bool> {
        marks.chars().filter(|c| *c != ' ').map(|c| c == 'x').collect()
    }

    #[test]
    fn places_count_from_both_ends_of_a_segment() {
        let found = places(&batch(), &opens("x..x.x.. x.x....."));
        let (start, end): (Vec<_>, Vec<_>) = found.into_iter().unzip();
        assert_eq!(start[..11], [0, 1, 2, 0, 1, 0, 1, 2, 0, 1, 0]);
        let some = |x: [usize; 5]| x.map(Some).to_vec();
        assert_eq!(end[..8], [some([3, 2, 1, 2, 1]), vec![None; 3]].concat());
        assert_eq!(end[8..11], [Some(2), Some(1), None]);
        // A window begins a segment, whatever is said.
        assert_eq!(places(&batch(), &[false; 16])[..2], [(0, None), (1, None)]);
    }

    #[test]
    fn sums_are_those_of_the_predicted_tokens() {
        let cut = Segmentation { opens: opens("x..x.x.. x.x....."), probabilities: None };
        // Seven tokens of one document, two of the other.
        let log_p: Vec<f64> = (1..=9).map(|i| -f64::from(i)).collect();
        let mut documents = BTreeMap::new();
        predicted(&batch(), &cut, &log_p).into_iter().for_each(|one| add(&mut documents, one));
        let found = of_documents(&documents);
        // The second document's last segment begins at a position that predicts nothing.
        assert_eq!((found.tokens, found.segments), (9, 4));
        assert_eq!((found.ratio.value, found.nats.value), (9.0 / 4.0, 5.0));
        let start: Vec<_> = found.from_start.iter().map(|p| (p.place, p.tokens, p.nats.value)).collect();
        assert_eq!(
            start,
            [(0, 4, (1.0 + 4.0 + 6.0 + 8.0) / 4.0), (1, 4, (2.0 + 5.0 + 7.0 + 9.0) / 4.0), (2, 1, 3.0)]
        );
        let end: Vec<_> = found.from_end.iter().map(|p| (p.place, p.tokens, p.nats.value)).collect();
        assert_eq!(end, [(1, 3, (3.0 + 5.0 + 9.0) / 3.0), (2, 3, (2.0 + 4.0 + 8.0) / 3.0), (3, 1, 1.0)]);
        assert!(found.ratio.se.is_some() && found.from_start.iter().all(|p| !p.and_beyond));
    }

    #[test]
    fn what_lies_far_off_counts_with_the_last_place() {
        let mut documents = BTreeMap::new();
        for place in 0..40 {
            add(&mut documents, (0, place, Some(40 - place), Exact(1.0)));
        }
        let found = of_documents(&documents);
        for (places, first) in [(&found.from_start, 0), (&found.from_end, 1)] {
            assert_eq!(places.len(), PLACES);
            let last = places.last().unwrap();
            assert_eq!((last.place, last.and_beyond, last.tokens), (first + PLACES - 1, true, 25));
        }
    }
}
