//! The border to the libraries that read what others made: what panics there is an error here.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// Runs a call of the `tokenizers` library; a panic inside it is its message. The panic is not printed: it is told as
/// an error.
///
/// What the call changes must not be used after a failure.
pub(crate) fn caught<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    caught_in("tokenizers", call)
}

/// The same of another library.
pub(crate) fn caught_in<T>(library: &str, call: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !EXPECTED.get() {
                before(info);
            }
        }));
    });
    let outer = EXPECTED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(call));
    EXPECTED.set(outer);
    result.map_err(|payload| {
        let said = payload.downcast_ref::<String>().map(String::as_str);
        let said = said.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no reason");
        format!("the {library} library stopped: {}", said.lines().next().unwrap_or_default())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_its_message_and_the_next_call_works() {
        assert_eq!(caught(|| 3), Ok(3));
        let said = caught(|| -> u8 { panic!("at {} of them\nand more", 7) });
        assert_eq!(said.unwrap_err(), "the tokenizers library stopped: at 7 of them");
        assert_eq!(caught(|| 4), Ok(4));
    }
}
