//! A hub on this machine: well, slow, broken, redirecting and lying.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use calm_hub::{Error, Event, Hub, Kind, Listing, Patience, Result, Settings, Token};
use calm_served::{Answer, Asked, Repository, Served};

const SMALL: &[u8] = b"{\"text\": \"small\"}\n";

fn large() -> Vec<u8> {
    (0..300_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn repository() -> Repository {
    Repository::new("owner/name")
        .with("README.md", "# name")
        .with("data/small file é.jsonl", SMALL)
        .with("data/train-00000-of-00001.parquet", large())
}

const LARGE: &str = "data/train-00000-of-00001.parquet";

fn settings(served: &Served, cache: &Path) -> Settings {
    Settings {
        endpoint: served.address(),
        cache: cache.to_owned(),
        token: None,
        offline: false,
        patience: Patience {
            tries: 3,
            pause: Duration::from_millis(2),
            longest: Duration::from_secs(5),
            silence: Duration::from_millis(400),
        },
        proxy: false,
    }
}

fn named() -> calm_hub::Repository {
    calm_hub::Repository::new(Kind::Dataset, "owner/name").unwrap()
}

/// Lists and fetches one file.
fn fetch_with(hub: &Hub, path: &str, watch: &mut dyn FnMut(&Event) -> bool) -> Result<(Listing, PathBuf)> {
    let listing = hub.list(&named(), "main", watch)?;
    let file = listing.files.iter().find(|file| file.path == path).unwrap().clone();
    let place = hub.fetch(&listing, &file, watch)?;
    Ok((listing, place))
}

fn fetch(served: &Served, cache: &Path, path: &str) -> Result<PathBuf> {
    fetch_with(&Hub::new(settings(served, cache)).unwrap(), path, &mut |_| true).map(|(_, place)| place)
}

fn told(error: &Error) -> String {
    format!("{error}; {}", error.remedy().unwrap())
}

/// Files of the second address answered by `answers`, all else as it should be.
fn with_blobs(answers: impl Fn(&Asked, Answer) -> Answer + Send + Sync + 'static) -> Served {
    let repository = repository();
    Served::start(move |asked| {
        let well = repository.answer(asked);
        if asked.elsewhere { answers(asked, well) } else { well }
    })
}

/// What lies in a cache under a name that is read.
fn kept(cache: &Path) -> Vec<String> {
    fn walk(folder: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, found);
            } else if !path.to_string_lossy().contains(".locks") {
                found.push(path.file_name().unwrap().to_string_lossy().into_owned());
            }
        }
    }
    let mut found = Vec::new();
    for folder in ["blobs", "snapshots"] {
        walk(&cache.join("datasets--owner--name").join(folder), &mut found);
    }
    found.retain(|name| !name.ends_with(".incomplete"));
    found.sort();
    found
}

#[test]
fn files_come_whole_and_lie_where_the_hubs_tools_look_for_them() {
    let (served, cache) = (repository().served(), tempfile::tempdir().unwrap());
    let hub = Hub::new(settings(&served, cache.path())).unwrap();
    let mut seen = Vec::new();
    let (listing, place) = fetch_with(&hub, LARGE, &mut |event| {
        seen.push(event.clone());
        true
    })
    .unwrap();
    let commit = repository().commit();
    assert_eq!(listing.commit, commit);
    assert_eq!(listing.files.len(), 3, "two pages");
    let folder = cache.path().join("datasets--owner--name");
    assert_eq!(place, folder.join("snapshots").join(&commit).join(LARGE));
    assert_eq!(std::fs::read(&place).unwrap(), large());
    assert_eq!(std::fs::read_to_string(folder.join("refs/main")).unwrap(), commit);
    assert_eq!(std::fs::read(folder.join("blobs").join(Repository::etag(&large()))).unwrap(), large());
    assert!(
        matches!(seen.last(), Some(Event::Bytes { done: 300_000, total: 300_000, .. })),
        "{:?}",
        seen.last()
    );
    let small = fetch(&served, cache.path(), "data/small file é.jsonl").unwrap();
    assert_eq!(std::fs::read(small).unwrap(), SMALL);
    // What is there is not asked for again; a commit's list is not either.
    let before = served.asked().len();
    let at_commit = hub.list(&named(), &commit, &mut |_| true).unwrap();
    assert_eq!(at_commit, listing);
    fetch(&served, cache.path(), LARGE).unwrap();
    let after = served.asked();
    assert!(after[before..].iter().all(|asked| asked.path.starts_with("/api/")), "{:?}", &after[before..]);
}

#[test]
fn without_the_network_the_cache_is_all() {
    let (served, cache) = (repository().served(), tempfile::tempdir().unwrap());
    fetch(&served, cache.path(), LARGE).unwrap();
    let mut offline = settings(&served, cache.path());
    offline.offline = true;
    let asked = served.asked().len();
    let hub = Hub::new(offline.clone()).unwrap();
    let (listing, place) = fetch_with(&hub, LARGE, &mut |_| true).unwrap();
    assert_eq!((listing.files.len(), std::fs::read(place).unwrap()), (3, large()));
    let error = told(&fetch_with(&hub, "README.md", &mut |_| true).unwrap_err());
    assert!(error.contains("README.md") && error.contains("unset HF_HUB_OFFLINE"), "{error}");
    // As another tool leaves it: no list.
    std::fs::remove_dir_all(cache.path().join("datasets--owner--name/listings")).unwrap();
    let (listing, _) = fetch_with(&hub, LARGE, &mut |_| true).unwrap();
    assert_eq!(listing.files.len(), 1);
    assert_eq!(listing.files[0].etag, Repository::etag(&large()));
    // A set of which only one is there is not all of it.
    let snapshot = cache.path().join("datasets--owner--name/snapshots").join(&listing.commit);
    calm_files::write_bytes(&snapshot.join("part/x-00001-of-00003-ab.parquet"), b"x").unwrap();
    let listing = hub.list(&named(), "main", &mut |_| true).unwrap();
    let parts: Vec<_> = listing.files.iter().filter(|file| file.path.starts_with("part/")).collect();
    assert_eq!(parts.len(), 3);
    assert_eq!(std::fs::read(hub.fetch(&listing, parts[1], &mut |_| true).unwrap()).unwrap(), b"x");
    let error = told(&hub.fetch(&listing, parts[2], &mut |_| true).unwrap_err());
    assert!(error.contains("part/x-00002-of-00003-ab.parquet of"), "{error}");
    offline.cache = cache.path().join("empty");
    let error = told(&fetch_with(&Hub::new(offline).unwrap(), LARGE, &mut |_| true).unwrap_err());
    assert!(error.contains("`main` is not in the cache"), "{error}");
    assert_eq!(served.asked().len(), asked, "nothing was asked");
}

#[test]
fn a_connection_that_breaks_off_is_continued() {
    let served = with_blobs(|asked, well| if asked.before < 8 { well.cut(30_000) } else { well });
    let cache = tempfile::tempdir().unwrap();
    let place = fetch(&served, cache.path(), LARGE).unwrap();
    assert_eq!(std::fs::read(place).unwrap(), large());
    let froms: Vec<usize> = served.asked().iter().filter(|a| a.elsewhere).map(Asked::from).collect();
    assert!(froms.len() == 9 && froms.windows(2).all(|pair| pair[0] < pair[1]), "{froms:?}");
}

#[test]
fn what_a_stopped_process_left_is_continued_and_what_is_of_something_else_is_not() {
    for (left, first) in
        [(large()[..100_000].to_vec(), 100_000), (vec![7; 1_000], 1_000), (vec![7; 400_000], 0)]
    {
        let (served, cache) = (repository().served(), tempfile::tempdir().unwrap());
        let name = format!("datasets--owner--name/blobs/{}.incomplete", Repository::etag(&large()));
        calm_files::write_bytes(&cache.path().join(&name), &left).unwrap();
        let place = fetch(&served, cache.path(), LARGE).unwrap();
        assert_eq!(std::fs::read(place).unwrap(), large());
        let froms: Vec<usize> = served.asked().iter().filter(|a| a.elsewhere).map(Asked::from).collect();
        assert_eq!(froms[0], first);
        assert!(!cache.path().join(name).exists());
    }
}

#[test]
fn a_download_that_is_stopped_goes_on_where_it_was() {
    let (served, cache) = (repository().served(), tempfile::tempdir().unwrap());
    let hub = Hub::new(settings(&served, cache.path())).unwrap();
    let mut done = 0;
    let stop = &mut |event: &Event| {
        if let Event::Bytes { done: now, .. } = event {
            done = *now;
        }
        done < 1
    };
    assert!(matches!(fetch_with(&hub, LARGE, stop).unwrap_err(), Error::Stopped));
    assert!(done > 0);
    assert!(kept(cache.path()).is_empty());
    fetch(&served, cache.path(), LARGE).unwrap();
    let last = served.asked().last().cloned().unwrap();
    assert_eq!(last.from() as u64, done);
}

#[test]
fn a_server_that_knows_no_ranges_is_asked_for_all_of_it() {
    let repository = repository();
    let served = Served::start(move |asked| {
        let mut plain = asked.clone();
        plain.headers.remove("range");
        let well = repository.answer(&plain);
        if asked.elsewhere && asked.before == 0 { well.cut(1_000) } else { well }
    });
    let cache = tempfile::tempdir().unwrap();
    assert_eq!(std::fs::read(fetch(&served, cache.path(), LARGE).unwrap()).unwrap(), large());
}

#[test]
fn a_busy_hub_is_asked_again_after_the_pause_that_it_wants() {
    let repository = repository();
    let served = Served::start(move |asked| match (asked.elsewhere, asked.before) {
        (false, 0) if asked.path.contains("/revision/") => Answer::status(429).header("retry-after", "1"),
        (true, 0) => Answer::status(503),
        (true, 1) => Answer::status(500),
        _ => repository.answer(asked),
    });
    let cache = tempfile::tempdir().unwrap();
    let (started, mut waits) = (Instant::now(), Vec::new());
    let hub = Hub::new(settings(&served, cache.path())).unwrap();
    fetch_with(&hub, LARGE, &mut |event| {
        if let Event::Waiting { wait, reason } = event {
            waits.push((*wait, reason.clone()));
        }
        true
    })
    .unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1));
    assert!(
        waits.iter().any(|(wait, why)| *wait == Duration::from_secs(1) && why.contains("429")),
        "{waits:?}"
    );
    // A pause of an hour is told, and not slept.
    let busy = Served::start(|_| Answer::status(429).header("retry-after", "3600"));
    let error = told(&fetch(&busy, cache.path(), LARGE).unwrap_err());
    assert!(error.contains("wait for 3600 s") && error.contains("kept"), "{error}");
    // So is one that never ends, after some tries.
    let down = Served::start(|_| Answer::status(502));
    let error = told(&fetch(&down, cache.path(), LARGE).unwrap_err());
    assert!(error.contains("answered 502"), "{error}");
    assert_eq!(down.asked().len(), 3);
}

#[test]
fn a_silent_hub_is_given_up_and_a_slow_one_is_not() {
    let silent = Served::start(|_| {
        std::thread::sleep(Duration::from_secs(2));
        Answer::status(200)
    });
    let cache = tempfile::tempdir().unwrap();
    let started = Instant::now();
    let error = told(&fetch(&silent, cache.path(), LARGE).unwrap_err());
    assert!(error.contains("could not be reached") && error.contains("HF_HUB_OFFLINE=1"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(5));
    let repository = Repository::new("owner/name").with("a.txt", "x".repeat(640));
    let slow = Served::start(move |asked| {
        let mut answer = repository.answer(asked);
        answer.slow = asked.elsewhere.then_some(Duration::from_millis(100));
        answer
    });
    // A second in all, 0.4 s of silence allowed.
    fetch(&slow, cache.path(), "a.txt").unwrap();
}

#[test]
fn a_hub_that_is_not_there_is_named() {
    let cache = tempfile::tempdir().unwrap();
    let mut settings = settings(&repository().served(), cache.path());
    settings.endpoint = "http://127.0.0.1:9".to_owned();
    let error = told(&fetch_with(&Hub::new(settings.clone()).unwrap(), LARGE, &mut |_| true).unwrap_err());
    assert!(error.contains("127.0.0.1 could not be reached") && error.contains("HF_ENDPOINT"), "{error}");
    settings.endpoint = "mirror".to_owned();
    assert!(told(&Hub::new(settings).unwrap_err()).contains("HF_ENDPOINT"));
}

#[test]
fn a_file_with_another_content_never_gets_a_name() {
    let wrong = |change: fn(&mut Vec<u8>)| {
        with_blobs(move |_, mut well| {
            change(&mut well.body);
            well
        })
    };
    let hash = wrong(|body| body[1_000] ^= 1);
    let cache = tempfile::tempdir().unwrap();
    let error = told(&fetch(&hash, cache.path(), LARGE).unwrap_err());
    assert!(error.contains(LARGE) && error.contains("SHA-256") && error.contains("start again"), "{error}");
    let short = wrong(|body| body.truncate(1_000));
    let error = told(&fetch(&short, cache.path(), LARGE).unwrap_err());
    assert!(error.contains("1000 bytes, and 300000 in the list"), "{error}");
    let long = with_blobs(|_, mut well| {
        well.body.extend_from_slice(&[0; 10]);
        // Its length is not told.
        well.header("content-length", "").header("transfer-encoding", "identity")
    });
    assert!(fetch(&long, cache.path(), LARGE).is_err());
    let page = with_blobs(|_, _| Answer::of("<html>please log in</html>"));
    let error = told(&fetch(&page, cache.path(), LARGE).unwrap_err());
    assert!(error.contains("wrong answer") && error.contains("proxy"), "{error}");
    assert!(kept(cache.path()).is_empty(), "{:?}", kept(cache.path()));
    // The real one comes afterwards.
    fetch(&repository().served(), cache.path(), LARGE).unwrap();
}

#[test]
fn an_answer_about_another_part_or_file_is_refused() {
    let cache = tempfile::tempdir().unwrap();
    let other_part = with_blobs(|asked, mut well| {
        if asked.before == 0 {
            return well.cut(1_000);
        }
        well.headers = vec![("content-range".into(), "bytes 5-299999/300000".into())];
        well
    });
    let error = told(&fetch(&other_part, cache.path(), LARGE).unwrap_err());
    assert!(error.contains("bytes from 1000 were asked for"), "{error}");
    let repository = repository();
    let other_file = Served::start(move |asked| {
        let mut well = repository.answer(asked);
        well.headers.retain(|(name, _)| name != "x-linked-etag");
        if well.status == 302 {
            well.header("x-linked-etag", format!("\"{}\"", "0".repeat(64)))
        } else {
            well
        }
    });
    let error = told(&fetch(&other_file, cache.path(), LARGE).unwrap_err());
    assert!(error.contains("its hash is 0000"), "{error}");
    assert!(kept(cache.path()).is_empty());
}

#[test]
fn a_list_that_lies_is_refused() {
    let lists = [
        (
            r#"[{"type":"file","path":"../../evil","size":1,"oid":"0123456789012345678901234567890123456789"}]"#,
            "evil",
        ),
        (
            r#"[{"type":"file","path":"/etc/x","size":1,"oid":"0123456789012345678901234567890123456789"}]"#,
            "/etc/x",
        ),
        (r#"[{"type":"file","path":"a","size":1,"oid":"../../../x"}]"#, "\"a\" cannot be"),
        (r#"[{"type":"file","path":"a","size":1,"oid":"0","lfs":{"oid":"x","size":1}}]"#, "\"a\" cannot be"),
        (r#"[{"type":"file","path":"a","size":-1,"oid":"0"}]"#, "no such JSON"),
        (r#"{"error":"x"}"#, "no such JSON"),
        ("[]", "any file in the data set owner/name"),
    ];
    for (list, said) in lists {
        let repository = repository();
        let served = Served::start(move |asked| {
            if asked.path.contains("/tree/") { Answer::of(list) } else { repository.answer(asked) }
        });
        let cache = tempfile::tempdir().unwrap();
        let error = told(
            &Hub::new(settings(&served, cache.path()))
                .unwrap()
                .list(&named(), "main", &mut |_| true)
                .unwrap_err(),
        );
        assert!(error.contains(said), "{list}: {error}");
        assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 0);
    }
    let commit = Served::start(|_| Answer::of(r#"{"sha": "../../x"}"#));
    let cache = tempfile::tempdir().unwrap();
    let error = told(&fetch(&commit, cache.path(), LARGE).unwrap_err());
    assert!(error.contains("its commit is none"), "{error}");
}

#[test]
fn a_list_without_an_end_has_one() {
    let repository = repository();
    let count = Arc::new(AtomicUsize::new(0));
    let pages = count.clone();
    let endless = Served::start(move |asked| {
        if !asked.path.contains("/tree/") {
            return repository.answer(asked);
        }
        let page = pages.fetch_add(1, Ordering::SeqCst);
        let host = asked.headers["host"].clone();
        let next = format!("<http://{host}/api/datasets/owner/name/tree/x?page={page}>; rel=\"next\"");
        Answer::of("[]").header("link", next)
    });
    let cache = tempfile::tempdir().unwrap();
    let error = told(&fetch(&endless, cache.path(), LARGE).unwrap_err());
    assert!(error.contains("does not end"), "{error}");
    assert!(count.load(Ordering::SeqCst) <= 2_001);
}

#[test]
fn redirects_in_a_circle_or_to_nowhere_end() {
    let cache = tempfile::tempdir().unwrap();
    for (to, said) in
        [("/again", "in a circle"), ("ftp://x", "no address"), ("http://a@127.0.0.1:1/", "no address")]
    {
        let served = Served::start(move |_| Answer::status(302).header("location", to));
        let error = told(&fetch(&served, cache.path(), LARGE).unwrap_err());
        assert!(error.contains(said), "{to}: {error}");
        assert!(served.asked().len() <= 8);
    }
    let nowhere = Served::start(|_| Answer::status(302));
    assert!(told(&fetch(&nowhere, cache.path(), LARGE).unwrap_err()).contains("leads nowhere"));
}

#[test]
fn the_token_is_shown_to_the_hub_alone() {
    let mut private = repository();
    private.token = Some("hf_secret".to_owned());
    let served = private.served();
    let cache = tempfile::tempdir().unwrap();
    let without = told(&fetch(&served, cache.path(), LARGE).unwrap_err());
    assert!(without.contains("restricted") && without.contains("set HF_TOKEN"), "{without}");
    let mut with = settings(&served, cache.path());
    with.token = Token::new("hf_other").unwrap();
    let other = told(&fetch_with(&Hub::new(with.clone()).unwrap(), LARGE, &mut |_| true).unwrap_err());
    assert!(other.contains("accept its conditions") && !other.contains("hf_other"), "{other}");
    with.token = Token::new("hf_secret").unwrap();
    fetch_with(&Hub::new(with).unwrap(), LARGE, &mut |_| true).unwrap();
    let asked = served.asked();
    let shown = |elsewhere| {
        let of = asked.iter().filter(move |a| a.elsewhere == elsewhere);
        of.filter(|a| a.headers.contains_key("authorization")).count()
    };
    assert!(shown(false) > 2);
    assert_eq!(shown(true), 0, "the second address is another host");
    // Nor does a list's next page take it elsewhere.
    let repository = repository();
    let leading = Served::start(move |asked| {
        if asked.path.contains("/tree/") {
            return Answer::of("[]").header("link", format!("<{}/steal>; rel=\"next\"", asked.other));
        }
        repository.answer(asked)
    });
    let mut with = settings(&leading, cache.path());
    with.token = Token::new("hf_secret").unwrap();
    let hub = Hub::new(with).unwrap();
    assert!(told(&hub.list(&named(), "main", &mut |_| true).unwrap_err()).contains("does not end"));
    assert!(leading.asked().iter().all(|a| !a.elsewhere));
}

#[test]
fn what_is_not_there_is_named() {
    let (served, cache) = (repository().served(), tempfile::tempdir().unwrap());
    let hub = Hub::new(settings(&served, cache.path())).unwrap();
    let error = told(&hub.list(&named(), "v9", &mut |_| true).unwrap_err());
    assert!(error.contains("does not have the data set owner/name at `v9`"), "{error}");
    let missing = calm_hub::Repository::new(Kind::Dataset, "owner/none").unwrap();
    let error = told(&hub.list(&missing, "main", &mut |_| true).unwrap_err());
    assert!(error.contains("owner/none") && error.contains("check the name"), "{error}");
    assert_eq!(served.asked().len(), 2, "neither is tried again");
}

#[test]
fn two_processes_fetch_a_file_once() {
    let served = Arc::new(with_blobs(|_, mut well| {
        std::thread::sleep(Duration::from_millis(200));
        well.slow = None;
        well
    }));
    let cache = tempfile::tempdir().unwrap();
    let threads: Vec<_> = (0..3)
        .map(|_| {
            let (served, cache) = (served.clone(), cache.path().to_owned());
            std::thread::spawn(move || fetch(&served, &cache, LARGE).unwrap())
        })
        .collect();
    for thread in threads {
        assert_eq!(std::fs::read(thread.join().unwrap()).unwrap(), large());
    }
    assert_eq!(served.asked().iter().filter(|asked| asked.elsewhere).count(), 1);
}
