//! Runs that are followed, and their metrics as tables.

use std::fs::File;

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::RowAccessor;

use crate::house::{House, trained};

/// A house with copies of the trained runs.
fn furnished() -> House {
    let house = House::new();
    for run in ["calm", "baseline"] {
        trained().copy_run(&format!("runs/{run}"), &house, &format!("runs/{run}"));
    }
    house
}

#[test]
fn runs_side_by_side_as_a_table_where_there_is_no_terminal() {
    let house = furnished();
    let shown = house.ok(&["watch", "runs/calm", "runs/baseline"]);
    assert!(shown.lines().all(|line| line.chars().count() <= 80), "{shown}");
    let lines: Vec<&str> = shown.lines().collect();
    assert!(lines[0].starts_with("run") && lines.len() == 4, "{shown}");
    for (line, name) in [(lines[2], "calm"), (lines[3], "baseline")] {
        assert!(line.starts_with(name) && line.contains("lm 20/20") && line.contains("finished"), "{shown}");
    }
    // Without a name the latest; a folder of runs stands for all of them.
    assert_eq!(house.ok(&["watch", "--once"]).lines().count(), 3);
    assert_eq!(house.ok(&["watch", "runs"]).lines().count(), 4);
    house.refuses(&["watch", "runs/nothing"], &["runs/nothing: no such folder", "runs/NAME"]);
}

#[test]
fn metrics_are_the_same_in_csv_parquet_and_for_trackio() {
    let house = furnished();
    let text = house.ok(&["metrics", "runs/calm", "runs/baseline"]);
    let mut csv = csv::Reader::from_reader(text.as_bytes());
    let header = csv.headers().unwrap().clone();
    assert_eq!(header.iter().take(4).collect::<Vec<_>>(), ["run", "stage", "step", "wall_time"]);
    let rows: Vec<csv::StringRecord> = csv.records().collect::<Result<_, _>>().unwrap();
    let loss = header.iter().position(|name| name == "train/loss").unwrap();
    let wanted = house.metrics("runs/calm");
    let of = |row: &csv::StringRecord, step: u64| {
        &row[0] == "calm" && &row[1] == "lm" && row[2] == step.to_string()
    };
    let found = rows.iter().find(|row| of(row, 7) && !row[loss].is_empty()).unwrap();
    let line =
        wanted.iter().find(|l| l["stage"] == "lm" && l["step"] == 7 && l["values"]["train/loss"].is_number());
    assert_eq!(found[loss].parse::<f64>().unwrap(), line.unwrap()["values"]["train/loss"].as_f64().unwrap());

    house.ok(&["metrics", "runs/calm", "runs/baseline", "--to", "parquet", "-o", "out/metrics.parquet"]);
    let table = SerializedFileReader::new(File::open(house.path("out/metrics.parquet")).unwrap()).unwrap();
    let read: Vec<_> = table.get_row_iter(None).unwrap().collect::<Result<_, _>>().unwrap();
    assert_eq!(read.len(), rows.len());
    for (row, text) in read.iter().zip(&rows) {
        assert_eq!(
            (row.get_string(0).unwrap().as_str(), row.get_long(2).unwrap().to_string().as_str()),
            (&text[0], &text[2])
        );
        assert_eq!(row.get_double(loss).map_or_else(|_| String::new(), |v| v.to_string()), text[loss]);
    }

    house.ok(&["metrics", "runs/calm", "--to", "trackio", "--out", "out/trackio"]);
    let text = house.read("out/trackio/calm.csv");
    let mut csv = csv::Reader::from_reader(text.as_bytes());
    let header = csv.headers().unwrap().clone();
    assert_eq!((&header[0], &header[1]), ("step", "timestamp"));
    assert!(
        ["autoencoder/train/loss", "lm/train/loss", "lm/validation/loss"]
            .iter()
            .all(|n| header.iter().any(|h| h == *n))
    );
    let first = csv.records().next().unwrap().unwrap();
    assert!(first[1].starts_with("20") && first[1].ends_with('Z'), "{first:?}");
}

#[test]
fn samples_are_kept_beside_the_values() {
    let texts = calm_run::metrics::read_texts(&trained().path("runs/calm/metrics.jsonl")).unwrap();
    assert_eq!(texts.iter().map(|t| t.step).collect::<Vec<_>>(), [10, 20]);
    assert!(texts.iter().all(|t| !t.texts["sample"].is_empty()));
}
