//! The diffusion head: a net that predicts the noise in a noisy latent and how sure the way back is.
//!
//! ```text
//! training  t ~ {0..T−1},  x_t = √acp_t x + √(1 − acp_t) noise,  x ~ posterior of the next chunk
//!           [eps | v] = net(x_t, t, h),   e = noise − eps
//!           loss = mean e² + variational term (bits, mean over dims; no gradient through eps)
//! variance  ln σ² = f ln β_t + (1 − f) ln β̃_t,   f = (v + 1)/2
//! t > 0     KL(N(m, β̃_t) ‖ N(m̂, σ²)) = ½ (ln σ² − ln β̃_t + β̃_t/σ² − 1 + w_t e²/σ²),   (m − m̂)² = w_t e²
//! t = 0     −ln N(x | m̂, σ²) = ½ (ln 2π + ln σ² + w_0 e²/σ²), or the discretised form below
//! sampling  from N(0, I) through respaced steps s_i:  x ← m̂_i(x) + σ_i · temperature · noise (none at i = 0)
//! ```
//! (Nichol and Dhariwal 2021, "Improved denoising diffusion probabilistic models"; the paper's alternative
//! head.) w_t and the weights of m̂ are in [`NoiseSchedule`]: written with e they do without the
//! predicted x of the textbook form, in which two numbers 10⁴ times larger cancel at t = T − 1.

use calm_autoencoder::Posterior;
use calm_config::Problems;
use calm_nn::device::upload;
use calm_nn::{Builder, Footing, Held, Noise};
use candle_core::{D, Device, Result, Tensor, bail};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::adaln::{self, AdaLnNet};
use super::schedule::NoiseSchedule;
use super::{
    Head, HeadSettings, PublishedHead, blocks, config_json, draw_targets, published_blocks,
    published_samples, wide,
};
use crate::BackboneConfig;
use crate::published::{ConfigJson, Names};

/// What trains the variances of the diffusion head. All forms agree at steps t > 0; they differ in the
/// last step, from a slightly noisy vector to the vector itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VariationalTerm {
    /// The Gaussian density of the vector: latents are continuous and unbounded.
    #[default]
    Gaussian,
    /// The mass of a bin of ±1/255, with open tails beyond ±0.999: the likelihood of 8-bit images, which
    /// the reference implementation keeps. Needed to continue its training runs; sampling is the same.
    Discretised,
    /// No such term: variances are not trained and stay halfway between their bounds.
    None,
}

/// The diffusion head: cosine schedule, learned variances.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DiffusionConfig {
    /// Residual blocks; null: a quarter of the backbone's layers, at least 1.
    pub blocks: Option<usize>,
    /// Draws of target, noise and step per position in the loss.
    pub repeats: usize,
    /// T, steps of the process in training.
    pub steps: usize,
    /// Steps, and passes through the net, for one sample.
    pub sampling_steps: usize,
    /// What trains the variances.
    pub variational_term: VariationalTerm,
}

impl Default for DiffusionConfig {
    fn default() -> Self {
        Self {
            blocks: None,
            repeats: 1,
            steps: 1000,
            sampling_steps: 100,
            variational_term: VariationalTerm::default(),
        }
    }
}

impl DiffusionConfig {
    /// The behaviour of the reference implementation, for its checkpoints.
    pub fn reference() -> Self {
        Self { variational_term: VariationalTerm::Discretised, ..Self::default() }
    }

    /// Residual blocks for a backbone of `layers`.
    pub fn blocks(&self, layers: usize) -> usize {
        blocks(self.blocks, layers)
    }
}

pub(crate) const PUBLISHED: PublishedHead = PublishedHead {
    names: Names { architecture: "DiffusionTransformer", model_type: "diffusion" },
    read: |keys| {
        // What other heads need of such a folder has no meaning here, and is there all the same.
        for key in ["noise_size", "beta"] {
            keys.ignore(key);
        }
        let (blocks, repeats) = (published_blocks(keys), published_samples(keys));
        DiffusionConfig { blocks, repeats, ..DiffusionConfig::reference() }.into()
    },
};

impl HeadSettings for DiffusionConfig {
    fn name(&self) -> &'static str {
        "diffusion"
    }

    fn validate(&self, problems: &mut Problems) {
        for (key, value) in [("blocks", self.blocks.unwrap_or(1)), ("repeats", self.repeats)] {
            if value == 0 {
                problems.add(key, "must be at least 1");
            }
        }
        if self.steps < 2 {
            problems.add("steps", format!("is {}: a process has at least 2 steps", self.steps));
        } else if self.sampling_steps < 2 || self.sampling_steps > self.steps {
            let (sampling, steps) = (self.sampling_steps, self.steps);
            problems.add("sampling_steps", format!("is {sampling}: must be between 2 and steps = {steps}"));
        }
    }

    fn build(&self, b: &Builder, backbone: &BackboneConfig, latent_size: usize) -> Result<Box<dyn Head>> {
        Ok(Box::new(DiffusionHead::new(b, self, backbone, latent_size)?))
    }

    fn parameters(&self, backbone: &BackboneConfig, latent_size: usize) -> u64 {
        let blocks = self.blocks(backbone.layers);
        adaln::parameters(backbone.hidden_size, blocks, latent_size, 2 * latent_size)
    }

    fn pass_flops(&self, backbone: &BackboneConfig, latent_size: usize) -> f64 {
        let blocks = self.blocks(backbone.layers);
        adaln::pass_flops(backbone.hidden_size, blocks, latent_size, 2 * latent_size)
    }

    fn training_passes(&self) -> usize {
        self.repeats
    }

    fn sampling_passes(&self) -> usize {
        self.sampling_steps
    }

    fn held(&self, backbone: &BackboneConfig, _latent_size: usize, rows: f64, on: Footing) -> Held {
        let draws = rows * self.repeats as f64;
        adaln::held(backbone.hidden_size, self.blocks(backbone.layers), draws, on)
    }

    fn published(&self, layers: usize) -> Option<ConfigJson> {
        let keys = json!({ "num_mlp_layers": self.blocks(layers), "num_samples": self.repeats });
        config_json(PUBLISHED.names, keys, Vec::new())
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct DiffusionHead {
    config: DiffusionConfig,
    latent_size: usize,
    net: AdaLnNet,
    training: NoiseSchedule,
    sampling: NoiseSchedule,
}

/// What one evaluation of the loss computed.
#[derive(Clone, Debug)]
pub struct DiffusionTerms {
    /// The net's output `[eps | v]`, `[R, n, 2L]`.
    pub output: Tensor,
    /// `mean e²` of every draw `[R, n]`.
    pub squared_error: Tensor,
    /// The variational term of every draw `[R, n]`, bits per dimension; none when it is switched off.
    pub variational: Option<Tensor>,
}

impl DiffusionTerms {
    /// The loss of every draw `[R, n]`.
    ///
    /// # Errors
    /// What a GPU answers.
    pub fn loss(&self) -> Result<Tensor> {
        match &self.variational {
            Some(v) => &self.squared_error + v,
            None => Ok(self.squared_error.clone()),
        }
    }
}

impl DiffusionHead {
    /// Parameters `generative_head.net.*`.
    ///
    /// # Errors
    /// Fewer than 2 steps, or more when sampling than in training.
    pub fn new(
        b: &Builder,
        config: &DiffusionConfig,
        backbone: &BackboneConfig,
        latent_size: usize,
    ) -> Result<Self> {
        if config.sampling_steps < 2 || config.steps < config.sampling_steps {
            bail!(
                "diffusion head: {} steps and {} when sampling; needed: 2 <= sampling_steps <= steps",
                config.steps,
                config.sampling_steps
            )
        }
        let net = &b.under("generative_head").under("net");
        let blocks = config.blocks(backbone.layers);
        let training = NoiseSchedule::cosine(config.steps);
        Ok(Self {
            net: AdaLnNet::new(net, backbone.hidden_size, blocks, latent_size, 2 * latent_size)?,
            sampling: training.respaced(config.sampling_steps),
            training,
            config: config.clone(),
            latent_size,
        })
    }

    /// The net.
    pub fn net(&self) -> &AdaLnNet {
        &self.net
    }

    /// The schedule of the loss.
    pub fn training_schedule(&self) -> &NoiseSchedule {
        &self.training
    }

    /// The respaced schedule of the sampler.
    pub fn sampling_schedule(&self) -> &NoiseSchedule {
        &self.sampling
    }

    /// The loss with given draws: hidden `[R, D]`, target x and noise `[R, n, L]`, R·n steps in 0..T.
    ///
    /// # Errors
    /// A step beyond the schedule, shapes that do not fit.
    pub fn terms(
        &self,
        hidden: &Tensor,
        target: &Tensor,
        noise: &Tensor,
        steps: &[u32],
    ) -> Result<DiffusionTerms> {
        let (r, n, l) = target.dims3()?;
        let s = &self.training;
        if let Some(t) = steps.iter().find(|&&t| t as usize >= s.steps()) {
            bail!("diffusion step {t} of a schedule of {}", s.steps())
        }
        // A number of the tables for every draw, `[R, n, 1]`.
        let table = |f: &dyn Fn(usize) -> f64| -> Result<Tensor> {
            let v: Vec<f64> = steps.iter().map(|&t| f(t as usize)).collect();
            upload(&v, (r, n, 1), self.net.context())?.to_dtype(target.dtype())
        };
        let signal = target.broadcast_mul(&table(&|t| s.alphas_cumprod[t].sqrt())?)?;
        let x = (signal + noise.broadcast_mul(&table(&|t| (1.0 - s.alphas_cumprod[t]).sqrt())?)?)?;
        let told: Vec<f32> = steps.iter().map(|&t| s.timesteps[t as usize] as f32).collect();
        let output = self.net.forward(&x, &self.net.condition(hidden)?, &told)?;
        let e = wide(&(noise - output.narrow(D::Minus1, 0, l)?)?)?;
        let squared_error = e.sqr()?.mean(D::Minus1)?;
        if self.config.variational_term == VariationalTerm::None {
            return Ok(DiffusionTerms { output, squared_error, variational: None });
        }
        let table = |f: &dyn Fn(usize) -> f64| table(f)?.to_dtype(e.dtype());
        let v = wide(&output.narrow(D::Minus1, l, l)?)?;
        // d = ln σ² − ln β̃ = f (ln β − ln β̃)
        let d = v.affine(0.5, 0.5)?.broadcast_mul(&table(&|t| s.ln_beta[t] - s.ln_posterior[t])?)?;
        let e = e.detach();
        let weight = table(&|t| s.error_weight(t) / s.ln_posterior[t].exp())?;
        let own = table(&|t| if t == 0 { 0.0 } else { 1.0 })?;
        let rest = table(&|t| match t {
            0 => (2.0 * std::f64::consts::PI).ln() + s.ln_posterior[t],
            _ => -1.0,
        })?;
        // ½ (d − 1 + e^(−d) (1 + w e²/β̃)); at t = 0 ½ (ln 2π + ln β̃ + d + e^(−d) w e²/β̃)
        let spread = e.sqr()?.broadcast_mul(&weight)?.broadcast_add(&own)?;
        let nats = ((&d + d.neg()?.exp()? * spread)?.broadcast_add(&rest)? * 0.5)?.mean(D::Minus1)?;
        let nats = if self.config.variational_term == VariationalTerm::Discretised && steps.contains(&0) {
            // x − m̂ = −√w₀ e
            let offset = (&e * -s.error_weight(0).sqrt())?;
            let ln_var = (&d + s.ln_posterior[0])?;
            let discretised = discretised_nll(&wide(target)?, &offset, &ln_var)?.mean(D::Minus1)?;
            let first: Vec<u8> = steps.iter().map(|&t| u8::from(t == 0)).collect();
            upload(&first, (r, n), self.net.context())?.where_cond(&discretised, &nats)?
        } else {
            nats
        };
        Ok(DiffusionTerms { output, squared_error, variational: Some((nats / std::f64::consts::LN_2)?) })
    }

    /// Carries `start [R, N, L]` through the sampling schedule, without gradient. `noise(i)` gives the
    /// `[R, N, L]` normal numbers of step i (asked for i > 0 only), which `temperature` multiplies;
    /// `on_step` sees x after each step, i from the last to 0.
    ///
    /// # Errors
    /// Shapes that do not fit; what a GPU, `noise` or `on_step` answers.
    pub fn generate(
        &self,
        hidden: &Tensor,
        start: &Tensor,
        mut noise: impl FnMut(usize) -> Result<Tensor>,
        temperature: f64,
        mut on_step: impl FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        let s = &self.sampling;
        let l = self.latent_size;
        let condition = self.net.condition(&hidden.detach())?.detach();
        let mut x = start.detach();
        for i in (0..s.steps()).rev() {
            // Detached at once, or every step's activations would be kept.
            let output = self.net.forward(&x, &condition, &[s.timesteps[i] as f32])?.detach();
            let (a, b) = s.mean_weights(i);
            x = ((x * a)? - (output.narrow(D::Minus1, 0, l)? * b)?)?;
            if i > 0 {
                let (low, high) = (s.ln_posterior[i], s.ln_beta[i]);
                let ln_var =
                    output.narrow(D::Minus1, l, l)?.affine((high - low) / 2.0, (high + low) / 2.0)?;
                x = (x + ((ln_var * 0.5)?.exp()? * (noise(i)? * temperature)?)?)?;
            }
            on_step(i, &x)?;
        }
        Ok(x)
    }
}

/// −ln of the mass that N(m̂, σ²) puts on x ± 1/255, `[R, n, L]`, with Φ(u) ≈ ½ (1 + tanh(√(2/π) (u + 0.044715 u³)));
/// the whole tail where x lies beyond ±0.999; masses below 1e-12 count as 1e-12 and give no gradient.
/// `offset` is x − m̂.
fn discretised_nll(x: &Tensor, offset: &Tensor, ln_var: &Tensor) -> Result<Tensor> {
    let inverse = (ln_var * -0.5)?.exp()?;
    let phi = |u: Tensor| -> Result<Tensor> {
        let cube = (u.sqr()? * &u)?;
        ((u + (cube * 0.044715)?)? * (2.0 / std::f64::consts::PI).sqrt())?.tanh()?.affine(0.5, 0.5)
    };
    let below = phi((&inverse * (offset - 1.0 / 255.0)?)?)?;
    let above = phi((&inverse * (offset + 1.0 / 255.0)?)?)?;
    let inside = (&above - &below)?;
    let high = x.gt(0.999)?.where_cond(&below.affine(-1.0, 1.0)?, &inside)?;
    let mass = x.lt(-0.999)?.where_cond(&above, &high)?;
    mass.maximum(1e-12)?.log()?.neg()
}

impl Head for DiffusionHead {
    /// The mean of `repeats` draws. Noise streams: `target` normal `[R, n, L]` (the posterior's sample),
    /// `head.noise` normal `[R, n, L]`, `head.time` uniform `[R, n, 1]` (the step is ⌊T·u⌋).
    fn loss(&self, hidden: &Tensor, posterior: &Posterior, noise: &Noise<'_>) -> Result<Tensor> {
        let n = self.config.repeats;
        let target = draw_targets(posterior, n, noise, self.net.context())?;
        let eps =
            noise.normal("head.noise", n, self.latent_size, self.net.context())?.to_dtype(target.dtype())?;
        let times = noise.uniform("head.time", n, 1, &Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
        let count = self.training.steps();
        let steps: Vec<u32> =
            times.iter().map(|&u| ((f64::from(u) * count as f64) as usize).min(count - 1) as u32).collect();
        self.terms(hidden, &target, &eps, &steps)?.loss()?.mean(1)
    }

    /// Without gradient. Noise streams: `head.start` and, for each step i of the sampling schedule but 0,
    /// `head.step.<i>`, normal `[R, N, L]`.
    fn sample(&self, hidden: &Tensor, samples: usize, noise: &Noise<'_>) -> Result<Tensor> {
        let draw = |stream: &str| {
            noise.normal(stream, samples, self.latent_size, self.net.context())?.to_dtype(hidden.dtype())
        };
        let start = draw("head.start")?;
        self.generate(hidden, &start, |i| draw(&format!("head.step.{i}")), 1.0, |_, _| Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::head::testing::{self, Case, values};

    fn case(config: DiffusionConfig) -> Case<DiffusionHead> {
        Case::new(|b, backbone| DiffusionHead::new(b, &config, backbone, 3))
    }

    #[test]
    fn the_loss_gives_every_parameter_the_gradient_of_finite_differences() {
        // Without the variational term: with it, eps is held fixed in one part of the loss, which finite
        // differences are not (see the next test).
        let config =
            DiffusionConfig { repeats: 2, variational_term: VariationalTerm::None, ..Default::default() };
        testing::check_gradients(&case(config));
    }

    #[test]
    fn the_variational_term_trains_the_variance_and_leaves_the_noise_prediction_alone() {
        for variational_term in [VariationalTerm::Gaussian, VariationalTerm::Discretised] {
            let c = case(DiffusionConfig { variational_term, ..Default::default() });
            testing::randomise(&c.store);
            let p = c.store.get("generative_head.net.final_layer.linear.bias").unwrap().var;
            let bias = values(p.as_tensor());
            let term = |i: usize, by: f64| {
                let mut moved = bias.clone();
                moved[i] += by;
                p.set(&Tensor::new(moved, &Device::Cpu).unwrap()).unwrap();
                let terms = c.head.terms(&c.hidden, &c.start, &c.noise, &[0, 1, 500, 999]).unwrap();
                p.set(&Tensor::new(bias.clone(), &Device::Cpu).unwrap()).unwrap();
                terms.variational.unwrap().sum_all().unwrap()
            };
            let gradients = term(0, 0.0).backward().unwrap();
            let found = values(gradients.get(p.as_tensor()).unwrap());
            let h = 1e-5;
            for (i, &found) in found.iter().enumerate() {
                let numeric = (term(i, h).to_scalar::<f64>().unwrap()
                    - term(i, -h).to_scalar::<f64>().unwrap())
                    / (2.0 * h);
                if i < 3 {
                    assert_eq!(found, 0.0, "eps {i}");
                } else {
                    assert!(
                        (found - numeric).abs() < 1e-6 * numeric.abs().max(1.0),
                        "v {i}: {found} {numeric}"
                    );
                }
            }
        }
    }

    #[test]
    fn samples_depend_on_seed_and_row_only() {
        testing::check_sampling(&case(DiffusionConfig { sampling_steps: 20, ..Default::default() }));
    }

    #[test]
    fn loss_and_samples_take_their_noise_from_the_named_streams() {
        let c = case(DiffusionConfig { repeats: 2, sampling_steps: 3, ..Default::default() });
        testing::randomise(&c.store);
        let (posterior, mut streams) = testing::loss_inputs(&c);
        streams.insert("head.step.2".into(), c.noise.clone());
        streams.insert("head.step.1".into(), c.start.clone());
        let noise = Noise::Given(&streams);
        let target = draw_targets(&posterior, 2, &noise, c.store.context()).unwrap();
        let terms = c.head.terms(&c.hidden, &target, &c.noise, &[0, 310, 500, 970]).unwrap();
        let loss = c.head.loss(&c.hidden, &posterior, &noise).unwrap();
        assert_eq!(values(&loss), values(&terms.loss().unwrap().mean(1).unwrap()));
        let sample = c.head.sample(&c.hidden, 2, &noise).unwrap();
        let draw = |i: usize| Ok(streams[&format!("head.step.{i}")].clone());
        let expected = c.head.generate(&c.hidden, &c.start, draw, 1.0, |_, _| Ok(())).unwrap();
        assert_eq!(values(&sample), values(&expected));
    }

    #[test]
    fn a_perfect_noise_prediction_costs_nothing_at_the_posterior_variance() {
        // v = −1 is the posterior's variance; with e = 0 the KL is then 0.
        let c = case(DiffusionConfig::default());
        let p = c.store.get("generative_head.net.final_layer.linear.bias").unwrap().var;
        p.set(&Tensor::new(&[0.5, -0.25, 2.0, -1.0, -1.0, -1.0], &Device::Cpu).unwrap()).unwrap();
        let noise = Tensor::new(&[0.5, -0.25, 2.0], &Device::Cpu).unwrap().broadcast_as((2, 2, 3)).unwrap();
        let terms = c.head.terms(&c.hidden, &c.start, &noise, &[1, 10, 500, 999]).unwrap();
        for v in [values(&terms.squared_error), values(&terms.variational.unwrap())].concat() {
            assert!(v.abs() < 1e-12, "{v}");
        }
    }

    #[test]
    fn the_discretised_term_is_the_density_times_the_bin_where_the_bin_is_narrow() {
        // σ = 1, so that a bin of 2/255 is narrow: −ln(mass) ≈ −ln(density) − ln(2/255).
        let x = Tensor::new(&[[[0.3f64, -0.5, 0.0]]], &Device::Cpu).unwrap();
        let offset = Tensor::new(&[[[0.2f64, -1.0, 0.0]]], &Device::Cpu).unwrap();
        let found = values(&discretised_nll(&x, &offset, &x.zeros_like().unwrap()).unwrap());
        for (nll, u) in found.iter().zip([0.2f64, -1.0, 0.0]) {
            let expected = 0.5 * ((2.0 * std::f64::consts::PI).ln() + u * u) - (2.0f64 / 255.0).ln();
            assert!((nll - expected).abs() < 2e-3, "{nll} {expected}");
        }
        // Beyond ±0.999 the bin is the whole tail: half of the mass at the mean, nearly.
        let x = Tensor::new(&[[[1.5f64, -1.5]]], &Device::Cpu).unwrap();
        let zero = x.zeros_like().unwrap();
        for nll in values(&discretised_nll(&x, &zero, &zero).unwrap()) {
            assert!((nll - 2.0f64.ln()).abs() < 0.01, "{nll}");
        }
    }

    #[test]
    fn impossible_step_counts_and_steps_are_errors() {
        let store = calm_nn::ParamStore::new(&Device::Cpu, candle_core::DType::F32, 1);
        let config = DiffusionConfig { sampling_steps: 1, ..Default::default() };
        assert!(DiffusionHead::new(&store.builder(), &config, &BackboneConfig::default(), 3).is_err());
        let c = case(DiffusionConfig::default());
        assert!(c.head.terms(&c.hidden, &c.start, &c.noise, &[0, 1, 2, 1000]).is_err());
    }
}
