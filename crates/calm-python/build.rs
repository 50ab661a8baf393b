//! Tells the linker of macOS that Python's symbols are found when Python opens the library: it refuses a library with open
//! ends otherwise. maturin says so itself; `cargo build` and `cargo test` of the workspace do not.

fn main() {
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|system| system == "macos") {
        println!("cargo::rustc-link-arg-cdylib=-undefined");
        println!("cargo::rustc-link-arg-cdylib=dynamic_lookup");
    }
    println!("cargo::rerun-if-changed=build.rs");
}
