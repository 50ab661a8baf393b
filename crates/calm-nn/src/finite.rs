//! Whether numbers are numbers.

use candle_core::{DType, Device, Result, Tensor};

/// The name of the first tensor that holds a number that is not finite; None where all are well. Reads every number
/// once, from a GPU as well.
///
/// # Errors
/// What a GPU answers.
pub fn non_finite<'a>(tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>) -> Result<Option<&'a str>> {
    for (name, tensor) in tensors {
        if tensor.dtype().is_int() {
            continue;
        }
        let numbers =
            tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        if numbers.iter().any(|x| !x.is_finite()) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_with_one_number_that_is_none_is_named() {
        let of = |numbers: &[f32]| Tensor::new(numbers, &Device::Cpu).unwrap();
        let (good, bad, huge) = (of(&[1.0, f32::MAX]), of(&[0.0, f32::NAN]), of(&[f32::NEG_INFINITY]));
        assert_eq!(non_finite([("a", &good)]).unwrap(), None);
        assert_eq!(non_finite([("a", &good), ("b", &bad)]).unwrap(), Some("b"));
        assert_eq!(non_finite([("c", &huge)]).unwrap(), Some("c"));
    }
}
