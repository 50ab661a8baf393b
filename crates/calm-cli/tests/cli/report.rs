//! `calm report`: its plots and tables as files, and the page at an address of this machine.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::house::{House, trained};

fn two_runs() -> House {
    let house = House::new();
    trained().copy_run("runs/calm", &house, "runs/calm");
    let rate = "train.lm.learning_rate=4e-3";
    house.ok(&["train", "-q", "--config", "calm.yaml", "--set", rate, "--out", "runs/again"]);
    house
}

#[test]
fn plots_and_tables_are_written_as_files_and_those_of_before_go() {
    let house = two_runs();
    let folder = house.path("runs/report/report-files");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("of-before.svg"), "").unwrap();
    let done = house.run(&["report", "runs/calm", "runs/again", "--files"]);
    assert_eq!(done.code, 0, "{}", done.err);
    let mut names: Vec<String> =
        fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert!(done.err.contains(&format!("{} plots and tables", names.len())), "{}", done.err);
    assert!(!names.contains(&"of-before.svg".to_owned()));
    for ending in [".svg", ".csv", ".tex", ".bib"] {
        assert!(names.iter().any(|name| name.ends_with(ending)), "{ending}: {names:?}");
    }
    let scores = house.read("runs/report/report-files/scores-aligned-protocol-percent.csv");
    assert!(scores.starts_with("Variant,K,") && scores.contains("again"), "{scores}");
}

/// A command that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Status and content of an answer.
fn get(port: &str, path: &str, host: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

#[cfg(unix)]
#[test]
fn the_page_is_shown_to_this_machine_and_anew_when_something_has_come_of_a_run() {
    let house = two_runs();
    let mut command = house.command(&["report", "runs/calm", "runs/again", "--serve=0"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut running = Running(child);
    let mut first = String::new();
    BufReader::new(running.0.stdout.take().unwrap()).read_line(&mut first).unwrap();
    let port = first.trim().rsplit(':').next().unwrap().to_owned();
    let own = format!("127.0.0.1:{port}");
    let (status, page) = get(&port, "/", &own);
    assert_eq!(status, 200);
    assert!(page.contains("<html") && page.contains("/reload.js?1"), "{}", page.len());
    assert!(!house.read("runs/report/report.html").contains("<script"), "the file has none");
    assert_eq!(get(&port, "/version", &own).1.trim(), "1");
    assert!(get(&port, "/report.csv", &own).1.contains("again"));
    assert!(get(&port, "/reload.js?1", &own).1.contains("location.reload"));
    // Another page's script may lead a name of its own here.
    assert_eq!(get(&port, "/", "evil.example:80").0, 403);
    assert_eq!(get(&port, "/../run.json", &own).0, 404);
    // Something comes of a run.
    let more = ["--set", "train.lm.learning_rate=4e-3", "--set", "train.lm.steps=24"];
    house
        .ok(&[&["train", "-q", "--config", "calm.yaml", "--out", "runs/again", "--resume"], &more[..]]
            .concat());
    let began = Instant::now();
    while get(&port, "/version", &own).1.trim() == "1" {
        assert!(began.elapsed() < Duration::from_secs(60), "nothing new is shown");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_ne!(get(&port, "/", &own).1, page);
    // Its port is taken.
    let taken = house.run(&["report", "runs/calm", &format!("--serve={port}")]);
    assert!(
        taken.code == 1 && taken.err.contains("cannot listen") && taken.err.contains("--serve"),
        "{}",
        taken.err
    );
    let id = running.0.id().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    assert_eq!(running.0.wait().unwrap().code(), Some(0), "that is how it ends");
}
