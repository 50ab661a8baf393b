//! The MLP half of a layer: `y = x + down(silu(gate(h))·up(h))`, h = RMSNorm(x), as one operator.
//!
//! Fused, because between its parts candle's backward pass would fill every gradient with zeros and add to
//! it. Kept for the backward pass: the outputs of gate and up; h and the gated product are computed again.

use crate::Operand;
use crate::backend::{Array, Backend, Block, Blocks, named};
use crate::cpu::Cpu;
use crate::nary::apply;
use crate::storage::{Saved, error};
use candle_core::{Result, Tensor};

/// `x + (silu(h gateᵀ)·(h upᵀ)) downᵀ` with h = RMSNorm(x)·norm, for x `[.., D]`, norm `[D]`, gate and up
/// `[I, D]`, down `[D, I]`: a tensor like x, differentiable in all of them.
///
/// f32 and f64 on the CPU, f32 and bf16 on a GPU. The same as [`crate::rms_norm`], [`crate::linear`] and
/// [`crate::swiglu`] one after the other.
///
/// # Errors
/// Shapes that do not fit, element types that differ or that the device does not take.
pub fn mlp_block(
    x: &Tensor,
    norm: &dyn Operand,
    [gate, up, down]: [&dyn Operand; 3],
    eps: f64,
) -> Result<Tensor> {
    let fits = match (x.dims(), gate.dims()) {
        ([.., d], [i, gd]) => {
            norm.dims() == [*d] && d == gd && up.dims() == [*i, *d] && down.dims() == [*d, *i]
        }
        _ => false,
    };
    let inputs = Inputs::<&dyn Operand> { x, norm, gate, up, down }.list();
    if !fits {
        let dims: Vec<&[usize]> = inputs.iter().map(|t| t.dims()).collect();
        return Err(error(
            OP,
            format_args!(
                "{dims:?} do not fit: expected x [.., D], norm [D], gate and up [I, D], down [D, I]"
            ),
        ));
    }
    let keep = inputs.iter().any(|t| t.track_op());
    let block = MlpBlock { eps, keep, gated: Saved::new() };
    on_gpu!(x, apply::<crate::cuda::Gpu, _>(block, &inputs));
    apply::<Cpu, _>(block, &inputs)
}

const OP: &str = "mlp_block";

named! { Inputs { x, norm, gate, up, down } }

struct MlpBlock {
    eps: f64,
    /// Whether a backward pass may follow.
    keep: bool,
    /// Outputs of gate and up, `[R, I]`.
    gated: Saved<[Tensor; 2]>,
}

impl<P: Blocks> Block<P> for MlpBlock {
    const NAME: &'static str = OP;

    fn forward<B: Backend<Place = P>>(&self, on: &B, inputs: &[Tensor]) -> Result<Array<'static, B>> {
        let of = Inputs::of(OP, inputs)?.try_map(|t| on.operand(t))?;
        let h = on.rms_norm(&of.x, &of.norm, self.eps)?;
        let g = on.linear(h.mat(), of.gate.mat())?;
        let u = on.linear(h.mat(), of.up.mat())?;
        let a = on.swiglu(&g, &u)?;
        let y = on.residual(&of.x, a.mat(), of.down.mat(), None)?;
        if self.keep {
            self.gated.set([on.tensor(g)?, on.tensor(u)?]);
        }
        Ok(y)
    }

    fn backward<B: Backend<Place = P>>(
        &self,
        on: &B,
        inputs: &[Tensor],
        grad: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let inputs = Inputs::of(OP, inputs)?;
        let of = inputs.try_map(|t| on.operand(t))?;
        let [g, u] = self.gated.get(OP)?;
        let (g, u, dy) = (on.read(&g)?, on.read(&u)?, on.read(grad)?);

        let a = on.swiglu(&g, &u)?;
        let down = on.weight_gradient(inputs.down, [(dy.mat(), a.mat())])?;
        drop(a);
        let da = on.back(dy.mat(), of.down.mat())?;
        let [dg, du] = on.swiglu_backward(&g, &u, &da)?;
        drop(da);

        let h = on.rms_norm(&of.x, &of.norm, self.eps)?;
        let gate = on.weight_gradient(inputs.gate, [(dg.mat(), h.mat())])?;
        let up = on.weight_gradient(inputs.up, [(du.mat(), h.mat())])?;
        let dh = on.back(dg.mat(), of.gate.mat())?;
        let dh = on.add_back(dh, du.mat(), of.up.mat())?;
        let (dx, norm) = on.rms_norm_backward(&of.x, (&of.norm, inputs.norm), &dh, &dy, self.eps)?;
        let x = inputs.x.track_op().then(|| on.gradient(dx, inputs.x)).transpose()?;
        Ok(Inputs { x, norm, gate, up, down }.list())
    }
}
