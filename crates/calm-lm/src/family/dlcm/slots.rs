//! Which token opens which concept, and who sees it: all index arithmetic of the family, without tensors.
//!
//! Every boundary opens a *slot* at its token s_k, and a document's first token always does. Filler positions are a
//! document of one slot. Token t sees the slots of its document with s_k ≤ t, and a slot is made of tokens u ≤ s_k
//! alone: so nothing that a token sees depends on a later one.
//!
//! | pooling | content of slot k | span of tokens |
//! |---|---|---|
//! | boundary | the state at s_k | `[s_k, s_k + 1)` |
//! | closed | the mean of segment k − 1; of a document's first slot the state at s_k | `[s_{k−1}, s_k)`; `[s_k, s_k + 1)` |
//!
//! Rows with fewer slots than the fullest are filled with slots that nobody sees.

use calm_kernels::Span;

use super::config::Pooling;

/// Slots of a row are a multiple of this: few different shapes, for a GPU's memory.
const MULTIPLE: usize = 16;
/// The document of filler.
pub(super) const FILLER: u32 = u32::MAX;

/// The slots of B rows of S tokens, M of each row.
#[derive(Clone, Debug)]
pub(super) struct Slots {
    /// M.
    pub(super) each: usize,
    /// `[B·M]`: b·S + s of the token that opened the slot; of those that fill a row its last token.
    pub(super) opened: Vec<u32>,
    /// `[B·M]`: the tokens of its row that it is made of.
    pub(super) pool: Vec<Span>,
    /// `[B·M]`: the document that it belongs to.
    pub(super) documents: Vec<u32>,
    /// `[B·M]`: its place in the document.
    pub(super) positions: Vec<u32>,
    /// `[B·S]`: the slots of its row that a token sees.
    pub(super) seen: Vec<Span>,
    /// `[B·S]`: b·M + k of the last of these.
    pub(super) last: Vec<u32>,
}

/// Whether each of `[B·S]` tokens begins a document: the first of a run of equal `segments` in its row.
pub(super) fn starts(s: usize, segments: &[u32]) -> Vec<bool> {
    (0..segments.len()).map(|at| at % s == 0 || segments[at] != segments[at - 1]).collect()
}

/// What must be so, whatever the boundaries say: documents begin with one, and filler has no other.
pub(super) fn lawful(opens: &mut [bool], starts: &[bool], segments: &[u32]) {
    for ((opens, starts), segment) in opens.iter_mut().zip(starts).zip(segments) {
        *opens = *starts || (*opens && *segment != FILLER);
    }
}

impl Slots {
    /// From lawful boundaries `[B·S]`.
    pub(super) fn new((b, s): (usize, usize), opens: &[bool], segments: &[u32], pooling: Pooling) -> Self {
        let starts = starts(s, segments);
        let count = |row: usize| opens[row * s..(row + 1) * s].iter().filter(|o| **o).count();
        let each = (0..b).map(count).max().unwrap_or(0).next_multiple_of(MULTIPLE);
        let mut slots = Self {
            each,
            opened: Vec::with_capacity(b * each),
            pool: Vec::with_capacity(b * each),
            documents: Vec::with_capacity(b * each),
            positions: Vec::with_capacity(b * each),
            seen: Vec::with_capacity(b * s),
            last: Vec::with_capacity(b * s),
        };
        for row in 0..b {
            // Of this row: slots so far, the document's first one, and the token that opened the last one.
            let (mut n, mut first, mut before) = (0u32, 0u32, 0u32);
            for t in 0..s {
                let (at, token) = (row * s + t, t as u32);
                if opens[at] {
                    if starts[at] {
                        first = n;
                    }
                    slots.pool.push(match pooling {
                        Pooling::Closed if !starts[at] => (before, token),
                        Pooling::Boundary | Pooling::Closed => (token, token + 1),
                    });
                    slots.opened.push(at as u32);
                    slots.documents.push(segments[at]);
                    slots.positions.push(n - first);
                    (n, before) = (n + 1, token);
                }
                slots.seen.push((first, n));
                slots.last.push((row * each) as u32 + n - 1);
            }
            for _ in n as usize..each {
                slots.opened.push(((row + 1) * s - 1) as u32);
                slots.pool.push((s as u32 - 1, s as u32));
                slots.documents.push(FILLER);
                slots.positions.push(0);
            }
        }
        slots
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use calm_kernels::Spans;

    /// Every choice of boundaries of eight tokens, with a second document from every place on, filler behind it or not.
    fn all(mut look: impl FnMut(&[bool], &[u32], &Slots, Pooling)) {
        let s = 8;
        for begins in 0..=s {
            for filler in [begins, s] {
                let document = |t: usize| {
                    if t < begins {
                        7
                    } else if t < filler {
                        3
                    } else {
                        FILLER
                    }
                };
                let segments: Vec<u32> = (0..s).map(document).collect();
                for bits in 0..1u32 << s {
                    let mut opens: Vec<bool> = (0..s).map(|t| bits >> t & 1 == 1).collect();
                    lawful(&mut opens, &starts(s, &segments), &segments);
                    for pooling in [Pooling::Boundary, Pooling::Closed] {
                        look(&opens, &segments, &Slots::new((1, s), &opens, &segments, pooling), pooling);
                    }
                }
            }
        }
    }

    #[test]
    fn no_token_sees_a_later_one_and_every_token_sees_a_slot_of_its_document() {
        all(|opens, segments, slots, _| {
            for t in 0..8 {
                let (first, end) = slots.seen[t];
                assert!(first < end && end as usize <= slots.each);
                assert_eq!(slots.last[t], end - 1);
                for slot in first as usize..end as usize {
                    let opened = slots.opened[slot] as usize;
                    assert!(opens[opened] && opened <= t && segments[opened] == segments[t]);
                    let (from, to) = slots.pool[slot];
                    assert!(from < to && to as usize - 1 <= opened, "{:?} at {opened}", slots.pool[slot]);
                    assert!((from..to).all(|u| segments[u as usize] == segments[t]));
                    assert_eq!(slots.documents[slot], segments[t]);
                    assert_eq!(slots.positions[slot], slot as u32 - first);
                }
                // All of them: the next one is opened later.
                if (end as usize) < slots.each && slots.documents[end as usize] == segments[t] {
                    assert!(slots.opened[end as usize] as usize > t || segments[t] == FILLER);
                }
            }
        });
    }

    #[test]
    fn what_they_hand_to_attention_are_spans() {
        all(|_, _, slots, _| {
            assert_eq!(slots.each, 16);
            Spans::new([1, 16, 8], slots.pool.clone()).unwrap();
            Spans::new([1, 8, 16], slots.seen.clone()).unwrap();
        });
    }

    #[test]
    fn closed_slots_hold_all_segments_of_a_document_but_the_last() {
        all(|opens, segments, slots, pooling| {
            let n = opens.iter().filter(|o| **o).count();
            for slot in 0..n {
                let opened = slots.opened[slot];
                let inner = slots.positions[slot] > 0;
                let want = match pooling {
                    Pooling::Closed if inner => (slots.opened[slot - 1], opened),
                    _ => (opened, opened + 1),
                };
                assert_eq!(slots.pool[slot], want, "{opens:?} {segments:?}");
            }
        });
    }

    #[test]
    fn rows_are_filled_with_slots_that_nobody_sees() {
        let opens = [[true; 20].as_slice(), &[true], &[false; 19]].concat();
        let slots = Slots::new((2, 20), &opens, &[0; 40], Pooling::Boundary);
        assert_eq!(slots.each, 32);
        assert_eq!(slots.opened.len(), 64);
        assert!(slots.seen[20..].iter().all(|span| *span == (0, 1)));
        assert!(slots.last[20..].iter().all(|slot| *slot == 32));
        assert!(slots.documents[33..].iter().all(|d| *d == FILLER));
        Spans::new([2, 32, 20], slots.pool).unwrap();
    }
}
