//! How this process treats the memory that it has freed.

use std::ffi::c_long;

/// `mi_option_purge_delay` in the C header of mimalloc 3; the Rust bindings leave it out.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// Keeps freed memory for the next step instead of handing it back to the system: a training step takes and
/// frees the same large temporaries again and again, and pages that come back must be cleared first (11 % of
/// a step's time, measured). What the process holds at its peak stays the same.
pub fn keep_freed() {
    set_purge_delay(-1);
}

/// From now on freed memory goes back at once (`true`), so that what is resident is what is in use, or is
/// kept again.
pub fn give_back(at_once: bool) {
    if at_once {
        set_purge_delay(0);
    } else {
        // SAFETY: it only releases memory that is free.
        unsafe { libmimalloc_sys::mi_collect(true) };
        keep_freed();
    }
}

fn set_purge_delay(milliseconds: c_long) {
    // SAFETY: mimalloc reads its options atomically, and this one may change at any time.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, milliseconds) };
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_option_is_the_one_that_is_meant() {
        // SAFETY: reads of the version and of an option.
        let (version, delay) =
            unsafe { (libmimalloc_sys::mi_version(), libmimalloc_sys::mi_option_get(super::PURGE_DELAY)) };
        assert_eq!(version / 10_000, 3);
        // Its default is a second.
        if std::env::var_os("MIMALLOC_PURGE_DELAY").is_none() {
            assert_eq!(delay, 1000);
        }
    }
}
