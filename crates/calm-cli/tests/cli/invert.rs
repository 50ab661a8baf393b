//! Text behind hidden states on the command line.

use serde_json::Value;

use crate::house::trained;

fn json(args: &[&str]) -> Value {
    let done = trained().run(&[args, &["--format", "json"]].concat());
    assert_eq!(done.code, 0, "{}", done.err);
    serde_json::from_str(&done.out).unwrap()
}

#[test]
fn prompts_are_found_behind_their_states_by_both_policies() {
    let args =
        ["invert", "--run", "runs/baseline", "--prompts", "3", "--tokens", "6", "--policy", "guided,brute"];
    let found = json(&[&args[..], &["--layer", "0,1,last", "--pass", "whole,prefixes"]].concat());
    let trials = found["trials"].as_array().unwrap();
    assert_eq!(trials.len(), 3 * 2 * 2);
    for trial in trials {
        assert_eq!((&trial["exact"]["hits"], &trial["exact"]["trials"]), (&18.into(), &18.into()), "{trial}");
        assert_eq!(trial["wrong"], 0);
    }
    let table = trained().run(&args);
    for text in ["3 prompts of 6 tokens", "final norm", "100.00 %", "smallest gap"] {
        assert!(table.out.contains(text), "{text}: {}", table.out);
    }
}

#[test]
fn chunks_and_latent_vectors_of_a_calm_are_found() {
    let args = ["invert", "--run", "runs/calm", "--prompts", "2", "--tokens", "6"];
    for more in [&["--layer", "0"][..], &["--latents"]] {
        let found = json(&[&args[..], more].concat());
        let trial = &found["trials"][0];
        assert_eq!((trial["wrong"].as_u64(), found["chunk_size"].as_u64()), (Some(0), Some(3)), "{found}");
        assert_eq!((&trial["exact"]["hits"], &trial["exact"]["trials"]), (&4.into(), &4.into()), "{found}");
    }
    let house = trained();
    let wrong = ["invert", "--run", "runs/calm", "--tokens", "20"];
    house.refuses(&wrong, &["--tokens 20", "--tokens 21"]);
    let brute = ["invert", "--run", "runs/calm", "--policy", "guided,brute"];
    house.refuses(&brute, &["chunks of 3", "leave --policy brute away"]);
    let first = ["invert", "--run", "runs/baseline", "--collisions", "--layer", "0"];
    house.refuses(&first, &["one last token", "--layer 1"]);
    house.refuses(&["invert", "--run", "runs/baseline", "--latents"], &["latent", "leave --latents away"]);
    house.refuses(&["invert", "--run", "runs/baseline", "--layer", "9"], &["--layer 9", "behind layer 1"]);
    house.refuses(&["invert", "--run", "runs/baseline", "--tokens", "0"], &["--tokens 0"]);
}

#[test]
fn states_of_a_file_are_searched_and_a_damaged_one_is_never_a_prompt() {
    let house = trained();
    let run = ["invert", "--run", "runs/baseline", "--layer", "1"];
    let save = [&run[..], &["--prompt", "ana bolo", "--save-states", "states.npy"]].concat();
    let done = house.run(&save);
    assert_eq!(done.code, 0, "{}", done.err);
    let read = [&run[..], &["--states", "states.npy"]].concat();
    let found = &json(&read)["found"][0];
    assert_eq!((&found["text"], &found["complete"]), (&"ana bolo".into(), &true.into()), "{found}");

    // Another position's numbers, 48 of them 4 bytes each.
    let mut bytes = std::fs::read(house.path("states.npy")).unwrap();
    let third = bytes.len() - 6 * 48 * 4;
    for byte in &mut bytes[third..third + 48 * 4] {
        *byte ^= 0x15;
    }
    house.write("other.npy", &bytes);
    let read = [&run[..], &["--states", "other.npy"]].concat();
    let found = &json(&read)["found"][0];
    assert_eq!((&found["text"], &found["complete"]), (&"an".into(), &false.into()), "{found}");
    assert!(found["positions"][2]["not-found"].is_object(), "{found}");
    let table = house.run(&read);
    assert!(table.out.contains("position 2 not found"), "{}", table.out);

    house.write("cut.npy", &bytes[..bytes.len() - 7]);
    let read = [&run[..], &["--states", "cut.npy"]].concat();
    house.refuses(&read, &["cut.npy", "whole .npy file"]);
    let read = ["invert", "--run", "runs/calm", "--tokens", "6", "--latents", "--states", "states.npy"];
    house.refuses(&read, &["48 numbers", "give the run"]);
}

#[test]
fn collisions_are_searched_among_last_states() {
    let args = ["invert", "--run", "runs/baseline", "--collisions", "--prompts", "300", "--tokens", "8"];
    let found = json(&[&args[..], &["--layer", "1,last"]].concat());
    let layers = found["collisions"].as_array().unwrap();
    assert_eq!(layers.len(), 2);
    for layer in layers {
        let texts = layer["texts"].as_array().unwrap().len();
        let closest = layer["closest"].as_array().unwrap();
        assert!(closest.len() == 10 && texts == 10, "{layer}");
        assert!(closest[0]["distance"].as_f64().unwrap() > 0.0, "{layer}");
        assert!(layer["continued"]["smallest"].as_f64().unwrap() > 0.0, "{layer}");
    }
    let table = trained().run(&args);
    assert!(table.out.contains("closest last states of"), "{}", table.out);
}
