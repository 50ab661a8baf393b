//! What the operator tests share: reproducible inputs and comparisons with a plain composition.

#![allow(dead_code, clippy::unwrap_used)]

use calm_kernels::device;
use calm_kernels::philox::{NoiseKey, RowId, uniform};
use candle_core::{DType, Device, Result, Tensor, Var};
use std::sync::OnceLock;

/// Reproducible numbers in [-1, 1), double precision.
pub fn random(shape: &[usize], seed: u64) -> Tensor {
    let row = [RowId { example: 0, position: 0 }];
    let x = uniform(NoiseKey::new(seed, "tests", 0), &row, 1, shape.iter().product());
    let x: Vec<f64> = x.into_iter().map(|u| 2.0 * f64::from(u) - 1.0).collect();
    Tensor::from_vec(x, shape, &Device::Cpu).unwrap()
}

/// All elements in order, double precision.
pub fn flat(t: &Tensor) -> Vec<f64> {
    t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// Largest difference, relative to the largest value where that is above 1; infinite for NaN.
pub fn worst(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!(got.dims(), want.dims());
    let (got, want) = (flat(got), flat(want));
    let scale = want.iter().fold(1.0f64, |a, b| a.max(b.abs()));
    let off = got.iter().zip(&want).map(|(g, w)| (g - w).abs());
    off.fold(0.0f64, |a, b| if b.is_nan() { f64::INFINITY } else { a.max(b) }) / scale
}

/// The first GPU, if this build can use one and there is one. CALM_TEST_GPU=1 makes its absence an error.
pub fn gpu() -> Option<Device> {
    static GPU: OnceLock<Option<Device>> = OnceLock::new();
    let open = || match device::gpus() {
        Ok(_) => Some(device::open(device::Choice::Cuda(0)).unwrap()),
        Err(reason) => {
            assert!(std::env::var_os("CALM_TEST_GPU").is_none(), "{reason}");
            println!("skipped: comparisons on a GPU ({reason}) (needs a GPU)");
            None
        }
    };
    GPU.get_or_init(open).clone()
}

/// The value of `f`, then the gradient of a weighted sum of it with respect to every input, on the device of the
/// inputs.
pub fn value_and_gradients(
    inputs: &[Tensor],
    dtype: DType,
    f: &dyn Fn(&[Var]) -> Result<Tensor>,
) -> Vec<Tensor> {
    let vars: Vec<Var> =
        inputs.iter().map(|t| Var::from_tensor(&t.to_dtype(dtype).unwrap()).unwrap()).collect();
    let value = f(&vars).unwrap();
    let weights = random(value.dims(), 99).to_dtype(value.dtype()).unwrap();
    let weights = weights.to_device(value.device()).unwrap();
    let grads = (&value * weights).unwrap().sum_all().unwrap().backward().unwrap();
    let mut out = vec![value];
    out.extend(vars.iter().map(|v| grads.get(v).unwrap().clone()));
    out
}

/// Values and gradients of `f` equal those of `plain` on the CPU and on a GPU: [`compare_on_cpu`], and
/// [`compare_on_gpu`] with `tol` and 2e-2 in `bf16`.
pub fn compare(
    inputs: &[Tensor],
    f: impl Fn(&[Var]) -> Result<Tensor>,
    plain: impl Fn(&[Var]) -> Result<Tensor>,
    tol: f64,
) {
    compare_on_cpu(inputs, &f, &plain, tol);
    compare_on_gpu(inputs, &f, &plain, tol.max(1e-5), 2e-2);
}

/// Values and gradients of `f` equal those of `plain` in double precision: to 1e-12 in `f64`, and to `tol`
/// (more for long sums) in `f32`, both fed with the same single-precision numbers.
pub fn compare_on_cpu(
    inputs: &[Tensor],
    f: impl Fn(&[Var]) -> Result<Tensor>,
    plain: impl Fn(&[Var]) -> Result<Tensor>,
    tol: f64,
) {
    let round = |t: &Tensor| t.to_dtype(DType::F32).unwrap().to_dtype(DType::F64).unwrap();
    let inputs: Vec<Tensor> = inputs.iter().map(round).collect();
    let want = value_and_gradients(&inputs, DType::F64, &plain);
    for (dtype, tol) in [(DType::F64, 1e-12), (DType::F32, tol)] {
        let got = value_and_gradients(&inputs, dtype, &f);
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            assert_eq!(got.dtype(), dtype);
            let off = worst(got, want);
            let what = if i == 0 { "value".to_string() } else { format!("gradient of input {}", i - 1) };
            assert!(off <= tol, "{what} in {dtype:?} is off by {off:.1e} at {:?}", inputs[0].dims());
        }
    }
}

/// Where there is a GPU: values and gradients of `f` on it, in f32 to `tol` and in bf16 to `tol_bf16`, equal those
/// of `plain` on the CPU in double precision, fed with the same rounded numbers. What else `f` takes must
/// be on the device of its inputs (`.to_device(vars[0].device())`).
pub fn compare_on_gpu(
    inputs: &[Tensor],
    f: impl Fn(&[Var]) -> Result<Tensor>,
    plain: impl Fn(&[Var]) -> Result<Tensor>,
    tol: f64,
    tol_bf16: f64,
) {
    let Some(gpu) = gpu() else { return };
    for (dtype, tol) in [(DType::F32, tol), (DType::BF16, tol_bf16)] {
        let round = |t: &Tensor| t.to_dtype(dtype).unwrap().to_dtype(DType::F64).unwrap();
        let rounded: Vec<Tensor> = inputs.iter().map(round).collect();
        let want = value_and_gradients(&rounded, DType::F64, &plain);
        // Candle has no casts between all formats on a GPU, so they are made before.
        let there: Vec<Tensor> =
            rounded.iter().map(|t| t.to_dtype(dtype).unwrap().to_device(&gpu).unwrap()).collect();
        let got = value_and_gradients(&there, dtype, &f);
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            let off = worst(&got.to_device(&Device::Cpu).unwrap(), want);
            let what = if i == 0 { "value".to_string() } else { format!("gradient of input {}", i - 1) };
            assert!(
                off <= tol,
                "{what} in {dtype:?} on the GPU is off by {off:.1e} at {:?}",
                inputs[0].dims()
            );
        }
    }
}

/// Value and gradients of `f` in `f32` are the same to the bit on 1, 2 and 3 threads.
pub fn same_bits_for_any_thread_count(inputs: &[Tensor], f: impl Fn(&[Var]) -> Result<Tensor> + Sync) {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let all = pool.install(|| value_and_gradients(inputs, DType::F32, &f));
        let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        all.iter().flat_map(bits).map(f32::to_bits).collect::<Vec<_>>()
    };
    let one = run(1);
    assert_eq!(one, run(2));
    assert_eq!(one, run(3));
}
