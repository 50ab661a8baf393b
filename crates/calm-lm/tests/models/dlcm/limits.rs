//! The models that it becomes at the ends of its settings.

use std::collections::HashMap;

use super::{TEXT, batch, config, log_p, model, rules, text};
use calm_lm::backbone::Rows;
use calm_lm::family::dlcm::{BoundaryRule, CosineConfig, CrossConfig, CrossKeys, Smoothing};
use calm_lm::{Backbone, BackboneConfig, Baseline, BaselineConfig, DlcmConfig, LanguageModel};
use calm_nn::ParamStore;
use candle_core::{D, DType, Device, Result, Tensor};

/// x / sqrt(mean x² + eps) · w
fn norm(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + 1e-6)?.sqrt()?;
    x.broadcast_div(&scale)?.broadcast_mul(w)
}

/// The same weights in a model put together from plain operations: no index of it comes from the family.
struct Plain {
    store: ParamStore,
    config: DlcmConfig,
    encoder: Backbone,
    concepts: Backbone,
    decoder: Backbone,
}

impl Plain {
    fn of(from: &ParamStore, config: &DlcmConfig) -> Self {
        let store = ParamStore::new(&Device::Cpu, DType::F32, 9);
        let b = store.builder();
        let layers = |layers| BackboneConfig { layers, ..config.tokens.clone() };
        let encoder = config.encoder_layers();
        let plain = Self {
            encoder: Backbone::open(&b.under("encoder"), &layers(encoder)).unwrap(),
            concepts: Backbone::new(&b.under("concepts"), &config.concepts).unwrap(),
            decoder: Backbone::new(&b.under("decoder"), &layers(config.tokens.layers - encoder)).unwrap(),
            config: config.clone(),
            store: store.clone(),
        };
        for (name, param) in from.params() {
            if store.get(&name).is_none() {
                b.plain(&name, param.var.dims(), calm_nn::Init::Zeros).unwrap();
            }
        }
        assert!(store.load(&from.snapshot().unwrap().into_iter().collect()).unwrap().is_clean());
        plain
    }

    fn weight(&self, name: &str) -> Tensor {
        self.store.get(name).unwrap().var.as_tensor().clone()
    }

    /// `x [.., I]` by a weight `[O, I]`.
    fn linear(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        x.broadcast_matmul(&self.weight(name).t()?)
    }

    /// p `[1, S]` of the states `[1, S, D]` of one document, 1 of its first token.
    fn probability(&self, h: &Tensor) -> Result<Tensor> {
        let s = h.dim(1)?;
        let (q, k) = match self.config.boundaries.by {
            BoundaryRule::Learnt(_) => {
                (self.linear(h, "boundary.q_proj.weight")?, self.linear(h, "boundary.k_proj.weight")?)
            }
            BoundaryRule::Cosine(_) | BoundaryRule::Every => (h.clone(), h.clone()),
        };
        let (q, k) = (q.narrow(1, 0, s - 1)?, k.narrow(1, 1, s - 1)?);
        let length = |x: &Tensor| x.sqr()?.sum(D::Minus1)?.sqrt();
        let cosine = ((&q * &k)?.sum(D::Minus1)? / (length(&q)? * length(&k)?)?)?;
        let p = ((1.0 - cosine)? * 0.5)?.clamp(1e-4, 1.0 - 1e-4)?;
        Tensor::cat(&[&Tensor::ones((1, 1), DType::F32, &Device::Cpu)?, &p], 1)
    }

    /// z̃_k = p_k z_k + (1 − p_k) z̃_{k−1} of `z [1, M, Dc]`, opened by these tokens.
    fn smoothed(z: &Tensor, p: &Tensor, opened: &[u32]) -> Result<Tensor> {
        let mut all = vec![z.narrow(1, 0, 1)?];
        for (k, token) in opened.iter().enumerate().skip(1) {
            let p = p.narrow(1, *token as usize, 1)?.unsqueeze(2)?;
            let new = z.narrow(1, k, 1)?.broadcast_mul(&p)?;
            let old = all[k - 1].broadcast_mul(&(1.0 - &p)?)?;
            all.push((new + old)?);
        }
        Tensor::cat(&all, 1)
    }

    /// 1 `[1, S]`, with the gradient of p at the tokens `opened` and of 1 − p at the others.
    fn certain(p: &Tensor, opened: &[u32]) -> Result<Tensor> {
        let s = p.dim(1)?;
        let opens: Vec<f32> = (0..s as u32).map(|t| if opened.contains(&t) { 1.0 } else { 0.0 }).collect();
        let opens = Tensor::from_vec(opens, (1, s), &Device::Cpu)?;
        let c = ((&opens * p)? + ((1.0 - &opens)? * (1.0 - p)?)?)?;
        (&c - c.detach())? + 1.0
    }

    /// Logits `[S, V]` of one document: `contents` of the states `[1, S, D]` gives `[1, M, D]`, of concepts that the tokens
    /// `opened` open; to the scores of token t and concept k `bias[t][k]` is added.
    fn logits(
        &self,
        ids: &[u32],
        contents: impl Fn(&Tensor) -> Result<Tensor>,
        opened: &[u32],
        bias: &[Vec<f32>],
    ) -> Result<Tensor> {
        let (s, m) = (ids.len(), bias[0].len());
        let row = |n: usize| Tensor::arange(0, n as u32, &Device::Cpu)?.unsqueeze(0);
        let zeros = |n: usize| Tensor::zeros((1, n), DType::U32, &Device::Cpu);
        let ids = Tensor::new(ids, &Device::Cpu)?;
        let x = self.weight("model.embed_tokens.weight").index_select(&ids, 0)?.unsqueeze(0)?;
        let h = self.encoder.forward(&x, &Rows::causal(&row(s)?, &zeros(s)?))?;
        let wide = self.linear(&contents(&h)?, "concepts.up.weight")?;
        let mut z = self.concepts.forward(&wide, &Rows::causal(&row(m)?, &zeros(m)?))?;
        let cuts = self.config.boundaries.by != BoundaryRule::Every;
        if cuts && self.config.smoothing == Smoothing::Ema {
            z = Self::smoothed(&z, &self.probability(&h)?, opened)?;
        }

        let (heads, size) = (self.config.tokens.heads, self.config.tokens.head_size());
        let split = |t: Tensor| {
            let n = t.dim(1)?;
            t.reshape((1, n, heads, size))
        };
        let by_head = |t: Tensor| t.transpose(1, 2)?.contiguous();
        let q = norm(&split(self.linear(&h, "cross.q_proj.weight")?)?, &self.weight("cross.q_norm.weight"))?;
        let k = norm(&split(self.linear(&z, "cross.k_proj.weight")?)?, &self.weight("cross.k_norm.weight"))?;
        let v = split(self.linear(&z, "cross.v_proj.weight")?)?;
        let (q, k, v) = (by_head(q)?, by_head(k)?, by_head(v)?);
        let bias = Tensor::new(bias.to_vec(), &Device::Cpu)?.reshape((1, 1, s, m))?;
        let scores = (q.matmul(&k.t()?.contiguous()?)? / (size as f64).sqrt())?.broadcast_add(&bias)?;
        let scores = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
        let p = scores.broadcast_div(&scores.sum_keepdim(D::Minus1)?)?;
        let taken = p.matmul(&v)?.transpose(1, 2)?.contiguous()?.reshape((1, s, heads * size))?;
        let mut taken = self.linear(&taken, "cross.o_proj.weight")?;
        if self.config.straight_through {
            taken = taken.broadcast_mul(&Self::certain(&self.probability(&h)?, opened)?.unsqueeze(2)?)?;
        }
        let x = (&h + taken)?;
        let x = self.decoder.forward(&x, &Rows::causal(&row(s)?, &zeros(s)?))?.squeeze(0)?;
        x.matmul(&self.weight("lm_head.weight").t()?)
    }
}

fn largest(t: &Tensor) -> f64 {
    t.abs().unwrap().max_all().unwrap().to_dtype(DType::F64).unwrap().to_scalar().unwrap()
}

/// Logits of all positions but the last, and the gradients of a weighted sum of them, are the same.
fn assert_equal(store: &ParamStore, got: &Tensor, plain: &Plain, want: &Tensor) {
    let want = want.narrow(0, 0, got.dim(0).unwrap()).unwrap();
    let off = largest(&(got - &want).unwrap()) / largest(&want);
    // Sums in another order; measured below 1e-6.
    assert!(off < 1e-5, "logits: {off}");
    let n = got.elem_count();
    let weights: Vec<f32> = (0..n).map(|i| ((i * 7 % 11) as f32 - 5.0) / 5.0).collect();
    let weights = Tensor::from_vec(weights, got.dims(), &Device::Cpu).unwrap();
    let gradients = |t: &Tensor| (t * &weights).unwrap().sum_all().unwrap().backward().unwrap();
    let (a, b) = (gradients(got), gradients(&want));
    for (name, param) in store.params() {
        let other = plain.store.get(&name).unwrap().var;
        let (Some(a), Some(b)) = (a.get(param.var.as_tensor()), b.get(other.as_tensor())) else {
            panic!("{name} has no gradient")
        };
        let off = largest(&(a - b).unwrap()) / largest(b).max(1e-3);
        assert!(off < 1e-4, "gradient of {name}: {off}");
    }
}

#[test]
fn the_fixed_ratio_is_a_patch_model() {
    for ratio in [4, 3, 1] {
        let config = config(BoundaryRule::Every, ratio as f64);
        let (store, model) = model(&config);
        let ids = text(12);
        let got = model.logits(&model.hidden(&batch(&ids)).unwrap()).unwrap();
        // One position of the middle layers a patch of R tokens: the state of the first token of each, seen by its tokens
        // and all behind them.
        let plain = Plain::of(&store, &config);
        let patches = ids.len() / ratio;
        let first = |h: &Tensor| {
            let d = h.dim(2)?;
            h.reshape((1, patches, ratio, d))?.narrow(2, 0, 1)?.squeeze(2)?.contiguous()
        };
        let opened: Vec<u32> = (0..patches).map(|k| (k * ratio) as u32).collect();
        let see = |t: usize| (0..patches).map(move |k| if k <= t / ratio { 0.0 } else { f32::NEG_INFINITY });
        let bias: Vec<Vec<f32>> = (0..ids.len()).map(|t| see(t).collect()).collect();
        assert_equal(&store, &got, &plain, &plain.logits(&ids, first, &opened, &bias).unwrap());
        // It would notice a patch that is seen too late.
        let late: Vec<Vec<f32>> = (0..ids.len()).map(|t| see(t.saturating_sub(1)).collect()).collect();
        let other = plain.logits(&ids, first, &opened, &late).unwrap().narrow(0, 0, ids.len() - 1).unwrap();
        assert!(largest(&(&got - other).unwrap()) > 1e-3);
    }
}

#[test]
fn replication_weighs_a_concept_by_its_tokens() {
    let by = BoundaryRule::Every;
    let ids = text(11);
    let opens: Vec<bool> = (0..11).map(|t| [0, 1, 4, 6].contains(&t)).collect();
    let opened = [0usize, 1, 4, 6];
    for keys in [CrossKeys::Concepts, CrossKeys::Replicated] {
        let cross = CrossConfig { keys, ..Default::default() };
        let config = DlcmConfig { cross, ..config(by, 2.0) };
        let (store, model) = model(&config);
        let got = model.logits(&model.hidden_given(&batch(&ids), &opens).unwrap()).unwrap();
        let plain = Plain::of(&store, &config);
        let contents = |h: &Tensor| h.index_select(&Tensor::new(&[0u32, 1, 4, 6], &Device::Cpu)?, 1);
        let bias = |weighed: bool| -> Vec<Vec<f32>> {
            let of = |t: usize, k: usize| {
                let end = opened.get(k + 1).copied().unwrap_or(11).min(t + 1);
                match end.saturating_sub(opened[k]) {
                    0 => f32::NEG_INFINITY,
                    n if weighed => (n as f32).ln(),
                    _ => 0.0,
                }
            };
            (0..11).map(|t| (0..4).map(|k| of(t, k)).collect()).collect()
        };
        let weighed = keys == CrossKeys::Replicated;
        let tokens = [0u32, 1, 4, 6];
        let want = plain.logits(&ids, contents, &tokens, &bias(weighed)).unwrap();
        assert_equal(&store, &got, &plain, &want);
        let other = plain.logits(&ids, contents, &tokens, &bias(!weighed)).unwrap().narrow(0, 0, 10).unwrap();
        assert!(largest(&(&got - other).unwrap()) > 1e-3, "they are two models");
    }
}

#[test]
fn smoothing_and_the_factor_of_1_are_their_formulas() {
    let ids = text(11);
    let opened = [0u32, 1, 4, 6];
    let opens: Vec<bool> = (0..11u32).map(|t| opened.contains(&t)).collect();
    let contents = |h: &Tensor| h.index_select(&Tensor::new(&[0u32, 1, 4, 6], &Device::Cpu)?, 1);
    let see = |t: u32, at: u32| if at <= t { 0.0 } else { f32::NEG_INFINITY };
    let bias: Vec<Vec<f32>> = (0..11u32).map(|t| opened.iter().map(|at| see(t, *at)).collect()).collect();
    for by in [rules()[0], rules()[1]] {
        let of = |smoothing, straight_through| {
            let config = DlcmConfig { smoothing, straight_through, ..config(by, 2.0) };
            let (store, model) = model(&config);
            let got = model.logits(&model.hidden_given(&batch(&ids), &opens).unwrap()).unwrap();
            (config, store, got)
        };
        let numbers = |t: &Tensor| t.to_vec2::<f32>().unwrap();
        for (smoothing, straight_through) in
            [(Smoothing::Ema, false), (Smoothing::None, true), (Smoothing::Ema, true)]
        {
            let (config, store, got) = of(smoothing, straight_through);
            let plain = Plain::of(&store, &config);
            assert_equal(&store, &got, &plain, &plain.logits(&ids, contents, &opened, &bias).unwrap());
            let without = of(smoothing, false).2;
            assert_eq!(numbers(&got), numbers(&without), "the factor is 1 to the bit");
        }
        let (smooth, raw) = (of(Smoothing::Ema, false).2, of(Smoothing::None, false).2);
        assert!(largest(&(smooth - raw).unwrap()) > 1e-3, "they are two models");
    }
}

#[test]
fn without_what_tokens_take_from_concepts_it_is_the_baseline() {
    for by in rules() {
        let config = config(by, 2.0);
        let (store, model) = model(&config);
        let output = store.get("cross.o_proj.weight").unwrap().var;
        output.set(&output.zeros_like().unwrap()).unwrap();
        let baseline_store = ParamStore::new(&Device::Cpu, DType::F32, 3);
        let baseline =
            Baseline::new(&baseline_store, &BaselineConfig { backbone: config.tokens.clone() }, &TEXT)
                .unwrap();
        let encoder = config.encoder_layers();
        let mut weights = HashMap::new();
        for (name, value) in store.snapshot().unwrap() {
            let renamed = match name.split('.').collect::<Vec<_>>()[..] {
                ["encoder", "layers", ..] => name.replace("encoder.", "model."),
                ["decoder", "layers", n, ..] => {
                    let n: usize = n.parse().unwrap();
                    name.replacen(&format!("decoder.layers.{n}"), &format!("model.layers.{}", n + encoder), 1)
                }
                ["decoder", ..] => name.replace("decoder.", "model."),
                ["model" | "lm_head", ..] => name,
                _ => continue,
            };
            weights.insert(renamed, value);
        }
        assert!(baseline_store.load(&weights).unwrap().is_clean());
        let ids = text(13);
        let (a, b) = (log_p(&model, &ids), baseline.log_probabilities(&batch(&ids)).unwrap().unwrap());
        for (a, b) in a.iter().zip(b) {
            assert!((a - b).abs() < 1e-6, "{a} {b}");
        }
    }
}

#[test]
fn a_threshold_that_is_never_reached_leaves_one_concept_a_document() {
    let by = BoundaryRule::Cosine(CosineConfig { threshold: 0.99995 });
    let (_, model) = model(&config(by, 2.0));
    let opens = model.settled_boundaries(&batch(&text(13))).unwrap().opens;
    assert_eq!(opens.iter().position(|o| *o), Some(0));
    assert_eq!(opens.iter().filter(|o| **o).count(), 1);
    let (_, model) = self::model(&config(BoundaryRule::Every, 1.0));
    assert!(model.settled_boundaries(&batch(&text(13))).unwrap().opens.iter().all(|o| *o));
}
