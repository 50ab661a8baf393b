//! Where the backward pass leaves the gradients of parameters.
//!
//! By itself candle's backward pass makes zeros for every gradient and adds the first contribution to
//! them, on one thread. For parameters, whose gradients are as large as the model, operators instead
//! write into one flat buffer while [`FlatGradients::collect`] runs: the matrix product of a weight's
//! gradient adds to it in place. Without a buffer, or for tensors that are no parameters of it, gradients
//! take candle's way. The rule on both devices stands in [`crate::context`].

use crate::buffer::Buffer;
use crate::collector::{Collector, Home};
use crate::context::Context;
use crate::pieces::{Course, HandOut, Handing, Part};
use crate::simd::Real;
use crate::storage::{error, tensor};
#[cfg(feature = "cuda")]
use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{DType, Result, Tensor, TensorId};
use std::sync::Arc;

/// Gradients of a list of `f32` parameters of one context, one after the other, on the device of the parameters.
/// As long as it lives, a backward pass that reaches them must run through it (or another buffer of theirs).
#[derive(Debug)]
pub struct FlatGradients {
    collector: Arc<Collector>,
    collected: Vec<TensorId>,
    buffer: Buffer,
}

impl FlatGradients {
    /// A buffer for `parameters` of `context`, in this order.
    ///
    /// # Errors
    /// A GPU that has no memory left for it.
    pub fn new<'a>(context: &Context, parameters: impl IntoIterator<Item = &'a Tensor>) -> Result<Self> {
        let (buffer, collected) = Buffer::new(context, parameters)?;
        let collector = Collector::of(context);
        collector.add(&collected);
        Ok(Self { collector, collected, buffer })
    }

    /// Forgets all gradients: the next contribution to each replaces it.
    pub fn clear(&mut self) {
        self.buffer.clear();
    }

    /// Whether the last backward pass gave parameter `i` a gradient.
    pub fn reached(&self, i: usize) -> bool {
        self.buffer.reached(i)
    }

    /// A copy of the gradient of parameter `i`; None since the last [`clear`](Self::clear) if none has come.
    ///
    /// # Errors
    /// What a GPU answers; on one this waits for it.
    pub fn get(&self, i: usize) -> Result<Option<Vec<f32>>> {
        self.buffer.get(i)
    }

    /// All gradients, one after the other; 0 where none has come. What is written there counts as if it had come from a
    /// backward pass: sums over processes.
    ///
    /// # Errors
    /// Parameters that are not on the CPU.
    pub fn host_values(&mut self) -> Result<&mut [f32]> {
        self.buffer.host_values()
    }

    /// A copy of all gradients, one after the other; 0 where none has come.
    ///
    /// # Errors
    /// What a GPU answers; on one this waits for it.
    pub fn copy(&mut self) -> Result<Vec<f32>> {
        self.buffer.copy()
    }

    /// Puts other values in the place of all gradients, which count as if they had come from a backward pass: sums over processes.
    ///
    /// # Errors
    /// Another number of values; what a GPU answers, for which this waits.
    pub fn replace(&mut self, by: &[f32]) -> Result<()> {
        self.buffer.replace(by)
    }

    /// As [`Self::host_values`], wherever they are.
    ///
    /// # Errors
    /// What a GPU answers.
    pub fn whole(&mut self) -> Result<Part<'_>> {
        self.buffer.whole()
    }

    /// Whether the parameters are on a GPU.
    #[cfg(feature = "cuda")]
    pub(crate) fn on_gpu(&self) -> bool {
        self.buffer.on_gpu()
    }

    /// The GPU, and where it leaves the norm.
    #[cfg(feature = "cuda")]
    pub(crate) fn device_factor(&self) -> Result<(crate::cuda::Gpu, crate::cuda::clip::DeviceFactor)> {
        self.buffer.device_factor()
    }

    /// As [`Self::host_values`], on the GPU.
    ///
    /// # Errors
    /// Parameters that are on the CPU; what the GPU answers.
    #[cfg(feature = "cuda")]
    pub fn device_values(&mut self) -> Result<&mut CudaSlice<f32>> {
        self.buffer.device_values()
    }

    /// Adds to the gradient of parameter `i` one that candle computed.
    ///
    /// # Errors
    /// Another number of elements.
    pub fn add(&mut self, i: usize, gradient: &Tensor) -> Result<()> {
        self.buffer.add(i, gradient)
    }

    /// The course of the last pass, and what was added after it, in so many pieces.
    pub fn course(&self, pieces: usize) -> Course {
        self.buffer.course(pieces)
    }

    /// From here to [`hand_out_rest`](Self::hand_out_rest) pieces of the gradients are handed out as soon as they are complete, if
    /// the pass has this course.
    ///
    /// # Errors
    /// A course of another buffer.
    pub fn hand_out(&mut self, course: &Arc<Course>, hand_out: HandOut) -> Result<()> {
        let pieces = self.buffer.cut(course.pieces);
        self.buffer.hand(Some(Handing::new(Arc::clone(course), pieces, hand_out)?));
        Ok(())
    }

    /// Hands out what is left, complete or not: nothing more comes.
    ///
    /// # Errors
    /// Of whoever takes it.
    pub fn hand_out_rest(&mut self) -> Result<()> {
        let done = self.buffer.hand_out(true);
        self.keep();
        done
    }

    /// Hands out no more.
    pub fn keep(&mut self) {
        self.buffer.hand(None);
    }

    /// Runs a backward pass on this thread whose operators leave the gradients of these parameters here.
    ///
    /// # Errors
    /// Those of `backward`; a pass through a buffer of the same context that runs already.
    pub fn collect<R>(&mut self, backward: impl FnOnce() -> Result<R>) -> Result<R> {
        /// Takes the buffer back, also when the pass panics.
        struct Guard<'a>(&'a mut FlatGradients);
        impl Drop for Guard<'_> {
            fn drop(&mut self) {
                if let Some(buffer) = self.0.collector.end() {
                    self.0.buffer = buffer;
                }
            }
        }
        self.collector.begin(&mut self.buffer)?;
        let _guard = Guard(self);
        backward()
    }
}

impl Drop for FlatGradients {
    fn drop(&mut self) {
        self.collector.remove(&self.collected);
    }
}

/// The gradient of an operator's `input`, computed by `write(destination, accumulate)`: into the flat
/// buffer that collects it (then None), else as a tensor. None as well, and nothing computed, for an input without
/// gradient.
pub(crate) fn gradient_of<T: Real>(
    home: Option<&Home>,
    input: &Tensor,
    write: impl FnOnce(&mut [T], bool),
) -> Result<Option<Tensor>> {
    if !input.track_op() {
        return Ok(None);
    }
    let mut write = Some(write);
    if let Some(home) = home.filter(|_| T::DTYPE == DType::F32) {
        let collected = home.collector.write(input, |buffer, i| {
            let (values, accumulate) = buffer.host_place(i)?;
            if let (Some(values), Some(write)) = (T::from_f32s(values), write.take()) {
                write(values, accumulate);
            }
            Ok(())
        })?;
        if !collected && home.collected.contains(&input.id()) {
            return Err(bucket_gone());
        }
    }
    let Some(write) = write else { return Ok(None) };
    let mut fresh = vec![T::ZERO; input.elem_count()];
    write(&mut fresh, false);
    tensor(fresh, input.shape()).map(Some)
}

/// What a backward pass answers that needs the bucket of its forward pass.
pub(crate) fn bucket_gone() -> candle_core::Error {
    error(
        "backward",
        "the bucket that collected a parameter's gradient when the loss was computed is gone; keep it for the \
         backward pass",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Parameter, linear};
    use candle_core::{Device, Var};

    fn var(values: &[f32], shape: (usize, usize)) -> Var {
        Var::from_slice(values, shape, &Device::Cpu).unwrap()
    }

    fn parameter(context: &Context, values: &[f32], shape: (usize, usize)) -> Parameter {
        context.parameter(var(values, shape).into_inner()).unwrap()
    }

    fn numbers(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn collected_gradients_are_those_of_candle_and_add_up() {
        let context = Context::new(&Device::Cpu);
        let (w, unused) =
            (parameter(&context, &[1., 2., 3., 4.], (2, 2)), parameter(&context, &[0.5], (1, 1)));
        let x = var(&[1., -1., 2., 0.], (2, 2));
        let loss = || linear(&x, &w, None).unwrap().sqr().unwrap().sum_all().unwrap();
        let want = numbers(loss().backward().unwrap().get(&w).unwrap());
        let mut flat = FlatGradients::new(&context, [&*unused, &*w]).unwrap();
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
    fn pieces_are_handed_out_as_soon_as_nothing_more_comes() {
        let context = Context::new(&Device::Cpu);
        let [a, b, unused] = [2.0, 3.0, 4.0].map(|x| parameter(&context, &[x], (1, 1)));
        let x = var(&[1.0], (1, 1));
        // b is used twice, a once and before it: its gradient comes last.
        let loss = || {
            let y = linear(&linear(&x, &a, None).unwrap(), &b, None).unwrap();
            linear(&y, &b, None).unwrap().sum_all().unwrap()
        };
        let mut flat = FlatGradients::new(&context, [&*a, &*b, &*unused]).unwrap();
        flat.collect(|| loss().backward()).unwrap();
        let course = Arc::new(flat.course(3));
        assert_eq!(course.writes, [1, 2, 0]);
        assert_eq!(course.order, [2, 1, 0], "what is never written waits for nobody");
        let want: Vec<_> = (0..2).map(|i| flat.get(i).unwrap().unwrap()[0]).collect();
        let handed = Arc::new(std::sync::Mutex::new(Vec::new()));
        let take = |handed: &Arc<std::sync::Mutex<Vec<_>>>| -> HandOut {
            let handed = Arc::clone(handed);
            Box::new(move |range, part| match part {
                Part::Host(values) => {
                    handed.lock().unwrap().push((range, values.to_vec()));
                    values.fill(0.5);
                    Ok(())
                }
                #[cfg(feature = "cuda")]
                Part::Device(..) => Err(error("test", "is on the CPU")),
            })
        };
        // In the order of the course, though the pass completes them in another.
        let course = Arc::new(Course { order: vec![1, 0, 2], ..(*course).clone() });
        flat.clear();
        flat.hand_out(&course, take(&handed)).unwrap();
        flat.collect(|| loss().backward()).unwrap();
        let all = [(1..2, vec![want[1]]), (0..1, vec![want[0]]), (2..3, vec![0.0])];
        assert_eq!(handed.lock().unwrap().as_slice(), all);
        flat.hand_out_rest().unwrap();
        assert_eq!(handed.lock().unwrap().len(), 3);
        assert_eq!(flat.host_values().unwrap(), [0.5; 3], "what was put there stays");
        // A parameter that is used more often than in the course.
        let course = Arc::new(Course { pieces: 3, writes: vec![1, 1, 0], order: vec![1, 0, 2] });
        flat.hand_out(&course, take(&handed)).unwrap();
        let e = flat.collect(|| loss().backward()).unwrap_err();
        assert!(e.to_string().contains("overlap: false"), "{e}");
        flat.keep();
        flat.collect(|| loss().backward()).unwrap();
        let other = Arc::new(Course { pieces: 1, writes: vec![1], order: vec![0] });
        assert!(flat.hand_out(&other, take(&handed)).is_err());
    }

    #[test]
    fn gradients_in_double_precision_take_candles_way() {
        let context = Context::new(&Device::Cpu);
        let w = Var::from_slice(&[2.0f64], (1, 1), &Device::Cpu).unwrap();
        let w = context.parameter(w.into_inner()).unwrap();
        let mut flat = FlatGradients::new(&context, [&*w]).unwrap();
        let loss = linear(&w, &w, None).unwrap().sum_all().unwrap();
        for grads in [loss.backward(), flat.collect(|| loss.backward())] {
            assert_eq!(grads.unwrap().get(&w).unwrap().to_vec2::<f64>().unwrap(), [[4.0]]);
        }
        assert!(!flat.reached(0) && flat.get(0).unwrap().is_none());
    }

    #[test]
    fn a_plain_tensor_takes_candles_way_though_a_buffer_holds_the_same_tensor() {
        let context = Context::new(&Device::Cpu);
        let w = var(&[3.0], (1, 1));
        let mut flat = FlatGradients::new(&context, [w.as_tensor()]).unwrap();
        let loss = linear(&w, &w, None).unwrap().sum_all().unwrap();
        let grads = flat.collect(|| loss.backward()).unwrap();
        assert_eq!(numbers(grads.get(&w).unwrap()), [6.0]);
    }

    #[test]
    fn one_pass_at_a_time_runs_through_the_buffers_of_a_context() {
        let context = Context::new(&Device::Cpu);
        let (x, w) = (var(&[2.0], (1, 1)), parameter(&context, &[1.0], (1, 1)));
        let loss = || linear(&x, &w, None).unwrap().sum_all().unwrap();
        let [mut one, mut two] = [0, 1].map(|_| FlatGradients::new(&context, [&*w]).unwrap());
        let inner = one.collect(|| Ok(two.collect(|| loss().backward()).is_err()));
        assert!(inner.unwrap());
        // Both are whole afterwards, and each has its own gradients.
        two.collect(|| loss().backward()).unwrap();
        assert_eq!((one.get(0).unwrap(), two.get(0).unwrap()), (None, Some(vec![2.0])));
        one.collect(|| loss().backward()).unwrap();
        assert_eq!(one.get(0).unwrap(), Some(vec![2.0]));
    }

    #[test]
    fn a_pass_on_another_thread_is_outside_of_the_buffer() {
        let context = Context::new(&Device::Cpu);
        let w = parameter(&context, &[1.0], (1, 1));
        let loss = || linear(&w, &w, None).unwrap().sum_all().unwrap();
        let mut flat = FlatGradients::new(&context, [&*w]).unwrap();
        let elsewhere = flat.collect(|| {
            Ok(std::thread::scope(|s| s.spawn(|| loss().backward().map(|_| ())).join().unwrap()))
        });
        assert!(elsewhere.unwrap().unwrap_err().to_string().contains("outside of the bucket"));
        assert_eq!(flat.get(0).unwrap(), None);
    }

    #[test]
    fn the_buffer_comes_back_from_a_pass_that_panics() {
        let context = Context::new(&Device::Cpu);
        let w = parameter(&context, &[1.0], (1, 1));
        let mut flat = FlatGradients::new(&context, [&*w]).unwrap();
        flat.add(0, &Tensor::new(&[3f32], &Device::Cpu).unwrap()).unwrap();
        let pass = std::panic::AssertUnwindSafe(|| flat.collect::<()>(|| panic!("in the middle")));
        assert!(std::panic::catch_unwind(pass).is_err());
        assert_eq!(flat.get(0).unwrap(), Some(vec![3.0]));
        assert!(flat.collect(|| Ok(())).is_ok());
    }
}
