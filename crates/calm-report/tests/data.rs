//! CSV and JSON: what is written reads back.

mod fixture;

use calm_report::{ReportError, Study, csv, json, read};

fn records(text: &str) -> Vec<Vec<String>> {
    // A reader that insists on as many fields in every line.
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(text.as_bytes());
    reader.records().map(|r| r.expect("a record").iter().map(String::from).collect()).collect()
}

#[test]
fn csv_has_one_line_a_run_in_full_precision() {
    let study = fixture::full();
    let records = records(&csv(&study));
    assert_eq!(records.len(), 1 + 15);
    let column =
        |name: &str| records[0].iter().position(|c| c == name).unwrap_or_else(|| panic!("no {name}"));
    let run = &study.variants[3].runs[1];
    let line = &records[1 + 3 * 3 + 1];
    assert_eq!(line[column("variant")], "k4");
    assert_eq!(line[column("seed")], "2");
    assert_eq!(line[column("chunk_size")], "4");
    assert_eq!(line[column("brierlm")].parse::<f64>().ok(), run.brierlm);
    assert_eq!(line[column("brier_4")].parse::<f64>().ok(), run.brier.map(|b| b[3]));
    assert_eq!(line[column("training_seconds")].parse::<f64>().ok(), Some(run.seconds));
    let score = study.variants[3].aligned.clone().expect("a score");
    let se = line[column("variant_brier_2_se")].parse::<f64>().ok();
    assert_eq!(se, score.brier[1].se());
    assert_eq!(line[column("setting.chunk_size")], "4");
    // Undefined: an empty field, not a zero.
    assert_eq!(records[13][column("variant")], "k8");
    assert_eq!(records[13][column("variant_brierlm")], "");
    assert_eq!(records[1][column("chunk_size")], "1");
}

#[test]
fn csv_quotes_what_would_break_a_line() {
    let mut study = fixture::single_seed();
    let name = "a \"quoted\", name\r\nover two lines";
    study.variants[0].name = name.into();
    let text = csv(&study);
    assert!(text.contains("\"a \"\"quoted\"\", name\r\nover two lines\""));
    assert!(text.ends_with("\r\n"));
    assert_eq!(records(&text)[1][1], name);
    assert_eq!(records(&csv(&fixture::hostile())).len(), 1 + 60);
    assert_eq!(records(&csv(&Study::default())).len(), 1);
}

#[test]
fn json_reads_back_as_the_same_study() {
    for study in [fixture::full(), fixture::single_seed(), fixture::hostile(), Study::default()] {
        assert_eq!(read(&json(&study).expect("JSON")).expect("a study"), study);
    }
}

#[test]
fn json_refuses_numbers_that_it_would_lose() {
    let mut study = fixture::full();
    study.variants[0].runs[0].curve[0].loss = f64::NAN;
    assert!(matches!(json(&study), Err(ReportError::NotFinite(_))));
    assert!(matches!(read("{}"), Err(ReportError::Json(_))));
    assert!(matches!(read("not JSON"), Err(ReportError::Json(_))));
}
