//! Pieces of a flat buffer that are complete while the backward pass still runs: what several processes exchange meanwhile.
//!
//! An operator adds to a parameter's gradient as often as the parameter is used. A pass notes what it wrote ([`Course`]); in a later
//! one of the same course a parameter is complete after the last of its writes, and a piece, some neighbouring parameters, when all
//! of its parameters are. Pieces are handed out in the order of the course, each when it and all before it are complete: processes
//! with the same course exchange the same in the same order, whatever their own pass does.

use crate::storage::error;
use candle_core::Result;
#[cfg(feature = "cuda")]
use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use std::fmt::{Debug, Formatter};
use std::ops::Range;
use std::sync::Arc;

/// What a backward pass writes, and in which order its pieces are complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Course {
    /// How many pieces were asked for; there may be fewer, of which [`order`](Self::order) has each.
    pub pieces: usize,
    /// Writes to the gradient of each parameter.
    pub writes: Vec<u32>,
    /// Pieces, the first that is complete first.
    pub order: Vec<usize>,
}

/// Gradients, wherever they are.
#[derive(Debug)]
pub enum Part<'a> {
    /// In the memory of the CPU: the piece.
    Host(&'a mut [f32]),
    /// On a GPU: the whole buffer, of which the piece is a range.
    #[cfg(feature = "cuda")]
    Device(&'a mut CudaSlice<f32>, Range<usize>),
}

/// Takes a piece that is complete: its elements in the buffer, and their values. What is written there counts as the pass's.
pub type HandOut = Box<dyn FnMut(Range<usize>, Part<'_>) -> Result<()> + Send>;

/// Parameters of each piece: as many pieces of about the same size as asked, or as there are parameters.
pub(crate) fn cut(ranges: &[Range<usize>], pieces: usize) -> Vec<Range<usize>> {
    let total = ranges.last().map_or(0, |range| range.end);
    let (mut found, mut from) = (Vec::new(), 0);
    for (i, range) in ranges.iter().enumerate() {
        // The end of the piece that this one is in, if all were of one size.
        let due = (total * (found.len() + 1)).div_ceil(pieces.max(1));
        if range.end >= due || i + 1 == ranges.len() {
            found.push(from..i + 1);
            from = i + 1;
        }
    }
    found
}

/// The course of a pass that wrote to parameters in this order, for pieces of these parameters.
pub(crate) fn course(written: &[usize], ranges: &[Range<usize>], asked: usize) -> Course {
    let (parameters, pieces) = (ranges.len(), cut(ranges, asked));
    let (mut writes, mut last) = (vec![0; parameters], vec![0; parameters]);
    for (moment, i) in written.iter().enumerate() {
        writes[*i] += 1;
        last[*i] = moment;
    }
    let end = |piece: &Range<usize>| last[piece.clone()].iter().max().copied();
    let mut order: Vec<usize> = (0..pieces.len()).collect();
    order.sort_by_key(|piece| (end(&pieces[*piece]), *piece));
    Course { pieces: asked, writes, order }
}

/// A pass whose pieces are handed out.
pub(crate) struct Handing {
    course: Arc<Course>,
    pieces: Vec<Range<usize>>,
    /// Writes so far.
    writes: Vec<u32>,
    /// Whether a piece has been handed out.
    handed: Vec<bool>,
    /// Place in the order of the piece that is next.
    next: usize,
    hand_out: HandOut,
}

impl Debug for Handing {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handing")
            .field("course", &self.course)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

impl Handing {
    /// Before the pass.
    ///
    /// # Errors
    /// A course of another buffer.
    pub(crate) fn new(course: Arc<Course>, pieces: Vec<Range<usize>>, hand_out: HandOut) -> Result<Self> {
        let parameters = pieces.last().map_or(0, |piece| piece.end);
        let mut order = course.order.clone();
        order.sort_unstable();
        if course.writes.len() != parameters || order != (0..pieces.len()).collect::<Vec<_>>() {
            let (of, here) = ((course.writes.len(), order), (parameters, pieces.len()));
            return Err(error(
                "backward",
                format_args!("a course of another buffer: of {of:?}, for {here:?}"),
            ));
        }
        let (writes, handed) = (vec![0; parameters], vec![false; pieces.len()]);
        Ok(Self { course, pieces, writes, handed, next: 0, hand_out })
    }

    /// Parameter `i` was written.
    ///
    /// # Errors
    /// Its piece is gone already.
    pub(crate) fn wrote(&mut self, i: usize) -> Result<()> {
        self.writes[i] += 1;
        let late = |(piece, handed): (&Range<usize>, &bool)| *handed && piece.contains(&i);
        if self.pieces.iter().zip(&self.handed).any(late) {
            return Err(error(
                "backward",
                "a gradient came after its piece had been exchanged: this pass uses a parameter more often than the one before; \
                 exchange after the pass (`overlap: false`)",
            ));
        }
        Ok(())
    }

    /// The parameters of the piece that is next, if it is complete, or the pass is over.
    pub(crate) fn next(&self, over: bool) -> Option<Range<usize>> {
        let piece = self.pieces[*self.course.order.get(self.next)?].clone();
        let complete = piece.clone().all(|i| self.writes[i] >= self.course.writes[i]);
        (over || complete).then_some(piece)
    }

    /// Hands out the piece that is next.
    ///
    /// # Errors
    /// Of whoever takes it.
    pub(crate) fn hand_out(&mut self, elements: Range<usize>, part: Part<'_>) -> Result<()> {
        self.handed[self.course.order[self.next]] = true;
        self.next += 1;
        (self.hand_out)(elements, part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_of_about_one_size_and_hold_every_parameter() {
        let ranges = [0..10, 10..12, 12..14, 14..40, 40..41];
        assert_eq!(cut(&ranges, 4), [0..2, 2..4, 4..5]);
        assert_eq!(cut(&ranges, 1), std::slice::from_ref(&(0..5)));
        assert_eq!(cut(&ranges, 100).len(), 5);
        assert!(cut(&[], 4).is_empty());
        for pieces in 1..9 {
            let all: Vec<usize> = cut(&ranges, pieces).into_iter().flatten().collect();
            assert_eq!(all, [0, 1, 2, 3, 4], "{pieces}");
        }
    }

    #[test]
    fn the_piece_that_is_written_last_is_last() {
        let ranges = [0..5, 5..10, 10..20, 20..30];
        let found = course(&[3, 1, 2, 0, 2], &ranges, 3);
        assert_eq!(found, Course { pieces: 3, writes: vec![1, 1, 2, 1], order: vec![2, 0, 1] });
    }

    #[test]
    fn a_course_of_fewer_pieces_than_were_asked_for_fits_its_buffer() {
        // A large parameter: cut for as many pieces as there are, there would be fewer still.
        let ranges = [0..40, 40..70, 70..71, 71..72, 72..100];
        let found = course(&[0, 1, 2, 3, 4], &ranges, 5);
        let (there, again) = (cut(&ranges, 5).len(), cut(&ranges, found.order.len()).len());
        assert!(there < 5 && again < there, "{there}, {again}");
        let pieces = cut(&ranges, found.pieces);
        Handing::new(Arc::new(found), pieces, Box::new(|_, _| Ok(()))).unwrap();
    }
}
