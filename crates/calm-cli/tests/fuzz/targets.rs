//! The loaders, each with small valid files of its kind.

use std::fs;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use calm_config::{ConfigText, load};
use calm_data::source::crates::Manifest;
use calm_data::source::path::read as read_text;
use calm_hub::{Hub, Kind, Patience, Settings};
use calm_interchange::{ImportOptions, TokenizerFrom, import, read_config, read_weights_folder};
use calm_nn::read_weights;
use calm_run::checkpoint::{StageState, Which};
use calm_run::config::RunConfig;
use calm_run::metrics::read_lines;
use calm_run::{Run, RunRecord, Stage};
use calm_served::{Answer, Asked, Repository, Served};
use calm_stats::samples::{DocumentNames, SamplesOptions, score_samples};
use calm_study::AblationConfig;
use calm_study::plan::Ablation;
use calm_train::task::Task;
use candle_core::Device;

type Take = Box<dyn Fn(&Path, &[u8])>;
type Valid = Box<dyn Fn(&Path, &[u8]) -> bool>;

/// A loader.
pub struct Target {
    pub name: &'static str,
    /// Inputs of a million together.
    pub million: u64,
    pub seeds: Vec<Vec<u8>>,
    /// Makes what lies around the input.
    pub prepare: Box<dyn Fn(&Path)>,
    /// Reads an input, whatever comes of it.
    pub take: Take,
    /// Whether an input is read without an error.
    pub valid: Valid,
}

/// A target that reads with `read` from a folder in which the input lies as `file`.
fn target(
    name: &'static str,
    million: u64,
    file: &'static str,
    seeds: Vec<Vec<u8>>,
    read: impl Fn(&Path) -> bool + 'static,
) -> Target {
    let put = move |folder: &Path, input: &[u8]| {
        let path = folder.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, input).unwrap();
        path
    };
    let read = Rc::new(read);
    let again = read.clone();
    Target {
        name,
        million,
        seeds,
        prepare: Box::new(|_| ()),
        take: Box::new(move |folder, input| {
            read(&put(folder, input));
        }),
        valid: Box::new(move |folder, input| again(&put(folder, input))),
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn files(names: &[&str]) -> Vec<Vec<u8>> {
    names.iter().map(|name| fs::read(root().join(name)).unwrap()).collect()
}

fn texts(all: &[&str]) -> Vec<Vec<u8>> {
    all.iter().map(|text| text.as_bytes().to_vec()).collect()
}

const JSONL: &str =
    "{\"id\": 1, \"text\": \"one\", \"meta\": {\"score\": 0.5}}\n{\"text\": \"\\ud83d\\ude00 two\"}\n";
const TEXT: &str = "A first paragraph of a text.\n\nA second one: é, 中, 😀.\n";

/// Tables by other writers than ours.
fn tables() -> Vec<Vec<u8>> {
    let names = ["pyarrow-zstd", "pyarrow-snappy", "pyarrow-v2", "polars", "duckdb"];
    names
        .map(|name| fs::read(root().join(format!("crates/calm-data/tests/tables/{name}.parquet"))).unwrap())
        .to_vec()
}

/// A hub whose answers are mutated: the commit, the list of files and a file, each on a line of the input.
fn hub() -> Target {
    let repository = Repository::new("owner/name").with("a.txt", "the text of a small file");
    let commit = repository.commit();
    let answer = |path: String| repository.answer(&Asked { path, ..Asked::default() }).body;
    let seed = [
        answer("/api/datasets/owner/name/revision/main".into()),
        answer(format!("/api/datasets/owner/name/tree/{commit}?recursive=true")),
        answer(format!("/datasets/owner/name/resolve/{commit}/a.txt")),
    ];
    let input: Arc<Mutex<Vec<u8>>> = Arc::default();
    let now = input.clone();
    let served = Served::start(move |asked| {
        let part = if asked.path.contains("/revision/") {
            0
        } else {
            1 + usize::from(!asked.path.contains("/tree/"))
        };
        Answer::of(now.lock().unwrap().splitn(3, |b| *b == b'\n').nth(part).unwrap_or_default())
    });
    let read = move |path: &Path| {
        *input.lock().unwrap() = fs::read(path).unwrap();
        let cache = path.with_file_name("hub");
        let _ = fs::remove_dir_all(&cache);
        let patience = Patience { tries: 1, silence: Duration::from_secs(5), ..Patience::default() };
        let (endpoint, beside) = (served.address(), path.with_file_name("evil"));
        let settings =
            Settings { endpoint, cache: cache.clone(), token: None, offline: false, patience, proxy: false };
        let hub = Hub::new(settings).unwrap();
        let repository = calm_hub::Repository::new(Kind::Dataset, "owner/name").unwrap();
        let fetched = hub.list(&repository, "main", &mut |_| true).and_then(|listing| {
            let files = &listing.files;
            files.iter().map(|file| hub.fetch(&listing, file, &mut |_| true)).collect::<Result<Vec<_>, _>>()
        });
        assert!(!beside.exists());
        fetched.is_ok_and(|files| files.iter().all(|file| file.starts_with(&cache) && file.is_file()))
    };
    target("hub", 5_000, "fuzz.hub", vec![seed.join(&b'\n')], read)
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// All loaders.
pub fn targets() -> Vec<Target> {
    let mut all = vec![config(), ablation()];
    all.extend(sources());
    all.extend(weights());
    all.extend(folders());
    all.extend(records());
    all
}

fn config() -> Target {
    // The end of an input may be an override.
    let read = |path: &Path| {
        let Ok(text) = ConfigText::read(path) else { return false };
        let (text, overrides) = match text.text.split_once("\n--set ") {
            Some((text, set)) => (text.to_owned(), vec![set.to_owned()]),
            None => (text.text, Vec::new()),
        };
        match load::<RunConfig>(ConfigText::new("fuzz.yaml", text), &overrides) {
            Ok(resolved) => !resolved.to_yaml().is_empty(),
            Err(e) => {
                assert!(!e.to_string().is_empty());
                false
            }
        }
    };
    let mut seeds = files(&["configs/quickstart.yaml", "configs/baseline.yaml"]);
    let with_override = [&seeds[0][..], b"\n--set train.lm.steps=1e3"].concat();
    seeds.push(with_override);
    target("config", 40_000, "fuzz.yaml", seeds, read)
}

fn ablation() -> Target {
    target("ablation", 20_000, "fuzz.yaml", files(&["configs/ablate-alpha.yaml"]), |path| {
        ConfigText::read(path).is_ok_and(|text| load::<AblationConfig>(text, &[]).is_ok())
    })
}

fn sources() -> Vec<Target> {
    let read = |path: &Path| read_text(path, &mut |_, _| ()).is_ok();
    let array = format!("[{}]", JSONL.trim().replace('\n', ",\n"));
    vec![
        target("text", 100_000, "fuzz.txt", texts(&[TEXT, "\u{feff}x"]), read),
        target("jsonl", 200_000, "fuzz.jsonl", texts(&[JSONL, "{\n\"text\": \"x\", \"y\": NaN\n}"]), read),
        target("json", 80_000, "fuzz.json", texts(&[&array]), read),
        target("gz", 60_000, "fuzz.jsonl.gz", vec![gz(JSONL.as_bytes()), gz(b"")], move |path| {
            // An empty one has no text.
            read(path) || fs::metadata(path).unwrap().len() < 30
        }),
        target("zst", 60_000, "fuzz.txt.zst", vec![zstd::encode_all(TEXT.as_bytes(), 3).unwrap()], read),
        target("parquet", 60_000, "fuzz.parquet", tables(), read),
        hub(),
        // A folder, where other things lie beside.
        target("folder", 30_000, "texts/fuzz.json", texts(&[JSONL, "{\"width\": 1}"]), move |path| {
            let folder = path.parent().unwrap();
            fs::write(folder.join("beside.txt"), TEXT).unwrap();
            read(folder)
        }),
        target("crates", 20_000, "crates.yaml", vec![manifest()], |path| Manifest::read(path).is_ok()),
        target("task", 20_000, "task.yaml", files(&["eval/tasks/wikitext103-test.yaml"]), |path| {
            Task::find(&path.to_string_lossy()).is_ok()
        }),
        target("ranks", 30_000, "ranks", vec![ranks()], |path| calm_data::llama3::read_ranks(path).is_ok()),
        target("samples", 60_000, "samples.jsonl", texts(&[SAMPLES]), |path| {
            let file = std::io::BufReader::new(fs::File::open(path).unwrap());
            score_samples(file.lines(), &SamplesOptions { eos: None }, &mut DocumentNames::default()).is_ok()
        }),
    ]
}

const SAMPLES: &str = "{\"document\": \"a\", \"target\": [1, 2, 3, 4], \"samples\": [[1, 2, 3, 4], [5, 6, 7, 8]]}\n\
    {\"document\": 2, \"target\": [9, 2, 3, 4], \"samples\": [[9, 2, 3, 4], [9, 6, 7, 8]]}\n";

/// The head of the default corpus' manifest with its first crates.
fn manifest() -> Vec<u8> {
    let text = fs::read_to_string(root().join("datasets/crates.yaml")).unwrap();
    let mut manifest: serde_json::Value = serde_yaml::from_str(&text).unwrap();
    manifest["crates"].as_array_mut().unwrap().truncate(2);
    serde_json::to_vec(&manifest).unwrap()
}

fn ranks() -> Vec<u8> {
    use base64::Engine;
    let token = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
    let mut lines: Vec<String> = (0..=255u8).map(|b| format!("{} {b}", token(&[b]))).collect();
    lines.push(format!("{} 256", token(b"ab")));
    lines.join("\n").into_bytes()
}

/// A safetensors file of two tensors.
fn safetensors() -> Vec<u8> {
    let header = br#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"b":{"dtype":"BF16","shape":[2],"data_offsets":[16,20]}}"#;
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header);
    file.extend_from_slice(&[1; 20]);
    file
}

/// A file of `torch.save` with one tensor, by the pickle protocol 2 or 4.
fn torch(protocol: u8) -> Vec<u8> {
    let pickle: Vec<u8> = match protocol {
        2 => [
            &b"\x80\x02}q\x00X\x05\x00\x00\x00modelq\x01ccollections\nOrderedDict\nq\x02)Rq\x03X\x01\x00\x00\x00aq\x04"[..],
            b"ctorch._utils\n_rebuild_tensor_v2\nq\x05((X\x07\x00\x00\x00storageq\x06ctorch\nFloatStorage\nq\x07",
            b"X\x01\x00\x00\x000q\x08X\x03\x00\x00\x00cpuq\x09K\x04tq\x0aQK\x00K\x02K\x02\x86q\x0bK\x02K\x01\x86q\x0c\x89h\x02)Rq\x0dtq\x0eRq\x0fss.",
        ]
        .concat(),
        _ => [
            &b"\x80\x04\x95\xa0\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x01a\x94\x8c\x0ctorch._utils\x94\x8c\x12_rebuild_tensor_v2\x94\x93\x94"[..],
            b"((\x8c\x07storage\x94\x8c\x05torch\x94\x8c\x0cFloatStorage\x94\x93\x94\x8c\x010\x94\x8c\x03cpu\x94K\x04t\x94Q",
            b"K\x00K\x02K\x02\x86\x94K\x02K\x01\x86\x94\x89}\x94t\x94R\x94s.",
        ]
        .concat(),
    };
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default();
    for (name, bytes) in [("data.pkl", &pickle[..]), ("byteorder", b"little"), ("data/0", &[7; 16])] {
        zip.start_file(format!("archive/{name}"), options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn weights() -> Vec<Target> {
    let read = |path: &Path| {
        let beside = path.with_file_name("model-1.safetensors");
        fs::write(beside, safetensors()).unwrap();
        read_weights_folder(path.parent().unwrap()).is_ok()
    };
    let index = "{\"metadata\": {}, \"weight_map\": {\"a\": \"model-1.safetensors\", \"b\": \"model-1.safetensors\"}}";
    vec![
        target("safetensors", 60_000, "model.safetensors", vec![safetensors()], |path| {
            read_weights(path, &Device::Cpu).is_ok()
        }),
        target("published", 20_000, "model.safetensors", vec![safetensors()], read),
        target("shards", 20_000, "model.safetensors.index.json", texts(&[index]), read),
        target("torch", 80_000, "pytorch_model.bin", vec![torch(2), torch(4)], read),
    ]
}

/// Whole folders, with a part of them changed.
fn folders() -> Vec<Target> {
    let golden = root().join("eval/golden/ar_baseline");
    let config = fs::read(golden.join("config.json")).unwrap();
    let mut imported = target("import", 4_000, "in/config.json", vec![config], |path| {
        let (folder, out) = (path.parent().unwrap(), path.parent().unwrap().with_file_name("run"));
        let _ = fs::remove_dir_all(&out);
        let _ = read_config(folder);
        let tokenizer = Some(TokenizerFrom::File(folder.with_file_name("words.json")));
        let options = ImportOptions { folder: folder.into(), out, tokenizer, ..ImportOptions::default() };
        import(&options).is_ok()
    });
    imported.prepare = Box::new(move |folder| {
        fs::create_dir_all(folder.join("in")).unwrap();
        fs::copy(golden.join("model.safetensors"), folder.join("in/model.safetensors")).unwrap();
        fs::write(folder.join("words.json"), words(&golden)).unwrap();
    });
    vec![imported]
}

/// A vocabulary of words with the model's special tokens.
fn words(golden: &Path) -> String {
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(golden.join("config.json")).unwrap()).unwrap();
    let special = [("<s>", "bos_token_id"), ("</s>", "eos_token_id"), ("<pad>", "pad_token_id")];
    let name = |n: u64| {
        let found = special.iter().find(|(_, key)| config[*key].as_u64() == Some(n));
        found.map_or_else(|| format!("w{n}"), |s| s.0.to_owned())
    };
    let size = config["vocab_size"].as_u64().unwrap();
    let vocab: serde_json::Map<_, _> = (0..size).map(|n| (name(n), n.into())).collect();
    serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"},
    })
    .to_string()
}

const METRICS: &str = "{\"stage\":\"lm\",\"step\":0,\"wall_time\":1764000000.0,\"start\":true}\n\
    {\"stage\":\"lm\",\"step\":20,\"wall_time\":1764000003.5,\"values\":{\"loss\":1.25,\"norm\":null}}\n";

fn records() -> Vec<Target> {
    let record =
        serde_json::to_vec_pretty(&RunRecord { history: vec![Default::default()], ..RunRecord::default() });
    let state = serde_json::to_vec_pretty(&StageState { step: 3, ..StageState::default() });
    let mut run = target("run", 30_000, "run.json", vec![record.unwrap()], |path| {
        Run::open(path.parent().unwrap()).and_then(|run| run.record()).is_ok()
    });
    run.prepare = Box::new(|folder| {
        fs::copy(root().join("configs/baseline.yaml"), folder.join("config.yaml")).unwrap();
    });
    let mut checkpoint = target("state", 30_000, "lm/step-3/state.json", vec![state.unwrap()], |path| {
        let run = Run::open(path.ancestors().nth(3).unwrap()).unwrap();
        let checkpoints = run.checkpoints(Stage::Lm);
        checkpoints.step(Which::Best).is_ok() && checkpoints.latest().is_ok()
    });
    checkpoint.prepare = Box::new(|folder| {
        fs::copy(root().join("configs/baseline.yaml"), folder.join("config.yaml")).unwrap();
    });
    vec![
        run,
        checkpoint,
        target("metrics", 80_000, "metrics.jsonl", texts(&[METRICS]), |path| read_lines(path).is_ok()),
        target(
            "plan",
            10_000,
            "plan.json",
            texts(&["{\"variants\": [], \"autoencoders\": [], \"runs\": []}"]),
            |path| {
                let folder = path.parent().unwrap();
                fs::copy(root().join("configs/ablate-alpha.yaml"), folder.join("ablation.yaml")).unwrap();
                Ablation::open(folder).is_ok()
            },
        ),
        target("study", 30_000, "study.json", vec![study()], |path| {
            fs::read_to_string(path).is_ok_and(|text| {
                calm_report::read(&text).is_ok_and(|study| {
                    calm_report::html(&study).is_ok() && !calm_report::csv(&study).is_empty()
                })
            })
        }),
    ]
}

fn study() -> Vec<u8> {
    calm_report::json(&calm_report::Study::default()).unwrap().into_bytes()
}
