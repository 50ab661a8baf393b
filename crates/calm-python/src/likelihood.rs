//! Probabilities of given texts.

use calm_data::Tokenizer;
use calm_eval::bound::FLOOR;
use calm_eval::likelihood::{Answer, LikelihoodOptions, Question, likelihoods};
use calm_stats::bound::Floor;

use crate::error::Failure;
use crate::models::Models;
use crate::pool::Stop;

/// Questions between two looks for an interrupt.
const AT_ONCE: usize = 256;

/// A context and what follows it, as text: the continuation begins where the tokens of the two first differ from those of
/// the context alone. Space at the end of the context belongs to what follows, as benchmarks have it.
pub fn question(tokenizer: &Tokenizer, context: &str, continuation: &str) -> Result<Question, Failure> {
    let before = tokenizer.encode(context.trim_end())?;
    let mut whole = tokenizer.encode(&format!("{context}{continuation}"))?;
    let common = before.iter().zip(&whole).take_while(|(a, b)| a == b).count();
    let continuation = whole.split_off(common);
    Ok(Question { context: whole, continuation })
}

/// ln p of the continuations, in nats, and whether each is what the model would say.
pub fn answers(
    models: &Models,
    pairs: &[(String, String)],
    (samples, seed, greedy): (usize, u64, bool),
    stop: &Stop,
) -> Result<Vec<Answer>, Failure> {
    let (tokenizer, model) = (models.tokenizer()?, models.lm()?);
    let floor = Floor { share: FLOOR, vocab: tokenizer.vocab_size() };
    let options = LikelihoodOptions { samples, floor, seed, greedy };
    let mut answers = Vec::with_capacity(pairs.len());
    for pairs in pairs.chunks(AT_ONCE) {
        stop.check()?;
        let questions = pairs.iter().map(|(context, next)| question(&tokenizer, context, next));
        let questions: Vec<Question> = questions.collect::<Result<_, Failure>>()?;
        answers.extend(likelihoods(&*model, models.run.lm_layout(), &questions, &options)?);
    }
    Ok(answers)
}
