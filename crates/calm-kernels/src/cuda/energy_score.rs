//! Twin of `../energy_score.rs` on `kernels/energy_score.cu`: one launch gives the loss and, where it is asked
//! for, the gradient, which the backward pass scales by each row's upstream gradient.

use super::{Element, Gpu, Launch, view};
use crate::Operand;
use crate::energy_targets::{EnergySizes, TargetNoise};
use crate::nary::{Operator, apply};
use crate::storage::Saved;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DevicePtr};
use candle_core::{CudaStorage, DType, Result, Shape, Tensor};
use std::sync::Arc;

const OP: &str = "energy_score";
/// As in the kernel: threads of a block, model samples and other points in shared memory, lanes of a sum.
const THREADS: u32 = 128;
const SAMPLES: usize = 8;
const OTHERS: usize = 16;
const LANES: usize = 16;

/// Inputs of `sizes`, checked by the caller; a loss in f32 for each row.
pub(crate) fn energy_score(
    pred: &dyn Operand,
    mean: &Tensor,
    log_std: &Tensor,
    noise: TargetNoise<'_>,
    alpha: f64,
    sizes: EnergySizes,
) -> Result<Tensor> {
    let gpu = Gpu::of(OP, pred)?;
    let f32s = |t: &Tensor| t.detach().to_dtype(DType::F32)?.contiguous();
    let noise = match noise {
        TargetNoise::Draw { key, rows, .. } => {
            let rows: Vec<[u32; 2]> = rows.iter().map(|r| [r.example, r.position]).collect();
            Noise::Draw { key: [key.key[0], key.key[1], key.step], rows: gpu.shared(&rows)? }
        }
        TargetNoise::Given(noise) => Noise::Given(f32s(noise)?),
    };
    let op = EnergyScore {
        mean: f32s(mean)?,
        log_std: f32s(log_std)?,
        noise,
        alpha,
        sizes,
        with_gradient: pred.tensor().track_op(),
        gradient: Saved::new(),
    };
    apply(op, &[pred])
}

enum Noise {
    Draw { key: [u32; 3], rows: Arc<CudaSlice<[u32; 2]>> },
    Given(Tensor),
}

struct EnergyScore {
    /// `[R, L]` in f32, as log_std.
    mean: Tensor,
    log_std: Tensor,
    noise: Noise,
    alpha: f64,
    sizes: EnergySizes,
    /// dloss/dpred `[R, N, L]`, kept when asked for.
    with_gradient: bool,
    gradient: Saved<Tensor>,
}

impl EnergyScore {
    fn run<T: Element>(&self, gpu: &Gpu, pred: &Tensor) -> Result<CudaSlice<f32>> {
        let EnergySizes { rows: r, samples, latent, targets } = self.sizes;
        let mut loss = gpu.empty::<f32>(r)?;
        let gradient = self.with_gradient.then(|| gpu.empty::<T>(pred.elem_count())).transpose()?;
        if r > 0 {
            let (pred, mean) = (view::<T>(OP, pred)?, view::<f32>(OP, &self.mean)?);
            let log_std = view::<f32>(OP, &self.log_std)?;
            let stream = gpu.stream();
            // Addresses, because what is absent is null.
            let given = match &self.noise {
                Noise::Given(noise) => Some(view::<f32>(OP, noise)?),
                Noise::Draw { .. } => None,
            };
            let given = given.as_ref().map(|given| given.get());
            let given = given.as_ref().map(|given| given.device_ptr(&stream));
            let rows = match &self.noise {
                Noise::Draw { rows, .. } => Some(rows.device_ptr(&stream)),
                Noise::Given(_) => None,
            };
            let key = match self.noise {
                Noise::Draw { key, .. } => key,
                Noise::Given(_) => [0; 3],
            };
            let to = gradient.as_ref().map(|gradient| gradient.device_ptr(&stream));
            let floats = (2 * SAMPLES + OTHERS + 2) * latent.next_multiple_of(LANES);
            let launch = Launch::of(r, 1, THREADS).shared((floats * size_of::<f32>()) as u32);
            launch!(
                gpu,
                ENERGY_SCORE,
                format!("energy_score_{}", T::SUFFIX),
                launch,
                &pred.get(),
                &mean.get(),
                &log_std.get(),
                &key,
                &rows.as_ref().map_or(0, |&(at, _)| at),
                &given.as_ref().map_or(0, |&(at, _)| at),
                &mut loss,
                &to.as_ref().map_or(0, |&(at, _)| at),
                &(r as u32),
                &(samples as u32),
                &(targets as u32),
                &(latent as u32),
                &self.alpha,
            );
        }
        if let Some(gradient) = gradient {
            self.gradient.set(gpu.tensor(gradient, pred.shape())?);
        }
        Ok(loss)
    }

    fn scale<T: Element>(&self, gpu: &Gpu, upstream: &Tensor) -> Result<Tensor> {
        let kept = self.gradient.get(OP)?;
        let EnergySizes { rows: r, samples, latent, .. } = self.sizes;
        let mut out = gpu.empty::<T>(kept.elem_count())?;
        if r > 0 {
            let (kept, upstream) = (view::<T>(OP, &kept)?, view::<f32>(OP, upstream)?);
            let row = (samples * latent) as u32;
            let kernel = format!("energy_score_backward_{}", T::SUFFIX);
            let launch = Launch::of(r, 1, 256);
            launch!(
                gpu,
                ENERGY_SCORE,
                kernel,
                launch,
                &kept.get(),
                &upstream.get(),
                &mut out,
                &(r as u32),
                &row,
            );
        }
        gpu.tensor(out, kept.shape())
    }
}

impl Operator<Gpu> for EnergyScore {
    const NAME: &'static str = OP;

    fn forward(&self, gpu: &Gpu, inputs: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        let loss = with_element!(OP, inputs[0].dtype(), T => self.run::<T>(gpu, &inputs[0]))?;
        Ok((gpu.storage(loss), Shape::from(self.sizes.rows)))
    }

    fn backward(
        &self,
        gpu: &Gpu,
        inputs: &[Tensor],
        _output: &Tensor,
        grad: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let gradient = with_element!(OP, inputs[0].dtype(), T => self.scale::<T>(gpu, grad))?;
        Ok(vec![Some(gradient)])
    }
}
