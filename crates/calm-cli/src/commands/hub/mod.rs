//! `calm pull` and `calm push`: runs and the models of a Hugging Face hub.

#[cfg(feature = "hub")]
mod pull;
#[cfg(feature = "hub")]
mod push;

#[cfg(feature = "hub")]
pub use pull::run as pull;
#[cfg(feature = "hub")]
pub use push::run as push;

#[cfg(feature = "hub")]
mod heard {
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
}

#[cfg(not(feature = "hub"))]
mod without {
    use anyhow::Result;

    use crate::args::{PullArgs, PushArgs};
    use crate::error::Hinted;
    use crate::stop::Stop;
    use crate::ui::Printer;

    fn built_without() -> Result<()> {
        let remedy = "build it with the feature `hub`, which is on by default";
        Err(Hinted::new("this program was built without the network of a hub", remedy).into())
    }

    /// Says that it cannot.
    pub fn pull(_: &PullArgs, _: &Printer) -> Result<()> {
        built_without()
    }

    /// Says that it cannot.
    pub fn push(_: &PushArgs, _: &Stop, _: &Printer) -> Result<()> {
        built_without()
    }
}
#[cfg(not(feature = "hub"))]
pub use without::{pull, push};
