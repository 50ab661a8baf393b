//! The exchange of gradients while the backward pass still runs.
//!
//! The bucket is cut into pieces. In the last backward pass of a step a piece is exchanged as soon as nothing more is added to it;
//! when that is, and in which order, a pass before has shown. All processes take the order of the first that knows one, so that they
//! exchange the same at the same time, whatever their own pass does. Until then, and with `overlap: false`, the same pieces are
//! exchanged after the pass, with the same bits.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use calm_kernels::{Course, HandOut, Part};
use calm_nn::GradientBucket;
use calm_parallel::{Patience, Pending, Ranks};
use calm_run::Result;
use candle_core::Tensor;

use crate::share::{not_joined, told};

/// Pieces of the bucket.
pub(crate) const PIECES: usize = 16;

/// A sum that was begun, and its place in the bucket.
type Begun = (Range<usize>, Pending);

/// What is known of the backward passes of a stage.
pub(crate) struct Overlap {
    wanted: bool,
    course: Option<Arc<Course>>,
}

impl Overlap {
    /// Before the first pass; whether it is wanted.
    pub fn new(wanted: bool) -> Self {
        Self { wanted, course: None }
    }

    /// The last backward pass of a step, with the sum of all gradients over the processes; without a loss the sum alone.
    ///
    /// # Errors
    /// Those of the pass; another process that fails or does not come.
    pub fn last(&mut self, bucket: &mut GradientBucket, loss: Option<&Tensor>, ranks: &Ranks) -> Result<()> {
        if let Some(course) = self.course.clone() {
            return self.sum(bucket, loss, &course, ranks);
        }
        if let Some(loss) = loss {
            bucket.backward(loss)?;
        }
        let own = bucket.course(PIECES);
        // In their own order, and none waits for anything.
        let after = Course {
            writes: vec![0; own.writes.len()],
            order: (0..own.order.len()).collect(),
            ..own.clone()
        };
        self.sum(bucket, None, &Arc::new(after), ranks)?;
        if self.wanted {
            self.learn(loss.is_some().then_some(own), ranks)?;
        }
        Ok(())
    }

    /// Takes the course of the first process that has one.
    fn learn(&mut self, own: Option<Course>, ranks: &Ranks) -> Result<()> {
        let own = own.map(|course| (course.writes, course.order));
        let text = serde_json::to_vec(&own).map_err(candle_core::Error::wrap)?;
        let all = ranks.gather(&text, "the order of the exchange", Patience::Limited).map_err(told)?;
        for one in all {
            let found: Option<(Vec<u32>, Vec<usize>)> =
                serde_json::from_slice(&one).map_err(candle_core::Error::wrap)?;
            if let Some((writes, order)) = found {
                self.course = Some(Arc::new(Course { pieces: PIECES, writes, order }));
                break;
            }
        }
        Ok(())
    }

    /// A pass whose pieces are summed over the processes as they are handed out.
    fn sum(
        &self,
        bucket: &mut GradientBucket,
        loss: Option<&Tensor>,
        course: &Arc<Course>,
        ranks: &Ranks,
    ) -> Result<()> {
        let begun: Arc<Mutex<Vec<Begun>>> = Arc::default();
        let hand_out: HandOut = {
            let (begun, ranks) = (Arc::clone(&begun), ranks.clone());
            Box::new(move |range, part| match part {
                Part::Host(values) => {
                    let sum = ranks.begin_sum(values.to_vec());
                    begun.lock().unwrap_or_else(PoisonError::into_inner).push((range, sum));
                    Ok(())
                }
                #[cfg(feature = "nccl")]
                Part::Device(values, range) => {
                    ranks.begin_sum_on_gpu(values, range).map_err(candle_core::Error::wrap)
                }
                #[allow(unreachable_patterns, reason = "with the feature `cuda` alone there are others")]
                _ => Err(candle_core::Error::wrap(not_joined())),
            })
        };
        let passed = bucket.backward_handing_out(loss, course, hand_out);
        #[cfg(feature = "nccl")]
        if ranks.joins_gpus() {
            // Also after a pass that failed: the bucket may be gone before the sums that were begun.
            let ended = ranks.end_sums_on_gpu().map_err(told);
            passed?;
            return ended;
        }
        passed?;
        let begun = std::mem::take(&mut *begun.lock().unwrap_or_else(PoisonError::into_inner));
        let values = bucket.values()?;
        for (range, sum) in begun {
            values[range].copy_from_slice(&sum.wait().map_err(told)?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use calm_kernels::linear;
    use calm_nn::{Init, ParamStore};
    use calm_parallel::threads;
    use candle_core::{DType, Device};

    /// Gradients that a world leaves in three steps, in the first of which the second process has no loss.
    fn world(size: usize, wanted: bool) -> Vec<Vec<Vec<f32>>> {
        threads::run(size, |ranks| {
            let store = ParamStore::new(&Device::Cpu, DType::F32, 3);
            let names = ["a", "b", "c", "d"];
            let all = names.map(|name| store.builder().weight(name, &[2, 2], Init::Normal(1.0)).unwrap());
            let x = Tensor::new(&[[0.5f32, -1.0]], &Device::Cpu).unwrap();
            let mut bucket = GradientBucket::new(&store).unwrap();
            let mut overlap = Overlap::new(wanted);
            let mut found = Vec::new();
            for step in 0..3 {
                bucket.clear();
                let scale = (step + ranks.rank()) as f64 + 0.3;
                // Processes use their parameters in another order: what is exchanged when does not depend on it.
                let order = if ranks.rank() == 0 { [0, 1, 2, 3] } else { [2, 0, 3, 1] };
                let terms = order.map(|i| linear(&x, &all[i], None).unwrap().sum_all().unwrap());
                let loss = (terms.into_iter().reduce(|a, b| (a + b).unwrap()).unwrap() * scale).unwrap();
                let none = step == 0 && ranks.rank() == 1;
                overlap.last(&mut bucket, (!none).then_some(&loss), &ranks).unwrap();
                assert_eq!(overlap.course.is_some(), wanted);
                found.push(bucket.values().unwrap().to_vec());
            }
            found
        })
    }

    #[test]
    fn every_process_has_the_sums_whenever_they_are_made() {
        let beside = world(3, true);
        assert!(beside.iter().all(|one| *one == beside[0]));
        assert_eq!(beside, world(3, false), "to the bit");
        // The first step lacks what the second process would have had.
        let factor = |step: f32, ranks: &[f32]| ranks.iter().map(|rank| step + rank + 0.3).sum::<f32>();
        for (step, ranks) in [(0.0, &[0.0, 2.0][..]), (1.0, &[0.0, 1.0, 2.0])] {
            for (i, sum) in beside[0][step as usize].iter().enumerate() {
                let one = if i % 2 == 0 { 0.5 } else { -1.0 };
                assert!((sum - one * factor(step, ranks)).abs() < 1e-5, "step {step}, {i}: {sum}");
            }
        }
    }

    #[test]
    fn pieces_leave_while_the_pass_goes_on() {
        let store = ParamStore::new(&Device::Cpu, DType::F32, 3);
        let all = ["a", "b"].map(|name| store.builder().weight(name, &[2, 2], Init::Normal(1.0)).unwrap());
        let x = Tensor::new(&[[0.5f32, -1.0]], &Device::Cpu).unwrap();
        let loss = || linear(&linear(&x, &all[0], None).unwrap(), &all[1], None).unwrap().sum_all().unwrap();
        let mut bucket = GradientBucket::new(&store).unwrap();
        bucket.backward(&loss()).unwrap();
        let course = Arc::new(bucket.course(PIECES));
        assert_eq!(course.order, [1, 0], "the last layer comes first");
        bucket.clear();
        let seen: Arc<Mutex<Vec<Vec<f32>>>> = Arc::default();
        let hand_out: HandOut = {
            let seen = Arc::clone(&seen);
            Box::new(move |_, part| {
                #[allow(irrefutable_let_patterns, reason = "with the feature `cuda` there are others")]
                if let Part::Host(values) = part {
                    seen.lock().unwrap().push(values.to_vec());
                }
                // The second piece cannot have been written when the first one is handed out, if it is so during the pass.
                Err(candle_core::Error::Msg("enough".into()))
            })
        };
        let e = bucket.backward_handing_out(Some(&loss()), &course, hand_out).unwrap_err();
        assert!(e.to_string().contains("enough"), "{e}");
        assert_eq!(seen.lock().unwrap().len(), 1);
        assert!(
            bucket.get("b").unwrap().is_some() && bucket.get("a").unwrap().is_none(),
            "the pass was under way"
        );
    }
}
