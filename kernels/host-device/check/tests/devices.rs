//! Several devices in one program, and cudarc's NCCL between them.

use candle_core::cuda_backend::cudarc::driver::CudaContext;
use candle_core::cuda_backend::cudarc::nccl::{Comm, Id, ReduceOp, group_end, group_start};
use candle_core::{Device, Result, Tensor};
use std::sync::Once;

const DEVICES: usize = 2;

fn show_devices() {
    static SHOWN: Once = Once::new();
    // SAFETY: every test begins here, before anything else reads the environment.
    SHOWN.call_once(|| unsafe { std::env::set_var("CALM_HOST_DEVICES", DEVICES.to_string()) });
}

#[test]
fn each_device_computes_with_its_own_tensors() -> Result<()> {
    show_devices();
    assert_eq!(CudaContext::device_count().unwrap(), DEVICES as i32);
    assert!(Device::new_cuda(DEVICES).is_err());
    let (first, second) = (Device::new_cuda(0)?, Device::new_cuda(1)?);
    let x = Tensor::new(&[1f32, 2.0], &first)?;
    let y = Tensor::new(&[3f32, 4.0], &second)?;
    assert!((&x + &y).is_err());
    let moved = x.to_device(&second)?;
    // cudarc queues this copy on the stream of the first device, and nothing makes the second one wait for it.
    first.synchronize()?;
    let sum = ((moved * 2.0)? + y)?;
    assert_eq!(sum.to_vec1::<f32>()?, [5.0, 8.0]);
    Ok(())
}

#[test]
fn threads_meet_by_an_id() {
    show_devices();
    let id = Id::new().unwrap();
    let ranks: Vec<_> = (0..DEVICES)
        .map(|rank| {
            std::thread::spawn(move || {
                let stream = CudaContext::new(rank).unwrap().new_stream().unwrap();
                let comm = Comm::from_rank(stream.clone(), rank, DEVICES, id).unwrap();
                assert_eq!((comm.rank(), comm.world_size()), (rank, DEVICES));
                let mine = stream.clone_htod(&[1.0 + rank as f32; 5]).unwrap();
                let mut sum = stream.alloc_zeros::<f32>(5).unwrap();
                comm.all_reduce(&mine, &mut sum, &ReduceOp::Sum).unwrap();
                assert_eq!(stream.clone_dtoh(&sum).unwrap(), [3.0; 5]);

                let mut all = stream.alloc_zeros::<f32>(5 * DEVICES).unwrap();
                comm.all_gather(&mine, &mut all).unwrap();
                let all = stream.clone_dtoh(&all).unwrap();
                assert_eq!((all[0], all[9]), (1.0, 2.0));

                comm.broadcast(Some(&mine), &mut sum, 1).unwrap();
                assert_eq!(stream.clone_dtoh(&sum).unwrap(), [2.0; 5]);
                // cudarc aborts a communicator that is dropped: what is on its way then is lost.
                stream.synchronize().unwrap();
            })
        })
        .collect();
    for rank in ranks {
        rank.join().unwrap();
    }
}

#[test]
fn one_thread_has_all_devices() {
    show_devices();
    let streams: Vec<_> = (0..DEVICES).map(|i| CudaContext::new(i).unwrap().new_stream().unwrap()).collect();
    let mut parts: Vec<_> = streams
        .iter()
        .enumerate()
        .map(|(i, s)| s.clone_htod(&[half::bf16::from_f32(i as f32); 3]).unwrap())
        .collect();
    let comms = Comm::from_devices(streams.clone()).unwrap();
    group_start().unwrap();
    for (comm, part) in comms.iter().zip(&mut parts) {
        comm.all_reduce_in_place(part, &ReduceOp::Avg).unwrap();
    }
    group_end().unwrap();
    for (stream, part) in streams.iter().zip(&parts) {
        assert_eq!(stream.clone_dtoh(part).unwrap(), [half::bf16::from_f32(0.5); 3]);
    }
}
