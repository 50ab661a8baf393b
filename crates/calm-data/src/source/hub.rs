//! A data set of a hub: which files it has is asked when it is opened, and each is fetched when its turn comes, one
//! ahead of the reader.
//!
//! What a revision stood for when it was asked is part of every input's name, and its hash is the hub's: a second start
//! needs none of the files as long as the tokens are there.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};

use calm_hub::{Event, Hub, Kind, Listing, Remote, Repository, Settings};

use super::card;
use super::documents::{Documents, Fetching, Input, Text, Watch};
use super::files::{Entry, Files, Given, Reading};
use super::select::select;
use crate::error::{Error, Result};

/// Most bytes of a page that is looked at.
const LONGEST_PAGE: u64 = 16 << 20;

/// A data set whose files are known.
pub(super) struct DataSet {
    hub: Arc<Hub>,
    listing: Arc<Listing>,
    watch: Watch,
}

impl DataSet {
    /// Asks the hub of the environment for a data set.
    pub(super) fn ask(dataset: &str, revision: &str, watch: &Watch) -> Result<Self> {
        let hub = Settings::from_environment().and_then(Hub::new).map_err(Error::from)?;
        Self::ask_at(hub, dataset, revision, watch)
    }

    fn ask_at(hub: Hub, dataset: &str, revision: &str, watch: &Watch) -> Result<Self> {
        let repository = Repository::new(Kind::Dataset, dataset).map_err(Error::from)?;
        let listing =
            hub.list(&repository, revision, &mut |event| heard(event, watch)).map_err(Error::from)?;
        Ok(Self { hub: Arc::new(hub), listing: Arc::new(listing), watch: watch.clone() })
    }

    /// Its files with their sizes and hashes.
    pub(super) fn files(&self) -> &[Remote] {
        &self.listing.files
    }

    /// Its page, if it has one.
    fn page(&self) -> Result<Option<String>> {
        let page =
            self.listing.files.iter().find(|file| file.path == card::PAGE && file.size <= LONGEST_PAGE);
        let Some(page) = page else { return Ok(None) };
        let mut on = |event: &Event| heard(event, &self.watch);
        let path = self.hub.fetch(&self.listing, page, &mut on).map_err(Error::from)?;
        let bytes = std::fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// The files that fit, as a text. Where no pattern is given, they are those that the page of the data set names, if it
    /// names some.
    pub(super) fn text(&self, chosen: Chosen<'_>, reading: Reading) -> Result<Box<dyn Text>> {
        let name = self.listing.repository.name();
        let paths: Vec<&str> = self.listing.files.iter().map(|file| file.path.as_str()).collect();
        let Chosen { files, config, split } = chosen;
        let meant = match files.is_empty() {
            true => card::meant(name, self.page()?.as_deref(), config, split)?,
            false => None,
        };
        let chosen = match &meant {
            Some(meant) => select(name, &paths, &meant.files, split.filter(|_| !meant.of_split))?,
            None => select(name, &paths, files, split)?,
        };
        let files: Vec<Remote> =
            self.listing.files.iter().filter(|file| chosen.contains(&file.path.as_str())).cloned().collect();
        let entry = |file: &Remote| Entry { id: file.path.clone(), length: file.size };
        let input = |file: &Remote| Input {
            name: self.listing.address(file),
            length: file.size,
            hash: Some(file.hash()),
            ..Input::default()
        };
        Ok(Box::new(OfHub {
            entries: files.iter().map(entry).collect(),
            inputs: files.iter().map(input).collect(),
            name: PathBuf::from(name),
            hub: self.hub.clone(),
            listing: self.listing.clone(),
            watch: self.watch.clone(),
            files,
            reading,
        }))
    }
}

/// Which files of a data set are read.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Chosen<'a> {
    /// Patterns of their paths; none: what the page says, else all.
    pub files: &'a [String],
    /// The configuration that they belong to.
    pub config: Option<&'a str>,
    /// Their split.
    pub split: Option<&'a str>,
}

fn heard(event: &Event, watch: &Watch) -> bool {
    watch(&match event {
        Event::Still => return true,
        Event::Bytes { file, done, total } => {
            Fetching::Bytes { file: file.clone(), done: *done, total: *total }
        }
        Event::Waiting { reason, wait } => {
            Fetching::Note(format!("{reason}; asked again in {} s", wait.as_secs_f64().ceil()))
        }
        Event::Locked { file } => Fetching::Note(format!("{file} is being fetched by another process")),
    });
    true
}

struct OfHub {
    name: PathBuf,
    hub: Arc<Hub>,
    listing: Arc<Listing>,
    watch: Watch,
    files: Vec<Remote>,
    entries: Vec<Entry>,
    inputs: Vec<Input>,
    reading: Reading,
}

impl Text for OfHub {
    fn inputs(&self) -> &[Input] {
        &self.inputs
    }

    fn read(&self) -> Result<Box<dyn Documents + '_>> {
        let ahead = Ahead::start(self);
        let describe = |documents: usize, left_out: &str| {
            let (name, commit) = (self.name.display(), &self.listing.commit[..7]);
            format!("{documents} documents of {} files of {name} at {commit}{left_out}", self.files.len())
        };
        Ok(Box::new(Files::new(
            &self.entries,
            Given::Alone,
            self.reading.clone(),
            Path::new(&self.name),
            Box::new(move |_| ahead.next()),
            Box::new(describe),
        )))
    }
}

/// Files on their way, in their order.
struct Ahead {
    files: Receiver<Result<PathBuf>>,
    ends: Arc<AtomicBool>,
}

impl Ahead {
    fn start(of: &OfHub) -> Self {
        let (give, files) = sync_channel(1);
        let ends = Arc::new(AtomicBool::new(false));
        let (hub, listing, watch, wanted) =
            (of.hub.clone(), of.listing.clone(), of.watch.clone(), of.files.clone());
        let end = ends.clone();
        // It ends with the reader: at the next piece of a file, or when nobody takes the next one.
        std::thread::spawn(move || {
            for file in &wanted {
                let mut on = |event: &Event| heard(event, &watch) && !end.load(Ordering::Relaxed);
                let fetched = hub.fetch(&listing, file, &mut on).map_err(Error::from);
                let failed = fetched.is_err();
                if give.send(fetched).is_err() || failed {
                    return;
                }
            }
        });
        Self { files, ends }
    }

    fn next(&self) -> Result<PathBuf> {
        self.files.recv().unwrap_or(Err(calm_hub::Error::Stopped.into()))
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::super::settings::{Filter, OnBadDocument};
    use super::*;
    use crate::chat::Conversations;
    use calm_hub::Patience;
    use std::time::Duration;

    fn settings(endpoint: String, cache: &Path) -> Settings {
        Settings {
            endpoint,
            cache: cache.to_owned(),
            token: None,
            offline: false,
            patience: Patience { tries: 2, pause: Duration::from_millis(1), ..Patience::default() },
            proxy: false,
        }
    }

    fn lines(from: usize, to: usize) -> String {
        (from..to)
            .map(|n| format!("{{\"content\": \"text {n}\", \"language\": \"{}\"}}\n", ["en", "de"][n % 2]))
            .collect()
    }

    fn repository() -> calm_served::Repository {
        calm_served::Repository::new("owner/name")
            .with("README.md", "x")
            .with("data/train-00000-of-00002.jsonl", lines(0, 40))
            .with("data/train-00001-of-00002.jsonl", lines(40, 60))
            .with("data/validation-00000-of-00001.jsonl", lines(60, 64))
    }

    fn of(split: &str) -> Chosen<'_> {
        Chosen { split: Some(split), ..Default::default() }
    }

    fn reading(filter: &str) -> Reading {
        let filter: Filter = serde_yaml::from_str(filter).unwrap();
        Reading::new(Some("content"), &filter, OnBadDocument::Stop, Conversations::default())
    }

    fn texts(text: &dyn Text) -> Result<Vec<String>> {
        text.read()?.map(|document| document.map(|d| d.text)).collect()
    }

    #[test]
    fn a_split_is_read_file_by_file_and_known_by_its_commit() {
        let (served, cache) = (repository().served(), tempfile::tempdir().unwrap());
        let notes = Arc::new(std::sync::Mutex::new(0));
        let counted = notes.clone();
        let watch: Watch = Arc::new(move |_| *counted.lock().unwrap() += 1);
        let hub = Hub::new(settings(served.address(), cache.path())).unwrap();
        let set = DataSet::ask_at(hub, "owner/name", "main", &watch).unwrap();
        let text = set.text(of("train"), reading("{}")).unwrap();
        let asked = served.asked().len();
        let inputs = text.inputs();
        assert_eq!(inputs.len(), 2);
        let commit = repository().commit();
        assert_eq!(
            inputs[0].name,
            format!("hf://datasets/owner/name@{commit}/data/train-00000-of-00002.jsonl")
        );
        assert_eq!(inputs[0].length, lines(0, 40).len() as u64);
        assert!(inputs[0].hash.as_ref().unwrap().starts_with("sha256:"));
        assert_eq!(served.asked().len(), asked, "nothing is fetched before it is read");
        let expected: Vec<String> = (0..60).map(|n| format!("text {n}")).collect();
        assert_eq!(texts(&*text).unwrap(), expected);
        assert!(*notes.lock().unwrap() > 0);
        let mut stream = text.read().unwrap();
        assert_eq!(
            stream.by_ref().map(|d| d.unwrap().id).nth(41).unwrap(),
            "data/train-00001-of-00002.jsonl:2"
        );
        while stream.next().is_some() {}
        assert_eq!(stream.read_bytes(), lines(0, 60).len() as u64);
        let found = stream.found();
        assert_eq!(found.description, format!("60 documents of 2 files of owner/name at {}", &commit[..7]));
        drop(stream);
        let english = set.text(of("validation"), reading("field: { language: en }")).unwrap();
        assert_eq!(texts(&*english).unwrap(), ["text 60", "text 62"]);
        // Somebody who stops reading stops fetching.
        drop(text.read().unwrap());
    }

    #[test]
    fn a_failure_in_the_middle_comes_where_it_belongs() {
        let repository = repository();
        let served = calm_served::Served::start(move |asked| match asked.path.contains("train-00001") {
            true => calm_served::Answer::status(500),
            false => repository.answer(asked),
        });
        let cache = tempfile::tempdir().unwrap();
        let hub = Hub::new(settings(served.address(), cache.path())).unwrap();
        let watch: Watch = Arc::new(|_| ());
        let set = DataSet::ask_at(hub, "owner/name", "main", &watch).unwrap();
        let text = set.text(of("train"), reading("{}")).unwrap();
        let mut stream = text.read().unwrap();
        assert_eq!(stream.by_ref().take(40).filter(|d| d.is_ok()).count(), 40);
        let error = stream.next().unwrap().unwrap_err();
        assert!(
            error.to_string().contains("train-00001") && error.remedy().unwrap().contains("kept"),
            "{error}"
        );
        assert!(stream.next().is_none());
    }

    #[test]
    fn a_file_without_the_field_is_named() {
        let (served, cache) = (repository().served(), tempfile::tempdir().unwrap());
        let hub = Hub::new(settings(served.address(), cache.path())).unwrap();
        let set =
            DataSet::ask_at(hub, "owner/name", "v1.0", &(Arc::new(|_: &Fetching| ()) as Watch)).unwrap();
        let text = set
            .text(Chosen { files: &["data/*".to_owned()], ..Default::default() }, Reading::default())
            .unwrap();
        let error = texts(&*text).unwrap_err().told();
        assert!(
            error.contains("line 1") && error.contains("no `text` field") && error.contains("data.column"),
            "{error}"
        );
        let error = set.text(of("dev2"), Reading::default()).err().unwrap().told();
        assert!(error.contains("data/train-00000-of-00002.jsonl"), "{error}");
    }

    #[test]
    fn the_page_of_a_data_set_says_which_files_a_configuration_has() {
        let page = "---\nconfigs:\n- config_name: a\n  data_files:\n  - {split: train, path: 'a/*'}\n  - {split: dev, path: \
                    held/a.jsonl}\n- config_name: b\n  data_dir: b\n---\n";
        let served = calm_served::Repository::new("owner/name")
            .with("README.md", page)
            .with("a/one.jsonl", lines(0, 3))
            .with("b/two.jsonl", lines(3, 5))
            .with("held/a.jsonl", lines(5, 6))
            .served();
        let cache = tempfile::tempdir().unwrap();
        let ask = |offline| {
            let hub = Hub::new(Settings { offline, ..settings(served.address(), cache.path()) }).unwrap();
            DataSet::ask_at(hub, "owner/name", "main", &(Arc::new(|_: &Fetching| ()) as Watch)).unwrap()
        };
        let a = |split| Chosen { config: Some("a"), split: Some(split), ..Default::default() };
        for offline in [false, true] {
            let set = ask(offline);
            let read = |chosen| texts(&*set.text(chosen, reading("{}")).unwrap()).unwrap();
            assert_eq!(read(a("train")), ["text 0", "text 1", "text 2"]);
            assert_eq!(read(a("validation")), ["text 5"]);
            assert_eq!(read(Chosen { config: Some("b"), ..Default::default() }), ["text 3", "text 4"]);
            let files = &["*/*.jsonl".to_owned()];
            assert_eq!(
                read(Chosen { files, ..Default::default() }).len(),
                6,
                "patterns are nobody else's matter"
            );
            let error = set.text(Chosen::default(), reading("{}")).err().unwrap().told();
            assert!(error.contains("a, b") && error.contains("`config`"), "{error}");
            let error = set.text(a("test"), reading("{}")).err().unwrap().told();
            assert!(error.contains("train, dev"), "{error}");
        }
    }
}
