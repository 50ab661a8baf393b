//! A run becomes a folder for a hub: the published form, with ours beside it and a model card.
//!
//! ```text
//! README.md                        the model card, written from the record
//! config.json, model.safetensors   the published form; of a family that has none, our names and a config.json of ours
//! ae/                              the autoencoder, where there is one
//! tokenizer.json, SHA256SUMS
//! calm-run/config.yaml              the configuration in force
//! calm-run/run.json                the record: hashes, commands; without the names of machines
//! calm-run/results.json              scores
//! ```

use std::path::{Path, PathBuf};

use calm_run::checked::{read_json, write_config, write_json, write_text};
use calm_run::checkpoint::Which;
use calm_run::run::{CONFIG, RECORD, RESULTS};
use calm_run::{Error, Result, Run};
use candle_core::DType;
use serde_json::{Map, Value};

use super::card::{Card, Facts};
use super::export::{ExportOptions, Unpublished, write};
use super::{AE_FOLDER, OURS_FOLDER, read, sums};

/// The model card.
pub(super) const CARD: &str = "README.md";

/// How a run is made ready for a hub.
#[derive(Clone, Debug, Default)]
pub struct PublishOptions {
    /// The folder to write; what is there is replaced.
    pub out: PathBuf,
    /// Which checkpoint of the language model.
    pub which: Which,
    /// Number format of all tensors; none: as each was imported, and 32 bits otherwise.
    pub dtype: Option<DType>,
    /// `OWNER/NAME`, for the card.
    pub name: String,
    /// The licence, as the hub calls it.
    pub licence: Option<String>,
}

/// What was written.
#[derive(Clone, Debug)]
pub struct PublishReport {
    /// The files, by their paths in the folder.
    pub files: Vec<String>,
    /// The model card.
    pub card: String,
    /// What a user should know.
    pub notes: Vec<String>,
}

/// Writes the folder.
///
/// # Errors
/// The run has no checkpoint, is damaged, or the folder cannot be written.
pub fn publish(run: &Run, options: &PublishOptions) -> Result<PublishReport> {
    let refused = |e| Error::io("write", &options.out, e);
    calm_files::write_folder(&options.out, refused, |out| fill(run, options, out))
}

fn fill(run: &Run, options: &PublishOptions, out: &Path) -> Result<PublishReport> {
    let export = ExportOptions { out: out.to_owned(), which: options.which, dtype: options.dtype };
    let mut exported = write(run, &export, out, Unpublished::Ours)?;
    let ours = out.join(OURS_FOLDER);
    calm_files::create_folder(&ours).map_err(|e| Error::io("create", &ours, e))?;
    let resolved = Run::resolved(&run.folder)?;
    write_config(&ours.join(CONFIG), &resolved.to_yaml())?;
    let mut record = run.record()?.unwrap_or_default();
    for entry in &mut record.history {
        entry.host = None;
        // Where the program lay says who started it, and nothing about the run.
        if let Some(program) = entry.command.first_mut() {
            let name = Path::new(&*program).file_name().map(|name| name.to_string_lossy().into_owned());
            *program = name.unwrap_or_default();
        }
    }
    write_json(&ours.join(RECORD), &record)?;
    let mut names = vec![CONFIG, RECORD];
    let remedy = "score the run again: calm eval brierlm";
    let results: Option<Map<String, Value>> = read_json(&run.folder.join(RESULTS), remedy)?;
    if let Some(results) = &results {
        write_json(&ours.join(RESULTS), results)?;
        names.push(RESULTS);
    }
    sums::write(&ours, &names)?;
    names.push(sums::SUMS);
    exported.files.extend(names.iter().map(|name| Path::new(OURS_FOLDER).join(name)));
    let states = exported
        .stages
        .iter()
        .map(|(stage, parameters, step)| Ok((*stage, *parameters, run.checkpoints(*stage).state(*step)?)));
    let facts = Facts {
        config: &run.config,
        record: &record,
        stages: states.collect::<Result<_>>()?,
        results: results.unwrap_or_default(),
        rounded: options.dtype.is_some_and(|dtype| dtype != DType::F32),
        published: exported.architecture,
    };
    let card = Card { name: &options.name, licence: options.licence.as_deref(), facts }.to_string();
    write_text(&out.join(CARD), &card)?;
    exported.files.push(CARD.into());
    let slashed =
        |file: &PathBuf| file.iter().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("/");
    let mut files: Vec<String> = exported.files.iter().map(slashed).collect();
    files.sort();
    let mut notes = exported.notes;
    notes.extend(said_of_here(&resolved.to_yaml(), &record));
    Ok(PublishReport { files, card, notes })
}

/// Paths of this machine that everybody will read.
fn said_of_here(yaml: &str, record: &calm_run::RunRecord) -> Option<String> {
    let commands = record.history.iter().flat_map(|entry| entry.command.iter().skip(1));
    let values = yaml.lines().filter_map(|line| line.split_once(": ").map(|(_, value)| value));
    let absolute = |text: &&str| Path::new(text).is_absolute();
    let of_commands =
        commands.flat_map(|word| word.split(['=', ' ']).map(|part| part.trim_matches(['\'', '"', '}'])));
    let first = values.map(|value| value.trim_matches(['\'', '"'])).find(absolute);
    let found = first.or_else(|| of_commands.into_iter().find(absolute))?;
    Some(format!("{OURS_FOLDER}/ tells paths of this machine, such as {found}"))
}

/// Whether a file of a repository belongs to what [`publish`] writes, or is a form of the same model's weights: one of
/// another push would contradict this one.
pub fn belongs(path: &str) -> bool {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    match folder {
        "" | AE_FOLDER => {
            read::is_weights(name) || ["config.json", "tokenizer.json", sums::SUMS].contains(&name)
        }
        OURS_FOLDER => [CONFIG, RECORD, RESULTS, sums::SUMS].contains(&name),
        _ => false,
    }
}
