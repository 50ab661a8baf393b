//! What a training step takes on many GPUs, before they are there.
//!
//! W = n g GPUs, g in each of n nodes. A step's rows are shared out evenly; the gradient, as large on every GPU, is summed in
//! pieces, each as soon as the backward pass has it (the backward pass takes two thirds of a step, pieces come evenly):
//!
//! ```text
//! compute   │ forward │ backward ──piece 1──piece 2── … ──piece p │
//! exchange                         [ 1 ][ 2 ] …          … [ p ]   │
//!                                                       └ exposed ┘
//! ```
//!
//! One piece of S bytes, by a hierarchy of three phases over links that send at B (between nodes, one a GPU) and B' (in a
//! node) after a latency a or a' for each message:
//!
//! | phase | bytes a GPU sends | time |
//! |---|---|---|
//! | reduce-scatter in the node | (g-1)/g S | (g-1) (S/(g B') + a') |
//! | all-reduce of S/g between nodes, ring | 2 (n-1)/n S/g | 2 (n-1) (S/(g n B) + a) |
//! | the same, double binary tree | 2 S/g | 2 S/(g B) + 2 ceil(log2 n) a |
//! | all-gather in the node | (g-1)/g S | (g-1) (S/(g B') + a') |
//!
//! (Thakur, Rabenseifner and Gropp 2005 for the ring; Sanders, Speck and Träff 2009 for the tree.) Of ring and tree the faster
//! one is taken. The pieces follow each other through the phases; the two in a node share their links. While the messages of one
//! piece are on their way, those of the next are sent: latencies delay a piece, but do not keep the links. [`simulation`]
//! does the ring message by message and is the test of these formulas.
//!
//! Not in it: what else uses the links, GPUs that are slower than others, the optimiser's own time (it is part of the rate).

pub mod simulation;

use serde::Serialize;
use std::collections::VecDeque;

/// GPUs and what joins them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Cluster {
    /// W, GPUs in all.
    pub world: usize,
    /// g, GPUs in a node.
    pub gpus_per_node: usize,
    /// FLOP/s that one GPU reaches in a training step, by the formula that counts the model's FLOPs.
    pub rate: f64,
    /// B: bytes a second that a GPU sends to another node.
    pub link: f64,
    /// B': the same within a node.
    pub node_link: f64,
    /// a: seconds from one node to another beside the bytes' time.
    pub latency: f64,
    /// a': the same within a node.
    pub node_latency: f64,
}

/// A step, of all GPUs together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Work {
    /// Training FLOPs.
    pub flops: f64,
    /// Tokens.
    pub tokens: f64,
    /// Bytes of the gradient, the same on every GPU.
    pub gradient: f64,
    /// Micro-batches of a GPU: only the last one's backward pass runs beside the exchange.
    pub accumulation: usize,
    /// Pieces of the gradient.
    pub pieces: usize,
}

/// How the nodes add up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// One after the other, in a circle.
    Ring,
    /// Two binary trees, each with half of the bytes.
    Tree,
}

/// What a step is expected to take.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Forecast {
    /// Seconds of a step.
    pub step: f64,
    /// Of these, what a GPU computes.
    pub compute: f64,
    /// Seconds that the exchange takes by itself.
    pub exchange: f64,
    /// Of a step, what GPUs wait for the exchange.
    pub exposed: f64,
    /// Tokens a second.
    pub tokens_per_second: f64,
    /// The share of a step in which GPUs compute.
    pub efficiency: f64,
    /// How the nodes add up.
    pub algorithm: Algorithm,
}

/// What a phase keeps a link for, and what it takes more until all messages have come; seconds.
#[derive(Clone, Copy, Debug)]
struct Phase {
    busy: f64,
    late: f64,
}

/// The phases of one piece.
#[derive(Clone, Copy, Debug)]
struct Phases {
    /// Each of the two within a node.
    within: Phase,
    between: Phase,
    algorithm: Algorithm,
}

impl Cluster {
    /// Nodes, the last one perhaps not full.
    pub fn nodes(&self) -> usize {
        self.world.div_ceil(self.gpus_per_node.max(1)).max(1)
    }

    /// GPUs of a node that are used.
    fn node(&self) -> usize {
        self.gpus_per_node.clamp(1, self.world.max(1))
    }

    fn phases(&self, bytes: f64) -> Phases {
        let (g, n) = (self.node() as f64, self.nodes() as f64);
        let part = bytes / g;
        let within = Phase { busy: (g - 1.0) * part / self.node_link, late: (g - 1.0) * self.node_latency };
        let ring =
            Phase { busy: 2.0 * (n - 1.0) / n * part / self.link, late: 2.0 * (n - 1.0) * self.latency };
        let tree = if n > 1.0 {
            Phase { busy: 2.0 * part / self.link, late: 2.0 * n.log2().ceil() * self.latency }
        } else {
            ring
        };
        let whole = |phase: Phase| phase.busy + phase.late;
        let (between, algorithm) =
            if whole(ring) <= whole(tree) { (ring, Algorithm::Ring) } else { (tree, Algorithm::Tree) };
        Phases { within, between, algorithm }
    }

    /// A step.
    pub fn forecast(&self, work: &Work) -> Forecast {
        self.of(work, work.accumulation.max(1) as f64)
    }

    fn of(&self, work: &Work, accumulation: f64) -> Forecast {
        let compute = work.flops / self.rate / self.world as f64;
        let pieces = work.pieces.max(1);
        let phases = self.phases(work.gradient / pieces as f64);
        let ready: Vec<f64> = (0..pieces).map(|i| ready(compute, accumulation, i, pieces)).collect();
        let step = through(&phases, &ready).max(compute);
        Forecast {
            step,
            compute,
            exchange: through(&phases, &vec![0.0; pieces]),
            exposed: step - compute,
            tokens_per_second: work.tokens / step,
            efficiency: compute / step,
            algorithm: phases.algorithm,
        }
    }

    /// The fewest tokens of a step with which GPUs compute in at least this share of it, with rows of the same length and as
    /// many of them at a time: below it more GPUs are of little use. None if the exchange alone forbids it.
    pub fn least_tokens(&self, work: &Work, efficiency: f64) -> Option<f64> {
        let of = |tokens: f64| {
            let scale = tokens / work.tokens;
            let accumulation = (work.accumulation as f64 * scale).max(1.0);
            self.of(&Work { flops: work.flops * scale, tokens, ..*work }, accumulation).efficiency
        };
        let (mut low, mut high) = (work.tokens * 1e-9, work.tokens * 1e9);
        if of(high) < efficiency {
            return None;
        }
        for _ in 0..200 {
            let middle = (low * high).sqrt();
            if of(middle) < efficiency { low = middle } else { high = middle }
        }
        Some(high)
    }
}

/// When the backward pass of the last micro-batch has piece i.
fn ready(compute: f64, accumulation: f64, i: usize, pieces: usize) -> f64 {
    compute - 2.0 / 3.0 * compute / accumulation * (1.0 - (i + 1) as f64 / pieces as f64)
}

/// When the last of the pieces that are ready at these times has gone through all phases, one after the other; those within a
/// node share its links, on which what came first goes first.
fn through(phases: &Phases, ready: &[f64]) -> f64 {
    let Phases { within, between, .. } = phases;
    let (mut inside, mut outside, mut end) = (0.0f64, 0.0f64, 0.0f64);
    // Pieces that are to be gathered: when they have come back from the other nodes.
    let mut back = VecDeque::new();
    let mut gather = |back: &mut VecDeque<f64>, inside: &mut f64, before: f64| {
        while back.front().is_some_and(|at| *at <= before.max(*inside)) {
            *inside = inside.max(back.pop_front().unwrap_or_default()) + within.busy;
            end = end.max(*inside + within.late);
        }
    };
    for &at in ready {
        gather(&mut back, &mut inside, at);
        inside = inside.max(at) + within.busy;
        outside = outside.max(inside + within.late) + between.busy;
        back.push_back(outside + between.late);
    }
    gather(&mut back, &mut inside, f64::INFINITY);
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn h100(world: usize) -> Cluster {
        Cluster {
            world,
            gpus_per_node: 8,
            rate: 400e12,
            link: 50e9,
            node_link: 450e9,
            latency: 10e-6,
            node_latency: 2e-6,
        }
    }

    pub(super) fn calm_m() -> Work {
        Work { flops: 1.6e15, tokens: 2_097_152.0, gradient: 4.0 * 372e6, accumulation: 1, pieces: 16 }
    }

    #[test]
    fn one_gpu_waits_for_nobody() {
        let alone = h100(1).forecast(&calm_m());
        assert_eq!((alone.exchange, alone.exposed, alone.efficiency), (0.0, 0.0, 1.0));
        assert_eq!(alone.step, 1.6e15 / 400e12);
    }

    #[test]
    fn a_ring_moves_what_the_formula_says() {
        // Two nodes of one GPU: 2 (n-1)/n S = S bytes.
        let pair = Cluster { gpus_per_node: 1, latency: 0.0, ..h100(2) };
        let work = Work { pieces: 1, ..calm_m() };
        assert!((pair.forecast(&work).exchange - work.gradient / 50e9).abs() < 1e-12);
        // One node of eight: twice 7/8 S.
        let node = Cluster { node_latency: 0.0, ..h100(8) };
        let want = 2.0 * 7.0 / 8.0 * work.gradient / 450e9;
        assert!((node.forecast(&work).exchange - want).abs() < 1e-12);
    }

    #[test]
    fn rings_are_for_few_nodes_and_large_pieces() {
        assert_eq!(h100(16).forecast(&calm_m()).algorithm, Algorithm::Ring);
        let many = Work { pieces: 1024, ..calm_m() };
        assert_eq!(h100(4096).forecast(&many).algorithm, Algorithm::Tree);
    }

    #[test]
    fn more_gpus_take_less_time_and_wait_more() {
        let at = |w| h100(w).forecast(&calm_m());
        for pair in [1usize, 8, 64, 512].windows(2) {
            assert!(at(pair[1]).step < at(pair[0]).step, "{pair:?}");
            assert!(at(pair[1]).efficiency <= at(pair[0]).efficiency, "{pair:?}");
        }
    }

    #[test]
    fn the_least_batch_is_where_the_share_is_reached() {
        let (cluster, work) = (h100(1024), calm_m());
        let tokens = cluster.least_tokens(&work, 0.9).unwrap();
        let at = |tokens: f64| {
            let scale = tokens / work.tokens;
            cluster.of(&Work { flops: work.flops * scale, tokens, ..work }, scale.max(1.0)).efficiency
        };
        assert!((at(tokens) - 0.9).abs() < 1e-6 && at(0.9 * tokens) < 0.9, "{tokens}: {}", at(tokens));
        assert_eq!(h100(1).least_tokens(&work, 0.9).map(|t| t < 1.0), Some(true));
    }

    #[test]
    fn pieces_hide_behind_the_backward_pass() {
        let cluster = h100(64);
        let whole = cluster.forecast(&Work { pieces: 1, ..calm_m() });
        let pieces = cluster.forecast(&calm_m());
        assert!(whole.exposed > 5.0 * pieces.exposed, "{whole:?} {pieces:?}");
        let accumulated = cluster.forecast(&Work { accumulation: 64, ..calm_m() });
        assert!(accumulated.exposed > pieces.exposed);
    }
}
