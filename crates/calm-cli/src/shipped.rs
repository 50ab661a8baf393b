//! Configurations by name: a file, `configs/NAME.yaml` of the current folder, or the copy inside the binary.

use std::path::Path;

use calm_config::{ConfigErrors, ConfigText};

/// Name and text of every configuration in `configs/` (a test holds the list to the folder).
pub const SHIPPED: &[(&str, &str)] = &[
    ("quickstart", include_str!("../../../configs/quickstart.yaml")),
    ("k1", include_str!("../../../configs/k1.yaml")),
    ("k2", include_str!("../../../configs/k2.yaml")),
    ("k4", include_str!("../../../configs/k4.yaml")),
    ("k8", include_str!("../../../configs/k8.yaml")),
    ("baseline", include_str!("../../../configs/baseline.yaml")),
    ("shakespeare-char", include_str!("../../../configs/shakespeare-char.yaml")),
    ("paper/calm-m", include_str!("../../../configs/paper/calm-m.yaml")),
    ("paper/calm-l", include_str!("../../../configs/paper/calm-l.yaml")),
    ("paper/calm-xl", include_str!("../../../configs/paper/calm-xl.yaml")),
    ("paper/baseline-s", include_str!("../../../configs/paper/baseline-s.yaml")),
    ("paper/baseline-m", include_str!("../../../configs/paper/baseline-m.yaml")),
    ("paper/baseline-l", include_str!("../../../configs/paper/baseline-l.yaml")),
];

/// Name and text of every ablation in `configs/`: files named `ablate-*.yaml`.
pub const ABLATIONS: &[(&str, &str)] = &[
    ("ablate-k", include_str!("../../../configs/ablate-k.yaml")),
    ("ablate-autoencoder", include_str!("../../../configs/ablate-autoencoder.yaml")),
    ("ablate-samples", include_str!("../../../configs/ablate-samples.yaml")),
    ("ablate-alpha", include_str!("../../../configs/ablate-alpha.yaml")),
];

/// Finds an ablation: a file, `configs/NAME.yaml` of the current folder, or the copy inside the binary.
///
/// # Errors
/// When there is none of this name, with the names there are.
pub fn find_ablation(name: &str) -> Result<ConfigText, ConfigErrors> {
    find_among(name, ABLATIONS)
}

/// Finds a configuration.
///
/// # Errors
/// When there is none of this name, with the names there are.
pub fn find(name: &str) -> Result<ConfigText, ConfigErrors> {
    find_among(name, SHIPPED)
}

fn find_among(name: &str, shipped: &[(&str, &str)]) -> Result<ConfigText, ConfigErrors> {
    let path = Path::new(name);
    if path.is_file() || name.ends_with(".yaml") || name.ends_with(".yml") {
        if !path.exists() {
            let bare = name.trim_end_matches(".yaml").trim_end_matches(".yml").trim_start_matches("configs/");
            if let Some((_, text)) = shipped.iter().find(|(n, _)| *n == bare) {
                return Ok(ConfigText::new(format!("configs/{bare}.yaml"), *text));
            }
        }
        return ConfigText::read(path);
    }
    let local = Path::new("configs").join(format!("{name}.yaml"));
    if local.is_file() {
        return ConfigText::read(&local);
    }
    match shipped.iter().find(|(n, _)| *n == name) {
        Some((_, text)) => Ok(ConfigText::new(format!("configs/{name}.yaml"), *text)),
        None => {
            let names: Vec<&str> = shipped.iter().map(|(n, _)| *n).collect();
            Err(ConfigErrors::whole_file(
                name,
                "there is no such file and no shipped configuration of this name",
                Some(format!("give a path to a YAML file, or one of: {}", names.join(", "))),
            ))
        }
    }
}

/// The name of a run made from this configuration: the file's name without its ending.
pub fn run_name(name: &str) -> String {
    Path::new(name).file_stem().map_or_else(|| "run".into(), |s| s.to_string_lossy().into_owned())
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
    fn a_shipped_configuration_is_found_with_or_without_its_ending() {
        assert_eq!(find("quickstart").unwrap().text, find("quickstart.yaml").unwrap().text);
        assert_eq!(run_name("configs/quickstart.yaml"), "quickstart");
    }
}
