//! A small model of every family, with numbers far from those of a beginning.

use calm_autoencoder::{Autoencoder, AutoencoderConfig};
use calm_lm::{
    BackboneConfig, BaselineConfig, CalmConfig, Decode, DiffusionConfig, DlcmConfig, EnergyConfig,
    FlowConfig, HeadConfig, LanguageModel, LocalConfig, ModelConfig, MultiTokenConfig, PatchConfig,
    SpecialIds, TextFormat,
};
use calm_nn::{NoiseKey, ParamStore, RowId, philox};
use candle_core::{DType, Device, Tensor};

/// V.
pub const V: usize = 70;
/// The text of all models.
pub const TEXT: TextFormat = TextFormat {
    vocab_size: V,
    special: SpecialIds { bos: 67, eos: 68, pad: 69 },
    context: 12,
    bos_chunk: true,
};

fn autoencoder() -> AutoencoderConfig {
    AutoencoderConfig {
        hidden_size: 24,
        intermediate_size: 40,
        latent_size: Some(20),
        ..AutoencoderConfig::default()
    }
}

/// Numbers far from those of a beginning, where many are 0.
fn randomise(store: &ParamStore, spread: f64) {
    for (i, (_, parameter)) in store.params().into_iter().enumerate() {
        let tensor = parameter.var.as_tensor();
        if tensor.rank() < 2 {
            continue;
        }
        let row = RowId { example: 0, position: 0 };
        let u = philox::uniform(NoiseKey::new(i as u64, "test", 0), &[row], 1, tensor.elem_count());
        let u = Tensor::from_vec(u, tensor.dims(), &Device::Cpu).unwrap();
        parameter.var.set(&((u - 0.5).unwrap() * spread).unwrap()).unwrap();
    }
}

fn build(config: &ModelConfig) -> Box<dyn LanguageModel> {
    let store = ParamStore::new(&Device::Cpu, DType::F32, 3);
    let autoencoder = config.autoencoder().map(|autoencoder| {
        let latents = ParamStore::new(&Device::Cpu, DType::F32, 1).frozen();
        let k = config.chunk_size();
        let autoencoder = Autoencoder::with_store(&latents, autoencoder, k, V, TEXT.special.bos).unwrap();
        randomise(&latents, 1.0);
        autoencoder
    });
    let model = config.build(&store, &TEXT, autoencoder).unwrap();
    randomise(&store, 1.0);
    model
}

/// A model of each family, and of each head, by its name.
pub fn models() -> Vec<(&'static str, Box<dyn LanguageModel>)> {
    let backbone = || BackboneConfig {
        layers: 2,
        hidden_size: 32,
        intermediate_size: 48,
        heads: 4,
        ..BackboneConfig::default()
    };
    let calm = |head: HeadConfig, decode: Decode, chunk_size: usize| -> ModelConfig {
        CalmConfig {
            chunk_size,
            autoencoder: autoencoder(),
            backbone: backbone(),
            head,
            likelihood: None,
            decode,
        }
        .into()
    };
    let energy = || EnergyConfig { noise_size: 8, samples: 4, targets: 4, ..Default::default() };
    let configs: Vec<(&str, ModelConfig)> = vec![
        ("energy", calm(energy().into(), Decode::Argmax, 4)),
        ("energy, one token", calm(energy().into(), Decode::Argmax, 1)),
        ("energy, sampled", calm(energy().into(), Decode::Sample, 3)),
        ("diffusion", calm(DiffusionConfig::default().into(), Decode::Argmax, 2)),
        ("flow", calm(FlowConfig::default().into(), Decode::Argmax, 2)),
        ("baseline", BaselineConfig { backbone: backbone() }.into()),
        ("patch", PatchConfig { chunk_size: 3, backbone: backbone(), local: LocalConfig::default() }.into()),
        (
            "multi-token",
            MultiTokenConfig { chunk_size: 2, backbone: backbone(), heads: Default::default() }.into(),
        ),
        ("dlcm", DlcmConfig { tokens: backbone(), concepts: backbone(), ..Default::default() }.into()),
    ];
    configs.iter().map(|(name, config)| (*name, build(config))).collect()
}
