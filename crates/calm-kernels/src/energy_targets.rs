//! What the energy score is asked for, on both devices: its targets, and sizes that fit together.

use crate::philox::{NoiseKey, RowId};
use crate::storage::error;
use candle_core::{DType, Result, Tensor};

const OP: &str = "energy_score";
/// Largest latent size: the buffers of a row stay near the core.
const MAX_LATENT: usize = 1024;

/// Where the standard normals behind the targets come from.
#[derive(Clone, Copy, Debug)]
pub enum TargetNoise<'a> {
    /// Drawn inside, `samples` (M) targets a row; target m is sample m of the row's stream.
    Draw {
        /// Stream and step.
        key: NoiseKey,
        /// Address of each of the R rows.
        rows: &'a [RowId],
        /// M, at least 1.
        samples: usize,
    },
    /// Given as `[M, R, L]`, of the type of the predictions (on a GPU also f32).
    Given(&'a Tensor),
}

/// R, N, L and M.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EnergySizes {
    pub(crate) rows: usize,
    pub(crate) samples: usize,
    pub(crate) latent: usize,
    pub(crate) targets: usize,
}

impl EnergySizes {
    /// Of inputs that fit together. The posterior and given noise have the type of `pred`; on a GPU they may
    /// also be f32.
    pub(crate) fn of(
        pred: &Tensor,
        mean: &Tensor,
        log_std: &Tensor,
        noise: TargetNoise<'_>,
        alpha: f64,
    ) -> Result<Self> {
        let &[r, n, l] = pred.dims() else {
            return Err(error(OP, format_args!("pred must be [R, N, L], got {:?}", pred.dims())));
        };
        let fits =
            |t: &Tensor| t.dtype() == pred.dtype() || (pred.device().is_cuda() && t.dtype() == DType::F32);
        if n < 2 {
            return Err(error(
                OP,
                format_args!("needs N >= 2 model samples a row, pred {:?} has {n}", pred.dims()),
            ));
        }
        if l == 0 || l > MAX_LATENT {
            return Err(error(
                OP,
                format_args!("needs a latent size of 1 to {MAX_LATENT}, pred {:?} has {l}", pred.dims()),
            ));
        }
        if !(alpha > 0.0 && alpha < 2.0) {
            return Err(error(
                OP,
                format_args!("alpha must lie in (0, 2), where the score is strictly proper; got {alpha}"),
            ));
        }
        for (name, t) in [("mean", mean), ("log_std", log_std)] {
            if t.dims() != [r, l] || !fits(t) {
                return Err(error(
                    OP,
                    format_args!(
                        "{name} must be [R, L] = [{r}, {l}] of {:?} for pred {:?}, got {:?} of {:?}",
                        pred.dtype(),
                        pred.dims(),
                        t.dims(),
                        t.dtype()
                    ),
                ));
            }
        }
        let targets = match noise {
            TargetNoise::Draw { rows, samples, .. } => {
                if rows.len() != r {
                    return Err(error(
                        OP,
                        format_args!(
                            "pred {:?} has {r} rows, but {} row addresses came for its noise",
                            pred.dims(),
                            rows.len()
                        ),
                    ));
                }
                samples
            }
            TargetNoise::Given(t) => {
                if t.rank() != 3 || t.dims()[1..] != [r, l] || !fits(t) {
                    return Err(error(
                        OP,
                        format_args!(
                            "the noise must be [M, R, L] = [M, {r}, {l}] of {:?}, got {:?} of {:?}",
                            pred.dtype(),
                            t.dims(),
                            t.dtype()
                        ),
                    ));
                }
                t.dims()[0]
            }
        };
        if targets < 1 {
            return Err(error(OP, "needs M >= 1 target samples a row, got 0"));
        }
        Ok(Self { rows: r, samples: n, latent: l, targets })
    }
}
