//! What a user sees, case by case.

use super::*;
use serde::Deserialize;

fn yes() -> bool {
    true
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Demo {
    version: u64,
    #[serde(default)]
    name: String,
    model: Model,
    train: Train,
    #[serde(default)]
    stages: Vec<Stage>,
    #[serde(default)]
    note: Option<String>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Model {
    Calm(Calm),
    Baseline { layers: u32 },
    Unigram,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Calm {
    #[serde(default)]
    latent_size: usize,
    hidden_size: usize,
    #[serde(default)]
    head: Head,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Head {
    alpha: f64,
    samples: u32,
}

impl Default for Head {
    fn default() -> Self {
        Self { alpha: 1.0, samples: 8 }
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Train {
    steps: u64,
    #[serde(default, alias = "ramp")]
    warmup: u64,
    #[serde(default)]
    schedule: Schedule,
    #[serde(default = "yes")]
    shuffle: bool,
    #[serde(default)]
    betas: Option<[f64; 2]>,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Schedule {
    #[default]
    Constant,
    Cosine {
        floor: f64,
    },
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stage {
    kind: Kind,
    steps: u32,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Autoencoder,
    Model,
}

impl Validate for Demo {
    const RENAMED: &'static [(&'static str, &'static str)] = &[("ramp", "warmup")];

    fn validate(&self, problems: &mut Problems) {
        if let Model::Calm(calm) = &self.model {
            problems.within("model.calm", |problems| {
                problems.within_range("latent_size", calm.latent_size, 1, 4096);
                problems.within_range("head.alpha", calm.head.alpha, 0.1, 1.9);
            });
        }
        if self.train.warmup > self.train.steps {
            problems
                .add("train.warmup", format!("{} is more than `train.steps`", self.train.warmup))
                .remedy(format!("at most {}", self.train.steps))
                .involves(&["train.steps"]);
        }
    }
}

const GOOD: &str = "\
version: 1
name: demo
model:
  calm:
    latent_size: 128   # per chunk
    hidden_size: 256
train:
  steps: 1000
  schedule: {cosine: {floor: 1e-5}}
";

#[test]
fn a_key_of_an_older_file_and_its_name_of_now_are_one() {
    let old = GOOD.replace("  steps: 1000\n", "  steps: 1000\n  ramp: 5\n");
    assert_eq!(read(&old, &[]).unwrap().value.train.warmup, 5);
    for text in [GOOD, &old, &old.replace("ramp", "warmup")] {
        for (set, is) in [("train.ramp=6", 6), ("train.warmup=7", 7)] {
            let read = read(text, &[set]).unwrap();
            assert_eq!(read.value.train.warmup, is, "{set} on {text}");
            assert!(!read.to_yaml().contains("ramp"));
        }
    }
}

fn read(text: &str, overrides: &[&str]) -> Result<Resolved<Demo>, ConfigErrors> {
    let overrides: Vec<String> = overrides.iter().map(|text| text.to_string()).collect();
    load(ConfigText::new("demo.yaml", text), &overrides)
}

/// The report of a faulty configuration; every line fits the screen.
fn errors(text: &str, overrides: &[&str]) -> String {
    let report = read(text, overrides).expect_err("it should be refused").to_string();
    for line in report.lines() {
        assert!(line.chars().count() <= 80, "too wide: {line}");
        assert!(!line.contains('\x1b') && !line.ends_with(' '), "{line:?}");
    }
    report
}

#[test]
fn a_good_file_is_read_and_its_resolved_form_reads_the_same() {
    let demo = read(GOOD, &[]).unwrap();
    assert_eq!(demo.value.train.schedule, Schedule::Cosine { floor: 1e-5 });
    let yaml = demo.to_yaml();
    assert!(yaml.contains("model:\n  calm:\n    latent_size: 128\n"), "{yaml}");
    assert!(yaml.contains("shuffle: true"), "defaults are written out: {yaml}");
    assert_eq!(read(&yaml, &[]).unwrap().value, demo.value);
}

#[test]
fn all_problems_are_reported_together_in_the_order_of_their_lines() {
    let text = "\
version: 1
nmae: demo
model:
  calm:
    latent_size: 250_000
    hidden_size: 1.5
    head: {alpha: 3.5, sample: 4}
train:
  steps: \"many\"
  warmup: -5
  warmup: 6
  shuffle: yes
  schedule: cosin
  betas: [0.9]
stages:
  - {kind: autoencoder, steps: 10}
  - {kind: decoder, steps: 10}
";
    let expected = r#"demo.yaml has 11 problems

  1. nmae: unknown key
     at demo.yaml:2:1
        2 | nmae: demo
          | ^^^^
     hint: did you mean `name`?

  2. model.calm.latent_size: expected a whole number, found the text "250_000"
     at demo.yaml:5:18
        5 |     latent_size: 250_000
          |                  ^^^^^^^
     hint: write 250000, without separators

  3. model.calm.hidden_size: expected a whole number, found the number 1.5
     at demo.yaml:6:18
        6 |     hidden_size: 1.5
          |                  ^^^
     hint: a whole number from 0 upwards

  4. model.calm.head.alpha: 3.5 is out of range
     at demo.yaml:7:19
        7 |     head: {alpha: 3.5, sample: 4}
          |                   ^^^
     hint: a value from 0.1 to 1.9 is possible

  5. model.calm.head.sample: unknown key
     at demo.yaml:7:24
        7 |     head: {alpha: 3.5, sample: 4}
          |                        ^^^^^^
     hint: did you mean `samples`?

  6. train.steps: expected a whole number, found the text "many"
     at demo.yaml:9:10
        9 |   steps: "many"
          |          ^^^^^^
     hint: a whole number from 0 upwards

  7. train.warmup: expected a whole number, found the number -5
     at demo.yaml:10:11
       10 |   warmup: -5
          |           ^^
     hint: a whole number from 0 upwards

  8. train.warmup: the key is given twice
     at demo.yaml:11:3
       11 |   warmup: 6
          |   ^^^^^^
     hint: keep one of the two lines

  9. train.shuffle: expected true or false, found the text "yes"
     at demo.yaml:12:12
       12 |   shuffle: yes
          |            ^^^
     hint: write `true` (the words are `true` and `false`)

 10. train.schedule: there is no choice `cosin`
     at demo.yaml:13:13
       13 |   schedule: cosin
          |             ^^^^^
     hint: did you mean `cosine`?

 11. train.betas: expected an array of length 2, found a list of 1
     at demo.yaml:14:3
       14 |   betas: [0.9]
          |   ^^^^^
     hint: expected is an array of length 2"#;
    let report = errors(text, &[]);
    assert!(report.contains("stages[1].kind: there is no choice `decoder`"), "{report}");
    let (most, _) = report.split_once("\n\n 12. ").unwrap();
    assert_eq!(most.replace("12 problems", "11 problems"), expected);
}

#[test]
fn a_missing_key_is_shown_at_its_block_and_hides_nothing_else() {
    let text = "version: 1\nmodel:\n  calm: {latent_size: 0}\ntrain: {warmup: x}\n";
    let report = errors(text, &[]);
    assert!(report.starts_with("demo.yaml has 4 problems"), "{report}");
    assert!(report.contains("model.calm.hidden_size: the key is missing\n     at demo.yaml:3:3"), "{report}");
    assert!(report.contains("model.calm.latent_size: 0 is out of range"), "{report}");
    assert!(report.contains("train.steps: the key is missing\n     at demo.yaml:4:1"), "{report}");
    assert!(report.contains("train.warmup: expected a whole number"), "{report}");
}

#[test]
fn missing_blocks_are_reported_once_without_their_contents() {
    let report = errors("version: 1\nstages: [{}, {steps: 1}, 3]\n", &[]);
    let faulty: Vec<_> = read("version: 1\nstages: [{}, {steps: 1}, 3]\n", &[])
        .unwrap_err()
        .reports
        .into_iter()
        .map(|report| report.path)
        .collect();
    assert_eq!(faulty.len(), 6, "{report}");
    for path in ["model", "train", "stages[0].kind", "stages[0].steps", "stages[1].kind", "stages[2]"] {
        assert!(faulty.iter().any(|faulty| faulty == path), "{path}: {report}");
    }
}

#[test]
fn a_rule_that_reads_an_unreadable_key_says_nothing() {
    let report = errors(&GOOD.replace("steps: 1000", "warmup: 10\n  steps: 1.5"), &[]);
    assert!(report.starts_with("demo.yaml has a problem"), "{report}");
    let report = errors(&GOOD.replace("steps: 1000", "warmup: 2000\n  steps: 1000"), &[]);
    assert!(
        report.contains("2000 is more than `train.steps`") && report.contains("hint: at most 1000"),
        "{report}"
    );
    // A misspelled key leaves its default behind, which is not the user's.
    let report = errors(&GOOD.replace("latent_size", "latent_sise"), &[]);
    assert!(report.starts_with("demo.yaml has a problem"), "{report}");
}

#[test]
fn the_schema_version_must_be_there_and_known() {
    let report = errors(&GOOD.replace("version: 1\n", "nmae: x\n"), &[]);
    assert!(report.contains("version: the schema version is missing"), "{report}");
    assert!(report.contains("hint: add the line `version: 1` at the top"), "{report}");
    assert!(report.contains("did you mean `name`?"), "{report}");
    let report = errors(&GOOD.replace("version: 1", "version: 9\nnmae: x"), &[]);
    assert!(report.starts_with("demo.yaml has a problem"), "{report}");
    assert!(report.contains("demo.yaml:1:10") && report.contains("use a newer one"), "{report}");
    assert!(
        errors(&GOOD.replace("version: 1", "version: one"), &[])
            .contains("schema version \"one\" is not known")
    );
    assert!(errors("", &[]).contains("the schema version is missing"));
}

#[test]
fn overrides_are_typed_and_checked_like_the_file() {
    let demo = read(
        GOOD,
        &[
            "train.steps=20",
            "model.calm.head.alpha=0.5",
            "train.schedule=constant",
            "stages=[{kind: model, steps: 1}]",
            "stages.0.steps=7",
            "stages[0].kind=autoencoder",
            "note=\"a = b\"",
        ],
    )
    .unwrap();
    assert_eq!(demo.value.train.steps, 20);
    assert_eq!(demo.value.train.schedule, Schedule::Constant);
    assert_eq!(demo.value.stages, [Stage { kind: Kind::Autoencoder, steps: 7 }]);
    assert_eq!(demo.value.note.as_deref(), Some("a = b"));
    assert_eq!(demo.overrides.len(), 7);
    assert_eq!(
        read(GOOD, &["model={baseline: {layers: 3}}"]).unwrap().value.model,
        Model::Baseline { layers: 3 }
    );
    assert_eq!(read(GOOD, &["model=unigram"]).unwrap().value.model, Model::Unigram);
    assert_eq!(read(GOOD, &["name=a", "name=b"]).unwrap().value.name, "b");
}

#[test]
fn errors_of_overrides_name_the_override() {
    let report = errors(
        GOOD,
        &[
            "train.stesp=20",
            "train.steps=1.5",
            "model.calm.head.alpha=7",
            "optimizer.lr=1",
            "train.steps.x=1",
        ],
    );
    let expected = r#"demo.yaml has 5 problems

  1. train.steps.x: `train.steps` is a single value, not a block of keys
     in --set train.steps.x=1
     hint: leave the last part of the path out to set that value

  2. train.stesp: unknown key
     in --set train.stesp=20
     hint: did you mean `steps`?

  3. optimizer: unknown key
     in --set optimizer.lr=1
     hint: possible: `version`, `name`, `model`, `train`, `stages`, `note`

  4. train.steps: expected a whole number, found the number 1.5
     in --set train.steps=1.5
     hint: a whole number from 0 upwards

  5. model.calm.head.alpha: 7 is out of range
     in --set model.calm.head.alpha=7
     hint: a value from 0.1 to 1.9 is possible"#;
    assert_eq!(sorted_blocks(&report), sorted_blocks(expected));
    for (raw, message) in [
        ("train.steps", "an override needs a `=`"),
        ("=3", "an override needs a key"),
        ("name=", "the override has no value"),
        ("name=[1", "the value is not YAML"),
        ("name={a: 1, a: 2}", "the key is given twice"),
        ("stages.3.steps=1", "expected a list"),
        ("train.betas=[.nan, 1]", "not finite"),
    ] {
        let report = errors(GOOD, &[raw]);
        assert!(report.contains(message) && report.contains(&format!("in --set {raw}")), "{report}");
    }
    let report = errors(&format!("{GOOD}stages: [{{kind: model, steps: 1}}]\n"), &["stages.3.steps=1"]);
    assert!(report.contains("`stages` is a list without this element"), "{report}");
}

/// Blocks of a report without their numbers, in a fixed order.
fn sorted_blocks(report: &str) -> Vec<String> {
    let mut blocks: Vec<String> = report.split("\n\n").map(|block| block[5..].to_string()).collect();
    blocks.sort();
    blocks
}

#[test]
fn exactly_one_choice_is_made_of_an_enum() {
    let report = errors(&GOOD.replace("  calm:", "  baseline: {layers: 2}\n  calm:"), &[]);
    assert!(
        report.contains("model.calm: only one choice can be made, and `baseline` is made too"),
        "{report}"
    );
    assert!(report.contains("demo.yaml:5:3"), "{report}");
    let report = errors(GOOD, &["model.baseline.layers=3"]);
    assert!(
        report.contains("model.baseline: only one choice") && report.contains("in --set model.b"),
        "{report}"
    );
    let report = errors("version: 1\nmodel: {}\ntrain: {steps: 1}\n", &[]);
    assert!(report.contains("expected the name of a choice"), "{report}");
    let report = errors("version: 1\nmodel: {clam: {latent_size: 1}}\ntrain: {steps: 1, setps: 2}\n", &[]);
    assert!(report.contains("model.clam: there is no choice `clam`"), "{report}");
    assert!(report.contains("did you mean `calm`?") && report.contains("train.setps"), "{report}");
    let report = errors("version: 1\nmodel: calm\ntrain: {steps: 1}\n", &[]);
    assert!(report.contains("model: expected a choice with settings"), "{report}");
    let report = errors("version: 1\nmodel: {unigram: {x: 1}}\ntrain: {steps: 1}\n", &[]);
    assert!(report.contains("demo.yaml has a problem") && report.contains("model"), "{report}");
}

#[test]
fn a_key_in_the_wrong_block_is_sent_to_the_right_one() {
    let report = errors(&GOOD.replace("name: demo", "hidden_size: 3"), &[]);
    assert!(report.contains("hint: the key belongs elsewhere: `model.calm.hidden_size`"), "{report}");
}

#[test]
fn what_is_not_yaml_is_one_error_with_its_place() {
    let report = errors("version: 1\nmodel:\n\tcalm: 3\n", &[]);
    assert!(report.contains("demo.yaml:3:1") && report.contains("YAML allows no tabs"), "{report}");
    assert!(errors("version: 1\nname: [1, 2\ntrain: 3\n", &[]).contains("not readable YAML"));
    assert!(errors("version: 1\nmodel: !calm {hidden_size: 3}\n", &[]).contains("written `name: {...}`"));
    assert!(errors("version: 1\n---\nversion: 1\n", &[]).contains("one document"));
    assert!(errors("- 1\n- 2\n", &[]).contains("it holds no keys"));
    assert!(errors("just text", &[]).contains("it holds no keys"));
    assert!(errors("a: *unknown\n", &[]).contains("unknown anchor"));
    assert!(errors("\0\u{1}\u{2}", &[]).contains("not readable YAML"));
}

#[test]
fn files_that_cannot_be_read_say_why() {
    let folder = tempfile::tempdir().unwrap();
    let missing = ConfigText::read(&folder.path().join("no.yaml")).unwrap_err().to_string();
    assert!(missing.contains("no.yaml") && missing.contains("cannot read it"), "{missing}");
    let binary = folder.path().join("binary.yaml");
    std::fs::write(&binary, [0xff, 0xfe, 0x00]).unwrap();
    assert!(ConfigText::read(&binary).unwrap_err().to_string().contains("not UTF-8"));
    let good = folder.path().join("good.yaml");
    std::fs::write(&good, GOOD).unwrap();
    let text = ConfigText::read(&good).unwrap();
    assert_eq!(load::<Demo>(text, &[]).unwrap().path.as_deref(), Some(good.as_path()));
}

#[test]
fn faulty_texts_never_panic_and_always_say_something() {
    // Every prefix of the file, and the file with each line taken out, doubled or emptied.
    let mut texts: Vec<String> = (0..GOOD.len()).map(|end| GOOD[..end].to_string()).collect();
    let lines: Vec<&str> = GOOD.lines().collect();
    for i in 0..lines.len() {
        let key = lines[i].split(':').next().unwrap_or_default();
        for with in
            [String::new(), format!("{0}\n{0}", lines[i]), format!("{key}:"), format!("{key}: [{{a: 1}}]")]
        {
            let mut changed: Vec<String> = lines.iter().map(|line| line.to_string()).collect();
            changed[i] = with;
            texts.push(changed.join("\n"));
        }
    }
    for text in texts {
        if let Err(error) = read(&text, &[]) {
            assert!(!error.reports.is_empty(), "{text}");
            assert!(error.to_string().lines().all(|line| line.chars().count() <= 80), "{error}");
        }
    }
}

#[test]
fn whole_numbers_may_be_written_as_floats_and_marks_stand_before_the_first_key() {
    let text = GOOD.to_string();
    let plain =
        load::<Demo>(ConfigText::new("demo.yaml", text.clone()), &["train.steps=1000".into()]).unwrap();
    for written in ["1e3", "1000.0", "1.0e+3"] {
        let set = [format!("train.steps={written}")];
        let marked = ConfigText::new("demo.yaml", format!("\u{feff}{text}"));
        assert_eq!(load::<Demo>(marked, &set).unwrap().tree, plain.tree, "{written}");
    }
    for wrong in ["1e300", "1.5", "-1e3", "1e17"] {
        let report = errors(GOOD, &[&format!("train.steps={wrong}")]);
        assert!(report.contains("expected a whole number") && !report.contains("exponent"), "{report}");
    }
}
