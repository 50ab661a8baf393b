//! How long a process waits for the others.

use std::time::Duration;

use crate::error::{Error, Result};

/// The variable that sets it, in seconds.
pub const LIMIT: &str = "CALM_WAIT_SECONDS";

/// Ten minutes: longer than any step and any checkpoint should take.
const DEFAULT: Duration = Duration::from_mins(10);

/// How long a process waits for the others before it asks who is there.
///
/// # Errors
/// A variable that is no number of seconds above 0.
pub fn limit() -> Result<Duration> {
    parse(std::env::var(LIMIT).ok().filter(|text| !text.is_empty()).as_deref())
}

fn parse(text: Option<&str>) -> Result<Duration> {
    let Some(text) = text else { return Ok(DEFAULT) };
    let seconds = text.parse().ok().filter(|seconds: &f64| *seconds > 0.0);
    seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).ok_or_else(|| {
        Error::new(
            format!("{LIMIT}={text} is no number of seconds"),
            format!("set it like {LIMIT}=600, or unset it"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_read_and_nonsense_is_refused() {
        assert_eq!(parse(None), Ok(DEFAULT));
        assert_eq!(parse(Some("1.5")), Ok(Duration::from_millis(1500)));
        for wrong in ["0", "-1", "NaN", "ten", "1e300"] {
            assert!(parse(Some(wrong)).is_err_and(|e| e.what.contains(wrong)), "{wrong}");
        }
    }
}
