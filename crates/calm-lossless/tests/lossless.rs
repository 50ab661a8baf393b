//! Any file comes back, from every family; and what that rests on: the same bits in one pass and token by token, alone and
//! side by side, for any number of threads and any width of vectors.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::process::Command;

use calm_autoencoder::Autoencoder;
use calm_data::{Tokenizer, bpe};
use calm_kernels::{NoiseKey, RowId, philox};
use calm_lm::{ChunkBatch, Coding, LanguageModel, ModelConfig, SpecialIds, TextFormat};
use calm_lossless::{Coder, Error, Kind, Options};
use calm_nn::ParamStore;
use candle_core::{DType, Device, Tensor};
use proptest::prelude::*;

const TEXT: &str = "It was the best of times, it was the worst of times; é, €, 😀.\nfn main() { println!(\"{}\", 2 + 2); }\n";

/// Settings of each family that has probabilities.
fn families() -> [(&'static str, ModelConfig); 6] {
    let backbone = r#""backbone": {"layers": 2, "hidden_size": 24, "intermediate_size": 40, "heads": 2}"#;
    let autoencoder = r#""autoencoder": {"latent_size": 8, "hidden_size": 16, "intermediate_size": 24}"#;
    let settings = |text: String| serde_json::from_str(&text).unwrap();
    let concepts = |by: &str, pooling: &str, keys: &str| {
        format!(
            r#"{{"dlcm": {{"tokens": {{"layers": 2, "hidden_size": 24, "intermediate_size": 40, "heads": 2}},
                "concepts": {{"layers": 1, "hidden_size": 36, "intermediate_size": 48, "heads": 3}},
                "boundaries": {{"by": {by}, "ratio": 2}}, "pooling": "{pooling}", "cross": {{"keys": "{keys}"}}}}}}"#
        )
    };
    [
        ("baseline", settings(format!(r#"{{"baseline": {{{backbone}}}}}"#))),
        ("patch", settings(format!(r#"{{"patch": {{"chunk_size": 4, {backbone}}}}}"#))),
        ("multi-token", settings(format!(r#"{{"multi-token": {{"chunk_size": 3, {backbone}}}}}"#))),
        (
            "calm",
            settings(format!(
                r#"{{"calm": {{"chunk_size": 4, {autoencoder}, {backbone}, "decode": "sample",
                    "head": {{"energy": {{"noise_size": 6}}}}}}}}"#
            )),
        ),
        ("dlcm", settings(concepts(r#"{"learnt": {}}"#, "boundary", "concepts"))),
        ("dlcm", settings(concepts(r#"{"cosine": {"threshold": 0.45}}"#, "closed", "replicated"))),
    ]
}

fn tokenizer() -> Tokenizer {
    // Tokens of several bytes, so that a model that has learnt nothing still makes text shorter.
    bpe::train(&[&TEXT.repeat(3)], 330, &mut |_| ()).unwrap()
}

/// Far from the start, where every token is about as likely as any other.
fn randomise(store: &ParamStore) {
    for (name, param) in store.params() {
        let n = param.var.elem_count();
        let rows: Vec<RowId> = (0..n as u32).map(|example| RowId { example, position: 0 }).collect();
        let noise = philox::normal(NoiseKey::new(5, &name, 0), &rows, 1, 1);
        let noise = Tensor::from_vec(noise, param.var.dims(), &Device::Cpu).unwrap();
        param.var.set(&((noise * 0.15).unwrap() + param.var.as_tensor()).unwrap()).unwrap();
    }
}

fn model(config: &ModelConfig, context: usize, bos: bool) -> Box<dyn LanguageModel> {
    let tokenizer = tokenizer();
    let special = tokenizer.special();
    let special = SpecialIds { bos: special.bos, eos: special.eos, pad: special.pad };
    let text = TextFormat { vocab_size: tokenizer.vocab_size(), special, context, bos_chunk: bos };
    let autoencoder = config.autoencoder().map(|settings| {
        let store = ParamStore::new(&Device::Cpu, DType::F32, 1);
        let k = config.chunk_size();
        let model = Autoencoder::with_store(&store, settings, k, text.vocab_size, special.bos).unwrap();
        randomise(&store);
        model
    });
    let store = ParamStore::new(&Device::Cpu, DType::F32, 2);
    let model = config.build(&store, &text, autoencoder).unwrap();
    randomise(&store);
    model
}

fn options(family: &str, windows: usize) -> Options {
    Options { windows: Some(windows), overlap: None, draws: (family == "calm").then_some(3) }
}

fn round(coder: &Coder<'_>, file: &[u8], options: &Options) -> Vec<u8> {
    let done = coder.compress(file, options).unwrap();
    let back = coder.decompress(&done.bytes).unwrap();
    assert!(back == file, "{} bytes did not come back with {options:?}", file.len());
    // Whatever it is, it does not become longer than its header.
    assert!(done.bytes.len() <= file.len() + 64 + 40 * done.header.blocks.len());
    done.bytes
}

#[test]
fn files_at_the_edges_come_back_from_every_family() {
    let tokenizer = tokenizer();
    let all: Vec<u8> = (0..=255).collect();
    let mixed = [TEXT.as_bytes(), &[0xff, 0xfe, 0, 0xc3], &all, TEXT.repeat(30).as_bytes()].concat();
    let nasty = "<|bos|><|eos|></s>\u{0}\u{fffd}\u{feff}e\u{301}\r\n\t  ﬁ".repeat(3);
    for (name, config) in families() {
        for bos in [true, false] {
            let model = model(&config, 10, bos);
            let coder = Coder::new(model.as_ref(), &tokenizer, name).unwrap();
            let files =
                [b"".as_slice(), b"a", b"\xff", b"ab", &all, &mixed, nasty.as_bytes(), TEXT.as_bytes()];
            for file in files {
                for windows in [1, 3, 8] {
                    round(&coder, file, &options(name, windows));
                }
                for overlap in [1, 5, 9] {
                    round(&coder, file, &Options { overlap: Some(overlap), ..options(name, 1) });
                }
            }
        }
    }
}

#[test]
fn blocks_of_just_less_and_just_more_than_the_most_come_back() {
    let (name, config) = &families()[0];
    let (tokenizer, model) = (tokenizer(), model(config, 200, true));
    let coder = Coder::new(model.as_ref(), &tokenizer, name).unwrap();
    let long = TEXT.repeat(1000);
    for length in [(1 << 16) - 1, 1 << 16, (1 << 16) + 1] {
        let noise: Vec<u8> =
            (0..length as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
        round(&coder, &noise, &options(name, 1));
        round(&coder, &long.as_bytes()[..length], &options(name, 1));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_file_comes_back(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        text in "\\PC{0,200}",
        family in 0usize..6,
        windows in prop::sample::select(vec![1usize, 3, 8]),
        bos in any::<bool>(),
    ) {
        let (name, config) = &families()[family];
        let (tokenizer, model) = (tokenizer(), model(config, 10, bos));
        let coder = Coder::new(model.as_ref(), &tokenizer, name).unwrap();
        for file in [&bytes[..], text.as_bytes(), &[text.as_bytes(), &bytes].concat()] {
            round(&coder, file, &options(name, windows));
        }
    }
}

/// Hidden states after each of these chunks, and the weights of the chunks after them.
fn asked(coding: &dyn Coding, hidden: &Tensor, chunks: &[Vec<u32>], from: usize) -> Vec<Vec<Vec<u64>>> {
    let rows: Vec<RowId> =
        (from..from + chunks.len()).map(|position| RowId { example: 0, position: position as u32 }).collect();
    let mut asked = coding.chunks(hidden, &rows, 3).unwrap();
    let mut out = Vec::new();
    for place in 0..coding.chunk_size() {
        let before: Option<Vec<u32>> =
            (place > 0).then(|| chunks.iter().map(|chunk| chunk[place - 1]).collect());
        out.push(asked.next(before.as_deref()).unwrap());
    }
    out
}

#[test]
fn one_pass_and_step_by_step_have_the_same_bits() {
    for (name, config) in families() {
        let model = model(&config, 80, true);
        let coding = model.coding().unwrap();
        coding.stores().iter().for_each(|store| store.context().fix());
        let k = coding.chunk_size();
        let ids: Vec<u32> = (0..70 * k as u32).map(|i| i * i % 89).collect();
        let chunks: Vec<Vec<u32>> = ids.chunks(k).map(<[u32]>::to_vec).collect();
        let whole = coding.texts(1).read(&ids, &[(0, 70)]).unwrap();
        let of_whole = asked(coding.as_ref(), &whole.squeeze(0).unwrap(), &chunks, 0);
        let (mut alone, mut both_texts) = (coding.texts(1), coding.texts(2));
        let bits = |x: &Tensor| -> Vec<u32> {
            x.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
        };
        for (at, chunk) in chunks.iter().enumerate() {
            let step = alone.read(chunk, &[(0, 1)]).unwrap();
            // Another text stands before it; its length changes.
            let both = [&ids[..(1 + at % 3) * k], chunk].concat();
            let side = both_texts.read(&both, &[(0, 1 + at % 3), (1, 1)]).unwrap();
            let side = side.narrow(1, 1 + at % 3, 1).unwrap();
            let one = whole.narrow(1, at, 1).unwrap();
            assert!(bits(&step) == bits(&one), "{name}, chunk {at}");
            assert!(bits(&side) == bits(&one), "{name}, chunk {at} beside another text");
            let of_step = asked(coding.as_ref(), &step.squeeze(0).unwrap(), std::slice::from_ref(chunk), at);
            for place in 0..k {
                assert!(of_step[place][0] == of_whole[place][at], "{name}, chunk {at}, token {place}");
            }
        }
    }
}

/// Everything that could change with the machine, in one number a family.
fn of_all_families() -> String {
    let tokenizer = tokenizer();
    let of_family = |(name, config): (&str, ModelConfig)| {
        let model = model(&config, 40, true);
        let coder = Coder::new(model.as_ref(), &tokenizer, name).unwrap();
        let done = coder.compress(TEXT.repeat(12).as_bytes(), &options(name, 3)).unwrap();
        assert!(done.header.blocks.iter().any(|block| block.kind == Kind::Tokens));
        assert_eq!(coder.decompress(&done.bytes).unwrap(), TEXT.repeat(12).as_bytes());
        fnv(&done.bytes)
    };
    families().map(of_family).join(" ")
}

/// FNV-1a, 64 bits: short enough to stand below.
fn fnv(bytes: &[u8]) -> String {
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}")
}

/// What the files of the families were when they were first written. It changes with `VERSION` alone.
const GOLDEN: &str =
    "507c288a98f107be de7ba7dc475ae69d 9f03e043c0eeccab 4a68f2dd91cbf9e1 c4f2adcd75b6c5a8 671022f911e647cc";
/// Says that this process was started by the test below.
const STARTED: &str = "CALM_TEST_STARTED";

#[test]
fn what_this_process_writes() {
    if std::env::var_os(STARTED).is_some() {
        println!("wrote {}", of_all_families());
    }
}

#[test]
fn the_same_file_on_any_processor_and_with_any_number_of_threads() {
    let this = std::env::current_exe().unwrap();
    let mut seen = Vec::new();
    for (vectors, threads) in
        [("plain", "1"), ("avx2", "2"), ("widest", "1"), ("widest", "2"), ("widest", "5")]
    {
        let mut command = Command::new(&this);
        command.args(["--exact", "what_this_process_writes", "--nocapture"]);
        command.envs([(STARTED, "1"), ("CALM_VECTORS", vectors), ("RAYON_NUM_THREADS", threads)]);
        let output = String::from_utf8(command.output().unwrap().stdout).unwrap();
        let (_, wrote) = output.split_once("wrote ").unwrap_or_else(|| panic!("{output}"));
        seen.push((vectors, threads, wrote.lines().next().unwrap().to_owned()));
    }
    assert!(seen.iter().all(|(_, _, wrote)| wrote == GOLDEN), "{seen:?}, and {GOLDEN} once");
}

#[test]
fn whatever_is_damaged_is_named_and_nothing_else_comes_out() {
    let tokenizer = tokenizer();
    let file =
        [TEXT.as_bytes(), &[0xff; 40], &(0..=255).collect::<Vec<u8>>(), TEXT.repeat(40).as_bytes()].concat();
    let (name, config) = &families()[1];
    let model = model(config, 12, true);
    let coder = Coder::new(model.as_ref(), &tokenizer, name).unwrap();
    let done = coder.compress(&file, &options(name, 3)).unwrap();
    let header = done.bytes.len() - done.header.blocks.iter().map(|b| b.code as usize).sum::<usize>();
    assert!(done.header.blocks.len() > 2);
    for at in 0..done.bytes.len() {
        let mut damaged = done.bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        match coder.decompress(&damaged) {
            Err(Error::Block { number, blocks, bytes }) => {
                assert!(at >= header && number <= blocks && bytes.end <= file.len() as u64, "{at}");
            }
            Err(Error::Foreign | Error::Version { .. } | Error::Header) => assert!(at < header, "{at}"),
            other => panic!("byte {at}: {:?}", other.map(|bytes| bytes.len())),
        }
        match coder.decompress(&done.bytes[..at]) {
            Err(Error::CutOff { number, blocks, .. }) => assert!(at >= header && number <= blocks, "{at}"),
            Err(Error::Foreign | Error::Header) => assert!(at < header, "cut at {at}"),
            other => panic!("cut at {at}: {:?}", other.map(|bytes| bytes.len())),
        }
    }
    let longer = [&done.bytes[..], b"x"].concat();
    assert!(matches!(coder.decompress(&longer), Err(Error::Length { .. })));
}

/// A file whose header says that everything is whole, after byte `at` became another.
fn forged(file: &[u8], codes: &[usize], at: usize) -> Vec<u8> {
    let mut out = file.to_vec();
    out[at] ^= 1 << (at % 8);
    let header = file.len() - codes.iter().sum::<usize>();
    let mut from = header;
    for code in codes {
        let sum = |file: &[u8]| blake3::hash(&file[from..from + code]).as_bytes()[..8].to_vec();
        let (was, is) = (sum(file), sum(&out));
        if was != is {
            let stands = file[..header].windows(8).position(|eight| eight == was).unwrap();
            out[stands..stands + 8].copy_from_slice(&is);
        }
        from += code;
    }
    let sum = blake3::hash(&out[..header - 8]);
    out[header - 8..header].copy_from_slice(&sum.as_bytes()[..8]);
    out
}

#[test]
fn a_code_that_is_whole_and_says_something_else_is_named() {
    let tokenizer = tokenizer();
    let file = [TEXT.as_bytes(), &[0xff; 40], TEXT.repeat(10).as_bytes()].concat();
    for (name, config) in families() {
        let model = model(&config, 12, true);
        let coder = Coder::new(model.as_ref(), &tokenizer, name).unwrap();
        let done = coder.compress(&file, &options(name, 3)).unwrap();
        let codes: Vec<usize> = done.header.blocks.iter().map(|block| block.code as usize).collect();
        let header = done.bytes.len() - codes.iter().sum::<usize>();
        let mut differed = 0;
        for at in (header..done.bytes.len()).step_by(29) {
            match coder.decompress(&forged(&done.bytes, &codes, at)) {
                Err(Error::Differs { number, blocks, bytes }) => {
                    assert!(number <= blocks && bytes.end <= file.len() as u64, "{name}, byte {at}");
                    differed += 1;
                }
                // The last bits of a code may say nothing.
                Ok(same) => assert!(same == file, "{name}, byte {at}"),
                Err(other) => panic!("{name}, byte {at}: {other}"),
            }
        }
        assert!(differed > 3, "{name}");
    }
}

#[test]
fn one_other_bit_of_the_weights_or_other_settings_are_another_model() {
    let tokenizer = tokenizer();
    for (name, config) in families() {
        let own = model(&config, 10, true);
        let done =
            Coder::new(own.as_ref(), &tokenizer, name).unwrap().compress(b"abc", &options(name, 1)).unwrap();
        let refused = |model: &dyn LanguageModel, settings: &str| {
            let coder = Coder::new(model, &tokenizer, settings).unwrap();
            match coder.decompress(&done.bytes) {
                Err(e @ Error::OtherModel { .. }) => e.to_string().matches(&coder.model()).count() == 1,
                _ => false,
            }
        };
        assert!(!refused(model(&config, 10, true).as_ref(), name));
        assert!(refused(model(&config, 10, true).as_ref(), "other settings"));
        assert!(refused(model(&config, 11, true).as_ref(), name));
        assert!(refused(model(&config, 10, false).as_ref(), name));
        let other = model(&config, 10, true);
        let (_, param) = other.store().params().swap_remove(3);
        let mut values: Vec<f32> = param.var.flatten_all().unwrap().to_vec1().unwrap();
        values[0] = f32::from_bits(values[0].to_bits() ^ 1);
        param.var.set(&Tensor::from_vec(values, param.var.dims(), &Device::Cpu).unwrap()).unwrap();
        assert!(refused(other.as_ref(), name), "{name}");
    }
}

#[test]
fn a_probed_model_is_named_by_what_its_probabilities_depend_on_alone() {
    let tokenizer = tokenizer();
    for (name, config) in families() {
        let named = |changes: &[(&str, &str, f64)]| {
            let mut settings = serde_json::to_value(&config).unwrap();
            for (part, key, value) in changes {
                let part = if name == "dlcm" && *part == "backbone" { "tokens" } else { *part };
                settings[name][part][*key] = (*value).into();
            }
            let settings: ModelConfig = serde_json::from_value(settings).unwrap();
            let model = model(&settings, 10, true);
            let coder = Coder::probed(model.as_ref(), &tokenizer).unwrap();
            let done = coder.compress(TEXT.as_bytes(), &options(name, 2)).unwrap();
            assert_eq!(coder.decompress(&done.bytes).unwrap(), TEXT.as_bytes());
            coder.model()
        };
        let own = named(&[]);
        assert_eq!(named(&[]), own, "{name}");
        assert_ne!(named(&[("backbone", "rope_theta", 500.0)]), own, "{name}");
        assert_ne!(named(&[("backbone", "norm_eps", 1e-3)]), own, "{name}");
        if config.autoencoder().is_some() {
            // What training alone reads.
            let of_training = [("autoencoder", "kl_weight", 0.25), ("autoencoder", "token_dropout", 0.01)];
            assert_eq!(named(&of_training), own, "{name}");
        }
    }
}

#[test]
fn another_tokenizer_and_draws_of_a_model_that_draws_nothing_are_refused() {
    let (name, config) = &families()[0];
    let (own, other) = (tokenizer(), Tokenizer::characters(["abc"]));
    let model = model(config, 10, true);
    let refused = Coder::new(model.as_ref(), &other, name).err();
    assert!(matches!(refused, Some(Error::Tokenizer { .. })));
    let coder = Coder::new(model.as_ref(), &own, name).unwrap();
    let mut forged = coder.compress(TEXT.as_bytes(), &options(name, 1)).unwrap();
    let codes: usize = forged.header.blocks.iter().map(|block| block.code as usize).sum();
    // The number of draws, and the sum behind the table.
    forged.bytes[32] = 1;
    let end = forged.bytes.len() - codes - 8;
    let sum = blake3::hash(&forged.bytes[..end]);
    forged.bytes[end..end + 8].copy_from_slice(&sum.as_bytes()[..8]);
    assert!(matches!(coder.decompress(&forged.bytes), Err(Error::Header)));
    // Nor can its writer ask for any.
    let asked = coder.compress(TEXT.as_bytes(), &Options { draws: Some(1), ..Options::default() });
    assert!(matches!(asked, Err(Error::Option(_))));
}

#[test]
fn a_file_is_as_long_as_its_probabilities_say() {
    let tokenizer = tokenizer();
    let text = TEXT.repeat(20);
    let ids = tokenizer.encode(&text).unwrap();
    let (name, config) = &families()[0];
    // One pass, so that the model's own scores are those of the coder.
    let model = model(config, ids.len() + 1, true);
    let row: Vec<u32> = std::iter::once(tokenizer.special().bos).chain(ids.iter().copied()).collect();
    let n = row.len();
    let positions: Vec<u32> = (0..n as u32).collect();
    let predicts: Vec<bool> = (1..=n).map(|at| at < n).collect();
    let batch =
        ChunkBatch::new((1, n, 1), &row, &positions, &vec![0; n], &predicts, &[0], &Device::Cpu).unwrap();
    let bits =
        -model.log_probabilities(&batch).unwrap().unwrap().iter().sum::<f64>() / std::f64::consts::LN_2;
    let coder = Coder::new(model.as_ref(), &tokenizer, name).unwrap();
    let done = coder.compress(text.as_bytes(), &options(name, 1)).unwrap();
    let code: f64 = done.header.blocks.iter().map(|b| 8.0 * f64::from(b.code)).sum();
    assert!(done.header.blocks.iter().all(|block| block.kind == Kind::Tokens));
    // What the model gives BOS, EOS and PAD is given to text: never more bits, and a little fewer.
    let most = bits * 1.001 + 64.0 * done.header.blocks.len() as f64;
    assert!(code <= most && code >= bits * 0.95, "{code} bits for {bits}");
}

#[test]
fn options_out_of_range_and_models_without_probabilities_are_refused() {
    let tokenizer = tokenizer();
    let (name, config) = &families()[3];
    let calm = model(config, 10, true);
    let coder = Coder::new(calm.as_ref(), &tokenizer, name).unwrap();
    for options in [
        Options { windows: Some(0), ..Options::default() },
        Options { overlap: Some(0), ..Options::default() },
        Options { overlap: Some(41), ..Options::default() },
        Options { draws: Some(0), ..Options::default() },
    ] {
        assert!(matches!(coder.compress(b"abc", &options), Err(Error::Option(_))), "{options:?}");
    }
    let argmax: ModelConfig = serde_json::from_str(
        r#"{"calm": {"chunk_size": 4, "autoencoder": {"latent_size": 8, "hidden_size": 16, "intermediate_size": 24},
            "backbone": {"layers": 1, "hidden_size": 24, "intermediate_size": 40, "heads": 2},
            "head": {"energy": {"noise_size": 6}}}}"#,
    )
    .unwrap();
    let argmax = model(&argmax, 10, true);
    let refused = Coder::new(argmax.as_ref(), &tokenizer, "argmax").err();
    assert!(matches!(refused, Some(Error::NoProbabilities)));
}
