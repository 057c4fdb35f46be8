//! `sworn completions` and `sworn man`: what shells and `man` want of the command tree.

use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap::{Command, CommandFactory};
use clap_complete::Shell;

use crate::args::Cli;
use crate::fault::{Doing, Result};
use crate::output::note;
use crate::settings::Settings;

/// The shell's completions, on stdout.
pub(super) fn completions(settings: &Settings, shell: Shell) -> Result<ExitCode> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "sworn", &mut text);
    settings.out.stream(&String::from_utf8_lossy(&text))?;
    Ok(ExitCode::SUCCESS)
}

/// A page for every verb, in a directory.
pub(super) fn pages(dir: &Path) -> Result<ExitCode> {
    std::fs::create_dir_all(dir).doing(|| format!("cannot create {}", dir.display()))?;
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let written = write(&command, "sworn", dir).doing(|| format!("cannot write to {}", dir.display()))?;
    note(format!("{written} pages in {}: `man -l {}`", dir.display(), dir.join("sworn.1").display()));
    Ok(ExitCode::SUCCESS)
}

fn write(command: &Command, name: &str, dir: &Path) -> io::Result<usize> {
    let mut text = Vec::new();
    // Leaked: a command's name lives as long as the program, and there are some dozens.
    let named: &'static str = Box::leak(name.to_owned().into_boxed_str());
    clap_mangen::Man::new(command.clone().name(named)).render(&mut text)?;
    std::fs::write(dir.join(format!("{name}.1")), text)?;
    let verbs = command.get_subcommands().filter(|c| !c.is_hide_set());
    verbs.map(|c| write(c, &format!("{name}-{}", c.get_name()), dir)).sum::<io::Result<usize>>().map(|n| n + 1)
}
