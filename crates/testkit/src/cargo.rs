//! Calling cargo from within a program that cargo runs.

use std::process::Command;

use crate::place;

/// What cargo tells a program that it runs about the program's own package. Passed on, it would look
/// to build scripts that read it (ring's does) like a change, and most dependencies would be compiled
/// again at every call.
fn is_about_the_caller(name: &str) -> bool {
    const PREFIX: &str = "CARGO_PKG_";
    const NAMES: [&str; 7] = [
        "CARGO_BIN_NAME",
        "CARGO_CRATE_NAME",
        "CARGO_MANIFEST_DIR",
        "CARGO_MANIFEST_LINKS",
        "CARGO_MANIFEST_PATH",
        "CARGO_PRIMARY_PACKAGE",
        "OUT_DIR",
    ];
    name.starts_with(PREFIX) || NAMES.contains(&name)
}

/// A cargo command in the workspace; it is the cargo that runs this.
#[must_use]
pub fn command(arguments: &[&str]) -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(arguments).current_dir(place::workspace());
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(is_about_the_caller) {
            command.env_remove(name);
        }
    }
    command
}
