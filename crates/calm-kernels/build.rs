//! With the feature `cuda`: compiles `kernels/*.cu` to PTX, and what opens CUDA's libraries at run time.
//! Without it: nothing.

#[cfg(feature = "cuda")]
mod cuda {
    use std::env;
    use std::error::Error;
    use std::fmt::Write as _;
    use std::path::{Path, PathBuf};

    /// The libraries that candle asks the linker for, and how the names of their functions begin; where two fit,
    /// the first.
    const LIBRARIES: [(&str, &str); 6] = [
        ("cublasLt", "cublasLt"),
        ("cublas", "cublas"),
        ("curand", "curand"),
        ("nvrtc", "nvrtc"),
        ("nccl", "nccl"),
        ("cuda", "cu"),
    ];

    pub fn build() -> Result<(), Box<dyn Error>> {
        let out = PathBuf::from(env::var("OUT_DIR")?);
        let here = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
        ptx(&here.join("kernels"), &out)?;
        lazy(&here.join("lazy"), &out)
    }

    /// One `const NAME: &str` of PTX a file. PTX of compute capability 8.0: the driver turns it into the
    /// code of any card from there on.
    fn ptx(kernels: &Path, out: &Path) -> Result<(), Box<dyn Error>> {
        forget_other_compilers(out)?;
        let mut headers = Vec::new();
        for entry in std::fs::read_dir(kernels)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "cuh") {
                headers.push(path);
            }
        }
        headers.sort();
        // As the kernels' tests on the host compile them: a product and a sum stay two roundings.
        let ptx = cudaforge::KernelBuilder::new()
            .source_dir(kernels)
            .watch(headers)
            .compute_cap_arch("80")
            .out_dir(out)
            .args(["-std=c++17", "--fmad=false", "-O3"])
            .build_ptx()
            .map_err(|e| {
                format!("the feature `cuda` needs nvcc of CUDA 12 or 13 to compile kernels/: {e}")
            })?;
        Ok(ptx.write(out.join("ptx.rs"))?)
    }

    /// cudaforge takes PTX for up to date whoever compiled it: an nvcc of another place compiles all anew.
    fn forget_other_compilers(out: &Path) -> Result<(), Box<dyn Error>> {
        let places = ["NVCC", "CUDA_HOME", "CUDA_PATH"].map(|name| {
            println!("cargo::rerun-if-env-changed={name}");
            format!("{name}={}\n", env::var(name).unwrap_or_default())
        });
        let (stamp, places) = (out.join("nvcc"), places.concat());
        if std::fs::read_to_string(&stamp).is_ok_and(|before| before == places) {
            return Ok(());
        }
        let cache = out.join(".cudaforge_cache.json");
        if cache.exists() {
            std::fs::remove_file(cache)?;
        }
        Ok(std::fs::write(stamp, places)?)
    }

    /// Candle links CUDA's libraries so that a program does not even start where they are missing. Here
    /// every function of them that candle's bindings name (`lazy/functions.txt`: what `nm -u` finds in
    /// libcudarc) is a jump through a table, which `open_cuda_libraries` (`lazy/libraries.c`) fills at run
    /// time.
    fn lazy(sources: &Path, out: &Path) -> Result<(), Box<dyn Error>> {
        println!("cargo::rerun-if-changed={}", sources.display());
        let mut tables = String::new();
        for function in std::fs::read_to_string(sources.join("functions.txt"))?.split_whitespace() {
            let library = LIBRARIES.iter().position(|(_, prefix)| function.starts_with(prefix));
            let library =
                library.ok_or_else(|| format!("lazy/functions.txt: whose function is {function}?"))?;
            writeln!(tables, "FUNCTION({library}, {function})")?;
        }
        for (library, _) in LIBRARIES {
            // What `-l` finds if no toolkit is there; every symbol is defined before.
            std::fs::write(out.join(format!("lib{library}.a")), "!<arch>\n")?;
        }
        std::fs::write(out.join("functions.inc"), tables)?;
        let mut build = cc::Build::new();
        build.file(sources.join("libraries.c")).include(out).opt_level(2).link_lib_modifier("+whole-archive");
        build.try_compile("calm_cuda_libraries")?;
        println!("cargo::rustc-link-search=native={}", out.display());
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "cuda")]
    cuda::build()?;
    Ok(())
}
