//! `calm bench` and `calm doctor`: what they print; their times are nobody's business here.

use crate::house::House;

const WORK: [&str; 9] =
    ["ae", "lm", "baseline", "energy", "attention", "generate", "brier_k1", "brier_k2", "brier_k4"];

#[test]
fn everything_is_measured_and_fits_80_columns() {
    let house = House::new();
    let table = house.ok(&["bench", "--size", "tiny", "--seconds", "0.01"]);
    for word in ["matrix product 2048", "energy_score", "attention_block", "brier_k4"].iter().chain(&WORK) {
        assert!(table.contains(word), "{word}: {table}");
    }
    let widest = table.lines().map(|l| l.chars().count()).max();
    assert!(widest <= Some(80), "{widest:?}: {table}");
}

#[test]
fn one_piece_of_work_has_the_fields_that_are_compared_with_other_programs() {
    let house = House::new();
    let args = ["bench", "--size", "tiny", "--what", "lm,generate", "--seconds", "0.01", "--format", "json"];
    let report = house.json(&args);
    let work = report["work"].as_array().unwrap();
    assert_eq!(work.iter().map(|w| w["what"].as_str().unwrap()).collect::<Vec<_>>(), ["lm", "generate"]);
    for field in
        ["seconds_per_step", "cpu_seconds_per_step", "tokens_per_second", "flops_per_step", "utilisation"]
    {
        assert!(work[0][field].as_f64().unwrap() > 0.0, "{field}: {report}");
    }
    assert_eq!(work[0]["seconds_quartiles"].as_array().unwrap().len(), 2);
    assert_eq!(report["operators"], serde_json::json!([]));
}

#[test]
fn what_cannot_be_measured_is_named() {
    let house = House::new();
    let error = house.error(&["bench", "--size", "huge"]);
    assert!(error.contains("huge") && error.contains("small, small-v1024"), "{error}");
    house.refuses(&["bench", "--what", "exchange"], &["nobody to exchange", "--processes 2"]);
    house.refuses(&["bench", "--what", "lm", "--processes", "2"], &["nothing else", "--what exchange"]);
    for args in
        [&["bench", "--what", "all"][..], &["bench", "--seconds", "nan"], &["doctor", "--seconds", "inf"]]
    {
        let done = house.run(args);
        assert_eq!(done.code, 2, "{args:?}: {}", done.err);
    }
}

#[test]
fn the_doctor_finds_a_processor_and_what_slows_it() {
    let house = House::new();
    let found = house.json(&["doctor", "--seconds", "0.1", "--threads", "1", "--format", "json"]);
    assert_eq!(found["threads"], 1);
    assert!(found["matrix"][0]["flops_per_second"].as_f64().unwrap() > 0.0, "{found}");
    let problems = found["problems"].as_array().unwrap();
    if found["cores"].as_u64() > Some(1) {
        let named = problems.iter().any(|p| p["what"].as_str().unwrap().starts_with("only 1 of"));
        assert!(named, "{found}");
    }
    let text = house.ok(&["doctor", "--seconds", "0.1"]);
    assert!(text.contains("processor") && text.contains("copying memory"), "{text}");
}
