//! Where the backward pass leaves the gradients of parameters.
//!
//! By itself candle's backward pass makes zeros for every gradient and adds the first contribution to
//! them, on one thread. For parameters, whose gradients are as large as the model, operators instead
//! write into one flat buffer while [`FlatGradients::collect`] runs: the matrix product of a weight's
//! gradient adds to it in place. Without a buffer, or for tensors that are no parameters of it, gradients
//! take candle's way.

use crate::simd::{Real, rows_per_block};
use crate::storage::tensor;
use candle_core::{DType, Result, Tensor, TensorId};
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
    /// Whether one has come since the last backward pass began.
    reached: Vec<bool>,
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
        flat.reached = flat.written.clone();
        flat.values = vec![0.0; end];
        flat
    }

    /// Forgets all gradients: the next contribution to each replaces it.
    pub fn clear(&mut self) {
        self.written.fill(false);
    }

    /// Whether the last backward pass gave parameter `i` a gradient.
    pub fn reached(&self, i: usize) -> bool {
        self.reached[i]
    }

    /// The gradient of parameter `i`; None since the last [`clear`](Self::clear) if none has come.
    pub fn get(&self, i: usize) -> Option<&[f32]> {
        self.written[i].then(|| &self.values[self.ranges[i].clone()])
    }

    /// All gradients, one after the other; 0 where none has come.
    pub fn values(&mut self) -> &[f32] {
        for (written, range) in self.written.iter_mut().zip(&self.ranges) {
            if !std::mem::replace(written, true) {
                self.values[range.clone()].fill(0.0);
            }
        }
        &self.values
    }

    /// Adds to the gradient of parameter `i`.
    ///
    /// # Panics
    /// If the length differs.
    pub fn add(&mut self, i: usize, gradient: &[f32]) {
        let (values, accumulate) = self.place(i);
        put(values, gradient, accumulate);
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
        self.reached.fill(false);
        let before = ACTIVE.replace(Some(std::mem::take(self)));
        let _guard = Guard(self, before);
        backward()
    }

    /// Where the gradient of parameter `i` goes, and whether it is to be added.
    fn place(&mut self, i: usize) -> (&mut [f32], bool) {
        self.reached[i] = true;
        let accumulate = std::mem::replace(&mut self.written[i], true);
        (&mut self.values[self.ranges[i].clone()], accumulate)
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
        let Some(flat) = active.as_mut().filter(|_| T::DTYPE == DType::F32) else { return Some(write) };
        let Some(&i) = flat.places.get(&input.id()) else { return Some(write) };
        let (values, accumulate) = flat.place(i);
        if let Some(values) = T::from_f32s(values) {
            write(values, accumulate);
        }
        None
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
            assert_eq!(flat.get(1), Some(&scaled[..]));
            assert!(flat.reached(1) && !flat.reached(0));
        }
        flat.clear();
        assert_eq!(flat.get(1), None);
        flat.add(1, &[1.0; 4]);
        flat.add(1, &[1.0; 4]);
        assert_eq!(flat.get(1), Some(&[2.0; 4][..]));
        assert_eq!(flat.values(), [0.0, 2.0, 2.0, 2.0, 2.0]);
        // What no pass has reached since is 0, not what was there before.
        flat.clear();
        assert_eq!(flat.values(), [0.0; 5]);
    }

    #[test]
    fn gradients_in_double_precision_take_candles_way() {
        let w = Var::from_slice(&[2.0f64], (1, 1), &Device::Cpu).unwrap();
        let mut flat = FlatGradients::new([w.as_tensor()]);
        let loss = linear(&w, &w, None).unwrap().sum_all().unwrap();
        let grads = flat.collect(|| loss.backward()).unwrap();
        assert_eq!(grads.get(&w).unwrap().to_vec2::<f64>().unwrap(), [[4.0]]);
        assert!(!flat.reached(0) && flat.get(0).is_none());
    }

    #[test]
    fn the_buffer_comes_back_from_a_pass_that_panics() {
        let w = var(&[1.0], (1, 1));
        let mut flat = FlatGradients::new([w.as_tensor()]);
        flat.add(0, &[3.0]);
        let pass = std::panic::AssertUnwindSafe(|| flat.collect(|| panic!("in the middle")));
        assert!(std::panic::catch_unwind(pass).is_err());
        assert_eq!(flat.get(0), Some(&[3.0][..]));
        assert!(ACTIVE.with_borrow(Option::is_none));
    }
}
