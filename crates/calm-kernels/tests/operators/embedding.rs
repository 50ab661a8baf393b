//! Embedding lookup and its scatter-add against tensor operations.

use crate::common::{compare, gpu};
use calm_kernels::philox::{NoiseKey, RowId, normal};
use calm_kernels::{embedding, embedding_as, gradcheck};
use candle_core::{DType, Device, Tensor, Var};

fn randn(stream: &str, dims: &[usize], dtype: DType) -> Tensor {
    let row = [RowId { example: 0, position: 0 }];
    let x = normal(NoiseKey::new(5, stream, 0), &row, 1, dims.iter().product());
    Tensor::from_vec(x, dims, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

fn some_ids(dims: &[usize], v: u32) -> Tensor {
    let count = dims.iter().product::<usize>() as u32;
    // Half of them are id 3: a padding id that many positions share.
    let ids: Vec<u32> = (0..count).map(|i| if i % 2 == 0 { 3 % v } else { (i * i + 5) % v }).collect();
    Tensor::from_vec(ids, dims, &Device::Cpu).unwrap()
}

fn values(t: &Tensor) -> Vec<f64> {
    t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

#[test]
fn rows_and_their_gradient_match_index_select() {
    for (dims, v, d) in [(vec![7], 5, 3), (vec![2, 3, 4], 40, 16), (vec![9, 40], 300, 130), (vec![0], 4, 2)] {
        for dtype in [DType::F32, DType::F64] {
            let ids = some_ids(&dims, v);
            let table = Var::from_tensor(&randn("table", &[v as usize, d], dtype)).unwrap();
            let out = embedding(&ids, &table, None).unwrap();
            let mut shape = dims.clone();
            shape.push(d);
            assert_eq!(out.dims(), shape);
            let flat = ids.flatten_all().unwrap();
            let factor = randn("factor", &shape, dtype);
            let grads = (&out * &factor).unwrap().sum_all().unwrap().backward().unwrap();
            let got = values(grads.get(&table).unwrap());
            // Naive, in double precision.
            let (rows, factors) = (values(&table), values(&factor));
            let mut want = vec![0.0; v as usize * d];
            for (i, &id) in flat.to_vec1::<u32>().unwrap().iter().enumerate() {
                let id = id as usize;
                assert_eq!(values(&out)[i * d..][..d], rows[id * d..][..d]);
                for j in 0..d {
                    want[id * d + j] += factors[i * d + j];
                }
            }
            let tolerance = if dtype == DType::F32 { 2e-5 } else { 1e-13 };
            for (got, want) in got.iter().zip(&want) {
                assert!((got - want).abs() <= tolerance * want.abs().max(1.0), "{got} {want}");
            }
        }
    }
}

#[test]
fn values_and_gradients_equal_a_selection_of_rows() {
    // Ids with many places and with none, over several tiles of the sort.
    for (dims, v, d) in
        [(vec![1], 1, 1), (vec![2, 3, 4], 40, 16), (vec![9, 40], 300, 130), (vec![2500], 90, 5)]
    {
        let ids = some_ids(&dims, v);
        let table = [randn("table", &[v as usize, d], DType::F64)];
        let rows = |table: &Tensor| {
            let mut shape = dims.clone();
            shape.push(d);
            table.index_select(&ids.flatten_all()?, 0)?.reshape(shape)
        };
        compare(&table, |v| embedding(&ids.to_device(v[0].device())?, &v[0], None), |v| rows(&v[0]), 2e-5);
        let free = |id: u32| f64::from(u8::from(id != 3 % v));
        let free: Vec<f64> = (0..v).map(free).collect();
        let free = Tensor::from_vec(free, (v as usize, 1), &Device::Cpu).unwrap();
        let frozen = Some(3 % v);
        // The row takes part in the value and not in the gradient.
        let part = |t: &Tensor| {
            t.broadcast_mul(&free)? + t.detach().broadcast_sub(&t.detach().broadcast_mul(&free)?)?
        };
        compare(
            &table,
            |v| embedding(&ids.to_device(v[0].device())?, &v[0], frozen),
            |v| rows(&part(&v[0])?),
            2e-5,
        );
    }
}

#[test]
fn rows_of_another_type_are_for_gpus_only() {
    let (ids, table) = (some_ids(&[4], 5), randn("table", &[5, 4], DType::F32));
    let same = embedding_as(&ids, &table, None, DType::F32).unwrap();
    assert_eq!(values(&same), values(&embedding(&ids, &table, None).unwrap()));
    let err = embedding_as(&ids, &table, None, DType::BF16).unwrap_err().to_string();
    assert!(err.contains("embedding") && err.contains("F32") && err.contains("BF16"), "{err}");
}

#[test]
fn on_a_gpu_ids_outside_the_table_give_nan_and_no_gradient() {
    let Some(gpu) = gpu() else { return };
    let ids = Tensor::new(&[1u32, 7, 4, u32::MAX, 1], &gpu).unwrap();
    let table = Var::from_tensor(&randn("table", &[5, 3], DType::F32).to_device(&gpu).unwrap()).unwrap();
    for dtype in [DType::F32, DType::BF16] {
        let out = embedding_as(&ids, &table, None, dtype).unwrap();
        let gradient = out.sum_all().unwrap().backward().unwrap();
        let back = |t: &Tensor| values(&t.to_device(&Device::Cpu).unwrap());
        let nan: Vec<bool> = back(&out).iter().step_by(3).map(|x| x.is_nan()).collect();
        assert_eq!(nan, [false, true, false, true, false]);
        let gradient: Vec<f64> = back(gradient.get(&table).unwrap()).into_iter().step_by(3).collect();
        assert_eq!(gradient, [0.0, 2.0, 0.0, 0.0, 1.0]);
    }
}

#[test]
fn gradients_pass_the_gradient_check() {
    let ids = some_ids(&[3, 2], 4);
    gradcheck::check(
        &[randn("table", &[4, 3], DType::F64)],
        |v| embedding(&ids, &v[0], None)?.sqr()?.sum_all(),
        1e-8,
    )
    .unwrap();
}

#[test]
fn the_frozen_row_is_looked_up_but_gets_no_gradient() {
    let ids = some_ids(&[12], 5);
    let table = Var::from_tensor(&randn("table", &[5, 4], DType::F32)).unwrap();
    let free = embedding(&ids, &table, None).unwrap();
    let frozen = embedding(&ids, &table, Some(3)).unwrap();
    assert_eq!(values(&free), values(&frozen));
    let gradient = |t: &Tensor| values(t.sum_all().unwrap().backward().unwrap().get(&table).unwrap());
    let (free, frozen) = (gradient(&free), gradient(&frozen));
    assert!(free[12..16].iter().all(|&g| g >= 6.0) && frozen[12..16] == [0.0; 4]);
    assert_eq!((&free[..12], &free[16..]), (&frozen[..12], &frozen[16..]));
}

#[test]
fn strided_ids_and_tables_are_accepted() {
    let ids = some_ids(&[3, 4], 6).t().unwrap();
    let table = randn("table", &[5, 6], DType::F64);
    gradcheck::check(
        std::slice::from_ref(&table),
        |v| embedding(&ids, &v[0].t()?, None)?.sqr()?.sum_all(),
        1e-8,
    )
    .unwrap();
    let out = embedding(&ids, &table.t().unwrap(), None).unwrap();
    assert_eq!(out.dims(), &[4, 3, 5]);
}

#[test]
fn bits_do_not_depend_on_threads() {
    let ids = some_ids(&[64, 50], 777);
    let table = Var::from_tensor(&randn("table", &[777, 96], DType::F32)).unwrap();
    let factor = randn("factor", &[64, 50, 96], DType::F32);
    let run = || {
        let out = (embedding(&ids, &table, Some(0)).unwrap() * &factor).unwrap();
        let grads = out.sum_all().unwrap().backward().unwrap();
        let grad = grads.get(&table).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        grad.into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    assert_eq!(pool(1).install(run), pool(3).install(run));
}

#[test]
fn bad_arguments_are_named() {
    let table = randn("table", &[5, 4], DType::F32);
    let fails = |ids: &Tensor, table: &Tensor, frozen: Option<u32>, words: &[&str]| {
        let err = embedding(ids, table, frozen).unwrap_err().to_string();
        assert!(words.iter().all(|w| err.contains(w)) && err.contains("embedding"), "{err}");
    };
    let ids = Tensor::new(&[[0u32, 4], [5, 1]], &Device::Cpu).unwrap();
    fails(&ids, &table, None, &["id 5", "position 2", "[5, 4]"]);
    fails(&ids.to_dtype(DType::I64).unwrap(), &table, None, &["U32", "I64"]);
    let good = some_ids(&[4], 5);
    fails(&good, &table, Some(5), &["frozen row 5", "[5, 4]"]);
    fails(&good, &table.flatten_all().unwrap(), None, &["[V, D]", "[20]"]);
    fails(&good, &table.to_dtype(DType::BF16).unwrap(), None, &["f32 or f64", "BF16"]);
}
