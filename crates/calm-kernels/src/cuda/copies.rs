//! Parameters in bf16, beside the f32 ones that the optimiser works on.

use super::{Element, Gpu, Launch, View, view};
use crate::Context;
use crate::storage::error;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView, DevicePtr};
use candle_core::{DType, Result, Tensor, TensorId};
use half::bf16;
use std::any::Any;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

const OP: &str = "parameter copies";

/// Elements of one parameter begin at a multiple of this: 16 bytes.
const ALIGNMENT: usize = 8;

/// A context's copies: of f32 parameters in bf16, one after the other in one piece of memory.
#[derive(Default)]
struct Copies(RwLock<Option<CopiesMade>>);

struct CopiesMade {
    parameters: Vec<Tensor>,
    places: HashMap<TensorId, Range<usize>>,
    values: Arc<CudaSlice<bf16>>,
}

/// See [`Context::keep_copies`].
pub(crate) fn keep(context: &Context, parameters: Vec<Tensor>) -> Result<()> {
    let made = if parameters.is_empty() { None } else { Some(CopiesMade::new(context, parameters)?) };
    *context.kept::<Copies>().0.write().unwrap_or_else(PoisonError::into_inner) = made;
    Ok(())
}

/// See [`Context::refresh_copies`].
pub(crate) fn refresh(context: &Context) -> Result<()> {
    match &*context.kept::<Copies>().made() {
        Some(made) => made.refresh(&Gpu::at(OP, context)?),
        None => Ok(()),
    }
}

impl Copies {
    fn made(&self) -> RwLockReadGuard<'_, Option<CopiesMade>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the copy of a parameter lies.
    fn get(&self, parameter: &Tensor) -> Option<(Arc<CudaSlice<bf16>>, Range<usize>)> {
        let made = self.made();
        let made = made.as_ref()?;
        Some((made.values.clone(), made.places.get(&parameter.id())?.clone()))
    }
}

impl CopiesMade {
    fn new(context: &Context, parameters: Vec<Tensor>) -> Result<Self> {
        let gpu = Gpu::at(OP, context)?;
        let mut places = HashMap::with_capacity(parameters.len());
        let mut end: usize = 0;
        for parameter in &parameters {
            let start = end.next_multiple_of(ALIGNMENT);
            end = start + parameter.elem_count();
            places.insert(parameter.id(), start..end);
        }
        let made = Self { parameters, places, values: Arc::new(gpu.empty::<bf16>(end)?) };
        made.refresh(&gpu)?;
        Ok(made)
    }

    fn refresh(&self, gpu: &Gpu) -> Result<()> {
        for parameter in &self.parameters {
            let Some(range) = self.places.get(&parameter.id()) else { continue };
            let source = view::<f32>(OP, parameter)?;
            let count = parameter.elem_count() as u64;
            let launch = Launch::elements(parameter.elem_count());
            launch!(
                gpu,
                CAST,
                "narrow_f32_bf16",
                launch,
                &source.get(),
                &pointer(&self.values, range),
                &count
            );
        }
        Ok(())
    }
}

/// Device address of a part.
fn pointer(values: &CudaSlice<bf16>, range: &Range<usize>) -> u64 {
    let stream = values.stream().clone();
    let (start, _read) = values.device_ptr(&stream);
    start + (range.start * size_of::<bf16>()) as u64
}

/// The copy that a context keeps of a parameter, as kernels that write it need it.
pub(super) struct KeptCopy {
    /// Where it lies.
    pub(super) address: u64,
    /// Holds the memory until the launch, also if the context gives its copies up meanwhile.
    _values: Arc<CudaSlice<bf16>>,
}

/// The copy that the context keeps of a parameter, if it keeps one.
pub(super) fn copy_of(gpu: &Gpu, parameter: &Tensor) -> Option<KeptCopy> {
    let copy = gpu.kept::<Copies>().and_then(|copies| copies.get(parameter));
    copy.map(|(values, range)| KeptCopy { address: pointer(&values, &range), _values: values })
}

/// A parameter in the type of the activations.
pub(crate) enum Weight<'a, T> {
    /// Of that type itself.
    Same(View<'a, T>),
    /// The copy that the context keeps.
    Copy(Arc<CudaSlice<T>>, Range<usize>),
    /// A copy made now.
    Made(CudaSlice<T>),
}

impl<T: Element> Weight<'_, T> {
    /// The elements.
    pub(crate) fn get(&self) -> CudaView<'_, T> {
        match self {
            Self::Same(view) => view.get(),
            Self::Copy(values, range) => values.slice(range.clone()),
            Self::Made(values) => values.as_view(),
        }
    }
}

/// `parameter` as elements of type T: itself, or for bf16 its copy, that of the context or one made now.
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
    if let Some((values, range)) = gpu.kept::<Copies>().and_then(|copies| copies.get(parameter)) {
        let values: Arc<dyn Any + Send + Sync> = values;
        if let Ok(values) = values.downcast::<CudaSlice<T>>() {
            return Ok(Weight::Copy(values, range));
        }
    }
    let source = view::<f32>(op, parameter)?;
    let mut made = gpu.empty::<T>(parameter.elem_count())?;
    let count = parameter.elem_count() as u64;
    let launch = Launch::elements(parameter.elem_count());
    launch!(gpu, CAST, "narrow_f32_bf16", launch, &source.get(), &mut made, &count);
    Ok(Weight::Made(made))
}
