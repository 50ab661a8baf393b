//! `calm pull`: a model of a hub as a run.

use std::path::{Path, PathBuf};

use anyhow::Result;
use calm_hub::{Hub, Kind, Listing, Remote, Repository, Settings};
use calm_interchange::{ImportOptions, import, is_ours, read_config, require_empty, restore, wanted};
use calm_train::reporter::Reporter;

use super::heard::{heard, told};
use crate::args::PullArgs;
use crate::commands::{RUNS, import as importing};
use crate::error::Hinted;
use crate::screen::Screen;
use crate::ui::Printer;
use crate::version;

/// Runs the command.
pub fn run(args: &PullArgs, printer: &Printer) -> Result<()> {
    let repository = Repository::new(Kind::Model, &args.name)?;
    let name = args.name.rsplit('/').next().unwrap_or(&args.name);
    let out = args.out.clone().unwrap_or_else(|| Path::new(RUNS).join(name));
    require_empty(&out)?;
    let hub = Hub::new(Settings::from_environment()?)?;
    let mut screen = Screen::new(printer);
    let (folder, from) = fetch(&hub, &repository, &args.revision, &mut screen)?;
    let tokenizer = importing::tokenizer(args.tokenizer.as_ref(), args.llama3.as_deref());
    let autoencoder = match &args.autoencoder {
        Some(place) if Path::new(place).is_dir() => Some(PathBuf::from(place)),
        Some(place) => {
            let other = Repository::new(Kind::Model, place).map_err(|_| {
                Hinted::new(
                    format!("--autoencoder: there is no folder {place}, and it is no name of a model"),
                    "give the folder of an autoencoder, or OWNER/NAME of one at the hub",
                )
            })?;
            Some(fetch(&hub, &other, "main", &mut screen)?.0)
        }
        None => None,
    };
    drop(screen);
    let as_it_was = tokenizer.is_none() && autoencoder.is_none() && args.data.is_none() && is_ours(&folder);
    let provenance = version::provenance(None);
    let report = if as_it_was {
        restore(&folder, &out, &from, provenance)?
    } else {
        import(&ImportOptions {
            folder,
            out: out.clone(),
            tokenizer,
            autoencoder,
            data: args.data.clone(),
            from: Some(from),
            provenance,
        })?
    };
    importing::told(&report, "pulled", as_it_was, &out, printer)
}

/// Fetches what makes a run; says where it lies, and how it is called.
fn fetch(
    hub: &Hub,
    repository: &Repository,
    revision: &str,
    screen: &mut Screen<'_>,
) -> Result<(PathBuf, String)> {
    const CONFIG: &str = "config.json";
    let listing = hub.list(repository, revision, &mut |event| hears(event, screen)).map_err(told)?;
    let of = |path: &str| listing.files.iter().find(|file| file.path == path);
    let Some(config) = of(CONFIG) else {
        return Err(Hinted::new(
            format!("{repository} has no {CONFIG} at `{revision}`"),
            "name one that was pushed from here, or one in the form of the reference implementation",
        )
        .into());
    };
    let place = one(hub, &listing, config, screen)?;
    let folder = place.parent().map(Path::to_owned).unwrap_or_default();
    let settings = read_config(&folder)?;
    let ae_path = settings.get("ae_path").and_then(serde_json::Value::as_str);
    let paths: Vec<&str> = listing.files.iter().map(|file| file.path.as_str()).collect();
    for file in wanted(&paths, ae_path).into_iter().filter_map(of) {
        one(hub, &listing, file, screen)?;
    }
    screen.data_done();
    Ok((folder, format!("hf://{}@{}", repository.name(), listing.commit)))
}

fn one(hub: &Hub, listing: &Listing, file: &Remote, screen: &mut Screen<'_>) -> Result<PathBuf> {
    hub.fetch(listing, file, &mut |event| hears(event, screen)).map_err(told)
}

/// Nobody stops it with a word: a signal ends it at once, and what was fetched is kept.
fn hears(event: &calm_hub::Event, screen: &mut Screen<'_>) -> bool {
    heard(event, screen);
    true
}
