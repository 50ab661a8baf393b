//! A run as Python has it.

use std::path::{Path, PathBuf};

use calm_kernels::device::{self, Choice};
use calm_lm::{Decode, DrawKey, DrawKind};
use calm_run::checkpoint::Which;
use calm_run::run::RESULTS;
use calm_train::models::special_ids;
use candle_core::Tensor;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use crate::arrays::{Given, ids, read, view};
use crate::error::Failure;
use crate::likelihood;
use crate::metrics;
use crate::models::Models;
use crate::pool::work;
use crate::scores::from_json;
use crate::text::{self, Text, Writing};

/// A run's folder with its models, which are loaded when they are first needed.
#[pyclass(frozen, module = "calm_lm")]
pub struct Run(Models);

/// Opens a run's folder; None opens the run in `runs/` that was worked on last.
///
/// `checkpoint` is "best" or "latest" (of the language model, and of the autoencoder that `encode_chunks` and
/// `decode_latents` use), `device` "auto", "cpu", "cuda" or "cuda:N", and `decode` how a CALM makes tokens of a
/// latent vector: "argmax", "sample", or as its configuration says (None).
///
/// >>> import calm_lm
/// >>> run = calm_lm.open("runs/calm")
/// >>> run
/// Run('runs/calm', a CALM, K = 3)
/// >>> run.chunk_size, run.vocab_size, run.exact
/// (3, 300, False)
#[pyfunction]
#[pyo3(signature = (folder=None, *, checkpoint="best", device="auto", decode=None))]
pub fn open(
    py: Python<'_>,
    folder: Option<PathBuf>,
    checkpoint: &str,
    device: &str,
    decode: Option<&str>,
) -> PyResult<Run> {
    let which = match checkpoint {
        "best" => Which::Best,
        "latest" => Which::Latest,
        other => return Err(PyValueError::new_err(format!("checkpoint={other:?}; \"best\" or \"latest\""))),
    };
    let choice: Choice = device.parse().map_err(PyValueError::new_err)?;
    let decode = match decode {
        None => None,
        Some("argmax") => Some(Decode::Argmax),
        Some("sample") => Some(Decode::Sample),
        Some(other) => {
            return Err(PyValueError::new_err(format!("decode={other:?}; \"argmax\", \"sample\" or None")));
        }
    };
    work(py, |_| {
        let mut run = match &folder {
            Some(folder) => calm_run::Run::open(folder)?,
            None => calm_run::Run::latest(Path::new("runs"))?,
        };
        if let Some(decode) = decode {
            let title = run.config.model.title();
            run.config.model = run.config.model.decoded_by(decode).ok_or_else(|| {
                Failure::new(format!("{title} has no latent vectors to decode"), "leave decode away")
            })?;
        }
        Ok(Run(Models::new(&run, which, device::open(choice)?)))
    })
}

impl Run {
    /// Ids below the vocabulary's size, or those of a text.
    fn tokens(&self, py: Python<'_>, given: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
        let tokenizer = py.detach(|| self.0.tokenizer())?;
        match given.cast::<PyString>() {
            Ok(text) => {
                let text = text.to_cow()?;
                Ok(py.detach(|| tokenizer.encode(&text)).map_err(Failure::from)?)
            }
            Err(_) => ids(read::<i64>(given)?.values, tokenizer.vocab_size()),
        }
    }

    /// Whole chunks: `[n, K]` as one list.
    fn chunks(&self, py: Python<'_>, given: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
        let (tokens, k) = (self.tokens(py, given)?, self.0.run.config.chunk_size());
        match tokens.len().is_multiple_of(k) {
            true => Ok(tokens),
            false => {
                Err(PyValueError::new_err(format!("{} tokens are not whole chunks of {k}", tokens.len())))
            }
        }
    }
}

#[pymethods]
impl Run {
    fn __repr__(&self) -> String {
        let config = &self.0.run.config;
        let (folder, title) = (self.0.run.folder.display().to_string(), config.model.title());
        format!("Run('{folder}', {title}, K = {})", config.chunk_size())
    }

    /// Where it lies.
    #[getter]
    fn folder(&self) -> PathBuf {
        self.0.run.folder.clone()
    }

    /// The family of its model, as a configuration names it.
    #[getter]
    fn family(&self) -> &'static str {
        self.0.run.config.model.name()
    }

    /// K, tokens of a chunk.
    #[getter]
    fn chunk_size(&self) -> usize {
        self.0.run.config.chunk_size()
    }

    /// S, the longest sequence it was trained on, in chunks.
    #[getter]
    fn context(&self) -> usize {
        self.0.run.lm_layout().context
    }

    /// Whether the model has probabilities of its own; a CALM draws, and has a bound on them.
    #[getter]
    fn exact(&self) -> bool {
        self.0.run.config.model.draws() == DrawKind::Exact
    }

    /// Whether text can be drawn at any temperature, 0 included; else whole chunks are drawn, and sharpened by drawing more.
    #[getter]
    fn has_probabilities(&self) -> bool {
        text::has_probabilities(&self.0)
    }

    /// Where it is computed: "cpu" or "cuda:N".
    #[getter]
    fn device(&self) -> String {
        device::name(&self.0.device)
    }

    /// V: ids are below it.
    #[getter]
    fn vocab_size(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(py.detach(|| self.0.tokenizer())?.vocab_size())
    }

    /// The ids of "bos", "eos" and "pad".
    #[getter]
    fn special<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let special = special_ids(py.detach(|| self.0.tokenizer())?.special());
        let out = PyDict::new(py);
        for (name, id) in [("bos", special.bos), ("eos", special.eos), ("pad", special.pad)] {
            out.set_item(name, id)?;
        }
        Ok(out)
    }

    /// The configuration in force, with all defaults.
    ///
    /// >>> calm_lm.open("runs/calm").config["model"]["calm"]["chunk_size"]
    /// 3
    #[getter]
    fn config<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let text = serde_json::to_string(&self.0.run.config);
        from_json(py, &text.map_err(|e| PyValueError::new_err(e.to_string()))?)
    }

    /// The scores that the run ended with, or None.
    ///
    /// >>> sorted(calm_lm.open("runs/calm").results)
    /// ['autoencoder', 'brier', 'condition', 'corpus_hash', 'sample', 'tokenizer_hash']
    #[getter]
    fn results<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let path = self.0.run.folder.join(RESULTS);
        match py.detach(|| std::fs::read_to_string(&path)) {
            Ok(text) => from_json(py, &text).map(Some),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Failure::from(calm_run::Error::io("read", &path, e)).into()),
        }
    }

    /// The metrics: by stage, columns of one length by name, NaN where a step has no such value; `step` is uint64, all others
    /// are float64. A run that is being trained may be read, too.
    ///
    /// >>> metrics = calm_lm.open("runs/calm").metrics()
    /// >>> list(metrics), len(metrics["lm"]["step"]) == len(metrics["lm"]["train/loss"])
    /// (['autoencoder', 'lm'], True)
    /// >>> metrics["lm"]["train/loss"].format, metrics["lm"]["step"][0]
    /// ('d', 1)
    fn metrics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        metrics::columns(py, &self.0.run.folder)
    }

    /// The tokens of a text, without special ones: uint32 `[n]`.
    ///
    /// >>> run = calm_lm.open("runs/calm")
    /// >>> run.decode(run.encode("ana bolo")) == "ana bolo"
    /// True
    fn encode<'py>(&self, py: Python<'py>, text: &str) -> PyResult<Bound<'py, PyAny>> {
        let tokenizer = py.detach(|| self.0.tokenizer())?;
        let tokens = py.detach(|| tokenizer.encode(text)).map_err(Failure::from)?;
        view(py, &tokens, &[tokens.len()])
    }

    /// The text of tokens; special ones have none.
    fn decode(&self, py: Python<'_>, tokens: &Bound<'_, PyAny>) -> PyResult<String> {
        let tokenizer = py.detach(|| self.0.tokenizer())?;
        Ok(tokenizer.decode(&ids(read::<i64>(tokens)?.values, tokenizer.vocab_size())?))
    }

    /// Chunks to the autoencoder's posterior: mean and log of the standard deviation, both float32 `[n, L]`. `tokens` are
    /// n·K ids, in one row or as `[n, K]`.
    ///
    /// >>> run = calm_lm.open("runs/calm")
    /// >>> mean, log_std = run.encode_chunks(list(range(12)))
    /// >>> mean.shape == log_std.shape == (4, 24)
    /// True
    fn encode_chunks<'py>(
        &self,
        py: Python<'py>,
        tokens: &Bound<'py, PyAny>,
    ) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
        let tokens = self.chunks(py, tokens)?;
        let k = self.0.run.config.chunk_size();
        let (mean, log_std, latent) = work(py, |_| {
            let model = &self.0.autoencoder()?.model;
            let (mut mean, mut log_std) = (Vec::new(), Vec::new());
            for part in tokens.chunks(CHUNKS * k) {
                let ids = Tensor::from_slice(part, (part.len() / k, k), &self.0.device)?;
                let posterior = model.encode(&ids)?.detach();
                mean.extend(posterior.mean.flatten_all()?.to_vec1::<f32>()?);
                log_std.extend(posterior.log_std.flatten_all()?.to_vec1::<f32>()?);
            }
            Ok((mean, log_std, model.latent_size()))
        })?;
        let shape = [tokens.len() / k, latent];
        Ok((view(py, &mean, &shape)?, view(py, &log_std, &shape)?))
    }

    /// Latent vectors `[n, L]` to their most probable tokens by the autoencoder's decoder: uint32 `[n, K]`.
    ///
    /// >>> run = calm_lm.open("runs/calm")
    /// >>> mean, _ = run.encode_chunks("ana bolo du elf fugo "[:18])
    /// >>> run.decode_latents(mean).shape[1]
    /// 3
    fn decode_latents<'py>(
        &self,
        py: Python<'py>,
        latents: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let Given { values, shape } = read::<f32>(latents)?;
        let k = self.0.run.config.chunk_size();
        let tokens = work(py, |_| {
            let model = &self.0.autoencoder()?.model;
            let l = model.latent_size();
            if shape.last() != Some(&l) {
                let what = format!("latent vectors of shape {shape:?}");
                return Err(Failure::new(what, format!("give [n, {l}], as encode_chunks does")));
            }
            let mut tokens = Vec::new();
            for part in values.chunks(CHUNKS * l) {
                let z = Tensor::from_slice(part, (part.len() / l, l), &self.0.device)?;
                tokens.extend(model.decode(&z)?.flatten_all()?.to_vec1::<u32>()?);
            }
            Ok(tokens)
        })?;
        view(py, &tokens, &[tokens.len() / k, k])
    }

    /// Independent draws of the next chunk after a context: uint32 `[samples, K]`, everything after an EOS already PAD. The
    /// context is a text or tokens, whole chunks of them. The same seed and call give the same draws.
    ///
    /// >>> run = calm_lm.open("runs/calm")
    /// >>> draws = run.draw([10, 11, 12, 13, 14, 15], samples=5, seed=1)
    /// >>> draws.shape, draws == run.draw([[10, 11, 12], [13, 14, 15]], samples=5, seed=1)
    /// ((5, 3), True)
    #[pyo3(signature = (context, samples=1, *, seed=1, call=0))]
    fn draw<'py>(
        &self,
        py: Python<'py>,
        context: &Bound<'py, PyAny>,
        samples: usize,
        seed: u64,
        call: u32,
    ) -> PyResult<Bound<'py, PyAny>> {
        let context = self.chunks(py, context)?;
        let k = self.0.run.config.chunk_size();
        let tokens = work(py, |_| {
            let model = self.0.lm()?;
            let sampler = model.sampler();
            let mut text = sampler.start()?;
            text.push(&context)?;
            Ok(text.draw(samples, DrawKey { seed, call })?.concat())
        })?;
        view(py, &tokens, &[samples, k])
    }

    /// Text after a prompt, as `calm generate` writes it (a `Text`), or after each of a list of prompts (a list of them),
    /// `places` of which are continued side by side; `number` is that of the first, which its noise is keyed by. A text ends
    /// with its document, after `max_tokens`, or before the first of the texts `until`.
    ///
    /// Where a model has probabilities (`has_probabilities`), temperature is 0 or more. Else it is above 0 and at most 1, and
    /// `draws` chunks are drawn for each at 1/2, 1/3 and so on (the batch approximation), and as many as it takes at others.
    ///
    /// >>> run = calm_lm.open("runs/calm")
    /// >>> text = run.generate("ana bolo du ", max_tokens=9, seed=1)
    /// >>> len(text.tokens) <= 9 and str(text) == text.text
    /// True
    /// >>> [type(text).__name__ for text in run.generate(["ana ", "bolo "], max_tokens=3)]
    /// ['Text', 'Text']
    #[pyo3(signature = (prompt, *, max_tokens=256, temperature=1.0, top_p=1.0, draws=200, until=Vec::new(), seed=1,
        places=16, number=0))]
    #[allow(clippy::too_many_arguments)]
    fn generate<'py>(
        &self,
        py: Python<'py>,
        prompt: &Bound<'py, PyAny>,
        max_tokens: usize,
        temperature: f64,
        top_p: f64,
        draws: usize,
        until: Vec<String>,
        seed: u64,
        places: usize,
        number: u32,
    ) -> PyResult<Bound<'py, PyAny>> {
        for (name, value) in [("draws", draws), ("places", places)] {
            if value == 0 {
                return Err(PyValueError::new_err(format!("{name}=0: give 1 or more")));
            }
        }
        // Everything begins with nothing.
        let until = until.into_iter().filter(|stop| !stop.is_empty()).collect();
        let how = Writing { max_tokens, temperature, top_p, draws, until, seed };
        if let Ok(prompt) = prompt.cast::<PyString>() {
            let prompt = prompt.to_cow()?;
            let text: Text = work(py, |stop| text::one(&self.0, &prompt, &how, stop))?;
            return Ok(Bound::new(py, text)?.into_any());
        }
        let prompts: Vec<String> = prompt.extract()?;
        let texts = work(py, |stop| text::many(&self.0, &prompts, &how, (places, number), stop))?;
        texts.into_pyobject(py)
    }

    /// How probable continuations are after their contexts: a list of (ln p in nats, whether the model would say so), one for
    /// each pair of texts (context, continuation). An empty context is the beginning of a document.
    ///
    /// Families with probabilities (`exact`) answer exactly. A CALM answers by a bound, with `samples` latent vectors drawn for
    /// each chunk: on average from below, and nearer with more of them, the ln p of the model with a share of 0.001 of uniform
    /// tokens, after a context whose first tokens (fewer than K) are left out. Continuations of equally many tokens that no
    /// draw comes near are as good as equal.
    ///
    /// >>> run = calm_lm.open("runs/baseline")
    /// >>> (likely, _), (unlikely, _) = run.log_likelihoods([("ana ", "bolo"), ("ana ", "#@!?")])
    /// >>> unlikely < likely < 0.0
    /// True
    /// >>> (bound, _), = calm_lm.open("runs/calm").log_likelihoods([("ana ", "bolo")], samples=64)
    /// >>> bound < 0.0
    /// True
    #[pyo3(signature = (pairs, *, samples=64, seed=1, greedy=true))]
    fn log_likelihoods(
        &self,
        py: Python<'_>,
        pairs: Vec<(String, String)>,
        samples: usize,
        seed: u64,
        greedy: bool,
    ) -> PyResult<Vec<(f64, bool)>> {
        if samples == 0 {
            return Err(PyValueError::new_err("samples=0: give 1 or more"));
        }
        let answers = work(py, |stop| likelihood::answers(&self.0, &pairs, (samples, seed, greedy), stop))?;
        Ok(answers.into_iter().map(|answer| (answer.log_p, answer.greedy)).collect())
    }
}

/// Chunks that go through an autoencoder at a time.
const CHUNKS: usize = 4096;
