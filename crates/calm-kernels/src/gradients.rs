//! Where the backward pass leaves the gradients of parameters.
//!
//! By itself candle's backward pass makes zeros for every gradient and adds the first contribution to
//! them, on one thread. For parameters, whose gradients are as large as the model, operators instead
//! write into one flat buffer while [`FlatGradients::collect`] runs: the matrix product of a weight's
//! gradient adds to it in place. Without a buffer, or for tensors that are no parameters of it, gradients
//! take candle's way.

use crate::simd::{Real, rows_per_block};
use crate::storage::tensor;
use candle_core::{Result, Tensor, TensorId};
use rayon::prelude::*;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;

thread_local! {
    /// The buffer of the backward pass that runs on this thread.
    static ACTIVE: RefCell<Option<FlatGradients>> = const { RefCell::new(None) };
}

/// Gradients of a list of `f32` parameters, one after the other.
#[derive(Debug, Default)]
pub struct FlatGradients {
    places: HashMap<TensorId, usize>,
    ranges: Vec<Range<usize>>,
    /// Whether a gradient has come since the last [`clear`](Self::clear); what stands elsewhere is old.
    written: Vec<bool>,
    values: Vec<f32>,
}

impl FlatGradients {
    /// A buffer for `parameters`, in this order.
    pub fn new<'a>(parameters: impl IntoIterator<Item = &'a Tensor>) -> Self {
        let mut flat = Self::default();
        let mut end = 0;
        for (i, parameter) in parameters.into_iter().enumerate() {
            flat.places.insert(parameter.id(), i);
            let start = end;
            end += parameter.elem_count();
            flat.ranges.push(start..end);
        }
        flat.written = vec![false; flat.ranges.len()];
        flat.values = vec![0.0; end];
        flat
    }

    /// Forgets all gradients: the next contribution to each replaces it.
    pub fn clear(&mut self) {
        self.written.fill(false);
    }

    /// Whether parameter `i` has a gradient.
    pub fn has(&self, i: usize) -> bool {
        self.written[i]
    }

    /// The gradient of parameter `i`; meaningless unless it [`has`](Self::has) one.
    pub fn get(&self, i: usize) -> &[f32] {
        &self.values[self.ranges[i].clone()]
    }

    /// All gradients, one after the other; meaningful where each parameter has one.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Adds to the gradient of parameter `i`.
    ///
    /// # Panics
    /// If the length differs.
    pub fn add(&mut self, i: usize, gradient: &[f32]) {
        let accumulate = std::mem::replace(&mut self.written[i], true);
        put(&mut self.values[self.ranges[i].clone()], gradient, accumulate);
    }

    /// Runs a backward pass on this thread whose operators leave the gradients of these parameters here.
    pub fn collect<R>(&mut self, backward: impl FnOnce() -> R) -> R {
        /// Takes the buffer back, also when the pass panics.
        struct Guard<'a>(&'a mut FlatGradients, Option<FlatGradients>);
        impl Drop for Guard<'_> {
            fn drop(&mut self) {
                if let Some(flat) = ACTIVE.replace(self.1.take()) {
                    *self.0 = flat;
                }
            }
        }
        let before = ACTIVE.replace(Some(std::mem::take(self)));
        let _guard = Guard(self, before);
        backward()
    }

    fn place(&mut self, parameter: &Tensor) -> Option<(&mut [f32], bool)> {
        let i = *self.places.get(&parameter.id())?;
        let accumulate = std::mem::replace(&mut self.written[i], true);
        Some((&mut self.values[self.ranges[i].clone()], accumulate))
    }
}

/// The gradient of an operator's `input`, computed by `write(destination, accumulate)`: into the flat
/// buffer (then None), else as a tensor. None as well, and nothing computed, for an input without gradient.
pub(crate) fn gradient_of<T: Real>(
    input: &Tensor,
    write: impl FnOnce(&mut [T], bool),
) -> Result<Option<Tensor>> {
    if !input.track_op() {
        return Ok(None);
    }
    let write = ACTIVE.with_borrow_mut(|active| {
        let place = active.as_mut().and_then(|flat| flat.place(input));
        match place.and_then(|(values, accumulate)| Some((T::from_f32s(values)?, accumulate))) {
            Some((values, accumulate)) => {
                write(values, accumulate);
                None
            }
            None => Some(write),
        }
    });
    let Some(write) = write else { return Ok(None) };
    let mut fresh = vec![T::ZERO; input.elem_count()];
    write(&mut fresh, false);
    tensor(fresh, input.shape()).map(Some)
}

/// dst = src, or dst += src.
///
/// # Panics
/// If the lengths differ.
pub(crate) fn put<T: Real>(dst: &mut [T], src: &[T], accumulate: bool) {
    assert_eq!(dst.len(), src.len(), "a gradient of the wrong length");
    let block = rows_per_block(1);
    dst.par_chunks_mut(block).zip(src.par_chunks(block)).for_each(|(dst, src)| {
        if accumulate {
            dst.iter_mut().zip(src).for_each(|(d, &s)| *d += s);
        } else {
            dst.copy_from_slice(src);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linear;
    use candle_core::{Device, Var};

    fn var(values: &[f32], shape: (usize, usize)) -> Var {
        Var::from_slice(values, shape, &Device::Cpu).unwrap()
    }

    #[test]
    fn collected_gradients_are_those_of_candle_and_add_up() {
        let (w, unused) = (var(&[1., 2., 3., 4.], (2, 2)), var(&[0.5], (1, 1)));
        let x = var(&[1., -1., 2., 0.], (2, 2));
        let loss = || linear(&x, &w, None).unwrap().sqr().unwrap().sum_all().unwrap();
        let grads = loss().backward().unwrap();
        let want: Vec<f32> = grads.get(&w).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let mut flat = FlatGradients::new([unused.as_tensor(), w.as_tensor()]);
        for round in 1..3 {
            let grads = flat.collect(|| loss().backward()).unwrap();
            // The input is no parameter of the buffer.
            assert!(grads.get(&w).is_none() && grads.get(&x).is_some());
            let scaled: Vec<f32> = want.iter().map(|g| g * round as f32).collect();
            assert_eq!(flat.get(1), scaled);
            assert!(flat.has(1) && !flat.has(0));
        }
        flat.clear();
        assert!(!flat.has(1));
        flat.add(1, &[1.0; 4]);
        flat.add(1, &[1.0; 4]);
        assert_eq!(flat.get(1), [2.0; 4]);
        assert_eq!(flat.values().len(), 5);
    }

    #[test]
    fn the_buffer_comes_back_from_a_pass_that_panics() {
        let w = var(&[1.0], (1, 1));
        let mut flat = FlatGradients::new([w.as_tensor()]);
        flat.add(0, &[3.0]);
        let pass = std::panic::AssertUnwindSafe(|| flat.collect(|| panic!("in the middle")));
        assert!(std::panic::catch_unwind(pass).is_err());
        assert_eq!(flat.get(0), [3.0]);
        assert!(ACTIVE.with_borrow(Option::is_none));
    }
}
