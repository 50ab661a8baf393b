//! What somebody sees and hears of a hub.

use calm_data::Progress;
use calm_hub::{Error, Event};
use calm_train::reporter::Reporter;

use crate::screen::Screen;

/// Shows what a hub is doing.
pub(super) fn heard(event: &Event, screen: &mut Screen<'_>) {
    match event {
        Event::Bytes { file, done, total } => {
            screen.data(&Progress::Fetching { file: file.clone(), done: *done, total: *total });
        }
        Event::Waiting { reason, wait } => {
            screen.note(&format!("{reason}: again in {:.0} s", wait.as_secs_f64().max(1.0)));
        }
        Event::Still => {}
        Event::Locked { file } => screen.note(&format!("{file}: another process fetches it")),
    }
}

/// An error of a hub; one that somebody asked for ends as such.
pub(super) fn told(error: Error) -> anyhow::Error {
    match error {
        Error::Stopped => calm_run::Error::Stopped.into(),
        error => error.into(),
    }
}
