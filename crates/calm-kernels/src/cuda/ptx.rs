//! PTX of `kernels/*.cu`, a constant a file.

#![allow(dead_code, reason = "the tensor cores' own test launches nothing here")]

include!(concat!(env!("OUT_DIR"), "/ptx.rs"));
