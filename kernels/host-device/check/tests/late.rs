//! With CALM_HOST_DEVICE_LATE=1 work runs only when something waits for it.

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView};
use candle_core::{DType, Device, Result, Tensor};
use std::sync::Once;

fn device() -> Device {
    static LATE: Once = Once::new();
    // SAFETY: every test begins here, before anything else reads the environment.
    LATE.call_once(|| unsafe { std::env::set_var("CALM_HOST_DEVICE_LATE", "1") });
    Device::new_cuda(0).unwrap()
}

/// A counter of the host device by its name, looked up so that the program also links against a real driver,
/// which has none.
fn counter(name: &std::ffi::CStr) -> u64 {
    let driver = unsafe { libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_LAZY) };
    assert!(!driver.is_null());
    let at = unsafe { libc::dlsym(driver, name.as_ptr()) };
    assert!(!at.is_null(), "{name:?}");
    let f: extern "C" fn() -> u64 = unsafe { std::mem::transmute(at) };
    f()
}

#[test]
fn results_are_right_and_only_reading_waits() -> Result<()> {
    let device = device();
    let before = counter(c"calm_host_device_synchronisations_here");
    let mut x = Tensor::ones((8, 8), DType::F32, &device)?;
    for _ in 0..10 {
        x = ((x.matmul(&x)? * 0.125)? + 0.5)?.tanh()?;
    }
    let mean = x.mean_all()?;
    assert_eq!(counter(c"calm_host_device_synchronisations_here"), before, "a step waited for the device");
    assert!(counter(c"calm_host_device_launches") > 0);
    let mean = mean.to_scalar::<f32>()?;
    assert!((0.5..1.0).contains(&mean), "{mean}");
    assert_eq!(counter(c"calm_host_device_synchronisations_here"), before + 1);
    Ok(())
}

#[test]
fn pinned_memory_is_read_late_and_pageable_at_the_call() {
    let device = device();
    let device = device.as_cuda_device().unwrap();
    let stream = device.cuda_stream();

    let mut pageable = vec![1f32; 4];
    let copy = device.clone_htod(&pageable).unwrap();
    pageable.fill(2.0);
    assert_eq!(device.clone_dtoh(&copy).unwrap(), [1.0; 4]);

    let mut pinned = unsafe { stream.context().alloc_pinned::<f32>(4) }.unwrap();
    let at = pinned.as_mut_ptr().unwrap();
    unsafe { std::slice::from_raw_parts_mut(at, 4) }.fill(1.0);
    let copy: CudaSlice<f32> = stream.clone_htod(&pinned).unwrap();
    // Without waiting: a mistake, which the result shows.
    unsafe { std::slice::from_raw_parts_mut(at, 4) }.fill(2.0);
    assert_eq!(device.clone_dtoh(&copy).unwrap(), [2.0; 4]);

    // A copy to pinned memory has not happened when the call returns.
    unsafe { std::slice::from_raw_parts_mut(at, 4) }.fill(7.0);
    let view: CudaView<f32> = copy.as_view();
    stream.memcpy_dtoh(&view, &mut pinned).unwrap();
    assert_eq!(unsafe { *at }, 7.0);
    // cudarc records events only once a second stream exists: its own waiting for `pinned` is not enough.
    stream.synchronize().unwrap();
    assert_eq!(pinned.as_slice().unwrap(), [2.0; 4]);
}

#[test]
fn events_are_passed_late() {
    let device = device();
    let device = device.as_cuda_device().unwrap();
    let stream = device.cuda_stream();
    let _x = device.alloc_zeros::<f32>(10).unwrap();
    let event = stream.record_event(None).unwrap();
    // A device goes on between two questions.
    assert!(!event.is_complete());
    assert!(event.is_complete());
}

#[test]
fn streams_wait_only_for_what_they_are_told_to() {
    let device = device();
    let device = device.as_cuda_device().unwrap();
    let context = device.cuda_stream().context().clone();
    let (a, b) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    let x = a.clone_htod(&[1f32, 2.0]).unwrap();
    let mut y = b.alloc_zeros::<f32>(2).unwrap();
    // cudarc waits for the event of the write.
    b.memcpy_dtod(&x, &mut y).unwrap();
    assert_eq!(b.clone_dtoh(&y).unwrap(), [1.0, 2.0]);

    // Without events nothing orders the two streams.
    unsafe { context.disable_event_tracking() };
    let x = a.clone_htod(&[1f32, 2.0]).unwrap();
    assert!(b.clone_dtoh(&x).unwrap()[0].is_nan());
    a.synchronize().unwrap();
    assert_eq!(b.clone_dtoh(&x).unwrap(), [1.0, 2.0]);
    unsafe { context.enable_event_tracking() };
}
