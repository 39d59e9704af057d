//! `verbatim`: sets up, publishes to and inspects a fleet.
//!
//! To add a command: a file under `commands/` with its arguments, its work and its two outputs (text
//! and JSON), and a line in `cli.rs`.

mod actor;
mod cli;
mod commands;
mod exit;
mod input;
mod output;
mod validator;
mod values;
mod warnings;

use std::process::ExitCode;

use service::settings::Sources;

fn main() -> ExitCode {
    cli::run(Sources::of_this_process())
}
