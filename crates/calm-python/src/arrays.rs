//! Numbers from and for Python: `memoryview`s over memory of their own.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyMemoryView, PySequence, PyString, PyTuple};

/// A number of a `memoryview`.
pub trait Number: Copy {
    /// Its letter in the formats of Python's `struct`.
    const FORMAT: &'static str;

    /// Its bytes, as this machine has them.
    fn bytes(self) -> impl AsRef<[u8]>;
}

macro_rules! numbers {
    ($($number:ty: $format:literal),*) => {
        $(impl Number for $number {
            const FORMAT: &'static str = $format;

            fn bytes(self) -> impl AsRef<[u8]> {
                self.to_ne_bytes()
            }
        })*
    };
}

numbers!(u32: "I", u64: "Q", f32: "f", f64: "d");

/// Row-major numbers of this shape, as a view of memory that may be written to.
pub fn view<'py, T: Number>(py: Python<'py>, values: &[T], shape: &[usize]) -> PyResult<Bound<'py, PyAny>> {
    let size = size_of::<T>();
    let bytes = PyByteArray::new_with(py, size_of_val(values), |bytes| {
        for (place, value) in bytes.chunks_exact_mut(size).zip(values) {
            place.copy_from_slice(value.bytes().as_ref());
        }
        Ok(())
    })?;
    let view = PyMemoryView::from(bytes.as_any())?;
    // A view has no shape with a side of nothing.
    if shape.len() < 2 || values.is_empty() {
        return view.call_method1("cast", (T::FORMAT,));
    }
    view.call_method1("cast", (T::FORMAT, PyTuple::new(py, shape)?))
}

/// Numbers that Python gave, row-major, with their shape.
pub struct Given<T> {
    /// The numbers.
    pub values: Vec<T>,
    /// The sides.
    pub shape: Vec<usize>,
}

/// What can be read from an element of a buffer or a sequence.
pub trait Read: Sized {
    /// What they are called.
    const NAME: &'static str;

    /// From the bytes of a number in a format of `struct`; None of another kind of number.
    fn from_bytes(format: char, bytes: &[u8]) -> Option<Self>;

    /// From an object.
    fn from_object(object: &Bound<'_, PyAny>) -> PyResult<Self>;
}

/// The number of a type in these bytes.
macro_rules! of {
    ($number:ty, $bytes:expr) => {
        <$number>::from_ne_bytes($bytes.try_into().ok()?)
    };
}

/// Whole numbers.
impl Read for i64 {
    const NAME: &'static str = "whole numbers";

    fn from_bytes(format: char, bytes: &[u8]) -> Option<Self> {
        Some(match (format, bytes.len()) {
            ('b', 1) => of!(i8, bytes).into(),
            ('B' | 'c' | '?', 1) => of!(u8, bytes).into(),
            ('h', 2) => of!(i16, bytes).into(),
            ('H', 2) => of!(u16, bytes).into(),
            ('i' | 'l', 4) => of!(i32, bytes).into(),
            ('I' | 'L', 4) => of!(u32, bytes).into(),
            ('q' | 'l' | 'n', 8) => of!(i64, bytes),
            ('Q' | 'L' | 'N', 8) => of!(u64, bytes).try_into().ok()?,
            _ => return None,
        })
    }

    fn from_object(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        object.extract()
    }
}

/// Numbers in 32 bits.
impl Read for f32 {
    const NAME: &'static str = "numbers";

    fn from_bytes(format: char, bytes: &[u8]) -> Option<Self> {
        Some(match (format, bytes.len()) {
            ('f', 4) => of!(f32, bytes),
            ('d', 8) => of!(f64, bytes) as f32,
            _ => return None,
        })
    }

    fn from_object(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        object.extract()
    }
}

/// From an object with a buffer, or sequences in sequences.
pub fn read<T: Read>(object: &Bound<'_, PyAny>) -> PyResult<Given<T>> {
    if let Ok(view) = PyMemoryView::from(object) {
        return from_view(&view);
    }
    let mut given = Given { values: Vec::new(), shape: Vec::new() };
    nested(object, 0, &mut given)?;
    Ok(given)
}

fn from_view<T: Read>(view: &Bound<'_, PyMemoryView>) -> PyResult<Given<T>> {
    let format: String = view.getattr("format")?.extract()?;
    let shape: Vec<usize> = view.getattr("shape")?.extract()?;
    let size: usize = view.getattr("itemsize")?.extract()?;
    let bytes = view.call_method0("tobytes")?.cast_into::<PyBytes>()?;
    let other = || {
        let message = format!("a buffer of {} in the byte order of this machine, not of {format:?}", T::NAME);
        PyTypeError::new_err(message)
    };
    let native = if cfg!(target_endian = "little") { '<' } else { '>' };
    let mut letters = format.trim_start_matches(['@', '=', native]).chars();
    let (Some(letter), None) = (letters.next(), letters.next()) else { return Err(other()) };
    let values: Option<Vec<T>> =
        bytes.as_bytes().chunks_exact(size.max(1)).map(|bytes| T::from_bytes(letter, bytes)).collect();
    Ok(Given { values: values.ok_or_else(other)?, shape })
}

/// Sides that nested sequences have at most: one that holds itself would have no end.
const SIDES: usize = 8;

/// Adds what a sequence holds at this depth; all of one depth must be of one length.
fn nested<T: Read>(object: &Bound<'_, PyAny>, depth: usize, given: &mut Given<T>) -> PyResult<()> {
    if depth > SIDES {
        let message = format!("sequences are nested more than {SIDES} deep; give rows of one length");
        return Err(PyValueError::new_err(message));
    }
    let Some(sequence) = object.cast::<PySequence>().ok().filter(|s| !s.is_instance_of::<PyString>()) else {
        given.values.push(T::from_object(object)?);
        return match depth == given.shape.len() {
            true => Ok(()),
            false => Err(ragged()),
        };
    };
    let length = sequence.len()?;
    match given.shape.get(depth) {
        Some(known) if *known != length => return Err(ragged()),
        Some(_) => {}
        None if !given.values.is_empty() => return Err(ragged()),
        None => given.shape.push(length),
    }
    for item in sequence.try_iter()? {
        let item = item?;
        match PyMemoryView::from(&item) {
            Ok(view) => {
                let inner = from_view::<T>(&view)?;
                match given.shape.get(depth + 1..) {
                    Some([]) if given.values.is_empty() => given.shape.extend(&inner.shape),
                    Some(known) if *known == inner.shape[..] => {}
                    _ => return Err(ragged()),
                }
                given.values.extend(inner.values);
            }
            Err(_) => nested(&item, depth + 1, given)?,
        }
    }
    Ok(())
}

fn ragged() -> PyErr {
    PyValueError::new_err("sequences of several lengths or depths; give rows of one length")
}

/// Whole numbers as ids below `vocab`.
pub fn ids(values: Vec<i64>, vocab: usize) -> PyResult<Vec<u32>> {
    let id = |value: i64| match u32::try_from(value) {
        Ok(id) if (id as usize) < vocab => Ok(id),
        _ => Err(PyValueError::new_err(format!("{value} is no token: ids go from 0 to {}", vocab - 1))),
    };
    values.into_iter().map(id).collect()
}
