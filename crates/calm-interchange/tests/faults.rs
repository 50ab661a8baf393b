//! An export is there whole or not at all, whatever the disk does.

// Helpers outside of test functions may panic too.
#![allow(clippy::unwrap_used)]

#[path = "../../calm-train/tests/common/toy.rs"]
mod toy;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use calm_files::faults::{Cut, Fault, Plan, Platter, Way, with};
use calm_interchange::{ExportOptions, export};
use calm_run::{Begin, Provenance, Run};
use calm_train::init::initialise;
use candle_core::Device;
use toy::{Listener, Text, in_memory};

/// All files below a folder with their content.
fn content(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).into_iter().flatten().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            found.extend(
                content(&entry.path()).into_iter().map(|(p, b)| (Path::new(&entry.file_name()).join(p), b)),
            );
        } else {
            found.insert(entry.file_name().into(), fs::read(entry.path()).unwrap());
        }
    }
    found
}

#[test]
fn an_export_is_whole_or_not_there_whatever_the_disk_does() {
    let (text, home) = (Text::new(), in_memory());
    let run = Run::create(&home.path().join("run"), &text.config(), Begin::New).unwrap();
    let cache = home.path().join("cache");
    initialise(&run, &cache, Provenance::default(), &Device::Cpu, &mut Listener::default()).unwrap();
    let to = |out: &Path| export(&run, &ExportOptions { out: out.to_owned(), ..ExportOptions::default() });

    let place = in_memory();
    let mut platter = Platter::of(place.path()).unwrap();
    let out = place.path().join("far/out");
    let (report, seen) = with(Plan::record(), || to(&out));
    let wanted = content(&out);
    assert!(report.unwrap().files.iter().all(|file| file.is_file()), "the files are where the report says");
    let mut names: Vec<String> = wanted.keys().map(|name| name.display().to_string()).collect();
    names.sort();
    let all = [
        "SHA256SUMS",
        "ae/SHA256SUMS",
        "ae/config.json",
        "ae/model.safetensors",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ];
    assert_eq!(names, all);

    for at in 0..seen.ops {
        for (way, lasting) in [(Way::Full, false), (Way::Short, true), (Way::Broken, true)] {
            let place = in_memory();
            let out = place.path().join("far/out");
            let (done, _) = with(Plan::fail(Fault { at, way, lasting }), || to(&out));
            match done {
                Ok(_) => assert_eq!(content(&out), wanted),
                // The name may have been given before the last flush failed.
                Err(_) => assert!(!out.exists() || content(&out) == wanted, "operation {at}"),
            }
            if !out.exists() {
                to(&out).unwrap();
                assert_eq!(content(&out), wanted);
                assert_eq!(
                    fs::read_dir(place.path().join("far")).unwrap().count(),
                    1,
                    "nothing is left over"
                );
            }
        }
    }
    let after = in_memory();
    for n in 0..=seen.record.len() {
        for cut in [Cut::Kill, Cut::Lost, Cut::NamesOnly, Cut::Some(n as u64), Cut::Some(1000 + n as u64)] {
            let place = after.path().join("place");
            platter.after(cut, &place).unwrap();
            let out = place.join("far/out");
            assert!(!out.exists() || content(&out) == wanted, "{cut:?} after {n} operations");
        }
        if let Some(op) = seen.record.get(n) {
            platter.follow(op);
        }
    }
    platter.after(Cut::Lost, &after.path().join("place")).unwrap();
    assert_eq!(content(&after.path().join("place/far/out")), wanted, "what is reported is there for good");
}
