//! Comparison with expected tensors: everything that is off is collected, nothing stops at the first.

use std::collections::BTreeMap;

use calm_nn::ParamStore;
use candle_core::backprop::GradStore;
use candle_core::{DType, Result, Tensor};

use crate::set::Tensors;

/// Forward values may be off by this share of the tensor's largest value.
pub const VALUES: f64 = 2e-5;
/// Gradients may be off by this share of the tensor's largest value.
pub const GRADIENTS: f64 = 5e-5;
/// ... or by this much. Weights and activations of such sets are of order 1, and one rounding of a float32
/// sum of such terms is up to 6e-8: a tensor that is itself no larger than a few thousandths (what remains
/// where terms cancel) cannot be expected to agree to 2e-5 of *its* largest value. In the set of this project
/// only tensors that are 0 everywhere are so small.
pub const ABSOLUTE: f64 = 1e-7;

/// Worst error of one file and one sort of comparison.
#[derive(Default)]
struct Worst {
    error: f64,
    tensor: String,
    count: usize,
}

/// All comparisons of one case.
#[derive(Default)]
pub struct Check {
    failures: Vec<String>,
    worst: BTreeMap<(String, &'static str), Worst>,
}

fn numbers(t: &Tensor) -> Result<Vec<f64>> {
    t.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}

impl Check {
    pub fn fail(&mut self, message: String) {
        self.failures.push(message);
    }

    /// What was off.
    pub fn failures(&self) -> &[String] {
        &self.failures
    }

    /// A line for every file and sort of comparison.
    pub fn table(&self) -> Vec<String> {
        let line = |((file, sort), w): (&(String, &'static str), &Worst)| {
            format!(
                "{file:<40} {sort:<10} {:>4} tensors, worst error {:.1e} ({})",
                w.count, w.error, w.tensor
            )
        };
        self.worst.iter().map(line).collect()
    }

    fn note(&mut self, file: &str, sort: &'static str, tensor: &str, error: f64) {
        let worst = self.worst.entry((file.to_owned(), sort)).or_default();
        worst.count += 1;
        if worst.count == 1 || error > worst.error {
            worst.error = error;
            worst.tensor = tensor.to_owned();
        }
    }

    /// Largest |difference| relative to the largest |expected|. Ours must be finite; of expected numbers only
    /// gradients may not be (exponents below 1), and are not compared there.
    fn near(
        &mut self,
        file: &str,
        sort: &'static str,
        name: &str,
        (ours, expected): (&Tensor, &Tensor),
        tolerance: f64,
    ) -> Result<()> {
        if ours.dims() != expected.dims() {
            self.fail(format!("{file}: {name}: shape {:?}, expected {:?}", ours.dims(), expected.dims()));
            return Ok(());
        }
        let (ours, expected) = (numbers(ours)?, numbers(expected)?);
        if let Some(at) = ours.iter().position(|v| !v.is_finite()) {
            self.fail(format!("{file}: {name}: {} at flat position {at}", ours[at]));
            return Ok(());
        }
        let unknown = expected.iter().filter(|e| !e.is_finite()).count();
        if unknown > 0 && sort == "gradients" {
            println!(
                "{file}: {name}: {unknown} expected numbers are not finite and not compared; ours are finite"
            );
        } else if unknown > 0 {
            self.fail(format!("{file}: {name}: {unknown} expected numbers are not finite"));
        }
        let scale = expected.iter().filter(|e| e.is_finite()).fold(0.0f64, |m, e| m.max(e.abs()));
        let (mut off, mut at) = (0.0, 0);
        for (i, (o, e)) in ours.iter().zip(&expected).enumerate() {
            if e.is_finite() && (o - e).abs() > off {
                (off, at) = ((o - e).abs(), i);
            }
        }
        let scale = scale.max(ABSOLUTE / tolerance);
        self.note(file, sort, name, off / scale);
        if off > tolerance * scale {
            self.fail(format!(
                "{file}: {name}: off by {:.2e} of the largest value (allowed {tolerance:.0e}); worst at flat position {at}: {} instead of {}",
                off / scale, ours[at], expected[at]
            ));
        }
        Ok(())
    }

    /// Forward values.
    pub fn values(&mut self, io: &Tensors, name: &str, ours: &Tensor) -> Result<()> {
        self.values_within(io, name, ours, VALUES)
    }

    /// Forward values against a part of an expected tensor.
    pub fn part(&mut self, io: &Tensors, name: &str, ours: &Tensor, expected: &Tensor) -> Result<()> {
        self.near(&io.file, "values", name, (ours, expected), VALUES)
    }

    /// Forward values with a tolerance of their own.
    pub fn values_within(&mut self, io: &Tensors, name: &str, ours: &Tensor, tolerance: f64) -> Result<()> {
        self.near(&io.file, "values", name, (ours, &io.get(name)?), tolerance)
    }

    /// A scalar.
    pub fn scalar(&mut self, io: &Tensors, name: &str, ours: f64) -> Result<()> {
        let ours = Tensor::new(ours, &candle_core::Device::Cpu)?;
        self.values(io, name, &ours)
    }

    /// A list of numbers in the expected tensor's shape.
    pub fn list(&mut self, io: &Tensors, name: &str, ours: Vec<f64>) -> Result<()> {
        let expected = io.get(name)?;
        if expected.elem_count() != ours.len() {
            self.fail(format!("{}: {name}: {} numbers, expected {:?}", io.file, ours.len(), expected.dims()));
            return Ok(());
        }
        let ours = Tensor::from_vec(ours, expected.dims(), &candle_core::Device::Cpu)?;
        self.values(io, name, &ours)
    }

    /// One gradient.
    pub fn gradient(&mut self, io: &Tensors, name: &str, ours: &Tensor) -> Result<()> {
        self.near(&io.file, "gradients", name, (ours, &io.get(name)?), GRADIENTS)
    }

    /// The gradient of every parameter of `store`, named `grad.<prefix><parameter>` in the file.
    pub fn gradients(
        &mut self,
        io: &Tensors,
        prefix: &str,
        store: &ParamStore,
        grads: &GradStore,
    ) -> Result<()> {
        for (name, param) in store.params() {
            let Some(ours) = grads.get(param.var.as_tensor()) else {
                self.fail(format!("{}: no gradient reaches {name}", io.file));
                continue;
            };
            self.gradient(io, &format!("grad.{prefix}{name}"), ours)?;
            if let Some(row) = param.frozen_row
                && numbers(&ours.get(row as usize)?)?.iter().any(|g| *g != 0.0)
            {
                self.fail(format!("{}: {name}: the frozen row {row} has a gradient", io.file));
            }
        }
        Ok(())
    }

    /// Integers, exactly.
    pub fn integers(&mut self, io: &Tensors, name: &str, ours: &Tensor) -> Result<()> {
        let expected = io.get(name)?;
        if ours.dims() != expected.dims() {
            self.fail(format!(
                "{}: {name}: shape {:?}, expected {:?}",
                io.file,
                ours.dims(),
                expected.dims()
            ));
            return Ok(());
        }
        let (ours, expected) = (numbers(ours)?, numbers(&expected)?);
        let wrong = ours.iter().zip(&expected).filter(|(o, e)| o != e).count();
        self.note(&io.file, "integers", name, wrong as f64);
        if wrong > 0 {
            self.fail(format!("{}: {name}: {wrong} of {} integers differ", io.file, ours.len()));
        }
        Ok(())
    }

    /// A comparison of another sort that has to hold.
    pub fn holds(&mut self, file: &str, what: &str, holds: bool) {
        self.note(file, "facts", what, if holds { 0.0 } else { 1.0 });
        if !holds {
            self.fail(format!("{file}: {what}: does not hold"));
        }
    }
}

/// Whether two tensors hold the same bits (up to the sign of zero).
pub fn identical(a: &Tensor, b: &Tensor) -> Result<bool> {
    Ok(a.dtype() == b.dtype() && a.dims() == b.dims() && numbers(a)? == numbers(b)?)
}
