//! Where the sources of crates lie on this machine, without the network.
//!
//! First `cargo metadata` is asked, from the project whose `Cargo.lock` pins the crates: it knows about vendored
//! sources and other registries. It fails where a dependency of the project is not there although the crates of
//! the corpus are (development dependencies after a plain build), or where cargo itself is missing; what it does
//! not give is looked up in cargo's registry folder.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use cargo_metadata::MetadataCommand;

use crate::error::{Error, Result};

/// Name and version.
pub type CrateKey = (String, String);

/// The project folder at the time of the build.
fn built_in() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    folder.ancestors().nth(2).unwrap_or(folder).to_path_buf()
}

/// A file of the project: the path itself if it exists, else the path from a folder above the current one, else
/// from the project folder at the time of the build.
///
/// # Errors
/// When it is in none of these.
pub fn project_file(path: &Path) -> Result<PathBuf> {
    if path.exists() {
        return Ok(path.to_path_buf());
    }
    let current = std::env::current_dir().unwrap_or_default();
    let above = current.ancestors().map(|folder| folder.join(path));
    let found = above.chain([built_in().join(path)]).find(|p| path.is_relative() && p.exists());
    found.ok_or_else(|| Error::Missing { path: path.to_path_buf() })
}

/// The workspace whose `Cargo.lock` holds most of these crates: above the manifest, above the current folder, or
/// the one that this program was built in.
pub fn project_folder(manifest: &Path, crates: &[CrateKey]) -> Option<PathBuf> {
    let manifest = manifest.canonicalize().unwrap_or_else(|_| manifest.to_path_buf());
    let current = std::env::current_dir().unwrap_or_default();
    let built_in = built_in();
    let folders = manifest.ancestors().chain(current.ancestors()).chain([built_in.as_path()]);
    folders
        .filter_map(|folder| {
            let lock = read_lock(&std::fs::read_to_string(folder.join("Cargo.lock")).ok()?);
            let held = crates.iter().filter(|key| lock.contains_key(key)).count();
            (2 * held > crates.len()).then(|| folder.to_path_buf())
        })
        .next()
}

/// Name and version of all packages of a `Cargo.lock`, with their checksums (packages of a registry have one).
pub fn read_lock(text: &str) -> HashMap<CrateKey, Option<String>> {
    let mut packages = HashMap::new();
    for block in text.split("[[package]]").skip(1) {
        let value = |key: &str| {
            let mut lines = block.lines();
            lines.find_map(|line| {
                line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"').map(String::from)
            })
        };
        if let (Some(name), Some(version)) = (value("name"), value("version")) {
            packages.insert((name, version), value("checksum"));
        }
    }
    packages
}

/// The folders of these crates, as far as they are found, and why `cargo metadata` was of no use if it was not.
pub fn locate(project: Option<&Path>, crates: &[CrateKey]) -> (HashMap<CrateKey, PathBuf>, Option<String>) {
    let (mut found, failure) = match project.map(ask_cargo) {
        Some(Ok(found)) => (found, None),
        Some(Err(message)) => (HashMap::new(), Some(message)),
        None => (HashMap::new(), Some("the project folder was not found".into())),
    };
    if let Some(home) = cargo_home() {
        for key in crates {
            if !found.contains_key(key)
                && let Some(folder) = in_registry(&home, key)
            {
                found.insert(key.clone(), folder);
            }
        }
    }
    (found, failure)
}

fn ask_cargo(project: &Path) -> Result<HashMap<CrateKey, PathBuf>, String> {
    let mut options = vec!["--offline".to_string(), "--locked".to_string()];
    // Without this filter cargo wants the crates of all platforms, which a build does not fetch.
    if let Some(host) = host() {
        options.extend(["--filter-platform".to_string(), host]);
    }
    let mut command = MetadataCommand::new();
    command.manifest_path(project.join("Cargo.toml")).other_options(options);
    let metadata = command.exec().map_err(|e| e.to_string())?;
    let packages = metadata.packages.into_iter().filter(|p| p.source.is_some());
    Ok(packages
        .filter_map(|p| {
            let folder = p.manifest_path.parent()?.as_std_path().to_path_buf();
            Some(((p.name.to_string(), p.version.to_string()), folder))
        })
        .collect())
}

/// The host platform, as `cargo -vV` names it.
fn host() -> Option<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo).arg("-vV").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines().find_map(|line| line.strip_prefix("host: ")).map(|host| host.trim().to_string())
}

fn cargo_home() -> Option<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from).filter(|p| !p.as_os_str().is_empty());
    home.or_else(|| std::env::home_dir().map(|home| home.join(".cargo")))
}

fn in_registry(cargo_home: &Path, (name, version): &CrateKey) -> Option<PathBuf> {
    let registries = std::fs::read_dir(cargo_home.join("registry/src")).ok()?;
    let mut registries: Vec<PathBuf> = registries.filter_map(|entry| entry.ok().map(|e| e.path())).collect();
    registries.sort();
    registries.into_iter().map(|r| r.join(format!("{name}-{version}"))).find(|folder| folder.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str, version: &str) -> CrateKey {
        (name.into(), version.into())
    }

    #[test]
    fn a_lock_file_gives_names_versions_and_checksums() {
        let lock = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\nsource = \"x\"\n\
                    checksum = \"abc\"\ndependencies = [\n \"b\",\n]\n\n[[package]]\nname = \"b\"\nversion = \"0.1.0\"\n";
        let lock = read_lock(lock);
        assert_eq!(lock.len(), 2);
        assert_eq!(lock[&key("a", "1.0.0")], Some("abc".into()));
        assert_eq!(lock[&key("b", "0.1.0")], None);
    }

    #[test]
    fn crates_are_found_in_a_registry_folder_by_name_and_version() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("registry/src/index.example-1/a-1.0.0");
        std::fs::create_dir_all(&folder).unwrap();
        assert_eq!(in_registry(home.path(), &key("a", "1.0.0")), Some(folder));
        assert_eq!(in_registry(home.path(), &key("a", "1.0.1")), None);
        assert_eq!(in_registry(&home.path().join("none"), &key("a", "1.0.0")), None);
    }

    #[test]
    fn cargo_knows_where_the_dependencies_of_this_project_are() {
        let (found, failure) = locate(Some(&built_in()), &[]);
        assert_eq!(failure, None);
        assert!(found.keys().any(|(name, _)| name == "serde"));
    }

    #[test]
    fn the_project_is_found_by_its_lock_file() {
        let lock = std::fs::read_to_string(built_in().join("Cargo.lock")).unwrap();
        let crates: Vec<CrateKey> = read_lock(&lock).into_keys().take(10).collect();
        assert_eq!(project_folder(Path::new("/nowhere/crates.yaml"), &crates), Some(built_in()));
        assert_eq!(project_folder(Path::new("/nowhere/crates.yaml"), &[key("none", "1.0.0")]), None);
        let (found, failure) = locate(None, &[key("none", "1.0.0")]);
        assert!(found.is_empty() && failure.is_some());
    }

    #[test]
    fn a_file_of_the_project_is_found_from_a_folder_below_it() {
        // Tests run in the crate's folder, two below the project's.
        assert!(project_file(Path::new("Cargo.lock")).unwrap().exists());
        assert!(matches!(project_file(Path::new("no/such.yaml")), Err(Error::Missing { .. })));
    }
}
