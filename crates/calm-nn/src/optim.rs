//! AdamW on one flat, name-sorted gradient bucket.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

use calm_kernels::{AdamWStep, Clip, Course, FlatGradients, HandOut, Moments, Part, Treatment};
use candle_core::{Device, Result, Tensor, bail};
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
///
/// While a bucket lives, backward passes that reach its parameters through our operators run through a bucket of
/// theirs, on the CPU and on a GPU: a plain `loss.backward()` is an error then. Without one it gives all gradients.
#[derive(Debug)]
pub struct GradientBucket {
    params: Vec<(String, Param)>,
    gradients: FlatGradients,
}

impl GradientBucket {
    /// An empty bucket for the parameters of `store`, on their device.
    ///
    /// # Errors
    /// No memory left on a GPU.
    pub fn new(store: &ParamStore) -> Result<Self> {
        let params = store.params();
        let gradients = FlatGradients::new(store.context(), params.iter().map(|(_, p)| p.var.as_tensor()))?;
        Ok(Self { params, gradients })
    }

    /// Sets all gradients to 0.
    pub fn clear(&mut self) {
        self.gradients.clear();
    }

    /// Runs the backward pass of a micro-batch's loss and adds its gradients.
    ///
    /// # Errors
    /// A parameter that the pass gives no gradient: candle cuts the graph silently at operators that have no
    /// backward. Another pass through a bucket of these parameters that is under way.
    pub fn backward(&mut self, loss: &Tensor) -> Result<()> {
        // Most gradients go straight into the bucket; those of candle's own operators come as tensors.
        let grads = self.gradients.collect(|| loss.backward())?;
        let mut cut = Vec::new();
        for (i, (name, param)) in self.params.iter().enumerate() {
            match grads.get(param.var.as_tensor()) {
                Some(g) => self.gradients.add(i, g)?,
                None if self.gradients.reached(i) => {}
                None => cut.push(name.as_str()),
            }
        }
        if cut.is_empty() { Ok(()) } else { bail!("no gradient reaches {}", cut.join(", ")) }
    }

    /// The course of the last backward pass, in so many pieces of the bucket.
    pub fn course(&self, pieces: usize) -> Course {
        self.gradients.course(pieces)
    }

    /// As [`GradientBucket::backward`] for the last micro-batch of a step: pieces of the bucket are handed out as soon as they are
    /// complete, in the order of the course, and all of them before this returns. Without a loss all are complete at once.
    ///
    /// # Errors
    /// As [`GradientBucket::backward`]; of whoever takes them; a parameter that is used more often than in the course.
    pub fn backward_handing_out(
        &mut self,
        loss: Option<&Tensor>,
        course: &Arc<Course>,
        hand_out: HandOut,
    ) -> Result<()> {
        self.gradients.hand_out(course, hand_out)?;
        if let Some(Err(e)) = loss.map(|loss| self.backward(loss)) {
            self.gradients.keep();
            return Err(e);
        }
        self.gradients.hand_out_rest()
    }

    /// All gradients in name order, on the CPU, to be replaced by sums over processes; 0 where none has come.
    ///
    /// # Errors
    /// Parameters that are on a GPU.
    pub fn values(&mut self) -> Result<&mut [f32]> {
        self.gradients.host_values()
    }

    /// The factor that brings the Euclidean norm over all parameters down to `max_norm` where it is larger. On a
    /// GPU it stays there; [`Clip::read`] waits for it.
    ///
    /// # Errors
    /// What a GPU answers.
    pub fn clip(&mut self, max_norm: f64) -> Result<Clip> {
        self.gradients.clip(max_norm)
    }

    /// Euclidean norm over all parameters (f64 sum in fixed order); waits for a GPU.
    ///
    /// # Errors
    /// What a GPU answers.
    pub fn norm(&mut self) -> Result<f64> {
        Ok(self.clip(f64::INFINITY)?.read()?.norm)
    }

    /// The squares of a part of all gradients, as [`Clip::of_squares`] takes them; the part begins where a
    /// [`NORM_CHUNK`](calm_kernels::NORM_CHUNK) does.
    ///
    /// # Errors
    /// Parameters that are on a GPU; a part that there is not.
    pub fn squares(&mut self, part: Range<usize>) -> Result<Vec<f64>> {
        self.gradients.squares(part)
    }

    /// A copy of one parameter's gradient; None of an unknown name, or if none has come since the last clear.
    ///
    /// # Errors
    /// What a GPU answers; this waits for it.
    pub fn get(&self, name: &str) -> Result<Option<Vec<f32>>> {
        match self.params.iter().position(|(n, _)| n == name) {
            Some(i) => self.gradients.get(i),
            None => Ok(None),
        }
    }
}

/// The optimiser: first and second moments beside the bucket's layout, always f32; of all parameters, or of a part of the
/// bucket where other processes have the rest.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    moments: Moments,
    step: u32,
}

impl AdamW {
    /// Fresh moments for `store`, on the device of its parameters.
    ///
    /// # Errors
    /// No memory left on a GPU.
    pub fn new(store: &ParamStore, config: AdamWConfig) -> Result<Self> {
        Ok(Self { config, moments: Moments::new(store.context(), parameters(store))?, step: 0 })
    }

    /// The same with the moments of a part of the bucket alone: it updates nothing else.
    ///
    /// # Errors
    /// As [`AdamW::new`]; a part that the bucket does not have.
    pub fn of_part(store: &ParamStore, config: AdamWConfig, part: Range<usize>) -> Result<Self> {
        let moments = Moments::of_part(store.context(), parameters(store), part)?;
        Ok(Self { config, moments, step: 0 })
    }

    /// First and second moments, of the own part; from a GPU copies of them.
    ///
    /// # Errors
    /// What a GPU answers; this waits for it.
    pub fn moments(&self) -> Result<[Cow<'_, [f32]>; 2]> {
        self.moments.of_own()
    }

    /// All parameters from what `gather` makes of a list with those of the own part, which all processes hand to each other.
    /// The list is the bucket's, on the device of the parameters: its gradients are gone afterwards.
    ///
    /// # Errors
    /// Those of `gather`; what a GPU answers.
    pub fn exchange_parameters<E: From<candle_core::Error>>(
        &self,
        bucket: &mut GradientBucket,
        gather: impl FnOnce(Part<'_>) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        self.moments.lay_parameters(bucket.gradients.whole()?)?;
        gather(bucket.gradients.whole()?)?;
        self.moments.take_parameters(bucket.gradients.whole()?)?;
        bucket.clear();
        Ok(())
    }

    /// Updates done.
    pub fn step_count(&self) -> u32 {
        self.step
    }

    /// One update with learning rate `lr`; gradients are multiplied by the factor of `clip` on the way.
    ///
    /// # Errors
    /// A bucket of another model; what a GPU answers.
    pub fn update(&mut self, bucket: &mut GradientBucket, lr: f64, clip: &Clip) -> Result<()> {
        self.step += 1;
        let AdamWConfig { beta1, beta2, eps, weight_decay } = self.config;
        let settings = AdamWStep { lr, beta1, beta2, eps, weight_decay, step: self.step, grad_scale: 1.0 };
        self.moments.update(&mut bucket.gradients, &settings, clip)
    }

    /// Counts a step whose update is left out: parameters and moments stay as they are.
    pub fn skip(&mut self) {
        self.step += 1;
    }

    /// Moments by name (`first.<name>`, `second.<name>`) for a checkpoint, on the CPU.
    ///
    /// # Errors
    /// What a GPU answers; moments that are with other processes.
    pub fn state(&self, store: &ParamStore) -> Result<BTreeMap<String, Tensor>> {
        let mut out = BTreeMap::new();
        for (i, (name, param)) in store.params().into_iter().enumerate() {
            for (which, moments) in MOMENTS.into_iter().zip(self.moments.read(i)?) {
                out.insert(
                    format!("{which}.{name}"),
                    Tensor::from_vec(moments, param.var.dims(), &Device::Cpu)?,
                );
            }
        }
        Ok(out)
    }

    /// The same from whole lists of first and second moments, which `whole` gives one after the other.
    ///
    /// # Errors
    /// Those of `whole`; a list of another length.
    pub fn state_of<E: From<candle_core::Error>>(
        store: &ParamStore,
        mut whole: impl FnMut(usize) -> std::result::Result<Vec<f32>, E>,
    ) -> std::result::Result<BTreeMap<String, Tensor>, E> {
        let mut out = BTreeMap::new();
        for (i, which) in MOMENTS.into_iter().enumerate() {
            let list = whole(i)?;
            let mut rest = list.as_slice();
            for (name, param) in store.params() {
                let Some((own, others)) = rest.split_at_checked(param.var.elem_count()) else {
                    return Err(candle_core::Error::Msg("fewer moments than parameters".into()).into());
                };
                out.insert(
                    format!("{which}.{name}"),
                    Tensor::from_slice(own, param.var.dims(), &Device::Cpu)?,
                );
                rest = others;
            }
        }
        Ok(out)
    }

    /// Names of what [`AdamW::restore`] reads: the moments of parameters that the own part has to do with.
    pub fn state_names(&self, store: &ParamStore) -> BTreeSet<String> {
        let own = store.params().into_iter().enumerate().filter(|(i, _)| self.moments.holds(*i));
        own.flat_map(|(_, (name, _))| MOMENTS.map(|which| format!("{which}.{name}"))).collect()
    }

    /// Restores what [`AdamW::state`] wrote, as far as it is this part's.
    ///
    /// # Errors
    /// Moments that are missing or of another shape.
    pub fn restore(&mut self, store: &ParamStore, state: &HashMap<String, Tensor>, step: u32) -> Result<()> {
        for (i, (name, param)) in store.params().into_iter().enumerate() {
            if !self.moments.holds(i) {
                continue;
            }
            let moments = |which: &str| -> Result<Vec<f32>> {
                let Some(t) = state.get(&format!("{which}.{name}")) else {
                    bail!("optimiser state of {name} is missing")
                };
                if t.dims() != param.var.dims() {
                    bail!("optimiser state of {name}: shape {:?}, model {:?}", t.dims(), param.var.dims())
                }
                t.flatten_all()?.to_vec1()
            };
            let [first, second] = MOMENTS.map(moments);
            self.moments.write(i, [&first?, &second?])?;
        }
        self.step = step;
        Ok(())
    }
}

/// Names of the moments in a checkpoint.
const MOMENTS: [&str; 2] = ["first", "second"];

/// The parameters of a store in the order of its bucket, and how they are treated.
fn parameters(store: &ParamStore) -> Vec<(Tensor, Treatment)> {
    let treatment = |p: &Param| Treatment { decays: p.decay, rate: p.scale.rate, eps: p.scale.eps };
    store.params().into_iter().map(|(_, p)| (p.var.as_tensor().clone(), treatment(&p))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::{Embedding, LayerNorm, Linear, RmsNorm, SwiGlu};
    use crate::store::{Init, Scale};
    use calm_kernels::{Parameter, device};
    use candle_core::DType;

    fn quadratic() -> (ParamStore, Parameter) {
        let store = ParamStore::new(&Device::Cpu, DType::F32, 3);
        let x = store.builder().weight("x", &[4, 3], Init::Normal(1.0)).unwrap();
        (store, x)
    }

    #[test]
    fn adamw_reaches_the_minimum_of_a_quadratic() {
        let (store, x) = quadratic();
        let mut opt = AdamW::new(&store, AdamWConfig { weight_decay: 0.0, ..Default::default() }).unwrap();
        let mut bucket = GradientBucket::new(&store).unwrap();
        for _ in 0..400 {
            bucket.clear();
            bucket.backward(&x.sqr().unwrap().sum_all().unwrap()).unwrap();
            opt.update(&mut bucket, 0.02, &Clip::by(1.0)).unwrap();
        }
        assert!(x.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap() < 1e-2);
    }

    #[test]
    fn scaled_weights_move_by_their_own_rate_and_epsilon() {
        const RATE: f64 = 0.01;
        // After one step with gradients of 1: what a parameter has moved by, without decay and of decay alone.
        let moved = |scale: Scale, config: AdamWConfig| -> [f32; 2] {
            let store = ParamStore::new(&Device::Cpu, DType::F32, 3);
            let b = store.builder().scaled(scale);
            let (x, y) =
                (b.weight("x", &[2, 2], Init::Ones).unwrap(), b.plain("y", &[2], Init::Ones).unwrap());
            let mut opt = AdamW::new(&store, config).unwrap();
            let mut bucket = GradientBucket::new(&store).unwrap();
            bucket.backward(&(x.sum_all().unwrap() + y.sum_all().unwrap()).unwrap()).unwrap();
            opt.update(&mut bucket, RATE, &Clip::by(1.0)).unwrap();
            [&x, &y].map(|t| 1.0 - t.flatten_all().unwrap().to_vec1::<f32>().unwrap()[0])
        };
        let near = |got: f32, want: f64| assert!((f64::from(got) - want).abs() < 1e-6, "{got}, not {want}");
        let plain = AdamWConfig { weight_decay: 0.0, eps: 0.0, ..AdamWConfig::default() };
        let quarter = Scale { rate: 0.25, eps: 1.0 };
        let [x, y] = moved(quarter, plain);
        near(x, RATE / 4.0);
        near(y, RATE);
        let decaying = AdamWConfig { weight_decay: 0.5, ..plain };
        near(moved(quarter, decaying)[0], RATE / 4.0 * 1.5);
        // g/(|g| + ε): with ε of 1 half of a step, with a third of it three quarters.
        let soft = AdamWConfig { eps: 1.0, ..plain };
        near(moved(Scale::ONE, soft)[0], RATE / 2.0);
        near(moved(Scale { rate: 1.0, eps: 1.0 / 3.0 }, soft)[0], RATE * 0.75);
        assert_eq!(moved(Scale::of_width(64, 64), soft), moved(Scale::ONE, soft));
    }

    #[test]
    fn restored_moments_continue_to_the_same_bits() {
        let run = |split: bool| {
            let (store, x) = quadratic();
            let mut opt = AdamW::new(&store, AdamWConfig::default()).unwrap();
            let mut bucket = GradientBucket::new(&store).unwrap();
            for i in 0..10 {
                if split && i == 5 {
                    let state = opt.state(&store).unwrap().into_iter().collect();
                    let step = opt.step_count();
                    opt = AdamW::new(&store, AdamWConfig::default()).unwrap();
                    opt.restore(&store, &state, step).unwrap();
                }
                bucket.clear();
                bucket.backward(&x.sqr().unwrap().sum_all().unwrap()).unwrap();
                opt.update(&mut bucket, 0.01, &Clip::by(0.5)).unwrap();
            }
            x.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(run(false), run(true));
    }

    #[test]
    fn parts_of_a_bucket_update_what_the_whole_does_with_their_share_of_the_moments() {
        // Borders in the middle of parameters, and a part without anything.
        let borders = [0, 5, 5, 13, 14];
        let model = || {
            let store = ParamStore::new(&Device::Cpu, DType::F32, 3);
            let x = store.builder().weight("x", &[4, 3], Init::Normal(1.0)).unwrap();
            let y = store.builder().weight("y", &[2], Init::Ones).unwrap();
            (store, x, y)
        };
        let numbers = |store: &ParamStore| -> Vec<f32> {
            let all = store.params();
            all.iter().flat_map(|(_, p)| p.var.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect()
        };
        let loss = |x: &Parameter, y: &Parameter| {
            (x.sqr().unwrap().sum_all().unwrap() + y.sqr().unwrap().sum_all().unwrap()).unwrap()
        };
        let (store, x, y) = model();
        let mut bucket = GradientBucket::new(&store).unwrap();
        let mut whole = AdamW::new(&store, AdamWConfig::default()).unwrap();
        let mut parts: Vec<_> = borders
            .windows(2)
            .map(|b| {
                let (store, x, y) = model();
                let optimizer = AdamW::of_part(&store, AdamWConfig::default(), b[0]..b[1]).unwrap();
                let bucket = GradientBucket::new(&store).unwrap();
                (store, x, y, optimizer, bucket, b[0]..b[1])
            })
            .collect();
        for _ in 0..5 {
            bucket.clear();
            bucket.backward(&loss(&x, &y)).unwrap();
            whole.update(&mut bucket, 0.01, &Clip::by(0.5)).unwrap();
            let want = numbers(&store);
            for (store, x, y, optimizer, bucket, part) in &mut parts {
                bucket.clear();
                bucket.backward(&loss(x, y)).unwrap();
                let before = numbers(store);
                optimizer.update(bucket, 0.01, &Clip::by(0.5)).unwrap();
                let others = |numbers: &[f32]| [&numbers[..part.start], &numbers[part.end..]].concat();
                assert_eq!(others(&numbers(store)), others(&before));
                let gather = |list: Part<'_>| -> Result<()> {
                    #[allow(irrefutable_let_patterns, reason = "with the feature `cuda` there are others")]
                    let Part::Host(list) = list else { bail!("the parameters are on the CPU") };
                    assert_eq!(list[part.clone()], want[part.clone()]);
                    list.copy_from_slice(&want);
                    Ok(())
                };
                optimizer.exchange_parameters(bucket, gather).unwrap();
                assert_eq!(numbers(store), want);
            }
        }
        let sizes: Vec<usize> = parts.iter().map(|p| p.3.moments().unwrap()[1].len()).collect();
        assert_eq!(sizes, [5, 0, 8, 1]);
        // A checkpoint does not show the parts, and each takes its own of it.
        let state = whole.state(&store).unwrap();
        let joined = AdamW::state_of(&store, |which| -> Result<Vec<f32>> {
            Ok(parts.iter().flat_map(|p| p.3.moments().unwrap()[which].to_vec()).collect())
        });
        let bits = |state: &BTreeMap<String, Tensor>| -> Vec<(String, Vec<f32>)> {
            let of = |t: &Tensor| t.flatten_all().unwrap().to_vec1().unwrap();
            state.iter().map(|(name, t)| (name.clone(), of(t))).collect()
        };
        assert_eq!(bits(&joined.unwrap()), bits(&state));
        assert!(parts[0].3.state(&store).is_err(), "a part alone is no checkpoint");
        let saved: HashMap<String, Tensor> = state.into_iter().collect();
        let mut own = AdamW::of_part(&store, AdamWConfig::default(), 5..13).unwrap();
        assert_eq!(own.state_names(&store).len(), 4, "it has to do with both parameters");
        assert!(parts[1].3.state_names(&store).is_empty());
        own.restore(&store, &saved, 5).unwrap();
        assert_eq!(own.moments().unwrap(), parts[2].3.moments().unwrap());
    }

    #[test]
    fn a_parameter_that_no_gradient_reaches_is_named() {
        let (store, x) = quadratic();
        store.builder().weight("unused", &[2], Init::Ones).unwrap();
        let mut bucket = GradientBucket::new(&store).unwrap();
        let e = bucket.backward(&x.sum_all().unwrap()).unwrap_err();
        assert!(e.to_string().contains("unused"), "{e}");
    }

    #[test]
    fn a_pass_that_reaches_less_than_the_one_before_is_an_error() {
        let (store, x) = quadratic();
        let y = store.builder().weight("y", &[2], Init::Ones).unwrap();
        let mut bucket = GradientBucket::new(&store).unwrap();
        bucket.backward(&(x.sum_all().unwrap() + y.sum_all().unwrap()).unwrap()).unwrap();
        let e = bucket.backward(&x.sum_all().unwrap()).unwrap_err();
        assert!(e.to_string().contains("no gradient reaches y"), "{e}");
    }

    #[test]
    fn a_step_without_a_backward_pass_has_no_gradient() {
        let (store, x) = quadratic();
        let mut bucket = GradientBucket::new(&store).unwrap();
        bucket.backward(&x.sum_all().unwrap()).unwrap();
        bucket.clear();
        assert_eq!(bucket.get("x").unwrap(), None);
        assert_eq!(bucket.norm().unwrap(), 0.0);
        let before = x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let mut opt = AdamW::new(&store, AdamWConfig { weight_decay: 0.0, ..Default::default() }).unwrap();
        opt.update(&mut bucket, 0.1, &Clip::by(1.0)).unwrap();
        assert_eq!(x.flatten_all().unwrap().to_vec1::<f32>().unwrap(), before);
    }

    /// The CPU, and a GPU if this build can use one and there is one. CALM_TEST_GPU=1 makes its absence an error.
    fn devices() -> Vec<Device> {
        let gpu = match device::gpus() {
            Ok(_) => Some(device::open(device::Choice::Cuda(0)).unwrap()),
            Err(reason) => {
                assert!(
                    std::env::var_os("CALM_TEST_GPU").is_none() || !device::has_cuda(),
                    "CALM_TEST_GPU: {reason}"
                );
                None
            }
        };
        std::iter::once(Device::Cpu).chain(gpu).collect()
    }

    #[test]
    fn beside_a_bucket_a_plain_pass_is_the_same_error_on_every_device() {
        for device in devices() {
            let store = ParamStore::new(&device, DType::F32, 5);
            let (b, init) = (store.builder(), Init::Normal(0.5));
            let norm = RmsNorm::new(&b, "norm", 8, 1e-6).unwrap();
            let mlp = SwiGlu::new(&b, "mlp", 8, 12, init).unwrap();
            let table = Embedding::new(&b, "table", 6, 8, init, Some(0)).unwrap();
            let (after, last) =
                (LayerNorm::new(&b, "after", 8, 1e-6).unwrap(), Linear::new(&b, "last", 8, 3, init).unwrap());
            let ids = Tensor::new(&[[1u32, 2], [5, 0]], &device).unwrap();
            let loss = || {
                let x = mlp.residual(&table.forward(&ids).unwrap(), &norm).unwrap();
                last.forward(&after.forward(&x).unwrap()).unwrap().sqr().unwrap().sum_all().unwrap()
            };
            let numbers = |t: &Tensor| -> Vec<f32> { t.flatten_all().unwrap().to_vec1().unwrap() };
            let plain = || -> Vec<Vec<f32>> {
                let grads = loss().backward().unwrap();
                store.params().iter().map(|(_, p)| numbers(grads.get(&p.var).unwrap())).collect()
            };
            let want = plain();
            let mut bucket = GradientBucket::new(&store).unwrap();
            let e = loss().backward().unwrap_err().to_string();
            assert!(e.contains("outside of the bucket"), "{e}");
            bucket.backward(&loss()).unwrap();
            let got: Vec<_> =
                store.params().iter().map(|(name, _)| bucket.get(name).unwrap().unwrap()).collect();
            assert_eq!(got, want, "{:?}", device.location());
            drop(bucket);
            assert_eq!(plain(), want);
        }
    }

    #[test]
    fn accumulated_micro_batches_add_up() {
        let (store, x) = quadratic();
        let mut bucket = GradientBucket::new(&store).unwrap();
        for _ in 0..3 {
            bucket.backward(&x.sum_all().unwrap()).unwrap();
        }
        assert!(bucket.get("x").unwrap().unwrap().iter().all(|g| *g == 3.0));
        assert!((bucket.norm().unwrap() - (9.0f64 * 12.0).sqrt()).abs() < 1e-9);
    }
}
