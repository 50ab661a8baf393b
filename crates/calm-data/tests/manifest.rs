//! The manifest of the default corpus and this project's `Cargo.lock`.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;

use calm_data::Error;
use calm_data::config::DEFAULT_MANIFEST;
use calm_data::source::crates::{Manifest, Split, load};
use calm_data::source::curate;
use calm_data::source::locate::read_lock;

fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap()
}

fn manifest() -> Manifest {
    Manifest::read(&project().join("datasets/crates.yaml")).unwrap()
}

#[test]
fn every_pinned_crate_is_in_the_lock_file_with_its_checksum() {
    let lock = read_lock(&std::fs::read_to_string(project().join("Cargo.lock")).unwrap());
    for pinned in manifest().crates {
        let checksum = lock.get(&(pinned.name.clone(), pinned.version.clone()));
        let message = "Cargo.lock moved on: cargo run --release -p calm-data --example pin_crates";
        assert_eq!(checksum, Some(&Some(pinned.checksum)), "{} {}: {message}", pinned.name, pinned.version);
    }
}

/// A list that ends early, or one letter that is another, would be another text without a word.
#[test]
fn a_manifest_that_is_cut_or_changed_is_refused_and_one_without_its_checksum_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("crates.yaml");
    let whole = std::fs::read_to_string(project().join("datasets/crates.yaml")).unwrap();
    assert!(whole.starts_with("# checksum: "), "cargo run --release -p calm-data --example pin_crates");
    let told = |text: &str| {
        std::fs::write(&path, text).unwrap();
        Manifest::read(&path).map(|manifest| manifest.crates.len()).map_err(|e| e.to_string())
    };
    let last = whole.rfind("- name: ").unwrap();
    for changed in [whole[..last].to_owned(), whole.replacen("split: train", "split: validation", 1)] {
        let error = told(&changed).unwrap_err();
        assert!(error.contains("crates.yaml") && error.contains("takes that line out"), "{error}");
    }
    let (_, body) = whole.split_once('\n').unwrap();
    assert_eq!(told(body), Ok(manifest().crates.len()));
}

#[test]
fn all_versions_of_a_crate_are_on_one_side_and_held_out_as_the_manifest_says() {
    let manifest = manifest();
    let mut sides: BTreeMap<&str, Split> = BTreeMap::new();
    for pinned in &manifest.crates {
        assert_eq!(*sides.entry(&pinned.name).or_insert(pinned.split), pinned.split, "{}", pinned.name);
        assert_eq!(
            pinned.split == Split::Validation,
            manifest.held_out.contains(&pinned.name),
            "{}",
            pinned.name
        );
        assert!(!manifest.excluded.contains_key(&pinned.name), "{}", pinned.name);
    }
    for name in &manifest.held_out {
        assert!(sides.contains_key(name.as_str()), "{name} is held out but not there");
    }
}

#[test]
fn the_corpus_has_a_useful_size_and_a_fitting_held_out_part() {
    let bytes =
        |split| manifest().crates.iter().filter(|c| c.split == split).map(|c| c.bytes).sum::<u64>() as f64;
    let (train, held_out) = (bytes(Split::Train), bytes(Split::Validation));
    assert!((15e6..40e6).contains(&train), "{train}");
    assert!((0.04..0.09).contains(&(held_out / (train + held_out))), "{held_out}");
}

#[test]
fn the_corpus_loads_and_holds_no_duplicates_across_the_splits() {
    let loaded = match load(Path::new(DEFAULT_MANIFEST), &mut |_, _| ()) {
        Err(Error::MissingCrates { .. }) => {
            println!("skipped: run `cargo fetch` first");
            return;
        }
        loaded => loaded.unwrap(),
    };
    let manifest = manifest();
    assert_eq!(
        loaded.train.len() + loaded.validation.len(),
        manifest.crates.iter().map(|c| c.documents).sum::<usize>()
    );
    let mut seen = curate::Duplicates::default();
    for document in &loaded.validation {
        seen.is_duplicate(&document.text, Split::Validation);
    }
    for document in &loaded.train {
        assert!(!seen.knows(&document.text, Split::Train), "{} is a copy of held-out text", document.id);
    }
    for document in loaded.train.iter().chain(&loaded.validation) {
        assert_eq!(curate::reason_to_drop(&document.text), None, "{}", document.id);
    }
}
