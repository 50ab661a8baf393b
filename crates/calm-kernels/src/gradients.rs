//! Where the backward pass leaves the gradients of parameters.
//!
//! By itself candle's backward pass makes zeros for every gradient and adds the first contribution to
//! them, on one thread. For parameters, whose gradients are as large as the model, operators instead
//! write into one flat buffer while [`FlatGradients::collect`] runs: the matrix product of a weight's
//! gradient adds to it in place. Without a buffer, or for tensors that are no parameters of it, gradients
//! take candle's way.

use crate::simd::{Real, rows_per_block};
use crate::storage::{error, tensor, to_vec};
#[cfg(feature = "cuda")]
use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{DType, Result, Tensor, TensorId};
use rayon::prelude::*;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;

thread_local! {
    /// The buffer of the backward pass that runs on this thread.
    static ACTIVE: RefCell<Option<FlatGradients>> = const { RefCell::new(None) };
}

/// Gradients of a list of `f32` parameters, one after the other, on the device of the parameters.
#[derive(Debug, Default)]
pub struct FlatGradients {
    places: HashMap<TensorId, usize>,
    ranges: Vec<Range<usize>>,
    /// Whether a gradient has come since the last [`clear`](Self::clear); what stands elsewhere is old.
    written: Vec<bool>,
    /// Whether one has come since the last backward pass began.
    reached: Vec<bool>,
    values: Values,
}

#[derive(Debug)]
enum Values {
    Host(Vec<f32>),
    #[cfg(feature = "cuda")]
    Device(crate::cuda::gradients::Buffer),
}

impl Default for Values {
    fn default() -> Self {
        Self::Host(Vec::new())
    }
}

impl FlatGradients {
    /// A buffer for `parameters`, in this order.
    ///
    /// # Errors
    /// Parameters on a GPU that has no memory left for it.
    pub fn new<'a>(parameters: impl IntoIterator<Item = &'a Tensor>) -> Result<Self> {
        let mut flat = Self::default();
        let mut end = 0;
        let mut first = None;
        for (i, parameter) in parameters.into_iter().enumerate() {
            flat.places.insert(parameter.id(), i);
            let start = end;
            end += parameter.elem_count();
            flat.ranges.push(start..end);
            first.get_or_insert(parameter);
        }
        flat.written = vec![false; flat.ranges.len()];
        flat.reached = flat.written.clone();
        flat.values = match first {
            #[cfg(feature = "cuda")]
            Some(parameter) if parameter.device().is_cuda() => {
                let ids = flat.places.keys().copied().collect();
                Values::Device(crate::cuda::gradients::Buffer::new(parameter, end, ids)?)
            }
            _ => Values::Host(vec![0.0; end]),
        };
        Ok(flat)
    }

    /// Forgets all gradients: the next contribution to each replaces it.
    pub fn clear(&mut self) {
        self.written.fill(false);
    }

    /// Whether the last backward pass gave parameter `i` a gradient.
    pub fn reached(&self, i: usize) -> bool {
        self.reached[i]
    }

    /// A copy of the gradient of parameter `i`; None since the last [`clear`](Self::clear) if none has come.
    ///
    /// # Errors
    /// What a GPU answers; on one this waits for it.
    pub fn get(&self, i: usize) -> Result<Option<Vec<f32>>> {
        if !self.written[i] {
            return Ok(None);
        }
        match &self.values {
            Values::Host(values) => Ok(Some(values[self.ranges[i].clone()].to_vec())),
            #[cfg(feature = "cuda")]
            Values::Device(buffer) => buffer.read(self.ranges[i].clone()).map(Some),
        }
    }

    /// All gradients, one after the other; 0 where none has come.
    ///
    /// # Errors
    /// Parameters that are not on the CPU.
    pub fn host_values(&mut self) -> Result<&[f32]> {
        #[allow(clippy::infallible_destructuring_match, reason = "with the feature `cuda` it can fail")]
        let values = match &mut self.values {
            Values::Host(values) => values,
            #[cfg(feature = "cuda")]
            Values::Device(_) => {
                return Err(error("gradients", "are on a GPU, not in the memory of the CPU"));
            }
        };
        for (written, range) in self.written.iter_mut().zip(&self.ranges) {
            if !std::mem::replace(written, true) {
                values[range.clone()].fill(0.0);
            }
        }
        Ok(values)
    }

    /// Whether the parameters are on a GPU.
    #[cfg(feature = "cuda")]
    pub(crate) fn on_gpu(&self) -> bool {
        matches!(self.values, Values::Device(_))
    }

    /// The GPU, and where it leaves the norm.
    #[cfg(feature = "cuda")]
    pub(crate) fn device_factor(&self) -> Result<(crate::cuda::Gpu, crate::cuda::adamw::DeviceFactor)> {
        match &self.values {
            Values::Device(buffer) => Ok(buffer.factor()),
            Values::Host(_) => Err(error("gradients", "are in the memory of the CPU, not on a GPU")),
        }
    }

    /// As [`Self::host_values`], on the GPU.
    #[cfg(feature = "cuda")]
    pub(crate) fn device_values(&mut self) -> Result<&CudaSlice<f32>> {
        let Values::Device(buffer) = &mut self.values else {
            return Err(error("gradients", "are in the memory of the CPU, not on a GPU"));
        };
        for (written, range) in self.written.iter_mut().zip(&self.ranges) {
            if !std::mem::replace(written, true) {
                buffer.clear(range.clone())?;
            }
        }
        Ok(buffer.values())
    }

    /// Adds to the gradient of parameter `i` one that candle computed.
    ///
    /// # Errors
    /// Another number of elements.
    pub fn add(&mut self, i: usize, gradient: &Tensor) -> Result<()> {
        let range = self.ranges[i].clone();
        if gradient.elem_count() != range.len() {
            return Err(error(
                "backward",
                format_args!("a gradient {:?} of the wrong size", gradient.dims()),
            ));
        }
        let accumulate = self.mark(i);
        match &mut self.values {
            Values::Host(values) => {
                let gradient = to_vec::<f32>("backward", &gradient.to_dtype(DType::F32)?)?;
                put(&mut values[range], &gradient, accumulate);
                Ok(())
            }
            #[cfg(feature = "cuda")]
            Values::Device(buffer) => buffer.put(range, gradient, accumulate),
        }
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

    /// Notes that a gradient of parameter `i` comes: whether it is to be added to what is there.
    fn mark(&mut self, i: usize) -> bool {
        self.reached[i] = true;
        std::mem::replace(&mut self.written[i], true)
    }

    /// Where the gradient of the parameter with this id goes in the memory of the CPU, and whether it is to be
    /// added; None for a tensor that is no parameter, or on another device.
    fn host_place(&mut self, id: TensorId) -> Option<(&mut [f32], bool)> {
        let &i = self.places.get(&id)?;
        if !matches!(self.values, Values::Host(_)) {
            return None;
        }
        let accumulate = self.mark(i);
        match &mut self.values {
            Values::Host(values) => Some((&mut values[self.ranges[i].clone()], accumulate)),
            #[cfg(feature = "cuda")]
            Values::Device(_) => None,
        }
    }

    /// As [`Self::host_place`], on the GPU: the buffer and the range in it.
    #[cfg(feature = "cuda")]
    pub(crate) fn device_place(&mut self, id: TensorId) -> Option<(&mut CudaSlice<f32>, Range<usize>, bool)> {
        let &i = self.places.get(&id)?;
        if !matches!(self.values, Values::Device(_)) {
            return None;
        }
        let accumulate = self.mark(i);
        match &mut self.values {
            Values::Device(buffer) => Some((buffer.values_mut(), self.ranges[i].clone(), accumulate)),
            Values::Host(_) => None,
        }
    }
}

/// Calls `f` with the buffer of the backward pass that runs on this thread, if there is one.
#[cfg(feature = "cuda")]
pub(crate) fn with_active<R>(f: impl FnOnce(Option<&mut FlatGradients>) -> R) -> R {
    ACTIVE.with_borrow_mut(|active| f(active.as_mut()))
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
        let Some((values, accumulate)) = flat.host_place(input.id()) else { return Some(write) };
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
        let mut flat = FlatGradients::new([unused.as_tensor(), w.as_tensor()]).unwrap();
        for round in 1..3 {
            let grads = flat.collect(|| loss().backward()).unwrap();
            // The input is no parameter of the buffer.
            assert!(grads.get(&w).is_none() && grads.get(&x).is_some());
            let scaled: Vec<f32> = want.iter().map(|g| g * round as f32).collect();
            assert_eq!(flat.get(1).unwrap().as_ref(), Some(&scaled));
            assert!(flat.reached(1) && !flat.reached(0));
        }
        flat.clear();
        assert_eq!(flat.get(1).unwrap(), None);
        let ones = Tensor::ones((2, 2), DType::F32, &Device::Cpu).unwrap();
        flat.add(1, &ones).unwrap();
        flat.add(1, &ones).unwrap();
        assert_eq!(flat.get(1).unwrap(), Some(vec![2.0; 4]));
        assert!(flat.add(0, &ones).is_err());
        assert_eq!(flat.host_values().unwrap(), [0.0, 2.0, 2.0, 2.0, 2.0]);
        // What no pass has reached since is 0, not what was there before.
        flat.clear();
        assert_eq!(flat.host_values().unwrap(), [0.0; 5]);
    }

    #[test]
    fn gradients_in_double_precision_take_candles_way() {
        let w = Var::from_slice(&[2.0f64], (1, 1), &Device::Cpu).unwrap();
        let mut flat = FlatGradients::new([w.as_tensor()]).unwrap();
        let loss = linear(&w, &w, None).unwrap().sum_all().unwrap();
        let grads = flat.collect(|| loss.backward()).unwrap();
        assert_eq!(grads.get(&w).unwrap().to_vec2::<f64>().unwrap(), [[4.0]]);
        assert!(!flat.reached(0) && flat.get(0).unwrap().is_none());
    }

    #[test]
    fn the_buffer_comes_back_from_a_pass_that_panics() {
        let w = var(&[1.0], (1, 1));
        let mut flat = FlatGradients::new([w.as_tensor()]).unwrap();
        flat.add(0, &Tensor::new(&[3f32], &Device::Cpu).unwrap()).unwrap();
        let pass = std::panic::AssertUnwindSafe(|| flat.collect(|| panic!("in the middle")));
        assert!(std::panic::catch_unwind(pass).is_err());
        assert_eq!(flat.get(0).unwrap(), Some(vec![3.0]));
        assert!(ACTIVE.with_borrow(Option::is_none));
    }
}
