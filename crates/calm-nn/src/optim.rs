//! AdamW on one flat, name-sorted gradient bucket.

use std::collections::{BTreeMap, HashMap};

use calm_kernels::storage::view;
use calm_kernels::{AdamWStep, FlatGradients, adamw, squared_norm};
use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Result, Tensor, bail};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::store::{Param, ParamStore};

/// Settings of AdamW; the defaults are the paper's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay of matrices (biases and norms have none).
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 }
    }
}

/// Gradients of all parameters, concatenated in name order: accumulation, norm clipping, the optimiser and
/// any all-reduce work on this one buffer.
#[derive(Debug)]
pub struct GradientBucket {
    params: Vec<(String, Param)>,
    gradients: FlatGradients,
}

impl GradientBucket {
    /// An empty bucket for the parameters of `store`.
    pub fn new(store: &ParamStore) -> Self {
        let params = store.params();
        let gradients = FlatGradients::new(params.iter().map(|(_, p)| p.var.as_tensor()));
        Self { params, gradients }
    }

    /// Sets all gradients to 0.
    pub fn clear(&mut self) {
        self.gradients.clear();
    }

    /// Runs the backward pass of a micro-batch's loss and adds its gradients.
    ///
    /// # Errors
    /// A parameter that the pass gives no gradient: candle cuts the graph silently at operators that have no
    /// backward.
    pub fn backward(&mut self, loss: &Tensor) -> Result<()> {
        // Most gradients go straight into the bucket; those of candle's own operators come as tensors.
        let grads = self.gradients.collect(|| loss.backward())?;
        let mut cut = Vec::new();
        for (i, (name, param)) in self.params.iter().enumerate() {
            match grads.get(param.var.as_tensor()) {
                Some(g) => {
                    let g = g.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous()?;
                    self.gradients.add(i, &view::<f32>("backward", &g)?);
                }
                None if self.gradients.reached(i) => {}
                None => cut.push(name.as_str()),
            }
        }
        if cut.is_empty() { Ok(()) } else { bail!("no gradient reaches {}", cut.join(", ")) }
    }

    /// Euclidean norm over all parameters (f64 sum in fixed order).
    pub fn norm(&mut self) -> f64 {
        squared_norm(self.gradients.values()).sqrt()
    }

    /// One parameter's gradient; None of an unknown name, or if none has come since the last clear.
    pub fn get(&self, name: &str) -> Option<&[f32]> {
        self.gradients.get(self.params.iter().position(|(n, _)| n == name)?)
    }
}

/// The optimiser: first and second moments beside the bucket's layout, always f32.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    first: Vec<f32>,
    second: Vec<f32>,
    step: u32,
}

struct Update<'a> {
    grad: &'a [f32],
    first: std::cell::RefCell<&'a mut [f32]>,
    second: std::cell::RefCell<&'a mut [f32]>,
    settings: AdamWStep,
}

impl InplaceOp1 for Update<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(data), Some((from, to))) = (storage, layout.contiguous_offsets()) else {
            bail!("AdamW needs contiguous f32 parameters")
        };
        adamw(
            &mut data[from..to],
            self.grad,
            &mut self.first.borrow_mut(),
            &mut self.second.borrow_mut(),
            &self.settings,
        );
        Ok(())
    }
}

impl AdamW {
    /// Fresh moments for `store`.
    pub fn new(store: &ParamStore, config: AdamWConfig) -> Self {
        let n = store.element_count();
        Self { config, first: vec![0.0; n], second: vec![0.0; n], step: 0 }
    }

    /// Updates done.
    pub fn step_count(&self) -> u32 {
        self.step
    }

    /// One update with learning rate `lr`; gradients are multiplied by `scale` (clipping) on the way.
    pub fn update(&mut self, bucket: &mut GradientBucket, lr: f64, scale: f64) -> Result<()> {
        self.step += 1;
        let gradients = bucket.gradients.values();
        let mut start = 0;
        for (_, param) in &bucket.params {
            let range = start..start + param.var.elem_count();
            start = range.end;
            let settings = AdamWStep {
                lr,
                beta1: self.config.beta1,
                beta2: self.config.beta2,
                eps: self.config.eps,
                weight_decay: if param.decay { self.config.weight_decay } else { 0.0 },
                step: self.step,
                grad_scale: scale,
            };
            param.var.inplace_op1(&Update {
                grad: &gradients[range.clone()],
                first: std::cell::RefCell::new(&mut self.first[range.clone()]),
                second: std::cell::RefCell::new(&mut self.second[range]),
                settings,
            })?;
        }
        Ok(())
    }

    /// Moments by name (`first.<name>`, `second.<name>`) for a checkpoint.
    pub fn state(&self, store: &ParamStore) -> Result<BTreeMap<String, Tensor>> {
        let mut out = BTreeMap::new();
        let mut at = 0;
        for (name, param) in store.params() {
            let to = at + param.var.elem_count();
            for (which, moments) in [("first", &self.first), ("second", &self.second)] {
                let t = Tensor::from_slice(&moments[at..to], param.var.dims(), &Device::Cpu)?;
                out.insert(format!("{which}.{name}"), t);
            }
            at = to;
        }
        Ok(out)
    }

    /// Restores what [`AdamW::state`] wrote.
    pub fn restore(&mut self, store: &ParamStore, state: &HashMap<String, Tensor>, step: u32) -> Result<()> {
        let mut at = 0;
        for (name, param) in store.params() {
            let to = at + param.var.elem_count();
            for (which, moments) in [("first", &mut self.first), ("second", &mut self.second)] {
                let Some(t) = state.get(&format!("{which}.{name}")) else {
                    bail!("optimiser state of {name} is missing")
                };
                if t.dims() != param.var.dims() {
                    bail!("optimiser state of {name}: shape {:?}, model {:?}", t.dims(), param.var.dims())
                }
                moments[at..to].copy_from_slice(&t.flatten_all()?.to_vec1::<f32>()?);
            }
            at = to;
        }
        self.step = step;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Init;

    fn quadratic() -> (ParamStore, Tensor) {
        let store = ParamStore::new(&Device::Cpu, DType::F32, 3);
        let x = store.builder().weight("x", &[4, 3], Init::Normal(1.0)).unwrap();
        (store, x)
    }

    #[test]
    fn adamw_reaches_the_minimum_of_a_quadratic() {
        let (store, x) = quadratic();
        let mut opt = AdamW::new(&store, AdamWConfig { weight_decay: 0.0, ..Default::default() });
        let mut bucket = GradientBucket::new(&store);
        for _ in 0..400 {
            bucket.clear();
            bucket.backward(&x.sqr().unwrap().sum_all().unwrap()).unwrap();
            opt.update(&mut bucket, 0.02, 1.0).unwrap();
        }
        assert!(x.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap() < 1e-2);
    }

    #[test]
    fn restored_moments_continue_to_the_same_bits() {
        let run = |split: bool| {
            let (store, x) = quadratic();
            let mut opt = AdamW::new(&store, AdamWConfig::default());
            let mut bucket = GradientBucket::new(&store);
            for i in 0..10 {
                if split && i == 5 {
                    let state = opt.state(&store).unwrap().into_iter().collect();
                    let step = opt.step_count();
                    opt = AdamW::new(&store, AdamWConfig::default());
                    opt.restore(&store, &state, step).unwrap();
                }
                bucket.clear();
                bucket.backward(&x.sqr().unwrap().sum_all().unwrap()).unwrap();
                opt.update(&mut bucket, 0.01, 0.5).unwrap();
            }
            x.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(run(false), run(true));
    }

    #[test]
    fn a_parameter_that_no_gradient_reaches_is_named() {
        let (store, x) = quadratic();
        store.builder().weight("unused", &[2], Init::Ones).unwrap();
        let mut bucket = GradientBucket::new(&store);
        let e = bucket.backward(&x.sum_all().unwrap()).unwrap_err();
        assert!(e.to_string().contains("unused"), "{e}");
    }

    #[test]
    fn a_pass_that_reaches_less_than_the_one_before_is_an_error() {
        let (store, x) = quadratic();
        let y = store.builder().weight("y", &[2], Init::Ones).unwrap();
        let mut bucket = GradientBucket::new(&store);
        bucket.backward(&(x.sum_all().unwrap() + y.sum_all().unwrap()).unwrap()).unwrap();
        let e = bucket.backward(&x.sum_all().unwrap()).unwrap_err();
        assert!(e.to_string().contains("no gradient reaches y"), "{e}");
    }

    #[test]
    fn a_step_without_a_backward_pass_has_no_gradient() {
        let (store, x) = quadratic();
        let mut bucket = GradientBucket::new(&store);
        bucket.backward(&x.sum_all().unwrap()).unwrap();
        bucket.clear();
        assert_eq!(bucket.get("x"), None);
        assert_eq!(bucket.norm(), 0.0);
        let before = x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let mut opt = AdamW::new(&store, AdamWConfig { weight_decay: 0.0, ..Default::default() });
        opt.update(&mut bucket, 0.1, 1.0).unwrap();
        assert_eq!(x.flatten_all().unwrap().to_vec1::<f32>().unwrap(), before);
    }

    #[test]
    fn accumulated_micro_batches_add_up() {
        let (store, x) = quadratic();
        let mut bucket = GradientBucket::new(&store);
        for _ in 0..3 {
            bucket.backward(&x.sum_all().unwrap()).unwrap();
        }
        assert!(bucket.get("x").unwrap().iter().all(|g| *g == 3.0));
        assert!((bucket.norm() - (9.0f64 * 12.0).sqrt()).abs() < 1e-9);
    }
}
