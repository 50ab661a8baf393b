//! `calm watch`: runs as they are trained.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::Result;
use ratatui::crossterm::event::{self, Event, KeyEventKind};

use super::runs;
use crate::args::WatchArgs;
use crate::error::Hinted;
use crate::stop::Stop;
use crate::ui::{Align, Printer, Table};
use crate::watch::{Followed, HEADERS, Next, View, row};

/// How often keys are looked for.
const GLANCE: Duration = Duration::from_millis(200);

/// Runs the command.
pub fn run(args: &WatchArgs, stop: &Stop, printer: &Printer) -> Result<()> {
    let mut runs: Vec<Followed> =
        runs::named_or_at_work(&args.folders)?.iter().map(|f| Followed::new(f)).collect();
    runs.iter_mut().for_each(Followed::refresh);
    if args.once || !std::io::stdout().is_terminal() {
        return once(&runs, printer);
    }
    let colors = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let every = Duration::from_secs_f64(args.every);
    stop.left_to_others(true);
    let mut terminal = ratatui::try_init().map_err(|e| {
        ratatui::restore();
        stop.left_to_others(false);
        Hinted::new(format!("this terminal cannot be drawn on: {e}"), "--once prints a table instead")
    })?;
    let watched = watch(View::new(runs, colors), &mut terminal, every, stop);
    ratatui::restore();
    stop.left_to_others(false);
    match watched? {
        Next::Interrupt => crate::stop::leave(stop.code()),
        Next::Draw | Next::Quit => Ok(()),
    }
}

/// Draws until somebody has seen enough.
fn watch(
    mut view: View,
    terminal: &mut ratatui::DefaultTerminal,
    every: Duration,
    stop: &Stop,
) -> Result<Next> {
    let mut looked = Instant::now();
    loop {
        if stop.asked() {
            return Ok(Next::Interrupt);
        }
        terminal.draw(|frame| view.draw(frame))?;
        // What is typed is drawn at once, what the runs write when it is time.
        while !event::poll(GLANCE)? {
            if stop.asked() {
                return Ok(Next::Interrupt);
            }
            if looked.elapsed() >= every {
                view.runs.iter_mut().for_each(Followed::refresh);
                looked = Instant::now();
                break;
            }
        }
        if !event::poll(Duration::ZERO)? {
            continue;
        }
        if let Event::Key(key) = event::read()?
            && key.kind != KeyEventKind::Release
        {
            match view.key(key) {
                Next::Draw => {}
                end @ (Next::Quit | Next::Interrupt) => return Ok(end),
            }
        }
    }
}

/// The same as a table, for pipes and logs.
fn once(runs: &[Followed], printer: &Printer) -> Result<()> {
    let mut table = Table::new(&HEADERS).align(&[
        Align::Left,
        Align::Right,
        Align::Right,
        Align::Right,
        Align::Right,
        Align::Left,
    ]);
    for run in runs {
        table.row(row(run));
    }
    Ok(printer.table(&table)?)
}
