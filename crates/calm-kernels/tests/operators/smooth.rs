//! The smoothing of concepts against a loop of plain operations.

use crate::common::*;
use calm_kernels::{gradcheck, smooth};
use candle_core::{DType, Device, Result, Tensor, Var};

const SHAPES: [[usize; 3]; 4] = [[1, 1, 1], [2, 5, 3], [3, 17, 40], [1, 70, 64]];

/// Probabilities `[B, M]`.
fn probabilities(b: usize, m: usize, seed: u64) -> Tensor {
    ((random(&[b, m], seed) + 1.0).unwrap() * 0.5).unwrap()
}

/// Runs of ids whose lengths differ from row to row, the first of one concept.
fn documents(b: usize, m: usize) -> Tensor {
    let of = |row: usize, k: usize| if k == 0 { 9 } else { (k + row) as u32 / 4 % 2 };
    Tensor::from_vec((0..b * m).map(|i| of(i / m, i % m)).collect::<Vec<u32>>(), (b, m), &Device::Cpu)
        .unwrap()
}

/// The formula, concept after concept.
fn plain(z: &Tensor, p: &Tensor, documents: &Tensor) -> Result<Tensor> {
    let (b, m, _) = z.dims3()?;
    let ids = documents.to_device(&Device::Cpu)?.to_vec2::<u32>()?;
    let mut all: Vec<Tensor> = Vec::new();
    for k in 0..m {
        let begins = |ids: &Vec<u32>| if k == 0 || ids[k] != ids[k - 1] { 1.0 } else { 0.0 };
        let begins = Tensor::from_vec(ids.iter().map(begins).collect::<Vec<f64>>(), (b, 1), &Device::Cpu)?;
        let weight = p.narrow(1, k, 1)?.to_dtype(z.dtype())?;
        let begins = begins.to_dtype(z.dtype())?;
        // 1 where a document begins, p elsewhere.
        let weight = (weight.mul(&(1.0 - &begins)?)? + begins)?;
        let z = z.narrow(1, k, 1)?.squeeze(1)?;
        let kept = match all.last() {
            Some(before) => before.broadcast_mul(&(1.0 - &weight)?)?,
            None => z.zeros_like()?,
        };
        all.push((z.broadcast_mul(&weight)? + kept)?);
    }
    Tensor::stack(&all, 1)
}

#[test]
fn smooth_equals_the_plain_composition() {
    for [b, m, d] in SHAPES {
        let inputs = [random(&[b, m, d], 1), probabilities(b, m, 2)];
        let documents = documents(b, m);
        let f = |v: &[Var]| {
            // Probabilities are f32 on a GPU, whatever the concepts are.
            let p = if v[0].dtype() == DType::BF16 {
                v[1].to_dtype(DType::F32)?
            } else {
                v[1].as_tensor().clone()
            };
            smooth(&v[0], &p, &documents.to_device(v[0].device())?)
        };
        compare(&inputs, f, |v| plain(&v[0], &v[1], &documents), 2e-6);
    }
}

#[test]
fn a_document_begins_with_its_first_concept_whatever_its_probability() {
    let z = random(&[2, 6, 4], 1);
    let ids = Tensor::new(&[[1u32, 1, 1, 2, 2, 2], [1, 1, 1, 2, 2, 2]], &Device::Cpu).unwrap();
    let p = probabilities(2, 6, 2);
    let both = smooth(&z, &p, &ids).unwrap();
    for at in [0, 3] {
        let part = |t: &Tensor| t.narrow(1, at, 3).unwrap();
        let alone = smooth(&part(&z), &part(&p), &part(&ids)).unwrap();
        assert_eq!(flat(&part(&both)), flat(&alone), "the document from {at} on");
        assert_eq!(flat(&both.narrow(1, at, 1).unwrap()), flat(&z.narrow(1, at, 1).unwrap()));
    }
    // What is not a number in one document stays there.
    let mut poisoned = flat(&z);
    poisoned[2 * 4] = f64::NAN;
    let poisoned = Tensor::from_vec(poisoned, (2, 6, 4), &Device::Cpu).unwrap();
    let got = flat(&smooth(&poisoned, &p, &ids).unwrap());
    assert_eq!(got.iter().filter(|x| x.is_nan()).count(), 1);
}

#[test]
fn gradients_pass_the_check_by_differences() {
    let documents = documents(2, 6);
    let inputs = [random(&[2, 6, 3], 1), probabilities(2, 6, 2)];
    gradcheck::check(&inputs, |v| smooth(&v[0], &v[1], &documents)?.powf(3.0)?.sum_all(), 1e-6).unwrap();
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let documents = documents(5, 40);
    let inputs = [random(&[5, 40, 33], 1), probabilities(5, 40, 2)];
    same_bits_for_any_thread_count(&inputs, |v| smooth(&v[0], &v[1], &documents));
}

#[test]
fn wrong_shapes_and_types_are_named() {
    let (z, p, ids) = (random(&[2, 3, 4], 1), probabilities(2, 3, 2), documents(2, 3));
    let message = |z: &Tensor, p: &Tensor, ids: &Tensor| smooth(z, p, ids).unwrap_err().to_string();
    let said = message(&z, &p.narrow(1, 0, 2).unwrap(), &ids);
    assert!(said.contains("smooth") && said.contains("[2, 2]") && said.contains("[B, M, D]"), "{said}");
    let said = message(&z, &p, &ids.narrow(0, 0, 1).unwrap());
    assert!(said.contains("[1, 3]"), "{said}");
    let said = message(&z, &p, &ids.to_dtype(DType::I64).unwrap());
    assert!(said.contains("U32"), "{said}");
}
