//! Launches of calm's kernels by name, and the mistakes that the host device must find.

use candle_core::cuda_backend::cudarc::cublas::{Gemm, GemmConfig, sys::cublasOperation_t};
use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, DevicePtr, LaunchConfig, PushKernelArg, result, sys,
};
use candle_core::cuda_backend::{CudaDevice, WrapErr};
use candle_core::{Device, Result};
use half::bf16;

/// PTX as the stand-in for nvcc writes it.
const PTX: &str = "// calm host device: module rms_norm\n";

fn cuda() -> CudaDevice {
    Device::new_cuda(0).unwrap().as_cuda_device().unwrap().clone()
}

fn one_dimension(grid: u32, threads: u32, shared: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (grid, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: shared }
}

/// What a test changes about a launch of rms_norm_f32 that is otherwise right.
struct Case {
    ptx: &'static str,
    name: &'static str,
    config: LaunchConfig,
    rows: u32,
}

impl Default for Case {
    fn default() -> Self {
        Self { ptx: PTX, name: "rms_norm_f32", config: one_dimension(3, 64, 0), rows: 5 }
    }
}

const WIDTH: usize = 24;

fn rms_norm(device: &CudaDevice, case: &Case) -> Result<Vec<f32>> {
    let x: Vec<f32> = (0..5 * WIDTH).map(|i| (i % 7) as f32 - 2.5).collect();
    let x = device.clone_htod(&x)?;
    let w = device.clone_htod(&vec![2f32; WIDTH])?;
    let y = device.alloc_zeros::<f32>(5 * WIDTH)?;
    let module = format!("{}{}", case.ptx.len(), case.name);
    let f = device.get_or_load_custom_func(case.name, &module, case.ptx)?;
    let mut launch = f.builder();
    let (d, eps) = (WIDTH as u32, 1e-5f32);
    launch.arg(&x).arg(&w).arg(&y).arg(&case.rows).arg(&d).arg(&eps);
    unsafe { launch.launch(case.config) }.w()?;
    device.clone_dtoh(&y)
}

fn error_of<T>(result: Result<T>) -> String {
    match result {
        Ok(_) => panic!("no error"),
        Err(e) => format!("{e:?}"),
    }
}

#[test]
fn a_kernel_of_ours() {
    for grid in [1, 2, 9] {
        let y = rms_norm(&cuda(), &Case { config: one_dimension(grid, 32, 0), ..Case::default() }).unwrap();
        for row in y.chunks(WIDTH) {
            let squares: f32 = row.iter().map(|y| y * y).sum();
            assert!((squares / WIDTH as f32 - 4.0).abs() < 1e-3, "{row:?}");
        }
    }
}

#[test]
fn names_and_modules() {
    let fails = |case: Case, with: &str| {
        let error = error_of(rms_norm(&cuda(), &case));
        assert!(error.contains(with), "{error}");
    };
    fails(Case { name: "rms_norm_f16", ..Case::default() }, "NOT_FOUND");
    fails(Case { ptx: "// calm host device: module silu\n", ..Case::default() }, "NOT_FOUND");
    fails(Case { ptx: "", ..Case::default() }, "INVALID_IMAGE");
}

#[test]
fn parameters_against_real_ptx() {
    const RIGHT: &str = ".version 9.0\n.visible .entry rms_norm_f32(\n.param .u64 .ptr .align 1 rms_norm_f32_param_0,\n\
        .param .u64 p1,\n.param .u64 p2,\n.param .u32 p3,\n.param .u32 p4,\n.param .f32 p5\n)\n{\n}\n\
        .visible .entry noise_normal(\n.param .align 4 .b8 noise_normal_param_0[12],\n.param .u64 p1,\n\
        .param .u64 p2,\n.param .u32 p3,\n.param .u32 p4,\n.param .u32 p5\n)\n{\n}";
    const FEWER: &str = ".visible .entry rms_norm_f32(\n.param .u64 p0,\n.param .u32 p1\n)\n{\n}";
    const WIDER: &str = ".visible .entry rms_norm_f32(\n.param .u64 p0,\n.param .u64 p1,\n.param .u64 p2,\n\
        .param .u32 p3,\n.param .u64 p4,\n.param .f32 p5\n)\n{\n}";
    rms_norm(&cuda(), &Case { ptx: RIGHT, ..Case::default() }).unwrap();
    cuda().get_or_load_custom_func("noise_normal", "noise", RIGHT).unwrap();
    assert!(
        error_of(cuda().get_or_load_custom_func("silu_f32", "m", RIGHT).map(|_| ())).contains("NOT_FOUND")
    );
    for ptx in [FEWER, WIDER] {
        assert!(error_of(rms_norm(&cuda(), &Case { ptx, ..Case::default() })).contains("INVALID_IMAGE"));
    }
}

#[test]
fn blocks_and_shared_memory() {
    let wrong = [
        one_dimension(0, 32, 0),
        one_dimension(1, 0, 0),
        one_dimension(1, 48, 0),
        one_dimension(1, 512, 0),
        one_dimension(1, 32, 48 * 1024 + 4),
        LaunchConfig { grid_dim: (1, 2, 1), ..one_dimension(1, 32, 0) },
        LaunchConfig { block_dim: (32, 2, 1), ..one_dimension(1, 32, 0) },
    ];
    for config in wrong {
        let error = error_of(rms_norm(&cuda(), &Case { config, ..Case::default() }));
        assert!(error.contains("INVALID_VALUE"), "{config:?}: {error}");
    }

    let f = cuda().get_or_load_custom_func("sum_parts", "sums", "any").unwrap();
    let most = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    assert!(f.set_attribute(most, 228 * 1024).is_err());
    f.set_attribute(most, 227 * 1024).unwrap();
    let x = cuda().alloc_zeros::<f32>(4).unwrap();
    let launch = |bytes| {
        let mut launch = f.builder();
        launch.arg(&x).arg(&x).arg(&1u32).arg(&4u32);
        unsafe { launch.launch(one_dimension(1, 32, bytes)) }.map(|_| ())
    };
    launch(227 * 1024).unwrap();
    assert!(launch(227 * 1024 + 1).is_err());
}

#[test]
fn arguments() {
    let device = cuda();
    let f = device.get_or_load_custom_func("rms_norm_f32", "m", PTX).unwrap();
    let x: CudaSlice<f32> = device.alloc_zeros(WIDTH).unwrap();
    let config = one_dimension(1, 32, 0);

    // A number where a pointer belongs.
    let (n, eps) = (1u64, 1e-5f32);
    let mut launch = f.builder();
    launch.arg(&n).arg(&x).arg(&x).arg(&n).arg(&n).arg(&eps);
    assert!(unsafe { launch.launch(config) }.is_err());

    // An address of the host.
    let host = [0f32; WIDTH];
    let address = host.as_ptr() as u64;
    let mut launch = f.builder();
    launch.arg(&x).arg(&address).arg(&x).arg(&n).arg(&n).arg(&eps);
    assert!(unsafe { launch.launch(config) }.is_err());

    // Four bytes where eight belong, with the next argument right behind.
    let f = device.get_or_load_custom_func("silu_f32", "s", "any").unwrap();
    let pair = [WIDTH as u32, 0];
    for at in 0..2 {
        let mut launch = f.builder();
        launch.arg(&x).arg(&x).arg(&pair[at]);
        let result = unsafe { launch.launch(config) };
        // One of the two is not aligned to eight bytes.
        let aligned = (&raw const pair[at]).addr() % 8 == 0;
        assert_eq!(result.is_ok(), aligned && at == 0 || aligned, "{at}");
    }
}

#[test]
fn foreign_and_freed_pointers() {
    let device = cuda();
    let stream = device.cuda_stream();
    let x: CudaSlice<f32> = device.alloc_zeros(8).unwrap();
    let address = x.device_ptr(&stream).0;
    let mut host = [0u8; 36];
    unsafe {
        result::memset_d8_sync(address, 0, 32).unwrap();
        assert!(result::memset_d8_sync(address, 0, 33).is_err());
        assert!(result::memset_d8_sync(address + 32, 0, 1).is_err());
        assert!(result::memset_d8_sync(host.as_ptr() as u64, 0, 4).is_err());
        assert!(result::memcpy_dtoh_sync(&mut host, address).is_err());
        assert!(result::free_sync(address + 4).is_err());
        drop(x);
        stream.synchronize().unwrap();
        assert!(result::memcpy_dtoh_sync(&mut host[..4], address).is_err());
        assert!(result::free_sync(address).is_err());
        assert!(result::malloc_sync(0).is_err());
        drop(device.alloc_zeros::<f32>(0).unwrap());
        assert!(result::malloc_sync(9 << 30).is_err());
    }
}

#[test]
fn new_memory_is_not_a_number() {
    let device = cuda();
    let x = unsafe { device.alloc::<f32>(100) }.unwrap();
    assert!(device.clone_dtoh(&x).unwrap().iter().all(|x| x.is_nan()));
    let x = unsafe { device.alloc::<bf16>(100) }.unwrap();
    assert!(device.clone_dtoh(&x).unwrap().iter().all(|x| x.is_nan()));
}

#[test]
fn cublas_arguments() {
    let device = cuda();
    let a: CudaSlice<f32> = device.clone_htod(&[1f32, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
    let b: CudaSlice<f32> = device.clone_htod(&[1f32, 0.5, 0.25, 2.0, 1.0, 4.0]).unwrap();
    let mut c = unsafe { device.alloc::<f32>(4) }.unwrap();
    let config = |lda, n, beta| GemmConfig {
        transa: cublasOperation_t::CUBLAS_OP_N,
        transb: cublasOperation_t::CUBLAS_OP_N,
        m: 2,
        n,
        k: 3,
        alpha: 2f32,
        lda,
        ldb: 3,
        beta,
        ldc: 2,
    };
    let blas = device.cublas_handle();
    unsafe {
        // With beta = 0 what was in c, NaN, is not read.
        blas.gemm(config(2, 2, 0.0), &a, &b, &mut c).unwrap();
        assert_eq!(device.clone_dtoh(&c).unwrap(), [7.5, 11.0, 50.0, 64.0]);
        blas.gemm(config(2, 2, 1.0), &a, &b, &mut c).unwrap();
        assert_eq!(device.clone_dtoh(&c).unwrap(), [15.0, 22.0, 100.0, 128.0]);
        assert!(blas.gemm(config(1, 2, 0.0), &a, &b, &mut c).is_err());
        // Beyond the end of a, and of b and c.
        assert!(blas.gemm(config(3, 2, 0.0), &a, &b, &mut c).is_err());
        assert!(blas.gemm(config(2, 3, 0.0), &a, &b, &mut c).is_err());
    }
}

#[test]
fn events_and_properties() {
    let device = cuda();
    let stream = device.cuda_stream();
    let context = stream.context().clone();
    let timed = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
    let before = stream.record_event(timed).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    let after = stream.record_event(timed).unwrap();
    let milliseconds = before.elapsed_ms(&after).unwrap();
    // Late, both are passed when somebody waits for them.
    let least = if std::env::var("CALM_HOST_DEVICE_LATE").is_ok() { 0.0 } else { 19.0 };
    assert!((least..2000.0).contains(&milliseconds), "{milliseconds}");
    let silent = stream.record_event(None).unwrap();
    assert!(before.elapsed_ms(&silent).is_err());

    assert_eq!(context.name().unwrap(), "CALM host device");
    assert_eq!(context.compute_capability().unwrap(), (9, 0));
    assert_eq!(context.total_mem().unwrap(), 8 << 30);
    let (free, total) = context.mem_get_info().unwrap();
    assert!(free <= total);
    let f = device.get_or_load_custom_func("rms_norm_f32", "m", PTX).unwrap();
    assert!(f.occupancy_max_active_blocks_per_multiprocessor(256, 0, None).unwrap() >= 1);

    let other = context.new_stream().unwrap();
    other.wait(&after).unwrap();
    other.synchronize().unwrap();
}

/// Runs this test again in a process of its own, with `case` in the environment, and returns its end and
/// what it said.
fn in_another_process(test: &str, case: &str) -> (bool, String) {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("HOST_DEVICE_CASE", case)
        .output()
        .unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn leaving_memory_ends_the_process() {
    if let Ok(case) = std::env::var("HOST_DEVICE_CASE") {
        let device = cuda();
        match case.as_str() {
            // Rows behind the last one: across the page behind the allocation.
            "far" => drop(rms_norm(&device, &Case { rows: 400, ..Case::default() })),
            // Within the 256 bytes of alignment: written bytes are found after the launch.
            "near" => {
                let x: CudaSlice<f32> = device.alloc_zeros(WIDTH * 2).unwrap();
                let y: CudaSlice<f32> = device.alloc_zeros(WIDTH).unwrap();
                let f = device.get_or_load_custom_func("silu_f32", "s", "any").unwrap();
                let mut launch = f.builder();
                let count = WIDTH as u64 + 1;
                launch.arg(&x).arg(&y).arg(&count);
                unsafe { launch.launch(one_dimension(1, 32, 0)) }.unwrap();
                assert!(device.cuda_stream().synchronize().is_err());
                assert!(device.alloc_zeros::<f32>(1).is_err());
                // Even freeing fails now, as on a device.
                std::process::exit(0);
            }
            // The head size says how much shared memory it needs.
            "shared" => {
                let x: CudaSlice<f32> = device.alloc_zeros(1 << 16).unwrap();
                let sizes = [1u32, 4, 4, 1, 1, 1f32.to_bits()];
                let (stats, values) = (&x.slice(..1024), &x.slice(1024..));
                let f = device.get_or_load_custom_func("cached_parts_f32", "c", "any").unwrap();
                let mut launch = f.builder();
                let spans = device.clone_htod(&[0u32, 4, 0, 4, 0, 4, 0, 4]).unwrap();
                launch.arg(&x).arg(&x).arg(&x).arg(&spans).arg(stats).arg(values).arg(&sizes).arg(&64u32);
                let _ = unsafe { launch.launch(one_dimension(4, 256, 16)) };
            }
            "index" => {
                let device = Device::new_cuda(0).unwrap();
                let x = candle_core::Tensor::zeros((2, 3), candle_core::DType::F32, &device).unwrap();
                let ids = candle_core::Tensor::new(&[7u32], &device).unwrap();
                let y = x.index_select(&ids, 0).and_then(|y| y.to_vec2::<f32>());
                assert!(error_of(y).contains("ASSERT"));
                std::process::exit(0);
            }
            _ => unreachable!(),
        }
        return;
    }
    let name = "leaving_memory_ends_the_process";
    let (success, said) = in_another_process(name, "far");
    assert!(!success && said.contains("rms_norm_f32 touched"), "{said}");
    let (success, said) = in_another_process(name, "near");
    assert!(success && said.contains("silu_f32 wrote outside"), "{said}");
    let (success, said) = in_another_process(name, "shared");
    assert!(!success && said.contains("cached_parts_f32 touched memory behind its shared"), "{said}");
    let (success, said) = in_another_process(name, "index");
    assert!(success && said.contains("index 7 of 2"), "{said}");
}

#[test]
fn leaks_are_counted() {
    if std::env::var("HOST_DEVICE_CASE").is_ok() {
        let device = cuda();
        std::mem::forget(device.alloc_zeros::<f32>(25).unwrap());
        drop(device.alloc_zeros::<f32>(25).unwrap());
        return;
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "leaks_are_counted"])
        .env("HOST_DEVICE_CASE", "1")
        .env("CALM_HOST_DEVICE_LEAKS", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("1 allocations never freed (100 bytes in use)"), "{said}");
}
