use super::*;

const BASE: &str = "version: 1
model: { calm: { chunk_size: 4 } }
train:
  autoencoder: { steps: 4, batch_rows: 2, context: 8, learning_rate: 1e-3 }
  lm: { steps: 10, batch_rows: 2, context: 8, learning_rate: 1e-3, warmup_steps: 9 }
";
const DISCRETE: &str = "version: 1
model: { baseline: {} }
train:
  lm: { steps: 10, batch_rows: 2, context: 32, learning_rate: 1e-3 }
";

struct Fixed;

impl BudgetFacts for Fixed {
    fn vocab_size(&mut self, _: &RunConfig) -> Result<usize> {
        Ok(300)
    }
    fn rates(&mut self, variants: &[(String, RunConfig)]) -> Result<Vec<f64>> {
        Ok(variants.iter().map(|(_, config)| 100.0 * config.chunk_size() as f64).collect())
    }
}

fn find(name: &str) -> std::result::Result<ConfigText, ConfigErrors> {
    Ok(ConfigText::new(name, if name == "baseline" { DISCRETE } else { BASE }))
}

fn expand(text: &str) -> Result<Ablation> {
    let config = load::<AblationConfig>(ConfigText::new("ablation.yaml", text), &[])?.value;
    Ablation::expand(&config, Path::new("out"), &find, &mut Fixed)
}

const K: &str = "version: 1
budget: { tokens: 6400 }
seeds: [1, 2]
context_tokens: 32
variants:
  - { name: baseline, config: baseline, grid: false }
  - { name: calm, config: base }
grid: { model.calm.chunk_size: [1, 2, 4, 8] }
";

#[test]
fn a_grid_over_k_keeps_tokens_and_context_in_tokens_equal() {
    let a = expand(K).unwrap();
    let names: Vec<&str> = a.runs.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names[..2], ["baseline-seed1", "calm+chunk_size=1-seed1"]);
    assert_eq!((a.runs.len(), a.variants.len(), a.autoencoders.len()), (10, 5, 4));
    for run in &a.runs {
        let c = &run.config.value;
        assert_eq!(c.train.lm.context * c.chunk_size(), 32, "{}", run.name);
        assert_eq!(c.train.lm.steps, 100, "{}", run.name);
    }
    let configs = a.configs();
    assert_eq!((alignment::common_chunk(&configs), alignment::context_tokens(&configs)), (8, 32));
    let sizes: Vec<&str> = a
        .variants
        .iter()
        .map(|v| v.settings.iter().find(|s| s.0 == "model.chunk_size").unwrap().1.as_str())
        .collect();
    assert_eq!(sizes, ["-", "1", "2", "4", "8"]);
}

#[test]
fn an_input_that_is_counted_in_chunks_is_compared_at_one_chunk_size_alone() {
    let half = "set: { data.loss_on: { after_share: 0.5 } }\ngrid: { model.calm.chunk_size: ";
    let of = |sizes: &str| {
        let calm = "variants:\n  - { name: calm, config: base }\n";
        let text = K.replace(&K[K.find("variants").unwrap()..], calm) + half + sizes + " }\n";
        expand(&text)
    };
    let error = of("[1, 2]").err().unwrap().to_string();
    assert!(error.contains("data.loss_on") && error.contains("other tokens"), "{error}");
    assert_eq!(of("[2]").unwrap().runs.len(), 2);
}

#[test]
fn one_autoencoder_serves_every_run_that_can_use_it() {
    let text = "version: 1
budget: { tokens: 640 }
seeds: [1, 2]
variants: [{ name: k4, config: base }]
grid: { model.calm.head.energy.samples: [2, 4], train.lm.learning_rate: [1e-3, 2e-3] }
";
    let a = expand(text).unwrap();
    assert_eq!((a.runs.len(), a.autoencoders.len()), (8, 1));
    assert_eq!(a.runs[0].name, "samples=2+learning_rate=0.001-seed1");
    assert_eq!(a.autoencoders[0].variants.len(), 4);
    assert!(a.runs.iter().all(|r| r.autoencoder == Some(0)));
    assert_eq!(a.autoencoders[0].config.value.seed, 1);
    let own = expand(&text.replace("variants", "autoencoder: own\nvariants")).unwrap();
    assert_eq!(own.autoencoders.len(), 2);
    assert_eq!(own.autoencoders[1].config.value.seed, 2);
    let dropouts = text.replace("model.calm.head.energy.samples", "model.calm.autoencoder.latent_dropout");
    let different = expand(&dropouts.replace("[2, 4]", "[0, 0.1]"));
    assert_eq!(different.unwrap().autoencoders.len(), 2);
}

#[test]
fn budgets_of_flops_and_seconds_become_steps() {
    let flops = expand(&K.replace("tokens: 6400", "flops: 1e11")).unwrap();
    let steps: Vec<u64> = flops.runs[..5].iter().map(|r| r.config.value.train.lm.steps).collect();
    // The larger the chunks, the cheaper a token.
    assert!(steps[1] < steps[2] && steps[2] < steps[3] && steps[3] < steps[4], "{steps:?}");
    let seconds = expand(&K.replace("tokens: 6400", "seconds: 64")).unwrap();
    let steps: Vec<u64> = seconds.runs[..5].iter().map(|r| r.config.value.train.lm.steps).collect();
    assert_eq!(steps, [100, 100, 200, 400, 800]);
}

#[test]
fn a_short_budget_does_not_end_inside_its_warm_up() {
    let a = expand(&K.replace("6400", "640")).unwrap();
    let lm = &a.runs[1].config.value.train.lm;
    assert_eq!((lm.steps, lm.warmup_steps), (10, 2));
    let e = expand(&K.replace("6400", "63")).unwrap_err();
    assert!(e.to_string().contains("one step of 64 tokens"), "{e}");
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let e = expand(&K.replace("config: base }", "config: base, set: { data.max_bytes: 5 } }"));
    assert!(e.unwrap_err().to_string().contains("another text"));
    let e = expand(&K.replace("context_tokens: 32", "context_tokens: 12")).unwrap_err();
    assert!(e.to_string().contains("whole chunks of 8"), "{e}");
}

#[test]
fn mistakes_in_the_file_are_found_with_their_place() {
    for (from, to, expected) in [
        ("seeds: [1, 2]", "seeds: [1, 1]", "a seed twice"),
        ("budget: { tokens: 6400 }", "budget: { tokens: 0 }", "must be above 0"),
        ("name: calm", "name: baseline", "is there already"),
        ("grid: { model", "grid: { train.lm.steps: [1], model", "the budget decides it"),
        ("[1, 2, 4, 8]", "4", "must list values"),
        ("[1, 2, 4, 8]", "[1, 99]", "chunks have between 1 and 64 tokens"),
        ("model.calm.chunk_size", "model.calm.chunksize", "unknown key"),
        ("context_tokens", "contxt_tokens", "did you mean"),
    ] {
        let e = expand(&K.replace(from, to)).unwrap_err().to_string();
        assert!(e.contains(expected), "{to}: {e}");
    }
}

#[test]
fn variants_never_share_a_folder() {
    let heads = "model.calm.head: [{ energy: { samples: 2 } }, { energy: { samples: 4 } }]";
    let a = expand(&K.replace("model.calm.chunk_size: [1, 2, 4, 8]", heads)).unwrap();
    let names: Vec<&str> = a.variants.iter().map(|v| v.name.as_str()).collect();
    assert_eq!(names, ["baseline", "calm+head=energy", "calm+head=energy.2"]);
    let e = expand(&K.replace("[1, 2, 4, 8]", "[4, 4]")).unwrap_err();
    assert!(e.to_string().contains("is there twice"), "{e}");
}

#[test]
fn what_cannot_be_scored_is_refused_before_anything_is_trained() {
    for (score, expected) in [
        ("every: 5", "chunks of K = 2 do not start there"),
        ("context: 9000", "trained on 32"),
        ("every: 32", "no two positions"),
    ] {
        let e = expand(&format!("{K}score: {{ {score} }}\n")).unwrap_err().to_string();
        assert!(e.contains(expected), "{score}: {e}");
    }
}
