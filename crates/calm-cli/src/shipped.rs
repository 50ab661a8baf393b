//! Configurations by name: a file, `configs/NAME.yaml` of the current folder, or the copy inside the binary.

use std::path::{Path, PathBuf};

use calm_config::{ConfigErrors, ConfigText};
use calm_run::Error;
use calm_run::checked::read_config;

use crate::start::home;
use crate::ui::pasted;

/// Name and text of every configuration in `configs/` (a test holds the list to the folder).
pub const SHIPPED: &[(&str, &str)] = &[
    ("quickstart", include_str!("../configs/quickstart.yaml")),
    ("k1", include_str!("../configs/k1.yaml")),
    ("k2", include_str!("../configs/k2.yaml")),
    ("k4", include_str!("../configs/k4.yaml")),
    ("k8", include_str!("../configs/k8.yaml")),
    ("baseline", include_str!("../configs/baseline.yaml")),
    ("patch", include_str!("../configs/patch.yaml")),
    ("multi-token", include_str!("../configs/multi-token.yaml")),
    ("dlcm", include_str!("../configs/dlcm.yaml")),
    ("shakespeare-char", include_str!("../configs/shakespeare-char.yaml")),
    ("shakespeare-char-baseline", include_str!("../configs/shakespeare-char-baseline.yaml")),
    ("paper/calm-m", include_str!("../configs/paper/calm-m.yaml")),
    ("paper/calm-l", include_str!("../configs/paper/calm-l.yaml")),
    ("paper/calm-xl", include_str!("../configs/paper/calm-xl.yaml")),
    ("paper/baseline-s", include_str!("../configs/paper/baseline-s.yaml")),
    ("paper/baseline-m", include_str!("../configs/paper/baseline-m.yaml")),
    ("paper/baseline-l", include_str!("../configs/paper/baseline-l.yaml")),
];

/// Name and text of every ablation in `configs/`: files named `ablate-*.yaml`.
pub const ABLATIONS: &[(&str, &str)] = &[
    ("ablate-k", include_str!("../configs/ablate-k.yaml")),
    ("ablate-autoencoder", include_str!("../configs/ablate-autoencoder.yaml")),
    ("ablate-likelihood", include_str!("../configs/ablate-likelihood.yaml")),
    ("ablate-samples", include_str!("../configs/ablate-samples.yaml")),
    ("ablate-alpha", include_str!("../configs/ablate-alpha.yaml")),
    ("ablate-direction", include_str!("../configs/ablate-direction.yaml")),
];

/// What a file configures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Run,
    Ablation,
}

impl Kind {
    fn shipped(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Run => SHIPPED,
            Self::Ablation => ABLATIONS,
        }
    }

    /// Of a text, by the block that only one of them has.
    fn of(text: &str) -> Option<Self> {
        let block =
            |name: &str| text.lines().any(|line| line.strip_prefix(name).is_some_and(|l| l.starts_with(':')));
        match (block("model"), block("variants")) {
            (true, false) => Some(Self::Run),
            (false, true) => Some(Self::Ablation),
            _ => None,
        }
    }

    /// That a file is of this kind, where the other is wanted.
    fn mistaken(self, name: &str) -> ConfigErrors {
        let shown = pasted(Path::new(name));
        let (what, remedy) = match self {
            Self::Run => (
                "this is the configuration of one run, not an ablation",
                format!("`calm train --config {shown}` trains it"),
            ),
            Self::Ablation => (
                "this is an ablation, not the configuration of one run",
                format!("`calm ablate --config {shown}` runs it; with --dry-run it shows the plan"),
            ),
        };
        ConfigErrors::whole_file(name, what, Some(remedy))
    }
}

/// Finds an ablation: a file, `configs/NAME.yaml` of the current folder, or the copy inside the binary.
///
/// # Errors
/// When there is none of this name, with the names there are; when it is the configuration of a run.
pub fn find_ablation(name: &str) -> Result<ConfigText, ConfigErrors> {
    find_among(name, Kind::Ablation)
}

/// Finds a configuration. A pipe is read once, and `-` is standard input.
///
/// # Errors
/// When there is none of this name, with the names there are; when it is an ablation.
pub fn find(name: &str) -> Result<ConfigText, ConfigErrors> {
    find_among(name, Kind::Run)
}

/// The file of a name as it was typed, or as an ablation's file names it.
fn file(name: &str) -> PathBuf {
    match (name, name.strip_prefix("~/"), home()) {
        ("-", ..) => "/dev/stdin".into(),
        (_, Some(below), Some(home)) => home.join(below),
        _ => name.into(),
    }
}

/// Something that is read like a file and lies in no folder: `<(...)`, `/dev/stdin`.
fn is_pipe(path: &Path) -> bool {
    path.exists() && !path.is_file() && !path.is_dir()
}

fn find_among(name: &str, kind: Kind) -> Result<ConfigText, ConfigErrors> {
    let found = find_text(name, kind)?;
    match Kind::of(&found.text) {
        Some(other) if other != kind => Err(other.mistaken(name)),
        _ => Ok(found),
    }
}

/// A file, which is compared with its checksum if a run's folder gave it one. A pipe is read once.
fn read(path: &Path) -> Result<ConfigText, ConfigErrors> {
    if path.is_file()
        && let Err(Error::User { what, remedy }) = read_config(path)
    {
        return Err(ConfigErrors::whole_file(path.display().to_string(), what, Some(remedy)));
    }
    ConfigText::read(path)
}

fn find_text(name: &str, kind: Kind) -> Result<ConfigText, ConfigErrors> {
    let path = file(name);
    if path.is_file() || is_pipe(&path) || name.ends_with(".yaml") || name.ends_with(".yml") {
        if !path.exists() {
            let bare = name.trim_end_matches(".yaml").trim_end_matches(".yml").trim_start_matches("configs/");
            if let Some((_, text)) = shipped_as(bare) {
                return Ok(ConfigText::new(format!("configs/{bare}.yaml"), text));
            }
        }
        return read(&path);
    }
    let local = Path::new("configs").join(format!("{name}.yaml"));
    if local.is_file() {
        return read(&local);
    }
    match shipped_as(name) {
        Some((_, text)) => Ok(ConfigText::new(format!("configs/{name}.yaml"), text)),
        None if path.is_dir() => {
            let config = path.join("config.yaml");
            let remedy = if config.is_file() {
                format!("give the file inside it: {}", pasted(&config))
            } else {
                "give a YAML file".to_owned()
            };
            Err(ConfigErrors::whole_file(name, "this is a folder", Some(remedy)))
        }
        None => {
            let names: Vec<&str> = kind.shipped().iter().map(|(n, _)| *n).collect();
            Err(ConfigErrors::whole_file(
                name,
                "there is no such file and no shipped configuration of this name",
                Some(format!("give a path to a YAML file, or one of: {}", names.join(", "))),
            ))
        }
    }
}

/// A shipped file of any kind.
fn shipped_as(name: &str) -> Option<(&'static str, &'static str)> {
    SHIPPED.iter().chain(ABLATIONS).find(|(n, _)| *n == name).copied()
}

/// The name of a run made from this configuration: the file's name without its ending; `run` where the
/// configuration comes through a pipe.
pub fn run_name(name: &str) -> String {
    let path = file(name);
    match path.file_stem() {
        Some(stem) if !is_pipe(&path) => stem.to_string_lossy().into_owned(),
        _ => "run".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_configuration_of_the_folder_is_in_the_binary() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
        let mut found = Vec::new();
        for (folder, prefix) in [(root.clone(), ""), (root.join("paper"), "paper/")] {
            for entry in std::fs::read_dir(folder).unwrap().flatten() {
                let name = entry.file_name().into_string().unwrap();
                if let Some(stem) = name.strip_suffix(".yaml") {
                    found.push(format!("{prefix}{stem}"));
                }
            }
        }
        found.sort();
        let mut names: Vec<&str> = SHIPPED.iter().chain(ABLATIONS).map(|s| s.0).collect();
        names.sort_unstable();
        assert_eq!(found, names);
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let e = find("quickstrat").unwrap_err().to_string();
        assert!(e.contains("quickstart"), "{e}");
    }

    #[test]
    fn a_file_of_the_other_kind_is_named_with_its_command() {
        for name in ["ablate-k", "ablate-k.yaml", "configs/ablate-k.yaml"] {
            let e = find(name).unwrap_err().to_string();
            assert!(e.contains("this is an ablation") && e.contains("calm ablate --config"), "{e}");
        }
        let e = find_ablation("k4").unwrap_err().to_string();
        assert!(e.contains("of one run") && e.contains("calm train --config k4"), "{e}");
    }

    #[test]
    fn a_folder_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.yaml"), "").unwrap();
        let e = find(&dir.path().to_string_lossy()).unwrap_err().to_string();
        assert!(e.contains("this is a folder") && e.contains("config.yaml"), "{e}");
    }

    #[test]
    fn a_shipped_configuration_is_found_with_or_without_its_ending() {
        assert_eq!(find("quickstart").unwrap().text, find("quickstart.yaml").unwrap().text);
        assert_eq!(run_name("configs/quickstart.yaml"), "quickstart");
    }
}
