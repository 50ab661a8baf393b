//! `calm man`: a page of the manual for each command.

use std::path::Path;

use anyhow::Result;
use clap::{Command, CommandFactory};
use clap_mangen::Man;

use super::write_new;
use crate::args::{Cli, ManArgs};
use crate::ui::Printer;
use crate::version::VERSION;

/// Runs the command.
pub fn run(args: &ManArgs, printer: &Printer) -> Result<()> {
    let mut program = Cli::command().disable_help_subcommand(true);
    // Gives the commands inside their whole names: `calm-eval-brierlm`.
    program.build();
    let mut written = 0;
    pages(&program, &args.folder, &mut written)?;
    let folder = args.folder.display();
    printer.note(format!("wrote {written} pages to {folder}; `man -l FILE` shows one"));
    Ok(())
}

/// Writes the page of a command and those of the commands inside.
fn pages(command: &Command, folder: &Path, written: &mut usize) -> Result<()> {
    let man = Man::new(command.clone()).source(format!("calm {VERSION}"));
    let mut page = Vec::new();
    man.render(&mut page)?;
    write_new(&folder.join(man.get_filename()), &page)?;
    *written += 1;
    command.get_subcommands().try_for_each(|inner| pages(inner, folder, written))
}
