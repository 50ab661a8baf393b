//! The embedding, its sort and its backward pass against the CPU operator.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic")]

mod common;

use calm_twins::{
    EMBEDDING_TILE, Element, Launch, SORT_TILE, embedding_first, sort_keys, sort_step, sort_tiles,
};
use candle_core::{Device, Tensor};
use common::*;
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
            let keys = sorted(launch, &ids);
            let mut first = vec![0u32; v as usize + 1];
            let tiles = (count as u32).div_ceil(EMBEDDING_TILE) as usize;
            let mut parts = vec![f32::NAN; tiles * 2 * d];
            let mut dtable = vec![f32::NAN; v as usize * d];
            let (count, none) = (count as u32, u32::MAX);
            // SAFETY: out and dout are [count, d], table and dtable [v, d], first [v + 1], parts
            // [tiles, 2, d]; all ids are below v.
            unsafe {
                (T::KERNELS.embedding)(
                    launch,
                    ids.as_ptr(),
                    table.as_ptr(),
                    out.as_mut_ptr(),
                    u64::from(count),
                    width,
                );
                embedding_first(launch, keys.as_ptr(), first.as_mut_ptr(), count, v);
                let (keys, first, dout) = (keys.as_ptr(), first.as_ptr(), dout.as_ptr());
                (T::KERNELS.embedding_parts)(launch, keys, first, dout, parts.as_mut_ptr(), count, width);
                let (parts, to) = (parts.as_ptr(), dtable.as_mut_ptr());
                let frozen = frozen.unwrap_or(none);
                (T::KERNELS.embedding_backward)(launch, keys, first, dout, parts, to, v, width, frozen);
            }
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
