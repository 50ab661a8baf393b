//! Text in, chunked batches out: documents, tokenizers, token files and batches. No tensors.
//!
//! ```text
//! source/       files, folders, JSON records, crate sources  ->  Document
//! tokenizer     Document -> tokens                (byte-level BPE, characters, Llama-3 ranks)
//! token_file    unpadded tokens on disk, memory-mapped, independent of the chunk size K; shards: many of them
//! corpus        the three above for one configuration, cached by content; survey, reading, remembered: how it streams
//! batch         tokens -> chunks of K, packed in rows of S chunk positions; order, mixture: which row is which
//! chat          conversations as text: templates, and which part of it is an answer
//! inspect, near what a corpus holds, and what its two sides have in common
//! ```
//!
//! Shapes legend: B batch rows, S chunk positions in a row, K tokens in a chunk, V vocabulary.
//! The library prints nothing; long jobs report through a callback with [`Progress`].

pub mod batch;
pub mod bpe;
mod byte_level;
mod caught;
pub mod chars;
pub mod chat;
pub mod chunks;
pub mod config;
pub mod corpus;
mod counts;
mod detokenizer;
pub mod document;
mod encode;
pub mod error;
mod guard;
pub mod inspect;
mod known_pieces;
pub mod llama3;
mod marks;
mod merges;
mod mixture;
pub mod near;
mod order;
mod pack;
mod permutation;
mod pipeline;
pub mod prefetch;
mod reading;
pub mod reference;
mod remembered;
mod seams;
mod section;
mod segments;
mod shards;
pub mod source;
mod spaces;
mod special;
mod split;
mod stream;
mod survey;
pub mod token_file;
pub mod tokenizer;
mod tokenizer_json;

pub use batch::{Batch, EvaluationOptions, EvaluationRows, RowPlan, RowSource, spread};
pub use chat::{Conversations, LossOn, Message};
pub use chunks::Layout;
pub use config::{
    BpeConfig, CharsConfig, DataConfig, Llama3Config, MixedSource, Source, TokenizerConfig, Validation,
};
pub use corpus::{
    Corpus, CorpusSummary, Preparation, Progress, SplitSummary, prepare, prepare_file, prepare_text,
    prepare_with,
};
pub use document::Document;
pub use error::{Error, Result};
pub use inspect::{Inspection, inspect};
pub use marks::Counting;
pub use mixture::Portion;
pub use near::{Overlap, overlap};
pub use prefetch::Prefetch;
pub use reference::ReferenceBlocks;
pub use shards::Cut;
pub use special::{Known, SpecialTokens, Vocabulary};
pub use stream::TextStream;
pub use token_file::TokenFile;
pub use tokenizer::Tokenizer;

/// The README's example is a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
