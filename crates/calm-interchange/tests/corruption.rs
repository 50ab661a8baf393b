//! Published folders, and runs that were imported from them, with bits flipped and ends cut off: what is read is what was
//! exported, or the file is named. Nothing panics, nothing hangs.

// Helpers outside of test functions may panic too.
#![allow(clippy::unwrap_used)]

#[path = "../../calm-train/tests/common/harm.rs"]
mod harm;
#[path = "../../calm-train/tests/common/toy.rs"]
mod toy;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use calm_interchange::{ExportOptions, ImportOptions, export, import};
use calm_run::{Begin, Provenance, Run};
use calm_train::init::initialise;
use candle_core::Device;
use harm::{Came, Harm, files, harm};
use toy::{Listener, Text, copy, in_memory, place};

/// All files of a folder with their bytes.
type Content = BTreeMap<PathBuf, Vec<u8>>;

fn content(folder: &Path) -> Content {
    files(folder).into_iter().map(|name| (name.clone(), fs::read(folder.join(name)).unwrap())).collect()
}

fn write(run: &Path, out: &Path) -> calm_run::Result<Content> {
    let run = Run::open(run)?;
    let out = out.to_owned();
    let report = export(&run, &ExportOptions { out: out.clone(), ..ExportOptions::default() })?;
    assert!(report.files.iter().all(|file| file.is_file()));
    Ok(content(&out))
}

fn came(of: calm_run::Result<Content>) -> Came<Content> {
    Came { of: of.map_err(|e| e.to_string()), warnings: Vec::new() }
}

/// A folder that was exported is imported, and exported again: nothing is lost on the way.
fn imported(place: &Path) -> calm_run::Result<Content> {
    let (folder, out) = (place.join("folder"), place.join("run"));
    import(&ImportOptions { folder, out: out.clone(), ..ImportOptions::default() })?;
    write(&out, &place.join("again"))
}

fn exported(place: &Path) {
    let (text, home) = (Text::new(), in_memory());
    let run = Run::create(&home.path().join("run"), &text.config(), Begin::New).unwrap();
    let cache = home.path().join("cache");
    initialise(&run, &cache, Provenance::default(), &Device::Cpu, &mut Listener::default()).unwrap();
    write(&run.folder, &place.join("folder")).unwrap();
}

fn nothing_is_warned(_: &Path, _: Harm, _: Content) -> Option<String> {
    Some("nobody warns here".into())
}

fn a_published_folder(cases: u64) -> BTreeMap<&'static str, u64> {
    let begin = in_memory();
    exported(begin.path());
    let whole = in_memory();
    copy(begin.path(), whole.path());
    let wanted = imported(whole.path()).unwrap();
    let weights = Path::new("model.safetensors");
    assert!(wanted[weights] == content(&begin.path().join("folder"))[weights]);
    harm(begin.path(), cases, &wanted, |place| came(imported(place)), nothing_is_warned)
}

fn an_imported_run(cases: u64) -> BTreeMap<&'static str, u64> {
    let (begin, whole) = (in_memory(), in_memory());
    exported(whole.path());
    let wanted = imported(whole.path()).unwrap();
    copy(&whole.path().join("run"), &begin.path().join("run"));
    let work = |place: &Path| came(write(&place.join("run"), &place.join("again")));
    harm(begin.path(), cases, &wanted, work, nothing_is_warned)
}

#[test]
fn some_harm_to_a_published_folder_is_noticed() {
    let count = a_published_folder(140);
    assert!(count["an error that names the file"] > 70, "{count:?}");
}

#[test]
fn some_harm_to_an_imported_run_is_noticed() {
    let count = an_imported_run(120);
    assert!(count["an error that names the file"] > 30, "{count:?}");
}

#[test]
#[ignore = "a thousand changes each: a minute"]
fn a_thousand_changes_of_folders_in_and_out_are_noticed_or_do_not_matter() {
    println!("a published folder is imported: {:?}", a_published_folder(1000));
    println!("an imported run is exported: {:?}", an_imported_run(1000));
}
