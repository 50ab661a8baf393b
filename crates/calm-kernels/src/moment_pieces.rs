//! Parameters cut by the part of all elements whose moments are here: one list of [`crate::Moments`] and of its twin on a GPU.

use crate::adamw::Treatment;
use candle_core::Tensor;
use std::ops::Range;

/// A parameter, as far as it is of a part.
pub(crate) struct Piece<'a> {
    pub(crate) parameter: &'a Tensor,
    pub(crate) treatment: Treatment,
    /// Where it begins in the parameter.
    pub(crate) from: usize,
    /// In the list of all elements.
    pub(crate) elements: Range<usize>,
}

/// The pieces of a part, in order.
pub(crate) fn pieces<'a>(
    parameters: &'a [(Tensor, Treatment)],
    ranges: &'a [Range<usize>],
    part: &Range<usize>,
) -> impl Iterator<Item = Piece<'a>> + use<'a> {
    let part = part.clone();
    parameters.iter().zip(ranges).filter_map(move |((parameter, treatment), range)| {
        let elements = common(range, &part)?;
        Some(Piece { parameter, treatment: *treatment, from: elements.start - range.start, elements })
    })
}

/// What two ranges have in common; None if nothing.
pub(crate) fn common(a: &Range<usize>, b: &Range<usize>) -> Option<Range<usize>> {
    let both = a.start.max(b.start)..a.end.min(b.end);
    (both.start < both.end).then_some(both)
}
