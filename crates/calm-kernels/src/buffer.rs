//! The flat buffer of [`crate::FlatGradients`]: which parameter's gradient lies where, and which have come.

use crate::Context;
use crate::pieces::{self, Course, Handing, Part};
use crate::simd::{Real, rows_per_block};
use crate::storage::{error, to_vec};
#[cfg(feature = "cuda")]
use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{DType, Result, Tensor, TensorId};
use rayon::prelude::*;
use std::collections::HashMap;
use std::ops::Range;

/// The gradients themselves; a pass borrows them.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    places: HashMap<TensorId, usize>,
    ranges: Vec<Range<usize>>,
    /// Whether a gradient has come since the last [`clear`](crate::FlatGradients::clear); what stands elsewhere is old.
    written: Vec<bool>,
    /// Whether one has come since the last backward pass began.
    reached: Vec<bool>,
    /// Parameters in the order in which gradients have come since then.
    course: Vec<usize>,
    /// While pieces are handed out.
    handing: Option<Handing>,
    values: Values,
}

#[derive(Debug)]
enum Values {
    Host(Vec<f32>),
    #[cfg(feature = "cuda")]
    Device(crate::cuda::buffer::DeviceBuffer),
}

impl Default for Values {
    fn default() -> Self {
        Self::Host(Vec::new())
    }
}

impl Buffer {
    /// For `parameters` of `context`, in this order; and which of them it collects.
    pub(crate) fn new<'a>(
        context: &Context,
        parameters: impl IntoIterator<Item = &'a Tensor>,
    ) -> Result<(Self, Vec<TensorId>)> {
        let mut buffer = Self::default();
        let mut collected = Vec::new();
        let mut end = 0;
        for (i, parameter) in parameters.into_iter().enumerate() {
            buffer.places.insert(parameter.id(), i);
            // On the CPU the gradients of others have their own type.
            if context.device().is_cuda() || parameter.dtype() == DType::F32 {
                collected.push(parameter.id());
            }
            let start = end;
            end += parameter.elem_count();
            buffer.ranges.push(start..end);
        }
        buffer.written = vec![false; buffer.ranges.len()];
        buffer.reached = buffer.written.clone();
        buffer.values = match context.device() {
            #[cfg(feature = "cuda")]
            candle_core::Device::Cuda(_) => {
                Values::Device(crate::cuda::buffer::DeviceBuffer::new(context, end)?)
            }
            _ => Values::Host(vec![0.0; end]),
        };
        Ok((buffer, collected))
    }

    /// See [`crate::FlatGradients::clear`].
    pub(crate) fn clear(&mut self) {
        self.written.fill(false);
    }

    /// A backward pass begins.
    pub(crate) fn begin_pass(&mut self) {
        self.reached.fill(false);
        self.course.clear();
    }

    /// Parameters of each of so many pieces.
    pub(crate) fn cut(&self, pieces: usize) -> Vec<Range<usize>> {
        pieces::cut(&self.ranges, pieces)
    }

    /// The course of the last pass, in so many pieces.
    pub(crate) fn course(&self, pieces: usize) -> Course {
        pieces::course(&self.course, &self.ranges, pieces)
    }

    /// From here on pieces are handed out; None: no more.
    pub(crate) fn hand(&mut self, handing: Option<Handing>) {
        self.handing = handing;
    }

    /// The gradient of parameter `i` has been written: hands out what is complete.
    pub(crate) fn wrote(&mut self, i: usize) -> Result<()> {
        match &mut self.handing {
            Some(handing) => handing.wrote(i).and_then(|()| self.hand_out(false)),
            None => Ok(()),
        }
    }

    /// Hands out the pieces that are complete; when the pass is over all.
    pub(crate) fn hand_out(&mut self, over: bool) -> Result<()> {
        let Some(mut handing) = self.handing.take() else { return Ok(()) };
        while let Some(parameters) = handing.next(over) {
            let elements = self.ranges[parameters.start].start..self.ranges[parameters.end - 1].end;
            self.fill(parameters)?;
            let part = match &mut self.values {
                Values::Host(values) => Part::Host(&mut values[elements.clone()]),
                #[cfg(feature = "cuda")]
                Values::Device(buffer) => Part::Device(buffer.values_mut(), elements.clone()),
            };
            handing.hand_out(elements, part)?;
        }
        self.handing = Some(handing);
        Ok(())
    }

    /// Sets the gradients of these parameters to 0 where none has come.
    fn fill(&mut self, parameters: Range<usize>) -> Result<()> {
        for i in parameters {
            if !std::mem::replace(&mut self.written[i], true) {
                match &mut self.values {
                    Values::Host(values) => values[self.ranges[i].clone()].fill(0.0),
                    #[cfg(feature = "cuda")]
                    Values::Device(buffer) => buffer.clear(self.ranges[i].clone())?,
                }
            }
        }
        Ok(())
    }

    /// See [`crate::FlatGradients::reached`].
    pub(crate) fn reached(&self, i: usize) -> bool {
        self.reached[i]
    }

    /// See [`crate::FlatGradients::get`].
    pub(crate) fn get(&self, i: usize) -> Result<Option<Vec<f32>>> {
        if !self.written[i] {
            return Ok(None);
        }
        let range = self.ranges[i].clone();
        match &self.values {
            Values::Host(values) => Ok(Some(values[range].to_vec())),
            #[cfg(feature = "cuda")]
            Values::Device(buffer) => buffer.read(range).map(Some),
        }
    }

    /// Whether it is in the memory of a GPU.
    #[cfg(feature = "cuda")]
    pub(crate) fn on_gpu(&self) -> bool {
        matches!(self.values, Values::Device(_))
    }

    /// See [`crate::FlatGradients::device_factor`].
    #[cfg(feature = "cuda")]
    pub(crate) fn device_factor(&self) -> Result<(crate::cuda::Gpu, crate::cuda::clip::DeviceFactor)> {
        match &self.values {
            Values::Device(buffer) => Ok(buffer.factor()),
            Values::Host(_) => Err(error("gradients", "are in the memory of the CPU, not on a GPU")),
        }
    }

    /// See [`crate::FlatGradients::host_values`].
    pub(crate) fn host_values(&mut self) -> Result<&mut [f32]> {
        self.fill(0..self.ranges.len())?;
        match &mut self.values {
            Values::Host(values) => Ok(values),
            #[cfg(feature = "cuda")]
            Values::Device(_) => Err(error("gradients", "are on a GPU, not in the memory of the CPU")),
        }
    }

    /// Elements of all gradients.
    fn elements(&self) -> usize {
        self.ranges.last().map_or(0, |range| range.end)
    }

    /// See [`crate::FlatGradients::copy`].
    pub(crate) fn copy(&mut self) -> Result<Vec<f32>> {
        self.fill(0..self.ranges.len())?;
        match &self.values {
            Values::Host(values) => Ok(values.clone()),
            #[cfg(feature = "cuda")]
            Values::Device(buffer) => buffer.read(0..self.elements()),
        }
    }

    /// See [`crate::FlatGradients::replace`].
    pub(crate) fn replace(&mut self, by: &[f32]) -> Result<()> {
        if by.len() != self.elements() {
            return Err(error("gradients", format_args!("{} values for {}", by.len(), self.elements())));
        }
        self.written.fill(true);
        match &mut self.values {
            Values::Host(values) => values.copy_from_slice(by),
            #[cfg(feature = "cuda")]
            Values::Device(buffer) => buffer.write(0, by)?,
        }
        Ok(())
    }

    /// See [`crate::FlatGradients::whole`].
    pub(crate) fn whole(&mut self) -> Result<Part<'_>> {
        self.fill(0..self.ranges.len())?;
        #[cfg(feature = "cuda")]
        let elements = self.elements();
        Ok(match &mut self.values {
            Values::Host(values) => Part::Host(values),
            #[cfg(feature = "cuda")]
            Values::Device(buffer) => Part::Device(buffer.values_mut(), 0..elements),
        })
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn device_values(&mut self) -> Result<&mut CudaSlice<f32>> {
        self.fill(0..self.ranges.len())?;
        match &mut self.values {
            Values::Device(buffer) => Ok(buffer.values_mut()),
            Values::Host(_) => Err(error("gradients", "are in the memory of the CPU, not on a GPU")),
        }
    }

    /// Which parameter has this id.
    pub(crate) fn place(&self, id: TensorId) -> Option<usize> {
        self.places.get(&id).copied()
    }

    /// See [`crate::FlatGradients::add`].
    pub(crate) fn add(&mut self, i: usize, gradient: &Tensor) -> Result<()> {
        self.put(i, gradient)?;
        self.wrote(i)
    }

    /// As [`Self::add`], for who says himself that it is written.
    pub(crate) fn put(&mut self, i: usize, gradient: &Tensor) -> Result<()> {
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

    /// Notes that a gradient of parameter `i` comes: whether it is to be added to what is there.
    fn mark(&mut self, i: usize) -> bool {
        self.reached[i] = true;
        self.course.push(i);
        std::mem::replace(&mut self.written[i], true)
    }

    /// Where the gradient of parameter `i` goes in the memory of the CPU, and whether it is to be added.
    pub(crate) fn host_place(&mut self, i: usize) -> Result<(&mut [f32], bool)> {
        let accumulate = self.mark(i);
        match &mut self.values {
            Values::Host(values) => Ok((&mut values[self.ranges[i].clone()], accumulate)),
            #[cfg(feature = "cuda")]
            Values::Device(_) => Err(error("gradients", "are on a GPU, not in the memory of the CPU")),
        }
    }

    /// As [`Self::host_place`], on the GPU: the buffer and the range in it.
    #[cfg(feature = "cuda")]
    pub(crate) fn device_place(&mut self, i: usize) -> Result<(&mut CudaSlice<f32>, Range<usize>, bool)> {
        let accumulate = self.mark(i);
        match &mut self.values {
            Values::Device(buffer) => Ok((buffer.values_mut(), self.ranges[i].clone(), accumulate)),
            Values::Host(_) => Err(error("gradients", "are in the memory of the CPU, not on a GPU")),
        }
    }
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
