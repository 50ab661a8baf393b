//! What a loss must know of a whole batch before the backward pass of a part of it: how often a model chose something at the
//! positions that predict, as dynamic concepts do. Counts are whole numbers, so their sum over micro-batches and processes has no
//! order, no rounding, and is the same everywhere.

use calm_data::Batch;
use calm_lm::{Survey, Whole};
use calm_parallel::{Patience, Ranks};
use calm_run::{Error, Result};

use crate::objective::Objective;
use crate::share::told;

/// Purpose of all noise of training.
pub(crate) const PURPOSE: &str = "train";

/// The whole batch of a step: its targets, and what all pieces of all processes choose together, if the objective asks for
/// it and one micro-batch is not the whole. Every process takes part, also one that has nothing to predict.
///
/// # Errors
/// What a GPU answers; another process that fails or does not come.
pub(crate) fn of_all<O: Objective + ?Sized>(
    objective: &O,
    pieces: &[impl AsRef<[Batch]>],
    targets: usize,
    (seed, step): (u64, u64),
    ranks: &Ranks,
) -> Result<Whole> {
    let itself = Whole { targets, chosen: None };
    if !objective.surveys() {
        return Ok(itself);
    }
    let counting = |batch: &&Batch| objective.targets(batch) > 0;
    let batches: Vec<&Batch> = pieces.iter().flat_map(AsRef::as_ref).filter(counting).collect();
    if ranks.is_alone() && batches.len() < 2 {
        return Ok(itself);
    }
    let mut own = 0u64;
    for batch in batches {
        own += objective.survey(batch, seed, PURPOSE, step as u32)?.chosen;
    }
    ranks.well().map_err(told)?;
    let all =
        ranks.gather(&own.to_le_bytes(), "the count of what was chosen", Patience::Limited).map_err(told)?;
    let mut chosen = 0;
    for (rank, bytes) in all.iter().enumerate() {
        let count = bytes.as_slice().try_into().map_err(|_| {
            Error::user(
                format!("rank {rank} sent {} bytes for the count of what was chosen", bytes.len()),
                "all processes must run the same program",
            )
        })?;
        chosen += u64::from_le_bytes(count);
    }
    Ok(Whole { chosen: Some(Survey { chosen }), ..itself })
}

#[cfg(test)]
mod tests {
    use calm_lm::{Loss, LossPart};
    use calm_nn::{Init, ParamStore, Parameter};
    use calm_parallel::threads;
    use calm_run::Stage;
    use calm_run::config::StageConfig;
    use candle_core::{DType, Device, Result, Tensor};

    use super::*;
    use crate::step::{StepReport, Stepper};

    /// Chooses tokens by p = σ(w·f(token)) ≥ ½, and is to choose one of R = 3: the ratio of the whole batch enters the loss of
    /// every part.
    struct Chooser {
        store: ParamStore,
        w: Parameter,
        /// Whether it asks for the whole batch.
        asks: bool,
    }

    const R: f64 = 3.0;

    impl Chooser {
        fn new(asks: bool) -> Self {
            let store = ParamStore::new(&Device::Cpu, DType::F32, 3);
            let w = store.builder().weight("w", &[3, 1], Init::Normal(1.0)).unwrap();
            Self { store, w, asks }
        }

        /// p `[n, 1]`, and how many are at least ½.
        fn choose(&self, batch: &Batch) -> Result<(Tensor, u64)> {
            let features = |id: &u32| [1.0, 2.0, 3.0].map(|j| (f64::from(*id) * j).sin() as f32);
            let x: Vec<f32> = batch.ids.iter().flat_map(features).collect();
            let x = Tensor::from_vec(x, (batch.ids.len(), 3), &Device::Cpu)?;
            let p = ((x.matmul(&self.w)?.neg()?.exp()? + 1.0)?.recip())?;
            let chosen = p.flatten_all()?.to_vec1::<f32>()?.iter().filter(|p| **p >= 0.5).count();
            Ok((p, chosen as u64))
        }

        fn weights(&self) -> Vec<u32> {
            self.w.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
        }
    }

    impl Objective for Chooser {
        fn stage(&self) -> Stage {
            Stage::Lm
        }
        fn store(&self) -> &ParamStore {
            &self.store
        }
        fn targets(&self, batch: &Batch) -> usize {
            batch.ids.len()
        }
        fn tokens_per_target(&self) -> usize {
            1
        }
        fn loss(&self, batch: &Batch, seed: u64, purpose: &str, step: u32) -> Result<Loss> {
            let of = Whole { targets: batch.ids.len(), chosen: None };
            Ok(self.surveyed_loss(batch, seed, purpose, step, of)?.0)
        }
        fn surveys(&self) -> bool {
            self.asks
        }
        fn survey(&self, batch: &Batch, _: u64, _: &str, _: u32) -> Result<Survey> {
            Ok(Survey { chosen: self.choose(batch)?.1 })
        }
        fn surveyed_loss(
            &self,
            batch: &Batch,
            _: u64,
            _: &str,
            _: u32,
            of: Whole,
        ) -> Result<(Loss, Option<Survey>)> {
            let (p, own) = self.choose(batch)?;
            let n = batch.ids.len() as f64;
            let (whole, chosen) = match of.chosen {
                Some(all) => (of.targets as f64, all.chosen),
                None => (n, own),
            };
            let f = chosen as f64 / whole;
            let sum = p.sum_all()?;
            // R/(R − 1) [(R − 1) F P + (1 − F)(n − P)] − n
            let slope = R / (R - 1.0) * (R * f - 1.0);
            let sum = ((sum * slope)? + (R / (R - 1.0) * (1.0 - f) * n - n))?;
            let parts = vec![LossPart { name: "auxiliary", sum: sum.detach(), count: batch.ids.len() }];
            Ok((Loss { sum, targets: batch.ids.len(), parts }, Some(Survey { chosen: own })))
        }
    }

    /// A micro-batch of these tokens.
    fn batch(tokens: std::ops::Range<u32>) -> Batch {
        Batch { ids: tokens.collect(), ..Batch::default() }
    }

    fn config(reduction: &str) -> StageConfig {
        serde_yaml::from_str(&format!(
            "{{ steps: 3, batch_rows: 4, context: 4, learning_rate: 0.1, warmup_steps: 0, clip_norm: 1e9, pieces: 4, \
             reduction: {reduction} }}"
        ))
        .unwrap()
    }

    /// Three steps of a world, each of whose processes has so many of the pieces: the reports and weights of each.
    fn trained(
        size: usize,
        reduction: &str,
        pieces: &[Vec<Batch>],
        asks: bool,
    ) -> Vec<(Vec<StepReport>, Vec<u32>)> {
        let targets = pieces.iter().flatten().map(|b| b.ids.len()).sum();
        let each = pieces.len() / size;
        threads::run(size, |ranks| {
            let model = Chooser::new(asks);
            let mut stepper = Stepper::among(&ranks, &model.store, &config(reduction), 1).unwrap();
            let own = &pieces[ranks.rank() * each..][..each];
            // Of the engine's sum the pieces of a process are one.
            let own = if reduction == "engine" { vec![own.concat()] } else { own.to_vec() };
            let step = |step| stepper.shared(&model, &own, targets, step, true, None).unwrap();
            ((0..3).map(step).collect(), model.weights())
        })
    }

    fn loss(report: &StepReport) -> f64 {
        report.values.as_ref().unwrap().loss
    }

    #[test]
    fn a_batch_in_pieces_has_the_loss_and_gradients_of_the_whole() {
        let cuts: [Vec<Batch>; 4] = [
            vec![batch(0..24)],
            vec![batch(0..3), batch(3..24)],
            vec![batch(0..9), batch(9..9), batch(9..10), batch(10..24)],
            (0..24).map(|i| batch(i..i + 1)).collect(),
        ];
        let of = |cut: &Vec<Batch>, asks| trained(1, "engine", std::slice::from_ref(cut), asks).remove(0);
        let (whole, weights) = of(&cuts[0], true);
        assert!(whole.iter().all(|r| r.units > 0 && r.units < 24), "{whole:?}");
        let numbers = |bits: &[u32]| bits.iter().map(|b| f32::from_bits(*b)).collect::<Vec<_>>();
        for cut in &cuts[1..] {
            let (reports, other) = of(cut, true);
            for (report, want) in reports.iter().zip(&whole) {
                assert_eq!(report.units, want.units);
                assert!((loss(report) - loss(want)).abs() < 1e-6, "{report:?}, {want:?}");
            }
            for (a, b) in numbers(&other).iter().zip(numbers(&weights)) {
                assert!((a - b).abs() < 1e-5, "{a} {b}");
            }
            // With the ratio of each part it is another loss; what was chosen is known all the same.
            let (apart, _) = of(cut, false);
            assert_eq!(apart[0].units, whole[0].units);
            assert!((loss(&apart[0]) - loss(&whole[0])).abs() > 1e-3, "{apart:?}, {whole:?}");
        }
    }

    #[test]
    fn processes_count_what_all_choose() {
        // The last piece, that of the last of four processes, has nothing to predict.
        let pieces =
            [vec![batch(0..5), batch(5..6)], vec![batch(6..16)], vec![batch(16..17), batch(17..24)], vec![]];
        let (want, weights) = trained(1, "fixed", &pieces, true).remove(0);
        for size in [1, 2, 4] {
            for (reports, found) in trained(size, "fixed", &pieces, true) {
                assert_eq!(found, weights, "{size} processes, to the bit");
                for (report, want) in reports.iter().zip(&want) {
                    assert_eq!((report.units, loss(report).to_bits()), (want.units, loss(want).to_bits()));
                }
            }
            for (reports, _) in trained(size, "engine", &pieces, true) {
                for (report, want) in reports.iter().zip(&want) {
                    assert_eq!(report.units, want.units);
                    assert!((loss(report) - loss(want)).abs() < 1e-5, "{size}: {report:?}, {want:?}");
                }
            }
        }
    }
}
