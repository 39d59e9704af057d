//! `cargo xtask chaos`: the proof that nothing is lost, run by a program of the system tests.

use anyhow::Result;
use testkit::fleet::BUILT;
use testkit::place;
use testkit::servers::Kind;

use crate::{cargo, packages};

/// What is passed on.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// `--messages N`, `--minutes M`, `--seed S`, `--json`; `--help` tells more
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTIONS")]
    arguments: Vec<String>,
}

/// Builds the fleet, and lets the program break it.
pub(crate) async fn run(options: &Options) -> Result<()> {
    packages::ensure_servers(&Kind::ALL).await?;
    cargo::run(cargo::command(&["build", "--workspace", "--bins"])).await?;
    let mut chaos = std::process::Command::new(place::profile_dir().join("chaos"));
    chaos.args(&options.arguments).env(BUILT, "1");
    cargo::run(chaos).await
}
