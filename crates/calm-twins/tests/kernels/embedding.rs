//! The embedding, its sort and its backward pass against the CPU operator.

use crate::common::*;
use calm_twins::{
    EMBEDDING_TILE, Element, Launch, SORT_TILE, embedding_f32_bf16, embedding_first, sort_keys, sort_step,
    sort_tiles,
};
use candle_core::{Device, Tensor};
use half::bf16;
use std::fmt::Debug;

/// Ids of which few are frequent and many are rare or absent, as tokens are.
fn ids(count: usize, v: u32) -> Vec<u32> {
    let draw = |i: usize| {
        let x = (i as u32).wrapping_mul(2_654_435_761).rotate_left(13).wrapping_mul(747_796_405) >> 8;
        match x % 4 {
            0 => 3 % v,
            1 => x / 4 % 5 % v,
            _ => x / 4 % v,
        }
    };
    (0..count).map(draw).collect()
}

/// (id, place) pairs as sorted keys; the network of `sort.cu`.
fn sorted(launch: Launch, ids: &[u32]) -> Vec<u64> {
    let count = ids.len() as u32;
    let padded = count.next_power_of_two().max(SORT_TILE);
    let mut keys = vec![0u64; padded as usize];
    let to = keys.as_mut_ptr();
    // SAFETY: keys has `padded` entries, a power of two and at least SORT_TILE.
    unsafe {
        sort_keys(launch, ids.as_ptr(), to, count, padded);
        sort_tiles(launch, to, padded, 2, SORT_TILE);
        let mut k = 2 * SORT_TILE;
        while k <= padded {
            let mut j = k / 2;
            while j >= SORT_TILE {
                sort_step(launch, to, padded, k, j);
                j /= 2;
            }
            sort_tiles(launch, to, padded, k, k);
            k *= 2;
        }
    }
    keys.truncate(ids.len());
    keys
}

#[test]
fn keys_come_out_in_order() {
    for count in [1, 2, 1000, 1024, 1025, 5000, 20_000] {
        let ids = ids(count, 700);
        let got = same_for(&launches(), |launch| sorted(launch, &ids));
        let mut want: Vec<u64> = ids.iter().zip(0u64..).map(|(&id, i)| (u64::from(id) << 32) | i).collect();
        want.sort_unstable();
        assert!(got == want, "{count} keys");
    }
}

/// Table and gradient of one lookup.
struct Lookup<'a, T> {
    ids: &'a [u32],
    v: u32,
    d: usize,
    frozen: Option<u32>,
    dout: &'a [T],
}

impl<T: Element> Lookup<'_, T> {
    /// `dtable` `[v, d]` becomes the gradient, or gets it added.
    fn backward(&self, launch: Launch, dtable: &mut [f32], accumulate: bool) {
        let Self { ids, v, d, frozen, dout } = *self;
        let keys = sorted(launch, ids);
        let mut first = vec![0u32; v as usize + 1];
        let (count, width) = (ids.len() as u32, d as u32);
        let mut parts = vec![f32::NAN; count.div_ceil(EMBEDDING_TILE) as usize * 2 * d];
        let frozen = frozen.unwrap_or(u32::MAX);
        let (keys, first, dout, parts) =
            (keys.as_ptr(), first.as_mut_ptr(), dout.as_ptr(), parts.as_mut_ptr());
        let to = dtable.as_mut_ptr();
        // SAFETY: keys are [count], dout [count, d], dtable [v, d], first [v + 1], parts [tiles, 2, d].
        unsafe {
            embedding_first(launch, keys, first, count, v);
            (T::KERNELS.embedding_parts)(launch, keys, first, dout, parts, count, width, v);
            let accumulate = u32::from(accumulate);
            (T::KERNELS.embedding_backward)(
                launch, keys, first, dout, parts, to, v, width, frozen, accumulate,
            );
        }
    }
}

fn embedding_is_the_cpus<T: Element + PartialEq + Debug>() {
    for (count, v, d, frozen) in
        [(1usize, 1u32, 1usize, None), (5, 9, 3, Some(2)), (700, 50, 33, Some(3)), (3000, 200, 16, None)]
    {
        let what = format!("{count} ids of {v}, {d} dimensions, frozen {frozen:?}");
        let ids = ids(count, v);
        let table: Vec<T> = randn(v as usize * d, "table", 1.0);
        let dout: Vec<T> = randn(count * d, "dout", 1.0);
        let width = d as u32;
        let (out, dtable) = same_for(&launches(), |launch| {
            let mut out = vec![T::of(f32::NAN); count * d];
            let mut dtable = vec![f32::NAN; v as usize * d];
            let (table, to) = (table.as_ptr(), out.as_mut_ptr());
            // SAFETY: out is [count, d], table [v, d].
            unsafe { (T::KERNELS.embedding)(launch, ids.as_ptr(), table, to, count as u64, width, v) };
            let lookup = Lookup { ids: &ids, v, d, frozen, dout: &dout };
            lookup.backward(launch, &mut dtable, false);
            let mut twice = dtable.clone();
            lookup.backward(launch, &mut twice, true);
            assert!(twice.iter().zip(&dtable).all(|(&t, &g)| t == g + g), "the sum of two gradients");
            (out, dtable)
        });
        let table = var(&table, (v as usize, d));
        let tensor = Tensor::from_vec(ids.clone(), count, &Device::Cpu).unwrap();
        let want = calm_kernels::embedding(&tensor, &table, frozen).unwrap();
        assert_bits(&out, &flat(&want), &what);
        let want = gradients(&want, &dout, &[&table]).remove(0);
        // Ids of one tile are summed as on the CPU, ids of several in parts.
        assert_close(&dtable, &want, 2e-6, &what);
        for id in 0..v {
            let row = id as usize * d..(id as usize + 1) * d;
            let times = ids.iter().filter(|&&i| i == id).count();
            if times == 0 || frozen == Some(id) {
                assert!(dtable[row].iter().all(|&g| g == 0.0), "row {id} of {what}");
            } else if times <= 2 {
                assert_bits(&dtable[row.clone()], &want[row], &format!("row {id} of {what}"));
            }
        }
    }
}

#[test]
fn embedding_agrees() {
    embedding_is_the_cpus::<f32>();
    embedding_is_the_cpus::<bf16>();
}

/// Ids of which some are outside of the table of 9.
const OUTSIDE: [u32; 8] = [3, 9, 3, u32::MAX, 8, 0, 1000, 3];

#[test]
fn ids_outside_the_table_give_nan_and_no_gradient() {
    let (v, d) = (9u32, 5usize);
    let table: Vec<f32> = randn(v as usize * d, "table", 1.0);
    // 130 times: ids outside reach over several tiles.
    let ids: Vec<u32> = OUTSIDE.into_iter().cycle().take(130 * 8).collect();
    let dout: Vec<f32> = randn(ids.len() * d, "dout", 1.0);
    let inside = |i: &usize| ids[*i] < v;
    let (out, bits, dtable) = same_for(&launches(), |launch| {
        let (mut out, mut half) = (vec![0.0f32; ids.len() * d], vec![bf16::ZERO; ids.len() * d]);
        let (count, width, table) = (ids.len() as u64, d as u32, table.as_ptr());
        // SAFETY: both outputs are [ids, d], table [v, d].
        unsafe {
            (f32::KERNELS.embedding)(launch, ids.as_ptr(), table, out.as_mut_ptr(), count, width, v);
            embedding_f32_bf16(launch, ids.as_ptr(), table, half.as_mut_ptr(), count, width, v);
        }
        for (o, h) in out.iter().zip(&half) {
            assert_eq!(bf16::from_f32(*o).to_bits(), h.to_bits());
        }
        let mut dtable = vec![f32::NAN; v as usize * d];
        Lookup { ids: &ids, v, d, frozen: None, dout: &dout }.backward(launch, &mut dtable, false);
        let bits: Vec<u32> = out.iter().map(|o| o.to_bits()).collect();
        let numbers: Vec<f32> = out.iter().map(|&o| if o.is_nan() { f32::MAX } else { o }).collect();
        (numbers, bits, dtable)
    });
    for i in 0..ids.len() {
        let row = i * d..(i + 1) * d;
        if inside(&i) {
            assert_eq!(out[row], table[ids[i] as usize * d..][..d]);
        } else {
            assert!(bits[row].iter().all(|&b| b == 0x7fc0_0000));
        }
    }
    let mut want = vec![0.0f64; v as usize * d];
    for i in (0..ids.len()).filter(inside) {
        for c in 0..d {
            want[ids[i] as usize * d + c] += f64::from(dout[i * d + c]);
        }
    }
    let want: Vec<f32> = want.into_iter().map(|w| w as f32).collect();
    assert_close(&dtable, &want, 2e-6, "gradient");
}
