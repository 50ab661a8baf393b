//! Times of repeated work.

use std::time::Instant;

use candle_core::{Device, Result};
use serde::Serialize;

/// Seconds of one repetition.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Seconds {
    /// Median.
    pub median: f64,
    /// First and third quartile.
    pub quartiles: [f64; 2],
    /// Repetitions.
    pub n: usize,
}

impl Seconds {
    /// Of at least one time.
    pub(crate) fn of(mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let place = share * (times.len() - 1) as f64;
            let (low, high) = (times[place.floor() as usize], times[place.ceil() as usize]);
            low + (high - low) * place.fract()
        };
        Self { median: at(0.5), quartiles: [at(0.25), at(0.75)], n: times.len() }
    }
}

/// Runs `work` once.
pub(crate) fn once<T, E>(
    work: impl FnOnce() -> std::result::Result<T, E>,
) -> std::result::Result<(T, f64), E> {
    let started = Instant::now();
    let result = work()?;
    Ok((result, started.elapsed().as_secs_f64()))
}

/// Runs `work` at least three times and for at least `seconds`; the first run is not counted.
pub(crate) fn repeat<T, E>(
    seconds: f64,
    mut work: impl FnMut() -> std::result::Result<T, E>,
) -> std::result::Result<Seconds, E> {
    work()?;
    let (mut times, started) = (Vec::new(), Instant::now());
    while times.len() < 3 || started.elapsed().as_secs_f64() < seconds {
        // The result lives on while the clock runs out, as it would in a model.
        let (result, time) = once(&mut work)?;
        times.push(time);
        drop(result);
    }
    Ok(Seconds::of(times))
}

/// Shortest block that is timed on a GPU, seconds.
const BLOCK: f64 = 5e-3;

/// As [`repeat`], on a device. A GPU works behind: there, blocks of repetitions are timed between two waits, and
/// their number is that of the blocks.
pub(crate) fn repeat_on<T>(
    device: &Device,
    seconds: f64,
    mut work: impl FnMut() -> Result<T>,
) -> Result<Seconds> {
    if device.is_cpu() {
        return repeat(seconds, work);
    }
    work()?;
    device.synchronize()?;
    let mut block = |length: usize| {
        let (done, time) = once(|| {
            for _ in 0..length {
                work()?;
            }
            device.synchronize()
        })?;
        let () = done;
        Ok::<f64, candle_core::Error>(time / length as f64)
    };
    let one = block(1)?;
    let length = (BLOCK / one.max(1e-9)).ceil().clamp(1.0, 1000.0) as usize;
    let (mut times, started) = (Vec::new(), Instant::now());
    while times.len() < 3 || started.elapsed().as_secs_f64() < seconds {
        times.push(block(length)?);
    }
    Ok(Seconds::of(times))
}

/// Processor seconds of all threads of this process so far; 0 where the system does not tell.
pub(crate) fn processor() -> f64 {
    #[cfg(unix)]
    {
        use nix::sys::resource::{UsageWho, getrusage};
        let seconds = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 * 1e-6;
        getrusage(UsageWho::RUSAGE_SELF).map_or(0.0, |u| seconds(u.user_time()) + seconds(u.system_time()))
    }
    #[cfg(not(unix))]
    {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_quartiles_are_interpolated_between_neighbours() {
        let s = Seconds::of(vec![4.0, 1.0, 3.0, 2.0]);
        assert_eq!((s.median, s.quartiles, s.n), (2.5, [1.75, 3.25], 4));
        assert_eq!(Seconds::of(vec![7.0]).quartiles, [7.0, 7.0]);
    }

    #[test]
    fn work_is_repeated_and_its_first_run_left_out() {
        let mut runs = 0;
        let s = repeat(0.0, || {
            runs += 1;
            Ok::<_, ()>(())
        });
        assert_eq!((s.map(|s| s.n), runs), (Ok(3), 4));
        let mut spent = 0u64;
        let before = processor();
        while cfg!(unix) && processor() <= before {
            spent = spent.wrapping_add(1);
        }
    }
}
