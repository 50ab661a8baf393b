//! Explosions of training: what is done about them, and the running averages that tell a spike from noise.
//!
//! A step is a spike when its loss or gradient norm lies more than `threshold` standard deviations above its running
//! mean, or its loss out of all proportion above the first one. The averages are exponential with the weight
//! 2 / (window + 1) of a window of steps, need half a window before they judge, and stand still during a spike:
//!
//! ```text
//! m <- m + a (x - m)        v <- (1 - a) (v + a (x - m)²)        z = (x - m) / sqrt(v)
//! ```
//!
//! Window and threshold are those of OLMo-core's optimiser that leaves out such steps (128 steps, 6 sigma). Going back
//! to a checkpoint and leaving out the batches around the spike is how PaLM was trained (Chowdhery et al. 2022, 5.1).

use calm_config::Problems;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is done when a loss or gradient is no number, or far from what it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Stop at what is no number, and warn of spikes.
    #[default]
    Stop,
    /// Leave out the update of a spike or of what is no number.
    Skip,
    /// Go back to the last checkpoint before it, and leave out the batches from there to the spike.
    Rollback,
}

/// Explosions of training.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DivergenceConfig {
    /// What is done about one. All but `stop` look at every step before its update, for which a GPU is waited for.
    pub action: Action,
    /// Steps of the running averages; a spike that lasts as long is the new level, with a warning.
    pub window: u32,
    /// Standard deviations above the running mean that make a step a spike.
    pub threshold: f64,
}

impl Default for DivergenceConfig {
    fn default() -> Self {
        Self { action: Action::default(), window: 128, threshold: 6.0 }
    }
}

impl DivergenceConfig {
    /// Whether every step is looked at before its update.
    pub fn looks_first(&self) -> bool {
        self.action != Action::Stop
    }

    /// Adds what cannot be; key paths are relative to this block.
    pub(crate) fn validate(&self, problems: &mut Problems) {
        if self.window < 4 {
            problems.add("window", format!("is {}: must be at least 4 steps", self.window));
        }
        if !(self.threshold > 0.0 && self.threshold.is_finite()) {
            problems.add("threshold", format!("is {}: must be above 0", self.threshold));
        }
    }
}

/// A running mean and variance. All of it is 32 bits, so that a file keeps it to the bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Average {
    count: u32,
    mean: f32,
    variance: f32,
}

impl Average {
    fn add(&mut self, x: f32, window: u32) {
        self.count = self.count.saturating_add(1);
        // At first the plain mean: the first step does not weigh more than others.
        let a = (1.0 / self.count as f32).max(2.0 / (window as f32 + 1.0));
        // Beyond this a square has no 32 bits, and a file no infinity.
        let d = x.clamp(-1e15, 1e15) - self.mean;
        self.mean += a * d;
        self.variance = (1.0 - a) * (self.variance + a * d * d);
    }

    fn deviation(&self) -> f32 {
        self.variance.sqrt().max(1e-3 * self.mean.abs()).max(1e-9)
    }

    /// Standard deviations above the mean; None before there are enough steps.
    fn z(&self, x: f32, window: u32) -> Option<f32> {
        (self.count >= window / 2).then(|| (x - self.mean) / self.deviation())
    }
}

/// Where loss and gradient norm were going. Part of a checkpoint, so that a resumed stage judges as one that was never
/// stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Trend {
    loss: Average,
    norm: Average,
    /// The first loss, or the first after a level was accepted.
    first: Option<f32>,
    /// Lowest running mean of the loss, with its deviation then.
    lowest: Option<(f32, f32)>,
    /// Steps since a spike began that has not passed.
    spike: u32,
    /// Steps that the running mean has been clearly above its lowest.
    high: u32,
}

/// What a step is beside those before it.
#[derive(Clone, Debug, PartialEq)]
pub enum Sight {
    /// As expected.
    Ordinary,
    /// A spike, in words; `first` where none was going on before.
    Spike {
        /// What is how far away.
        what: String,
        /// Whether it begins here.
        first: bool,
    },
    /// Not back for a whole window: in words. The averages begin anew.
    Diverged(String),
}

impl Trend {
    /// Whether a spike is going on.
    pub fn in_spike(&self) -> bool {
        self.spike > 0
    }

    /// A step that is no number at all.
    pub fn see_nothing(&mut self) {
        self.spike = self.spike.saturating_add(1);
    }

    /// Steps since a spike began that has not passed.
    pub fn spike_steps(&self) -> u32 {
        self.spike
    }

    /// Judges a step, and takes it into the averages.
    pub fn see(&mut self, loss: f64, norm: f64, config: &DivergenceConfig) -> Sight {
        let DivergenceConfig { window, threshold, .. } = *config;
        let (loss, norm) = (loss as f32, norm as f32);
        let first = *self.first.get_or_insert(loss);
        let far = |average: &Average, x: f32| {
            average.z(x, window).filter(|z| f64::from(*z) > threshold).map(|z| (z, average.mean))
        };
        let words = if let Some((z, mean)) = far(&self.loss, loss) {
            Some(format!("the loss of {loss:.4} is {z:.1} standard deviations above its mean of {mean:.4}"))
        } else if let Some((z, mean)) = far(&self.norm, norm) {
            Some(format!(
                "the gradient norm of {norm:.3} is {z:.1} standard deviations above its mean of {mean:.3}"
            ))
        } else if loss > first + PROPORTION * first.abs().max(1.0) {
            Some(format!("the loss of {loss:.4} is out of all proportion to the first one of {first:.4}"))
        } else {
            None
        };
        match words {
            Some(what) => {
                self.spike = self.spike.saturating_add(1);
                if self.spike < window {
                    return Sight::Spike { what, first: self.spike == 1 };
                }
                *self = Self::default();
                Sight::Diverged(format!("{what}, for {window} steps now"))
            }
            None => {
                self.spike = 0;
                self.loss.add(loss, window);
                self.norm.add(norm, window);
                self.rising(config)
            }
        }
    }

    /// A loss that goes up without a spike.
    fn rising(&mut self, config: &DivergenceConfig) -> Sight {
        if self.loss.count < config.window {
            return Sight::Ordinary;
        }
        let mean = self.loss.mean;
        let (lowest, deviation) = *self.lowest.get_or_insert((mean, self.loss.deviation()));
        if mean <= lowest {
            self.lowest = Some((mean, self.loss.deviation()));
        }
        if f64::from(mean) <= f64::from(lowest) + config.threshold * f64::from(deviation) {
            self.high = 0;
            return Sight::Ordinary;
        }
        self.high = self.high.saturating_add(1);
        if self.high != config.window {
            return Sight::Ordinary;
        }
        Sight::Diverged(format!(
            "the mean loss has risen from {lowest:.4} to {mean:.4} and has not come back for {} steps",
            config.window
        ))
    }
}

/// How far above the first loss, in units of it, is out of all proportion.
const PROPORTION: f32 = 4.0;

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: DivergenceConfig = DivergenceConfig { action: Action::Stop, window: 20, threshold: 6.0 };

    /// A loss that falls, with noise.
    fn loss(step: u32) -> f64 {
        let noise = f64::from((step * 2_654_435_761) >> 16) / 65_536.0 - 0.5;
        2.0 + 3.0 * (-f64::from(step) / 40.0).exp() + 0.2 * noise
    }

    #[test]
    fn a_falling_loss_with_noise_is_calm_and_a_spike_is_told_until_it_passes() {
        let mut trend = Trend::default();
        for step in 0..200 {
            assert_eq!(trend.see(loss(step), 1.0 + loss(step), &CONFIG), Sight::Ordinary, "{step}");
        }
        let before = trend;
        for n in 0..5 {
            let Sight::Spike { what, first } = trend.see(3.0, 3.0, &CONFIG) else { panic!("{n}") };
            assert!(first == (n == 0) && what.contains("standard deviations"), "{what}");
        }
        assert!(trend.in_spike() && trend.loss == before.loss, "a spike does not move the averages");
        assert!(matches!(trend.see(2.1, 50.0, &CONFIG), Sight::Spike { what, .. } if what.contains("norm")));
        assert_eq!(trend.see(2.1, 3.1, &CONFIG), Sight::Ordinary);
        assert!(!trend.in_spike());
        // A file keeps it to the bit.
        let text = serde_json::to_string(&trend).unwrap();
        assert_eq!(serde_json::from_str::<Trend>(&text).unwrap(), trend);
    }

    #[test]
    fn a_spike_that_stays_is_a_divergence_and_then_the_new_level() {
        let mut trend = Trend::default();
        (0..100).for_each(|step| assert_eq!(trend.see(loss(step), 1.0, &CONFIG), Sight::Ordinary));
        let seen: Vec<Sight> = (0..25).map(|_| trend.see(30.0, 1.0, &CONFIG)).collect();
        assert!(seen[..19].iter().all(|s| matches!(s, Sight::Spike { .. })));
        assert!(matches!(&seen[19], Sight::Diverged(what) if what.contains("20 steps")), "{:?}", seen[19]);
        assert!(seen[20..].iter().all(|s| *s == Sight::Ordinary));
    }

    #[test]
    fn a_first_step_out_of_all_proportion_needs_no_averages_and_a_slow_rise_is_noticed_once() {
        let mut trend = Trend::default();
        trend.see(2.0, 1.0, &CONFIG);
        assert!(matches!(trend.see(1e5, 1.0, &CONFIG), Sight::Spike { first: true, .. }));
        let mut trend = Trend::default();
        (0..100).for_each(|step| assert_eq!(trend.see(loss(step), 1.0, &CONFIG), Sight::Ordinary));
        let rising = (0..400).map(|step| trend.see(2.25 + 0.005 * f64::from(step), 1.0, &CONFIG));
        let told = rising.filter(|s| matches!(s, Sight::Diverged(what) if what.contains("risen"))).count();
        assert_eq!(told, 1);
    }
}
