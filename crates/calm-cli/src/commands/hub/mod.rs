//! `calm pull` and `calm push`: runs and the models of a Hugging Face hub.

#[cfg(feature = "hub")]
mod heard;
#[cfg(feature = "hub")]
mod pull;
#[cfg(feature = "hub")]
mod push;

#[cfg(feature = "hub")]
pub use pull::run as pull;
#[cfg(feature = "hub")]
pub use push::run as push;

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
