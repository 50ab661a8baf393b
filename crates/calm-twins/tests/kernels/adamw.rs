//! AdamW, norm clipping and what takes over parameters that others updated, over several parameters against the CPU's, to the bit.

use crate::common::*;
use calm_kernels::{AdamWStep, Treatment, squared_norm};
use calm_twins::{
    ADAMW_CHUNK, AdamWFactors, AdamWGroup, Parameter, adamw, clip_scale, replace, squared_norms,
};
use half::bf16;

const SIZES: [usize; 5] = [1, 16_384, 40_003, 5, 16_385];
/// What the parameters are treated as, by number.
const KINDS: [Treatment; 3] = [
    Treatment { decays: true, rate: 1.0, eps: 1.0 },
    Treatment { decays: false, rate: 1.0, eps: 1.0 },
    Treatment { decays: true, rate: 0.25, eps: 0.3 },
];
const KIND_OF: [usize; 5] = [0, 2, 0, 1, 2];

/// Values and moments of all parameters, and bf16 copies of every second one.
#[derive(Clone, Debug, PartialEq)]
struct State {
    values: Vec<Vec<f32>>,
    m: Vec<Vec<f32>>,
    v: Vec<Vec<f32>>,
    compute: Vec<Vec<bf16>>,
}

fn factors(s: &AdamWStep) -> AdamWFactors {
    let t = f64::from(s.step);
    let mut groups = [AdamWGroup::default(); 8];
    for (group, kind) in groups.iter_mut().zip(KINDS) {
        let lr = s.lr * kind.rate;
        *group = AdamWGroup {
            keep: if kind.decays { (1.0 - lr * s.weight_decay) as f32 } else { 1.0 },
            rate: (lr / (1.0 - s.beta1.powf(t))) as f32,
            eps: (s.eps * kind.eps) as f32,
        };
    }
    AdamWFactors {
        first: (1.0 - s.beta1) as f32,
        beta2: s.beta2 as f32,
        second: (1.0 - s.beta2) as f32,
        root: (1.0 / (1.0 - s.beta2.powf(t)).sqrt()) as f32,
        groups,
    }
}

#[test]
fn clipped_steps_are_the_cpus() {
    let of = |stream: &str| -> Vec<Vec<f32>> {
        SIZES.iter().enumerate().map(|(i, &n)| randn(n, &format!("{stream}{i}"), 1.0)).collect()
    };
    let grads = of("grad");
    let start = State {
        values: of("value"),
        m: of("m"),
        v: of("v").iter().map(|v| v.iter().map(|v| v * v).collect()).collect(),
        compute: SIZES.map(|n| vec![bf16::ZERO; n]).to_vec(),
    };
    // The first clips, the second does not.
    for max_norm in [1.0, 1e9] {
        let norm = grads.iter().flatten().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
        let step = AdamWStep {
            lr: 3e-4,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            step: 4,
            grad_scale: if norm > max_norm { max_norm / norm } else { 1.0 },
        };
        let run = |launch: calm_twins::Launch| {
            let mut state = start.clone();
            let mut table = Vec::new();
            let mut chunks = 0;
            for (i, grad) in grads.iter().enumerate() {
                let copy = state.compute[i].as_mut_ptr();
                table.push(Parameter {
                    value: state.values[i].as_mut_ptr(),
                    grad: grad.as_ptr(),
                    m: state.m[i].as_mut_ptr(),
                    v: state.v[i].as_mut_ptr(),
                    compute: if i % 2 == 0 { copy } else { std::ptr::null_mut() },
                    count: grad.len() as u64,
                    first_chunk: chunks,
                    group: KIND_OF[i] as u64,
                });
                chunks += (grad.len() as u64).div_ceil(ADAMW_CHUNK);
            }
            let mut norms = vec![f64::NAN; chunks as usize];
            let mut clip = [f64::NAN, f64::NAN, 0.0];
            let (count, chunks) = (table.len() as u32, chunks as u32);
            let one_block = calm_twins::Launch { grid: 1, threads: 256, ..launch };
            // SAFETY: the table's pointers are valid for `count` elements each, norms has `chunks`
            // entries and clip two.
            unsafe {
                squared_norms(launch, table.as_ptr(), count, chunks, norms.as_mut_ptr());
                clip_scale(one_block, norms.as_ptr(), chunks, max_norm, clip.as_mut_ptr());
                adamw(launch, table.as_ptr(), count, chunks, factors(&step), clip.as_ptr());
            }
            (norms, clip, state)
        };
        let (norms, clip, state) = same_for(&launches(), run);

        let mut at = 0;
        for (i, grad) in grads.iter().enumerate() {
            let chunks = grad.len().div_ceil(ADAMW_CHUNK as usize);
            let total: f64 = norms[at..at + chunks].iter().sum();
            assert_eq!(total.to_bits(), squared_norm(grad).to_bits(), "norm of parameter {i}");
            at += chunks;
        }
        assert!((clip[0] / norm - 1.0).abs() < 1e-12 && (clip[1] / step.grad_scale - 1.0).abs() < 1e-12);

        let mut want = start.clone();
        for (i, grad) in grads.iter().enumerate() {
            let (m, v) = (&mut want.m[i], &mut want.v[i]);
            calm_kernels::adamw(&mut want.values[i], grad, m, v, &step.of(KINDS[KIND_OF[i]]));
            if i % 2 == 0 {
                want.compute[i] = want.values[i].iter().map(|&x| bf16::from_f32(x)).collect();
            }
        }
        assert!(state == want, "a parameter, moment or copy differs, max_norm {max_norm}");
    }
}

#[test]
fn what_others_updated_is_taken_over_with_its_copy() {
    let list: Vec<Vec<f32>> = SIZES.iter().map(|&n| randn(n, "list", 1.0)).collect();
    let run = |launch: calm_twins::Launch| {
        let mut values: Vec<_> = SIZES.iter().map(|&n| vec![f32::NAN; n]).collect();
        let mut copies: Vec<_> = SIZES.iter().map(|&n| vec![bf16::NAN; n]).collect();
        let (mut table, mut chunks) = (Vec::new(), 0);
        for (i, (value, copy)) in values.iter_mut().zip(&mut copies).enumerate() {
            let null = std::ptr::null_mut();
            table.push(Parameter {
                value: value.as_mut_ptr(),
                grad: list[i].as_ptr(),
                m: null,
                v: null,
                compute: if i % 2 == 0 { copy.as_mut_ptr() } else { std::ptr::null_mut() },
                count: value.len() as u64,
                first_chunk: chunks,
                group: 0,
            });
            chunks += (value.len() as u64).div_ceil(ADAMW_CHUNK);
        }
        // SAFETY: the table's pointers are valid for `count` elements each, but for those that are null.
        unsafe { replace(launch, table.as_ptr(), table.len() as u32, chunks as u32) };
        let bits = |copy: &Vec<bf16>| copy.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        (values, copies.iter().map(bits).collect::<Vec<_>>())
    };
    let (values, copies) = same_for(&launches(), run);
    assert_eq!(values, list);
    for (i, list) in list.iter().enumerate() {
        let want = list.iter().map(|&x| if i % 2 == 0 { bf16::from_f32(x) } else { bf16::NAN });
        assert_eq!(copies[i], want.map(bf16::to_bits).collect::<Vec<_>>());
    }
}
