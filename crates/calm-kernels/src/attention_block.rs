//! The attention half of a layer, `y = x + output(attention(query(h), key(h), value(h)))` with
//! h = RMSNorm(x) and rotary angles on queries and keys, as one operator.
//!
//! Fused for the reason of [`crate::mlp_block`]. Kept for the backward pass: rotated queries and keys,
//! values, the heads' output and the scores' log sums.

use crate::Operand;
use crate::attention_sizes::AttentionSizes;
use crate::backend::{Array, AttentionShape, Backend, Block, Blocks, Heads, named};
use crate::cpu::Cpu;
use crate::nary::apply;
use crate::storage::{Saved, error};
use candle_core::{Result, Tensor};

/// `x + attention(h)` outputᵀ for x `[B, S, D]`, norm `[D]`, query and output `[D, D]`, key and value
/// `[Hkv·D/H, D]`: a tensor like x, differentiable in all of them.
///
/// f32 and f64 on the CPU, f32 and bf16 on a GPU, which takes heads as [`crate::causal_attention`] does and f32
/// parameters with bf16 x. The same as [`crate::rms_norm`], [`crate::linear`], [`crate::rotary`] and
/// [`crate::causal_attention`] one after the other.
///
/// # Errors
/// Shapes that do not fit, H not a divisor of D or not a multiple of Hkv, odd heads, element types that
/// differ or that the device does not take, positions or segments that are not U32, spans of other sizes.
pub fn attention_block(
    x: &Tensor,
    norm: &dyn Operand,
    [query, key, value, output]: [&dyn Operand; 4],
    shape: AttentionShape<'_>,
) -> Result<Tensor> {
    let inputs = Inputs::<&dyn Operand> { x, norm, query, key, value, output }.list();
    let (h, kv) = (shape.heads, shape.kv_heads);
    let sizes = match *x.dims() {
        [b, s, d] => {
            let kv_width = d.checked_div(h).unwrap_or(0) * kv;
            let split = h > 0 && kv > 0 && d % h == 0 && h % kv == 0 && (d / h) % 2 == 0;
            let matrices = [query.dims(), output.dims()] == [[d, d]; 2]
                && [key.dims(), value.dims()] == [[kv_width, d]; 2];
            (split && matrices && norm.dims() == [d] && shape.positions.dims() == [b, s])
                .then(|| AttentionSizes {
                    batch: b,
                    queries: s,
                    keys: s,
                    heads: h,
                    kv_heads: kv,
                    head: d / h,
                    sets: 1,
                })
                .and_then(|sizes| shape.sees.fit(sizes))
        }
        _ => None,
    };
    let Some(sizes) = sizes else {
        let dims: Vec<&[usize]> = inputs.iter().map(|t| t.dims()).collect();
        return Err(error(
            OP,
            format_args!(
                "{dims:?}, {h} heads over {kv}, positions {:?}, segments or spans {:?} do not fit: expected x \
                 [B, S, D], norm [D], query [D, D], key and value [Hkv·Dh, D], output [D, D], positions and \
                 segments [B, S], or spans of B rows, S queries, S keys and a number of sets that divides Hkv",
                shape.positions.dims(),
                shape.sees.dims()
            ),
        ));
    };
    on_gpu!(x, run::<crate::cuda::Gpu>(&inputs, sizes, &shape));
    run::<Cpu>(&inputs, sizes, &shape)
}

const OP: &str = "attention_block";

named! { Inputs { x, norm, query, key, value, output } }

fn run<P: Blocks>(
    inputs: &[&dyn Operand],
    sizes: AttentionSizes,
    shape: &AttentionShape<'_>,
) -> Result<Tensor> {
    let block = AttentionBlock::<P> {
        sizes,
        positions: P::of(OP, inputs)?.positions(OP, shape, sizes.head)?,
        eps: shape.eps,
        keep: inputs.iter().any(|t| t.track_op()),
        kept: Saved::new(),
    };
    apply::<P, _>(block, inputs)
}

struct AttentionBlock<P: Blocks> {
    sizes: AttentionSizes,
    positions: P::Positions,
    eps: f64,
    /// Whether a backward pass may follow.
    keep: bool,
    kept: Saved<KeptHeads>,
}

/// What the backward pass needs beside the inputs, as in [`Heads`].
#[derive(Clone)]
struct KeptHeads {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    log_sums: Tensor,
}

impl<P: Blocks> Block<P> for AttentionBlock<P> {
    const NAME: &'static str = OP;

    fn forward<B: Backend<Place = P>>(&self, on: &B, inputs: &[Tensor]) -> Result<Array<'static, B>> {
        let of = Inputs::of(OP, inputs)?.try_map(|t| on.operand(t))?;
        let (heads, kv_heads) = (self.sizes.heads, self.sizes.kv_heads);
        let h = on.rms_norm(&of.x, &of.norm, self.eps)?;
        let q = on.linear(h.mat(), of.query.mat())?;
        let q = on.rotate(&self.positions, &q, heads, false)?;
        let k = on.linear(h.mat(), of.key.mat())?;
        let k = on.rotate(&self.positions, &k, kv_heads, false)?;
        let v = on.linear(h.mat(), of.value.mat())?;
        let (out, log_sums) = on.attend(self.sizes, &self.positions, [&q, &k, &v], self.keep)?;
        let y = on.residual(&of.x, out.mat(), of.output.mat(), None)?;
        if let Some(log_sums) = log_sums {
            let (q, k, v, out) = (on.tensor(q)?, on.tensor(k)?, on.tensor(v)?, on.tensor(out)?);
            self.kept.set(KeptHeads { q, k, v, out, log_sums });
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
        let (heads, kv_heads) = (self.sizes.heads, self.sizes.kv_heads);
        let KeptHeads { q, k, v, out, log_sums } = &self.kept.get(OP)?;
        let kept = Heads { q: on.read(q)?, k: on.read(k)?, v: on.read(v)?, out: on.read(out)?, log_sums };
        let dy = on.read(grad)?;

        let output = on.weight_gradient(inputs.output, [(dy.mat(), kept.out.mat())])?;
        let d_out = on.back(dy.mat(), of.output.mat())?;
        let [dq, dk, dv] = on.attend_backward(self.sizes, &self.positions, &kept, &d_out)?;
        let dq = on.rotate(&self.positions, &dq, heads, true)?;
        let dk = on.rotate(&self.positions, &dk, kv_heads, true)?;

        let h = on.rms_norm(&of.x, &of.norm, self.eps)?;
        let query = on.weight_gradient(inputs.query, [(dq.mat(), h.mat())])?;
        let key = on.weight_gradient(inputs.key, [(dk.mat(), h.mat())])?;
        let value = on.weight_gradient(inputs.value, [(dv.mat(), h.mat())])?;
        let dh = on.back(dq.mat(), of.query.mat())?;
        let dh = on.add_back(dh, dk.mat(), of.key.mat())?;
        let dh = on.add_back(dh, dv.mat(), of.value.mat())?;
        let (dx, norm) = on.rms_norm_backward(&of.x, (&of.norm, inputs.norm), &dh, &dy, self.eps)?;
        let x = inputs.x.track_op().then(|| on.gradient(dx, inputs.x)).transpose()?;
        Ok(Inputs { x, norm, query, key, value, output }.list())
    }
}
