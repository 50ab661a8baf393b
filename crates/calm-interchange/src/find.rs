//! Who reads a published folder: `architectures` of its `config.json` tells.

use calm_lm::family::{FamilyConfig, PublishedFamily};
use calm_lm::published::{Findings, Names, autoencoder};
use calm_lm::registry::entries;
use serde_json::{Map, Value};

/// What a folder holds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Found {
    /// The first stage alone.
    Autoencoder,
    /// A language model, and who reads it.
    Model(Names, PublishedFamily),
}

impl Found {
    /// Its name in `architectures`.
    pub(super) fn architecture(self) -> &'static str {
        match self {
            Self::Autoencoder => autoencoder::NAMES.architecture,
            Self::Model(names, _) => names.architecture,
        }
    }

    /// All that can be read.
    fn all() -> Vec<Self> {
        let families = families().into_iter();
        let models = families.flat_map(|f| (f.names)().into_iter().map(move |names| Self::Model(names, f)));
        std::iter::once(Self::Autoencoder).chain(models).collect()
    }

    /// Reads `architectures`.
    pub(super) fn in_config(
        file: &str,
        config: &Map<String, Value>,
        findings: &mut Findings,
    ) -> Option<Self> {
        let names: Vec<&str> = config
            .get("architectures")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let all = Self::all();
        let found = all.iter().copied().find(|f| names == [f.architecture()]);
        if found.is_none() {
            let known: Vec<&str> = all.iter().map(|f| f.architecture()).collect();
            findings.problem(format!(
                "{file}: architectures is {}; it must name one of {}",
                config.get("architectures").unwrap_or(&Value::Null),
                known.join(", ")
            ));
        }
        found
    }
}

/// The families that have a published form.
pub(super) fn families() -> Vec<PublishedFamily> {
    entries::<dyn FamilyConfig>().into_iter().filter_map(|entry| entry.published).collect()
}
