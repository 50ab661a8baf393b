//! One object that decides what is printed, and where.

use super::Table;
use super::progress::{Progress, Unit};
use super::streams::{CYAN, Captured, OutputError, RED, Streams, UiOptions, Verbosity, YELLOW};
use super::visible::visible;
use std::fmt::{self, Display};
use std::process::ExitCode;
use std::sync::Arc;

/// Prints. Copies share their streams; all methods may be called from any thread.
#[derive(Clone)]
pub struct Printer(Arc<Streams>);

impl Printer {
    /// A printer on the process's streams.
    pub fn new(options: UiOptions) -> Self {
        Self(Arc::new(Streams::of_process(options)))
    }

    /// A printer into memory, as onto no terminal; for tests.
    pub fn captured(options: UiOptions) -> (Self, Captured) {
        let captured = Captured::default();
        let (out, err) = captured.writers();
        (Self(Arc::new(Streams::to(options, out, err))), captured)
    }

    /// Prints a result on stdout, and ends its line.
    ///
    /// # Errors
    /// Stdout is closed or cannot be written; pass it on, [`Printer::conclude`] knows what to do.
    pub fn result(&self, text: &str) -> Result<(), OutputError> {
        let end = if text.ends_with('\n') { "" } else { "\n" };
        self.0.write_out(&format!("{text}{end}"))
    }

    /// Prints a table on stdout.
    ///
    /// # Errors
    /// As [`Printer::result`].
    pub fn table(&self, table: &Table) -> Result<(), OutputError> {
        self.result(&table.to_string())
    }

    /// Prints a piece of text on stdout as it is produced, without ending the line.
    ///
    /// # Errors
    /// As [`Printer::result`].
    pub fn text(&self, piece: &str) -> Result<(), OutputError> {
        self.0.write_out(piece)
    }

    /// Says what is being done, on stderr.
    pub fn note(&self, text: impl Display) {
        if self.0.verbosity() >= Verbosity::Normal {
            self.0.write_err(&visible(&text.to_string()));
        }
    }

    /// Says more, where asked for.
    pub fn detail(&self, text: impl Display) {
        if self.0.verbosity() >= Verbosity::Verbose {
            self.0.write_err(&visible(&text.to_string()));
        }
    }

    /// Warns; also when quiet, not when silent.
    pub fn warn(&self, text: impl Display) {
        if self.0.verbosity() == Verbosity::Silent {
            return;
        }
        let text = text.to_string();
        self.0.write_err(&format!("{} {}", self.0.paint(YELLOW, "warning:"), visible(&text)));
    }

    /// A line that a process said which works for this one; also when quiet.
    pub fn said_by(&self, who: &str, line: &str) {
        self.0.write_err(&visible(&format!("{who}: {line}")));
    }

    /// Says that a command was stopped, and how to go on; also when quiet, not when silent.
    pub fn stopped(&self, text: &str, hint: Option<&str>) {
        if self.0.verbosity() == Verbosity::Silent {
            return;
        }
        let hint =
            hint.map_or_else(String::new, |hint| format!("\n  {} {hint}", self.0.paint(CYAN, "hint:")));
        self.0.write_err(&format!("{text}{hint}"));
    }

    /// Prints an error with its causes and hints:
    ///
    /// ```text
    /// error: cannot read the corpus
    ///   caused by: no such file
    ///   hint: run `cargo fetch`
    /// ```
    pub fn error(&self, error: &anyhow::Error) {
        self.error_with(error, None);
    }

    /// As [`Printer::error`], with a hint that is known from elsewhere.
    pub fn error_with(&self, error: &anyhow::Error, hint: Option<&str>) {
        let mut messages: Vec<String> = Vec::new();
        let mut hints = Vec::new();
        collect(error, &mut messages, &mut hints);
        hints.extend(hint.filter(|hint| !hint.is_empty()).map(str::to_string));
        hints.dedup();
        let mut lines = Vec::new();
        for (i, message) in messages.iter().enumerate() {
            let label = if i == 0 {
                self.0.paint(RED, "error:")
            } else {
                format!("  {}", self.0.paint(RED, "caused by:"))
            };
            // Inner lines of a report have their own indentation, and their hints the colour of ours.
            let message = visible(message);
            let mut inner = message.lines();
            lines.push(format!("{label} {}", inner.next().unwrap_or_default()));
            lines.extend(inner.map(|line| match line.trim_start().strip_prefix("hint:") {
                Some(hint) => {
                    let indent = &line[..line.len() - line.trim_start().len()];
                    format!("{indent}{}{hint}", self.0.paint(CYAN, "hint:"))
                }
                None => line.to_string(),
            }));
        }
        lines.extend(hints.iter().map(|hint| format!("  {} {}", self.0.paint(CYAN, "hint:"), visible(hint))));
        self.0.write_err(&lines.join("\n"));
    }

    /// Ends a command: prints its error, if any, and says how the process should exit (0 or 1). That nobody
    /// reads stdout any more is a success.
    pub fn conclude(&self, result: anyhow::Result<()>) -> ExitCode {
        self.conclude_with(result, |_| None)
    }

    /// As [`Printer::conclude`], asking for the hint of an error that carries none.
    pub fn conclude_with(
        &self,
        result: anyhow::Result<()>,
        hint: impl Fn(&anyhow::Error) -> Option<String>,
    ) -> ExitCode {
        match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) if is_closed_output(&error) => ExitCode::SUCCESS,
            Err(error) => {
                self.error_with(&error, hint(&error).as_deref());
                ExitCode::FAILURE
            }
        }
    }

    /// A bar for a long job, on stderr; plain lines where that is no terminal, nothing when quiet. Without a
    /// total (`None`), only what is done is shown.
    pub fn progress(&self, label: &str, total: impl Into<Option<u64>>, unit: Unit) -> Progress {
        Progress::new(self.0.clone(), label, total.into(), unit)
    }

    /// How much is said.
    pub fn verbosity(&self) -> Verbosity {
        self.0.verbosity()
    }
}

/// Messages from the outermost inwards, without those that the one before already tells; and all hints.
fn collect(error: &anyhow::Error, messages: &mut Vec<String>, hints: &mut Vec<String>) {
    for cause in error.chain() {
        if let Some(hinted) = cause.downcast_ref::<Hinted>() {
            collect(&hinted.inner, messages, hints);
            hints.push(hinted.hint.clone());
            return;
        }
        let message = cause.to_string();
        if !messages.last().is_some_and(|last| last.contains(&message)) {
            messages.push(message);
        }
    }
}

fn is_closed_output(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        matches!(cause.downcast_ref(), Some(OutputError::Closed))
            || cause.downcast_ref::<Hinted>().is_some_and(|hinted| is_closed_output(&hinted.inner))
    })
}

/// An error with a remedy.
#[derive(Debug)]
struct Hinted {
    inner: anyhow::Error,
    hint: String,
}

impl Display for Hinted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.inner)
    }
}

impl std::error::Error for Hinted {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.inner.chain().nth(1)
    }
}

/// Adds a remedy to an error; [`Printer::error`] prints it below the causes.
pub trait Hint<T> {
    /// What the user can do about it.
    ///
    /// # Errors
    /// Those of the result itself.
    fn hint(self, text: impl Into<String>) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> Hint<T> for Result<T, E> {
    fn hint(self, text: impl Into<String>) -> anyhow::Result<T> {
        self.map_err(|error| Hinted { inner: error.into(), hint: text.into() }.into())
    }
}

#[cfg(test)]
mod tests {
    use super::super::ColorChoice;
    use super::*;
    use anyhow::{Context, anyhow};
    use std::io::{self, Write};

    fn options(verbosity: Verbosity, color: ColorChoice) -> UiOptions {
        UiOptions { verbosity, color }
    }

    fn failure() -> anyhow::Result<()> {
        Err::<(), _>(io::Error::new(io::ErrorKind::NotFound, "no such file"))
            .hint("run `cargo fetch`")
            .context("cannot read the corpus")
    }

    #[test]
    fn results_go_to_stdout_and_everything_else_to_stderr() {
        let (printer, captured) = Printer::captured(UiOptions::default());
        printer.note("doing");
        printer.detail("more");
        printer.warn("careful");
        printer.result("42").unwrap();
        printer.result("43\n").unwrap();
        printer.text("a").unwrap();
        printer.text("b").unwrap();
        assert_eq!(captured.out(), "42\n43\nab");
        assert_eq!(captured.err(), "doing\nwarning: careful\n");
    }

    #[test]
    fn quiet_keeps_warnings_and_results_and_verbose_adds_details() {
        for (verbosity, err) in
            [(Verbosity::Quiet, "warning: w\n"), (Verbosity::Verbose, "n\nd\nwarning: w\n")]
        {
            let (printer, captured) = Printer::captured(options(verbosity, ColorChoice::Auto));
            printer.note("n");
            printer.detail("d");
            printer.warn("w");
            printer.result("r").unwrap();
            assert_eq!((captured.out().as_str(), captured.err().as_str()), ("r\n", err));
            assert_eq!(printer.verbosity(), verbosity);
        }
    }

    #[test]
    fn an_error_shows_its_causes_and_hints_once() {
        let (printer, captured) = Printer::captured(UiOptions::default());
        printer.error(&failure().unwrap_err());
        let expected = "\
error: cannot read the corpus
  caused by: no such file
  hint: run `cargo fetch`
";
        assert_eq!(captured.err(), expected);

        let (printer, captured) = Printer::captured(UiOptions::default());
        let error =
            Err::<(), _>(anyhow!("disk full")).context("cannot write: disk full").hint("free some space");
        printer.error(&error.unwrap_err());
        assert_eq!(captured.err(), "error: cannot write: disk full\n  hint: free some space\n");
    }

    #[test]
    fn colours_are_used_only_where_wanted_and_also_for_hints_inside_a_report() {
        let (printer, captured) = Printer::captured(options(Verbosity::Normal, ColorChoice::Always));
        printer.error(&anyhow!("a.yaml has a problem\n\n  1. x: wrong\n     hint: right"));
        let err = captured.err();
        assert!(err.starts_with("\x1b[1;31merror:\x1b[0m a.yaml"), "{err:?}");
        assert!(err.contains("\n     \x1b[36mhint:\x1b[0m right"), "{err:?}");
        let (printer, captured) = Printer::captured(UiOptions::default());
        printer.error(&anyhow!("a\n  hint: b"));
        printer.warn("c");
        assert!(!captured.err().contains('\x1b'));
    }

    /// A stream that fails in one way.
    struct Failing(io::ErrorKind);

    impl Write for Failing {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Err(self.0.into())
        }
    }

    fn failing(kind: io::ErrorKind) -> Printer {
        Printer(Arc::new(Streams::to(UiOptions::default(), Box::new(Failing(kind)), Box::new(Failing(kind)))))
    }

    #[test]
    fn a_closed_pipe_is_a_success_and_a_full_disk_is_not() {
        let closed = failing(io::ErrorKind::BrokenPipe);
        closed.note("nobody hears");
        let error = anyhow::Error::from(closed.result("x").unwrap_err());
        assert!(is_closed_output(&error));
        let wrapped = Err::<(), _>(error).context("while printing").hint("none");
        assert_eq!(closed.conclude(wrapped), ExitCode::SUCCESS);

        let (printer, captured) = Printer::captured(UiOptions::default());
        let code = printer.conclude_with(Err(anyhow!("no room")), |error| Some(format!("mend: {error}")));
        assert_eq!(code, ExitCode::FAILURE);
        assert_eq!(captured.err(), "error: no room\n  hint: mend: no room\n");

        let full = failing(io::ErrorKind::StorageFull);
        let error = full.text("x").unwrap_err();
        assert!(error.to_string().contains("cannot write the results"));
        assert_eq!(full.conclude(Err(error.into())), ExitCode::FAILURE);
        assert_eq!(full.conclude(Ok(())), ExitCode::SUCCESS);
        // Another pipe that breaks is an error like any other.
        assert_eq!(full.conclude(Err(io::Error::from(io::ErrorKind::BrokenPipe).into())), ExitCode::FAILURE);
    }
}
