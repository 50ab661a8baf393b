//! Steps that are no number are left out, and no others: on the CPU, and on a GPU, which counts them itself.

// Helpers outside of test functions may panic too.
#![allow(clippy::unwrap_used)]

#[path = "common/toy.rs"]
mod toy;

use calm_data::Batch;
use calm_lm::Loss;
use calm_nn::{Init, ParamStore, Parameter, device};
use calm_run::checkpoint::{Checkpoints, StageState};
use calm_run::{Error, Stage};
use calm_train::objective::Objective;
use calm_train::step::{StepValues, Stepper};
use candle_core::{DType, Device, Result, Tensor};
use toy::{Text, in_memory};

/// Steps with a loss that is no number, and with a gradient that is none though the loss is.
const LOSS: [u32; 2] = [2, 3];
const GRADIENT: [u32; 2] = [5, 8];
const STEPS: u64 = 11;

/// A parabola, but for these steps.
struct Poisoned {
    store: ParamStore,
    x: Parameter,
}

impl Poisoned {
    fn new(device: &Device) -> Self {
        let store = ParamStore::new(device, DType::F32, 3);
        let x = store.builder().weight("x", &[4, 3], Init::Normal(1.0)).unwrap();
        store.prepare().unwrap();
        Self { store, x }
    }

    fn weights(&self) -> Vec<f32> {
        self.x.flatten_all().unwrap().to_vec1().unwrap()
    }
}

impl Objective for Poisoned {
    fn stage(&self) -> Stage {
        Stage::Lm
    }
    fn store(&self) -> &ParamStore {
        &self.store
    }
    fn targets(&self, _: &Batch) -> usize {
        1
    }
    fn tokens_per_target(&self) -> usize {
        1
    }
    fn loss(&self, _: &Batch, _: u64, _: &str, step: u32) -> Result<Loss> {
        let x: &Tensor = &self.x;
        let sum = if LOSS.contains(&step) {
            (x.sum_all()? * f64::NAN)?
        } else if GRADIENT.contains(&step) {
            // The slope of a root at 0 is infinite, that of the square there 0.
            (x - x.detach())?.sqr()?.sum_all()?.sqrt()?
        } else {
            x.sqr()?.sum_all()?
        };
        Ok(Loss { sum, targets: 1, parts: Vec::new() })
    }
}

/// The CPU, and a GPU if this build can use one and there is one. CALM_TEST_GPU=1 makes its absence an error.
fn devices() -> Vec<Device> {
    let gpu = match device::gpus() {
        Ok(_) => Some(device::open(device::Choice::Cuda(0)).unwrap()),
        Err(reason) => {
            assert!(std::env::var_os("CALM_TEST_GPU").is_none(), "{reason}");
            println!("skipped: steps left out on a GPU ({reason}) (needs a GPU)");
            None
        }
    };
    std::iter::once(Device::Cpu).chain(gpu).collect()
}

#[test]
fn a_step_after_one_that_was_left_out_is_made() {
    let config = Text::new().config().value.train.lm;
    for device in devices() {
        let objective = Poisoned::new(&device);
        let mut stepper = Stepper::new(&objective.store, &config, 1).unwrap();
        let mut left_out = Vec::new();
        for step in 0..STEPS {
            let before = objective.weights();
            let mut guard = |seen: &calm_run::Result<StepValues>| seen.is_ok();
            let report =
                stepper.guarded(&objective, &[Batch::default()], step, true, Some(&mut guard)).unwrap();
            assert_eq!(
                report.skipped,
                objective.weights() == before,
                "step {step} on {:?}",
                device.location()
            );
            if report.skipped {
                left_out.push(step as u32);
            }
        }
        assert_eq!(left_out, [LOSS, GRADIENT].concat(), "on {:?}", device.location());
        assert!(objective.weights().iter().all(|w| w.is_finite()));
    }
}

#[test]
fn a_stage_that_went_back_makes_the_steps_that_follow() {
    let config = Text::new().config().value.train.lm;
    for device in devices() {
        let objective = Poisoned::new(&device);
        let mut stepper = Stepper::new(&objective.store, &config, 1).unwrap();
        let place = in_memory();
        let checkpoints = Checkpoints::new(&place.path().join("lm"));
        let batch = [Batch::default()];
        let good = |stepper: &mut Stepper, step: u64| {
            let report = stepper.step(&objective, &batch, step, true).unwrap();
            assert!(!report.skipped && report.values.is_some());
        };
        good(&mut stepper, 0);
        let state = StageState { step: 1, ..StageState::default() };
        checkpoints.save(&state, &objective.store, stepper.optimizer(), &Default::default()).unwrap();
        let saved = objective.weights();
        for bad in LOSS.into_iter().chain(GRADIENT) {
            good(&mut stepper, 1);
            let e = stepper.step(&objective, &batch, bad.into(), true).unwrap_err();
            assert!(matches!(e, Error::NotFinite { .. }), "{e}");
            // The same process goes back, as `rollback` does; another one begins where it was saved, as `--resume` does.
            stepper.load(&checkpoints, 1, &objective.store).unwrap();
            assert_eq!(objective.weights(), saved);
            good(&mut stepper, 1);
            stepper.look_back(Stage::Lm, 2).unwrap();
            let after = objective.weights();
            let mut another = Stepper::new(&objective.store, &config, 1).unwrap();
            another.load(&checkpoints, 1, &objective.store).unwrap();
            good(&mut another, 1);
            assert_eq!(objective.weights(), after, "on {:?}", device.location());
            stepper.load(&checkpoints, 1, &objective.store).unwrap();
        }
    }
}
