//! How a run's model cuts held-out text: sums over documents, and the opening of one of them for the page.

use calm_data::{Corpus, EvaluationOptions, RowPlan};
use calm_eval::score::to_tensors;
use calm_eval::segments::{Place as Found, Segments as Sums};
use calm_report::study::{Piece, Place, Segments};
use calm_run::{Result, Run, Stage, metrics};
use calm_train::reporter::Reporter;
use calm_train::scoring::Scorer;

/// Tokens of the text that the page shows.
const SHOWN: usize = 256;

/// The metric that holds which share of the tokens of a step began a segment.
const BOUNDARIES: &str = "train/boundaries";

/// Of held-out documents; None of a model that cuts none.
///
/// # Errors
/// As [`Scorer::segments`].
pub fn of_run(
    run: &Run,
    scorer: &Scorer<'_>,
    corpus: &Corpus,
    eval: &calm_eval::EvalConfig,
    reporter: &mut dyn Reporter,
) -> Result<Option<Segments>> {
    let Some(sums) = scorer.segments(&corpus.validation, eval, reporter)? else { return Ok(None) };
    let Sums { tokens, ratio, from_start, from_end, .. } = sums;
    let place = |p: &Found| Place { place: p.place, nats: p.nats.value, nats_se: p.nats.se };
    Ok(Some(Segments {
        target: run.config.model.ratio(),
        ratio: ratio.value,
        ratio_se: ratio.se,
        tokens,
        from_start: from_start.iter().map(place).collect(),
        from_end: from_end.iter().map(place).collect(),
        text: opening(run, scorer, corpus)?,
        ..Segments::default()
    }))
}

/// Tokens a segment while the run was trained: what the metrics hold.
pub fn training(run: &Run) -> Vec<(u64, f64)> {
    let Ok(lines) = metrics::read_lines(&run.folder.join("metrics.jsonl")) else { return Vec::new() };
    let Ok(tokens) = run.token_count(Stage::Lm) else { return Vec::new() };
    let share =
        |line: &metrics::Line| line.values.get(BOUNDARIES).copied().flatten().filter(|share| *share > 0.0);
    let lines = lines.iter().filter(|line| line.stage == Stage::Lm);
    lines.filter_map(|line| Some((tokens.until(line.step), share(line)?.recip()))).collect()
}

/// The opening of the first document that is long enough, or of the first.
fn opening(run: &Run, scorer: &Scorer<'_>, corpus: &Corpus) -> Result<Vec<Piece>> {
    let held_out = &corpus.validation;
    let long = (0..held_out.len()).find(|i| held_out.document(*i).len() >= SHOWN).unwrap_or(0);
    let special = corpus.tokenizer.special();
    let options = EvaluationOptions { max_chunks: Some(SHOWN), overlap: 1 };
    let rows = RowPlan::evaluation(held_out, run.lm_layout(), special, &[long], options)?;
    let Some(batch) = rows.batches(1).next().filter(|batch| batch.predict_count() > 0) else {
        return Ok(Vec::new());
    };
    let tensors = to_tensors(&batch, scorer.model.store().context())?;
    let (cut, log_p) = (scorer.model.segmentation(&tensors)?, scorer.model.log_probabilities(&tensors)?);
    let (Some(cut), Some(log_p)) = (cut, log_p) else { return Ok(Vec::new()) };
    let mut nats = vec![None; batch.ids.len()];
    let sources = (0..batch.predicts.len()).filter(|at| batch.predicts[*at]);
    for (at, log_p) in sources.zip(log_p) {
        nats[at + 1] = Some(-log_p);
    }
    let mut writer = Writer::default();
    for at in (0..batch.ids.len()).filter(|at| batch.filled[*at]) {
        let probability = cut.probabilities.as_ref().map(|p| f64::from(p[at]));
        writer.push(corpus.tokenizer.token_bytes(batch.ids[at]), cut.opens[at], probability, nats[at]);
    }
    Ok(writer.finish())
}

/// Tokens as pieces of whole characters: one that ends inside of a character hands its bytes, and what is said of it, to the
/// next.
#[derive(Default)]
struct Writer {
    pieces: Vec<Piece>,
    bytes: Vec<u8>,
    open: Piece,
}

impl Writer {
    fn push(&mut self, bytes: &[u8], opens: bool, probability: Option<f64>, nats: Option<f64>) {
        self.bytes.extend_from_slice(bytes);
        let open = &mut self.open;
        // Of several tokens the probability of the first that begins a segment, else of the last.
        if !open.opens {
            open.probability = probability;
        }
        open.opens |= opens;
        open.nats = open.nats.map_or(nats, |before| Some(before + nats.unwrap_or(0.0)));
        let whole = match std::str::from_utf8(&self.bytes) {
            Ok(_) => self.bytes.len(),
            // The beginning of a character that is still to come; what never becomes one is shown as such.
            Err(e) if e.error_len().is_none() => e.valid_up_to(),
            Err(_) => self.bytes.len(),
        };
        if whole > 0 {
            self.write(whole);
        }
    }

    fn write(&mut self, bytes: usize) {
        let rest = self.bytes.split_off(bytes);
        let text = String::from_utf8_lossy(&self.bytes).into_owned();
        self.pieces.push(Piece { text, ..std::mem::take(&mut self.open) });
        self.bytes = rest;
    }

    fn finish(mut self) -> Vec<Piece> {
        if !self.bytes.is_empty() {
            self.write(self.bytes.len());
        }
        self.pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_that_tokens_cut_stays_whole() {
        let mut writer = Writer::default();
        let euro = "€".as_bytes();
        writer.push(b"", true, Some(1.0), None);
        writer.push(b"a", false, Some(0.1), Some(0.5));
        writer.push(&[b"b", &euro[..1]].concat(), false, Some(0.2), Some(1.0));
        writer.push(&euro[1..2], true, Some(0.9), Some(2.0));
        writer.push(&[&euro[2..], b"c"].concat(), false, Some(0.3), Some(4.0));
        writer.push(&euro[..2], false, Some(0.4), Some(8.0));
        let piece = |text: &str, opens, p, nats| Piece {
            text: text.to_owned(),
            opens,
            probability: Some(p),
            nats: Some(nats),
        };
        assert_eq!(
            writer.finish(),
            [
                piece("a", true, 1.0, 0.5),
                piece("b", false, 0.2, 1.0),
                piece("€c", true, 0.9, 6.0),
                piece("\u{fffd}", false, 0.4, 8.0),
            ]
        );
    }

    #[test]
    fn bytes_that_are_no_character_hold_up_nothing() {
        let mut writer = Writer::default();
        writer.push(&[0xff, b'a'], true, None, None);
        writer.push(b"b", false, None, None);
        let texts: Vec<_> = writer.finish().into_iter().map(|piece| piece.text).collect();
        assert_eq!(texts, ["\u{fffd}a", "b"]);
    }
}
