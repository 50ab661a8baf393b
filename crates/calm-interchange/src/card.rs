//! A model card, written from what a run recorded: what it is, its data, budget and scores with their errors, and how
//! it is used and made again. What was not recorded is not told.

use std::fmt::{self, Display, Formatter};

use calm_data::Source;
use calm_run::checkpoint::StageState;
use calm_run::{RunConfig, RunRecord, Stage};
use serde_json::{Map, Value};

use super::OURS_FOLDER;
use super::export::OURS;

/// What is known of a run.
pub(super) struct Facts<'a> {
    pub(super) config: &'a RunConfig,
    pub(super) record: &'a RunRecord,
    /// Stages with their numbers of parameters, and what their checkpoints say.
    pub(super) stages: Vec<(Stage, usize, StageState)>,
    /// `results.json`.
    pub(super) results: Map<String, Value>,
    /// Whether the weights were rounded on their way.
    pub(super) rounded: bool,
    /// `architectures`, or [`OURS`].
    pub(super) published: &'static str,
}

/// A card.
pub(super) struct Card<'a> {
    /// `OWNER/NAME`.
    pub(super) name: &'a str,
    pub(super) licence: Option<&'a str>,
    pub(super) facts: Facts<'a>,
}

impl Display for Card<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.front(f)?;
        self.what(f)?;
        self.usage(f)?;
        self.data(f)?;
        self.budget(f)?;
        self.scores(f)?;
        self.sample(f)?;
        self.again(f)
    }
}

impl Card<'_> {
    /// The block that the hub reads.
    fn front(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "---\nlibrary_name: calm\npipeline_tag: text-generation")?;
        writeln!(f, "tags:\n- calm\n- {}", self.facts.config.model.name())?;
        if let Some(licence) = self.licence {
            writeln!(f, "license: {}", quoted(licence))?;
        }
        if let Source::Hub(hub) = &self.facts.config.data.source {
            writeln!(f, "datasets:\n- {}", quoted(&hub.dataset))?;
        }
        writeln!(f, "---\n")
    }

    fn what(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Facts { config, record, published, .. } = &self.facts;
        let name = self.name.rsplit('/').next().unwrap_or(self.name);
        writeln!(f, "# {name}\n")?;
        if !config.description.is_empty() {
            writeln!(f, "{}\n", one_line(&config.description))?;
        }
        writeln!(f, "| what | |\n|---|---|")?;
        writeln!(f, "| kind of model | {} |", cell(config.model.title()))?;
        let head = config.model.head().map(|head| head.name());
        if let Some(head) = head {
            writeln!(f, "| head | {head} |")?;
        }
        writeln!(f, "| tokens a chunk, K | {} |", config.chunk_size())?;
        writeln!(f, "| vocabulary | {} |", record.vocab_size)?;
        writeln!(f, "| context | {} chunks |", config.train.lm.context)?;
        for (stage, parameters, _) in &self.facts.stages {
            writeln!(f, "| parameters of the {} | {} |", called(*stage), grouped(*parameters as u64))?;
        }
        match *published == OURS {
            true => writeln!(f, "| form of the weights | this program's own |\n"),
            false => writeln!(
                f,
                "| form of the weights | `{published}`, as the reference implementation has it |\n"
            ),
        }
    }

    fn usage(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let name = self.name.rsplit('/').next().unwrap_or(self.name);
        writeln!(f, "## Use\n\n```console\n$ calm pull {}", self.name)?;
        if self.facts.stages.iter().any(|(stage, ..)| *stage == Stage::Lm) {
            writeln!(f, "$ calm generate --run runs/{name} --prompt \"...\"")?;
            writeln!(f, "$ calm eval brierlm --run runs/{name} --data FILE\n```\n")
        } else {
            writeln!(f, "$ calm eval autoencoder --run runs/{name} --data FILE\n```\n")
        }
    }

    fn data(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let record = self.facts.record;
        writeln!(f, "## Data\n")?;
        if !record.corpus.is_empty() {
            writeln!(f, "{}\n", one_line(&record.corpus))?;
        }
        if record.corpus_hash.is_empty() {
            return writeln!(f, "Trained elsewhere: this record does not know on what.\n");
        }
        writeln!(
            f,
            "BLAKE3 of the text as it was taken: `{}`; of the tokenizer: `{}`.\n",
            record.corpus_hash, record.tokenizer_hash
        )
    }

    fn budget(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let trained = self.facts.stages.iter().filter(|(.., state)| state.step > 0);
        let rows: Vec<_> = trained.collect();
        if rows.is_empty() {
            return Ok(());
        }
        writeln!(f, "## Budget\n\n| stage | steps | tokens seen | time |\n|---|---:|---:|---:|")?;
        for (stage, _, state) in rows {
            let (tokens, time) = (grouped(state.tokens), time(state.seconds));
            writeln!(f, "| {} | {} | {tokens} | {time} |", called(*stage), grouped(state.step))?;
        }
        let record = self.facts.record;
        let device = record.history.iter().rev().find_map(|entry| entry.device.as_deref()).unwrap_or("cpu");
        writeln!(
            f,
            "\nOn {} ({}, {} threads), seed {}.\n",
            cell(device),
            record.platform,
            record.threads,
            self.facts.config.seed
        )
    }

    fn scores(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let results = &self.facts.results;
        let brier = results.get("brier").and_then(Value::as_object);
        let autoencoder = results.get("autoencoder").and_then(Value::as_object);
        if brier.is_none() && autoencoder.is_none() {
            return writeln!(f, "## Scores\n\nIt was not scored.\n");
        }
        writeln!(f, "## Scores\n")?;
        self.scored(f, brier)?;
        if let Some(brier) = brier {
            brier_table(f, brier)?;
        }
        if let Some(a) = autoencoder {
            let percent = |key: &str| Some(format!("{:.3} %", 100.0 * a.get(key)?.as_f64()?));
            let tokens = a.get("tokens").and_then(Value::as_u64).unwrap_or(0);
            if let (Some(right), Some(chunks)) = (percent("token_accuracy"), percent("chunk_accuracy")) {
                writeln!(
                    f,
                    "The autoencoder gives back {right} of {} held-out tokens and {chunks} of their chunks from a \
                     sample of the posterior.\n",
                    grouped(tokens)
                )?;
            }
        }
        Ok(())
    }

    /// Says so where scores are of other weights than these. A run that came from elsewhere begins at step 0.
    fn scored(&self, f: &mut Formatter<'_>, brier: Option<&Map<String, Value>>) -> fmt::Result {
        let of = brier.and_then(|brier| brier.get("step")).and_then(Value::as_u64);
        let here = self.facts.stages.iter().find(|(stage, ..)| *stage == Stage::Lm);
        let step = here.map(|(.., state)| state.step).filter(|step| *step > 0);
        if let (Some(of), Some(step)) = (of, step)
            && of != step
        {
            let (of, step) = (grouped(of), grouped(step));
            writeln!(
                f,
                "Of the language model's checkpoint at step {of}; the weights here are of step {step}.\n"
            )?;
        }
        if self.facts.rounded {
            writeln!(f, "Scored before the weights were rounded.\n")?;
        }
        Ok(())
    }

    /// What the run wrote itself at its end.
    fn sample(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Some(text) = self.facts.results.get("sample").and_then(Value::as_str) else { return Ok(()) };
        if text.trim().is_empty() {
            return Ok(());
        }
        let text: String = text.chars().filter(|c| !c.is_control() || *c == '\n').take(600).collect();
        // A fence longer than any in it.
        let longest = text.split(|c| c != '~').map(str::len).max().unwrap_or(0);
        let fence = "~".repeat(longest.max(2) + 1);
        writeln!(
            f,
            "## A sample\n\nThe first that it wrote at temperature 1:\n\n{fence}text\n{}\n{fence}\n",
            text.trim_end()
        )
    }

    fn again(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let record = self.facts.record;
        writeln!(f, "## To make it again\n")?;
        writeln!(
            f,
            "`{OURS_FOLDER}/config.yaml` has every setting, `{OURS_FOLDER}/run.json` the record.\n\n```console"
        )?;
        for entry in record.history.iter().filter(|entry| !entry.command.is_empty()) {
            let words: Vec<String> = entry.command.iter().map(|word| for_a_shell(word)).collect();
            writeln!(f, "$ {}", words.join(" "))?;
        }
        writeln!(f, "```\n")?;
        if let Some(last) = record.history.iter().rev().find(|entry| !entry.version.is_empty()) {
            write!(f, "calm {}", last.version)?;
            if let Some(commit) = &last.commit {
                write!(f, ", commit {commit}")?;
            }
            writeln!(
                f,
                ". The same settings, text and seed give the same losses to the last digit on the same kind of CPU.\n"
            )?;
        }
        writeln!(
            f,
            "Method: Shao et al., *Continuous Autoregressive Language Models*, \
             [arXiv 2510.27688](https://arxiv.org/abs/2510.27688)."
        )
    }
}

/// Brier scores beside n-gram models, in percent with one standard error.
fn brier_table(f: &mut Formatter<'_>, brier: &Map<String, Value>) -> fmt::Result {
    let count = |key: &str| brier.get(key).and_then(Value::as_u64).map_or_else(|| "?".into(), grouped);
    writeln!(
        f,
        "On {} held-out documents, {} positions, {} draws each; percent, ± one standard error (bootstrap over \
         documents).\n",
        count("documents"),
        count("positions"),
        count("samples")
    )?;
    writeln!(f, "| | Brier-1 | Brier-2 | Brier-3 | Brier-4 | BrierLM |\n|---|---:|---:|---:|---:|---:|")?;
    let row = |f: &mut Formatter<'_>, name: &str, of: &Map<String, Value>| {
        let number = |at: Option<&Value>| at.and_then(Value::as_f64);
        let cells = |n: usize| {
            let at = |key: &str| number(of.get(key).and_then(|all| all.get(n)));
            with_error(at("brier"), at("brier_se"))
        };
        let whole = with_error(number(of.get("brierlm")), number(of.get("brierlm_se")));
        let all: Vec<String> = (0..4).map(cells).chain([whole]).collect();
        writeln!(f, "| {name} | {} |", all.join(" | "))
    };
    row(f, "**this model**", brier)?;
    for name in ["bigram", "unigram"] {
        let of = brier.get("ngram").and_then(|n| n.get(name)).and_then(Value::as_object);
        of.map_or(Ok(()), |of| row(f, name, of))?;
    }
    writeln!(f)?;
    let likelihood = [
        ("cross_entropy", "nats a token"),
        ("perplexity", "perplexity"),
        ("bits_per_byte", "bits a byte of text"),
    ];
    let told: Vec<String> = likelihood
        .iter()
        .filter_map(|(key, unit)| Some(format!("{:.3} {unit}", brier.get(*key)?.as_f64()?)))
        .collect();
    if !told.is_empty() {
        writeln!(f, "Likelihood of the same text: {}.\n", told.join(", "))?;
    }
    let points = brier.get("bound").and_then(|bound| bound.get("curve")).and_then(Value::as_array);
    let last = points.and_then(|points| points.last()).and_then(Value::as_object);
    if let Some(bits) = last.and_then(|point| point.get("bits_per_byte")).and_then(Value::as_f64) {
        writeln!(f, "Likelihood of the same text: at most {bits:.3} bits a byte, by a bound.\n")?;
    }
    Ok(())
}

fn with_error(value: Option<f64>, error: Option<f64>) -> String {
    match (value, error) {
        (Some(value), Some(error)) => format!("{value:.2} ± {error:.2}"),
        (Some(value), None) => format!("{value:.2}"),
        _ => "-".to_owned(),
    }
}

fn called(stage: Stage) -> &'static str {
    match stage {
        Stage::Autoencoder => "autoencoder",
        Stage::Lm => "language model",
    }
}

/// `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn time(seconds: f64) -> String {
    match seconds.max(0.0).round() as u64 {
        s @ 0..60 => format!("{s} s"),
        s @ 60..3600 => format!("{} min {} s", s / 60, s % 60),
        s => format!("{} h {} min", s / 3600, s % 3600 / 60),
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('<', "&lt;")
}

fn cell(text: &str) -> String {
    one_line(text).replace('|', "\\|")
}

/// A scalar of YAML.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// A word that can be pasted.
fn for_a_shell(word: &str) -> String {
    let word: String = word.chars().filter(|c| !c.is_control()).collect();
    shlex::try_quote(&word).map_or_else(|_| word.clone(), Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_times_and_words_are_written_for_people() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([59.4, 61.0, 3_700.0].map(time), ["59 s", "1 min 1 s", "1 h 1 min"]);
        assert_eq!(with_error(Some(1.234), Some(0.05)), "1.23 ± 0.05");
        assert_eq!(for_a_shell("--set"), "--set");
        assert_eq!(for_a_shell("data.source={path: its}"), "'data.source={path: its}'");
        assert_eq!(cell("a|b\n<script>"), "a\\|b &lt;script>");
    }
}
