//! What this crate brings: a family, a head is one module and its line here.

use std::sync::RwLock;

use super::{Entry, Registered};
use crate::family::{FamilyConfig, PublishedFamily, baseline, calm, dlcm, multi_token, patch};
use crate::head::{HeadConfig, HeadSettings, PublishedHead, diffusion, energy, flow};

/// The families of this crate.
const FAMILIES: &[Entry<dyn FamilyConfig>] = &[
    Entry::family::<calm::CalmConfig>(
        calm::NAME,
        "Autoencoder and continuous autoregressive language model.",
    )
    .published(calm::PUBLISHED),
    Entry::family::<baseline::BaselineConfig>(baseline::NAME, "The same backbone on tokens.")
        .published(baseline::PUBLISHED),
    Entry::family::<patch::PatchConfig>(
        patch::NAME,
        "The same backbone on chunks, and a small decoder that goes token by token inside each.",
    ),
    Entry::family::<multi_token::MultiTokenConfig>(
        multi_token::NAME,
        "The same backbone on chunks, with a head for each of the next tokens.",
    ),
    Entry::family::<dlcm::DlcmConfig>(
        dlcm::NAME,
        "Token layers around a transformer over concepts, whose boundaries the model finds itself.",
    ),
];

static ADDED_FAMILIES: RwLock<Vec<Entry<dyn FamilyConfig>>> = RwLock::new(Vec::new());

impl Registered for dyn FamilyConfig {
    const SCHEMA: &'static str = "ModelConfig";

    type Published = PublishedFamily;

    fn name(&self) -> &'static str {
        FamilyConfig::name(self)
    }

    fn shipped() -> &'static [Entry<Self>] {
        FAMILIES
    }

    fn added() -> &'static RwLock<Vec<Entry<Self>>> {
        &ADDED_FAMILIES
    }
}

/// The heads of this crate.
const HEADS: &[Entry<dyn HeadSettings>] = &[
    Entry::head::<energy::EnergyConfig>("energy", "One pass, trained with the energy score.")
        .published(energy::PUBLISHED),
    Entry::head::<flow::FlowConfig>(
        "flow",
        "Several passes along a learned flow from noise to the latent vector.",
    )
    .published(flow::PUBLISHED),
    Entry::head::<diffusion::DiffusionConfig>(
        "diffusion",
        "Many passes that take the noise out step by step.",
    )
    .published(diffusion::PUBLISHED),
];

static ADDED_HEADS: RwLock<Vec<Entry<dyn HeadSettings>>> = RwLock::new(Vec::new());

impl Registered for dyn HeadSettings {
    const SCHEMA: &'static str = "HeadConfig";

    type Published = PublishedHead;

    fn name(&self) -> &'static str {
        HeadSettings::name(self)
    }

    fn shipped() -> &'static [Entry<Self>] {
        HEADS
    }

    fn added() -> &'static RwLock<Vec<Entry<Self>>> {
        &ADDED_HEADS
    }
}

impl Default for HeadConfig {
    fn default() -> Self {
        energy::EnergyConfig::default().into()
    }
}
