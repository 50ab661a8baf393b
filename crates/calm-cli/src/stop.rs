//! Signals: SIGINT (Ctrl-C), SIGTERM, SIGHUP and SIGQUIT ask to stop.
//!
//! The first one waits for whoever can end with its work saved: a stage that is trained stops after its step, with a
//! checkpoint, and a process that waits for another one hands it on. Everything else ends at once, and so does everything
//! at the second one; of several processes in the first seconds only one counts. The exit code is 128 and the signal, as shells have it: 130 for Ctrl-C, 143 for SIGTERM.
//!
//! A process that this program starts holds the other end of a pipe as its standard input: when the parent ends, however
//! that comes, the pipe is closed, and the child stops as at SIGTERM.

use std::io::Read;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::ui::Printer;

/// Tells a child that its standard input is its parent's life.
pub const LEASH: &str = "CALM_PARENT_IS_STDIN";
/// Number of SIGINT on every system.
const INTERRUPT: i32 = 2;
/// Number of SIGTERM on every system.
const TERMINATE: i32 = 15;
/// How long signals to one of several processes count as one.
const ONCE: Duration = Duration::from_secs(3);

/// Whether somebody asked to stop, and who is to be told.
#[derive(Clone, Default)]
pub struct Stop(Arc<State>);

#[derive(Default)]
struct State {
    /// The first signal; 0: none.
    signal: AtomicI32,
    /// Whether somebody looks, and ends with its work saved.
    patient: AtomicBool,
    /// What is said then, where it is not that a stage ends with a checkpoint.
    says: Mutex<Option<&'static str>>,
    /// Whether somebody looks, and puts the screen in order before the end.
    left: AtomicBool,
    /// Whether this is one of several processes that a launcher started.
    joined: bool,
    /// When it came.
    since: OnceLock<Instant>,
    children: Mutex<Children>,
    /// Children that hear of the first signal otherwise, and are ended at the second.
    last: Mutex<Last>,
}

/// Children that are ended at the second signal.
#[derive(Default)]
pub enum Last {
    /// None.
    #[default]
    Nobody,
    /// One that ends its own children when it is asked to stop.
    Asked(u32),
    /// Those that would wait for each other: what they have saved is whole.
    Killed(Vec<u32>),
}

impl Last {
    fn end(&self) {
        match self {
            Self::Nobody => {}
            Self::Asked(id) => terminate(*id),
            Self::Killed(ids) => ids.iter().for_each(|id| kill(*id)),
        }
    }
}

/// Processes that work for this one.
#[derive(Default)]
struct Children {
    ids: Vec<u32>,
    /// Whether those that were there were asked to stop.
    told: bool,
}

impl Children {
    fn tell(&mut self) {
        self.told = true;
        self.ids.iter().for_each(|id| terminate(*id));
    }
}

/// Ends the process at once. Not by way of exit handlers: a GPU's driver frees there what its other threads use.
pub fn leave(code: u8) -> ! {
    #[cfg(unix)]
    signal_hook::low_level::exit(i32::from(code));
    #[cfg(not(unix))]
    std::process::exit(i32::from(code));
}

impl Stop {
    /// Listens from now on.
    pub fn listen(printer: &Printer) -> Self {
        let joined = calm_parallel::World::here().is_ok_and(|world| world.size > 1);
        let stop = Self(Arc::new(State { joined, ..State::default() }));
        catch(&stop, printer);
        // Of several processes only the first has the standard input; it tells the others.
        if std::env::var_os(LEASH).is_some() && calm_parallel::speaks() {
            let (stop, printer) = (stop.clone(), printer.clone());
            let watch = move || {
                let mut nothing = [0; 64];
                while std::io::stdin().read(&mut nothing).is_ok_and(|n| n > 0) {}
                stop.hear(TERMINATE, &printer);
            };
            // Without a thread a child outlives a parent that was killed, and does its work.
            let _ = std::thread::Builder::new().name("parent".into()).spawn(watch);
        }
        stop
    }

    fn hear(&self, signal: i32, printer: &Printer) {
        let first = self.0.signal.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        let since = *self.0.since.get_or_init(Instant::now);
        if !first && self.0.joined && since.elapsed() < ONCE {
            // A scheduler tells every process, and a launcher tells its own once more.
            return;
        }
        let alone = {
            let mut children = self.children();
            children.tell();
            children.ids.is_empty()
        };
        let patient = self.0.patient.load(Ordering::SeqCst);
        if first && self.0.left.load(Ordering::SeqCst) {
            return;
        }
        if self.0.left.load(Ordering::SeqCst) {
            // Whoever was to do it does not.
            ratatui::restore();
        }
        if !first || (alone && !patient) {
            if !first {
                self.0.last.lock().unwrap_or_else(PoisonError::into_inner).end();
            }
            if first {
                printer.note("stopped");
            }
            leave(self.code());
        }
        if patient {
            let says = *self.0.says.lock().unwrap_or_else(PoisonError::into_inner);
            let training = "stopping after this step with a checkpoint; once more to stop at once";
            printer.warn(says.unwrap_or(training));
        }
    }

    fn children(&self) -> MutexGuard<'_, Children> {
        self.0.children.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether somebody asked.
    pub fn asked(&self) -> bool {
        self.0.signal.load(Ordering::SeqCst) != 0
    }

    /// The exit code of a process that was asked to stop.
    pub fn code(&self) -> u8 {
        let signal = match self.0.signal.load(Ordering::SeqCst) {
            0 => INTERRUPT,
            signal => signal,
        };
        u8::try_from(128 + signal).unwrap_or(u8::MAX)
    }

    /// Takes over the signal of a child that was stopped by somebody else, told by its exit code, and hands it on to the other
    /// children. False if it was not stopped.
    pub fn was_stopped(&self, code: Option<i32>) -> bool {
        let signal = code.map_or(0, |code| code - 128);
        if !SIGNALS.contains(&signal) {
            return false;
        }
        if self.0.signal.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
            self.children().tell();
        }
        true
    }

    /// Whether somebody looks at [`Stop::asked`] often, and ends with its work saved.
    pub fn patient(&self, patient: bool) {
        self.0.patient.store(patient, Ordering::SeqCst);
    }

    /// Says this at a signal that whoever is patient hears; none: that a stage ends with a checkpoint.
    pub fn says(&self, text: Option<&'static str>) {
        *self.0.says.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }

    /// Whether somebody looks at [`Stop::asked`] often, and ends at once with the screen put in order.
    pub fn left_to_others(&self, left: bool) {
        self.0.left.store(left, Ordering::SeqCst);
    }

    /// Starts a process that gets what stops this one, and ends with it. It lives as long as what is returned with it.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&self, command: &mut Command) -> std::io::Result<(Child, Option<ChildStdin>)> {
        let mut children = self.children();
        let mut child = command.env(LEASH, "1").stdin(Stdio::piped()).spawn()?;
        children.ids.push(child.id());
        // A stop that came before it was there to be told.
        if children.told {
            terminate(child.id());
        }
        drop(children);
        let leash = child.stdin.take();
        Ok((child, leash))
    }

    /// A second signal ends these processes too.
    pub fn ends_at_once(&self, last: Last) {
        *self.0.last.lock().unwrap_or_else(PoisonError::into_inner) = last;
    }

    /// The child of this process id has ended.
    pub fn ended(&self, id: u32) {
        self.children().ids.retain(|child| *child != id);
    }
}

/// Signals that ask to stop: SIGHUP, SIGINT, SIGQUIT, SIGTERM.
const SIGNALS: [i32; 4] = [1, INTERRUPT, 3, TERMINATE];

#[cfg(unix)]
fn catch(stop: &Stop, printer: &Printer) {
    // What was ignored before this program began stays ignored: nohup, and jobs in the background of a script.
    let wanted = SIGNALS.into_iter().filter(|signal| *signal == TERMINATE || !ignored(*signal));
    let (stop, printer) = (stop.clone(), printer.clone());
    let Ok(mut signals) = signal_hook::iterator::Signals::new(wanted) else { return };
    let listen = move || signals.forever().for_each(|signal| stop.hear(signal, &printer));
    let _ = std::thread::Builder::new().name("signals".into()).spawn(listen);
}

#[cfg(unix)]
fn ignored(signal: i32) -> bool {
    // SAFETY: a null new action only asks; `old` is written by the call, and plain data.
    unsafe {
        let mut old: nix::libc::sigaction = std::mem::zeroed();
        nix::libc::sigaction(signal, std::ptr::null(), &mut old) == 0
            && old.sa_sigaction == nix::libc::SIG_IGN
    }
}

#[cfg(not(unix))]
fn catch(stop: &Stop, printer: &Printer) {
    let (stop, printer) = (stop.clone(), printer.clone());
    let _ = ctrlc::set_handler(move || stop.hear(INTERRUPT, &printer));
}

/// Asks a process to stop.
fn terminate(id: u32) {
    #[cfg(unix)]
    send(id, nix::sys::signal::Signal::SIGTERM);
    // Elsewhere the console tells all its processes itself.
    #[cfg(not(unix))]
    let _ = id;
}

/// Ends a process.
fn kill(id: u32) {
    #[cfg(unix)]
    send(id, nix::sys::signal::Signal::SIGKILL);
    #[cfg(not(unix))]
    let _ = id;
}

#[cfg(unix)]
fn send(id: u32, signal: nix::sys::signal::Signal) {
    if let Ok(id) = i32::try_from(id) {
        // One that has ended is not there to be told.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), signal);
    }
}
