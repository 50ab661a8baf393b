//! From the text of a configuration and `--set` arguments to a typed, checked value.
//!
//! All problems are reported together: unknown, missing and repeated keys, values of the wrong type, and
//! the broken rules that [`Validate`] adds; each with its key path, line, column and a remedy.
//!
//! ```
//! use calm_config::load::{ConfigText, Problems, Validate, load};
//!
//! #[derive(serde::Serialize, serde::Deserialize)]
//! #[serde(deny_unknown_fields)]
//! struct Demo {
//!     version: u64,
//!     chunk_size: usize,
//! }
//! impl Validate for Demo {
//!     fn validate(&self, problems: &mut Problems) {
//!         problems.within_range("chunk_size", self.chunk_size, 1, 64);
//!     }
//! }
//!
//! let text = ConfigText::new("demo.yaml", "version: 1\nchunk_size: 4\n");
//! let demo = load::<Demo>(text, &["chunk_size=8".to_string()])?;
//! assert_eq!(demo.value.chunk_size, 8);
//! assert_eq!(demo.to_yaml(), "version: 1\nchunk_size: 8\n");
//!
//! let wrong = ConfigText::new("demo.yaml", "version: 1\nchunksize: 4\n");
//! let errors = load::<Demo>(wrong, &[]).err().unwrap().to_string();
//! assert!(errors.contains("demo.yaml:2:1") && errors.contains("did you mean `chunk_size`?"));
//! # Ok::<(), calm_config::load::ConfigErrors>(())
//! ```
//!
//! Types that are loaded use `#[serde(deny_unknown_fields)]` on every struct and serde's plain (externally
//! tagged) enums, written `model: {calm: ...}`. `flatten`, `untagged` and internal tags lose the place of an
//! error and are not for configurations.

mod hints;
mod report;
mod tree;
mod typed;

pub use hints::{nearest, suggestion};
pub use report::{ConfigErrors, Origin, Problem, Problems, Report};

use crate::locate::{KeyPath, Part, Step, locate};
use report::Finding;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// Rules of a configuration that its types cannot hold.
pub trait Validate {
    /// The schema version that this type reads; the file states it as `version`.
    const VERSION: u64 = 1;

    /// Keys that older files write, each with what it is called now. The types read both (serde's `alias`); an override
    /// of either takes the place of the other.
    const RENAMED: &'static [(&'static str, &'static str)] = &[];

    /// Adds what is wrong, by key path. Called on values that fit their types.
    fn validate(&self, problems: &mut Problems);
}

/// The text of a configuration and what to call it in messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigText {
    /// What messages call it: the path as the user gave it, or a built-in name.
    pub name: String,
    /// The file it was read from, if any.
    pub path: Option<PathBuf>,
    /// YAML.
    pub text: String,
}

impl ConfigText {
    /// A text that comes from no file.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self { name: name.into(), path: None, text: text.into() }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, or is not UTF-8 text.
    pub fn read(path: &Path) -> Result<Self, ConfigErrors> {
        let name = path.display().to_string();
        let bytes = std::fs::read(path).map_err(|error| {
            ConfigErrors::whole_file(
                &name,
                format!("cannot read it: {error}"),
                Some("check the path and its permissions"),
            )
        })?;
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Self { name, path: Some(path.to_path_buf()), text }),
            Err(_) => Err(ConfigErrors::whole_file(
                name,
                "it is not UTF-8 text",
                Some("give a YAML file; a configuration holds text only"),
            )),
        }
    }
}

/// A configuration that was read and found good.
#[derive(Clone, Debug)]
pub struct Resolved<T> {
    /// The configuration.
    pub value: T,
    /// What it is called in messages.
    pub name: String,
    /// The file it came from, if any.
    pub path: Option<PathBuf>,
    /// The overrides that were applied, as given.
    pub overrides: Vec<String>,
    /// All settings, defaults included.
    pub tree: Value,
}

impl<T> Resolved<T> {
    /// All settings as YAML, defaults included; loading it gives the same value.
    pub fn to_yaml(&self) -> String {
        // A tree of plain values always has a YAML form.
        serde_yaml::to_string(&self.tree).unwrap_or_default()
    }
}

/// Reads, overrides, types and checks a configuration.
///
/// An override is `key.path=value` with a YAML value (`--set model.calm.latent_size=64`); list elements are
/// `stages[0].steps` or `stages.0.steps`. A block given as a value replaces the whole block, and the last of
/// two overrides of a key counts.
///
/// # Errors
/// Everything that is wrong, together.
pub fn load<T>(source: ConfigText, overrides: &[String]) -> Result<Resolved<T>, ConfigErrors>
where
    T: DeserializeOwned + Serialize + Validate,
{
    let ConfigText { name, path, mut text } = source;
    // Some editors mark UTF-8 at its start; to YAML that would be a document of its own.
    if text.starts_with('\u{feff}') {
        text.drain(..'\u{feff}'.len_utf8());
    }
    let (mut root, mut findings) = tree::parse(&text).map_err(|error| not_yaml(&name, &text, &error))?;
    if root.is_null() {
        root = json!({});
    }
    if !root.is_object() {
        let hint = format!("a configuration is `key: value` lines, the first `version: {}`", T::VERSION);
        return Err(ConfigErrors::whole_file(name, "it holds no keys", Some(hint)));
    }
    let mut unreliable: Vec<KeyPath> = findings.iter().map(|finding| finding.path.clone()).collect();

    let mut reports = Vec::new();
    let mut applied = Vec::new();
    for raw in overrides {
        match apply(&mut root, raw, T::RENAMED) {
            Ok(path) => applied.push(Override { path, raw: raw.clone() }),
            Err(report) => reports.push(*report),
        }
    }
    let places = Places { text: &text, overrides: &applied };

    match check_version(&root, T::VERSION) {
        Version::Known => {}
        Version::Missing(finding) => findings.push(finding),
        // What another version's keys mean is unknown, so nothing else can be said.
        Version::Unknown(finding) => return Err(ConfigErrors::sorted(&name, vec![places.report(finding)])),
    }

    // Values that were already reported must not be reported again for their stand-in's type.
    let replaced: Vec<KeyPath> = findings
        .iter()
        .filter(|finding| finding.part == Part::Value)
        .map(|finding| finding.path.clone())
        .collect();
    for path in &replaced {
        tree::remove(&mut root, path);
    }
    if let (Value::Object(map), true) = (&mut root, replaced.contains(&KeyPath::parse("version"))) {
        map.insert("version".to_string(), json!(T::VERSION));
    }
    let mut reading = typed::read::<T>(root, &|path| {
        let by = applied.iter().rev().find(|o| o.path == *path)?;
        by.raw.split_once('=').map(|(_, text)| text.trim().to_string())
    });
    reading.findings.retain(|finding| !replaced.contains(&finding.path));
    unreliable.append(&mut reading.unreliable);
    let resolved = reading.value.as_ref().map(|value| serde_json::to_value(value).unwrap_or_default());
    if let Some(tree) = &resolved {
        for finding in &mut reading.findings {
            point_to_other_block(finding, tree);
        }
    }
    findings.append(&mut reading.findings);

    if let Some(value) = &reading.value {
        let mut problems = Problems::new();
        value.validate(&mut problems);
        findings.extend(problems.into_list().into_iter().filter(|p| is_reliable(p, &unreliable)).map(|p| {
            Finding { path: p.path, part: Part::Value, occurrence: 0, what: p.what, remedy: p.remedy }
        }));
    }
    reports.extend(findings.into_iter().map(|finding| places.report(finding)));
    match (reading.value, resolved) {
        (Some(value), Some(tree)) if reports.is_empty() => {
            Ok(Resolved { value, name, path, overrides: overrides.to_vec(), tree })
        }
        _ => Err(ConfigErrors::sorted(&name, reports)),
    }
}

/// Whether a broken rule concerns only values that the user gave.
fn is_reliable(problem: &Problem, unreliable: &[KeyPath]) -> bool {
    let touches = |path: &KeyPath| unreliable.iter().any(|bad| path.is_within(bad) || bad.is_within(path));
    !touches(&problem.path) && !problem.involved.iter().any(touches)
}

/// An override that was applied.
struct Override {
    path: KeyPath,
    raw: String,
}

/// Looks up where the user wrote something.
struct Places<'a> {
    text: &'a str,
    overrides: &'a [Override],
}

impl Places<'_> {
    fn report(&self, finding: Finding) -> Report {
        Report {
            place: self.origin(&finding),
            path: if finding.path.0.is_empty() { String::new() } else { finding.path.to_string() },
            what: finding.what,
            remedy: finding.remedy,
        }
    }

    fn origin(&self, finding: &Finding) -> Origin {
        let path = &finding.path;
        let find = |path: &KeyPath, part| locate(self.text, path, part, finding.occurrence);
        let overriding = |path: &KeyPath| self.overrides.iter().rev().find(|o| path.is_within(&o.path));
        // Duplicates are noted while the file is read: no override has a part in them.
        if finding.occurrence == 0 {
            let inner = || self.overrides.iter().rev().find(|o| o.path.is_within(path));
            let by = overriding(path).or_else(|| find(path, Part::Key).is_none().then(inner).flatten());
            if let Some(by) = by {
                return Origin::Override(by.raw.clone());
            }
        }
        // Blocks are shown by their key: their value starts on another line.
        let key = find(path, Part::Key);
        let value = match finding.part {
            Part::Value => find(path, Part::Value),
            Part::Key => None,
        };
        let place = match (key, value) {
            (Some(key), Some(value)) if value.line != key.line => Some(key),
            (key, value) => value.or(key),
        };
        // What is not there is shown at the block where it belongs.
        let place = place.or_else(|| {
            let parent =
                path.parent().filter(|parent| !parent.0.is_empty() && overriding(parent).is_none())?;
            locate(self.text, &parent, Part::Key, 0)
        });
        match place {
            Some(place) => {
                let line = self.text.lines().nth(place.line - 1).unwrap_or_default().to_string();
                Origin::File { place, line }
            }
            None => Origin::Absent,
        }
    }
}

/// Brings a key up to date; its older name.
fn rename(key: &mut String, renamed: &[(&'static str, &'static str)]) -> Option<&'static str> {
    let (before, now) = renamed.iter().find(|(before, now)| key == before || key == now)?;
    (*now).clone_into(key);
    Some(before)
}

/// Puts `key.path=value` into the tree; keys of older files are brought up to date.
fn apply(
    root: &mut Value,
    raw: &str,
    renamed: &[(&'static str, &'static str)],
) -> Result<KeyPath, Box<Report>> {
    let fail = |path: &str, message: String, hint: &str| {
        let origin = Origin::Override(raw.to_string());
        let hint = (!hint.is_empty()).then(|| hint.to_string());
        Box::new(Report { path: path.to_string(), what: message, place: origin, remedy: hint })
    };
    let shape = "write --set key.path=value, for example --set seed=2";
    let Some((key, text)) = raw.split_once('=') else {
        let is_key = !raw.is_empty() && raw.chars().all(|c| c.is_ascii_alphanumeric() || "._[]".contains(c));
        let hint =
            if is_key { format!("write the value behind it: --set {raw}=VALUE") } else { shape.to_string() };
        return Err(fail("", "an override needs a `=` and a value".to_string(), &hint));
    };
    let key = key.trim();
    let mut path = KeyPath::parse(key);
    if path.0.is_empty() {
        return Err(fail("", "an override needs a key before the `=`".to_string(), shape));
    }
    if text.trim().is_empty() {
        return Err(fail(
            key,
            "the override has no value".to_string(),
            "to give none on purpose, write `null`",
        ));
    }
    let (value, findings) = tree::parse(text).map_err(|error| {
        fail(key, format!("the value is not YAML: {error}"), "put text with special characters in quotes")
    })?;
    if let Some(first) = findings.first() {
        return Err(fail(key, first.what.clone(), first.remedy.as_deref().unwrap_or_default()));
    }
    // A key that has another name by now takes the other's place.
    let before = match path.0.last_mut() {
        Some(Step::Key(last)) => rename(last, renamed),
        _ => None,
    };
    // Down to the place, making blocks on the way.
    let mut node = root;
    for i in 0..path.0.len() {
        if node.is_null() {
            *node = Value::Object(Map::new());
        }
        let at = if i == 0 { "the file".to_string() } else { format!("`{}`", KeyPath(path.0[..i].to_vec())) };
        node = match node {
            Value::Object(map) => {
                // In a block, whatever stands there is a key.
                let name = match &path.0[i] {
                    Step::Key(name) => name.clone(),
                    Step::Index(index) => index.to_string(),
                };
                path.0[i] = Step::Key(name.clone());
                if let Some(before) = before.filter(|_| i + 1 == path.0.len()) {
                    map.shift_remove(before);
                }
                map.entry(name).or_insert(Value::Null)
            }
            Value::Array(list) => {
                let index = match &path.0[i] {
                    Step::Index(index) => Some(*index),
                    Step::Key(name) => name.parse().ok(),
                };
                let length = list.len();
                match index.and_then(|index| list.get_mut(index).map(|element| (index, element))) {
                    Some((index, element)) => {
                        path.0[i] = Step::Index(index);
                        element
                    }
                    None => {
                        let hint = format!("its elements are numbered from 0, and there are {length}");
                        return Err(fail(key, format!("{at} is a list without this element"), &hint));
                    }
                }
            }
            _ => {
                let hint = "leave the last part of the path out to set that value";
                return Err(fail(key, format!("{at} is a single value, not a block of keys"), hint));
            }
        };
    }
    *node = value;
    Ok(path)
}

/// Whether the schema version is one that can be read.
enum Version {
    Known,
    Missing(Finding),
    Unknown(Finding),
}

fn check_version(root: &Value, known: u64) -> Version {
    let finding = |message: String, hint: String| Finding {
        path: KeyPath::parse("version"),
        part: Part::Value,
        occurrence: 0,
        what: message,
        remedy: Some(hint),
    };
    match root.get("version") {
        None | Some(Value::Null) => Version::Missing(finding(
            "the schema version is missing".to_string(),
            format!("add the line `version: {known}` at the top"),
        )),
        Some(version) if version.as_u64() == Some(known) => Version::Known,
        Some(version) => {
            let hint = match version.as_u64() {
                Some(newer) if newer > known => {
                    format!("this program reads version {known}: use a newer one, or a file of that version")
                }
                _ => format!(
                    "this program reads version {known}: write `version: {known}` and see what has changed"
                ),
            };
            Version::Unknown(finding(format!("schema version {version} is not known"), hint))
        }
    }
}

/// For an unknown key that no neighbour resembles: the block where a key of that name belongs.
fn point_to_other_block(finding: &mut Finding, tree: &Value) {
    let guessed = finding.remedy.as_deref().is_some_and(|hint| hint.starts_with("did you mean"));
    let Some(key) = finding.path.last_key().filter(|_| finding.what == "unknown key" && !guessed) else {
        return;
    };
    let mut found = Vec::new();
    collect_paths(tree, &KeyPath::default(), key, &mut found);
    if let [only] = found.as_slice() {
        finding.remedy = Some(format!("the key belongs elsewhere: `{only}`"));
    }
}

fn collect_paths(node: &Value, path: &KeyPath, key: &str, found: &mut Vec<KeyPath>) {
    let Value::Object(map) = node else { return };
    for (name, child) in map {
        let child_path = path.key(name);
        collect_paths(child, &child_path, key, found);
        if name == key {
            found.push(child_path);
        }
    }
}

/// The one error of a text that is not YAML.
fn not_yaml(name: &str, text: &str, error: &serde_yaml::Error) -> ConfigErrors {
    let place = error.location().map(|at| crate::locate::Place { line: at.line(), column: at.column() });
    let message = error.to_string();
    let message = message.split(" at line ").next().unwrap_or_default();
    let line = place.and_then(|place| text.lines().nth(place.line - 1)).unwrap_or_default();
    let hint = if text.lines().any(|line| line.trim_start_matches(' ').starts_with('\t')) {
        "indent with spaces: YAML allows no tabs"
    } else if message.contains("tag") {
        "choices are written `name: {...}`, without `!`"
    } else if message.contains("more than one document") {
        "a configuration is one document: remove the lines `---`"
    } else {
        "check the indentation, the space after each `:`, and the quotes and brackets up to here"
    };
    let origin = match place {
        Some(place) => Origin::File { place, line: line.to_string() },
        None => Origin::Absent,
    };
    let report = Report {
        path: String::new(),
        what: format!("it is not readable YAML: {message}"),
        place: origin,
        remedy: Some(hint.to_string()),
    };
    ConfigErrors { name: name.to_string(), reports: vec![report] }
}

#[cfg(test)]
mod tests;
