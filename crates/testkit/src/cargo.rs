//! Runs cargo from a program that cargo itself has started.

use std::process::Command;

use crate::place;

/// Whether cargo has set this variable for the package of the running program, or `cargo xtask test` for the
/// running test. If it were passed on, build scripts that read it (as ring's does) would run again, and most
/// dependencies would be recompiled at every call.
fn describes_the_caller(name: &str) -> bool {
    const PREFIX: &str = "CARGO_PKG_";
    const NAMES: [&str; 8] = [
        "CARGO_BIN_NAME",
        "CARGO_CRATE_NAME",
        "CARGO_MANIFEST_DIR",
        "CARGO_MANIFEST_LINKS",
        "CARGO_MANIFEST_PATH",
        "CARGO_PRIMARY_PACKAGE",
        "OUT_DIR",
        "RUSTC_BOOTSTRAP",
    ];
    name.starts_with(PREFIX) || NAMES.contains(&name)
}

/// A command of the running cargo (`CARGO`), in the workspace.
#[must_use]
pub fn command(arguments: &[&str]) -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(arguments).current_dir(place::workspace());
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(describes_the_caller) {
            command.env_remove(name);
        }
    }
    command
}
