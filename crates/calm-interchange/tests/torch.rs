//! Files of `torch.save` as training programs write them: any pickle protocol, weights wrapped in other things, names
//! with words in front, and what cannot be read named for what it is. The files are written here, instruction by
//! instruction, as Python's pickler writes them.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use calm_interchange::{Weights, read_weights_folder};
use calm_run::Error;
use tempfile::TempDir;

/// A pickle as it is written.
struct Pickler {
    protocol: u8,
    out: Vec<u8>,
}

impl Pickler {
    fn new(protocol: u8) -> Self {
        // Protocols 0 and 1 say nothing of themselves.
        let mut out = if protocol > 1 { vec![0x80, protocol] } else { Vec::new() };
        if protocol >= 4 {
            out.extend([0x95, 0, 0, 0, 0, 0, 0, 0, 0]);
        }
        Self { protocol, out }
    }

    fn op(&mut self, bytes: &[u8]) -> &mut Self {
        self.out.extend_from_slice(bytes);
        self
    }

    fn text(&mut self, text: &str) -> &mut Self {
        if self.protocol >= 4 {
            self.op(&[0x8c, text.len() as u8]).op(text.as_bytes()).op(&[0x94])
        } else {
            self.op(b"X").op(&(text.len() as u32).to_le_bytes()).op(text.as_bytes())
        }
    }

    fn global(&mut self, module: &str, name: &str) -> &mut Self {
        if self.protocol >= 4 {
            self.text(module).text(name).op(&[0x93, 0x94])
        } else {
            self.op(format!("c{module}\n{name}\n").as_bytes())
        }
    }

    fn int(&mut self, value: usize) -> &mut Self {
        self.op(b"J").op(&(value as i32).to_le_bytes())
    }

    fn tuple(&mut self, values: &[usize]) -> &mut Self {
        self.op(b"(");
        for value in values {
            self.int(*value);
        }
        self.op(b"t")
    }

    /// A tensor of four numbers, two by two, in the storage `key`.
    fn tensor(&mut self, kind: &str, key: &str) -> &mut Self {
        self.global("torch._utils", "_rebuild_tensor_v2").op(b"((").text("storage").global("torch", kind);
        self.text(key).text("cpu").int(4).op(b"tQ").int(0).tuple(&[2, 2]).tuple(&[2, 1]);
        self.op(if self.protocol > 1 { &[0x89] } else { b"I00\n" });
        self.global("collections", "OrderedDict").op(b")RtR")
    }

    /// A dictionary of tensors, each in a storage of its own.
    fn state_dict(&mut self, names: &[(&str, &str)]) -> &mut Self {
        self.global("collections", "OrderedDict").op(b")R(");
        for (n, (name, kind)) in names.iter().enumerate() {
            self.text(name).tensor(kind, &n.to_string());
        }
        self.op(b"u")
    }

    fn save(&mut self, path: &Path) {
        self.op(b".");
        let mut zip = zip::ZipWriter::new(fs::File::create(path).unwrap());
        let options = zip::write::SimpleFileOptions::default();
        zip.start_file("archive/data.pkl", options).unwrap();
        zip.write_all(&self.out).unwrap();
        for key in 0..4u8 {
            zip.start_file(format!("archive/data/{key}"), options).unwrap();
            for n in 0..4u8 {
                zip.write_all(&f32::from(10 * key + n).to_le_bytes()).unwrap();
            }
        }
        zip.finish().unwrap();
    }
}

const NAMES: [(&str, &str); 2] = [("a.weight", "FloatStorage"), ("b.weight", "FloatStorage")];

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("pytorch_model.bin")
    }

    fn read(&self) -> Result<Weights, Error> {
        read_weights_folder(self.0.path())
    }

    fn refused(&self) -> String {
        let e = self.read().unwrap_err();
        format!("{e}; {}", e.remedy().unwrap_or_default())
    }
}

fn assert_weights(weights: &Weights) {
    assert_eq!(weights.tensors.keys().collect::<Vec<_>>(), ["a.weight", "b.weight"]);
    let b = weights.tensors["b.weight"].to_vec2::<f32>().unwrap();
    assert_eq!(b, [[10.0, 11.0], [12.0, 13.0]]);
}

#[test]
fn every_pickle_protocol_gives_the_same_weights() {
    for protocol in 1..=5 {
        let f = Folder::new();
        Pickler::new(protocol).state_dict(&NAMES).save(&f.file());
        let weights = f.read().unwrap();
        assert_weights(&weights);
        assert!(weights.notes.is_empty() && weights.problems.is_empty());
    }
}

#[test]
fn weights_beside_an_optimiser_are_found_and_said() {
    for (protocol, key) in [(2, "model"), (4, "state_dict"), (5, "anything")] {
        let f = Folder::new();
        let mut p = Pickler::new(protocol);
        p.op(b"}(").text("step").int(7).text(key).state_dict(&NAMES).text("args").op(b"}u");
        p.save(&f.file());
        let weights = f.read().unwrap();
        assert_weights(&weights);
        assert!(weights.notes.iter().any(|n| n.contains(&format!("under `{key}`"))), "{:?}", weights.notes);
    }
    // `model` goes before its average; two that nobody knows are named.
    let two = |first: &str, second: &str| {
        let f = Folder::new();
        let mut p = Pickler::new(2);
        p.op(b"}(").text(first).state_dict(&NAMES).text(second).state_dict(&NAMES).op(b"u").save(&f.file());
        f
    };
    assert_weights(&two("ema", "model").read().unwrap());
    let e = two("student", "teacher").refused();
    assert!(e.contains("student, teacher") && e.contains("save one of them"), "{e}");
}

#[test]
fn words_that_training_programs_put_around_names_are_taken_away_and_said() {
    let cases: [&[(&str, &str)]; 4] = [
        &[("module.a.weight", "FloatStorage"), ("module.b.weight", "FloatStorage")],
        &[("_orig_mod.a.weight", "FloatStorage"), ("_orig_mod.b.weight", "FloatStorage")],
        &[("module._orig_mod.a.weight", "FloatStorage"), ("module.b._orig_mod.weight", "FloatStorage")],
        &[("_fsdp_wrapped_module.a.weight", "FloatStorage"), ("b.weight", "FloatStorage")],
    ];
    for names in cases {
        let f = Folder::new();
        Pickler::new(2).state_dict(names).save(&f.file());
        let weights = f.read().unwrap();
        assert_weights(&weights);
        assert!(!weights.notes.is_empty() && weights.problems.is_empty());
    }
    // A name that is only like one stays.
    let f = Folder::new();
    Pickler::new(2).state_dict(&[("module.a", "FloatStorage"), ("b", "FloatStorage")]).save(&f.file());
    assert_eq!(f.read().unwrap().tensors.keys().collect::<Vec<_>>(), ["b", "module.a"]);
    // Two tensors never become one.
    let f = Folder::new();
    Pickler::new(2).state_dict(&[("_orig_mod.a", "FloatStorage"), ("a", "FloatStorage")]).save(&f.file());
    assert!(f.read().unwrap().problems.iter().any(|p| p.contains("one name")));
}

#[test]
fn tensors_of_other_number_formats_are_named_in_one_line() {
    let f = Folder::new();
    Pickler::new(2)
        .state_dict(&[("a", "FloatStorage"), ("m", "BoolStorage"), ("n", "BoolStorage")])
        .save(&f.file());
    let weights = f.read().unwrap();
    assert_eq!(weights.tensors.len(), 1);
    assert_eq!(weights.problems.len(), 1, "{:?}", weights.problems);
    assert!(weights.problems[0].contains("m, n: the number format is BOOL"), "{:?}", weights.problems);
}

#[test]
fn what_is_no_file_of_weights_is_named_for_what_it_is() {
    let f = Folder::new();
    fs::write(f.file(), "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n").unwrap();
    assert!(
        f.refused().contains("git-lfs pointer") && f.refused().contains("git lfs pull"),
        "{}",
        f.refused()
    );
    let legacy = [0x80, 2, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, b'.'];
    fs::write(f.file(), legacy).unwrap();
    assert!(f.refused().contains("before 1.6") && f.refused().contains("torch.save"), "{}", f.refused());
    Pickler::new(4).global("model", "Net").op(b")").op(&[0x81]).op(b"}b").save(&f.file());
    assert!(f.refused().contains("an object of model.Net"), "{}", f.refused());
    Pickler::new(2).op(b"}(").text("epoch").int(3).text("optimizer").op(b"}u").save(&f.file());
    assert!(f.refused().contains("no tensor by name, but: epoch, optimizer"), "{}", f.refused());
    // Code is never run, and what would be made by it is no weight.
    Pickler::new(2)
        .op(b"}(")
        .text("a")
        .global("os", "system")
        .op(b"(")
        .text("exit 1")
        .op(b"tRu")
        .save(&f.file());
    assert!(f.refused().contains("no tensor by name"), "{}", f.refused());
}
