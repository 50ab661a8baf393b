//! `calm push`: a run to a hub, with its model card.

use std::path::Path;

use anyhow::Result;
use calm_hub::{Hub, Kind, Local, Push, Repository, Settings};
use calm_interchange::{PublishOptions, PublishReport, belongs, publish};
use calm_run::Run;
use calm_run::checkpoint::Which;
use calm_train::reporter::Reporter;

use super::heard::{heard, told};
use crate::args::{CheckpointName, PushArgs};
use crate::commands::export;
use crate::error::Hinted;
use crate::screen::Screen;
use crate::stop::Stop;
use crate::ui::{Printer, format, pasted};

/// Runs the command.
pub fn run(args: &PushArgs, stop: &Stop, printer: &Printer) -> Result<()> {
    let repository = Repository::new(Kind::Model, &args.name)?;
    let run = Run::open(&args.run)?;
    let hub = Hub::new(Settings::from_environment()?)?;
    if !args.dry_run {
        hub.may_push(&repository)?;
    }
    let name = format!("push-{}", args.name.replace('/', "--"));
    let staging = Staging::begin(&args.cache, &name, printer)?;
    let which = match args.checkpoint {
        CheckpointName::Best => Which::Best,
        CheckpointName::Latest => Which::Latest,
    };
    let report = publish(
        &run,
        &PublishOptions {
            out: staging.folder.clone(),
            which,
            dtype: export::dtype(args.dtype),
            name: args.name.clone(),
            licence: args.license.clone(),
        },
    )?;
    for note in &report.notes {
        printer.warn(note);
    }
    if args.dry_run {
        return Ok(printer.result(&shown(&report, &staging.folder))?);
    }
    let local = |path: &String| Local { path: path.clone(), from: staging.folder.join(path) };
    let files: Vec<Local> = report.files.iter().map(local).collect();
    let push = Push {
        repository: &repository,
        files: &files,
        message: &args.message,
        private: !args.public,
        replace: args.replace,
        stale: &belongs,
    };
    let mut screen = Screen::new(printer);
    stop.says(Some("stopping; once more to stop at once"));
    stop.patient(true);
    let pushed = hub.push(&push, &mut |event| {
        heard(event, &mut screen);
        !stop.asked()
    });
    stop.patient(false);
    stop.says(None);
    screen.data_done();
    let pushed = pushed.map_err(told)?;
    let seen = match (pushed.created, args.public) {
        (true, false) => ", a new model that only its owner sees",
        (true, true) => ", a new model that everybody sees",
        (false, _) => "",
    };
    let done = match pushed.unchanged {
        true => format!("{} holds the same already", pushed.page),
        false => format!(
            "{} files pushed to {}{seen}: {} sent",
            files.len(),
            pushed.page,
            format::bytes(pushed.sent as f64)
        ),
    };
    printer.result(&format!("{done}\ncommit {}", pushed.commit))?;
    printer.note(format!("next:\n  calm pull {}", pasted(Path::new(&args.name))));
    Ok(())
}

/// What would be sent.
fn shown(report: &PublishReport, folder: &Path) -> String {
    let size = |path: &String| std::fs::metadata(folder.join(path)).map_or(0, |data| data.len());
    let line = |path: &String| format!("  {path}  {}", format::bytes(size(path) as f64));
    let files: Vec<String> = report.files.iter().map(line).collect();
    format!("{}\nfiles:\n{}", report.card, files.join("\n"))
}

/// The folder in which a push is made ready, for one process at a time; it goes with it.
struct Staging {
    folder: std::path::PathBuf,
    _held: calm_files::Held,
}

impl Staging {
    fn begin(cache: &Path, name: &str, printer: &Printer) -> Result<Self> {
        let folder = cache.join(name);
        let lock = cache.join(format!("{name}.lock"));
        let mut waits = || printer.note("another process pushes to the same model: it is waited for");
        let held = calm_files::hold(&lock, &mut waits).map_err(|e| {
            let what = format!("cannot write {}: {e}", lock.display());
            Hinted::new(what, "name a folder that can be written with --cache")
        })?;
        Ok(Self { folder, _held: held })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = calm_files::remove(&self.folder);
    }
}
