//! `calm generate --chat`: a conversation with a model that was trained on conversations, turn by turn.
//!
//! A line is what the person says; the answer goes on until the mark that ends it, or the end of the text. On a terminal a
//! sign asks for the next line; between pipes there is nothing on stdout but answers, each with a line end. What was said
//! is read again with every turn, by the run's own template; where it would leave too little of the context for an answer,
//! the oldest turns go.

use std::io::{BufRead, IsTerminal};

use anyhow::Result;
use calm_data::chat::{Conversations, End, LossOn, Message};
use calm_data::{Layout, Tokenizer};
use calm_eval::generate::{Decoding, GenerateOptions, GenerateReport, generate};
use calm_lm::Sampler;
use calm_run::Run;

use super::drawing::{Bent, REMAINDER_BUDGET, explain};
use crate::args::GenerateArgs;
use crate::error::Hinted;
use crate::ui::Printer;

/// How a run converses.
pub(super) struct Talk {
    conversations: Conversations,
    /// Tokens that the model reads at once.
    context: usize,
}

impl Talk {
    /// As its configuration says.
    pub(super) fn of(run: &Run) -> Self {
        let Layout { chunk_size, context, bos_chunk } = run.lm_layout();
        let context = (context - usize::from(bos_chunk)) * chunk_size;
        Self { conversations: run.config.data.conversations(), context }
    }
}

/// Asks and answers until there is no more input.
pub(super) fn converse(
    talk: &Talk,
    sampler: &dyn Sampler,
    tokenizer: &Tokenizer,
    decoding: Decoding,
    args: &GenerateArgs,
    printer: &Printer,
) -> Result<()> {
    let learned = match talk.conversations.loss_on {
        LossOn::Answers => None,
        LossOn::All => Some("all".to_owned()),
        LossOn::AfterShare(share) => Some(format!("{{after_share: {share}}}")),
    };
    if let Some(learned) = learned {
        printer.warn(format!(
            "this run was not trained on answers (data.loss_on: {learned}): unless its text was conversations in its \
             data.template, it does not know what a turn is"
        ));
    }
    let mut bent = Bent::default();
    let ended = turns(talk, sampler, tokenizer, decoding, args, &mut bent, printer);
    // Also of the turns before a failure.
    bent.tell("turns", printer);
    ended
}

/// The turns; what was bent in them and not told yet is left in `bent`.
fn turns(
    talk: &Talk,
    sampler: &dyn Sampler,
    tokenizer: &Tokenizer,
    decoding: Decoding,
    args: &GenerateArgs,
    bent: &mut Bent,
    printer: &Printer,
) -> Result<()> {
    let asks = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let system = args.system.as_ref().map(|text| Message::new("system", text.as_str()));
    let mut said: Vec<Message> = system.into_iter().collect();
    let mut told = Told::default();
    let mut turn = 0;
    let mut lines = std::io::stdin().lock().lines();
    loop {
        if asks {
            printer.text("> ")?;
        }
        let Some(line) = lines.next() else {
            return if asks { Ok(printer.text("\n")?) } else { Ok(()) };
        };
        let line = line.map_err(|e| {
            Hinted::new(format!("cannot read what is said from standard input: {e}"), "give UTF-8 text")
        })?;
        // What PowerShell puts in front of a pipe.
        let line = line.trim_start_matches('\u{feff}');
        if line.trim().is_empty() {
            continue;
        }
        said.push(Message::new("user", line));
        let prompt = talk.prompt(&mut said, tokenizer, args.max_tokens, &mut told, printer)?;
        let options = GenerateOptions {
            max_tokens: args.max_tokens,
            decoding,
            // Another turn draws other noise.
            seed: args.seed.wrapping_add(turn),
            remainder_budget: REMAINDER_BUDGET,
        };
        let answer = answer(talk, sampler, tokenizer, &prompt, &options, printer)?;
        bent.add(&answer.report);
        if asks {
            // Who reads the answers one by one is told at once.
            std::mem::take(bent).tell("turns", printer);
        }
        if answer.cut && !std::mem::replace(&mut told.cut, true) {
            printer.note(format!("cut after {} tokens: --max-tokens allows more", args.max_tokens));
        }
        said.push(Message::new("assistant", answer.text));
        turn += 1;
    }
}

/// What was said once.
#[derive(Default)]
struct Told {
    dropped: bool,
    long: bool,
    cut: bool,
}

impl Talk {
    /// The tokens of what was said, up to where the answer begins. The oldest turns go where they leave no room.
    fn prompt(
        &self,
        said: &mut Vec<Message>,
        tokenizer: &Tokenizer,
        max_tokens: usize,
        told: &mut Told,
        printer: &Printer,
    ) -> Result<Vec<u32>> {
        let room = max_tokens.min(self.context / 2);
        loop {
            let prompt = self.conversations.prompt(said).map_err(|what| {
                Hinted::new(what, "leave --system away, or train with a data.template that has marks for it")
            })?;
            let ids = tokenizer.encode_conversation(&prompt)?;
            if ids.len() + room <= self.context {
                return Ok(ids);
            }
            let first = usize::from(said.first().is_some_and(|message| message.role == "system"));
            if said.len() <= first + 1 {
                if !std::mem::replace(&mut told.long, true) {
                    printer.warn(format!(
                        "{} tokens to answer to, and a context of {}: of long texts the end is read",
                        ids.len(),
                        self.context
                    ));
                }
                return Ok(ids);
            }
            // A turn is what was asked and what was answered.
            said.drain(first..first + 2);
            if !std::mem::replace(&mut told.dropped, true) {
                printer.note("the conversation is longer than the context: its oldest turns are forgotten");
            }
        }
    }
}

struct Answer {
    text: String,
    /// Whether it was ended by the number of tokens.
    cut: bool,
    report: GenerateReport,
}

fn answer(
    talk: &Talk,
    sampler: &dyn Sampler,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    options: &GenerateOptions,
    printer: &Printer,
) -> Result<Answer> {
    let mut stream = tokenizer.stream_after("", prompt);
    let mut until = Until::new(talk.conversations.end());
    let (mut text, mut broken) = (String::new(), None);
    let mut show = |piece: &str| {
        text.push_str(piece);
        printer.text(piece)
    };
    let report = generate(sampler, prompt, options, |new| {
        let shown = show(&until.push(&stream.push(new)));
        let goes_on = shown.is_ok() && !until.ended;
        broken = shown.err();
        goes_on
    })
    .map_err(explain)?;
    if let Some(e) = broken {
        return Err(e.into());
    }
    show(&until.push(&stream.finish()))?;
    show(&until.rest(report.ended))?;
    printer.text("\n")?;
    let cut = !until.ended && !report.ended;
    Ok(Answer { text, cut, report })
}

/// Text up to a mark: what may be the beginning of it, or of the white space before it, is held back until that is known.
struct Until {
    end: End,
    held: String,
    ended: bool,
}

impl Until {
    fn new(end: End) -> Self {
        Self { end, held: String::new(), ended: false }
    }

    /// Adds text; returns what stands before the mark for sure.
    fn push(&mut self, text: &str) -> String {
        if self.ended {
            return String::new();
        }
        self.held.push_str(text);
        let End { lead, mark } = &self.end;
        if let Some(at) = self.held.find(mark) {
            self.ended = true;
            self.held.truncate(at);
            let said = self.held.strip_suffix(lead.as_str()).unwrap_or(&self.held).len();
            self.held.truncate(said);
            return std::mem::take(&mut self.held);
        }
        let whole = format!("{lead}{mark}");
        let begins = |at: &usize| {
            let rest = &self.held[*at..];
            mark.starts_with(rest) || whole.starts_with(rest)
        };
        let mut starts = self.held.char_indices().map(|(at, _)| at);
        let sure = starts.find(begins).unwrap_or(self.held.len());
        self.held.drain(..sure).collect()
    }

    /// What was held back, if no mark came. Where the text `ended` by itself, the white space before the mark is none of it
    /// either.
    fn rest(&mut self, ended: bool) -> String {
        let mut rest = std::mem::take(&mut self.held);
        if ended && let Some(said) = rest.strip_suffix(self.end.lead.as_str()).map(str::len) {
            rest.truncate(said);
        }
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn until(lead: &str, mark: &str) -> Until {
        Until::new(End { lead: lead.into(), mark: mark.into() })
    }

    #[test]
    fn text_ends_before_the_mark_in_whatever_pieces_it_comes() {
        for (lead, text, said) in [
            ("", "a < b <|im <|im_en <|im_end|>\nmore", "a < b <|im <|im_en "),
            // The new line that the template puts before its mark is none of the answer's, but others are.
            ("\n", "a\nb\n\n<|im_end|>", "a\nb\n"),
            ("\n", "a\n<|im b<|im_end|>", "a\n<|im b"),
            (" \n", "a \n \n<|im_end|>\n", "a \n"),
        ] {
            for size in 1..9 {
                let mut until = until(lead, "<|im_end|>");
                let pieces = text.as_bytes().chunks(size).map(|piece| std::str::from_utf8(piece).unwrap());
                let shown: String = pieces.map(|piece| until.push(piece)).collect();
                assert_eq!(
                    (shown.as_str(), until.ended, until.rest(false).as_str()),
                    (said, true, ""),
                    "{size}"
                );
            }
        }
        let mut until = until("", "<|im_end|>");
        assert_eq!(
            (until.push("é <|im"), until.rest(false), until.ended),
            ("é ".into(), "<|im".into(), false)
        );
    }

    #[test]
    fn text_that_ends_by_itself_ends_before_the_white_space_of_the_mark() {
        for (text, ended, said) in [
            ("Yes.\n", true, "Yes."),
            ("Yes.\n\n", true, "Yes.\n"),
            ("Yes.\n<|e", true, "Yes.\n<|e"),
            ("Yes.", true, "Yes."),
            ("Yes.\n", false, "Yes.\n"),
        ] {
            let mut until = until("\n", "<|end|>");
            let shown = until.push(text) + &until.rest(ended);
            assert_eq!(shown, said, "{text:?}, {ended}");
        }
    }
}
