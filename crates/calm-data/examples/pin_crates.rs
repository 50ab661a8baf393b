//! Writes `datasets/crates.yaml` anew from `Cargo.lock`: which crates, which files, and their hashes.
//!
//! ```text
//! cargo fetch && cargo run --release -p calm-data --example pin_crates
//! ```
//!
//! Kept from the old manifest: which crates are held out and which are left out (edit them there). The rules are in
//! `datasets/README.md`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::error::Error;
use std::path::{Path, PathBuf};

use calm_data::source::crates::{MANIFEST_VERSION, Manifest, PinnedCrate, Split, content_hash, text_files};
use calm_data::source::curate::{Duplicates, reason_to_drop};
use calm_data::source::locate::{CrateKey, project_file, read_lock};
use calm_files::seal::seal;
use cargo_metadata::{DependencyKind, MetadataCommand, PackageId, semver::Version};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// A crate belongs to the corpus if it is a dependency on every one of these.
const PLATFORMS: [&str; 5] = [
    "x86_64-unknown-linux-gnu",
    "aarch64-unknown-linux-gnu",
    "x86_64-apple-darwin",
    "aarch64-apple-darwin",
    "x86_64-pc-windows-msvc",
];

struct Candidate {
    name: String,
    version: Version,
    folder: PathBuf,
    split: Split,
}

fn main() -> Result<()> {
    let path = project_file(Path::new(calm_data::config::DEFAULT_MANIFEST))?;
    let path = path.canonicalize()?;
    let project = path.ancestors().nth(2).ok_or("the manifest lies in no project")?;
    let old = Manifest::read(&path)?;
    let lock = read_lock(&std::fs::read_to_string(project.join("Cargo.lock"))?);
    let candidates = candidates(project, &old)?;
    for name in old.held_out.iter().chain(old.excluded.keys()) {
        if !lock.keys().any(|(locked, _)| locked == name) {
            println!("note: {name} is named in the manifest but is no dependency");
        }
    }

    let mut seen = Duplicates::default();
    let mut crates = Vec::new();
    let mut reasons: BTreeMap<String, (usize, u64)> = BTreeMap::new();
    for candidate in &candidates {
        let key: CrateKey = (candidate.name.clone(), candidate.version.to_string());
        let checksum = lock.get(&key).cloned().flatten().ok_or(format!("{key:?} has no checksum"))?;
        let (mut kept, mut dropped) = (Vec::new(), BTreeMap::<String, Vec<String>>::new());
        for (id, file) in text_files(&candidate.folder)? {
            let bytes = std::fs::read(file)?;
            let len = bytes.len() as u64;
            let text = String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'));
            let reason = match &text {
                None => Some("not-text"),
                Some(text) => reason_to_drop(text)
                    .or_else(|| seen.is_duplicate(text, candidate.split).then_some("duplicate")),
            };
            if let Some(reason) = reason {
                dropped.entry(reason.into()).or_default().push(id);
                let (files, bytes) = reasons.entry(reason.into()).or_default();
                (*files, *bytes) = (*files + 1, *bytes + len);
            } else if let Some(text) = text {
                kept.push((id, text));
            }
        }
        if !kept.is_empty() {
            crates.push(PinnedCrate {
                name: key.0,
                version: key.1,
                checksum,
                split: candidate.split,
                documents: kept.len(),
                bytes: kept.iter().map(|(_, text)| text.len() as u64).sum(),
                hash: content_hash(kept.iter().map(|(id, text)| (id.as_str(), text.as_str()))),
                dropped,
            });
        }
    }
    crates.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    report(&crates, &reasons);
    let manifest = Manifest { version: MANIFEST_VERSION, crates, ..old };
    let yaml = serde_yaml::to_string(&manifest)?;
    let head = "# The default corpus; see README.md here. `held_out` and `excluded` are written by hand, `crates` by\n\
                # cargo fetch && cargo run --release -p calm-data --example pin_crates\n";
    std::fs::write(&path, seal(&format!("{head}{yaml}")))?;
    println!("written: {}", path.display());
    Ok(())
}

/// Crates that are normal dependencies on every platform: held-out ones first, then by name, the newest version
/// first (so that of two nearly equal files it is the older one that is dropped).
fn candidates(project: &Path, old: &Manifest) -> Result<Vec<Candidate>> {
    let mut packages = HashMap::new();
    let mut everywhere: Option<BTreeSet<PackageId>> = None;
    for platform in PLATFORMS {
        let options = ["--locked", "--offline", "--filter-platform", platform].map(String::from).to_vec();
        let mut command = MetadataCommand::new();
        let metadata = command.manifest_path(project.join("Cargo.toml")).other_options(options).exec()?;
        let nodes = metadata.resolve.as_ref().ok_or("cargo resolved nothing")?.nodes.iter();
        let nodes: HashMap<&PackageId, _> = nodes.map(|node| (&node.id, node)).collect();
        let mut todo = metadata.workspace_members.clone();
        let mut reached = BTreeSet::new();
        while let Some(id) = todo.pop() {
            if !reached.insert(id.clone()) {
                continue;
            }
            let normal = nodes[&id].deps.iter().filter(|dependency| {
                dependency.dep_kinds.iter().any(|kind| kind.kind == DependencyKind::Normal)
            });
            todo.extend(normal.map(|dependency| dependency.pkg.clone()));
        }
        everywhere = Some(match everywhere {
            None => reached,
            Some(before) => before.intersection(&reached).cloned().collect(),
        });
        packages.extend(metadata.packages.into_iter().map(|p| (p.id.clone(), p)));
    }
    let mut candidates = Vec::new();
    for id in everywhere.unwrap_or_default() {
        let package = &packages[&id];
        let name = package.name.to_string();
        let from_crates_io = package.source.as_ref().is_some_and(|source| source.is_crates_io());
        if !from_crates_io || old.excluded.contains_key(&name) {
            continue;
        }
        let split = if old.held_out.contains(&name) { Split::Validation } else { Split::Train };
        let folder = package.manifest_path.parent().ok_or("a package without folder")?;
        candidates.push(Candidate {
            name,
            version: package.version.clone(),
            folder: folder.as_std_path().to_path_buf(),
            split,
        });
    }
    candidates.sort_by(|a, b| {
        let order = |c: &Candidate| (c.split == Split::Train, c.name.clone());
        order(a).cmp(&order(b)).then(b.version.cmp(&a.version))
    });
    Ok(candidates)
}

fn report(crates: &[PinnedCrate], reasons: &BTreeMap<String, (usize, u64)>) {
    for split in [Split::Train, Split::Validation] {
        let of_split: Vec<&PinnedCrate> = crates.iter().filter(|c| c.split == split).collect();
        let documents: usize = of_split.iter().map(|c| c.documents).sum();
        let bytes: u64 = of_split.iter().map(|c| c.bytes).sum();
        println!("{split:?}: {} crates, {documents} documents, {bytes} bytes", of_split.len());
    }
    for (reason, (files, bytes)) in reasons {
        println!("dropped as {reason}: {files} files, {bytes} bytes");
    }
}
