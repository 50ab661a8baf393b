//! Gradient check: a backward pass against central differences in double precision.
//!
//! df/dx_i ≈ (f(x + h e_i) − f(x − h e_i)) / 2h, h = 1e-5·max(1, |x_i|).

use crate::storage;
use candle_core::{DType, Result, Tensor, Var};

const OP: &str = "gradcheck";

/// Checks the gradient of the scalar `f` with respect to every element of every input.
///
/// An element passes when |analytic − numeric| ≤ tol·max(1, |analytic|, |numeric|). An input that `f`
/// gives no gradient for passes only if its numeric gradient is zero as well. `f` must be
/// deterministic: give it its noise.
///
/// # Errors
/// Inputs that are not `f64`, a result that is not a scalar, or a gradient that is off: the message
/// names the worst element with its input, index, analytic and numeric value.
pub fn check(inputs: &[Tensor], f: impl Fn(&[Var]) -> Result<Tensor>, tol: f64) -> Result<()> {
    let mut values = Vec::with_capacity(inputs.len());
    for (i, input) in inputs.iter().enumerate() {
        if input.dtype() != DType::F64 {
            return Err(storage::error(OP, format_args!("input {i} is {:?}, not F64", input.dtype())));
        }
        values.push(storage::to_vec::<f64>(OP, input)?);
    }
    let vars = |values: &[Vec<f64>]| -> Result<Vec<Var>> {
        let var =
            |(v, t): (&Vec<f64>, &Tensor)| Var::from_tensor(&storage::tensor(v.clone(), t.shape().clone())?);
        values.iter().zip(inputs).map(var).collect()
    };
    let evaluate = |values: &[Vec<f64>]| f(&vars(values)?)?.to_scalar::<f64>();

    let variables = vars(&values)?;
    let result = f(&variables)?;
    if result.rank() != 0 {
        return Err(storage::error(
            OP,
            format_args!("the function returned shape {:?}, not a scalar", result.dims()),
        ));
    }
    let gradients = result.backward()?;

    let mut worst: Option<(f64, String)> = None;
    for (i, input) in inputs.iter().enumerate() {
        let gradient = match gradients.get(variables[i].as_tensor()) {
            Some(g) if g.shape() != input.shape() => {
                return Err(storage::error(
                    OP,
                    format_args!(
                        "the gradient of input {i} has shape {:?}, the input {:?}",
                        g.dims(),
                        input.dims()
                    ),
                ));
            }
            Some(g) => Some(storage::to_vec::<f64>(OP, g)?),
            None => None,
        };
        for j in 0..values[i].len() {
            let x = values[i][j];
            let h = 1e-5 * x.abs().max(1.0);
            values[i][j] = x + h;
            let above = evaluate(&values)?;
            values[i][j] = x - h;
            let below = evaluate(&values)?;
            values[i][j] = x;
            let numeric = (above - below) / (2.0 * h);
            let analytic = gradient.as_ref().map_or(0.0, |g| g[j]);
            let off = (analytic - numeric).abs() / analytic.abs().max(numeric.abs()).max(1.0);
            // A NaN is worse than any number.
            let off = if off.is_nan() { f64::INFINITY } else { off };
            if off > tol && worst.as_ref().is_none_or(|(w, _)| off > *w) {
                let missing = if gradient.is_none() { " (no gradient arrived)" } else { "" };
                let text = format!(
                    "input {i} at {:?}: analytic {analytic:e}{missing}, numeric {numeric:e}, off by {off:.1e} \
                     where {tol:.1e} is allowed",
                    index(j, input.dims())
                );
                worst = Some((off, text));
            }
        }
    }
    match worst {
        Some((_, text)) => Err(storage::error(OP, text)),
        None => Ok(()),
    }
}

/// The multi-index of flat element `j`.
fn index(mut j: usize, dims: &[usize]) -> Vec<usize> {
    let mut out = vec![0; dims.len()];
    for (slot, &d) in out.iter_mut().zip(dims).rev() {
        *slot = j % d;
        j /= d;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn inputs() -> Vec<Tensor> {
        vec![
            Tensor::new(&[[0.3f64, -1.2], [2.0, 0.7]], &Device::Cpu).unwrap(),
            Tensor::new(&[1.5f64, -0.4], &Device::Cpu).unwrap(),
        ]
    }

    #[test]
    fn a_right_gradient_passes() {
        check(&inputs(), |v| v[0].sqr()?.broadcast_mul(&v[1].exp()?)?.sum_all(), 1e-8).unwrap();
    }

    #[test]
    fn a_cut_gradient_is_found_and_its_worst_element_named() {
        let factors = Tensor::new(&[[0.1f64, 0.2], [0.4, 0.3]], &Device::Cpu).unwrap();
        let cut = |v: &[Var]| -> Result<Tensor> {
            v[0].as_detached_tensor().mul(&factors)?.sum_all()? + v[0].sum_all()?
        };
        let err = check(&inputs(), cut, 1e-8).unwrap_err().to_string();
        assert!(err.contains("input 0") && err.contains("[1, 0]"), "{err}");
        let forgotten = |v: &[Var]| v[0].sum_all()? + v[1].as_detached_tensor().sum_all()?;
        let err = check(&inputs(), forgotten, 1e-8).unwrap_err().to_string();
        assert!(err.contains("input 1") && err.contains("no gradient arrived"), "{err}");
    }

    #[test]
    fn single_precision_and_vector_results_are_refused() {
        let single = vec![Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap()];
        assert!(check(&single, |v| v[0].sum_all(), 1e-3).unwrap_err().to_string().contains("F64"));
        let err = check(&inputs(), |v| v[0].sqr(), 1e-3).unwrap_err().to_string();
        assert!(err.contains("scalar"), "{err}");
    }
}
