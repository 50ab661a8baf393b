//! The energy score and its gradient against the CPU operator.

use crate::common::*;
use calm_kernels::{TargetNoise, energy_score};
use calm_twins::{ENERGY_THREADS, Element, energy_shared_bytes};
use candle_core::{Tensor, Var};
use half::bf16;

/// R rows of N samples, M targets, L dimensions.
#[derive(Clone, Copy, Debug)]
struct Case {
    r: usize,
    n: usize,
    m: usize,
    l: usize,
    alpha: f64,
}

const CASES: [Case; 9] = [
    Case { r: 5, n: 8, m: 100, l: 128, alpha: 1.0 },
    Case { r: 1, n: 2, m: 1, l: 1, alpha: 1.0 },
    Case { r: 3, n: 2, m: 1, l: 7, alpha: 1.0 },
    Case { r: 2, n: 3, m: 17, l: 33, alpha: 1.5 },
    Case { r: 2, n: 8, m: 16, l: 64, alpha: 0.5 },
    Case { r: 2, n: 9, m: 15, l: 130, alpha: 1.0 },
    Case { r: 1, n: 35, m: 33, l: 20, alpha: 1.9 },
    Case { r: 1, n: 4, m: 5, l: 1023, alpha: 1.0 },
    Case { r: 1, n: 2, m: 3, l: 1024, alpha: 1.25 },
];

struct Inputs<T> {
    pred: Vec<T>,
    mean: Vec<f32>,
    log_std: Vec<f32>,
}

fn inputs<T: Element>(c: Case) -> Inputs<T> {
    Inputs {
        pred: randn(c.r * c.n * c.l, "pred", 1.0),
        mean: randn(c.r * c.l, "mean", 1.0),
        log_std: randn(c.r * c.l, "log_std", 0.5),
    }
}

/// (loss, gradient) of the kernel, `given` `[M, R, L]` in place of drawn noise.
fn twin<T: Element + PartialEq + std::fmt::Debug>(
    c: Case,
    x: &Inputs<T>,
    given: Option<&[f32]>,
) -> (Vec<f32>, Vec<T>) {
    let (_, rows) = rows(c.r);
    let run = |launch, gradient: Option<&mut Vec<T>>| {
        let mut loss = vec![f32::NAN; c.r];
        // SAFETY: the buffers have the sizes that the kernel's shapes r, n, m, l call for, and the launch
        // its shared memory.
        unsafe {
            (T::KERNELS.energy_score)(
                launch,
                x.pred.as_ptr(),
                x.mean.as_ptr(),
                x.log_std.as_ptr(),
                twin_key(key("targets")),
                rows.as_ptr(),
                given.map_or(std::ptr::null(), <[f32]>::as_ptr),
                loss.as_mut_ptr(),
                gradient.map_or(std::ptr::null_mut(), Vec::as_mut_ptr),
                c.r as u32,
                c.n as u32,
                c.m as u32,
                c.l as u32,
                c.alpha,
            );
        }
        loss
    };
    same_for(&grids(ENERGY_THREADS, energy_shared_bytes(c.l as u32)), |launch| {
        let mut gradient = vec![T::of(f32::NAN); x.pred.len()];
        let loss = run(launch, Some(&mut gradient));
        assert_eq!(loss, run(launch, None), "the loss without a gradient differs");
        (loss, gradient)
    })
}

/// (loss, gradient) of the CPU operator.
fn cpu<T: Element>(c: Case, x: &Inputs<T>, given: Option<&[f32]>) -> (Vec<f32>, Vec<f32>) {
    let pred = var(&x.pred, (c.r, c.n, c.l));
    let of = |x: &[f32]| tensor(x, (c.r, c.l));
    let (rows, _) = rows(c.r);
    let given = given.map(|g| tensor(g, (c.m, c.r, c.l)));
    let noise = match &given {
        Some(given) => TargetNoise::Given(given),
        None => TargetNoise::Draw { key: key("targets"), rows: &rows, samples: c.m },
    };
    let loss = energy_score(&pred, &of(&x.mean), &of(&x.log_std), noise, c.alpha).unwrap();
    let gradient = gradients(&loss, &vec![1.0f32; c.r], &[&pred]).remove(0);
    (flat(&loss), gradient)
}

#[test]
fn loss_and_gradient_are_the_cpus() {
    for c in CASES {
        let x = inputs::<f32>(c);
        let (loss, gradient) = twin(c, &x, None);
        let (cpu_loss, cpu_gradient) = cpu(c, &x, None);
        // Double-precision totals of the same distances in another order.
        assert_close(&loss, &cpu_loss, 1e-7, &format!("loss {c:?}"));
        assert_bits(&gradient, &cpu_gradient, &format!("gradient {c:?}"));
    }
}

#[test]
fn bf16_predictions_give_the_f32_result_of_their_values() {
    for c in CASES {
        let x = inputs::<bf16>(c);
        let (loss, gradient) = twin(c, &x, None);
        let (cpu_loss, cpu_gradient) = cpu(c, &x, None);
        assert_close(&loss, &cpu_loss, 1e-7, &format!("loss {c:?}"));
        assert_bits(&gradient, &cpu_gradient, &format!("gradient {c:?}"));
    }
}

#[test]
fn given_noise_takes_the_place_of_drawn_noise() {
    let c = Case { r: 3, n: 4, m: 18, l: 30, alpha: 1.0 };
    let x = inputs::<f32>(c);
    let given = randn::<f32>(c.m * c.r * c.l, "given", 1.0);
    let (loss, gradient) = twin(c, &x, Some(&given));
    let (cpu_loss, cpu_gradient) = cpu(c, &x, Some(&given));
    assert_close(&loss, &cpu_loss, 1e-7, "loss");
    assert_bits(&gradient, &cpu_gradient, "gradient");
}

#[test]
fn coincident_points_have_a_gradient_of_exactly_zero() {
    for alpha in [0.3, 1.0, 1.7] {
        let c = Case { r: 2, n: 9, m: 3, l: 5, alpha };
        // All samples and all targets at one point.
        let x = Inputs {
            pred: vec![0.25f32; c.r * c.n * c.l],
            mean: vec![0.25; c.r * c.l],
            log_std: vec![0.0; c.r * c.l],
        };
        let (loss, gradient) = twin(c, &x, Some(&vec![0.0; c.m * c.r * c.l]));
        assert_eq!(loss, vec![0.0; c.r]);
        assert!(gradient.iter().all(|&g| g == 0.0));
        // Samples at one point, targets elsewhere: as the CPU, and finite.
        let (loss, gradient) = twin(c, &x, None);
        let (cpu_loss, cpu_gradient) = cpu(c, &x, None);
        assert_close(&loss, &cpu_loss, 1e-7, "loss");
        assert_bits(&gradient, &cpu_gradient, "gradient");
        assert!(gradient.iter().all(|g| g.is_finite()));
    }
}

#[test]
fn a_nan_prediction_comes_out_in_its_row_alone() {
    let c = Case { r: 3, n: 4, m: 6, l: 10, alpha: 1.0 };
    let mut x = inputs::<f32>(c);
    x.pred[c.n * c.l + 3] = f32::NAN;
    let (loss, _) = twin_unordered(c, &x);
    assert!(loss[1].is_nan() && loss[0].is_finite() && loss[2].is_finite());
}

/// One launch only: NaNs do not compare.
fn twin_unordered(c: Case, x: &Inputs<f32>) -> (Vec<f32>, Vec<f32>) {
    let (_, rows) = rows(c.r);
    let (mut loss, mut gradient) = (vec![0.0; c.r], vec![0.0; x.pred.len()]);
    let launch = grids(ENERGY_THREADS, energy_shared_bytes(c.l as u32))[1];
    let (r, n, m, l) = (c.r as u32, c.n as u32, c.m as u32, c.l as u32);
    let (pred, mean, log_std) = (x.pred.as_ptr(), x.mean.as_ptr(), x.log_std.as_ptr());
    let (to_loss, to_gradient) = (loss.as_mut_ptr(), gradient.as_mut_ptr());
    let (key, rows, given) = (twin_key(key("targets")), rows.as_ptr(), std::ptr::null());
    // SAFETY: buffers and shared memory of the sizes that r, n, m, l call for.
    unsafe {
        (f32::KERNELS.energy_score)(
            launch,
            pred,
            mean,
            log_std,
            key,
            rows,
            given,
            to_loss,
            to_gradient,
            r,
            n,
            m,
            l,
            c.alpha,
        );
    }
    (loss, gradient)
}

#[test]
fn the_kept_gradient_is_scaled_by_the_rows_upstream_gradient() {
    let c = Case { r: 5, n: 3, m: 7, l: 11, alpha: 1.0 };
    let x = inputs::<f32>(c);
    let (_, kept) = twin(c, &x, None);
    let upstream: Vec<f32> = randn(c.r, "upstream", 1.0);
    let out = same_for(&launches(), |launch| {
        let mut out = vec![0.0f32; kept.len()];
        // SAFETY: kept and out are [r, n·l], upstream [r].
        unsafe {
            (f32::KERNELS.energy_score_backward)(
                launch,
                kept.as_ptr(),
                upstream.as_ptr(),
                out.as_mut_ptr(),
                c.r as u32,
                (c.n * c.l) as u32,
            );
        }
        out
    });
    let pred: Var = var(&x.pred, (c.r, c.n, c.l));
    let (rows, _) = rows(c.r);
    let noise = TargetNoise::Draw { key: key("targets"), rows: &rows, samples: c.m };
    let of = |x: &[f32]| -> Tensor { tensor(x, (c.r, c.l)) };
    let loss = energy_score(&pred, &of(&x.mean), &of(&x.log_std), noise, c.alpha).unwrap();
    assert_bits(&out, &gradients(&loss, &upstream, &[&pred])[0], "scaled gradient");
}
