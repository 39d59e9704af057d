//! `cargo xtask chaos`: random faults under load, and a check that no message is lost. The program `chaos`
//! of the system tests does the work.

use anyhow::Result;
use testkit::fleet::BUILT;
use testkit::place;
use testkit::servers::Kind;

use crate::{cargo, packages};

/// The options of `cargo xtask chaos`, which are passed to `chaos`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Arguments of the program `chaos`: `--messages N`, `--minutes M`, `--seed S`, `--json`; see `--help`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTIONS")]
    arguments: Vec<String>,
}

/// Builds the fleet, and runs the program.
pub(crate) async fn run(options: &Options) -> Result<()> {
    packages::ensure_servers(&Kind::ALL).await?;
    cargo::run(cargo::command(&["build", "--workspace", "--bins"])).await?;
    let mut chaos = std::process::Command::new(place::profile_dir().join("chaos"));
    chaos.args(&options.arguments).env(BUILT, "1");
    cargo::run(chaos).await
}
