//! One object that decides what is printed, and where.

use super::format::wrap;
use super::progress::{Progress, Unit};
use super::{Table, WIDTH};
use indicatif::{MultiProgress, ProgressDrawTarget};
use std::fmt::{self, Display};
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How much is said on stderr.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Warnings and errors only.
    Quiet,
    /// What it is doing, and progress.
    #[default]
    Normal,
    /// Details too.
    Verbose,
}

/// Whether colours are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ColorChoice {
    /// On terminals, unless `NO_COLOR` is set or the terminal is `dumb`.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// What the user asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UiOptions {
    /// How much is said.
    pub verbosity: Verbosity,
    /// Whether in colour.
    pub color: ColorChoice,
}

/// Why a result could not be printed.
#[derive(Debug)]
pub enum OutputError {
    /// Whoever read stdout has gone (`calm generate | head`): there is nobody left to print to, and work for
    /// the output alone can end. Not an error to the user.
    Closed,
    /// Stdout cannot be written (a full disk).
    Io(io::Error),
}

impl Display for OutputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("the output was closed"),
            Self::Io(error) => write!(f, "cannot write the results: {error}"),
        }
    }
}

impl std::error::Error for OutputError {}

/// Prints. Copies share their streams; all methods may be called from any thread.
#[derive(Clone)]
pub struct Printer(Arc<Inner>);

struct Inner {
    out: Mutex<Box<dyn Write + Send>>,
    err: Mutex<Box<dyn Write + Send>>,
    colored: bool,
    verbosity: Verbosity,
    /// The bars on the screen; `None` where stderr is no terminal.
    bars: Option<MultiProgress>,
}

/// What a [`Printer::captured`] has printed.
#[derive(Clone, Debug, Default)]
pub struct Captured {
    out: Shared,
    err: Shared,
}

impl Captured {
    /// All of stdout.
    pub fn out(&self) -> String {
        self.out.text()
    }

    /// All of stderr.
    pub fn err(&self) -> String {
        self.err.text()
    }
}

#[derive(Clone, Debug, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Shared {
    fn text(&self) -> String {
        String::from_utf8_lossy(&lock(&self.0)).into_owned()
    }
}

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A lock whose holder panicked still guards a usable stream.
pub(super) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Printer {
    /// A printer on the process's streams.
    pub fn new(options: UiOptions) -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let terminal = io::stderr().is_terminal() && !dumb;
        let colored = match options.color {
            ColorChoice::Auto => terminal && !set("NO_COLOR"),
            ColorChoice::Always => true,
            ColorChoice::Never => false,
        };
        Self(Arc::new(Inner {
            out: Mutex::new(Box::new(io::stdout())),
            err: Mutex::new(Box::new(io::stderr())),
            colored,
            verbosity: options.verbosity,
            bars: terminal.then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr())),
        }))
    }

    /// A printer into memory, as onto no terminal; for tests.
    pub fn captured(options: UiOptions) -> (Self, Captured) {
        let captured = Captured::default();
        let printer = Self::to(options, Box::new(captured.out.clone()), Box::new(captured.err.clone()));
        (printer, captured)
    }

    fn to(options: UiOptions, out: Box<dyn Write + Send>, err: Box<dyn Write + Send>) -> Self {
        Self(Arc::new(Inner {
            out: Mutex::new(out),
            err: Mutex::new(err),
            colored: options.color == ColorChoice::Always,
            verbosity: options.verbosity,
            bars: None,
        }))
    }

    /// Prints a result on stdout, and ends its line.
    ///
    /// # Errors
    /// Stdout is closed or cannot be written; pass it on, [`Printer::conclude`] knows what to do.
    pub fn result(&self, text: &str) -> Result<(), OutputError> {
        let end = if text.ends_with('\n') { "" } else { "\n" };
        self.write_out(&format!("{text}{end}"))
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
        self.write_out(piece)
    }

    fn write_out(&self, text: &str) -> Result<(), OutputError> {
        let written = self.over_bars(|| {
            let mut out = lock(&self.0.out);
            out.write_all(text.as_bytes()).and_then(|()| out.flush())
        });
        written.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => OutputError::Closed,
            _ => OutputError::Io(error),
        })
    }

    /// Says what is being done, on stderr.
    pub fn note(&self, text: impl Display) {
        if self.0.verbosity >= Verbosity::Normal {
            self.write_err(&text.to_string());
        }
    }

    /// Says more, where asked for.
    pub fn detail(&self, text: impl Display) {
        if self.0.verbosity >= Verbosity::Verbose {
            self.write_err(&text.to_string());
        }
    }

    /// Warns; also when quiet.
    pub fn warn(&self, text: impl Display) {
        let text = text.to_string();
        self.write_err(&format!("{} {text}", self.paint(YELLOW, "warning:")));
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
                self.paint(RED, "error:")
            } else {
                format!("  {}", self.paint(RED, "caused by:"))
            };
            // Inner lines of a report have their own indentation, and their hints the colour of ours.
            let mut inner = message.lines();
            lines.push(format!("{label} {}", inner.next().unwrap_or_default()));
            lines.extend(inner.map(|line| match line.trim_start().strip_prefix("hint:") {
                Some(hint) => {
                    let indent = &line[..line.len() - line.trim_start().len()];
                    format!("{indent}{}{hint}", self.paint(CYAN, "hint:"))
                }
                None => line.to_string(),
            }));
        }
        lines.extend(hints.iter().map(|hint| format!("  {} {hint}", self.paint(CYAN, "hint:"))));
        self.write_err(&lines.join("\n"));
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
        Progress::new(self.clone(), label, total.into(), unit)
    }

    /// How much is said.
    pub fn verbosity(&self) -> Verbosity {
        self.0.verbosity
    }

    pub(super) fn bars(&self) -> Option<&MultiProgress> {
        self.0.bars.as_ref()
    }

    /// Lines on stderr, wrapped for a terminal and left alone for a file. A closed stderr is nobody's concern.
    pub(super) fn write_err(&self, text: &str) {
        let text = match self.0.bars {
            Some(_) => text.lines().map(wrap_line).collect::<Vec<_>>().join("\n"),
            None => text.to_string(),
        };
        self.over_bars(|| {
            let mut err = lock(&self.0.err);
            let _ = err.write_all(format!("{text}\n").as_bytes()).and_then(|()| err.flush());
        });
    }

    /// Takes the bars off the screen while something else is printed.
    fn over_bars<R>(&self, print: impl FnOnce() -> R) -> R {
        match &self.0.bars {
            Some(bars) => bars.suspend(print),
            None => print(),
        }
    }

    fn paint(&self, color: &str, text: &str) -> String {
        if self.0.colored { format!("{color}{text}\x1b[0m") } else { text.to_string() }
    }
}

const RED: &str = "\x1b[1;31m";
const YELLOW: &str = "\x1b[1;33m";
const CYAN: &str = "\x1b[36m";

/// Words of a long line go to further lines with its own indentation; aligned lines are left alone.
fn wrap_line(line: &str) -> String {
    let body = line.trim_start();
    if line.chars().count() <= WIDTH || body.contains("  ") || body.contains('\x1b') {
        return line.to_string();
    }
    wrap(line, WIDTH, &" ".repeat(line.len() - body.len() + 2))
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
    use super::*;
    use anyhow::{Context, anyhow};

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
        Printer::to(UiOptions::default(), Box::new(Failing(kind)), Box::new(Failing(kind)))
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

    #[test]
    fn long_lines_are_wrapped_for_a_terminal_with_their_indentation() {
        let text = wrap_line(&format!("  {}", "word ".repeat(30).trim_end()));
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH));
        assert!(text.lines().skip(1).all(|line| line.starts_with("    word")));
        let aligned = format!("a  {}", "b ".repeat(60));
        assert_eq!(wrap_line(&aligned), aligned);
    }
}
