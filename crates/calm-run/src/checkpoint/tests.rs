use super::*;
use calm_nn::{AdamWConfig, Init};
use candle_core::DType;

fn store() -> ParamStore {
    let store = ParamStore::new(&Device::Cpu, DType::F32, 1);
    store.builder().weight("w", &[3, 2], Init::Normal(1.0)).unwrap();
    store
}

#[test]
fn the_latest_and_the_best_checkpoint_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(&dir.path().join("lm"));
    let store = store();
    let opt = AdamW::new(&store, AdamWConfig::default()).unwrap();
    for (step, best, kept) in [(1, 1, &[1][..]), (2, 2, &[1, 2]), (3, 2, &[2, 3]), (4, 2, &[2, 4])] {
        let best = Some(Best { step: best, loss: 1.0 });
        let state = StageState { step, best, ..Default::default() };
        checkpoints.save(&state, &store, &opt, &BTreeMap::new()).unwrap();
        assert_eq!(checkpoints.steps(), kept, "two to go back to, whichever is the best");
    }
    assert_eq!(checkpoints.step(Which::Best).unwrap(), 2);
    assert_eq!(checkpoints.step(Which::Latest).unwrap(), 4);
    assert!(!dir.path().join("lm/step-4.partial").exists());
}

#[test]
fn a_checkpoint_that_is_replaced_while_it_is_read_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(dir.path());
    let store = store();
    let opt = AdamW::new(&store, AdamWConfig::default()).unwrap();
    let save = |step| {
        let state = StageState { step, ..Default::default() };
        checkpoints.save(&state, &store, &opt, &BTreeMap::new()).unwrap();
    };
    save(1);
    let mut seen = Vec::new();
    let read = checkpoints.reading(Which::Latest, |step| {
        seen.push(step);
        // A training that goes on.
        if step == 1 {
            save(2);
            save(3);
        }
        checkpoints.load_model(step, &store).map(|()| step)
    });
    assert_eq!((read.unwrap(), seen), (3, vec![1, 3]));
    // What fails for another reason fails at once.
    let mut tries = 0;
    let failed: Result<()> = checkpoints.reading(Which::Latest, |_| {
        tries += 1;
        Err(Error::user("no", ""))
    });
    assert!(failed.is_err() && tries == 1);
}

#[test]
fn the_checkpoint_before_is_kept_until_it_is_swept() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(dir.path());
    let store = store();
    let opt = AdamW::new(&store, AdamWConfig::default()).unwrap();
    let best = Some(Best { step: 1, loss: 2.0 });
    for (step, keep) in [(1, None), (2, Some(1)), (3, Some(2))] {
        let state = StageState { step, keep, best, ..Default::default() };
        checkpoints.save(&state, &store, &opt, &BTreeMap::new()).unwrap();
    }
    assert_eq!(checkpoints.steps(), [1, 2, 3]);
    checkpoints.clear(&StageState { step: 3, best, ..Default::default() }).unwrap();
    assert_eq!(checkpoints.steps(), [1, 3]);
    // The one before stays where nothing else could be gone back to.
    checkpoints.clear(&StageState { step: 3, ..Default::default() }).unwrap();
    assert_eq!(checkpoints.steps(), [1, 3]);
}

#[test]
fn weights_that_do_not_fit_or_are_cut_off_are_errors_that_name_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(dir.path());
    let small = store();
    let opt = AdamW::new(&small, AdamWConfig::default()).unwrap();
    checkpoints.save(&StageState { step: 7, ..Default::default() }, &small, &opt, &BTreeMap::new()).unwrap();
    let other = ParamStore::new(&Device::Cpu, DType::F32, 1);
    other.builder().weight("w", &[3, 3], Init::Ones).unwrap();
    other.builder().weight("v", &[1], Init::Ones).unwrap();
    let e = checkpoints.load_model(7, &other).unwrap_err().to_string();
    assert!(e.contains("missing: v") && e.contains("wrong shape: w"), "{e}");
}

/// Three checkpoints saved, two kept: 2, the best, and 3.
fn saved(dir: &Path) -> (Checkpoints, ParamStore, AdamW) {
    let checkpoints = Checkpoints::new(&dir.join("lm"));
    let store = store();
    let opt = AdamW::new(&store, AdamWConfig::default()).unwrap();
    for step in 1..4 {
        let state = StageState {
            step,
            seconds: 0.1,
            best: Some(Best { step: step.min(2), loss: 1.0 }),
            ..Default::default()
        };
        checkpoints.save(&state, &store, &opt, &BTreeMap::new()).unwrap();
    }
    (checkpoints, store, opt)
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 4;
    fs::write(path, bytes).unwrap();
}

#[test]
fn no_flipped_bit_of_a_checkpoint_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    for name in [MODEL, OPTIMIZER, STATE] {
        let (checkpoints, store, mut opt) = saved(dir.path());
        let path = checkpoints.path(3).join(name);
        let length = fs::metadata(&path).unwrap().len() as usize;
        for at in (0..length).step_by(7) {
            flip(&path, at);
            let loaded = checkpoints
                .load_model(3, &store)
                .and_then(|()| checkpoints.load_optimizer(3, &store, &mut opt))
                .and_then(|()| checkpoints.state(3));
            let e = loaded.map_err(|e| (e.to_string(), e.remedy().unwrap_or_default()));
            match e {
                Err((what, remedy)) => {
                    assert!(what.contains(name) && what.contains("is damaged"), "{what}");
                    assert!(remedy.contains("--resume"), "{remedy}");
                }
                // Letters of the word `checksum`.
                Ok(state) => assert!(name == STATE && state.step == 3 && state.seconds == 0.1),
            }
            flip(&path, at);
        }
        fs::remove_dir_all(dir.path().join("lm")).unwrap();
    }
}

#[test]
fn a_damaged_checkpoint_is_set_aside_and_named_and_the_one_before_counts() {
    let dir = tempfile::tempdir().unwrap();
    let (checkpoints, store, opt) = saved(dir.path());
    assert!(checkpoints.settle().unwrap().is_empty());
    flip(&checkpoints.path(3).join(OPTIMIZER), 200);
    let said = checkpoints.settle().unwrap();
    assert_eq!(said.len(), 1);
    for part in ["step-3/optimizer.safetensors is damaged", "going back to step 2", "step-3.damaged"] {
        assert!(said[0].contains(part), "{part}: {}", said[0]);
    }
    assert_eq!(checkpoints.latest().unwrap().unwrap().step, 2);
    // It stays until there is something newer.
    assert!(dir.path().join("lm/step-3.damaged").is_dir());
    let state = StageState { step: 4, best: Some(Best { step: 2, loss: 1.0 }), ..Default::default() };
    checkpoints.save(&state, &store, &opt, &BTreeMap::new()).unwrap();
    assert!(!dir.path().join("lm/step-3.damaged").exists());
    // The best.
    flip(&checkpoints.path(2).join(MODEL), 100);
    let said = checkpoints.settle().unwrap();
    assert!(said[0].contains("left out"), "{said:?}");
    assert!(said[1].contains("step 2, is gone: step 4 counts"), "{said:?}");
    assert_eq!(checkpoints.step(Which::Best).unwrap(), 4);
    assert_eq!(checkpoints.step(Which::Latest).unwrap(), 4);
    // The last: nothing is touched.
    flip(&checkpoints.path(4).join(STATE), 20);
    let e = checkpoints.settle().unwrap_err();
    assert!(e.to_string().contains("no other checkpoint") && e.remedy().unwrap().contains("--restart"));
    assert_eq!(checkpoints.steps(), [4]);
}

#[test]
fn what_killed_processes_left_is_swept_and_an_old_checkpoint_has_no_hashes() {
    let dir = tempfile::tempdir().unwrap();
    let (checkpoints, store, _) = saved(dir.path());
    let lm = dir.path().join("lm");
    for left in ["step-9.partial/model.safetensors", "step-1.gone/x", "step-1/model.safetensors"] {
        fs::create_dir_all(lm.join(left).parent().unwrap()).unwrap();
        fs::write(lm.join(left), "half").unwrap();
    }
    assert_eq!(checkpoints.steps(), [2, 3]);
    // Weights without their state are not thrown away at once.
    let said = checkpoints.settle().unwrap();
    assert!(said.len() == 1 && said[0].contains("step-1.damaged"), "{said:?}");
    assert_eq!(fs::read_dir(&lm).unwrap().count(), 3);
    // Killed while a checkpoint was being replaced: the old one is still read.
    fs::rename(lm.join("step-3"), lm.join("step-3.replaced")).unwrap();
    assert_eq!(checkpoints.steps(), [2, 3]);
    checkpoints.load_model(3, &store).unwrap();
    checkpoints.settle().unwrap();
    assert!(lm.join("step-3").is_dir());
    let state = r#"{"step": 3, "finished": false, "tokens": 0, "seconds": 0.5, "best": null}"#;
    fs::write(lm.join("step-3/state.json"), state).unwrap();
    checkpoints.load_model(3, &store).unwrap();
    assert_eq!(checkpoints.model_hash(3).unwrap(), file_hash(&checkpoints.model_path(3)).unwrap());
    assert!(checkpoints.settle().unwrap().is_empty());
}

#[test]
fn a_file_that_cannot_be_looked_at_is_not_a_damaged_one_and_nothing_is_touched() {
    // A link to itself cannot be opened by anyone, whatever the rights; it stands for them and for file handles that
    // have run out.
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().unwrap();
    let (checkpoints, store, _) = saved(dir.path());
    let lm = dir.path().join("lm");
    for name in [MODEL, OPTIMIZER, STATE] {
        let path = lm.join("step-3").join(name);
        let elsewhere = dir.path().join("elsewhere");
        fs::rename(&path, &elsewhere).unwrap();
        symlink(&path, &path).unwrap();
        let e = checkpoints.settle().unwrap_err();
        assert!(matches!(&e, Error::Io { .. }) && e.to_string().contains(name), "{name}: {e}");
        assert!(checkpoints.load_model(3, &store).is_err() || name == OPTIMIZER);
        assert!(
            checkpoints.latest().is_err() == (name == STATE),
            "no step is taken for the latest but the latest"
        );
        fs::rename(&elsewhere, &path).unwrap();
        assert!(checkpoints.settle().unwrap().is_empty());
        assert_eq!(checkpoints.steps(), [2, 3]);
        checkpoints.check(3).unwrap();
    }
    // Nor is a folder that cannot be read an empty one, in which a training would begin anew.
    fs::rename(&lm, dir.path().join("elsewhere")).unwrap();
    symlink(&lm, &lm).unwrap();
    assert!(checkpoints.latest().is_err() && checkpoints.settle().is_err());
    fs::remove_file(&lm).unwrap();
    assert!(checkpoints.latest().unwrap().is_none() && checkpoints.settle().unwrap().is_empty());
}

#[test]
fn where_the_best_is_gone_the_state_is_rewritten_and_later_commands_read_another() {
    let dir = tempfile::tempdir().unwrap();
    let (checkpoints, store, _) = saved(dir.path());
    calm_files::remove(&checkpoints.path(2)).unwrap();
    assert!(
        checkpoints
            .step(Which::Best)
            .unwrap_err()
            .to_string()
            .contains("step-2, the best checkpoint, is gone")
    );
    let said = checkpoints.settle().unwrap();
    assert!(
        said.len() == 1 && said[0].contains("the best checkpoint, step 2, is gone: step 3 counts"),
        "{said:?}"
    );
    // It stands in the file: whoever reads it next finds a best one.
    assert_eq!(Checkpoints::new(&dir.path().join("lm")).step(Which::Best).unwrap(), 3);
    assert_eq!(checkpoints.latest().unwrap().unwrap().best, None);
    checkpoints.check(3).unwrap();
    checkpoints.load_model(3, &store).unwrap();
    assert!(checkpoints.settle().unwrap().is_empty(), "it is said once");
}

#[test]
fn what_the_last_checkpoint_of_a_finished_stage_made_needless_goes_later_and_nothing_of_another_stage() {
    let dir = tempfile::tempdir().unwrap();
    for finished in [false, true] {
        let (checkpoints, store, opt) = saved(&dir.path().join(finished.to_string()));
        let best = Some(Best { step: 2, loss: 1.0 });
        let state = StageState { step: 4, keep: Some(3), finished, best, ..Default::default() };
        checkpoints.save(&state, &store, &opt, &BTreeMap::new()).unwrap();
        assert_eq!(checkpoints.steps(), [2, 3, 4], "as a process leaves them that ends there");
        checkpoints.tidy().unwrap();
        assert_eq!(checkpoints.steps(), if finished { vec![2, 4] } else { vec![2, 3, 4] });
    }
}
