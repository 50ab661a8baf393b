//! Parameters, FLOPs and memory of the backbone, by formula (conventions: [`calm_nn::costs`], [`calm_nn::held`]).

use calm_nn::costs::{flops, weights};
use calm_nn::{Footing, Held};

use super::BackboneConfig;

/// What layers keep.
const BACKBONE: &str = "kept in the backbone";

impl BackboneConfig {
    /// Matrix weights of one layer: queries, keys, values, output, SwiGLU. No biases.
    fn layer_weights(&self) -> u64 {
        let d = self.hidden_size;
        let kv = d / self.heads.max(1) * self.kv_heads();
        2 * weights(d, d) + 2 * weights(d, kv) + 3 * weights(d, self.intermediate_size)
    }

    /// Parameters of the layers with their two norms; the final norm is not among them.
    pub fn layer_parameters(&self) -> u64 {
        (self.layers as u64).saturating_mul(self.layer_weights() + 2 * self.hidden_size as u64)
    }

    /// Forward FLOPs of a position in its layers' matrices.
    pub fn matrix_flops(&self) -> f64 {
        flops(self.layers as u64 * self.layer_weights())
    }

    /// Forward FLOPs of a position in attention over a context of `context` positions.
    pub fn attention_flops(&self, context: usize) -> f64 {
        4.0 * self.layers as f64 * context as f64 * self.hidden_size as f64
    }

    /// What layers and the final norm hold in a training step on `rows` positions.
    pub fn held(&self, rows: f64, on: Footing, recompute: bool) -> Held {
        let (d, i) = (self.hidden_size as f64, self.intermediate_size as f64);
        let kv = (self.hidden_size / self.heads.max(1) * self.kv_heads()) as f64;
        let layers = self.layers as f64;
        let input = rows * d * on.activation;
        // Queries and output, keys and values, log sums; the MLP's input and the outputs of gate and up.
        let attention = rows * ((2.0 * d + 2.0 * kv) * on.activation + 4.0 * self.heads as f64);
        let mlp = rows * (d + 2.0 * i) * on.activation;
        let inside = attention + mlp;
        let all = if recompute { layers * input + inside } else { layers * (input + inside) };
        let mut held = Held::default();
        // The final norm's input and output, and the rows that are picked from it.
        held.keep(BACKBONE, all + 3.0 * input);
        // The MLP: slopes of the output, of gate, up and their product; then those of gate and up with the norm's
        // output, its slope and the input's. The CPU has all of them at once.
        let mlp = if on.gpu { (d + 3.0 * i).max(4.0 * d + 2.0 * i) } else { 4.0 * d + 4.0 * i };
        held.temporary(rows * mlp * on.activation);
        // Attention: slopes of the output and in the heads, of queries and keys before and after their turn, of
        // values; the norm's output, its slope and the input's; and a sum a head.
        held.temporary(rows * ((7.0 * d + 3.0 * kv) * on.activation + 4.0 * self.heads as f64));
        held
    }
}
