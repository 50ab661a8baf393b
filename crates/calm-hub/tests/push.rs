//! Models pushed to a hub on this machine: well, slow, cut, refusing and lying.

#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use calm_hub::{Error, Event, Hub, Kind, Local, Patience, Push, Pushed, Repository, Result, Settings, Token};
use calm_served::{Answer, Asked, Model, Served};

const TOKEN: &str = "hf_secret";

/// A folder with a model: a small file, a large one, and one that goes in parts.
struct Folder(tempfile::TempDir);

fn weights() -> Vec<u8> {
    (0..3_500u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        folder.write("README.md", b"# a model\n");
        folder.write("tokenizer.json", &b"{\"a\": 1}".repeat(60));
        folder.write("model.safetensors", &weights());
        folder
    }

    fn write(&self, name: &str, content: &[u8]) {
        std::fs::write(self.0.path().join(name), content).unwrap();
    }

    fn files(&self) -> Vec<Local> {
        let mut files: Vec<Local> = std::fs::read_dir(self.0.path())
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|e| Local { path: e.file_name().to_string_lossy().into(), from: e.path() })
            .collect();
        files.sort_by(|a, b| a.path.cmp(&b.path));
        files
    }
}

fn hub(served: &Served, token: Option<&str>) -> Hub {
    Hub::new(Settings {
        endpoint: served.address(),
        cache: "/nowhere".into(),
        token: token.and_then(|token| Token::new(token).unwrap()),
        offline: false,
        patience: Patience {
            tries: 3,
            pause: Duration::from_millis(2),
            longest: Duration::from_secs(5),
            silence: Duration::from_millis(400),
        },
        proxy: false,
    })
    .unwrap()
}

fn push_with(
    hub: &Hub,
    folder: &Folder,
    replace: bool,
    watch: &mut dyn FnMut(&Event) -> bool,
) -> Result<Pushed> {
    let repository = Repository::new(Kind::Model, "owner/name")?;
    let (files, stale) = (folder.files(), |path: &str| path.ends_with(".bin"));
    let push = Push {
        repository: &repository,
        files: &files,
        message: "A model",
        private: true,
        replace,
        stale: &stale,
    };
    hub.push(&push, watch)
}

fn push(served: &Served, folder: &Folder, replace: bool) -> Result<Pushed> {
    push_with(&hub(served, Some(TOKEN)), folder, replace, &mut |_| true)
}

fn told(error: &Error) -> String {
    format!("{error}; {}", error.remedy().unwrap())
}

/// A hub that answers as it should, but for what `differs` says.
fn but(model: &Model, differs: impl Fn(&Asked) -> Option<Answer> + Send + Sync + 'static) -> Served {
    let model = model.clone();
    Served::start(move |asked| differs(asked).unwrap_or_else(|| model.answer(asked)))
}

fn sent(served: &Served) -> usize {
    served.asked().iter().filter(|asked| asked.method == "PUT").count()
}

#[test]
fn a_model_comes_in_one_commit_whole_and_in_parts_and_private() {
    let (model, folder) = (Model::new("owner/name", TOKEN), Folder::new());
    let served = model.served();
    let mut seen = Vec::new();
    let done = push_with(&hub(&served, Some(TOKEN)), &folder, false, &mut |event| {
        seen.push(event.clone());
        true
    })
    .unwrap();
    assert!(done.created && !done.unchanged && model.is_private());
    assert_eq!((done.sent, model.commits()), (3_500 + 480, 1));
    assert_eq!(done.page, format!("{}/owner/name", served.address()));
    let there = model.files().unwrap();
    for file in folder.files() {
        assert_eq!(there[&file.path], std::fs::read(&file.from).unwrap(), "{}", file.path);
    }
    assert_eq!(sent(&served), 1 + 4, "one whole, one in four parts");
    let last = Event::Bytes { file: "model.safetensors".into(), done: 3_500, total: 3_500 };
    assert!(seen.contains(&last), "{seen:?}");
    // The secret goes to the hub alone.
    for asked in served.asked() {
        assert_eq!(asked.headers.contains_key("authorization"), !asked.elsewhere, "{}", asked.path);
    }
    // The same again is nothing.
    let again = push(&served, &folder, false).unwrap();
    assert!(again.unchanged && !again.created && again.commit == done.commit);
    assert_eq!((model.commits(), sent(&served)), (1, 5));
}

#[test]
fn what_is_there_goes_only_if_somebody_says_so() {
    let model = Model::new("owner/name", TOKEN)
        .with("README.md", "# another model")
        .with("pytorch_model.bin", "old weights")
        .with("notes.txt", "mine");
    let (served, folder) = (model.served(), Folder::new());
    let before = model.files();
    let error = told(&push(&served, &folder, false).unwrap_err());
    for part in ["README.md", "pytorch_model.bin", "--replace", "owner/name"] {
        assert!(error.contains(part), "{error}");
    }
    assert!(!error.contains("notes.txt"), "{error}");
    assert_eq!((model.files(), sent(&served)), (before, 0));
    assert!(!push(&served, &folder, true).unwrap().created);
    let there = model.files().unwrap();
    assert_eq!(there["README.md"], b"# a model\n");
    assert!(there.contains_key("notes.txt") && !there.contains_key("pytorch_model.bin"));
    // Files beside those of a model stand in nobody's way.
    folder.write("more.json", b"{}");
    push(&served, &folder, false).unwrap();
    assert_eq!(model.commits(), 2);
}

#[test]
fn nobody_without_the_right_token_writes_and_the_token_is_never_told() {
    let (model, folder) = (Model::new("owner/name", TOKEN), Folder::new());
    let served = model.served();
    let error = push_with(&hub(&served, None), &folder, false, &mut |_| true).unwrap_err();
    assert!(matches!(error, Error::NoToken { .. }) && told(&error).contains("HF_TOKEN"), "{error}");
    assert!(served.asked().is_empty(), "nothing is asked");
    let error = told(&push_with(&hub(&served, Some("hf_other")), &folder, false, &mut |_| true).unwrap_err());
    assert!(error.contains("You may not write here") && error.contains("right to write"), "{error}");
    for status in [401, 403, 404] {
        let refusing = but(&model, move |asked| {
            let echo = format!("you showed {}", asked.headers["authorization"]);
            (asked.method == "POST").then(|| Answer::status(status).header("x-error-message", echo))
        });
        let error = push(&refusing, &folder, false).unwrap_err();
        assert!(!told(&error).contains("secret") && !format!("{error:?}").contains("secret"), "{error:?}");
        assert_eq!(refusing.asked().iter().filter(|asked| asked.method == "POST").count(), 1);
    }
    let reading = but(&model, |asked| {
        let echo = format!("you showed {}", asked.headers["authorization"]);
        Some(Answer::status(401).header("x-error-message", echo))
    });
    let error = told(&push(&reading, &folder, false).unwrap_err());
    assert!(error.contains("(the token)") && !error.contains("secret"), "{error}");
    assert_eq!(model.files(), None);
}

#[test]
fn addresses_elsewhere_and_redirects_get_no_token() {
    let (model, folder) = (Model::new("owner/name", TOKEN), Folder::new());
    let moved = but(&model, |asked| {
        (asked.method == "POST")
            .then(|| Answer::status(307).header("location", format!("{}/steal", asked.other)))
    });
    let error = told(&push(&moved, &folder, false).unwrap_err());
    assert!(error.contains("another name"), "{error}");
    assert!(moved.asked().iter().all(|asked| !asked.elsewhere));
    // The hub names somebody else for what is said after the bytes.
    let leading = but(&model, |asked| {
        let batch = asked.path.ends_with("/batch");
        batch.then(|| {
            let wanted: serde_json::Value = serde_json::from_slice(&asked.body).unwrap();
            let object = &wanted["objects"][0];
            let (oid, other) = (object["oid"].as_str().unwrap(), &asked.other);
            let actions = serde_json::json!({
                "upload": { "href": format!("{other}/put/{oid}") }, "verify": { "href": format!("{other}/steal") },
            });
            let told = serde_json::json!({ "oid": oid, "size": object["size"], "actions": actions });
            Answer::of(serde_json::json!({ "objects": [told] }).to_string())
        })
    });
    push(&leading, &folder, false).unwrap_err();
    let asked = leading.asked();
    assert!(asked.iter().any(|asked| asked.path == "/steal"));
    assert!(asked.iter().all(|asked| !asked.elsewhere || !asked.headers.contains_key("authorization")));
}

#[test]
fn what_breaks_off_is_sent_again_and_pauses_are_kept() {
    let (model, folder) = (Model::new("owner/name", TOKEN), Folder::new());
    let shaky = but(&model, |asked| match (asked.method.as_str(), asked.before) {
        ("PUT", 0) => Some(Answer::status(503)),
        ("POST", 0) => Some(Answer::status(429).header("retry-after", "0")),
        _ => None,
    });
    push(&shaky, &folder, false).unwrap();
    assert_eq!(model.commits(), 1);
    assert_eq!(model.files().unwrap()["model.safetensors"], weights());
    let model = Model::new("owner/name", TOKEN);
    let busy = but(&model, |asked| {
        (asked.method == "POST").then(|| Answer::status(429).header("retry-after", "3600"))
    });
    let began = Instant::now();
    let error = told(&push(&busy, &folder, false).unwrap_err());
    assert!(error.contains("asks to wait for 3600 s"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(3));
    assert_eq!(busy.asked().iter().filter(|asked| asked.method == "POST").count(), 1);
}

#[test]
fn addresses_that_ran_out_are_asked_for_anew() {
    let (model, folder) = (Model::new("owner/name", TOKEN), Folder::new());
    let first = AtomicUsize::new(0);
    let expired = but(&model, move |asked| {
        (asked.method == "PUT" && first.fetch_add(1, Ordering::SeqCst) == 2).then(|| Answer::status(403))
    });
    push(&expired, &folder, false).unwrap();
    assert_eq!(model.files().unwrap()["model.safetensors"], weights());
    let batches = expired.asked().iter().filter(|asked| asked.path.ends_with("/batch")).count();
    assert_eq!(batches, 3, "two files, one of them twice");
    let model = Model::new("owner/name", TOKEN);
    let never = but(&model, |asked| (asked.method == "PUT").then(|| Answer::status(403)));
    let error = told(&push(&never, &folder, false).unwrap_err());
    assert!(error.contains("answered 403"), "{error}");
    assert!(sent(&never) <= 4, "it ends");
}

#[test]
fn a_push_that_is_stopped_or_cut_names_nothing_and_goes_on_where_it_was() {
    let (model, folder) = (Model::new("owner/name", TOKEN), Folder::new());
    let served = model.served();
    let empty: Vec<String> = vec![".gitattributes".into()];
    let names = || model.files().unwrap().into_keys().collect::<Vec<_>>();
    let stopped = push_with(
        &hub(&served, Some(TOKEN)),
        &folder,
        false,
        &mut |event| !matches!(event, Event::Bytes { file, .. } if file == "tokenizer.json"),
    );
    assert!(matches!(stopped, Err(Error::Stopped)), "{stopped:?}");
    assert_eq!((names(), model.commits()), (empty.clone(), 0));
    // The hub goes away before the commit.
    let cut = but(&model, |asked| asked.path.ends_with("/commit/main").then(|| Answer::status(503)));
    let error = told(&push(&cut, &folder, false).unwrap_err());
    assert!(error.contains("503") && error.contains("is kept"), "{error}");
    assert_eq!((names(), model.commits()), (empty, 0));
    // What it has is not sent once more, and an empty repository needs nobody's word.
    let done = push(&served, &folder, false).unwrap();
    assert_eq!((done.sent, done.created), (0, false));
    assert_eq!(model.files().unwrap()["model.safetensors"], weights());
}

#[test]
fn a_commit_whose_answer_is_lost_is_not_made_twice() {
    let (model, folder) = (Model::new("owner/name", TOKEN), Folder::new());
    let own = model.clone();
    let deaf = Served::start(move |asked| {
        let well = own.answer(asked);
        // It is done, and nobody hears of it.
        if asked.path.ends_with("/commit/main") { well.cut(3) } else { well }
    });
    let done = push(&deaf, &folder, false).unwrap();
    assert_eq!(model.commits(), 1);
    assert_eq!(done.commit.len(), 40);
    assert_eq!(deaf.asked().iter().filter(|asked| asked.path.ends_with("/commit/main")).count(), 1);
}

#[test]
fn two_who_push_at_once_do_not_overwrite_each_other() {
    let (model, folder) = (Model::new("owner/name", TOKEN), Folder::new());
    let other = model.clone();
    let raced = but(&model, move |asked| {
        if asked.path.ends_with("/commit/main") {
            drop(other.clone().with("theirs.txt", "first"));
        }
        None
    });
    let error = push(&raced, &folder, false).unwrap_err();
    assert!(matches!(error, Error::Changed { .. }), "{error}");
    assert!(told(&error).contains("somebody else"), "{error}");
    assert_eq!(model.commits(), 0);
    assert!(!model.files().unwrap().contains_key("model.safetensors"));
}

#[test]
fn a_hub_that_stalls_is_given_up() {
    let (model, folder) = (Model::new("owner/name", TOKEN), Folder::new());
    let stalls = but(&model, |asked| {
        (asked.method == "PUT").then(|| {
            std::thread::sleep(Duration::from_millis(900));
            Answer::status(200)
        })
    });
    let began = Instant::now();
    let error = told(&push(&stalls, &folder, false).unwrap_err());
    assert!(error.contains("could not be reached"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    // One that is slow, and does answer, is not.
    let slow = but(&model, |asked| {
        if asked.method == "PUT" {
            std::thread::sleep(Duration::from_millis(100));
        }
        None
    });
    push(&slow, &folder, false).unwrap();
}

type Lie = Box<dyn Fn(&Asked) -> Option<Answer> + Send + Sync>;

/// What is said of it, and what the hub answers.
fn lie(
    said: &'static str,
    answers: impl Fn(&Asked) -> Option<Answer> + Send + Sync + 'static,
) -> (&'static str, Lie) {
    (said, Box::new(answers))
}

#[test]
fn lies_are_told() {
    let folder = Folder::new();
    let batch = |asked: &Asked, change: &dyn Fn(&mut serde_json::Value)| -> Option<Answer> {
        asked.path.ends_with("/batch").then(|| {
            let wanted: serde_json::Value = serde_json::from_slice(&asked.body).unwrap();
            let mut object = wanted["objects"][0].clone();
            let upload = serde_json::json!({ "href": format!("{}/put/x", asked.other) });
            object["actions"] = serde_json::json!({ "upload": upload });
            change(&mut object);
            Answer::of(serde_json::json!({ "objects": [object] }).to_string())
        })
    };
    let lies = [
        lie("about another file", move |a| batch(a, &|o| o["oid"] = "0".repeat(64).into())),
        lie("no address", move |a| batch(a, &|o| o["actions"]["upload"]["href"] = "ftp://x".into())),
        lie("addresses for", move |a| {
            batch(a, &|o| {
                o["actions"]["upload"]["header"] = serde_json::json!({ "chunk_size": "7", "1": "http://x" });
            })
        }),
        lie("have no size", move |a| {
            batch(a, &|o| o["actions"]["upload"]["header"] = serde_json::json!({ "chunk_size": "0" }))
        }),
        lie("too much of it", move |a| {
            batch(a, &|o| o["error"] = serde_json::json!({ "message": "too much of it" }))
        }),
        lie("one file", |a| a.path.ends_with("/batch").then(|| Answer::of(r#"{"objects": []}"#))),
        lie("no such JSON", |a| a.path.ends_with("/batch").then(|| Answer::of("<html>"))),
        lie("does not say how", |a| a.path.contains("/preupload/").then(|| Answer::of(r#"{"files": []}"#))),
        // It has the bytes, it says, and does not.
        lie("no such object", move |a| batch(a, &|o| o["actions"] = serde_json::Value::Null)),
        lie("its commit is none", |a| {
            a.path.ends_with("/commit/main").then(|| Answer::of(r#"{"commitOid": "../x"}"#))
        }),
        // It is done, it says, and names a commit that holds something else.
        lie("README.md of the model owner/name is damaged", |a| {
            let commit = "0".repeat(40);
            if a.path.ends_with("/commit/main") {
                return Some(Answer::of(format!(r#"{{"commitOid": "{commit}"}}"#)));
            }
            a.path.contains(&commit).then(|| Answer::of("[]"))
        }),
    ];
    for (said, lie) in lies {
        let model = Model::new("owner/name", TOKEN);
        let error = told(&push(&but(&model, lie), &folder, false).unwrap_err());
        assert!(error.contains(said), "{said}: {error}");
        assert_eq!(model.commits(), 0, "{said}");
    }
}

#[test]
fn names_that_cannot_be_written_to_are_refused_before_anything_is_asked() {
    let served = Served::start(|_| Answer::status(500));
    let folder = Folder::new();
    folder.write("a\\b", b"x");
    let error = told(&push(&served, &folder, false).unwrap_err());
    assert!(error.contains("no name of a file"), "{error}");
    let whose = Repository::new(Kind::Model, "gpt2").unwrap();
    let push = Push {
        repository: &whose,
        files: &[],
        message: "x",
        private: true,
        replace: false,
        stale: &|_| false,
    };
    let error = told(&hub(&served, Some(TOKEN)).push(&push, &mut |_| true).unwrap_err());
    assert!(error.contains("OWNER/NAME"), "{error}");
    assert!(served.asked().is_empty());
}
