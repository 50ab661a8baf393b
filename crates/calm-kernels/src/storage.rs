//! Reading candle's CPU tensors as slices, building tensors from vectors, and keeping what a forward
//! pass computed for its backward pass. The rules of candle's storage live here, not in operators.

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, DType, Device, Error, Layout, Result, Shape, Storage, StorageRef, Tensor, WithDType,
};
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Mutex;

/// An error that names the operator.
pub fn error(op: &str, message: impl std::fmt::Display) -> Error {
    Error::Msg(format!("{op}: {message}")).bt()
}

/// Runs a block with a type alias for the tensor's element type, `f32` or `f64`; any other type is an
/// error that names the operator: `with_float!(op, dtype, T => body)`, where body is a `Result`.
#[macro_export]
macro_rules! with_float {
    ($op:expr, $dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $t = f32;
                $body
            }
            candle_core::DType::F64 => {
                type $t = f64;
                $body
            }
            other => Err($crate::storage::error(
                $op,
                format_args!("expects f32 or f64 tensors, got {other:?}; convert the input with to_dtype"),
            )),
        }
    };
}

/// The elements of a contiguous tensor inside a custom operator's forward pass.
///
/// # Errors
/// A tensor that is not contiguous, or of another element type.
pub fn slice<'a, T: WithDType>(op: &str, storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        return Err(error(op, format_args!("expects contiguous tensors, got strides {:?}", layout.stride())));
    };
    let data = T::cpu_storage_as_slice(storage)
        .map_err(|_| error(op, format_args!("expects {:?} elements, got {:?}", T::DTYPE, storage.dtype())))?;
    Ok(&data[start..end])
}

/// A contiguous CPU tensor borrowed as a slice; dereferences to `[T]`.
pub struct View<'a, T> {
    guard: StorageRef<'a>,
    start: usize,
    end: usize,
    element: PhantomData<T>,
}

impl<T: WithDType> Deref for View<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &*self.guard {
            // `view` has checked device, type and bounds; the storage is immutable while borrowed.
            Storage::Cpu(cpu) => T::cpu_storage_as_slice(cpu).map_or(&[], |s| &s[self.start..self.end]),
            _ => &[],
        }
    }
}

/// Borrows a contiguous CPU tensor as a slice.
///
/// # Errors
/// A tensor on another device, not contiguous, or of another element type.
pub fn view<'a, T: WithDType>(op: &str, tensor: &'a Tensor) -> Result<View<'a, T>> {
    let (guard, layout) = tensor.storage_and_layout();
    let (start, end) = match &*guard {
        Storage::Cpu(cpu) => {
            slice::<T>(op, cpu, layout)?;
            layout.contiguous_offsets().unwrap_or((0, 0))
        }
        _ => {
            return Err(error(
                op,
                format_args!("runs on the CPU, got a tensor on {:?}", tensor.device().location()),
            ));
        }
    };
    Ok(View { guard, start, end, element: PhantomData })
}

/// Borrows several contiguous CPU tensors as slices.
///
/// # Errors
/// Another number of tensors, or as [`view`].
pub fn views<'a, T: WithDType, const N: usize>(op: &str, tensors: &'a [Tensor]) -> Result<[View<'a, T>; N]> {
    let views = tensors.iter().map(|t| view(op, t)).collect::<Result<Vec<_>>>()?;
    <[View<'a, T>; N]>::try_from(views)
        .map_err(|views| error(op, format_args!("needs {N} tensors, got {}", views.len())))
}

/// Copies a CPU tensor (any strides) into a vector.
///
/// # Errors
/// As [`view`].
pub fn to_vec<T: WithDType>(op: &str, tensor: &Tensor) -> Result<Vec<T>> {
    let tensor = tensor.contiguous()?;
    Ok(view::<T>(op, &tensor)?.to_vec())
}

/// That a tensor is one of ids: of type U32.
///
/// # Errors
/// Another element type, with the remedy.
pub fn expect_ids(op: &str, tensor: &Tensor) -> Result<()> {
    if tensor.dtype() == DType::U32 {
        return Ok(());
    }
    Err(error(
        op,
        format_args!("expects ids of type U32, got {:?}; convert them with to_dtype", tensor.dtype()),
    ))
}

/// Copies a U32 tensor of ids (any strides, any shape) on the CPU into a vector.
///
/// # Errors
/// As [`expect_ids`].
pub fn ids(op: &str, tensor: &Tensor) -> Result<Vec<u32>> {
    expect_ids(op, tensor)?;
    to_vec::<u32>(op, tensor)
}

/// A CPU tensor that takes over `data`; no gradient history.
///
/// # Errors
/// A length that does not fit the shape.
pub fn tensor<T: WithDType>(data: Vec<T>, shape: impl Into<Shape>) -> Result<Tensor> {
    let shape = shape.into();
    if data.len() != shape.elem_count() {
        return Err(error("tensor", format_args!("{} elements do not fill {shape:?}", data.len())));
    }
    Tensor::from_vec(data, shape, &Device::Cpu)
}

/// What a forward pass keeps for its backward pass, inside the custom operator itself.
#[derive(Debug, Default)]
pub struct Saved<T>(Mutex<Option<T>>);

impl<T: Clone> Saved<T> {
    /// An empty place.
    pub fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// Keeps `value`, in place of what was kept before.
    pub fn set(&self, value: T) {
        // A poisoned lock only means that a thread panicked between two whole assignments.
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(value);
    }

    /// What was kept (a clone: use tensors or `Arc`s); it stays for a second backward pass.
    ///
    /// # Errors
    /// Nothing was kept, because no input of the forward pass asked for a gradient.
    pub fn get(&self, op: &str) -> Result<T> {
        let guard = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        guard.clone().ok_or_else(|| error(op, "the forward pass kept nothing for this backward pass"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_respect_offsets_and_refuse_strides_and_other_types() {
        let t = Tensor::arange(0f32, 12.0, &Device::Cpu).unwrap().reshape((3, 4)).unwrap();
        let rows = t.narrow(0, 1, 2).unwrap();
        assert_eq!(&*view::<f32>("op", &rows).unwrap(), &[4., 5., 6., 7., 8., 9., 10., 11.]);
        let err = view::<f32>("my_op", &t.t().unwrap()).err().unwrap().to_string();
        assert!(err.contains("my_op") && err.contains("contiguous"), "{err}");
        let err = view::<f64>("my_op", &t).err().unwrap().to_string();
        assert!(err.contains("my_op") && err.contains("F64") && err.contains("F32"), "{err}");
        assert_eq!(to_vec::<f32>("op", &t.t().unwrap()).unwrap()[..3], [0., 4., 8.]);
    }

    #[test]
    fn ids_must_be_u32() {
        let t = Tensor::new(&[[1u32, 2], [3, 4]], &Device::Cpu).unwrap();
        assert_eq!(ids("op", &t.t().unwrap()).unwrap(), vec![1, 3, 2, 4]);
        let err = ids("my_op", &t.to_dtype(DType::I64).unwrap()).unwrap_err().to_string();
        assert!(err.contains("my_op") && err.contains("to_dtype"), "{err}");
    }

    #[test]
    fn float_dispatch_names_the_operator_for_other_types() {
        fn bytes(dtype: DType) -> Result<usize> {
            with_float!("my_op", dtype, T => Ok(size_of::<T>()))
        }
        assert_eq!(bytes(DType::F32).unwrap(), 4);
        assert_eq!(bytes(DType::F64).unwrap(), 8);
        assert!(bytes(DType::BF16).unwrap_err().to_string().contains("my_op"));
    }

    #[test]
    fn saved_values_stay_for_a_second_backward_pass() {
        let saved = Saved::new();
        assert!(saved.get("my_op").unwrap_err().to_string().contains("my_op"));
        saved.set(3);
        assert_eq!((saved.get("my_op").unwrap(), saved.get("my_op").unwrap()), (3, 3));
    }

    #[test]
    fn tensors_are_built_only_from_fitting_data() {
        assert_eq!(tensor(vec![1f32; 6], (2, 3)).unwrap().dims(), &[2, 3]);
        assert!(tensor(vec![1f32; 5], (2, 3)).is_err());
    }
}
