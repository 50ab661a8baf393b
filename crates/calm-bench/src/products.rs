//! A model as bare matrix products in the layouts that the operators use: what its steps would cost if
//! nothing but multiplying took time.

use calm_kernels::simd::{Mat, matmul};
use candle_core::{Device, Result, Tensor};
use gemm::Parallelism;

use crate::clock::{once, repeat_on};
use crate::place::Place;
use crate::size::Size;
use crate::work::What;

/// Which operand is read transposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Layout {
    /// y = x Wᵀ
    Forward,
    /// dx = dy W
    Input,
    /// dW = dyᵀ x
    Weight,
}

/// `count` products of `[m, k]` with `[k, n]`.
#[derive(Clone, Debug)]
pub struct Product {
    layout: Layout,
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
    count: f64,
}

impl Product {
    fn flops(&self) -> f64 {
        2.0 * self.m as f64 * self.n as f64 * self.k as f64
    }
}

/// The distinct products of a model with how often each occurs.
#[derive(Clone, Debug, Default)]
pub struct Products {
    list: Vec<Product>,
    training: bool,
}

impl Products {
    /// Of a step of some work. Attention, which is no product of large matrices, is not among them; the energy
    /// score has none. Of generation and scoring, the shapes of one draw and one roll-out step: their rate is
    /// that of the whole.
    pub fn of(what: What, s: &Size) -> Self {
        let (k, rows) = (s.chunk_size, s.batch_rows * s.context_chunks);
        let mut p = Self { list: Vec::new(), training: what.is_training() };
        match what {
            What::Ae => {
                let rows = s.ae_rows * s.ae_context;
                p.encode(s, rows, k, s.latent);
                p.decode(s, rows, k, s.latent);
            }
            What::Lm => {
                p.training = false;
                p.encode(s, rows, k, s.latent);
                p.training = true;
                p.input(s, rows, k);
                p.backbone(s, rows);
                p.head(s, rows, s.samples, s.latent);
            }
            What::Baseline => {
                p.backbone(s, rows * k);
                p.linear(rows * k, s.hidden, s.vocab, 1.0);
            }
            What::Energy | What::Attention => {}
            What::Generate => {
                let draws = s.generate_rows * s.candidates;
                p.head(s, s.generate_rows, s.candidates, s.latent);
                p.decode(s, draws, k, s.latent);
            }
            What::BrierK1 | What::BrierK2 | What::BrierK4 => {
                let k = what.chunk_size(s);
                let (latent, rows) = (k * s.brier_latent_per_token, s.brier_rows * s.brier_tokens / k);
                p.input(s, rows, k);
                p.backbone(s, rows);
                p.head(s, rows, 2, latent);
                p.decode(s, 2 * rows, k, latent);
            }
        }
        p
    }

    /// A square product, the friendliest there is.
    pub fn square(side: usize) -> Self {
        let list = vec![Product { layout: Layout::Forward, m: side, n: side, k: side, count: 1.0 }];
        Self { list, training: false }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    fn add(&mut self, layout: Layout, [m, n, k]: [usize; 3], count: f64) {
        let same = |p: &&mut Product| (p.layout, p.m, p.n, p.k) == (layout, m, n, k);
        match self.list.iter_mut().find(same) {
            Some(p) => p.count += count,
            None => self.list.push(Product { layout, m, n, k, count }),
        }
    }

    /// A linear layer from `i` to `o` numbers on `rows` rows.
    fn linear(&mut self, rows: usize, i: usize, o: usize, count: f64) {
        self.add(Layout::Forward, [rows, o, i], count);
        if self.training {
            self.add(Layout::Input, [rows, i, o], count);
            self.add(Layout::Weight, [o, i, rows], count);
        }
    }

    fn swiglu(&mut self, rows: usize, d: usize, i: usize, count: usize) {
        self.linear(rows, d, i, 2.0 * count as f64);
        self.linear(rows, i, d, count as f64);
    }

    fn encode(&mut self, s: &Size, rows: usize, k: usize, latent: usize) {
        let (d, i, wide) = (s.ae_hidden, s.ae_intermediate, s.ae_encoder_layers / 2);
        self.swiglu(rows * k, d, i, wide);
        self.linear(rows, k * d, d, 1.0);
        self.swiglu(rows, d, i, s.ae_encoder_layers - wide);
        self.linear(rows, d, 2 * latent, 1.0);
    }

    fn decode(&mut self, s: &Size, rows: usize, k: usize, latent: usize) {
        let (d, i, narrow) = (s.ae_hidden, s.ae_intermediate, s.ae_decoder_layers / 2);
        self.linear(rows, latent, d, 1.0);
        self.swiglu(rows, d, i, narrow);
        self.linear(rows, d, k * d, 1.0);
        self.swiglu(rows * k, d, i, s.ae_decoder_layers - narrow);
        self.linear(rows * k, d, s.vocab, 1.0);
    }

    fn input(&mut self, s: &Size, rows: usize, k: usize) {
        self.linear(rows, k * s.hidden, 2 * s.hidden, 1.0);
        self.linear(rows, 2 * s.hidden, s.hidden, 1.0);
    }

    fn backbone(&mut self, s: &Size, rows: usize) {
        let (d, layers) = (s.hidden, s.layers as f64);
        let kv = d / s.heads * s.kv_heads;
        self.linear(rows, d, d, 2.0 * layers);
        self.linear(rows, d, kv, 2.0 * layers);
        self.swiglu(rows, d, s.intermediate, s.layers);
    }

    /// Every sample passes the whole head, its condition included, as FLOPs are counted.
    fn head(&mut self, s: &Size, rows: usize, samples: usize, latent: usize) {
        let (d, rows, blocks) = (s.hidden, rows * samples, s.head_blocks as f64);
        self.linear(rows, s.noise, d, 1.0);
        self.linear(rows, d, d, 1.0);
        self.linear(rows, 2 * d, d, blocks);
        self.linear(rows, d, d, 2.0 * blocks);
        self.linear(rows, d, 2 * d, blocks);
        self.linear(rows, d, d, 1.0);
        self.linear(rows, d, latent, 1.0);
    }

    /// FLOPs of all of them.
    pub fn flops(&self) -> f64 {
        self.list.iter().map(|p| p.count * p.flops()).sum()
    }

    /// Buffers for measuring, touched once.
    pub(crate) fn prepare(&self) -> Prepared {
        let most = |size: fn(&Product) -> usize| self.list.iter().map(size).max().unwrap_or(0);
        let values = |n: usize| (0..n).map(|i| (i % 17) as f32 * 0.1 - 0.8).collect();
        Prepared {
            products: self.clone(),
            a: values(most(|p| p.m * p.k)),
            b: values(most(|p| p.k * p.n)),
            out: values(most(|p| p.m * p.n)),
            there: None,
            times: vec![Vec::new(); self.list.len()],
        }
    }

    /// The same in the memory and the format of a place.
    pub(crate) fn prepare_at(&self, place: &Place) -> Result<Prepared> {
        let mut prepared = self.prepare();
        if place.device.is_cuda() && !self.is_empty() {
            let there = |values: &mut Vec<f32>| {
                let values = std::mem::take(values);
                let count = values.len();
                place.tensor(&Tensor::from_vec(values, count, &Device::Cpu)?)
            };
            prepared.there = Some([there(&mut prepared.a)?, there(&mut prepared.b)?]);
            prepared.out = Vec::new();
        }
        Ok(prepared)
    }
}

/// Products under measurement.
pub(crate) struct Prepared {
    products: Products,
    a: Vec<f32>,
    b: Vec<f32>,
    out: Vec<f32>,
    /// Both operands on a GPU.
    there: Option<[Tensor; 2]>,
    times: Vec<Vec<f64>>,
}

impl Prepared {
    /// As [`Self::round`], where the products were prepared.
    pub(crate) fn round_at(&mut self, place: &Place) -> Result<()> {
        let Some([a, b]) = &self.there else {
            self.round();
            return Ok(());
        };
        for (p, times) in self.products.list.iter().zip(&mut self.times) {
            let matrix = |x: &Tensor, rows: usize, columns: usize| {
                x.narrow(0, 0, rows * columns)?.reshape((rows, columns))
            };
            let (a, b) = match p.layout {
                Layout::Forward => (matrix(a, p.m, p.k)?, matrix(b, p.n, p.k)?.t()?),
                Layout::Input => (matrix(a, p.m, p.k)?, matrix(b, p.k, p.n)?),
                Layout::Weight => (matrix(a, p.k, p.m)?.t()?, matrix(b, p.k, p.n)?),
            };
            times.push(repeat_on(&place.device, 0.0, || a.matmul(&b))?.median);
        }
        Ok(())
    }

    /// Times every distinct product once.
    pub(crate) fn round(&mut self) {
        for (p, times) in self.products.list.iter().zip(&mut self.times) {
            let (a, b) = (&self.a[..p.m * p.k], &self.b[..p.k * p.n]);
            let (a, b) = match p.layout {
                Layout::Forward => (Mat::new(a, p.m, p.k), Mat::new(b, p.n, p.k).t()),
                Layout::Input => (Mat::new(a, p.m, p.k), Mat::new(b, p.k, p.n)),
                Layout::Weight => (Mat::new(a, p.k, p.m).t(), Mat::new(b, p.k, p.n)),
            };
            let out = &mut self.out[..p.m * p.n];
            let run = || {
                matmul(out, a, b, false, Parallelism::Rayon(0));
                Ok::<_, std::convert::Infallible>(())
            };
            let Ok(((), seconds)) = once(run);
            times.push(seconds);
        }
    }

    /// FLOP/s of all products in their numbers, from the median time of each.
    pub(crate) fn rate(&self) -> Option<f64> {
        let median = |times: &[f64]| crate::clock::Seconds::of(times.to_vec()).median;
        if self.times.iter().any(Vec::is_empty) || self.times.is_empty() {
            return None;
        }
        let seconds = self.products.list.iter().zip(&self.times).map(|(p, t)| p.count * median(t));
        Some(self.products.flops() / seconds.sum::<f64>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_products_of_a_training_step_are_its_flops_without_attention() {
        for (name, s) in Size::all() {
            for what in [What::Ae, What::Lm, What::Baseline] {
                let attention = match what {
                    What::Lm => s.batch_rows * s.context_chunks * s.context_chunks,
                    What::Baseline => s.batch_rows * (s.context_chunks * s.chunk_size).pow(2),
                    _ => 0,
                };
                let attention = 12.0 * (attention * s.hidden * s.layers) as f64;
                let (want, got) = (what.flops(&s), Products::of(what, &s).flops() + attention);
                assert!((want / got - 1.0).abs() < 1e-12, "{name} {what:?}: {want} {got}");
            }
        }
    }

    #[test]
    fn the_rate_is_that_of_all_products_together() {
        let p = Products::of(What::Ae, &Size::all()["tiny"]);
        let mut prepared = p.prepare();
        assert!(prepared.rate().is_none());
        prepared.round();
        assert!(prepared.rate().is_some_and(|r| r > 0.0));
        assert!(Products::of(What::Energy, &Size::all()["tiny"]).is_empty());
    }
}
