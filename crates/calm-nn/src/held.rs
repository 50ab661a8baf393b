//! What a training step holds in memory: what the models' own counts are written in.
//!
//! ```text
//! kept       what each operator keeps for the backward pass, with the inputs that candle's graph keeps
//! temporary  the most that one operator has for itself, on top of all that
//! ```
//! An operator's inputs are other operators' outputs: each is counted once.

use crate::Precision;

/// Bytes that wait for the backward pass, by what they are for, and the most that an operator has for itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Held {
    /// (what for, bytes).
    pub kept: Vec<(&'static str, f64)>,
    /// Bytes.
    pub temporary: f64,
}

impl Held {
    /// Bytes that are kept.
    pub fn keep(&mut self, what: &'static str, bytes: f64) {
        self.kept.push((what, bytes));
    }

    /// Bytes that an operator has for itself.
    pub fn temporary(&mut self, bytes: f64) {
        self.temporary = self.temporary.max(bytes);
    }
}

/// Where a step is computed, as far as its memory depends on it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Footing {
    /// Bytes of an activation.
    pub activation: f64,
    /// Whether it is a GPU, whose operators have other temporaries.
    pub gpu: bool,
}

/// What cross-entropy keeps.
const VOCABULARY: &str = "kept of the vocabulary";

impl Footing {
    /// On the CPU everything is f32.
    pub fn new(precision: Precision, gpu: bool) -> Self {
        Self { activation: if gpu && precision == Precision::Bf16 { 2.0 } else { 4.0 }, gpu }
    }

    /// Cross-entropy of `rows` hidden states of `width` over `vocab` tokens: the gradients of both inputs wait
    /// inside.
    /// A frozen table has no gradient.
    pub fn cross_entropy(&self, held: &mut Held, vocab: usize, width: usize, rows: f64, trained: bool) {
        let table = if trained { (vocab * width) as f64 } else { 0.0 };
        held.keep(VOCABULARY, rows * width as f64 * self.activation + 4.0 * table);
        held.temporary(self.logits(vocab, rows));
    }

    /// A block of logits, as many rows as the operator takes at once: on a GPU f32 and as slopes.
    fn logits(&self, vocab: usize, rows: f64) -> f64 {
        let v = vocab.max(1);
        let (most, bytes) = match self.gpu {
            true => (((1 << 27) / v).max(1), 4.0 + self.activation),
            false => (((1 << 24) / v).clamp(64, 512), 4.0),
        };
        rows.min(most as f64) * v as f64 * bytes
    }
}
