//! candle's operations on the host device against its CPU ones.

use candle_core::{D, DType, Device, Result, Tensor};

fn cuda() -> Device {
    Device::new_cuda(0).unwrap()
}

/// A tensor of made-up numbers between -2 and 2.
fn numbers(shape: &[usize], seed: u64, device: &Device) -> Result<Tensor> {
    let count = shape.iter().product::<usize>() as u64;
    let values: Vec<f32> = (0..count)
        .map(|i| {
            let x = (i + seed * 7919).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
            x as f32 / (1u32 << 22) as f32 - 2.0
        })
        .collect();
    Tensor::from_vec(values, shape, device)
}

/// Runs `f` on both devices and compares all results, relative to the largest number.
fn same(what: &str, tolerance: f64, f: impl Fn(&Device) -> Result<Tensor>) {
    let cpu = f(&Device::Cpu).unwrap_or_else(|e| panic!("{what} on the CPU: {e}"));
    let gpu = f(&cuda()).unwrap_or_else(|e| panic!("{what} on the host device: {e}"));
    assert_eq!(cpu.dtype(), gpu.dtype(), "{what}");
    assert_eq!(cpu.dims(), gpu.dims(), "{what}");
    let flat = |t: &Tensor| {
        t.to_device(&Device::Cpu)
            .and_then(|t| t.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>())
            .unwrap_or_else(|e| panic!("{what}: {e}"))
    };
    let (cpu, gpu) = (flat(&cpu), flat(&gpu));
    let size = cpu.iter().fold(1e-6f64, |m, x| m.max(x.abs()));
    for (i, (a, b)) in cpu.iter().zip(&gpu).enumerate() {
        assert!((a - b).abs() <= tolerance * size, "{what}: element {i}: {a} on the CPU, {b} on the device");
    }
}

const FLOATS: [(DType, f64); 4] =
    [(DType::F32, 2e-6), (DType::F64, 1e-12), (DType::BF16, 2e-2), (DType::F16, 1e-2)];

#[test]
fn unary_operations() {
    type Op = (&'static str, fn(&Tensor) -> Result<Tensor>);
    let ops: [Op; 21] = [
        ("neg", |x| x.neg()),
        ("exp", |x| x.exp()),
        ("sin", |x| x.sin()),
        ("cos", |x| x.cos()),
        ("tanh", |x| x.tanh()),
        ("erf", |x| x.erf()),
        ("ceil", |x| x.ceil()),
        ("floor", |x| x.floor()),
        ("round", |x| (x + 0.1)?.round()),
        ("abs", |x| x.abs()),
        ("sqr", |x| x.sqr()),
        ("sqrt", |x| x.abs()?.sqrt()),
        ("log", |x| (x.abs()? + 0.1)?.log()),
        ("recip", |x| (x.abs()? + 0.5)?.recip()),
        ("gelu", |x| x.gelu()),
        ("gelu_erf", |x| x.gelu_erf()),
        ("relu", |x| x.relu()),
        ("silu", |x| x.silu()),
        ("sign", |x| x.sign()),
        ("elu", |x| x.elu(0.7)),
        ("powf", |x| (x.abs()? + 0.1)?.powf(1.7)),
    ];
    for (dtype, tolerance) in FLOATS {
        for (name, op) in ops {
            same(&format!("{name} {dtype:?}"), tolerance, |d| op(&numbers(&[3, 50], 1, d)?.to_dtype(dtype)?));
            same(&format!("{name} {dtype:?} strided"), tolerance, |d| {
                op(&numbers(&[7, 6, 5], 2, d)?.to_dtype(dtype)?.transpose(0, 2)?.narrow(1, 1, 4)?)
            });
        }
        same("affine", tolerance, |d| numbers(&[3, 50], 1, d)?.to_dtype(dtype)?.affine(1.5, -0.25));
    }
}

#[test]
fn binary_operations() {
    type Op = (&'static str, fn(&Tensor, &Tensor) -> Result<Tensor>);
    let ops: [Op; 12] = [
        ("add", |x, y| x.broadcast_add(y)),
        ("sub", |x, y| x.broadcast_sub(y)),
        ("mul", |x, y| x.broadcast_mul(y)),
        ("div", |x, y| x.broadcast_div(&(y.abs()? + 0.5)?)),
        ("maximum", |x, y| x.broadcast_maximum(y)),
        ("minimum", |x, y| x.broadcast_minimum(y)),
        ("eq", |x, y| x.broadcast_eq(y)),
        ("ne", |x, y| x.broadcast_ne(y)),
        ("lt", |x, y| x.broadcast_lt(y)),
        ("le", |x, y| x.broadcast_le(y)),
        ("gt", |x, y| x.broadcast_gt(y)),
        ("ge", |x, y| x.broadcast_ge(y)),
    ];
    for (dtype, tolerance) in FLOATS {
        for (name, op) in ops {
            for (left, right) in [([4, 5, 6], [4, 5, 6]), ([4, 5, 6], [1, 5, 1]), ([1, 1, 6], [4, 5, 6])] {
                same(&format!("{name} {dtype:?} {left:?} {right:?}"), tolerance, |d| {
                    let x = numbers(&left, 3, d)?.to_dtype(dtype)?;
                    op(&x, &numbers(&right, 4, d)?.to_dtype(dtype)?)
                });
            }
        }
    }
    for dtype in [DType::U8, DType::U32, DType::I64] {
        same(&format!("integers {dtype:?}"), 0.0, |d| {
            let x = (numbers(&[40], 5, d)? * 5.0)?.abs()?.to_dtype(dtype)?;
            let y = (numbers(&[40], 6, d)? * 5.0)?.abs()?.to_dtype(dtype)?;
            ((&x * &y)? + x.maximum(&y)?)?.minimum(&(&x + &y)?)
        });
    }
}

#[test]
fn casts() {
    let from = [DType::F32, DType::F64, DType::BF16, DType::F16, DType::U8, DType::U32, DType::I64];
    for a in from {
        for b in from {
            // candle has no such kernels.
            if matches!(
                (a, b),
                (DType::BF16 | DType::F16, DType::I64) | (DType::I64, DType::BF16 | DType::F16)
            ) {
                continue;
            }
            same(&format!("{a:?} to {b:?}"), 0.0, |d| {
                (numbers(&[6, 7], 8, d)? * 50.0)?.abs()?.floor()?.to_dtype(a)?.t()?.to_dtype(b)
            });
        }
    }
}

/// The CPU sums half precision in half precision, a device in single precision: the CPU gets what it sums in
/// single precision.
fn summed(x: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let half = matches!(x.dtype(), DType::BF16 | DType::F16);
    if x.device().is_cpu() && half { f(&x.to_dtype(DType::F32)?)?.to_dtype(x.dtype()) } else { f(x) }
}

#[test]
fn reductions() {
    for (dtype, tolerance) in FLOATS {
        let tolerance = tolerance * 4.0;
        for shape in [[3, 4, 5], [2, 3, 200], [2, 100, 3]] {
            for dim in 0..3 {
                same(&format!("sum {dtype:?} {shape:?} {dim}"), tolerance, |d| {
                    summed(&(numbers(&shape, 9, d)? + 1.0)?.to_dtype(dtype)?, |x| x.sum_keepdim(dim))
                });
                same(&format!("max {dtype:?} {shape:?} {dim}"), tolerance, |d| {
                    numbers(&shape, 9, d)?.to_dtype(dtype)?.max(dim)
                });
                same(&format!("argmax {dtype:?} {shape:?} {dim}"), 0.0, |d| {
                    numbers(&shape, 9, d)?.to_dtype(dtype)?.argmax(dim)
                });
                same(&format!("argmin {dtype:?} {shape:?} {dim}"), 0.0, |d| {
                    numbers(&shape, 9, d)?.to_dtype(dtype)?.transpose(0, 2)?.argmin(dim)
                });
                same(&format!("min {dtype:?} {shape:?} {dim}"), tolerance, |d| {
                    numbers(&shape, 9, d)?.to_dtype(dtype)?.min(dim)
                });
            }
            same(&format!("mean {dtype:?} {shape:?}"), tolerance, |d| {
                summed(&(numbers(&shape, 9, d)? + 1.0)?.to_dtype(dtype)?, |x| x.mean((0, 2)))
            });
            same(&format!("sum_all {dtype:?} {shape:?}"), tolerance, |d| {
                summed(&(numbers(&shape, 9, d)? + 1.0)?.to_dtype(dtype)?, |x| x.sum_all())
            });
        }
    }
    same("argsort", 0.0, |d| numbers(&[5, 33], 10, d)?.arg_sort_last_dim(true));
    same("argsort down", 0.0, |d| numbers(&[5, 33], 10, d)?.arg_sort_last_dim(false));
}

#[test]
fn indexing() {
    let ids = |d: &Device, dtype| Tensor::new(&[2u32, 0, 3, 3], d)?.to_dtype(dtype);
    for (dtype, tolerance) in FLOATS {
        for id in [DType::U8, DType::U32, DType::I64] {
            for dim in 0..3 {
                let what = format!("{dtype:?} by {id:?} in {dim}");
                let x = |d: &Device| numbers(&[4, 4, 4], 11, d)?.to_dtype(dtype);
                let index = |d: &Device| (numbers(&[4, 4, 4], 12, d)?.abs()? * 1.9)?.floor()?.to_dtype(id);
                same(&format!("index_select {what}"), 0.0, |d| x(d)?.index_select(&ids(d, id)?, dim));
                same(&format!("gather {what}"), 0.0, |d| x(d)?.gather(&index(d)?, dim));
                same(&format!("index_add {what}"), tolerance, |d| {
                    x(d)?.index_add(&ids(d, id)?, &numbers(&[4, 4, 4], 13, d)?.to_dtype(dtype)?, dim)
                });
                same(&format!("scatter_add {what}"), tolerance, |d| {
                    x(d)?.scatter_add(&index(d)?, &numbers(&[4, 4, 4], 13, d)?.to_dtype(dtype)?, dim)
                });
            }
            same("where", 0.0, |d| {
                let condition = (numbers(&[4, 5], 14, d)? + 2.0)?.floor()?.to_dtype(id)?;
                let x = numbers(&[5, 4], 15, d)?.to_dtype(dtype)?.t()?;
                let y = numbers(&[1, 5], 16, d)?.to_dtype(dtype)?.broadcast_as((4, 5))?;
                condition.where_cond(&x, &y)
            });
        }
        same("scatter", 0.0, |d| {
            let index = Tensor::new(&[[1u32, 0, 2], [2, 1, 0]], d)?;
            let x = numbers(&[2, 4], 17, d)?.to_dtype(dtype)?;
            x.scatter(&index, &numbers(&[2, 3], 18, d)?.to_dtype(dtype)?, 1)
        });
    }
}

#[test]
fn layouts_and_copies() {
    same("contiguous", 0.0, |d| numbers(&[3, 4, 5], 1, d)?.permute((2, 0, 1))?.contiguous());
    same("cat 0", 0.0, |d| Tensor::cat(&[&numbers(&[2, 3], 1, d)?, &numbers(&[4, 3], 2, d)?], 0));
    same("cat 1", 0.0, |d| {
        Tensor::cat(&[&numbers(&[3, 2], 1, d)?, &numbers(&[3, 4], 2, d)?.narrow(1, 1, 3)?], 1)
    });
    same("slice_set", 0.0, |d| {
        let x = numbers(&[4, 6, 2], 1, d)?;
        x.slice_set(&numbers(&[4, 2, 2], 2, d)?, 1, 3)?;
        Ok(x)
    });
    same("full", 0.0, |d| Tensor::full(2.5f32, (3, 4), d)?.contiguous());
    same("ones", 0.0, |d| Tensor::ones((3, 4), DType::BF16, d));
    same("zeros", 0.0, |d| Tensor::zeros((3, 4), DType::I64, d));
    same("arange", 0.0, |d| Tensor::arange(0u32, 9, d));
    same("pad", 0.0, |d| numbers(&[3, 4], 1, d)?.pad_with_zeros(1, 2, 1));
    same("repeat", 0.0, |d| numbers(&[3, 4], 1, d)?.repeat((2, 3)));
}

#[test]
fn products_of_matrices() {
    for (dtype, tolerance) in FLOATS {
        for (m, k, n) in [(1, 1, 1), (7, 5, 3), (1, 64, 9), (33, 40, 17), (70, 128, 65)] {
            let what = format!("{dtype:?} {m} {k} {n}");
            let make = |shape: &[usize], seed, d: &Device| numbers(shape, seed, d)?.to_dtype(dtype);
            same(&format!("plain {what}"), tolerance, |d| make(&[m, k], 1, d)?.matmul(&make(&[k, n], 2, d)?));
            same(&format!("both turned {what}"), tolerance, |d| {
                make(&[k, m], 1, d)?.t()?.matmul(&make(&[n, k], 2, d)?.t()?)
            });
            same(&format!("batch {what}"), tolerance, |d| {
                make(&[3, m, k], 1, d)?.matmul(&make(&[3, n, k], 2, d)?.transpose(1, 2)?)
            });
            same(&format!("broadcast {what}"), tolerance, |d| {
                make(&[2, 3, m, k], 1, d)?.broadcast_matmul(&make(&[k, n], 2, d)?)
            });
        }
    }
}

#[test]
fn random_numbers() {
    let device = cuda();
    device.set_seed(3).unwrap();
    let normal = Tensor::randn(1f32, 2.0, (101, 99), &device).unwrap();
    let uniform = Tensor::rand(-1f32, 3.0, 10000, &device).unwrap();
    let mean = |x: &Tensor| x.mean_all().unwrap().to_scalar::<f32>().unwrap();
    assert!((mean(&normal) - 1.0).abs() < 0.1);
    assert!((mean(&((&normal - 1.0).unwrap().sqr().unwrap())) - 4.0).abs() < 0.3);
    assert!((mean(&uniform) - 1.0).abs() < 0.1);
    assert!(uniform.min_all().unwrap().to_scalar::<f32>().unwrap() >= -1.0);
    assert!(uniform.max_all().unwrap().to_scalar::<f32>().unwrap() <= 3.0);
}

#[test]
fn gradients() {
    same("backward", 1e-5, |d| {
        let x = candle_core::Var::from_tensor(&numbers(&[5, 8], 1, d)?)?;
        let y = x.matmul(&numbers(&[8, 6], 2, d)?)?.silu()?;
        let loss = (y.broadcast_sub(&y.max_keepdim(D::Minus1)?)?.exp()?.sum(1)?.log()?).mean_all()?;
        Ok(loss.backward()?.get(&x).unwrap().clone())
    });
}
