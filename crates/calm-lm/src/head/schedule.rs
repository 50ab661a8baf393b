//! The noise schedule of the diffusion head and its tables, all in f64.
//!
//! ```text
//! ā(u) = cos²((u + 0.008)/1.008 · π/2)          β_i = min(1 − ā((i+1)/T)/ā(i/T), 0.999)
//! acp_i = Π_{j≤i} (1 − β_j)                     x_i = √acp_i x + √(1 − acp_i) noise
//! β̃_i = β_i (1 − acp_{i−1})/(1 − acp_i)         variance of the true posterior q(x_{i−1} | x_i, x)
//! ```
//! (Nichol and Dhariwal 2021, "Improved denoising diffusion probabilistic models".) β̃_0 = 0 is replaced by
//! β̃_1 wherever its logarithm is needed.

/// Tables of a process of T steps, index = step.
#[derive(Clone, Debug)]
pub struct NoiseSchedule {
    /// The step that the net is told, for every step of this process.
    pub timesteps: Vec<u32>,
    /// β
    pub betas: Vec<f64>,
    /// acp, the cumulated product of 1 − β.
    pub alphas_cumprod: Vec<f64>,
    /// ln β
    pub ln_beta: Vec<f64>,
    /// ln β̃, entry 0 replaced by entry 1.
    pub ln_posterior: Vec<f64>,
}

impl NoiseSchedule {
    /// The cosine schedule of `steps` ≥ 2 steps.
    pub fn cosine(steps: usize) -> Self {
        let bar = |i: usize| {
            let u = i as f64 / steps as f64;
            ((u + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2)
        };
        let betas = (0..steps).map(|i| (1.0 - bar(i + 1) / bar(i)).min(0.999)).collect();
        Self::of_betas(betas, (0..steps as u32).collect())
    }

    /// A process of `count` ≥ 2 steps, s_i = round(i (T−1)/(count−1)), that passes through the same
    /// distributions: `β_i = 1 − acp[s_i]/acp[s_{i−1}]`.
    pub fn respaced(&self, count: usize) -> Self {
        let stride = (self.betas.len() - 1) as f64 / (count - 1) as f64;
        let kept: Vec<usize> = (0..count).map(|i| (i as f64 * stride).round_ties_even() as usize).collect();
        let mut before = 1.0;
        let betas = kept
            .iter()
            .map(|&s| {
                let beta = 1.0 - self.alphas_cumprod[s] / before;
                before = self.alphas_cumprod[s];
                beta
            })
            .collect();
        Self::of_betas(betas, kept.iter().map(|&s| self.timesteps[s]).collect())
    }

    fn of_betas(betas: Vec<f64>, timesteps: Vec<u32>) -> Self {
        let mut product = 1.0;
        let mut alphas_cumprod = Vec::with_capacity(betas.len());
        let mut posterior = Vec::with_capacity(betas.len());
        for &beta in &betas {
            let before: f64 = product;
            product *= 1.0 - beta;
            alphas_cumprod.push(product);
            posterior.push(beta * (1.0 - before) / (1.0 - product));
        }
        if let [first, second, ..] = &mut posterior[..] {
            *first = *second;
        }
        Self {
            timesteps,
            ln_beta: betas.iter().map(|b| b.ln()).collect(),
            ln_posterior: posterior.iter().map(|b| b.ln()).collect(),
            betas,
            alphas_cumprod,
        }
    }

    /// T.
    pub fn steps(&self) -> usize {
        self.betas.len()
    }

    /// Weight of (noise − predicted noise) in (true − predicted posterior mean) at step i, squared:
    /// β²/((1 − β)(1 − acp)).
    ///
    /// Both means are the same mixture of x_i with x and with the predicted x, and
    /// predicted x − x = √(1/acp − 1)·(noise − predicted noise). At i = 0 it is the squared weight in
    /// (predicted x − x) itself.
    pub fn error_weight(&self, i: usize) -> f64 {
        self.betas[i].powi(2) / ((1.0 - self.betas[i]) * (1.0 - self.alphas_cumprod[i]))
    }

    /// (a, b) of the predicted posterior mean a·x_i − b·(predicted noise): a = 1/√(1 − β),
    /// b = a·β/√(1 − acp).
    pub fn mean_weights(&self, i: usize) -> (f64, f64) {
        let a = (1.0 - self.betas[i]).sqrt().recip();
        (a, a * self.betas[i] / (1.0 - self.alphas_cumprod[i]).sqrt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn respacing_keeps_the_ends_and_the_distributions_between() {
        let full = NoiseSchedule::cosine(1000);
        let few = full.respaced(100);
        assert_eq!((few.steps(), few.timesteps[0], few.timesteps[99]), (100, 0, 999));
        for (i, &s) in few.timesteps.iter().enumerate() {
            let (a, b) = (few.alphas_cumprod[i], full.alphas_cumprod[s as usize]);
            assert!((a / b - 1.0).abs() < 1e-10, "{i}: {a} {b}");
        }
        assert_eq!(full.respaced(1000).timesteps, full.timesteps);
        assert!(full.betas.iter().all(|b| *b > 0.0 && *b <= 0.999));
    }

    #[test]
    fn the_weights_are_those_of_the_textbook_posterior_mean() {
        // Mean = c₁ x̂ + c₂ x_i with c₁ = β √acp_{i−1}/(1 − acp_i), c₂ = √(1 − β)(1 − acp_{i−1})/(1 − acp_i) and
        // x̂ = x_i/√acp_i − √(1/acp_i − 1)·noise.
        let s = NoiseSchedule::cosine(1000).respaced(50);
        for i in 1..50 {
            let (beta, acp, before) = (s.betas[i], s.alphas_cumprod[i], s.alphas_cumprod[i - 1]);
            let c1 = beta * before.sqrt() / (1.0 - acp);
            let c2 = (1.0 - beta).sqrt() * (1.0 - before) / (1.0 - acp);
            let (a, b) = s.mean_weights(i);
            let near = |x: f64, y: f64| (x - y).abs() <= 1e-9 * y.abs();
            assert!(near(a, c1 / acp.sqrt() + c2), "{i}");
            assert!(near(b, c1 * (1.0 / acp - 1.0).sqrt()), "{i}");
            assert!(near(s.error_weight(i), (c1 * (1.0 / acp - 1.0).sqrt()).powi(2)), "{i}");
        }
        assert!((s.error_weight(0) / (1.0 / s.alphas_cumprod[0] - 1.0) - 1.0).abs() < 1e-9);
        assert_eq!(s.ln_posterior[0], s.ln_posterior[1]);
    }
}
