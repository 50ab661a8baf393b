//! What a model is compared with: compressors of this machine, if it has them, and counts of bytes.

use std::io::{self, Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::bytes;

/// Programs that compress what they are given, with their arguments.
const PROGRAMS: [(&str, &str, &[&str]); 3] = [
    ("xz -9e", "xz", &["-9e", "-c", "-T1"]),
    ("zstd -19 --ultra", "zstd", &["-19", "--ultra", "-c", "-q"]),
    ("brotli", "brotli", &["-q", "11", "-c"]),
];

/// Orders of the counts.
const ORDERS: [usize; 2] = [2, 5];

/// What a rival made of some bytes.
#[derive(Clone, Debug)]
pub struct Rival {
    /// Its name.
    pub name: String,
    /// The length that it reached; None where it is not installed, or failed.
    pub bytes: Option<usize>,
    /// How long it took.
    pub time: Duration,
}

/// Each rival on these bytes.
pub fn all(input: &[u8]) -> Vec<Rival> {
    let timed = |name: String, run: &dyn Fn() -> Option<usize>| {
        let begin = Instant::now();
        Rival { name, bytes: run(), time: begin.elapsed() }
    };
    let programs = PROGRAMS.iter().map(|(name, program, arguments)| {
        timed((*name).to_owned(), &|| through(program, arguments, input).ok())
    });
    let counts = ORDERS
        .iter()
        .map(|order| timed(format!("order-{order} counts"), &|| Some(bytes::encode(input, *order).len())));
    programs.chain(counts).collect()
}

/// How many bytes a program writes for these.
fn through(program: &str, arguments: &[&str], input: &[u8]) -> io::Result<usize> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let mut out = Vec::new();
    std::thread::scope(|scope| {
        // It may write before it has read everything.
        if let Some(mut stdin) = stdin {
            scope.spawn(move || stdin.write_all(input));
        }
        stdout.map_or(Ok(0), |mut stdout| stdout.read_to_end(&mut out))
    })?;
    if child.wait()?.success() { Ok(out.len()) } else { Err(io::Error::other("it failed")) }
}
