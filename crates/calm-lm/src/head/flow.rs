//! The flow-matching head: a velocity field that carries normal noise to the next latent vector.
//!
//! ```text
//! training  x_t = (1 − t) x₀ + t x₁,  x₀ ~ N(0, I),  x₁ ~ posterior,  t ~ U[0, 1)
//!           loss = mean over dims of (net(x_t, t, h) − (x₁ − x₀))²
//! sampling  x(0) ~ N(0, I), dx/dt = net(x, t, h), to t = 1
//!           Euler:    x += dt·net(x, t)
//!           midpoint: x += dt·net(x + dt/2·net(x, t), t + dt/2)
//! ```
//! (Lipman et al. 2022, "Flow matching for generative modeling", with the straight path; the paper's
//! alternative head.)

use calm_autoencoder::Posterior;
use calm_config::Problems;
use calm_nn::device::upload;
use calm_nn::{Builder, Footing, Held, Noise};
use candle_core::{D, Device, Result, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::adaln::{self, AdaLnNet};
use super::{
    Head, HeadSettings, PublishedHead, blocks, config_json, draw_targets, published_blocks,
    published_samples, wide,
};
use crate::BackboneConfig;
use crate::published::{ConfigJson, Names};

/// How a flow is followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Solver {
    /// One pass a step.
    Euler,
    /// Two passes a step, second order.
    #[default]
    Midpoint,
}

/// Which time the flow's net is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FlowTime {
    /// 1000·t, the time itself.
    #[default]
    Continuous,
    /// ⌊1000·t⌋, as the reference implementation: the field becomes a staircase in time. Needed for
    /// checkpoints trained so.
    Floor,
}

/// The flow-matching head: straight path from normal noise to the latent vector.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FlowConfig {
    /// Residual blocks; null: a quarter of the backbone's layers, at least 1.
    pub blocks: Option<usize>,
    /// Draws of target, noise and time per position in the loss.
    pub repeats: usize,
    /// How samples are computed.
    pub solver: Solver,
    /// Steps of the solver; null: 10 of midpoint or 20 of Euler, 20 passes either way.
    pub steps: Option<usize>,
    /// Which time the net is told.
    pub time: FlowTime,
}

impl Default for FlowConfig {
    fn default() -> Self {
        Self { blocks: None, repeats: 1, solver: Solver::default(), steps: None, time: FlowTime::default() }
    }
}

impl FlowConfig {
    /// The behaviour of the reference implementation, for its checkpoints.
    pub fn reference() -> Self {
        Self { time: FlowTime::Floor, ..Self::default() }
    }

    /// Residual blocks for a backbone of `layers`.
    pub fn blocks(&self, layers: usize) -> usize {
        blocks(self.blocks, layers)
    }

    /// Steps of the solver.
    pub fn steps(&self) -> usize {
        self.steps.unwrap_or(match self.solver {
            Solver::Euler => 20,
            Solver::Midpoint => 10,
        })
    }

    /// Passes through the net for one sample.
    pub fn calls(&self) -> usize {
        match self.solver {
            Solver::Euler => self.steps(),
            Solver::Midpoint => 2 * self.steps(),
        }
    }
}

pub(crate) const PUBLISHED: PublishedHead = PublishedHead {
    names: Names { architecture: "FlowTransformer", model_type: "flow" },
    read: |keys| {
        // What other heads need of such a folder has no meaning here, and is there all the same.
        for key in ["noise_size", "beta"] {
            keys.ignore(key);
        }
        let (blocks, repeats) = (published_blocks(keys), published_samples(keys));
        FlowConfig { blocks, repeats, ..FlowConfig::reference() }.into()
    },
};

impl HeadSettings for FlowConfig {
    fn name(&self) -> &'static str {
        "flow"
    }

    fn validate(&self, problems: &mut Problems) {
        for (key, value) in
            [("blocks", self.blocks.unwrap_or(1)), ("repeats", self.repeats), ("steps", self.steps())]
        {
            if value == 0 {
                problems.add(key, "must be at least 1");
            }
        }
    }

    fn build(&self, b: &Builder, backbone: &BackboneConfig, latent_size: usize) -> Result<Box<dyn Head>> {
        Ok(Box::new(FlowHead::new(b, self, backbone, latent_size)?))
    }

    fn parameters(&self, backbone: &BackboneConfig, latent_size: usize) -> u64 {
        adaln::parameters(backbone.hidden_size, self.blocks(backbone.layers), latent_size, latent_size)
    }

    fn pass_flops(&self, backbone: &BackboneConfig, latent_size: usize) -> f64 {
        adaln::pass_flops(backbone.hidden_size, self.blocks(backbone.layers), latent_size, latent_size)
    }

    fn training_passes(&self) -> usize {
        self.repeats
    }

    fn sampling_passes(&self) -> usize {
        self.calls()
    }

    fn held(&self, backbone: &BackboneConfig, _latent_size: usize, rows: f64, on: Footing) -> Held {
        let draws = rows * self.repeats as f64;
        adaln::held(backbone.hidden_size, self.blocks(backbone.layers), draws, on)
    }

    fn published(&self, layers: usize) -> Option<ConfigJson> {
        let keys = json!({ "num_mlp_layers": self.blocks(layers), "num_samples": self.repeats });
        let mut notes = Vec::new();
        if self.time != FlowTime::Floor {
            notes.push(
                "the reference tells a flow's net floor(1000 t), not 1000 t: its samples differ".to_owned(),
            );
        }
        config_json(PUBLISHED.names, keys, notes)
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct FlowHead {
    config: FlowConfig,
    latent_size: usize,
    net: AdaLnNet,
}

/// What one evaluation of the loss computed.
#[derive(Clone, Debug)]
pub struct FlowTerms {
    /// The predicted velocity `[R, n, L]`.
    pub velocity: Tensor,
    /// The loss of every draw `[R, n]`.
    pub loss: Tensor,
}

impl FlowHead {
    /// Parameters `generative_head.net.*`.
    ///
    /// # Errors
    /// As [`Builder::weight`].
    pub fn new(
        b: &Builder,
        config: &FlowConfig,
        backbone: &BackboneConfig,
        latent_size: usize,
    ) -> Result<Self> {
        let net = &b.under("generative_head").under("net");
        let blocks = config.blocks(backbone.layers);
        let net = AdaLnNet::new(net, backbone.hidden_size, blocks, latent_size, latent_size)?;
        Ok(Self { config: config.clone(), latent_size, net })
    }

    /// The net.
    pub fn net(&self) -> &AdaLnNet {
        &self.net
    }

    /// The step that the net is told at time t in [0, 1].
    pub fn step(&self, t: f32) -> f32 {
        match self.config.time {
            FlowTime::Continuous => 1000.0 * t,
            FlowTime::Floor => (1000.0 * t).floor(),
        }
    }

    /// The loss with given draws: hidden `[R, D]`, target x₁ and start x₀ `[R, n, L]`, R·n times in [0, 1).
    ///
    /// # Errors
    /// Another number of times, shapes that do not fit; what a GPU answers.
    pub fn terms(
        &self,
        hidden: &Tensor,
        target: &Tensor,
        start: &Tensor,
        times: &[f32],
    ) -> Result<FlowTerms> {
        let (r, n, _) = target.dims3()?;
        let t = upload(times, (r, n, 1), self.net.context())?.to_dtype(target.dtype())?;
        let velocity = (target - start)?;
        // Not x₀ + t (x₁ − x₀): this form is exact at both ends.
        let x = (start.broadcast_mul(&t.affine(-1.0, 1.0)?)? + target.broadcast_mul(&t)?)?;
        let steps: Vec<f32> = times.iter().map(|&t| self.step(t)).collect();
        let predicted = self.net.forward(&x, &self.net.condition(hidden)?, &steps)?;
        let loss = wide(&(&predicted - velocity)?)?.sqr()?.mean(D::Minus1)?;
        Ok(FlowTerms { velocity: predicted, loss })
    }

    /// Carries `start [R, N, L]` to t = 1 in `steps` equal steps, without gradient. `on_call` sees the step
    /// that the net was told and the velocity `[R, N, L]` of every call.
    ///
    /// # Errors
    /// Shapes that do not fit; what a GPU or `on_call` answers.
    pub fn integrate(
        &self,
        hidden: &Tensor,
        start: &Tensor,
        solver: Solver,
        steps: usize,
        mut on_call: impl FnMut(f32, &Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        let condition = self.net.condition(&hidden.detach())?.detach();
        let mut velocity = |x: &Tensor, t: f64| -> Result<Tensor> {
            let step = self.step(t as f32);
            // Detached at once, or every call's activations would be kept.
            let v = self.net.forward(x, &condition, &[step])?.detach();
            on_call(step, &v)?;
            Ok(v)
        };
        let dt = 1.0 / steps as f64;
        let mut x = start.detach();
        for i in 0..steps {
            let t = i as f64 / steps as f64;
            let mut v = velocity(&x, t)?;
            if solver == Solver::Midpoint {
                v = velocity(&(&x + (v * (dt / 2.0))?)?, t + dt / 2.0)?;
            }
            x = (x + (v * dt)?)?;
        }
        Ok(x)
    }
}

impl Head for FlowHead {
    /// The mean of `repeats` draws. Noise streams: `target` normal `[R, n, L]` (the posterior's sample),
    /// `head.start` normal `[R, n, L]`, `head.time` uniform `[R, n, 1]`.
    fn loss(&self, hidden: &Tensor, posterior: &Posterior, noise: &Noise<'_>) -> Result<Tensor> {
        let n = self.config.repeats;
        let target = draw_targets(posterior, n, noise, self.net.context())?;
        let start =
            noise.normal("head.start", n, self.latent_size, self.net.context())?.to_dtype(target.dtype())?;
        let times = noise.uniform("head.time", n, 1, &Device::Cpu)?.flatten_all()?.to_vec1()?;
        self.terms(hidden, &target, &start, &times)?.loss.mean(1)
    }

    /// Without gradient. Noise stream: `head.start` normal `[R, N, L]`; the rest is deterministic.
    fn sample(&self, hidden: &Tensor, samples: usize, noise: &Noise<'_>) -> Result<Tensor> {
        let start = noise.normal("head.start", samples, self.latent_size, self.net.context())?;
        let start = start.to_dtype(hidden.dtype())?;
        self.integrate(hidden, &start, self.config.solver, self.config.steps(), |_, _| Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::head::testing::{self, Case, values};

    fn case(config: FlowConfig) -> Case<FlowHead> {
        Case::new(|b, backbone| FlowHead::new(b, &config, backbone, 3))
    }

    #[test]
    fn the_loss_gives_every_parameter_the_gradient_of_finite_differences() {
        for time in [FlowTime::Continuous, FlowTime::Floor] {
            testing::check_gradients(&case(FlowConfig { repeats: 2, time, ..Default::default() }));
        }
    }

    #[test]
    fn samples_depend_on_seed_and_row_only() {
        testing::check_sampling(&case(FlowConfig::default()));
    }

    #[test]
    fn loss_and_samples_take_their_noise_from_the_named_streams() {
        let c = case(FlowConfig { repeats: 2, ..Default::default() });
        testing::randomise(&c.store);
        let (posterior, streams) = testing::loss_inputs(&c);
        let noise = Noise::Given(&streams);
        let target = draw_targets(&posterior, 2, &noise, c.store.context()).unwrap();
        let first =
            posterior.sample(&streams["target"].narrow(1, 0, 1).unwrap().squeeze(1).unwrap()).unwrap();
        assert_eq!(values(&target.narrow(1, 0, 1).unwrap()), values(&first));
        let terms = c.head.terms(&c.hidden, &target, &c.start, &[0.0, 0.31, 0.5, 0.97]).unwrap();
        let loss = c.head.loss(&c.hidden, &posterior, &noise).unwrap();
        assert_eq!(values(&loss), values(&terms.loss.mean(1).unwrap()));
        let sample = c.head.sample(&c.hidden, 2, &noise).unwrap();
        let expected = c.head.integrate(&c.hidden, &c.start, Solver::Midpoint, 10, |_, _| Ok(())).unwrap();
        assert_eq!(values(&sample), values(&expected));
    }

    #[test]
    fn parameters_are_as_many_as_the_papers_head_has() {
        // Width 1024, 4 blocks, L 128.
        let backbone = BackboneConfig { layers: 16, hidden_size: 1024, ..Default::default() };
        let store = calm_nn::ParamStore::new(&Device::Cpu, candle_core::DType::F32, 1);
        FlowHead::new(&store.builder(), &FlowConfig::default(), &backbone, 128).unwrap();
        assert_eq!(store.element_count_of("generative_head.net."), 25_725_056);
        assert_eq!(store.element_count_of("generative_head.net."), store.element_count());
    }

    #[test]
    fn more_steps_approach_one_flow_and_midpoint_is_closer_than_euler() {
        let c = case(FlowConfig::default());
        testing::randomise(&c.store);
        // A field that is the same at all times: random numbers make the embedding of time far too rough for
        // twenty steps.
        let time = c.store.get("generative_head.net.time_embed.mlp.0.weight").unwrap().var;
        time.set(&time.zeros_like().unwrap()).unwrap();
        let run = |solver, steps| {
            values(&c.head.integrate(&c.hidden, &c.start, solver, steps, |_, _| Ok(())).unwrap())
        };
        let truth = run(Solver::Midpoint, 400);
        let error = |solver, steps| {
            run(solver, steps).iter().zip(&truth).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
        };
        let (euler, finer) = (error(Solver::Euler, 20), error(Solver::Euler, 40));
        let (midpoint, fine_midpoint) = (error(Solver::Midpoint, 10), error(Solver::Midpoint, 20));
        assert!(
            finer < 0.7 * euler && fine_midpoint < 0.5 * midpoint && midpoint < euler,
            "{euler} {finer} {midpoint} {fine_midpoint}"
        );
    }

    #[test]
    fn floored_time_is_a_staircase_of_a_thousand_steps() {
        let (continuous, floor) =
            (case(FlowConfig::default()), case(FlowConfig { time: FlowTime::Floor, ..Default::default() }));
        assert_eq!(floor.head.step(0.2507), 250.0);
        assert!((continuous.head.step(0.2507) - 250.7).abs() < 1e-3);
        assert_eq!(floor.head.step(1.0), continuous.head.step(1.0));
    }
}
