//! Shared by the tests of the heads.

use std::collections::HashMap;

use calm_autoencoder::Posterior;
use calm_nn::{Builder, Noise, NoiseKey, ParamStore, RowId, philox};
use candle_core::{DType, Device, Result, Tensor};

use super::Head;
use crate::BackboneConfig;

/// All numbers of a tensor as f64.
pub fn values(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn draw(name: &str, shape: &[usize]) -> Tensor {
    let count = shape.iter().product();
    let v = philox::normal(NoiseKey::new(9, name, 0), &[RowId { example: 0, position: 0 }], 1, count);
    Tensor::from_vec(v, shape, &Device::Cpu).unwrap().to_dtype(DType::F64).unwrap()
}

/// Gives every parameter, those that start at zero too, random numbers of its own.
pub fn randomise(store: &ParamStore) {
    for (name, p) in store.params() {
        let width = *p.var.dims().last().unwrap() as f64;
        let scale = if p.var.rank() == 2 { width.sqrt().recip() } else { 0.3 };
        let t = (draw(&name, p.var.dims()) * scale).unwrap();
        p.var.set(&t.to_dtype(p.var.dtype()).unwrap()).unwrap();
    }
}

/// A posterior of two rows and the streams of a loss with two draws a row.
pub fn loss_inputs<H>(c: &Case<H>) -> (Posterior, HashMap<String, Tensor>) {
    let times = Tensor::new(&[[[0.0f32], [0.31]], [[0.5], [0.97]]], &Device::Cpu).unwrap();
    let streams = HashMap::from([
        ("target".to_owned(), draw("target", &[2, 2, 3])),
        ("head.start".to_owned(), c.start.clone()),
        ("head.noise".to_owned(), c.noise.clone()),
        ("head.time".to_owned(), times),
    ]);
    (Posterior { mean: draw("mean", &[2, 3]), log_std: draw("log_std", &[2, 3]) }, streams)
}

/// A small head in f64 (R = 2, n = 2, D = 4, L = 3) with inputs.
pub struct Case<H> {
    pub store: ParamStore,
    pub head: H,
    /// `[R, D]`
    pub hidden: Tensor,
    /// `[R, n, L]`
    pub start: Tensor,
    /// `[R, n, L]`
    pub noise: Tensor,
}

impl<H> Case<H> {
    pub fn new(head: impl FnOnce(&Builder, &BackboneConfig) -> Result<H>) -> Self {
        let backbone = BackboneConfig { hidden_size: 4, layers: 4, heads: 2, ..Default::default() };
        let store = ParamStore::new(&Device::Cpu, DType::F64, 3);
        let head = head(&store.builder(), &backbone).unwrap();
        let (hidden, start, noise) =
            (draw("hidden", &[2, 4]), draw("start", &[2, 2, 3]), draw("noise", &[2, 2, 3]));
        Self { store, head, hidden, start, noise }
    }
}

/// The gradient of the loss reaches every parameter and is that of central differences.
pub fn check_gradients<H: Head>(c: &Case<H>) {
    randomise(&c.store);
    let (posterior, streams) = loss_inputs(c);
    let noise = Noise::Given(&streams);
    let loss = || {
        let rows = c.head.loss(&c.hidden, &posterior, &noise).unwrap();
        assert_eq!(rows.dims(), [2]);
        rows.sum_all().unwrap()
    };
    let gradients = loss().backward().unwrap();
    for (name, p) in c.store.params() {
        let found = values(gradients.get(p.var.as_tensor()).unwrap_or_else(|| panic!("{name}: no gradient")));
        assert!(found.iter().any(|g| *g != 0.0), "{name}: all zero");
        let before = values(p.var.as_tensor());
        let set = |v: &[f64]| {
            p.var.set(&Tensor::from_slice(v, p.var.shape(), &Device::Cpu).unwrap()).unwrap();
        };
        let h = 1e-5;
        // The wide time embedding in strides, everything else in full.
        for i in (0..before.len()).step_by(before.len().div_ceil(100)) {
            let at = |by: f64| -> f64 {
                let mut moved = before.clone();
                moved[i] += by;
                set(&moved);
                loss().to_scalar().unwrap()
            };
            let numeric = (at(h) - at(-h)) / (2.0 * h);
            set(&before);
            assert!(
                (found[i] - numeric).abs() < 1e-8 * numeric.abs().max(1.0),
                "{name}[{i}]: {} against {numeric}",
                found[i]
            );
        }
    }
}

/// Shapes, and that a sample depends on the seed and on its row, not on the rows around it.
pub fn check_sampling<H: Head>(c: &Case<H>) {
    randomise(&c.store);
    let rows = [RowId { example: 0, position: 4 }, RowId { example: 7, position: 1 }];
    let run = |seed, from: usize, to: usize, n| {
        let noise = Noise::Keyed { seed, purpose: "test", step: 0, rows: &rows[from..to] };
        let x = c.head.sample(&c.hidden.narrow(0, from, to - from).unwrap(), n, &noise).unwrap();
        assert_eq!(x.dims(), [to - from, n, 3]);
        values(&x)
    };
    let both = run(1, 0, 2, 5);
    assert!(both.iter().all(|v| v.is_finite()));
    assert_eq!(both, run(1, 0, 2, 5));
    assert_ne!(both, run(2, 0, 2, 5));
    let apart = [run(1, 0, 1, 5), run(1, 1, 2, 5)].concat();
    assert!(both.iter().zip(&apart).all(|(a, b)| (a - b).abs() < 1e-12));
    let fewer = run(1, 0, 1, 3);
    assert!(both.iter().zip(&fewer).all(|(a, b)| (a - b).abs() < 1e-12));
}
