//! From a configuration to a scored model: data, stage 1, stage 2, scores; of several processes, what the first one does and what
//! the others do. A little longer than other files: the order of all that happens stands in one place.

use std::collections::BTreeMap;
use std::path::Path;

use calm_data::Corpus;
use calm_eval::generate::{Decoding, GenerateOptions, generate};
use calm_eval::protocol::Rule;
use calm_eval::reconstruction::reconstruct;
use calm_eval::score::{ScoreOptions, Scores, score};
use calm_lm::LanguageModel;
use calm_parallel::{Patience, Ranks};
use calm_stats::bootstrap::{Bootstrap, report};
use candle_core::Device;

use crate::held_out::validation_rows;
use crate::models;
use crate::objective::{Objective, validation_loss};
use crate::options::TrainOptions;
use crate::plan::{Plan, Target};
use crate::recorder::Recorder;
use crate::reporter::Reporter;
use crate::reuse::{check_others, import_autoencoder, init_from};
use crate::rows::{Rows, packed_as_a_whole, packs_as_a_whole};
use crate::scoring::{Means, bits_per_byte, bound_results, reconstruct_run, score_run};
use crate::settle::{because, settle};
use crate::share::{can_be_shared, told};
use crate::together::Together;
use crate::training::{Training, Validation};
use calm_run::checkpoint::{Checkpoints, Which, write_json};
use calm_run::results::{BoundResults, SegmentResults};
pub use calm_run::results::{BrierResults, ConditionCheck, Results};
use calm_run::resumption::autoencoder_is_settled;
use calm_run::{Error, Result};
use calm_run::{Provenance, Resumption, Run, RunRecord, Stage};

/// Trains what is missing and scores the result, in a folder that is as it shall be.
///
/// # Errors
/// As [`begin`].
pub fn train(
    run: &Run,
    options: &TrainOptions,
    device: &Device,
    reporter: &mut dyn Reporter,
) -> Result<Results> {
    begin(&Resumption::settled(run), options, device, reporter)
}

/// Checks all that can be checked, then does with the folder what was decided, trains what is missing and scores the
/// result.
///
/// # Errors
/// Text, weights or settings that cannot be, before anything is touched; a stop; what happens while it is trained.
pub fn begin(
    resumption: &Resumption,
    options: &TrainOptions,
    device: &Device,
    reporter: &mut dyn Reporter,
) -> Result<Results> {
    let run = resumption.run();
    run.config.precision.check(device).map_err(|e| Error::user(e.to_string(), "--set precision=f32"))?;
    let damage = settle(run, options, reporter)?;
    check(resumption, options).map_err(|e| because(e, &damage))?;
    let corpus = prepare(resumption, &options.cache, reporter)?;
    check_others(resumption, &corpus, options)?;
    let ahead = ahead(resumption, options)?;
    // Before what is begun anew is gone.
    let whole = packs_as_a_whole(resumption)?;
    let mut rows = BTreeMap::new();
    for stage in &ahead {
        if let Some(config) = run.config.train.stage(*stage) {
            can_be_shared(config, &options.ranks, device)?;
        }
        rows.insert(*stage, Rows::new(run, &corpus, *stage, !options.skip_scores, whole)?);
    }
    let target = Target::of(device, run.config.precision)?.among(options.ranks.size());
    let plan = Plan::new(&run.config, &corpus, &target);
    reporter.plan(&plan);
    if let Some(warning) = plan.check(&ahead)? {
        reporter.warn(&warning);
    }
    let entry = resumption.act(options.provenance.clone())?;
    for change in &entry.changes {
        reporter.note(&format!("changed from here on: {change}"));
    }
    let record = record(run, &corpus, entry, whole)?;
    options.ranks.meet(PREPARED, Patience::WhileTheyAnswer).map_err(told)?;
    // From here on the record has an entry of this command, which says how it ended.
    work(run, &corpus, rows, record, options, device, reporter).inspect_err(|e| run.note_end(e))
}

/// What the others wait for while the first process prepares.
const PREPARED: &str = "the beginning of the run, prepared by rank 0";

/// Trains as one of several processes of which another one, rank 0, [begins](begin): it decides, prepares and writes. This one
/// computes its part of every batch, and writes nothing. Returns when the other one has its scores.
///
/// # Errors
/// As [`begin`]; another process that fails or does not come.
pub fn follow(
    folder: &Path,
    options: &TrainOptions,
    device: &Device,
    reporter: &mut dyn Reporter,
) -> Result<()> {
    options.ranks.meet(PREPARED, Patience::WhileTheyAnswer).map_err(told)?;
    let run = Run::open(folder)?;
    let resumption = Resumption::settled(&run);
    let corpus = prepare(&resumption, &options.cache, reporter)?;
    let mut rows = BTreeMap::new();
    for stage in ahead(&resumption, options)? {
        rows.insert(stage, Rows::new(&run, &corpus, stage, false, packed_as_a_whole(&run)?)?);
    }
    let record = run.record()?.unwrap_or_default();
    work(&run, &corpus, rows, record, options, device, reporter).map(|_| ())
}

/// Trains and scores.
fn work(
    run: &Run,
    corpus: &Corpus,
    mut rows: BTreeMap<Stage, Rows>,
    mut record: RunRecord,
    options: &TrainOptions,
    device: &Device,
    reporter: &mut dyn Reporter,
) -> Result<Results> {
    let mut results = Results {
        corpus_hash: corpus.hash.clone(),
        tokenizer_hash: corpus.tokenizer_hash.clone(),
        ..Results::default()
    };
    if run.config.model.autoencoder().is_some() {
        if let Some(other) = &options.autoencoder_from {
            if options.ranks.leads() {
                record.imported_autoencoder = Some(import_autoencoder(run, corpus, other, reporter)?);
                run.write_record(&record)?;
            }
            options.ranks.meet("the autoencoder of another run", Patience::Limited).map_err(told)?;
        }
        if options.only != Some(Stage::Lm) {
            let rows = rows.remove(&Stage::Autoencoder);
            train_autoencoder(run, corpus, rows, &record, options, device, reporter)?;
            goes_on(&options.ranks, reporter)?;
        }
    }
    if options.only != Some(Stage::Autoencoder) {
        train_lm(run, corpus, rows.remove(&Stage::Lm), &record, options, device, reporter)?;
        goes_on(&options.ranks, reporter)?;
    }
    score_all(run, corpus, &mut results, options, device, reporter)?;
    options.ranks.meet(SCORED, Patience::WhileTheyAnswer).map_err(told)?;
    Ok(results)
}

/// What the others wait for at the end.
const SCORED: &str = "the end of the run, written by rank 0";

/// Scores what is there, each process a part of it. The first one writes the results.
fn score_all(
    run: &Run,
    corpus: &Corpus,
    results: &mut Results,
    options: &TrainOptions,
    device: &Device,
    reporter: &mut dyn Reporter,
) -> Result<()> {
    if options.skip_scores {
        return Ok(());
    }
    let (tokenizer, held_out, ranks) = (&corpus.tokenizer, &corpus.validation, &options.ranks);
    let means = Means { eval: &run.config.eval, device, ranks: ranks.clone() };
    if run.config.model.autoencoder().is_some() {
        let report = reconstruct_run(run, tokenizer, held_out, Which::Best, &means, reporter)?;
        results.autoencoder = Some(report);
    }
    // Whatever was trained now, the results are those of the whole run.
    if options.only != Some(Stage::Autoencoder) || has_language_model(run)? {
        let found = score_run(run, corpus, held_out, Which::Best, &means, reporter)?;
        results.brier = Some(found.brier);
        results.condition = found.condition;
        let kind = SegmentResults::HELD_OUT.to_owned();
        results.segments =
            found.segments.map(|segments| SegmentResults { kind, segments }).into_iter().collect();
    }
    if !ranks.leads() {
        return Ok(());
    }
    if results.brier.is_some() {
        let model = models::load_lm(run, Which::Best, tokenizer, device)?;
        results.sample = Some(sample_text(run, &*model, corpus)?);
    }
    write_json(&run.folder.join("results.json"), &results)
}

/// A stop that came with the last step of a stage, to any of the processes.
fn goes_on(ranks: &Ranks, reporter: &dyn Reporter) -> Result<()> {
    let stop = ranks.any(reporter.should_stop(), "the end of a stage").map_err(told)?;
    if stop { Err(Error::Stopped) } else { Ok(()) }
}

/// Checkpoints of a stage, as far as this process has to do with them.
fn checkpoints(run: &Run, stage: Stage, ranks: &Ranks) -> Checkpoints {
    let all = run.checkpoints(stage);
    if ranks.leads() { all } else { all.read_only() }
}

/// Trains a stage; of several processes one writes the metrics.
fn train_stage<O: Objective + ?Sized>(
    run: &Run,
    training: &Training<'_>,
    objective: &O,
    validate: &mut dyn FnMut(u64, bool) -> Result<Validation>,
    reporter: &mut dyn Reporter,
) -> Result<()> {
    if training.ranks.leads() {
        let mut recorder = Recorder::new(&run.folder, reporter);
        training.run(objective, validate, &mut recorder)?;
    } else {
        training.run(objective, validate, reporter)?;
    }
    Ok(())
}

/// Whether the run holds a language model that belongs to its autoencoder.
fn has_language_model(run: &Run) -> Result<bool> {
    Ok(run.checkpoints(Stage::Lm).latest()?.is_some() && run.fits_autoencoder()?)
}

/// Options that a run cannot have, and stages that cannot be trained as the run stands.
fn check(resumption: &Resumption, options: &TrainOptions) -> Result<()> {
    let run = resumption.run();
    let model = &run.config.model;
    if model.autoencoder().is_none() {
        let title = model.title();
        if options.only == Some(Stage::Autoencoder) {
            return Err(Error::user(
                format!("{title} has no stage autoencoder"),
                "leave --stage away, or train a model that has one",
            ));
        }
        if options.autoencoder_from.is_some() {
            return Err(Error::user(format!("{title} has no autoencoder"), "leave --autoencoder away"));
        }
    }
    let lm = resumption.latest(Stage::Lm)?;
    let ahead = ahead(resumption, options)?;
    if ahead.contains(&Stage::Autoencoder) && lm.is_some() {
        return Err(autoencoder_is_settled(&run.folder));
    }
    if lm.is_some()
        && model.autoencoder().is_some()
        && options.only != Some(Stage::Autoencoder)
        && options.autoencoder_from.is_none()
        && !run.fits_autoencoder()?
    {
        return Err(another_autoencoder(run));
    }
    if !options.resume {
        for stage in &ahead {
            let steps = run.config.train.stage(*stage).map_or(0, |c| c.steps);
            if let Found::Unfinished(step) = found(resumption, *stage, steps)? {
                return Err(unfinished(run, *stage, step, steps));
            }
        }
    }
    if options.only == Some(Stage::Lm) && options.autoencoder_from.is_none() && model.autoencoder().is_some()
    {
        let steps = run.config.train.autoencoder.as_ref().map_or(0, |c| c.steps);
        match resumption.latest(Stage::Autoencoder)? {
            None => {
                return Err(Error::user(
                    format!("{} has no autoencoder to train a language model on", run.folder.display()),
                    "train it first (--stage autoencoder), or take that of another run with --autoencoder RUN",
                ));
            }
            Some(s) if s.step < steps && !s.finished && !stands(resumption)? => {
                return Err(Error::user(
                    format!(
                        "the autoencoder of {} stopped at step {} of {steps}",
                        run.folder.display(),
                        s.step
                    ),
                    "finish it first: --stage autoencoder --resume",
                ));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

fn another_autoencoder(run: &Run) -> Error {
    Error::user(
        format!("the language model in {} was trained on another autoencoder", run.folder.display()),
        "train it anew (--stage lm --restart), or put its autoencoder back",
    )
}

fn unfinished(run: &Run, stage: Stage, step: u64, steps: u64) -> Error {
    let folder = run.folder.display();
    match step {
        0 => Error::user(
            format!("{folder} holds weights of stage {stage} that were not trained here"),
            "--resume trains them further; --restart begins anew",
        ),
        _ => Error::user(
            format!("{folder} holds a stage {stage} that stopped at step {step} of {steps}"),
            "--resume goes on from there; --restart begins anew; --out FOLDER keeps both",
        ),
    }
}

/// Reads, tokenises and splits the text of a run (from the cache if it was done before).
///
/// # Errors
/// It is not there, or has changed since the run was begun.
pub fn prepare_data(run: &Run, cache: &Path, reporter: &mut dyn Reporter) -> Result<Corpus> {
    prepare(&Resumption::settled(run), cache, reporter)
}

fn prepare(resumption: &Resumption, cache: &Path, reporter: &mut dyn Reporter) -> Result<Corpus> {
    let run = resumption.run();
    let mut corpus =
        calm_data::prepare(&run.config.data, &run.config.tokenizer, cache, &mut |p| reporter.data(&p))?;
    corpus.tokenizer = run.config.fit(corpus.tokenizer)?;
    reporter.data_done();
    for note in corpus.tokenizer.notes() {
        reporter.note(&format!("tokenizer: {note}"));
    }
    unchanged(resumption, &corpus)?;
    Ok(corpus)
}

/// Checks the corpus against the record: ids of another tokenizer mean nothing to the weights, and scores on
/// another text would pass for those of the old one.
fn unchanged(resumption: &Resumption, corpus: &Corpus) -> Result<()> {
    let (run, record) = (resumption.run(), resumption.record()?);
    for (what, old, new) in [
        ("text", &record.corpus_hash, &corpus.hash),
        ("tokenizer", &record.tokenizer_hash, &corpus.tokenizer_hash),
    ] {
        if !old.is_empty() && old != new {
            let asked: Vec<String> =
                resumption.changes_of_text().map(|change| format!("\n  {change}")).collect();
            return Err(Error::user(
                format!(
                    "the {what} has changed since {} was begun ({old:.12} -> {new:.12}){}",
                    run.folder.display(),
                    asked.concat()
                ),
                "restore the old data, or train anew with --restart or another --out; calm eval and calm latents \
                 take other text with --data",
            ));
        }
    }
    Ok(())
}

/// Writes what this run is and who works on it.
fn record(run: &Run, corpus: &Corpus, entry: Provenance, whole: bool) -> Result<RunRecord> {
    let mut record = run.record()?.unwrap_or_default();
    record.row_order = (!whole).then_some(1);
    corpus.tokenizer.save(&run.folder.join("tokenizer.json"))?;
    record.corpus_hash = corpus.hash.clone();
    record.tokenizer_hash = corpus.tokenizer_hash.clone();
    record.vocab_size = corpus.tokenizer.vocab_size();
    record.corpus = corpus.summary.description.clone();
    record.platform = format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH);
    record.threads = candle_core::utils::get_num_threads();
    record.history.push(entry);
    run.write_record(&record)?;
    Ok(record)
}

/// What is there of a stage.
enum Found {
    Nothing,
    Unfinished(u64),
    Finished(u64),
}

fn found(resumption: &Resumption, stage: Stage, steps: u64) -> Result<Found> {
    Ok(match resumption.latest(stage)? {
        None => Found::Nothing,
        Some(s) if s.step >= steps || (stage == Stage::Autoencoder && stands(resumption)?) => {
            Found::Finished(s.step)
        }
        Some(s) => Found::Unfinished(s.step),
    })
}

/// Whether a language model stands on the autoencoder that is there, as it is: one whose last checkpoints were damaged is
/// not trained further.
fn stands(resumption: &Resumption) -> Result<bool> {
    let changed = resumption.changes().iter().any(|change| change.key.starts_with("train.autoencoder"));
    Ok(!changed && resumption.latest(Stage::Lm)?.is_some() && resumption.run().fits_autoencoder()?)
}

/// The stages that are going to be trained.
fn ahead(resumption: &Resumption, options: &TrainOptions) -> Result<Vec<Stage>> {
    let mut stages = Vec::new();
    for stage in Stage::ALL {
        let Some(config) = resumption.run().config.train.stage(stage) else { continue };
        let done = matches!(found(resumption, stage, config.steps)?, Found::Finished(_));
        let kept = options.only.is_none() && stage == Stage::Autoencoder && imported(resumption, stage)?;
        let given = stage == Stage::Autoencoder && (options.autoencoder_from.is_some() || kept);
        if options.only.is_none_or(|only| only == stage) && !done && !given {
            stages.push(stage);
        }
    }
    Ok(stages)
}

/// Whether the stage has to run.
fn needed(run: &Run, stage: Stage, steps: u64, resume: bool, reporter: &mut dyn Reporter) -> Result<bool> {
    match found(&Resumption::settled(run), stage, steps)? {
        Found::Nothing => Ok(true),
        Found::Finished(step) => {
            let path = run.checkpoints(stage).path(step);
            reporter.note(&format!("{stage}: finished before ({}), skipped", path.display()));
            Ok(false)
        }
        Found::Unfinished(_) if resume => Ok(true),
        Found::Unfinished(step) => Err(unfinished(run, stage, step, steps)),
    }
}

/// Whether the stage holds weights that were trained elsewhere and not here since.
fn imported(resumption: &Resumption, stage: Stage) -> Result<bool> {
    Ok(resumption.latest(stage)?.is_some_and(|s| s.finished && s.step == 0))
}

fn train_autoencoder(
    run: &Run,
    corpus: &Corpus,
    rows: Option<Rows>,
    record: &RunRecord,
    options: &TrainOptions,
    device: &Device,
    reporter: &mut dyn Reporter,
) -> Result<()> {
    let Some(config) = &run.config.train.autoencoder else {
        return Err(Error::user("the configuration has no train.autoencoder", "add the stage"));
    };
    let pad = corpus.tokenizer.special().pad;
    let seed = run.config.seed;
    if options.only.is_none() && imported(&Resumption::settled(run), Stage::Autoencoder)? {
        reporter.note("autoencoder: imported, kept as it is (--stage autoencoder trains it further)");
    } else if needed(run, Stage::Autoencoder, config.steps, options.resume, reporter)? {
        let objective = models::new_autoencoder(run, &corpus.tokenizer, device)?;
        init_from(run, corpus, options, Stage::Autoencoder, &objective.store, reporter)?;
        let Rows { plan, validation: rows } = rows
            .map_or_else(|| Rows::new(run, corpus, Stage::Autoencoder, false, packed_as_a_whole(run)?), Ok)?;
        let checkpoints = checkpoints(run, Stage::Autoencoder, &options.ranks);
        let metadata = run.metadata(Stage::Autoencoder, record);
        let training = Training {
            config,
            plan: &plan,
            checkpoints: &checkpoints,
            metadata: &metadata,
            seed,
            resume: options.resume,
            ranks: &options.ranks,
        };
        train_stage(
            run,
            &training,
            &objective,
            &mut |_, _| {
                let r = reconstruct(
                    &objective.model,
                    rows.batches(validation_rows(config)),
                    pad,
                    seed,
                    device,
                    Together::quiet(&options.ranks),
                )?;
                Ok(Validation {
                    loss: r.cross_entropy,
                    numbers: vec![
                        ("token_accuracy".into(), Some(r.token_accuracy)),
                        ("chunk_accuracy".into(), Some(r.chunk_accuracy)),
                        ("token_accuracy_sigma_0.3".into(), Some(r.noise[3].token_accuracy)),
                        ("kl".into(), Some(r.kl)),
                        ("collapsed_dimensions".into(), Some(r.collapsed_dimensions as f64)),
                    ],
                    sample: None,
                })
            },
            reporter,
        )?;
    }
    Ok(())
}

fn train_lm(
    run: &Run,
    corpus: &Corpus,
    rows: Option<Rows>,
    record: &RunRecord,
    options: &TrainOptions,
    device: &Device,
    reporter: &mut dyn Reporter,
) -> Result<()> {
    let config = &run.config.train.lm;
    if run.config.model.autoencoder().is_some() && !run.fits_autoencoder()? {
        return Err(another_autoencoder(run));
    }
    if !needed(run, Stage::Lm, config.steps, options.resume, reporter)? {
        return Ok(());
    }
    let seed = run.config.seed;
    let eval = &run.config.eval;
    let Rows { plan, validation: rows } =
        rows.map_or_else(|| Rows::new(run, corpus, Stage::Lm, false, packed_as_a_whole(run)?), Ok)?;
    let mut metadata = run.metadata(Stage::Lm, record);
    let checkpoints = checkpoints(run, Stage::Lm, &options.ranks);
    let mut autoencoder = None;
    if run.config.model.autoencoder().is_some() {
        let (frozen, hash) = models::load_autoencoder(run, Which::Best, &corpus.tokenizer, device)?;
        metadata.insert("autoencoder".into(), hash);
        autoencoder = Some(frozen.model);
    }
    let training = Training {
        config,
        plan: &plan,
        checkpoints: &checkpoints,
        metadata: &metadata,
        seed,
        resume: options.resume,
        ranks: &options.ranks,
    };
    let model = models::new_lm(run, autoencoder, &corpus.tokenizer, device)?;
    init_from(run, corpus, options, Stage::Lm, model.store(), reporter)?;
    train_stage(
        run,
        &training,
        &*model,
        &mut |_, _| {
            let batches = || rows.batches(validation_rows(config));
            let scoring = ScoreOptions { rule: Rule::All, samples: eval.samples, seed };
            let workers = || Together::quiet(&options.ranks);
            let scores = score(&*model, batches(), scoring, workers())?;
            // With probabilities the loss is known from the scores.
            let loss = match scores.cross_entropy {
                Some((nats, tokens)) => nats / tokens.max(1) as f64,
                None => validation_loss(&*model, batches(), seed, workers())?,
            };
            let bound = bound_results(run, &corpus.tokenizer, &*model, batches(), eval, workers())?;
            let numbers = lm_numbers(&scores, bound, run, corpus);
            // Whoever writes nothing draws no text.
            let sample = options.ranks.leads().then(|| sample_text(run, &*model, corpus)).transpose()?;
            Ok(Validation { loss, numbers, sample })
        },
        reporter,
    )
}

/// The numbers of a validation besides its loss.
fn lm_numbers(
    scores: &Scores,
    bound: Option<BoundResults>,
    run: &Run,
    corpus: &Corpus,
) -> Vec<(String, Option<f64>)> {
    let (eval, seed) = (&run.config.eval, run.config.seed);
    let r = report(&scores.sums, &Bootstrap { replicates: eval.bootstrap, seed });
    let mut numbers = vec![("brierlm".to_owned(), r.brierlm), ("brierlm_se".to_owned(), r.brierlm_se)];
    for n in 0..4 {
        numbers.push((format!("brier_{}", n + 1), r.brier.map(|b| b[n])));
        numbers.push((format!("brier_{}_se", n + 1), r.brier_se.map(|b| b[n])));
    }
    if let Some((nats, _)) = scores.cross_entropy {
        let bits = bits_per_byte(&corpus.tokenizer, nats, &scores.predicted);
        numbers.push(("bits_per_byte".to_owned(), bits));
    }
    // A bound has its number of draws in its name.
    if let Some(last) = bound.and_then(|bound| bound.curve.last().copied()) {
        let n = last.point.samples;
        numbers.push((format!("bound_{n}"), Some(last.point.nats)));
        numbers.push((format!("bits_per_byte_bound_{n}"), last.bits_per_byte));
    }
    numbers
}

/// A short text from the start of a document. A model that knows no start continues the first chunk of a
/// held-out document.
///
/// # Errors
/// What the model answers.
pub fn sample_text(run: &Run, model: &dyn LanguageModel, corpus: &Corpus) -> Result<String> {
    let (seed, k) = (run.config.seed, model.chunk_size());
    let held_out = &corpus.validation;
    let mut tokens = Vec::new();
    if !run.config.bos_chunk {
        let Some(long) = (0..held_out.len()).map(|i| held_out.document(i)).find(|d| d.len() >= k) else {
            return Ok(String::new());
        };
        tokens.extend_from_slice(&long[..k]);
    }
    let options = GenerateOptions { max_tokens: 96, decoding: Decoding::Plain, seed, remainder_budget: 1 };
    let opening = tokens.clone();
    generate(&*model.sampler(), &opening, &options, |t| {
        tokens.extend_from_slice(t);
        true
    })
    .map_err(|e| Error::user(format!("cannot draw a sample: {e}"), e.remedy().unwrap_or_default()))?;
    Ok(corpus.tokenizer.decode(&tokens))
}
