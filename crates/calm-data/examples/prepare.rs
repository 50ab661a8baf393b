//! Prepares the default corpus, or a file or folder, and prints its sizes and the time that it took.
//!
//! ```text
//! cargo run --release -p calm-data --example prepare -- CACHE [VOCAB_SIZE [FILE_OR_FOLDER]]
//! ```

use std::path::Path;
use std::time::Instant;

use calm_data::{BpeConfig, DataConfig, Layout, Progress, RowPlan, Source, TokenizerConfig, prepare};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let cache = arguments.next().ok_or("which cache folder? (first argument)")?;
    let vocab_size = arguments.next().map_or(Ok(1024), |size| size.parse())?;
    let source = arguments.next().map_or(Source::default(), |path| Source::Path(path.into()));
    let data = DataConfig { source, ..DataConfig::default() };
    let tokenizer = TokenizerConfig::Bpe(BpeConfig::of_size(vocab_size));

    let start = Instant::now();
    let mut last = "";
    let corpus = prepare(&data, &tokenizer, Path::new(&cache), &mut |progress| {
        let job = match progress {
            Progress::Reading { .. } => "reading",
            Progress::TrainingTokenizer { .. } => "counting words",
            Progress::LearningMerges => "learning merges",
            Progress::Tokenizing { .. } => "tokenising",
            _ => "working",
        };
        if job != last {
            println!("{:6.2} s  {job}", start.elapsed().as_secs_f64());
            last = job;
        }
    })?;
    println!("{:6.2} s  done", start.elapsed().as_secs_f64());
    println!("{:#?}", corpus.summary);
    let layout = Layout::new(4, 128, true)?;
    let plan = RowPlan::new(&corpus.train, layout, corpus.tokenizer.special(), 1)?;
    println!("{} rows of 128 chunks of 4 tokens, {:.2} % filled", plan.rows()?, 100.0 * plan.fill());
    Ok(())
}
