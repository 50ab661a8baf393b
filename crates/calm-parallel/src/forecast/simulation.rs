//! The exchange of gradients message by message: every GPU, every link, in order of time. The plain reference of the formulas
//! in [`super`], to a thousand GPUs and more, and what they cannot say: what slow GPUs cost the others.
//!
//! A message of a ring can be sent when the sender has what it sends (its own part, then what its neighbour sent the time before).
//! A GPU's link into its node and the one to other nodes are two; each sends one message at a time, of those that can be sent
//! the one of the earliest piece. It arrives after its bytes' time and the latency.

use super::{Cluster, Work, ready};
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

/// Phases of a piece, by the link that they use.
const LINK_OF: [usize; 3] = [0, 1, 0];

/// Where a GPU is with a piece: the phase, and messages of it that have come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    piece: usize,
    phase: usize,
    round: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    /// The GPU has what it needs to be here.
    Has(Place),
    /// This link has sent its message.
    Free(usize),
}

/// Seconds in an order.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Time(f64);

impl Eq for Time {}

impl PartialOrd for Time {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Time {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// A link, and what waits for it.
#[derive(Clone, Debug, Default)]
struct Link {
    busy: bool,
    waiting: BTreeSet<Place>,
}

/// Seconds until the last GPU has the last piece, nodes in rings. GPU i computes `slowness(i)` times as long as the
/// cluster's rate says. The world is a multiple of the node.
pub fn simulate(cluster: &Cluster, work: &Work, slowness: impl Fn(usize) -> f64) -> f64 {
    let (g, n) = (cluster.node(), cluster.nodes());
    let (world, pieces) = (g * n, work.pieces.max(1));
    let compute = work.flops / cluster.rate / world as f64;
    let bytes = work.gradient / pieces as f64;
    let rounds = [g - 1, 2 * (n - 1), g - 1];
    let seconds = [bytes / g as f64 / cluster.node_link, bytes / (g * n) as f64 / cluster.link];
    let latency = [cluster.node_latency, cluster.latency];

    let mut events = BinaryHeap::new();
    let mut links = vec![[Link::default(), Link::default()]; world];
    // Of each GPU and piece: where it is, and what of the phases has come before it got there.
    let mut at = vec![Place::default(); world * pieces];
    let mut begun = vec![false; world * pieces];
    let mut early = vec![[0usize; 3]; world * pieces];
    let mut end = 0.0f64;
    for gpu in 0..world {
        let own = compute * slowness(gpu);
        end = end.max(own);
        for piece in 0..pieces {
            let time = ready(own, work.accumulation.max(1) as f64, piece, pieces);
            events.push(Reverse((Time(time), gpu, What::Has(Place { piece, ..Place::default() }))));
        }
    }
    while let Some(Reverse((Time(time), gpu, what))) = events.pop() {
        let mut freed = None;
        match what {
            What::Free(link) => {
                links[gpu][link].busy = false;
                freed = Some(link);
            }
            What::Has(came) => {
                let index = gpu * pieces + came.piece;
                let expected = if came.round == 0 {
                    !begun[index]
                } else {
                    begun[index] && at[index].phase == came.phase && at[index].round + 1 == came.round
                };
                if !expected {
                    early[index][came.phase] += 1;
                    continue;
                }
                begun[index] = true;
                let mut now = came;
                while now.round == rounds[now.phase] && now.phase < 2 {
                    now = Place { phase: now.phase + 1, round: 0, ..now };
                }
                at[index] = now;
                if now.round == rounds[now.phase] {
                    end = end.max(time);
                } else {
                    links[gpu][LINK_OF[now.phase]].waiting.insert(now);
                    freed = Some(LINK_OF[now.phase]);
                    // The message of a neighbour that was faster is there.
                    if early[index][now.phase] > 0 {
                        early[index][now.phase] -= 1;
                        events.push(Reverse((
                            Time(time),
                            gpu,
                            What::Has(Place { round: now.round + 1, ..now }),
                        )));
                    }
                }
            }
        }
        let Some(link) = freed.filter(|link| !links[gpu][*link].busy) else { continue };
        let Some(sent) = links[gpu][link].waiting.pop_first() else { continue };
        links[gpu][link].busy = true;
        let done = time + seconds[link];
        events.push(Reverse((Time(done), gpu, What::Free(link))));
        let to = next(gpu, g, n, link == 1);
        let place = Place { round: sent.round + 1, ..sent };
        events.push(Reverse((Time(done + latency[link]), to, What::Has(place))));
    }
    end
}

/// The GPU to which this one sends: the next of its node, or the one in its place of the next node.
fn next(gpu: usize, g: usize, n: usize, between: bool) -> usize {
    let (node, place) = (gpu / g, gpu % g);
    let (node, place) = if between { ((node + 1) % n, place) } else { (node, (place + 1) % g) };
    node * g + place
}

#[cfg(test)]
mod tests {
    use super::super::tests::{calm_m, h100};
    use super::super::{Algorithm, Cluster, Work};
    use super::simulate;

    /// Messages of one piece go while those of another are on their way: latencies hide behind them, which the
    /// formulas leave out.
    const LIMIT: f64 = 0.05;

    /// Rings alone, as they are simulated.
    fn expected(cluster: &Cluster, work: &Work) -> f64 {
        let forecast = cluster.forecast(work);
        assert_eq!(forecast.algorithm, Algorithm::Ring, "{cluster:?}");
        forecast.step
    }

    #[test]
    fn the_formulas_are_what_messages_take() {
        let works = [
            calm_m(),
            Work { pieces: 1, ..calm_m() },
            Work { pieces: 64, ..calm_m() },
            Work { flops: 1e12, ..calm_m() },
            Work { accumulation: 8, ..calm_m() },
        ];
        let latencies = |c: Cluster| Cluster { latency: 1e-6, node_latency: 1e-6, ..c };
        for world in [1, 2, 8, 16, 64, 256, 1024] {
            for work in &works {
                // With many nodes and small pieces a tree would be taken.
                let cluster = latencies(h100(world));
                if cluster.forecast(work).algorithm == Algorithm::Tree {
                    continue;
                }
                let (formula, messages) = (expected(&cluster, work), simulate(&cluster, work, |_| 1.0));
                let off = messages / formula - 1.0;
                assert!(
                    off.abs() < LIMIT,
                    "{world} GPUs, {work:?}: {formula} by formula, {messages} by messages"
                );
            }
        }
    }

    #[test]
    fn nodes_of_one_gpu_and_one_node_are_rings_too() {
        for gpus_per_node in [1, 4] {
            let cluster = Cluster { gpus_per_node, ..h100(4) };
            let (formula, messages) = (expected(&cluster, &calm_m()), simulate(&cluster, &calm_m(), |_| 1.0));
            assert!((messages / formula - 1.0).abs() < LIMIT, "{formula} {messages}");
        }
    }

    #[test]
    fn all_wait_for_the_slowest() {
        let (cluster, work) = (h100(64), calm_m());
        let even = simulate(&cluster, &work, |_| 1.0);
        let one = simulate(&cluster, &work, |gpu| if gpu == 17 { 1.3 } else { 1.0 });
        let compute = cluster.forecast(&work).compute;
        assert!((one - even - 0.3 * compute).abs() < 0.1 * compute, "{even} {one} {compute}");
    }
}
