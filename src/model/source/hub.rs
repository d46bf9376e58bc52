//! A model of a hub: taken from the hub's cache where it is complete there, else fetched into it.
//!
//! A commit never changes, so one that is complete needs no network. A branch or tag may: the hub is
//! asked what it is now, and what is cached serves where the hub cannot be reached.

mod cache;
mod client;
mod download;
mod error;
mod held;
mod redirect;
mod remove;
mod settings;
mod tag;
mod verify;

pub use error::HubError;
pub(super) use held::held;
pub(super) use remove::remove;
pub(super) use settings::HubSettings;
pub(super) use verify::verify;

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::downloads::{Download as Downloaded, Downloads};
use super::fingerprints::Fingerprints;
use super::folder::{self, INDEX, Unusable, WEIGHTS};
use super::names::{is_commit, is_gguf};
use super::progress::{FetchReport, Fetching, Progress};
use super::spec::HubName;
use super::{Location, Origin};
use cache::CachedRepository;
use client::{At, Client, Listing, RemoteFile};
use download::{Download, cache_error};

/// Largest configuration or tokenizer that is fetched, in bytes: the largest tokenizers published
/// have a few tens of megabytes. The loader has limits of its own.
const MAX_TEXT_BYTES: u64 = folder::MAX_INDEX_BYTES;

/// Most names that an error lists.
const MAX_NAMES_SHOWN: usize = 8;

/// What is kept between runs, beside the hub's cache.
#[derive(Clone, Copy)]
pub(super) struct Memory<'a> {
    pub(super) known: &'a Fingerprints,
    pub(super) downloads: &'a Downloads,
}

/// Finds a model in the cache or fetches it.
pub(super) fn resolve(
    name: &HubName,
    settings: &HubSettings,
    memory: Memory,
    progress: Progress,
) -> Result<(Location, Origin), HubError> {
    let cached = CachedRepository::new(&settings.cache, &name.repository);
    let here = complete(&cached, name);
    if settings.offline || (is_commit(name.revision()) && here.is_ok()) {
        let found = here.map(|location| (location, Origin::HubCache));
        return found.map_err(|why| not_cached(name, settings, why));
    }
    let client = Client::new(settings)?;
    let listing = client.listing(At {
        repository: &name.repository,
        revision: name.revision(),
    });
    match (listing, here) {
        (Ok(listing), _) => {
            let fetch = Fetch {
                name,
                settings,
                memory,
                progress,
                download: Download {
                    client: &client,
                    cached: &cached,
                    known: memory.known,
                    at: At {
                        repository: &name.repository,
                        revision: &listing.commit,
                    },
                },
                listing: &listing,
            };
            fetch.run()
        }
        (Err(error), Ok(location)) if error.leaves_cached() => {
            tracing::warn!("{name} is taken as it was fetched last: {error}");
            Ok((location, Origin::HubCache))
        }
        (Err(error), _) => Err(error),
    }
}

/// Where a model lies in the cache, or what it lacks there.
fn complete(cached: &CachedRepository, name: &HubName) -> Result<Location, String> {
    let commit = (cached.commit(name.revision())).ok_or("nothing of it is there")?;
    let snapshot = cached.snapshot(&commit);
    match &name.file {
        Some(file) => {
            let path = snapshot.join(file);
            match path.is_file() {
                true => Ok(Location::Gguf(path)),
                false => Err(format!("no {file}")),
            }
        }
        None => match folder::files(&snapshot) {
            Ok(_) => Ok(Location::Folder(snapshot)),
            Err(why) => Err(why.to_string()),
        },
    }
}

fn not_cached(name: &HubName, settings: &HubSettings, why: String) -> HubError {
    HubError::NotCached {
        cache: settings.cache.clone(),
        revision: name.revision().to_owned(),
        why,
        is_offline: settings.offline,
    }
}

/// A fetch of what is missing at one commit.
struct Fetch<'a> {
    name: &'a HubName,
    settings: &'a HubSettings,
    memory: Memory<'a>,
    progress: Progress,
    download: Download<'a>,
    listing: &'a Listing,
}

impl Fetch<'_> {
    fn run(&self) -> Result<(Location, Origin), HubError> {
        let cached = self.download.cached;
        let snapshot = cached.snapshot(&self.listing.commit);
        let (location, has_fetched) = match &self.name.file {
            Some(file) => {
                if !self.is_listed(file) {
                    return Err(self.no_gguf(file));
                }
                (Location::Gguf(snapshot.join(file)), self.bring(&[file])?)
            }
            None => {
                let has_fetched = self.folder()?;
                (Location::Folder(snapshot), has_fetched)
            }
        };
        // Last, so that a branch never leads to a commit that is not complete.
        (cached.write_reference(self.name.revision(), &self.listing.commit))
            .map_err(|error| cache_error(&cached.folder(), error))?;
        let origin = match has_fetched {
            true => Origin::Hub,
            false => Origin::HubCache,
        };
        Ok((location, origin))
    }

    /// Brings configuration, tokenizer and index, then the weights that these name. Returns whether
    /// any was missing.
    fn folder(&self) -> Result<bool, HubError> {
        let selection = folder::select(&self.listing.files)?;
        let mut texts = selection.texts;
        if selection.is_sharded {
            texts.push(INDEX);
        }
        let mut has_fetched = false;
        for text in texts {
            if self.is_here(text)? {
                continue;
            }
            let remote = self.download.client.look(self.download.at, text)?;
            if remote.bytes > MAX_TEXT_BYTES {
                return Err(HubError::Answer {
                    asked: text.to_owned(),
                    what: format!("{} bytes, wanted at most {MAX_TEXT_BYTES}", remote.bytes),
                });
            }
            self.bring_one(text, &remote, &|_| {})?;
            has_fetched = true;
        }
        let snapshot = self.download.cached.snapshot(&self.listing.commit);
        let weights = match selection.is_sharded {
            true => folder::shards(&snapshot.join(INDEX))?,
            false => vec![WEIGHTS.to_owned()],
        };
        if let Some(gone) = weights.iter().find(|name| !self.is_listed(name)) {
            return Err(Unusable::Gone(gone.clone()).into());
        }
        let weights: Vec<&str> = weights.iter().map(String::as_str).collect();
        Ok(self.bring(&weights)? || has_fetched)
    }

    /// Brings those of the files that are missing; returns whether any was.
    fn bring(&self, files: &[&str]) -> Result<bool, HubError> {
        let started = Instant::now();
        let mut missing = Vec::new();
        for file in files {
            if !self.is_here(file)? {
                let remote = self.download.client.look(self.download.at, file)?;
                missing.push((*file, remote));
            }
        }
        if missing.is_empty() {
            return Ok(false);
        }
        let name = self.name.to_string();
        let to_fetch = missing
            .iter()
            .filter(|(_, remote)| !self.download.has(remote));
        let what = Fetching {
            name: &name,
            source: &format!("{name} from {}", self.settings.shown_endpoint()),
            bytes: to_fetch.fold(0, |sum: u64, (_, remote)| sum.saturating_add(remote.bytes)),
        };
        let report = FetchReport::start(&what, self.progress);
        for (file, remote) in &missing {
            self.bring_one(file, remote, &|bytes| report.show_more(bytes))?;
        }
        let snapshot = self.download.cached.snapshot(&self.listing.commit);
        report.end(&snapshot, started.elapsed());
        Ok(true)
    }

    fn bring_one(
        &self,
        file: &str,
        remote: &RemoteFile,
        arrived: &dyn Fn(u64),
    ) -> Result<(), HubError> {
        let cache = || self.settings.cache.clone();
        let repository = || self.name.repository.clone();
        // What is only mended belongs to whoever put it there.
        if !is_taken(&self.download.cached.blob(&remote.tag)) {
            self.memory.downloads.remember(Downloaded::HubBlob {
                cache: cache(),
                repository: repository(),
                tag: remote.tag.clone(),
            });
        }
        if !is_taken(&self.path(file)) {
            self.memory.downloads.remember(Downloaded::HubName {
                cache: cache(),
                repository: repository(),
                commit: self.listing.commit.clone(),
                file: file.to_owned(),
            });
        }
        self.download.bring(file, remote, arrived)
    }

    /// Whether a file is here with the size that the hub says: one that was cut short has its name.
    fn is_here(&self, file: &str) -> Result<bool, HubError> {
        let there = match self.path(file).metadata() {
            Ok(there) if there.is_file() => there,
            _ => return Ok(false),
        };
        let bytes = match self.listing.bytes.get(file) {
            Some(bytes) => *bytes,
            None => self.download.client.look(self.download.at, file)?.bytes,
        };
        Ok(there.len() == bytes)
    }

    fn path(&self, file: &str) -> PathBuf {
        let snapshot = self.download.cached.snapshot(&self.listing.commit);
        snapshot.join(file)
    }

    fn is_listed(&self, file: &str) -> bool {
        self.listing.files.iter().any(|listed| listed == file)
    }

    fn no_gguf(&self, file: &str) -> HubError {
        let others = self.listing.files.iter().filter(|name| is_gguf(name));
        let others: Vec<&str> = others.map(String::as_str).take(MAX_NAMES_SHOWN).collect();
        HubError::NoFile {
            file: file.to_owned(),
            others: match others.is_empty() {
                true => " and no other GGUF file".to_owned(),
                false => format!(": take one such as {}", others.join(", ")),
            },
        }
    }
}

/// Whether the name is taken, be it by a link that leads nowhere.
fn is_taken(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}
