//! Settings of families and heads: what is impossible is named by its key, and a name finds its settings.

use calm_config::Problems;
use calm_lm::{
    CalmConfig, DiffusionConfig, EnergyConfig, FlowConfig, HeadConfig, HeadSettings, ModelConfig, Solver,
};

/// Keys of the problems of a head.
fn problems(head: &dyn HeadSettings) -> Vec<String> {
    let mut problems = Problems::new();
    head.validate(&mut problems);
    problems.paths()
}

#[test]
fn impossible_exponents_counts_of_steps_and_draws_are_refused() {
    let energy = EnergyConfig { alpha: 2.0, samples: 1, ..Default::default() };
    assert_eq!(problems(&energy), ["samples", "alpha"]);
    let flow = FlowConfig { blocks: Some(0), repeats: 0, steps: Some(0), ..Default::default() };
    assert_eq!(problems(&flow), ["blocks", "repeats", "steps"]);
    let diffusion = DiffusionConfig { blocks: Some(0), repeats: 0, steps: 1, ..Default::default() };
    assert_eq!(problems(&diffusion), ["blocks", "repeats", "steps"]);
    for sampling_steps in [1, 1001] {
        let diffusion = DiffusionConfig { sampling_steps, ..Default::default() };
        assert_eq!(problems(&diffusion), ["sampling_steps"]);
    }
    let good: [HeadConfig; 3] =
        [HeadConfig::default(), FlowConfig::reference().into(), DiffusionConfig::reference().into()];
    for head in good {
        assert!(problems(&*head).is_empty());
    }
}

#[test]
fn both_solvers_call_the_net_twenty_times_by_default() {
    assert_eq!(FlowConfig::default().calls(), 20);
    assert_eq!(FlowConfig { solver: Solver::Euler, ..Default::default() }.calls(), 20);
    assert_eq!(FlowConfig { steps: Some(3), ..Default::default() }.calls(), 6);
}

#[test]
fn a_problem_inside_a_family_has_its_whole_path() {
    let text = r#"{ "calm": { "chunk_size": 65, "head": { "energy": { "samples": 1 } } } }"#;
    let model: ModelConfig = serde_json::from_str(text).unwrap();
    let mut problems = Problems::new();
    problems.within("model", |p| p.within(model.name(), |p| model.validate(p)));
    let paths = problems.paths();
    assert!(paths.contains(&"model.calm.chunk_size".to_owned()), "{paths:?}");
    assert!(paths.contains(&"model.calm.head.energy.samples".to_owned()), "{paths:?}");
}

#[test]
fn what_is_wrong_inside_a_chunk_is_named_by_its_own_keys() {
    let found = |text: &str| {
        let model: ModelConfig = serde_json::from_str(text).unwrap();
        let mut problems = Problems::new();
        model.validate(&mut problems);
        problems.paths()
    };
    let good = r#"{ "patch": { "chunk_size": 4, "local": { "layers": 0 } } }"#;
    assert!(found(good).is_empty() && found(r#"{ "multi-token": { "chunk_size": 4 } }"#).is_empty());
    // Heads of the backbone's size that do not fill the width.
    assert_eq!(found(&good.replace("\"layers\": 0", "\"hidden_size\": 100, \"heads\": 3")), ["local.heads"]);
    assert_eq!(found(&good.replace("\"layers\": 0", "\"heads\": 0")), ["local.heads"]);
    // What the local decoder takes from the backbone is wrong there alone.
    let both = r#"{ "patch": { "chunk_size": 65, "backbone": { "heads": 3 } } }"#;
    assert_eq!(found(both), ["chunk_size", "backbone.heads"]);
    let heads = r#"{ "multi-token": { "chunk_size": 0, "heads": { "intermediate_size": 0 } } }"#;
    assert_eq!(found(heads), ["chunk_size", "heads.intermediate_size"]);
}

#[test]
fn what_is_impossible_of_concepts_is_named_by_its_key() {
    let found = |settings: &str| {
        let text = format!("{{ \"dlcm\": {settings} }}");
        let model: ModelConfig = serde_json::from_str(&text).unwrap();
        assert_eq!(
            serde_json::from_str::<ModelConfig>(&serde_json::to_string(&model).unwrap()).unwrap(),
            model
        );
        let mut problems = Problems::new();
        model.validate(&mut problems);
        problems.paths()
    };
    assert!(found("{}").is_empty());
    assert!(found(r#"{ "boundaries": { "by": "every" }, "encoder_layers": 0 }"#).is_empty());
    assert!(
        found(r#"{ "boundaries": { "by": { "cosine": {} }, "weight": 0 }, "smoothing": "none" }"#).is_empty()
    );
    assert_eq!(found(r#"{ "tokens": { "heads": 3 } }"#), ["tokens.heads"]);
    assert_eq!(found(r#"{ "concepts": { "layers": 0 } }"#), ["concepts.layers"]);
    assert_eq!(found(r#"{ "encoder_layers": 5 }"#), ["encoder_layers"]);
    assert_eq!(found(r#"{ "boundaries": { "by": "every", "ratio": 2.5 } }"#), ["boundaries.ratio"]);
    assert_eq!(found(r#"{ "boundaries": { "ratio": 1.05 } }"#), ["boundaries.ratio"]);
    assert_eq!(
        found(r#"{ "boundaries": { "by": "every" }, "straight_through": true }"#),
        ["straight_through"]
    );
    assert_eq!(
        found(r#"{ "boundaries": { "ratio": 1, "weight": -1 } }"#),
        ["boundaries.ratio", "boundaries.weight"]
    );
    let sharpness = r#"{ "boundaries": { "by": { "learnt": { "sharpness": 0 } } } }"#;
    assert_eq!(found(sharpness), ["boundaries.by.learnt.sharpness"]);
    let threshold = r#"{ "boundaries": { "by": { "cosine": { "threshold": 1 } } } }"#;
    assert_eq!(found(threshold), ["boundaries.by.cosine.threshold"]);
    assert_eq!(found(r#"{ "cross": { "heads": 4, "kv_heads": 3 } }"#), ["cross"]);
    // Nothing would teach the learnt boundaries.
    assert_eq!(found(r#"{ "boundaries": { "weight": 0 }, "smoothing": "none" }"#), ["boundaries"]);
    for taught in [r#""straight_through": true, "smoothing": "none""#, r#""smoothing": "ema""#] {
        assert!(found(&format!("{{ \"boundaries\": {{ \"weight\": 0 }}, {taught} }}")).is_empty());
    }
}

#[test]
fn a_choice_writes_what_it_reads_and_equals_only_its_like() {
    let read = |text: &str| serde_json::from_str::<ModelConfig>(text);
    let calm = read(r#"{ "calm": { "chunk_size": 4, "head": { "flow": { "repeats": 2 } } } }"#).unwrap();
    assert_eq!(read(&serde_json::to_string(&calm).unwrap()).unwrap(), calm);
    assert_eq!(calm.get::<CalmConfig>().unwrap().chunk_size, 4);
    let other = read(r#"{ "calm": { "chunk_size": 4 } }"#).unwrap();
    let baseline = read(r#"{ "baseline": {} }"#).unwrap();
    assert!(calm != other && calm != baseline && baseline == baseline.clone());
}

#[test]
fn names_that_do_not_exist_are_answered_with_those_that_do() {
    let error = |text: &str| serde_json::from_str::<ModelConfig>(text).unwrap_err().to_string();
    assert!(
        error(r#"{ "clam": {} }"#).contains("unknown variant `clam`, expected one of `calm`, `baseline`")
    );
    let head = error(r#"{ "calm": { "chunk_size": 4, "head": { "enrgy": {} } } }"#);
    assert!(
        head.contains("unknown variant `enrgy`, expected one of `energy`, `flow`, `diffusion`"),
        "{head}"
    );
    assert!(error(r#"{ "calm": { "chunk_sise": 4 } }"#).contains("unknown field `chunk_sise`"));
}
