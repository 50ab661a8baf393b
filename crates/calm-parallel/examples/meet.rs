//! What the engine of this build does between processes: sums and trees compared with what they must be, and how fast the sum
//! is beside a copy in memory.
//!
//! `mpirun -n 2 target/release/examples/meet [MILLIONS OF VALUES]`

use std::time::Instant;

use calm_parallel::{Patience, Ranks, connect, tree};

fn main() {
    let outcome = connect().and_then(|ranks| {
        let done = work(&ranks);
        match &done {
            Ok(()) => ranks.leave()?,
            Err(e) => {
                if ranks.failed(e) {
                    eprintln!("error: {e}\nhint: {}", e.remedy);
                }
                ranks.abort(1);
            }
        }
        done
    });
    if let Err(e) = outcome {
        eprintln!("error: {e}\nhint: {}", e.remedy);
        std::process::exit(1);
    }
}

fn work(ranks: &Ranks) -> calm_parallel::Result<()> {
    let (rank, size) = (ranks.rank(), ranks.size());
    let all =
        ranks.gather(format!("I am {rank}").repeat(100 * rank).as_bytes(), "records", Patience::Limited)?;
    for (rank, one) in all.iter().enumerate() {
        assert_eq!(*one, format!("I am {rank}").repeat(100 * rank).into_bytes());
    }
    let value = |rank: usize, i: usize| ((i * 7919 + rank * 104_729) % 10_007) as f32;
    let n = 1_000_003;
    let mut values: Vec<f32> = (0..n).map(|i| value(rank, i)).collect();
    ranks.sum(&mut values)?;
    assert!((0..n).all(|i| values[i] == (0..size).map(|rank| value(rank, i)).sum::<f32>()));
    if size.is_power_of_two() {
        let mut values: Vec<f32> = (0..n).map(|i| value(rank, i)).collect();
        tree::across(ranks, &mut values)?;
        assert!((0..n).all(|i| values[i] == (0..size).map(|rank| value(rank, i)).sum::<f32>()));
    }
    let millions = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(4);
    let mut values = vec![1.0f32; millions << 20];
    let bytes = (values.len() * 4) as f64 / 1e9;
    let mut rate = |what: &str, work: &mut dyn FnMut(&mut [f32]) -> calm_parallel::Result<()>| {
        let mut best = f64::INFINITY;
        for _ in 0..5 {
            ranks.meet("the next round", Patience::Limited)?;
            let began = Instant::now();
            work(&mut values)?;
            best = best.min(began.elapsed().as_secs_f64());
        }
        if ranks.leads() {
            println!("{what}: {:.2} GB/s", bytes / best);
        }
        Ok(())
    };
    let mut copy = vec![0.0f32; millions << 20];
    rate("copy in memory", &mut |values| {
        copy.copy_from_slice(std::hint::black_box(values));
        Ok(())
    })?;
    rate("sum of the engine", &mut |values| ranks.sum(values))?;
    rate("sum as a tree", &mut |values| tree::across(ranks, values))
}
