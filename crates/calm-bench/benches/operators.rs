//! Each fused operator and the plain composition that it replaces, with criterion's statistics:
//!
//! ```sh
//! export MIMALLOC_PURGE_DELAY=-1                 # freed memory is kept, as in the program
//! cargo bench --bench operators                  # all
//! cargo bench --bench operators -- layer_norm    # one
//! CALM_SIZE=medium cargo bench --bench operators
//! ```
//!
//! The shapes are those of `calm bench`, which shows rates and shares of the peak.

use calm_bench::operators::{Pass, Run, all};
use calm_bench::{Place, Size};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};

/// The allocator of the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn measure(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, run: &mut Run, pass: Pass) {
    // Once before the clock starts, so that a failure has its message.
    if let Err(e) = run(pass) {
        panic!("{name}: {e}");
    }
    group.bench_function(name, |b| b.iter(|| run(pass)));
}

fn operators(c: &mut Criterion) {
    let name = std::env::var("CALM_SIZE").unwrap_or_else(|_| "small".to_owned());
    let sizes = Size::all();
    let Some(size) = sizes.get(&name) else {
        panic!("CALM_SIZE={name}: one of {:?}", sizes.keys().collect::<Vec<_>>());
    };
    let list = match all(size, &Place::cpu()) {
        Ok(list) => list,
        Err(e) => panic!("{e}"),
    };
    for mut operator in list {
        let mut group = c.benchmark_group(operator.name);
        group.sample_size(10);
        measure(&mut group, "forward", &mut operator.fused, Pass::Forward);
        let whole = if operator.differentiable { Pass::Both } else { Pass::Forward };
        if operator.differentiable {
            measure(&mut group, "forward and backward", &mut operator.fused, Pass::Both);
        }
        if let Some(plain) = &mut operator.plain {
            measure(&mut group, "composed", plain, whole);
        }
        group.finish();
    }
}

criterion_group!(benches, operators);
criterion_main!(benches);
