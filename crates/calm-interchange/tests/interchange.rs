//! Checkpoints of the reference implementation come in and go out unchanged, and wrong ones are refused with
//! every reason. The folders are the golden fixtures in `eval/golden`. One file, because every test stands on the same
//! house of altered fixture folders.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use calm_autoencoder::Autoencoder;
use calm_config::{ConfigText, Problems, load};
use calm_eval::generate::{Decoding, GenerateOptions, generate};
use calm_interchange::{
    ExportOptions, ImportOptions, ImportReport, TokenizerFrom, export, import, read_weights_folder,
};
use calm_lm::registry::{self, Entry};
use calm_lm::{
    BackboneConfig, Baseline, BaselineConfig, Calm, CalmConfig, DiffusionConfig, FlowConfig, Head,
    HeadConfig, HeadSettings, SpecialIds, TextFormat,
};
use calm_nn::{Builder, Footing, Held, ParamStore, read_weights, write_weights};
use calm_run::checkpoint::Which;
use calm_run::config::RunConfig;
use calm_run::{Begin, Error, Run, Stage};
use calm_train::models;
use calm_train::options::TrainOptions;
use calm_train::pipeline::{prepare_data, train};
use calm_train::plan::Plan;
use calm_train::reporter::Reporter;
use calm_train::scoring::{Means, score_run};
use calm_train::training::{Observer, StepReport, Validation};
use candle_core::{DType, Device, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

type Tensors = BTreeMap<String, Tensor>;

fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../eval/golden").join(case)
}

/// A scratch folder with a copy of a fixture in `in/` that tests may damage.
struct Scratch {
    dir: TempDir,
}

impl Scratch {
    fn new(case: &str) -> Self {
        let s = Self { dir: tempfile::tempdir().unwrap() };
        copy(&golden(case), &s.folder());
        s
    }

    fn folder(&self) -> PathBuf {
        self.dir.path().join("in")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn config(&self) -> Map<String, Value> {
        json_of(&self.folder().join("config.json"))
    }

    fn set(&self, key: &str, value: Value) {
        let mut config = self.config();
        config.insert(key.into(), value);
        fs::write(self.folder().join("config.json"), Value::Object(config).to_string()).unwrap();
    }

    fn tensors(&self) -> Tensors {
        read_weights_folder(&self.folder()).unwrap().tensors
    }

    fn write(&self, tensors: &Tensors) {
        write(&self.folder().join("model.safetensors"), tensors);
    }

    /// Writes a vocabulary of words `w0`, `w1`, ... with the model's special tokens at their ids.
    fn tokenizer(&self) -> PathBuf {
        let config = self.config();
        let id = |key: &str| config.get(key).and_then(Value::as_u64);
        words(&self.path("words.json"), config["vocab_size"].as_u64().unwrap(), |n| {
            [("<s>", "bos_token_id"), ("</s>", "eos_token_id"), ("<pad>", "pad_token_id")]
                .iter()
                .find(|(_, key)| id(key) == Some(n))
                .map(|s| s.0)
        })
    }

    fn options(&self) -> ImportOptions {
        ImportOptions {
            folder: self.folder(),
            out: self.path("run"),
            tokenizer: Some(TokenizerFrom::File(self.tokenizer())),
            ..ImportOptions::default()
        }
    }

    fn import(&self) -> Result<ImportReport, Error> {
        import(&self.options())
    }

    fn refused(&self) -> String {
        let e = self.import().unwrap_err();
        assert!(!self.path("run").exists(), "a refused import leaves nothing behind");
        e.to_string()
    }

    fn export(&self) -> PathBuf {
        let out = self.path("out");
        let run = Run::open(&self.path("run")).unwrap();
        export(&run, &ExportOptions { out: out.clone(), ..Default::default() }).unwrap();
        out
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else if !entry.file_name().to_string_lossy().starts_with("io") {
            fs::write(&target, fs::read(entry.path()).unwrap()).unwrap();
        }
    }
}

fn json_of(path: &Path) -> Map<String, Value> {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn write(path: &Path, tensors: &Tensors) {
    write_weights(path, tensors, &BTreeMap::from([("format".into(), "pt".into())])).unwrap();
}

fn words(path: &Path, size: u64, special: impl Fn(u64) -> Option<&'static str>) -> PathBuf {
    let word = |n: u64| special(n).map_or_else(|| format!("w{n}"), str::to_owned);
    let vocab: Map<String, Value> = (0..size).map(|n| (word(n), json!(n))).collect();
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"},
    });
    fs::write(path, file.to_string()).unwrap();
    path.to_owned()
}

/// Bytes of a tensor in its own format.
fn bits(t: &Tensor) -> Vec<u8> {
    let one = BTreeMap::from([("t".to_owned(), t.clone())]);
    let file = safetensors::serialize(&one, None).unwrap();
    let read = safetensors::SafeTensors::deserialize(&file).unwrap();
    read.tensor("t").unwrap().data().to_vec()
}

fn assert_same(wanted: &Tensors, got: &Tensors) {
    assert_eq!(wanted.keys().collect::<Vec<_>>(), got.keys().collect::<Vec<_>>());
    for (name, t) in wanted {
        assert_eq!((t.dtype(), t.dims()), (got[name].dtype(), got[name].dims()), "{name}");
        assert!(bits(t) == bits(&got[name]), "{name}");
    }
}

fn assert_config_kept(from: &Path, to: &Path) {
    let (from, to) = (json_of(&from.join("config.json")), json_of(&to.join("config.json")));
    for (key, value) in &from {
        assert_eq!(value, &to[key], "{key}");
    }
    assert!(to["architectures"].is_array() && to["model_type"].is_string());
}

fn assert_round_trip(s: &Scratch) -> ImportReport {
    let report = s.import().unwrap();
    let out = s.export();
    assert_same(&s.tensors(), &read_weights_folder(&out).unwrap().tensors);
    assert_config_kept(&s.folder(), &out);
    let bytes = fs::read(out.join("model.safetensors")).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header.metadata().as_ref().unwrap()["format"], "pt", "transformers insists on it");
    let ae = s.folder().join("ae");
    if ae.exists() {
        let wanted = read_weights_folder(&ae).unwrap().tensors;
        assert_same(&wanted, &read_weights_folder(&out.join("ae")).unwrap().tensors);
        assert_config_kept(&ae, &out.join("ae"));
    }
    report
}

#[test]
fn every_model_comes_back_bit_by_bit() {
    for (case, architecture, stages) in [
        ("autoencoder_k4", "Autoencoder", vec![Stage::Autoencoder]),
        ("autoencoder_k2", "Autoencoder", vec![Stage::Autoencoder]),
        ("calm_energy_k4", "EnergyTransformer", Stage::ALL.to_vec()),
        ("calm_energy_k2", "EnergyTransformer", Stage::ALL.to_vec()),
        ("ar_baseline", "LlamaForCausalLM", vec![Stage::Lm]),
    ] {
        let s = Scratch::new(case);
        let _ = fs::remove_file(s.folder().join("pytorch_model.bin"));
        let report = assert_round_trip(&s);
        assert_eq!(report.architecture, architecture);
        assert_eq!(report.stages.iter().map(|s| s.0).collect::<Vec<_>>(), stages);
        // And once more from what was written, with the tokenizer that was written.
        let again = ImportOptions { folder: s.path("out"), out: s.path("again"), ..Default::default() };
        import(&again).unwrap();
        let last = |run: &str| {
            let stage = stages[stages.len() - 1];
            let path = s.path(&format!("{run}/{stage}/step-0/model.safetensors"));
            let (tensors, metadata) = read_weights(&path, &Device::Cpu).unwrap();
            (Tensors::from_iter(tensors), metadata)
        };
        let ((a, about_a), (b, about_b)) = (last("run"), last("again"));
        assert_same(&a, &b);
        assert_eq!(about_a.get("tokenizer"), about_b.get("tokenizer"));
    }
}

#[test]
fn flow_and_diffusion_checkpoints_come_back_bit_by_bit() {
    let heads: [(&str, HeadConfig); 2] = [
        ("FlowTransformer", FlowConfig { blocks: Some(2), repeats: 4, ..FlowConfig::reference() }.into()),
        (
            "DiffusionTransformer",
            DiffusionConfig { blocks: Some(2), repeats: 4, ..DiffusionConfig::reference() }.into(),
        ),
    ];
    for (architecture, head) in heads {
        let s = Scratch::new("calm_energy_k4");
        s.set("architectures", json!([architecture]));
        // The fixture with another head, whose weights are drawn here.
        let backbone =
            BackboneConfig { layers: 2, hidden_size: 32, intermediate_size: 36, ..Default::default() };
        let ae_config = calm_autoencoder::AutoencoderConfig {
            latent_size: Some(8),
            hidden_size: 18,
            intermediate_size: 24,
            ..Default::default()
        };
        let store = ParamStore::new(&Device::Cpu, DType::F32, 5);
        let own = ParamStore::new(&Device::Cpu, DType::F32, 6);
        let ae = Autoencoder::with_store(&own, &ae_config, 4, 71, 1).unwrap();
        let special = SpecialIds { bos: 1, eos: 34, pad: 70 };
        let text = TextFormat { vocab_size: 71, special, context: 64, bos_chunk: false };
        let config = CalmConfig {
            chunk_size: 4,
            autoencoder: ae_config,
            backbone,
            head: head.clone(),
            decode: Default::default(),
            likelihood: None,
        };
        Calm::new(&store, &config, ae, &text).unwrap();
        let mut tensors = s.tensors();
        tensors.retain(|n, _| !n.starts_with("generative_head") && !n.starts_with("mlp_generator"));
        tensors.extend(
            store.snapshot().unwrap().into_iter().filter(|(n, _)| n.starts_with("generative_head.net")),
        );
        s.write(&tensors);
        assert_round_trip(&s);
        let run = Run::open(&s.path("run")).unwrap();
        assert_eq!(run.config.model.head(), Some(&head));
    }
}

#[test]
fn a_pytorch_file_is_the_same_model_as_its_safetensors() {
    let s = Scratch::new("autoencoder_k4");
    let wanted = s.tensors();
    fs::remove_file(s.folder().join("model.safetensors")).unwrap();
    let read = read_weights_folder(&s.folder()).unwrap();
    assert!(read.files[0].ends_with("pytorch_model.bin"));
    assert_same(&wanted, &read.tensors);
    assert_round_trip(&s);
}

/// Cuts the weights in two shards with an index.
fn shard(s: &Scratch) -> (PathBuf, PathBuf) {
    let tensors = s.tensors();
    fs::remove_file(s.folder().join("model.safetensors")).unwrap();
    let _ = fs::remove_file(s.folder().join("pytorch_model.bin"));
    let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let place = |i: usize| names[i % 2];
    let index: Map<String, Value> =
        tensors.keys().enumerate().map(|(i, n)| (n.clone(), json!(place(i)))).collect();
    for (i, name) in names.iter().enumerate() {
        let mine = tensors.clone().into_iter().enumerate().filter(|(j, _)| j % 2 == i).map(|x| x.1).collect();
        write(&s.folder().join(name), &mine);
    }
    let file = json!({"metadata": {"total_size": 1}, "weight_map": index});
    let path = s.folder().join("model.safetensors.index.json");
    fs::write(&path, file.to_string()).unwrap();
    (path, s.folder().join(names[1]))
}

#[test]
fn shards_with_an_index_are_one_model() {
    let s = Scratch::new("calm_energy_k2");
    let wanted = s.tensors();
    shard(&s);
    assert_same(&wanted, &s.tensors());
    assert_round_trip(&s);

    let s = Scratch::new("autoencoder_k4");
    let names: Vec<String> = s.tensors().into_keys().collect();
    fs::remove_file(s.folder().join("model.safetensors")).unwrap();
    let shard = "pytorch_model-00001-of-00001.bin";
    fs::rename(s.folder().join("pytorch_model.bin"), s.folder().join(shard)).unwrap();
    let index: Map<String, Value> = names.iter().map(|n| (n.clone(), json!(shard))).collect();
    let file = json!({"weight_map": index}).to_string();
    fs::write(s.folder().join("pytorch_model.bin.index.json"), file).unwrap();
    assert_round_trip(&s);
}

#[test]
fn an_index_that_does_not_fit_its_shards_is_refused() {
    let s = Scratch::new("ar_baseline");
    let (index, second) = shard(&s);
    let mut changed = json_of(&index);
    let map = changed["weight_map"].as_object_mut().unwrap();
    map.insert("nowhere".into(), json!("model-00001-of-00002.safetensors"));
    map.insert("outside".into(), json!("../model.safetensors"));
    map.remove("lm_head.weight");
    fs::write(&index, Value::Object(changed).to_string()).unwrap();
    let e = s.refused();
    for wanted in [
        "lacks nowhere",
        "\"../model.safetensors\" is not the name",
        "lm_head.weight, which the index does not",
    ] {
        assert!(e.contains(wanted), "{wanted}: {e}");
    }
    fs::remove_file(second).unwrap();
    assert!(s.refused().contains("model-00002-of-00002.safetensors is missing"));
}

#[test]
fn narrow_numbers_keep_their_format_tensor_by_tensor() {
    for (case, name) in [("calm_energy_k4", "bfloat16"), ("ar_baseline", "float16")] {
        let s = Scratch::new(case);
        let narrow = if name == "bfloat16" { DType::BF16 } else { DType::F16 };
        s.set("torch_dtype", json!(name));
        let cast = |t: Tensors, every: usize| -> Tensors {
            t.into_iter()
                .enumerate()
                .map(|(i, (n, t))| (n, if i % every == 0 { t.to_dtype(narrow).unwrap() } else { t }))
                .collect()
        };
        // All of the language model; of the autoencoder's folder, which holds more than `ae_model.*` then, none.
        s.write(&cast(s.tensors(), 1));
        assert_round_trip(&s);
        // A mixture, in a model whose tensors have one name each.
        let s = Scratch::new("ar_baseline");
        s.write(&cast(s.tensors(), 3));
        assert_round_trip(&s);
        let run = Run::open(&s.path("run")).unwrap();
        let all = ExportOptions { out: s.path("all"), dtype: Some(narrow), ..Default::default() };
        export(&run, &all).unwrap();
        assert!(read_weights_folder(&s.path("all")).unwrap().tensors.values().all(|t| t.dtype() == narrow));
        assert_eq!(json_of(&s.path("all/config.json"))["torch_dtype"], name);
    }
}

#[test]
fn one_name_of_an_aliased_tensor_is_enough_and_both_are_written() {
    for missing in
        ["generative_head", "mlp_generator", "ae_model.decoder.lm_head", "ae_model.encoder.embed", "ae_model"]
    {
        let s = Scratch::new("calm_energy_k4");
        let wanted = s.tensors();
        let mut fewer = wanted.clone();
        fewer.retain(|n, _| !n.starts_with(missing));
        assert!(fewer.len() < wanted.len());
        s.write(&fewer);
        s.import().unwrap();
        assert_same(&wanted, &read_weights_folder(&s.export()).unwrap().tensors);
    }
    for missing in ["decoder.lm_head_weight", "encoder.embed_tokens.weight"] {
        let s = Scratch::new("autoencoder_k2");
        let wanted = s.tensors();
        let mut fewer = wanted.clone();
        fewer.remove(missing).unwrap();
        s.write(&fewer);
        s.import().unwrap();
        assert_same(&wanted, &read_weights_folder(&s.export()).unwrap().tensors);
    }
}

#[test]
fn the_autoencoder_may_come_with_the_language_model_alone() {
    let s = Scratch::new("calm_energy_k4");
    let wanted = read_weights_folder(&s.folder().join("ae")).unwrap().tensors;
    fs::remove_dir_all(s.folder().join("ae")).unwrap();
    let report = assert_round_trip(&s);
    assert!(report.notes.iter().any(|n| n.contains("sizes come from ae_model.*")), "{:?}", report.notes);
    assert_same(&wanted, &read_weights_folder(&s.path("out/ae")).unwrap().tensors);
}

#[test]
fn an_autoencoder_of_another_place_can_be_named() {
    let s = Scratch::new("calm_energy_k4");
    fs::rename(s.folder().join("ae"), s.path("elsewhere")).unwrap();
    let mut tensors = s.tensors();
    tensors.retain(|n, _| !n.starts_with("ae_model."));
    s.write(&tensors);
    assert!(s.refused().contains("there is no autoencoder"));
    import(&ImportOptions { autoencoder: Some(s.path("elsewhere")), ..s.options() }).unwrap();
}

#[test]
fn names_of_one_tensor_that_disagree_are_refused() {
    let s = Scratch::new("calm_energy_k4");
    let mut tensors = s.tensors();
    for name in
        ["generative_head.norm_noise.bias", "ae_model.decoder.lm_head_weight", "ae_model.encoder.norm.weight"]
    {
        let other = (&tensors[name] + 0.5).unwrap();
        tensors.insert(name.into(), other);
    }
    s.write(&tensors);
    let e = s.refused();
    assert!(
        e.contains("mlp_generator.norm_noise.bias") && e.contains("generative_head.norm_noise.bias"),
        "{e}"
    );
    assert!(e.contains("must be equal") && e.contains("5e-1"), "{e}");
    assert!(e.contains("ae_model.decoder.lm_head_weight"), "{e}");
    // The weights and the folder that ae_path names.
    assert!(
        e.contains("ae_model.encoder.norm.weight") && e.contains("ae/model.safetensors: encoder.norm.weight"),
        "{e}"
    );
}

#[test]
fn every_mismatch_is_listed_at_once() {
    let s = Scratch::new("calm_energy_k4");
    let mut tensors = s.tensors();
    tensors.remove("transformer.norm.weight").unwrap();
    tensors.insert(
        "transformer.layers.2.self_attn.q_proj.weight".into(),
        Tensor::zeros((32, 32), DType::F32, &Device::Cpu).unwrap(),
    );
    tensors.insert("embed_proj.0.weight".into(), Tensor::zeros((64, 96), DType::F32, &Device::Cpu).unwrap());
    tensors.insert("embed_proj.0.bias".into(), Tensor::zeros(64, DType::F64, &Device::Cpu).unwrap());
    s.write(&tensors);
    let mut ae = read_weights_folder(&s.folder().join("ae")).unwrap().tensors;
    ae.insert("encoder.norm.weight".into(), Tensor::zeros(19, DType::F32, &Device::Cpu).unwrap());
    write(&s.folder().join("ae/model.safetensors"), &ae);
    let tokenizer = words(&s.path("short.json"), 60, |n| (n == 1).then_some("w_bos"));
    let options = ImportOptions { tokenizer: Some(TokenizerFrom::File(tokenizer)), ..s.options() };
    let e = import(&options).unwrap_err().to_string();
    for wanted in [
        "transformer.norm.weight [32] is missing",
        "transformer.layers.2.self_attn.q_proj.weight is not a parameter",
        "embed_proj.0.weight has the shape [64, 96], config.json asks for [64, 128]",
        "embed_proj.0.bias is F64",
        "ae/model.safetensors: encoder.norm.weight has the shape [19]",
        "short.json: the tokenizer has 63 ids, the model 71",
        "short.json: BOS 1 is the text",
        "problems:",
    ] {
        assert!(e.contains(wanted), "{wanted}: {e}");
    }
    assert!(!s.path("run").exists());
}

#[test]
fn sizes_of_configuration_autoencoder_and_tensors_are_compared() {
    let s = Scratch::new("calm_energy_k4");
    s.set("latent_size", json!(9));
    s.set("num_hidden_layers", json!(3));
    let e = s.refused();
    assert!(e.contains("latent_size is 9 in") && e.contains("and 8 in"), "{e}");
    assert!(e.contains("transformer.layers.2.mlp.up_proj.weight [36, 32] is missing"), "{e}");
}

#[test]
fn settings_that_cannot_be_represented_are_reported() {
    let s = Scratch::new("ar_baseline");
    s.set("made_up", json!([1, 2]));
    let report = s.import().unwrap();
    assert!(report.notes.iter().any(|n| n.contains("made_up = [1,2]")), "{:?}", report.notes);
    assert_eq!(json_of(&s.export().join("config.json"))["made_up"], json!([1, 2]));

    let s = Scratch::new("ar_baseline");
    s.set("rope_scaling", json!({"factor": 8.0}));
    s.set("hidden_act", json!("gelu"));
    s.set("tie_word_embeddings", json!(true));
    s.set("num_attention_heads", json!("four"));
    let e = s.refused();
    for wanted in [
        "rope_scaling is {\"factor\":8.0}",
        "hidden_act is \"gelu\"",
        "tie_word_embeddings is true",
        "num_attention_heads is \"four\"",
    ] {
        assert!(e.contains(wanted), "{wanted}: {e}");
    }

    // Newer files keep the base of the rotary angles in a block.
    let s = Scratch::new("ar_baseline");
    s.set("rope_theta", Value::Null);
    s.set("rope_parameters", json!({"rope_theta": 5000.0, "rope_type": "default"}));
    s.import().unwrap();
    assert_eq!(json_of(&s.export().join("config.json"))["rope_theta"], json!(5000.0));
    for (key, value) in [
        ("rope_parameters", json!({"rope_theta": 5000.0, "rope_type": "yarn", "factor": 4.0})),
        ("rope_parameters", json!({"rope_theta": 1.5})),
        ("rope_parameters", json!({"rope_theta": "many"})),
        ("rope_parameters", json!(3)),
        ("rope_scaling", json!({"type": "linear", "factor": 2.0})),
    ] {
        let s = Scratch::new("ar_baseline");
        s.set("rope_theta", json!(1e4));
        s.set(key, value.clone());
        assert!(s.refused().contains(&format!("{key} is {value}")), "{}", s.refused());
    }

    // A model far larger than its weights is told before one is made in memory.
    for (key, value) in
        [("vocab_size", 4_000_000), ("intermediate_size", 4_000_000), ("num_hidden_layers", 4_000_000)]
    {
        let s = Scratch::new("ar_baseline");
        let options = s.options();
        s.set(key, json!(value));
        let e = import(&options).unwrap_err().to_string();
        assert!(e.contains("describes a model of") && e.contains("the weights hold"), "{key}: {e}");
    }

    let s = Scratch::new("autoencoder_k2");
    s.set("num_encoder_layers", json!(3));
    assert!(s.refused().contains("encoder_layers: is 3: must be even"), "{}", s.refused());
    s.set("architectures", json!(["BertModel"]));
    assert!(s.refused().contains("architectures is [\"BertModel\"]"));
}

#[test]
fn damaged_files_are_named_and_nothing_is_written() {
    for (case, file, why) in [
        ("calm_energy_k2", "model.safetensors", "truncated"),
        ("calm_energy_k2", "ae/model.safetensors", "truncated"),
        ("autoencoder_k4", "pytorch_model.bin", "not a whole PyTorch checkpoint"),
        ("ar_baseline", "config.json", "not a JSON object"),
    ] {
        let s = Scratch::new(case);
        if file.ends_with(".bin") {
            fs::remove_file(s.folder().join("model.safetensors")).unwrap();
        }
        let options = s.options();
        let path = s.folder().join(file);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() * 2 / 3]).unwrap();
        let e = import(&options).unwrap_err();
        let told = format!("{e}; {}", e.remedy().unwrap_or_default());
        assert!(told.contains(file) && told.contains(why), "{told}");
        assert!(!s.path("run").exists());
    }
    let s = Scratch::new("ar_baseline");
    let options = s.options();
    fs::remove_file(s.folder().join("model.safetensors")).unwrap();
    assert!(import(&options).unwrap_err().to_string().contains("holds no weights"));
}

#[test]
fn llama_3_ranks_serve_with_and_without_a_pad_row() {
    use base64::Engine;
    let encode = |b: u8| base64::engine::general_purpose::STANDARD.encode([b]);
    // 256 ranks, 256 special tokens; our PAD would come after them.
    let ranks: String = (0..=255u8).map(|b| format!("{} {b}\n", encode(b))).collect();
    let store = |vocab: usize| {
        let store = ParamStore::new(&Device::Cpu, DType::F32, 1);
        let special = SpecialIds { bos: 256, eos: 257, pad: 0 };
        let backbone = BackboneConfig {
            layers: 1,
            hidden_size: 8,
            intermediate_size: 8,
            heads: 2,
            ..Default::default()
        };
        let text = TextFormat { vocab_size: vocab, special, context: 16, bos_chunk: false };
        Baseline::new(&store, &BaselineConfig { backbone }, &text).unwrap();
        store.snapshot().unwrap()
    };
    for (vocab, pad) in [(513, json!(512)), (512, Value::Null), (512, json!(257))] {
        let s = Scratch::new("ar_baseline");
        for (key, value) in [
            ("vocab_size", json!(vocab)),
            ("hidden_size", json!(8)),
            ("intermediate_size", json!(8)),
            ("num_hidden_layers", json!(1)),
            ("num_attention_heads", json!(2)),
            ("num_key_value_heads", json!(2)),
            ("bos_token_id", json!(256)),
            ("eos_token_id", json!([257, 300])),
            ("pad_token_id", pad.clone()),
        ] {
            s.set(key, value);
        }
        s.write(&store(vocab));
        fs::write(s.path("ranks.model"), &ranks).unwrap();
        let llama3 = calm_data::Llama3Config { ranks: s.path("ranks.model"), config: None };
        let options = ImportOptions {
            folder: s.folder(),
            out: s.path("run"),
            tokenizer: Some(TokenizerFrom::Llama3(llama3)),
            ..ImportOptions::default()
        };
        let report = import(&options).unwrap();
        let t = Run::open(&s.path("run")).unwrap().tokenizer().unwrap();
        let special = t.special();
        assert_eq!((t.vocab_size(), special.bos, special.eos), (vocab, 256, 257));
        assert_eq!(special.pad, if vocab == 513 { 512 } else { 256 });
        assert_eq!(report.notes.iter().any(|n| n.contains("no PAD")), vocab == 512, "{:?}", report.notes);
        assert!(report.notes.iter().any(|n| n.contains("eos_token_id is a list")));
        assert_eq!(t.decode(&t.encode("häß").unwrap()), "häß");
        assert_same(&s.tensors(), &read_weights_folder(&s.export()).unwrap().tensors);
        assert_config_kept(&s.folder(), &s.path("out"));
    }
}

#[test]
fn folders_that_hold_something_are_not_written_over() {
    let s = Scratch::new("ar_baseline");
    s.import().unwrap();
    assert!(s.import().unwrap_err().to_string().contains("is not empty"));
    let run = Run::open(&s.path("run")).unwrap();
    let again = ExportOptions { out: s.folder(), ..Default::default() };
    assert!(export(&run, &again).unwrap_err().to_string().contains("is not empty"));
}

struct Silent;

impl Observer for Silent {
    fn begin(&mut self, _: Stage, _: u64, _: u64) {}
    fn step(&mut self, _: &StepReport) {}
    fn validation(&mut self, _: Stage, _: u64, _: &Validation) {}
    fn end(&mut self, _: Stage, _: &calm_run::checkpoint::StageState) {}
    fn should_stop(&self) -> bool {
        false
    }
}

impl Reporter for Silent {
    fn data(&mut self, _: &calm_data::Progress) {}
    fn data_done(&mut self) {}
    fn note(&mut self, _: &str) {}
    fn plan(&mut self, _: &Plan) {}
    fn scoring(&mut self, _: &str, _: usize, _: usize) {}
    fn warn(&mut self, _: &str) {}
}

/// Documents of words.
fn text(path: &Path) {
    let lines: String = (0..120)
        .map(|d| {
            let words: Vec<String> = (0..20).map(|i| format!("w{}", (d * 7 + i * i) % 30 + 3)).collect();
            format!("{}\n", json!({"text": words.join(" ")}))
        })
        .collect();
    fs::write(path, lines).unwrap();
}

#[test]
fn an_imported_run_generates_evaluates_and_trains_further() {
    for case in ["calm_energy_k4", "calm_energy_k2", "ar_baseline"] {
        let s = Scratch::new(case);
        s.set("max_position_embeddings", json!(16));
        let bf16: Tensors =
            s.tensors().into_iter().map(|(n, t)| (n, t.to_dtype(DType::BF16).unwrap())).collect();
        s.write(&bf16);
        text(&s.path("text.jsonl"));
        import(&ImportOptions { data: Some(s.path("text.jsonl")), ..s.options() }).unwrap();
        let run = Run::open(&s.path("run")).unwrap();
        let config = s.config();
        let tokenizer = run.tokenizer().unwrap();
        let special = tokenizer.special();
        assert_eq!(u64::from(special.eos), config["eos_token_id"].as_u64().unwrap());
        assert_eq!(tokenizer.vocab_size() as u64, config["vocab_size"].as_u64().unwrap());
        assert!(!run.config.bos_chunk);
        if let Some(autoencoder) = run.config.model.autoencoder() {
            assert_eq!(autoencoder.dropped_token_id, Some(0));
        }

        let prompt = tokenizer.encode("w3 w4 w5 w6").unwrap();
        let how = GenerateOptions { max_tokens: 24, decoding: Decoding::Plain, seed: 3, remainder_budget: 1 };
        let cpu = Device::Cpu;
        let model = models::load_lm(&run, Which::Best, &tokenizer, &cpu).unwrap();
        let report = generate(&*model.sampler(), &prompt, &how, |_| true).unwrap();
        assert!(report.draws > 0);

        let cache = s.path("cache");
        let corpus = prepare_data(&run, &cache, &mut Silent).unwrap();
        let means = Means::alone(&run.config.eval, &cpu);
        let found = score_run(&run, &corpus, &corpus.validation, Which::Best, &means, &mut Silent).unwrap();
        assert_eq!(found.brier.step, 0);

        let mut tree = serde_json::to_value(&run.config).unwrap();
        tree["train"]["lm"]["steps"] = json!(2);
        tree["train"]["lm"]["warmup_steps"] = json!(0);
        let yaml = serde_yaml::to_string(&tree).unwrap();
        let resolved = load::<RunConfig>(ConfigText::new("changed", yaml), &[]).unwrap();
        let run = Run::create(&s.path("run"), &resolved, Begin::Resume).unwrap();
        let options = TrainOptions { resume: true, cache, ..TrainOptions::default() };
        train(&run, &options, &cpu, &mut Silent).unwrap();
        assert_eq!(run.checkpoints(Stage::Lm).latest().unwrap().unwrap().step, 2);
        if case != "ar_baseline" {
            assert_eq!(run.checkpoints(Stage::Autoencoder).steps(), [0], "the autoencoder stays as it is");
        }
        let rounded = export(&run, &ExportOptions { out: s.path("trained"), ..Default::default() }).unwrap();
        assert!(rounded.notes.iter().any(|n| n.contains("rounded")), "{:?}", rounded.notes);
        let wide = ExportOptions { out: s.path("wide"), dtype: Some(DType::F32), ..Default::default() };
        assert!(export(&run, &wide).unwrap().notes.iter().all(|n| !n.contains("rounded")));
    }
}

#[test]
fn an_imported_model_may_be_given_its_text_later() {
    let s = Scratch::new("ar_baseline");
    s.import().unwrap();
    let run = Run::open(&s.path("run")).unwrap();
    let changed = |key: &str, value: Value| {
        let mut tree = serde_json::to_value(&run.config).unwrap();
        *tree.pointer_mut(key).unwrap() = value;
        load::<RunConfig>(ConfigText::new("changed", serde_yaml::to_string(&tree).unwrap()), &[]).unwrap()
    };
    let other = changed("/data/source", json!({"path": "text.txt"}));
    assert!(Run::create(&s.path("run"), &other, Begin::Resume).is_ok());
    assert!(Run::create(&s.path("run"), &changed("/seed", json!(9)), Begin::Resume).is_err());
}

/// A head that says nothing of published checkpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
struct Unpublished {}

impl HeadSettings for Unpublished {
    fn name(&self) -> &'static str {
        "unpublished"
    }

    fn validate(&self, _: &mut Problems) {}

    fn build(&self, _: &Builder, _: &BackboneConfig, _: usize) -> candle_core::Result<Box<dyn Head>> {
        candle_core::bail!("nobody builds it here")
    }

    fn parameters(&self, _: &BackboneConfig, _: usize) -> u64 {
        0
    }

    fn pass_flops(&self, _: &BackboneConfig, _: usize) -> f64 {
        0.0
    }

    fn training_passes(&self) -> usize {
        1
    }

    fn held(&self, _: &BackboneConfig, _: usize, _: f64, _: Footing) -> Held {
        Held::default()
    }
}

#[test]
fn what_has_no_published_form_is_told_so() {
    registry::add(Entry::head::<Unpublished>("unpublished", "No published form."));
    let s = Scratch::new("calm_energy_k4");
    s.import().unwrap();
    let path = s.path("run").join("config.yaml");
    let mut tree: Value = serde_yaml::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    tree["model"]["calm"]["head"] = json!({ "unpublished": {} });
    fs::write(&path, serde_yaml::to_string(&tree).unwrap()).unwrap();
    let run = Run::open(&s.path("run")).unwrap();
    let options = ExportOptions { out: s.path("out"), ..Default::default() };
    let e = export(&run, &options).unwrap_err().to_string();
    assert!(e.contains("a CALM with the head unpublished has no published form"), "{e}");
    assert!(!s.path("out").exists());
    // Its autoencoder has one all the same.
    fs::remove_dir_all(s.path("run").join("lm")).unwrap();
    assert_eq!(export(&run, &options).unwrap().architecture, "Autoencoder");
}
