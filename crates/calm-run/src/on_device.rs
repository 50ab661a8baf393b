//! A run where it was not trained.

use calm_nn::Precision;
use candle_core::Device;

use crate::run::Run;

impl Run {
    /// This run as `device` can compute it: a run in bf16 is computed in f32 on the CPU, for scores, text and
    /// files. Its weights are f32 in any case; training does not change its format.
    pub fn on(&self, device: &Device) -> Self {
        let mut run = self.clone();
        if run.config.precision.check(device).is_err() {
            run.config.precision = Precision::F32;
        }
        run
    }
}
