#![doc = include_str!("../README.md")]

mod cache;
mod check;
mod download;
mod error;
mod http;
mod listing;
mod local;
mod names;
mod push;
mod send;
mod settings;
mod upload;
mod watch;

pub use error::{Error, Result};
pub use listing::{Listing, Remote};
pub use local::Local;
pub use names::{Kind, Repository};
pub use push::{Push, Pushed};
pub use settings::{Patience, Settings, Token};
pub use watch::{Event, Watch};

use std::path::PathBuf;

use cache::Cache;
use http::Client;

/// A hub, and the cache of what came from it.
#[derive(Debug)]
pub struct Hub {
    client: Client,
    cache: Cache,
    offline: bool,
}

impl Hub {
    /// By these settings.
    ///
    /// # Errors
    /// The address of the hub is none.
    pub fn new(settings: Settings) -> Result<Self> {
        Ok(Self {
            offline: settings.offline,
            cache: Cache::new(settings.cache.clone()),
            client: Client::new(settings)?,
        })
    }

    /// What a repository holds at a revision (a branch, a tag or a commit), each file with its size and hash. Without
    /// the network, and for a commit that was listed before, it is what the cache says.
    ///
    /// # Errors
    /// There is no such repository or revision, it may not be read, or the hub cannot be asked.
    pub fn list(&self, repository: &Repository, revision: &str, watch: &mut Watch) -> Result<Listing> {
        names::check_revision(revision)?;
        if let Some(known) = self.cache.listing(repository, revision, self.offline)? {
            return Ok(known);
        }
        if self.offline {
            return Err(Error::Offline { what: format!("{repository} at `{revision}`") });
        }
        let listing = listing::ask(&self.client, repository, revision, watch)?;
        self.cache.keep_listing(&listing, revision)?;
        Ok(listing)
    }

    /// Where a file of a listing lies on this machine; it is fetched if it is not there whole.
    ///
    /// # Errors
    /// It cannot be fetched or kept, or is not what the listing says.
    pub fn fetch(&self, listing: &Listing, file: &Remote, watch: &mut Watch) -> Result<PathBuf> {
        if let Some(path) = self.cache.find(listing, file)? {
            return Ok(path);
        }
        if self.offline {
            return Err(Error::Offline { what: format!("{} of {}", file.path, listing.repository) });
        }
        download::file(&self.client, &self.cache, listing, file, watch)
    }

    /// Sends files to a repository, all in one commit or none; one that is not there is made.
    ///
    /// # Errors
    /// There is no token, or it may not write there; the repository holds other files and nobody said to replace them;
    /// somebody else changed it meanwhile; a file cannot be read; the hub cannot be asked.
    pub fn push(&self, push: &Push<'_>, watch: &mut Watch) -> Result<Pushed> {
        self.may_push(push.repository)?;
        push::all_of(&self.client, push, watch)
    }

    /// Whether anything can be sent to a repository at all, as far as it is known without asking.
    ///
    /// # Errors
    /// There is no token, no network is wanted, or the name does not say whose it is.
    pub fn may_push(&self, repository: &Repository) -> Result<()> {
        if self.offline {
            let what = "nothing can be sent without the network".to_owned();
            return Err(Error::Setting { variable: "HF_HUB_OFFLINE", what });
        }
        if !self.client.has_token() {
            return Err(Error::NoToken {
                what: format!("writing to {repository} at {}", self.client.host()),
            });
        }
        if !repository.name().contains('/') {
            return Err(Error::Name {
                what: format!("`{}` does not say whose it is", repository.name()),
                remedy: "write OWNER/NAME, with your account or organisation as the owner",
            });
        }
        Ok(())
    }

    /// Whether a file of a listing is there whole, without fetching it.
    ///
    /// # Errors
    /// The cache cannot be read.
    pub fn has(&self, listing: &Listing, file: &Remote) -> Result<bool> {
        Ok(self.cache.find(listing, file)?.is_some())
    }
}
