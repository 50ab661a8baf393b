//! What is left of a state where it was kept: in fewer bits, or with noise.

use calm_nn::{NoiseKey, RowId, philox};
use serde::{Deserialize, Serialize};

/// The format that states were kept in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kept {
    /// As they came.
    #[default]
    F32,
    /// Rounded to bf16: 8 bits of significand.
    Bf16,
    /// Whole numbers of −127 to 127, times a number of each state.
    Int8,
}

impl Kept {
    /// The state as it comes back.
    pub fn round(self, state: &mut [f32]) {
        match self {
            Self::F32 => {}
            Self::Bf16 => state.iter_mut().for_each(|x| *x = bf16(*x)),
            Self::Int8 => {
                let step = step_of(state);
                if step > 0.0 {
                    state.iter_mut().for_each(|x| *x = (*x / step).round() * step);
                }
            }
        }
    }

    /// How far a state that came back may be from the one that was kept, at most.
    pub fn error(self, state: &[f32]) -> f64 {
        match self {
            Self::F32 => 0.0,
            // Half a unit in the last of 8 bits, of each number; a little more for what rounding took away.
            Self::Bf16 => 0.00393 * state.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt(),
            Self::Int8 => 0.5001 * f64::from(step_of(state)) * (state.len() as f64).sqrt(),
        }
    }
}

/// The distance between two numbers of eight bits.
fn step_of(state: &[f32]) -> f32 {
    state.iter().fold(0f32, |most, x| most.max(x.abs())) / 127.0
}

/// To the nearest, the even one of two.
fn bf16(x: f32) -> f32 {
    half::bf16::from_f32(x).to_f32()
}

/// Adds normal noise to the states of a text `[S, D]`, row-major: `share` of the root of their mean square. Its noise is keyed
/// by the number of the text and the position.
pub fn add_noise(states: &mut [f32], width: usize, share: f64, seed: u64, text: u32) {
    if share == 0.0 || states.is_empty() {
        return;
    }
    let square = states.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / states.len() as f64;
    let size = (share * square.sqrt()) as f32;
    let positions = (states.len() / width.max(1)) as u32;
    let rows: Vec<RowId> = (0..positions).map(|position| RowId { example: text, position }).collect();
    let noise = philox::normal(NoiseKey::new(seed, "invert/noise", 0), &rows, 1, width);
    states.iter_mut().zip(noise).for_each(|(x, noise)| *x += size * noise);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_state_comes_back_further_off_than_is_said() {
        let key = NoiseKey::new(3, "test", 0);
        let rows: Vec<RowId> = (0..50).map(|example| RowId { example, position: 0 }).collect();
        let states = philox::normal(key, &rows, 1, 33);
        for kept in [Kept::F32, Kept::Bf16, Kept::Int8] {
            let mut worst = 0f64;
            for state in states.chunks(33) {
                let mut back = state.to_vec();
                kept.round(&mut back);
                let off: f64 = back.iter().zip(state).map(|(a, b)| f64::from(a - b).powi(2)).sum();
                // What came back is all that is known later.
                assert!(off.sqrt() <= kept.error(&back) * (1.0 + 1e-6), "{kept:?}");
                worst = worst.max(off.sqrt() / kept.error(&back).max(1e-300));
            }
            assert!(kept == Kept::F32 || worst > 0.3, "{kept:?}: {worst}");
        }
        assert_eq!([1.0, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, -3.0].map(bf16), [1.0, 1.0, 1.015625, -3.0]);
    }

    #[test]
    fn noise_has_the_size_that_was_asked_for() {
        let mut states = vec![2f32; 100 * 64];
        add_noise(&mut states, 64, 0.1, 1, 0);
        let std = (states.iter().map(|x| f64::from(x - 2.0).powi(2)).sum::<f64>() / 6400.0).sqrt();
        assert!((std - 0.2).abs() < 0.01, "{std}");
        let mut other = vec![2f32; 100 * 64];
        add_noise(&mut other, 64, 0.1, 1, 1);
        assert_ne!(states, other);
    }
}
