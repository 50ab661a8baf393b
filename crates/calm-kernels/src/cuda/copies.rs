//! Parameters in bf16, beside the f32 ones that the optimiser works on.

use super::{Element, Gpu, Launch, View, view};
use crate::storage::error;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView, DevicePtr};
use candle_core::{DType, Result, Tensor, TensorId};
use half::bf16;
use std::any::Any;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};

/// Where the copy of a parameter lies.
type Place = (Arc<CudaSlice<bf16>>, Range<usize>);

static PLACES: RwLock<Option<HashMap<TensorId, Place>>> = RwLock::new(None);

/// Elements of one parameter begin at a multiple of this: 16 bytes.
const ALIGNMENT: usize = 8;

/// bf16 copies of f32 parameters on a GPU, one after the other in one piece of memory. While they live,
/// operators with bf16 activations read them in place of the parameters.
#[derive(Debug)]
pub struct ComputeCopies {
    gpu: Gpu,
    parameters: Vec<Tensor>,
    ranges: Vec<Range<usize>>,
    values: Arc<CudaSlice<bf16>>,
}

impl ComputeCopies {
    /// Copies of `parameters`.
    ///
    /// # Errors
    /// Parameters that are not contiguous f32 tensors on one GPU; none at all.
    pub fn new<'a>(parameters: impl IntoIterator<Item = &'a Tensor>) -> Result<Self> {
        let parameters: Vec<Tensor> = parameters.into_iter().cloned().collect();
        let Some(first) = parameters.first() else {
            return Err(error("compute copies", "there are no parameters"));
        };
        let gpu = Gpu::of("compute copies", first)?;
        let mut ranges = Vec::with_capacity(parameters.len());
        let mut end: usize = 0;
        for parameter in &parameters {
            let start = end.next_multiple_of(ALIGNMENT);
            end = start + parameter.elem_count();
            ranges.push(start..end);
        }
        let values = Arc::new(gpu.empty::<bf16>(end)?);
        let copies = Self { gpu, parameters, ranges, values };
        copies.refresh()?;
        let mut places = PLACES.write().unwrap_or_else(PoisonError::into_inner);
        let places = places.get_or_insert_default();
        for (parameter, range) in copies.parameters.iter().zip(&copies.ranges) {
            places.insert(parameter.id(), (copies.values.clone(), range.clone()));
        }
        Ok(copies)
    }

    /// Copies all parameters again, after they were loaded from a file.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn refresh(&self) -> Result<()> {
        for (i, parameter) in self.parameters.iter().enumerate() {
            let values = view::<f32>("compute copies", parameter)?;
            let count = parameter.elem_count() as u64;
            let launch = Launch::elements(parameter.elem_count());
            launch!(self.gpu, CAST, "narrow_f32_bf16", launch, &values.get(), &self.pointer(i), &count);
        }
        Ok(())
    }

    /// Device address of the copy of parameter `i`.
    fn pointer(&self, i: usize) -> u64 {
        let stream = self.gpu.stream();
        let (start, _read) = self.values.device_ptr(&stream);
        start + (self.ranges[i].start * size_of::<bf16>()) as u64
    }
}

/// Device address of the copy that is kept of a parameter; 0 if none is.
pub(super) fn copy_of(parameter: &Tensor) -> u64 {
    let kept = PLACES.read().unwrap_or_else(PoisonError::into_inner);
    match kept.as_ref().and_then(|places| places.get(&parameter.id())) {
        Some((values, range)) => {
            let stream = values.stream().clone();
            let (start, _read) = values.device_ptr(&stream);
            start + (range.start * size_of::<bf16>()) as u64
        }
        None => 0,
    }
}

impl Drop for ComputeCopies {
    fn drop(&mut self) {
        let mut places = PLACES.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(places) = places.as_mut() {
            for parameter in &self.parameters {
                // A later copy of the same parameter stays.
                if places.get(&parameter.id()).is_some_and(|(values, _)| Arc::ptr_eq(values, &self.values)) {
                    places.remove(&parameter.id());
                }
            }
        }
    }
}

/// A parameter in the type of the activations.
pub(crate) enum Weight<'a, T> {
    /// Of that type itself.
    Same(View<'a, T>),
    /// A copy that is kept.
    Kept(Arc<CudaSlice<T>>, Range<usize>),
    /// A copy made now.
    Made(CudaSlice<T>),
}

impl<T: Element> Weight<'_, T> {
    /// The elements.
    pub(crate) fn get(&self) -> CudaView<'_, T> {
        match self {
            Self::Same(view) => view.get(),
            Self::Kept(values, range) => values.slice(range.clone()),
            Self::Made(values) => values.as_view(),
        }
    }
}

/// `parameter` as elements of type T: itself, or for bf16 its copy.
///
/// # Errors
/// A parameter that is neither of type T nor f32.
pub(crate) fn weight<'a, T: Element>(gpu: &Gpu, op: &str, parameter: &'a Tensor) -> Result<Weight<'a, T>> {
    if parameter.dtype() == T::DTYPE {
        return Ok(Weight::Same(view(op, parameter)?));
    }
    if T::DTYPE != DType::BF16 || parameter.dtype() != DType::F32 {
        return Err(error(
            op,
            format_args!(
                "parameters of {:?} do not go with activations of {:?}: they must be f32, or the same",
                parameter.dtype(),
                T::DTYPE
            ),
        ));
    }
    let kept = PLACES.read().unwrap_or_else(PoisonError::into_inner);
    if let Some((values, range)) = kept.as_ref().and_then(|places| places.get(&parameter.id())) {
        let values: Arc<dyn Any + Send + Sync> = values.clone();
        if let Ok(values) = values.downcast::<CudaSlice<T>>() {
            return Ok(Weight::Kept(values, range.clone()));
        }
    }
    drop(kept);
    let source = view::<f32>(op, parameter)?;
    let mut made = gpu.empty::<T>(parameter.elem_count())?;
    let count = parameter.elem_count() as u64;
    let launch = Launch::elements(parameter.elem_count());
    launch!(gpu, CAST, "narrow_f32_bf16", launch, &source.get(), &mut made, &count);
    Ok(Weight::Made(made))
}
