//! `calm generate`.

use std::io::Write;
use std::process::Stdio;

use crate::house::{Done, trained};

fn generate(args: &[&str]) -> Done {
    let done = trained().run(&[&["generate"], args].concat());
    assert_eq!(done.code, 0, "{args:?}: {}", done.err);
    done
}

#[test]
fn a_prompt_of_any_length_is_reproduced_verbatim() {
    let text = "ana bolo cédille du 日本 halm";
    let ends: Vec<usize> = text.char_indices().map(|(i, _)| i).take(9).chain([text.len()]).collect();
    for run in ["runs/calm", "runs/baseline"] {
        for end in &ends {
            let prompt = &text[..*end];
            let out = generate(&["--run", run, "-n", "6", "--prompt", prompt]).out;
            assert!(out.starts_with(prompt) && out.ends_with('\n'), "{run}: {prompt:?} gave {out:?}");
        }
        for prompt in ["émile ☃ 𝄞 never seen", "\n\ttabs and\r\n lines \n", " ", "<|eos|><|pad|>"] {
            let out = generate(&["--run", run, "-n", "6", "--prompt", prompt]).out;
            assert!(out.starts_with(prompt), "{run}: {prompt:?} gave {out:?}");
        }
        // Longer than any row of the training.
        let long = "ana bolo cédille ".repeat(60);
        assert!(generate(&["--run", run, "-n", "6", "--prompt", &long]).out.starts_with(&long));
    }
}

#[test]
fn no_prompt_begins_a_document_and_a_prompt_may_come_from_stdin() {
    for run in ["runs/calm", "runs/baseline"] {
        let done = generate(&["--run", run, "-n", "12"]);
        assert!(done.err.contains("tokens/s") && !done.out.contains("tokens/s"), "{}", done.err);
        assert_eq!(done.out, generate(&["--run", run, "-n", "12", "--prompt", ""]).out);
        let mut child = trained()
            .command(&["generate", "--run", run, "-n", "5", "--prompt", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all("du 日".as_bytes()).unwrap();
        let done = Done::from(child.wait_with_output().unwrap());
        assert!(done.code == 0 && done.out.starts_with("du 日"), "{done:?}");
    }
}

#[test]
fn the_seed_decides_the_text() {
    for run in ["runs/calm", "runs/baseline"] {
        let text = |seed: &str| generate(&["--run", run, "-n", "30", "--seed", seed, "-p", "ana "]).out;
        assert_eq!(text("4"), text("4"));
        assert_ne!(text("4"), text("5"));
    }
}

#[test]
fn at_most_so_many_tokens_follow_the_prompt() {
    for run in ["runs/calm", "runs/baseline"] {
        for most in [0, 1, 5] {
            let done = generate(&["--run", run, "-p", "ana b", "--max-tokens", &most.to_string()]);
            let said: usize = done.err.split_whitespace().next().unwrap().parse().unwrap();
            assert!(said <= most, "{}", done.err);
            if most == 0 {
                assert_eq!(done.out, "ana b\n");
            }
        }
    }
}

#[test]
fn temperatures_below_one_are_sampled_in_batches_or_exactly() {
    let batch = |seed: &str| generate(&["--temperature", "0.5", "--draws", "32", "-n", "9", "--seed", seed]);
    assert_eq!(batch("1").out, batch("1").out);
    let third = generate(&["-t", "0.3333333333333333", "--draws", "16", "-n", "6", "-p", "ana b"]);
    assert!(third.out.starts_with("ana b"));
    let exact = ["--sampler", "exact", "--fallback", "--draws", "64", "-n", "6", "-p", "ana b"];
    for t in ["0.5", "0.7"] {
        let done = generate(&[&["-t", t][..], &exact].concat());
        assert!(done.out.starts_with("ana b"), "{}", done.out);
    }
    // A baseline has probabilities.
    generate(&["--run", "runs/baseline", "-t", "0", "-n", "6"]);
    generate(&["--run", "runs/baseline", "-t", "0.7", "--top-p", "0.9", "-n", "6"]);
}

#[test]
fn impossible_settings_are_refused_with_a_remedy() {
    let house = trained();
    for (args, part) in [
        // Four equal draws out of two.
        (&["-t", "0.25", "--sampler", "exact", "--draws", "2"][..], "--draws"),
        (&["-t", "0.7"], "--sampler exact"),
        (&["-t", "2"], "at most 1"),
        (&["-t", "0"], "above 0"),
        (&["-t", "NaN"], "at most 1"),
        (&["-t", "0.5", "--draws", "0"], "1 or more"),
        (&["--top-p", "0.5"], "--temperature"),
        (&["--run", "runs/baseline", "--top-p", "0"], "top-p above 0"),
        (&["--run", "runs/none"], "runs/NAME"),
    ] {
        let done = house.run(&[&["generate", "-n", "6"], args].concat());
        assert_eq!(done.code, 1, "{args:?}: {}", done.err);
        assert!(done.err.contains("error: ") && done.err.contains("hint: "), "{args:?}: {}", done.err);
        assert!(done.err.contains(part), "{args:?}: {}", done.err);
    }
}
