//! Attention for generation and scoring (no gradients): new positions against a cache, and one-position
//! branches that leave a shared prefix.
//!
//! ```text
//! cached:  query i of T sees the C cached keys and the first i + 1 new ones
//! branch:  query (b, s) sees its span of the shared keys, and the s-th key of every branch tensor
//! ```
//! With branches every position of a batch can be rolled forward by some positions of its own at once:
//! the prefix is computed once for all of them.

use crate::attention::{Branch, attend};
use crate::attention_sizes::{AttentionSizes, Sight, Span};
use crate::context::{self, Operand};
use crate::products::Products;
use crate::storage::{error, tensor, view};
use crate::with_float;
use candle_core::{Result, Tensor};

const CACHED: &str = "cached_attention";
const BRANCH: &str = "branch_attention";

/// Attention of T new positions q `[B, T, H, Dh]` over k, v `[B, C+T, Hkv, Dh]`, the C cached positions
/// followed by the new ones; causal among the new ones: a tensor like q, without gradient.
///
/// Key head g serves the query heads g·H/Hkv .. (g+1)·H/Hkv; scores are scaled by 1/√Dh. f32 and f64 on
/// the CPU, f32 and bf16 on a GPU, which takes heads up to 256; the inputs may have any strides.
///
/// # Errors
/// Shapes that do not fit, fewer keys than queries, element types that differ or that the device does not take.
pub fn cached_attention(queries: &dyn Operand, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let q = queries.tensor();
    let sizes = AttentionSizes::new(CACHED, q, k, v)?;
    let Some(cached) = sizes.keys.checked_sub(sizes.queries) else {
        return Err(error(
            CACHED,
            format_args!(
                "k {:?} has fewer positions than q {:?}: it must hold the cached and the new ones",
                k.dims(),
                q.dims()
            ),
        ));
    };
    on_gpu!(q, crate::cuda::attention_inference::cached_attention(CACHED, sizes, queries, [k, v]));
    let spans: Vec<Span> =
        (0..sizes.batch).flat_map(|_| (0..sizes.queries).map(|t| (0, (cached + t + 1) as u32))).collect();
    run(CACHED, sizes, &spans, context::products(&[queries]), [q, k, v], &[], &[])
}

/// Attention of q `[B, S, H, Dh]`, where position (b, s) sees the shared keys of its sight (u ≤ s of its segment) in
/// k, v `[B, S, Hkv, Dh]` and its own key and value at (b, s) of every branch tensor
/// (`[B, S, Hkv, Dh]` each; as many values as keys, possibly none): a tensor like q, without gradient.
///
/// Heads, scale and element types as in [`crate::causal_attention`].
///
/// # Errors
/// Shapes that do not fit, element types that differ or that the device does not take, segments that are not
/// U32.
pub fn branch_attention<'a>(
    queries: &dyn Operand,
    k: &Tensor,
    v: &Tensor,
    sees: impl Into<Sight<'a>>,
    branch_k: &[Tensor],
    branch_v: &[Tensor],
) -> Result<Tensor> {
    let q = queries.tensor();
    let sizes = AttentionSizes::new(BRANCH, q, k, v)?;
    let sees = sees.into();
    let fits = sizes.keys == sizes.queries
        && branch_k.len() == branch_v.len()
        && branch_k.iter().chain(branch_v).all(|t| t.dims() == k.dims());
    let Some(sizes) = sees.fit(sizes).filter(|_| fits) else {
        let dims = |list: &[Tensor]| list.iter().map(|t| t.dims().to_vec()).collect::<Vec<_>>();
        return Err(error(
            BRANCH,
            format_args!(
                "q {:?}, k {:?}, segments or spans {:?}, branch keys {:?} and values {:?} do not fit: expected q \
                 [B, S, H, Dh], k and v and every branch tensor [B, S, Hkv, Dh], segments [B, S], or spans of B rows, \
                 S queries, S keys and a number of sets that divides Hkv",
                q.dims(),
                k.dims(),
                sees.dims(),
                dims(branch_k),
                dims(branch_v)
            ),
        ));
    };
    on_gpu!(
        q,
        crate::cuda::attention_inference::branch_attention(
            BRANCH,
            sizes,
            queries,
            [k, v],
            sees,
            branch_k,
            branch_v
        )
    );
    let spans = sees.spans(BRANCH)?;
    run(BRANCH, sizes, &spans, context::products(&[queries]), [q, k, v], branch_k, branch_v)
}

fn run(
    op: &str,
    sizes: AttentionSizes,
    spans: &[Span],
    products: Products,
    inputs: [&Tensor; 3],
    branch_k: &[Tensor],
    branch_v: &[Tensor],
) -> Result<Tensor> {
    let all: Vec<Tensor> = inputs
        .into_iter()
        .chain(branch_k)
        .chain(branch_v)
        .map(|t| t.detach().contiguous())
        .collect::<Result<_>>()?;
    with_float!(op, inputs[0].dtype(), T => {
        let views: Vec<_> = all.iter().map(|t| view::<T>(op, t)).collect::<Result<_>>()?;
        let (shared, branches) = views.split_at(3);
        let (keys, values) = branches.split_at(branch_k.len());
        let branches: Vec<Branch<'_, T>> = keys.iter().zip(values).map(|(k, v)| (&**k, &**v)).collect();
        let inputs = (&*shared[0], &*shared[1], &*shared[2]);
        let (out, _) = attend::<T>(sizes, spans, products, inputs, &branches, false);
        tensor(out, all[0].shape())
    })
}
