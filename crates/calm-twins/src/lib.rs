//! The CUDA kernels of `kernels/*.cu`, compiled as plain C++ and run on the host, so that tests compare
//! them with the CPU operators of `calm-kernels` on a machine without a GPU. Nothing depends on this
//! crate; `kernels/README.md` explains how a kernel runs on the host.
//!
//! (Longer than other files: it is one list of kernels.)
//!
//! A kernel that exists for f32 and bf16 is a field of [`Kernels`], the others are plain functions. The
//! arguments are those of the `KERNEL` line in the `.cu` file, after the [`Launch`].

#![allow(missing_docs, reason = "the KERNEL lines of kernels/*.cu say what each argument is")]

use half::bf16;
use std::ffi::c_void;

/// What a launch chooses: blocks, threads a block (a multiple of 32, at most 256), bytes of dynamic
/// shared memory, and whether threads and blocks run from the last to the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Launch {
    pub grid: u32,
    pub threads: u32,
    pub shared_bytes: u32,
    pub reversed: u32,
}

/// Key words of a stream and the training step.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct NoiseKey {
    pub key: [u32; 2],
    pub step: u32,
}

/// Index of the example in the global batch, chunk position in it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct RowId {
    pub example: u32,
    pub position: u32,
}

/// The keys `start..end` that a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Span {
    pub start: u32,
    pub end: u32,
}

/// Sizes of one attention: `batch` rows of T queries over U keys, H and Hkv heads.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct AttentionSizes {
    pub batch: u32,
    pub queries: u32,
    pub keys: u32,
    pub heads: u32,
    pub kv_heads: u32,
    /// Of spans, a divisor of Hkv.
    pub sets: u32,
    /// Of the scores: 1/√Dh.
    pub scale: f32,
}

/// Keys and values that one launch of `add_branches` adds, `count` of them at most [`BRANCHES`].
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Branches {
    pub keys: [*const c_void; BRANCHES],
    pub values: [*const c_void; BRANCHES],
    pub count: u32,
}

/// An element type that kernels exist for.
pub trait Element: Copy + Default + Send + Sync + 'static {
    /// Its kernels.
    const KERNELS: Kernels<Self>;
    /// Launches of its attention kernels for a head size: attention, query gradients, key gradients.
    fn attention_launches(head: u32) -> [TileLaunch; 3];
    /// To the nearest, ties to even.
    fn of(x: f32) -> Self;
    fn as_f32(self) -> f32;
}

impl Element for f32 {
    const KERNELS: Kernels<Self> = KERNELS_F32;
    fn attention_launches(head: u32) -> [TileLaunch; 3] {
        attention_launches_f32(head)
    }
    fn of(x: f32) -> Self {
        x
    }
    fn as_f32(self) -> f32 {
        self
    }
}

impl Element for bf16 {
    const KERNELS: Kernels<Self> = KERNELS_BF16;
    fn attention_launches(head: u32) -> [TileLaunch; 3] {
        attention_launches_bf16(head)
    }
    fn of(x: f32) -> Self {
        bf16::from_f32(x)
    }
    fn as_f32(self) -> f32 {
        self.to_f32()
    }
}

/// `NAME(arguments);` declares `NAME_f32` and `NAME_bf16`, in which `T` is the element type.
macro_rules! kernels {
    ($( $name:ident ( $($ty:ty),* $(,)? ); )*) => {
        mod single {
            use super::*;
            type T = f32;
            unsafe extern "C" {
                $( #[link_name = concat!(stringify!($name), "_f32")]
                pub fn $name(launch: Launch, $(_: $ty),*); )*
            }
        }
        mod brain {
            use super::*;
            type T = bf16;
            unsafe extern "C" {
                $( #[link_name = concat!(stringify!($name), "_bf16")]
                pub fn $name(launch: Launch, $(_: $ty),*); )*
            }
        }
        /// The kernels for one element type.
        pub struct Kernels<T> {
            $( pub $name: unsafe extern "C" fn(Launch, $($ty),*), )*
        }
        const KERNELS_F32: Kernels<f32> = Kernels { $( $name: single::$name, )* };
        const KERNELS_BF16: Kernels<bf16> = Kernels { $( $name: brain::$name, )* };
    };
}

kernels! {
    // energy_score.cu
    energy_score(
        *const T, *const f32, *const f32, NoiseKey, *const RowId, *const f32, *mut f32, *mut T, u32, u32,
        u32, u32, f64,
    );
    energy_score_backward(*const T, *const f32, *mut T, u32, u32);

    // column_sums.cu
    column_parts(*const T, *mut f32, u32, u32, u32);

    // rms_norm.cu
    rms_norm(*const T, *const T, *mut T, u32, u32, f32);
    rms_norm_backward(*const T, *const T, *const T, *mut T, *mut f32, u32, u32, f32);
    rms_norm_weight_parts(*const T, *const T, *const f32, *mut f32, u32, u32, u32);

    // layer_norm.cu
    layer_norm(*const T, *const T, *const T, *mut T, u32, u32, f32);
    layer_norm_backward(*const T, *const T, *const T, *mut T, *mut f32, u32, u32, f32);
    layer_norm_residual_backward(
        *const T, *const T, *const T, *const T, *const T, *mut T, *mut T, *mut f32, u32, u32, f32,
    );
    layer_norm_weight_parts(*const T, *const T, *const f32, *mut f32, u32, u32, u32);

    // silu.cu
    silu(*const T, *mut T, u64);
    silu_backward(*const T, *const T, *mut T, u64);
    add_silu(*const T, *const T, *mut T, u32, u32, u32);
    add_silu_backward(*const T, *const T, *const T, *mut T, *mut T, u32, u32, u32);

    // swiglu.cu
    swiglu(*const T, *const T, *mut T, u64, u32, u32);
    swiglu_backward(*const T, *const T, *const T, *mut T, *mut T, u64, u32, u32);

    // energy_block.cu
    bias_silu(*const T, *const T, *const T, *mut T, u32, u32, u32);
    shared_bias_silu_backward(
        *const T, *const T, *const T, *const T, *mut T, *mut T, *mut T, u32, u32, u32,
    );
    bias_silu_backward(*const T, *const T, *const T, *mut T, *mut T, *mut f32, u32, u32, u32);
    bias_swiglu(*const T, *const T, *mut T, u64, u32);
    bias_swiglu_backward(*const T, *const T, *const T, *mut T, *mut T, *mut f32, u32, u32, u32);
    add_bias(*const T, *const T, *mut T, u64, u32);

    // rotary.cu
    rotary(*const T, *const u32, *const f32, *mut T, u64, u32, u32, f32);

    // smooth.cu
    smooth(*const T, *const f32, *const u32, *mut T, u32, u32, u32);
    smooth_slopes(*const T, *const f32, *const u32, *mut f32, u32, u32, u32);
    smooth_backward(
        *const T, *const f32, *const u32, *const T, *const f32, *mut T, *mut f32, u32, u32, u32,
    );

    // dropout.cu
    dropout(*const T, NoiseKey, *const RowId, *mut T, u32, u32, f32, f32);

    // embedding.cu
    embedding(*const u32, *const T, *mut T, u64, u32, u32);
    embedding_parts(*const u64, *const u32, *const T, *mut f32, u32, u32, u32);
    embedding_backward(*const u64, *const u32, *const T, *const f32, *mut f32, u32, u32, u32, u32);

    // cast.cu, linear.cu
    add(*const T, *mut T, u64);
    repeat_row(*const T, *mut T, u64, u32);

    // cross_entropy.cu
    cross_entropy_slope(
        *const f32, *const u32, *const f32, *const f32, *const f64, *mut T, u32, u32, u32,
    );
    cross_entropy_backward(*const T, *const f32, *mut T, u64, u32);

    // attention.cu, attention_backward.cu: a kernel for each head size
    attention_32(*const T, *const T, *const T, *const Span, *mut T, *mut f32, AttentionSizes);
    attention_queries_32(
        *const T, *const T, *const T, *const T, *const Span, *const f32, *const f32, *mut T, AttentionSizes,
    );
    attention_keys_32(
        *const T, *const T, *const T, *const T, *const Span, *const f32, *const f32, *mut T, *mut T,
        AttentionSizes,
    );
    attention_48(*const T, *const T, *const T, *const Span, *mut T, *mut f32, AttentionSizes);
    attention_queries_48(
        *const T, *const T, *const T, *const T, *const Span, *const f32, *const f32, *mut T, AttentionSizes,
    );
    attention_keys_48(
        *const T, *const T, *const T, *const T, *const Span, *const f32, *const f32, *mut T, *mut T,
        AttentionSizes,
    );
    attention_64(*const T, *const T, *const T, *const Span, *mut T, *mut f32, AttentionSizes);
    attention_queries_64(
        *const T, *const T, *const T, *const T, *const Span, *const f32, *const f32, *mut T, AttentionSizes,
    );
    attention_keys_64(
        *const T, *const T, *const T, *const T, *const Span, *const f32, *const f32, *mut T, *mut T,
        AttentionSizes,
    );
    attention_96(*const T, *const T, *const T, *const Span, *mut T, *mut f32, AttentionSizes);
    attention_queries_96(
        *const T, *const T, *const T, *const T, *const Span, *const f32, *const f32, *mut T, AttentionSizes,
    );
    attention_keys_96(
        *const T, *const T, *const T, *const T, *const Span, *const f32, *const f32, *mut T, *mut T,
        AttentionSizes,
    );
    attention_128(*const T, *const T, *const T, *const Span, *mut T, *mut f32, AttentionSizes);
    attention_queries_128(
        *const T, *const T, *const T, *const T, *const Span, *const f32, *const f32, *mut T, AttentionSizes,
    );
    attention_keys_128(
        *const T, *const T, *const T, *const T, *const Span, *const f32, *const f32, *mut T, *mut T,
        AttentionSizes,
    );
    attention_160(*const T, *const T, *const T, *const Span, *mut T, *mut f32, AttentionSizes);
    attention_queries_160(
        *const T, *const T, *const T, *const T, *const Span, *const f32, *const f32, *mut T, AttentionSizes,
    );
    attention_keys_160(
        *const T, *const T, *const T, *const T, *const Span, *const f32, *const f32, *mut T, *mut T,
        AttentionSizes,
    );
    attention_delta(*const T, *const T, *mut f32, u64, u32);

    // attention_inference.cu
    cached_parts(
        *const T, *const T, *const T, *const Span, *mut f32, *mut f32, AttentionSizes, u32,
    );
    cached_sum(*const f32, *const f32, *mut T, u64, u32, u32, f32);
    add_branches(*const T, Branches, *const f32, *mut f32, *mut T, u64, u32, u32, f32);
}

type Forward<T> =
    unsafe extern "C" fn(Launch, *const T, *const T, *const T, *const Span, *mut T, *mut f32, AttentionSizes);
type Queries<T> = unsafe extern "C" fn(
    Launch,
    *const T,
    *const T,
    *const T,
    *const T,
    *const Span,
    *const f32,
    *const f32,
    *mut T,
    AttentionSizes,
);
type Keys<T> = unsafe extern "C" fn(
    Launch,
    *const T,
    *const T,
    *const T,
    *const T,
    *const Span,
    *const f32,
    *const f32,
    *mut T,
    *mut T,
    AttentionSizes,
);

impl<T> Kernels<T> {
    /// The kernels for a head size: attention, its query gradients, its key gradients; `None` where there
    /// are none.
    pub fn attention(&self, head: u32) -> Option<(Forward<T>, Queries<T>, Keys<T>)> {
        match head {
            32 => Some((self.attention_32, self.attention_queries_32, self.attention_keys_32)),
            48 => Some((self.attention_48, self.attention_queries_48, self.attention_keys_48)),
            64 => Some((self.attention_64, self.attention_queries_64, self.attention_keys_64)),
            96 => Some((self.attention_96, self.attention_queries_96, self.attention_keys_96)),
            128 => Some((self.attention_128, self.attention_queries_128, self.attention_keys_128)),
            160 => Some((self.attention_160, self.attention_queries_160, self.attention_keys_160)),
            _ => None,
        }
    }
}

// column_sums.cu
unsafe extern "C" {
    pub fn sum_parts(launch: Launch, partial: *const f32, out: *mut f32, parts: u32, columns: u32);
}

// attention_spans.cu
unsafe extern "C" {
    pub fn segment_spans(launch: Launch, segments: *const u32, spans: *mut Span, rows: u32, s: u32);
}

// matrix.cu
unsafe extern "C" {
    pub fn matrix_product_columns(launch: Launch, a: *const bf16, b: *const bf16, c: *mut f32, k: u32);
    pub fn matrix_product_rows(launch: Launch, a: *const bf16, b: *const bf16, c: *mut f32, k: u32);
}

// philox.cu
unsafe extern "C" {
    pub fn noise_uniform(
        launch: Launch,
        key: NoiseKey,
        rows: *const RowId,
        out: *mut f32,
        r: u32,
        n: u32,
        d: u32,
    );
    pub fn noise_normal(
        launch: Launch,
        key: NoiseKey,
        rows: *const RowId,
        out: *mut f32,
        r: u32,
        n: u32,
        d: u32,
    );
}

// rotary.cu
unsafe extern "C" {
    pub fn rotary_turns(
        launch: Launch,
        positions: *const u32,
        frequency: *const f64,
        table: *mut f32,
        rows: u64,
        half: u32,
    );
}

// embedding.cu, sort.cu
unsafe extern "C" {
    pub fn embedding_f32_bf16(
        launch: Launch,
        ids: *const u32,
        table: *const f32,
        out: *mut bf16,
        count: u64,
        d: u32,
        v: u32,
    );
    pub fn embedding_first(launch: Launch, keys: *const u64, first: *mut u32, count: u32, v: u32);
    pub fn sort_keys(launch: Launch, ids: *const u32, keys: *mut u64, count: u32, padded: u32);
    pub fn sort_step(launch: Launch, keys: *mut u64, padded: u32, k: u32, j: u32);
    pub fn sort_tiles(launch: Launch, keys: *mut u64, padded: u32, k_first: u32, k_last: u32);
}

/// One parameter of the optimiser's table.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Parameter {
    pub value: *mut f32,
    pub grad: *const f32,
    pub m: *mut f32,
    pub v: *mut f32,
    pub compute: *mut bf16,
    pub count: u64,
    pub first_chunk: u64,
    pub group: u64,
}

/// What is the same for all parameters of an optimiser step, and for those of each kind.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct AdamWFactors {
    pub first: f32,
    pub beta2: f32,
    pub second: f32,
    pub root: f32,
    pub groups: [AdamWGroup; 8],
}

/// What is the same for all parameters of a kind.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct AdamWGroup {
    pub keep: f32,
    pub rate: f32,
    pub eps: f32,
}

// adamw.cu
unsafe extern "C" {
    pub fn squared_norms(launch: Launch, table: *const Parameter, count: u32, chunks: u32, norms: *mut f64);
    pub fn clip_scale(launch: Launch, norms: *const f64, chunks: u32, max_norm: f64, out: *mut f64);
    pub fn adamw(
        launch: Launch,
        table: *const Parameter,
        count: u32,
        chunks: u32,
        factors: AdamWFactors,
        clip: *const f64,
    );
    pub fn replace(launch: Launch, table: *const Parameter, count: u32, chunks: u32);
}

// cross_entropy.cu
unsafe extern "C" {
    pub fn argmax_chunk(
        launch: Launch,
        logits: *const f32,
        rows: u32,
        columns: u32,
        first: u32,
        largest: *mut f32,
        id: *mut u32,
    );
    pub fn cross_entropy_chunk(
        launch: Launch,
        logits: *const f32,
        targets: *const u32,
        rows: u32,
        columns: u32,
        first: u32,
        largest: *mut f32,
        id: *mut u32,
        sums: *mut f64,
        at_target: *mut f32,
    );
    pub fn cross_entropy_loss(
        launch: Launch,
        largest: *const f32,
        sums: *const f64,
        at_target: *const f32,
        weights: *const f32,
        losses: *mut f32,
        total: *mut f32,
        rows: u32,
    );
}

/// Threads of a block of the cross-entropy's kernels over rows.
pub const ROW_THREADS: u32 = 256;
/// Elements of one chunk of the optimiser's kernels.
pub const ADAMW_CHUNK: u64 = 16_384;
/// Keys that the sort keeps in shared memory; the smallest number it can sort.
pub const SORT_TILE: u32 = 1024;
/// Sorted places of one tile of the embedding's backward pass.
pub const EMBEDDING_TILE: u32 = 64;

/// Threads of the kernels whose block is as wide as their algorithm.
pub const ENERGY_THREADS: u32 = 128;

/// Bytes of shared memory that the energy score needs for latent size `l`.
pub fn energy_shared_bytes(l: u32) -> u32 {
    34 * l.next_multiple_of(16) * 4
}

/// Rows of one part of a sum over rows: at most 512 parts, of at least 32 rows. A function of the shape
/// alone, so that sums do not depend on the launch.
pub fn part_rows(rows: u32) -> u32 {
    rows.div_ceil(512).max(32)
}

/// The launch of an attention kernel over tiles. The best grid has a block for every `rows` queries of every
/// row and head, or, for key gradients, `rows` keys of every row and key head; any other gives the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TileLaunch {
    /// Threads of a block.
    pub threads: u32,
    /// Queries, or keys for the key gradients, that a block has.
    pub rows: u32,
    /// Bytes of dynamic shared memory.
    pub shared_bytes: u32,
}

/// Launches of the f32 attention kernels for a head size: attention, its query gradients, its key gradients.
pub fn attention_launches_f32(head: u32) -> [TileLaunch; 3] {
    let (rows, columns) = (64, 32);
    let launch = |tiles: u32| TileLaunch {
        threads: 128,
        rows,
        shared_bytes: 4 * (tiles * (head + 1) + rows * (columns + 1)),
    };
    let backward = launch(2 * rows + 2 * columns);
    [launch(rows + 2 * columns), backward, backward]
}

/// The same for bf16, whose pointers must be multiples of 16 bytes.
pub fn attention_launches_bf16(head: u32) -> [TileLaunch; 3] {
    let rows = 128;
    // Bytes of a row of a tile.
    let pitch = 2 * (head + 8);
    let keys = match head {
        64 => 128,
        ..128 => 64,
        128 => 32,
        _ => 16,
    };
    let forward = TileLaunch { threads: 128, rows, shared_bytes: pitch * (rows + 2 * keys) };
    let columns = if matches!(head, 64 | 128) { 64 } else { 32 };
    let queries = TileLaunch {
        threads: if head < 128 { 128 } else { 256 },
        rows,
        shared_bytes: pitch * (2 * rows + 4 * columns),
    };
    let columns = if head == 96 { 64 } else { 32 };
    let keys = TileLaunch {
        threads: if head <= 64 { 128 } else { 256 },
        rows,
        shared_bytes: pitch * (2 * rows + 4 * columns) + 16 * columns,
    };
    [forward, queries, keys]
}

/// Keys of one part of the attention over a cache, and threads of a block.
pub const CACHED_PART: u32 = 256;

/// Keys and values that one launch adds.
pub const BRANCHES: usize = 8;

/// Bytes of shared memory of the attention over a cache.
pub fn cached_shared_bytes(head: u32) -> u32 {
    4 * (head + 2 * CACHED_PART)
}
