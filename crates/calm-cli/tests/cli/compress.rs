//! `calm compress`, `calm decompress` and `calm eval compression`.

use std::fs;

use crate::house::{House, trained};

/// Room for files, and the finished runs' folder as an argument.
fn room() -> (House, String, String) {
    let run = |name: &str| trained().path(&format!("runs/{name}")).display().to_string();
    (House::new(), run("baseline"), run("calm"))
}

#[test]
fn any_file_comes_back_under_its_own_name() {
    let (house, run, _) = room();
    let text = crate::house::text(7);
    let files: [(&str, &[u8]); 4] = [
        ("text.md", &text.as_bytes()[..3000]),
        ("empty", b""),
        ("one", b"x"),
        ("binary.bin", &[0, 255, 10, 13, 128]),
    ];
    for (name, bytes) in files {
        house.write(name, bytes);
        let said = house.ok(&["compress", name, "--run", &run]);
        assert!(said.contains(&format!("{name}.calmz: {} -> ", bytes.len())), "{said}");
        assert!(said.lines().all(|line| line.chars().count() <= 80 || line.contains(".calmz:")), "{said}");
        fs::remove_file(house.path(name)).unwrap();
        house.ok(&["decompress", &format!("{name}.calmz"), "--run", &run]);
        assert_eq!(fs::read(house.path(name)).unwrap(), bytes, "{name}");
    }
    let report = house.json(&[
        "compress",
        "text.md",
        "-o",
        "other.calmz",
        "--windows",
        "3",
        "--run",
        &run,
        "--format",
        "json",
    ]);
    assert_eq!(
        (&report["bytes"], &report["windows"], &report["draws"]),
        (&3000.into(), &3.into(), &0.into())
    );
    assert_eq!(report["compressed"], fs::metadata(house.path("other.calmz")).unwrap().len());
    // A trained model writes less than a byte for a byte.
    assert!(report["bits_per_byte"].as_f64().unwrap() < 8.0, "{report}");
}

#[test]
fn nothing_is_replaced_unless_asked() {
    let (house, run, _) = room();
    house.write("a.txt", "ana bolo");
    house.ok(&["compress", "a.txt", "--run", &run]);
    let there = ["is there already", "--force"];
    house.refuses(&["compress", "a.txt", "--run", &run], &there);
    house.refuses(&["decompress", "a.txt.calmz", "--run", &run], &there);
    assert_eq!(house.read("a.txt"), "ana bolo");
    house.write("a.txt", "fugo");
    house.ok(&["compress", "a.txt", "--run", &run, "--force"]);
    house.ok(&["decompress", "a.txt.calmz", "--run", &run, "-o", "b.txt"]);
    assert_eq!(house.read("b.txt"), "fugo");
    house.ok(&["decompress", "a.txt.calmz", "--run", &run, "--force"]);
    house.refuses(&["decompress", "b.txt", "--run", &run], &["does not end in .calmz", "--out"]);
    house.refuses(
        &["decompress", "b.txt", "-o", "c.txt", "--run", &run],
        &["no file that calm has compressed"],
    );
    house.refuses(&["compress", "absent.txt", "--run", &run], &["cannot read absent.txt"]);
}

#[test]
fn what_is_damaged_or_of_another_model_leaves_nothing_behind() {
    let (house, run, calm) = room();
    house.write("a.txt", crate::house::text(3));
    house.ok(&["compress", "a.txt", "--run", &run, "-o", "whole.calmz", "--windows", "3"]);
    let whole = fs::read(house.path("whole.calmz")).unwrap();
    let mut damaged = whole.clone();
    let last = damaged.len() - 1;
    damaged[last] ^= 4;
    house.write("damaged.calmz", &damaged);
    house.write("cut.calmz", &whole[..last]);
    house.refuses(
        &["decompress", "damaged.calmz", "--run", &run],
        &["block 4 of 4 (bytes ", "is damaged", "undamaged copy"],
    );
    house.refuses(&["decompress", "cut.calmz", "--run", &run], &["ends after", "block 4 of 4"]);
    assert!(!house.path("damaged").exists() && !house.path("cut").exists());

    // The same settings with other weights.
    house.ok(&["init", "--config", "baseline.yaml", "--set", "seed=9", "--out", "other"]);
    let error = house.error(&["decompress", "whole.calmz", "--run", "other"]);
    assert!(error.contains("was compressed with model") && error.contains("--checkpoint"), "{error}");
    assert!(!house.path("whole").exists());

    // One whose decoder takes the likeliest token has no probabilities.
    house.refuses(&["compress", "a.txt", "--run", &calm], &["no probabilities", "decode: sample"]);
    house.refuses(&["compress", "a.txt", "--run", &run, "--draws", "8"], &["draws no latent vectors"]);
    house.refuses(&["compress", "a.txt", "--run", &run, "--windows", "0"], &["windows"]);
}

#[test]
fn compressors_are_compared_on_held_out_documents_and_on_files() {
    let (house, run, _) = room();
    let args = ["eval", "compression", "--run", &run, "--bytes", "2000"];
    let report = house.json(&[&args[..], &["--format", "json"]].concat());
    let text = &report["texts"][0];
    assert_eq!((&text["text"], &text["bytes"]), (&"held-out documents".into(), &2000.into()));
    let rows = text["rows"].as_array().unwrap();
    assert_eq!(rows[0]["name"], "this model");
    for row in rows.iter().filter(|row| !row["compressed"].is_null()) {
        let bits = row["bits_per_byte"].as_f64().unwrap();
        assert_eq!(bits, 8.0 * row["compressed"].as_f64().unwrap() / 2000.0, "{row}");
        assert!(row["bits_per_byte_with_model"].as_f64().unwrap() >= bits, "{row}");
    }
    let alone =
        rows[0]["bits_per_byte_with_model"].as_f64().unwrap() - rows[0]["bits_per_byte"].as_f64().unwrap();
    assert!((alone - 8.0 * report["model_bytes"].as_f64().unwrap() / 2000.0).abs() < 1e-9);
    let table = house.ok(&[&args[..], &["text.txt"]].concat());
    assert!(table.contains("text.txt, 2000 bytes") && table.contains("order-5"), "{table}");
    house.refuses(&["eval", "compression", "--run", &run, "--bytes", "0"], &["--bytes 0"]);
}
