//! Stdout and stderr: what may be said on them, in colour or not, over progress bars or as plain lines.

use super::WIDTH;
use super::format::wrap;
use super::visible::visible;
use indicatif::{MultiProgress, ProgressDrawTarget};
use std::fmt::{self, Display};
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How much is said on stderr.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Errors only: one of several processes, of which another one speaks.
    Silent,
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

/// The two streams of a process, and how they are written to. All methods may be called from any thread.
pub(super) struct Streams {
    out: Mutex<Box<dyn Write + Send>>,
    err: Mutex<Box<dyn Write + Send>>,
    /// Whether stdout is a terminal, which acts on control characters.
    out_is_terminal: bool,
    colored: bool,
    verbosity: Verbosity,
    /// The bars on the screen; `None` where stderr is no terminal.
    bars: Option<MultiProgress>,
}

/// What a captured printer has printed.
#[derive(Clone, Debug, Default)]
pub struct Captured {
    out: Shared,
    err: Shared,
}

impl Captured {
    /// Writers of stdout and stderr.
    pub(super) fn writers(&self) -> (Box<dyn Write + Send>, Box<dyn Write + Send>) {
        (Box::new(self.out.clone()), Box::new(self.err.clone()))
    }

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

impl Streams {
    /// Those of the process.
    pub(super) fn of_process(options: UiOptions) -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let terminal = io::stderr().is_terminal() && !dumb;
        let colored = match options.color {
            ColorChoice::Auto => terminal && !set("NO_COLOR"),
            ColorChoice::Always => true,
            ColorChoice::Never => false,
        };
        Self {
            out: Mutex::new(Box::new(io::stdout())),
            err: Mutex::new(Box::new(io::stderr())),
            out_is_terminal: io::stdout().is_terminal(),
            colored,
            verbosity: options.verbosity,
            bars: terminal.then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr())),
        }
    }

    /// Any two, as of no terminal.
    pub(super) fn to(options: UiOptions, out: Box<dyn Write + Send>, err: Box<dyn Write + Send>) -> Self {
        Self {
            out: Mutex::new(out),
            err: Mutex::new(err),
            out_is_terminal: false,
            colored: options.color == ColorChoice::Always,
            verbosity: options.verbosity,
            bars: None,
        }
    }

    /// How much is said.
    pub(super) fn verbosity(&self) -> Verbosity {
        self.verbosity
    }

    /// Text on stdout: as it is for a file or a pipe, with control characters spelled out on a terminal.
    pub(super) fn write_out(&self, text: &str) -> Result<(), OutputError> {
        let text = if self.out_is_terminal { visible(text) } else { text.into() };
        let written = self.over_bars(|| {
            let mut out = lock(&self.out);
            out.write_all(text.as_bytes()).and_then(|()| out.flush())
        });
        written.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => OutputError::Closed,
            _ => OutputError::Io(error),
        })
    }

    pub(super) fn bars(&self) -> Option<&MultiProgress> {
        self.bars.as_ref()
    }

    /// Lines on stderr, wrapped for a terminal and left alone for a file. A closed stderr is nobody's concern.
    pub(super) fn write_err(&self, text: &str) {
        let text = match self.bars {
            Some(_) => text.lines().map(wrap_line).collect::<Vec<_>>().join("\n"),
            None => text.to_string(),
        };
        self.over_bars(|| {
            let mut err = lock(&self.err);
            let _ = err.write_all(format!("{text}\n").as_bytes()).and_then(|()| err.flush());
        });
    }

    /// Takes the bars off the screen while something else is printed.
    fn over_bars<R>(&self, print: impl FnOnce() -> R) -> R {
        match &self.bars {
            Some(bars) => bars.suspend(print),
            None => print(),
        }
    }

    /// A text in a colour, where colours are used.
    pub(super) fn paint(&self, color: &str, text: &str) -> String {
        if self.colored { format!("{color}{text}\x1b[0m") } else { text.to_string() }
    }
}

pub(super) const RED: &str = "\x1b[1;31m";
pub(super) const YELLOW: &str = "\x1b[1;33m";
pub(super) const CYAN: &str = "\x1b[36m";

/// Words of a long line go to further lines with its own indentation; aligned lines are left alone.
fn wrap_line(line: &str) -> String {
    let body = line.trim_start();
    if line.chars().count() <= WIDTH || body.contains("  ") || body.contains('\x1b') {
        return line.to_string();
    }
    wrap(line, WIDTH, &" ".repeat(line.len() - body.len() + 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_gets_no_control_characters_and_a_pipe_the_text_as_it_is() {
        for (out_is_terminal, expected) in [(true, "a\\u{1b}[31m\n"), (false, "a\x1b[31m\n")] {
            let captured = Captured::default();
            let (out, err) = captured.writers();
            let streams = Streams { out_is_terminal, ..Streams::to(UiOptions::default(), out, err) };
            streams.write_out("a\x1b[31m\n").unwrap();
            assert_eq!(captured.out(), expected);
        }
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
