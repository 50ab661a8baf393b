//! Named evaluation tasks: a versioned manifest says which text is scored and how; the text itself stays outside.

use std::path::Path;

use calm_eval::protocol::{Protocol, REFERENCE_EXACT_BLOCK, REFERENCE_SAMPLED_BLOCK, Reader};
use serde::{Deserialize, Serialize};

use calm_run::checkpoint::file_hash;
use calm_run::{Error, Result};

/// Name and text of every manifest in `eval/tasks/` (a test holds the list to the folder).
pub const TASKS: &[(&str, &str)] = &[("wikitext103-test", include_str!("../tasks/wikitext103-test.yaml"))];

/// The only schema of manifests so far.
const SCHEMA: u64 = 1;

/// A manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// Version of the schema of manifests: 1.
    pub schema: u64,
    /// Its name, that of the file.
    pub name: String,
    /// Version of the task: raised when any number or the text changes. Scores of two versions do not compare.
    pub version: u64,
    /// What it measures and where the text comes from.
    pub description: String,
    /// The text.
    pub text: TaskText,
    /// How it is scored.
    pub protocols: TaskProtocols,
}

/// The text of a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskText {
    /// Usual name of the file (any name will do).
    pub file: String,
    /// BLAKE3 of its bytes, hexadecimal.
    pub blake3: String,
    /// Bytes.
    pub bytes: u64,
    /// Documents.
    pub documents: usize,
    /// Field of a record that holds a document; `text` is the only one that is read.
    pub field: String,
}

/// Numbers of both protocols, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskProtocols {
    /// Same positions for all models.
    pub aligned: TaskAligned,
    /// As the reference implementation.
    pub reference: TaskReference,
}

/// See [`Protocol::Aligned`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskAligned {
    /// Tokens between positions.
    pub every: usize,
    /// First token scored.
    pub first: usize,
    /// Tokens in a window.
    pub context: usize,
}

/// See [`Protocol::Reference`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskReference {
    /// Tokens in a block of a model that is sampled (a CALM).
    #[serde(rename = "calm_block")]
    pub sampled_block: usize,
    /// Tokens in a block of a model with probabilities (a baseline).
    #[serde(rename = "baseline_block")]
    pub exact_block: usize,
    /// Whether every document begins with BOS.
    pub document_bos: bool,
}

impl Default for TaskReference {
    fn default() -> Self {
        Self {
            sampled_block: REFERENCE_SAMPLED_BLOCK,
            exact_block: REFERENCE_EXACT_BLOCK,
            document_bos: false,
        }
    }
}

impl Task {
    /// A shipped task by its name, or a manifest file.
    ///
    /// # Errors
    /// When there is none, with the names there are; when the manifest is not one.
    pub fn find(name: &str) -> Result<Self> {
        let path = Path::new(name);
        if path.is_file() {
            let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
            return Self::parse(name, &text);
        }
        match TASKS.iter().find(|(n, _)| *n == name) {
            Some((_, text)) => Self::parse(name, text),
            None => {
                let names: Vec<&str> = TASKS.iter().map(|t| t.0).collect();
                Err(Error::user(
                    format!("there is no task and no file {name}"),
                    format!("give a manifest's path, or one of: {}", names.join(", ")),
                ))
            }
        }
    }

    /// Reads a manifest; `label` names it in messages.
    fn parse(label: &str, text: &str) -> Result<Self> {
        let task: Self = serde_yaml::from_str(text.trim_start_matches('\u{feff}')).map_err(|e| {
            Error::user(
                format!("{label} is no manifest of a task: {e}"),
                "compare it with eval/tasks/wikitext103-test.yaml",
            )
        })?;
        let problem = if task.schema != SCHEMA {
            Some(format!("schema {}: this version reads {SCHEMA}", task.schema))
        } else if task.text.field != "text" {
            Some(format!("text.field {}: only `text` is read", task.text.field))
        } else {
            None
        };
        match problem {
            Some(problem) => Err(Error::user(format!("{label}: {problem}"), "mend the manifest")),
            None => Ok(task),
        }
    }

    /// Whether `path` is the text of this task, to the byte.
    ///
    /// # Errors
    /// When it is another text, with both hashes; when it cannot be read.
    pub fn verify(&self, path: &Path) -> Result<()> {
        if path.is_dir() {
            return Err(Error::user(
                format!("{} is a folder; task {} scores one file", path.display(), self.name),
                format!("give {} with --data", self.text.file),
            ));
        }
        let bytes = std::fs::metadata(path).map_err(|e| Error::io("read", path, e))?.len();
        let hash = file_hash(path)?;
        if hash == self.text.blake3 && bytes == self.text.bytes {
            return Ok(());
        }
        Err(Error::user(
            format!(
                "{} is not the text of task {} version {}:\n  blake3 {hash}, {bytes} bytes\n  expected {}, {} bytes ({})",
                path.display(),
                self.name,
                self.version,
                self.text.blake3,
                self.text.bytes,
                self.text.file
            ),
            "get the original file: not re-encoded, no other line ends; another text is scored without --task",
        ))
    }

    /// Both protocols for a model. A shorter context caps them, to whole steps: scores then do not compare with
    /// those of longer contexts, and the numbers in the results say so.
    pub fn protocols(&self, reader: &Reader, tokens: Option<usize>) -> [Protocol; 2] {
        let TaskProtocols { aligned: a, reference: r } = self.protocols;
        let aligned = Protocol::Aligned {
            every: a.every,
            context: a.context.min(reader.tokens()) / a.every.max(1) * a.every,
            first: a.first,
            tokens_per_document: tokens,
        };
        [aligned, Protocol::reference(reader, r.sampled_block, r.exact_block, r.document_bos)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use calm_lm::DrawKind;
    use std::path::PathBuf;

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
    }

    #[test]
    fn every_manifest_of_the_folder_is_in_the_binary_under_its_own_name() {
        let mut found: Vec<String> = std::fs::read_dir(root().join("eval/tasks"))
            .unwrap()
            .map(|e| e.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
            .collect();
        found.sort();
        let names: Vec<&str> = TASKS.iter().map(|t| t.0).collect();
        assert_eq!(found, names);
        for name in names {
            let task = Task::find(name).unwrap();
            assert_eq!(task.name, name);
            assert_eq!(
                Task::find(root().join(format!("eval/tasks/{name}.yaml")).to_str().unwrap()).unwrap(),
                task
            );
        }
    }

    #[test]
    fn a_manifest_matches_its_text_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("text.json");
        std::fs::write(&path, "{\"text\": \"a\"}\n").unwrap();
        let mut task = Task::find("wikitext103-test").unwrap();
        let e = task.verify(&path).unwrap_err().to_string();
        assert!(e.contains(&task.text.blake3) && e.contains(&file_hash(&path).unwrap()), "{e}");
        task.text.blake3 = file_hash(&path).unwrap();
        task.text.bytes = 14;
        task.verify(&path).unwrap();
        assert!(task.verify(dir.path()).unwrap_err().to_string().contains("is a folder"));
        assert!(task.verify(&dir.path().join("nothing")).is_err());
    }

    #[test]
    fn the_text_of_the_wikitext_task_is_the_one_that_lies_beside_the_project() {
        let shared = std::env::var_os("CALM_SHARED").map_or_else(|| root().join("../shared"), PathBuf::from);
        let task = Task::find("wikitext103-test").unwrap();
        let path = shared.join("data").join(&task.text.file);
        if !path.is_file() {
            println!("skipped: {} is not there (needs the larger texts)", task.text.file);
            return;
        }
        task.verify(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let documents: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(documents.len(), task.text.documents);
        assert!(documents.iter().all(|d| d[&task.text.field].is_string()));
    }

    #[test]
    fn a_shorter_context_caps_both_protocols_to_whole_steps() {
        let task = Task::find("wikitext103-test").unwrap();
        let reader = |context| Reader { chunk_size: 4, context, bos_chunk: false, draws: DrawKind::Sampled };
        let [aligned, reference] = task.protocols(&reader(2048), None);
        assert_eq!((aligned.row_tokens(), reference.row_tokens()), (2048, 8192));
        let [aligned, reference] = task.protocols(&reader(25), None);
        assert_eq!((aligned.row_tokens(), reference.row_tokens()), (96, 100));
        let baseline = Reader { chunk_size: 1, draws: DrawKind::Exact, ..reader(2048) };
        assert_eq!(task.protocols(&baseline, None).map(|p| p.row_tokens()), [2048, 2048]);
    }

    #[test]
    fn a_wrong_name_or_manifest_is_an_error_with_a_remedy() {
        let e = Task::find("wikitext2").unwrap_err();
        assert!(e.remedy().unwrap().contains("wikitext103-test"));
        assert!(Task::parse("x", "name: x").unwrap_err().to_string().contains("no manifest"));
        let other = TASKS[0].1.replace("field: text", "field: body");
        assert!(Task::parse("x", &other).unwrap_err().to_string().contains("text.field"));
        let other = TASKS[0].1.replace("schema: 1", "schema: 2");
        assert!(Task::parse("x", &other).unwrap_err().to_string().contains("schema 2"));
    }
}
