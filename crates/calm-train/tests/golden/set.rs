//! A set of golden numbers: its manifest, cases, configs and tensors.
//!
//! Everything that is read is noted, so that [`Case::leftovers`] can name the files and tensors that no
//! comparison has looked at.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Result, Tensor, bail};
use serde_json::Value;

/// `CALM_GOLDEN`, as given or relative to the workspace; without it the project's own set.
pub fn folder() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    match std::env::var_os("CALM_GOLDEN") {
        // Tests run in their package's folder: a relative path was meant from the workspace.
        Some(set) if !Path::new(&set).is_dir() => workspace.join(set),
        Some(set) => set.into(),
        None => workspace.join("eval/golden"),
    }
}

/// A set: its cases in the manifest's order, and the kinds that it says it holds (`kinds`; all that there are
/// where it says nothing).
pub struct Set {
    pub cases: Vec<Case>,
    pub kinds: Option<Vec<String>>,
}

impl Set {
    /// The set in [`folder`].
    pub fn read() -> Result<Self> {
        let root = folder();
        let manifest = read_json(&root.join("manifest.json"))?;
        let kinds = match &manifest["kinds"] {
            Value::Null => None,
            kinds => Some(
                serde_json::from_value(kinds.clone())
                    .map_err(|e| candle_core::Error::Msg(format!("manifest.json: kinds: {e}")))?,
            ),
        };
        Ok(Self { cases: cases(&root, &manifest)?, kinds })
    }

    /// Whether cases of a kind have to be here.
    pub fn promises(&self, kind: &str) -> bool {
        self.kinds.as_ref().is_none_or(|kinds| kinds.iter().any(|k| k == kind))
    }

    /// What is wrong with the kinds of the cases, where `known` can be compared: a promised kind without a case, a
    /// case or a promise of a kind that nothing here compares, and a case of a kind that is not promised.
    pub fn wrong_kinds(&self, known: &[&str]) -> Vec<String> {
        let mut wrong = Vec::new();
        for kind in known.iter().filter(|kind| self.promises(kind)) {
            if !self.cases.iter().any(|case| case.kind == *kind) {
                wrong.push(format!("no case of kind {kind}"));
            }
        }
        for kind in self.kinds.iter().flatten().filter(|kind| !known.contains(&kind.as_str())) {
            wrong.push(format!("no runner for kind {kind}, which the manifest lists"));
        }
        for Case { name, kind, .. } in &self.cases {
            if !known.contains(&kind.as_str()) {
                wrong.push(format!("no runner for {name} (kind {kind})"));
            } else if !self.promises(kind) {
                wrong.push(format!("{name} is of kind {kind}, which the manifest does not list"));
            }
        }
        wrong
    }
}

fn cases(root: &Path, manifest: &Value) -> Result<Vec<Case>> {
    let text = |v: &Value, key: &str| match v[key].as_str() {
        Some(s) => Ok(s.to_owned()),
        None => bail!("manifest.json: a case without a {key}"),
    };
    let Some(cases) = manifest["cases"].as_array() else { bail!("manifest.json has no list of cases") };
    cases
        .iter()
        .map(|c| {
            let name = text(c, "name")?;
            let files = c["files"].as_array().into_iter().flatten().filter_map(Value::as_str);
            Ok(Case {
                kind: text(c, "kind")?,
                root: root.join(&name),
                name,
                files: files.map(str::to_owned).collect(),
                opened: RefCell::default(),
            })
        })
        .collect()
}

fn read_json(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| candle_core::Error::Msg(format!("{}: {e}", path.display())))?;
    serde_json::from_str(&text).map_err(|e| candle_core::Error::Msg(format!("{}: {e}", path.display())))
}

/// One folder of the set.
pub struct Case {
    pub name: String,
    pub kind: String,
    root: PathBuf,
    files: Vec<String>,
    opened: RefCell<BTreeMap<String, Option<Tensors>>>,
}

impl Case {
    /// Where a file of the case lies.
    pub fn path(&self, file: &str) -> PathBuf {
        self.opened.borrow_mut().entry(file.to_owned()).or_default();
        self.root.join(file)
    }

    /// The files that the manifest lists.
    pub fn files(&self) -> &[String] {
        &self.files
    }

    /// A JSON file.
    pub fn json(&self, file: &str) -> Result<Value> {
        read_json(&self.path(file))
    }

    /// Tensors whose every one has to be looked at.
    pub fn tensors(&self, file: &str) -> Result<Tensors> {
        let path = self.path(file);
        let tensors = Tensors {
            file: format!("{}/{file}", self.name),
            map: candle_core::safetensors::load(&path, &Device::Cpu)
                .map_err(|e| candle_core::Error::Msg(format!("{}: {e}", path.display())))?
                .into(),
            seen: Default::default(),
        };
        self.opened.borrow_mut().insert(file.to_owned(), Some(tensors.clone()));
        Ok(tensors)
    }

    /// Weights by name; the model's own loading says which it does not know.
    pub fn weights(&self, file: &str) -> Result<HashMap<String, Tensor>> {
        candle_core::safetensors::load(self.path(file), &Device::Cpu)
    }

    /// The files of inputs and expected results.
    pub fn io_files(&self) -> Vec<String> {
        let io = |f: &&String| f.starts_with("io") && f.ends_with(".safetensors");
        self.files.iter().filter(io).cloned().collect()
    }

    /// Listed files that were not opened and tensors that were not looked at.
    pub fn leftovers(&self) -> Vec<String> {
        let opened = self.opened.borrow();
        let mut out: Vec<String> = self
            .files
            .iter()
            .filter(|f| !opened.contains_key(*f))
            .map(|f| format!("{f}: no runner opens it"))
            .collect();
        for tensors in opened.values().flatten() {
            let seen = tensors.seen.borrow();
            let mut names: Vec<&String> = tensors.map.keys().filter(|n| !seen.contains(*n)).collect();
            names.sort();
            out.extend(names.iter().map(|n| format!("{}: {n}: nothing is compared with it", tensors.file)));
        }
        out
    }
}

/// The tensors of one file.
#[derive(Clone)]
pub struct Tensors {
    pub file: String,
    map: std::rc::Rc<HashMap<String, Tensor>>,
    seen: std::rc::Rc<RefCell<BTreeSet<String>>>,
}

impl Tensors {
    pub fn find(&self, name: &str) -> Option<Tensor> {
        self.seen.borrow_mut().insert(name.to_owned());
        self.map.get(name).cloned()
    }

    pub fn has(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    pub fn get(&self, name: &str) -> Result<Tensor> {
        match self.find(name) {
            Some(t) => Ok(t),
            None => bail!("{} has no tensor {name}", self.file),
        }
    }

    /// Token ids and masks, I64 in the files, as U32.
    pub fn ids(&self, name: &str) -> Result<Tensor> {
        self.get(name)?.to_dtype(DType::U32)
    }

    pub fn scalar(&self, name: &str) -> Result<f64> {
        self.get(name)?.to_dtype(DType::F64)?.to_scalar()
    }

    /// Sorted names.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.map.keys().cloned().collect();
        names.sort();
        names
    }
}

/// A config.json with errors that name the key.
pub struct Config(pub Value);

impl Config {
    pub fn size(&self, key: &str) -> Result<usize> {
        match self.0[key].as_u64() {
            Some(v) => Ok(v as usize),
            None => bail!("config.json: {key} is no whole number"),
        }
    }

    pub fn id(&self, key: &str) -> Result<u32> {
        Ok(self.size(key)? as u32)
    }

    pub fn number(&self, key: &str) -> Result<f64> {
        match self.0[key].as_f64() {
            Some(v) => Ok(v),
            None => bail!("config.json: {key} is no number"),
        }
    }

    /// Settings of the reference that no model here has.
    pub fn refuse_unknown_variants(&self) -> Result<()> {
        for (key, is_plain) in [
            ("attention_bias", self.0["attention_bias"] != true),
            ("mlp_bias", self.0["mlp_bias"] != true),
            ("rope_scaling", self.0["rope_scaling"].is_null()),
            ("hidden_act", self.0["hidden_act"].is_null() || self.0["hidden_act"] == "silu"),
        ] {
            if !is_plain {
                bail!("config.json: {key} is {}: not supported", self.0[key])
            }
        }
        Ok(())
    }
}
