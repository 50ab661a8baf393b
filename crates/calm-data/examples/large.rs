//! What a large text takes: prepared, started a second time, its first rows, many steps. Seconds and peak memory of each.
//!
//! ```console
//! $ cargo run --release -p calm-data --example large -- TEXT CACHE prepare
//! $ cargo run --release -p calm-data --example large -- TEXT CACHE rows [STEPS] [FIRST] [MILLISECONDS]
//! ```
//!
//! With MILLISECONDS each step computes for so long on all cores, as a training does: how many steps found their rows ready,
//! and which share of the time was waited for those that were not.
//!
//! Two processes, so that the second one's memory is its own. Memory is the peak resident set that Linux says, pages of mapped
//! files among it.

use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use calm_data::{
    Batch, BpeConfig, DataConfig, Layout, Prefetch, RowSource, Source, TokenizerConfig, prepare,
};

/// Peak resident set, MiB.
fn peak() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
    kib.unwrap_or(f64::NAN) / 1024.0
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let text = PathBuf::from(args.next().ok_or("which text?")?);
    let cache = PathBuf::from(args.next().ok_or("which cache?")?);
    let rows = args.next().as_deref() == Some("rows");
    let steps: u64 = args.next().map_or(Ok(200), |n| n.parse())?;
    let first: u64 = args.next().map_or(Ok(0), |n| n.parse())?;
    let work = Duration::from_millis(args.next().map_or(Ok(0), |n| n.parse())?);
    let data = DataConfig { source: Source::Path(text), ..DataConfig::default() };
    let started = Instant::now();
    let mut job = String::new();
    let corpus = prepare(&data, &TokenizerConfig::Bpe(BpeConfig::of_size(8192)), &cache, &mut |progress| {
        let now = format!("{progress:?}");
        let now = now.split([' ', '{']).next().unwrap_or_default();
        if job != now {
            println!("{:8.1} s {:7.0} MiB  {now}", started.elapsed().as_secs_f64(), peak());
            job = now.to_owned();
        }
    })?;
    let say = |what: &str| println!("{:8.1} s {:7.0} MiB  {what}", started.elapsed().as_secs_f64(), peak());
    say(&format!(
        "opened: {} documents, {} bytes, {} tokens, {} sections",
        corpus.train.len(),
        corpus.train.text_bytes(),
        corpus.train.tokens(),
        corpus.train.sections()
    ));
    if !rows {
        return Ok(());
    }
    let plan = corpus.plan(Layout { chunk_size: 4, context: 256, bos_chunk: true }, 1)?;
    let batch = plan.batch(first, 0..32, 32)?;
    say(&format!("first batch, {}", Batch::hash(&[batch])));
    let mut ahead = Prefetch::new(move |step| {
        let batch = plan.batch(step, 0..32, 32)?;
        plan.look_ahead(step, 32)?;
        Ok::<_, calm_data::Error>(Batch::hash(&[batch]))
    });
    let (mut longest, mut all, mut ready) = (Duration::ZERO, Duration::ZERO, 0);
    let started = Instant::now();
    ahead.start(first, first + steps);
    for step in first..first + steps {
        let (hash, waited) = ahead.get(step, first + steps);
        hash?;
        ready += u64::from(waited.is_zero());
        longest = longest.max(waited);
        all += waited;
        if !work.is_zero() {
            compute(work);
        }
    }
    say(&format!(
        "{steps} steps of 32 rows of 1,024 tokens, {} ms of other work in each: {ready} found them ready; waited for {:.3} % \
         of the time, at most {:.4} s",
        work.as_millis(),
        100.0 * all.as_secs_f64() / started.elapsed().as_secs_f64(),
        longest.as_secs_f64()
    ));
    Ok(())
}

/// Keeps all cores busy for so long.
fn compute(work: Duration) {
    let until = Instant::now() + work;
    rayon::broadcast(|_| {
        let mut x = 1.0f64;
        while Instant::now() < until {
            (0..1000).for_each(|_| x = std::hint::black_box(x * 1.000_000_1));
        }
    });
}
