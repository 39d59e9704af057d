//! Passwords, and files that hold them.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use uuid::Uuid;

/// The user name on every private server.
pub(super) const USER: &str = "verbatim";

/// A random password.
pub(super) fn secret() -> String {
    Uuid::new_v4().simple().to_string()
}

/// Writes a file that only its owner can read. Secrets go into files because every user can read the
/// arguments of a process.
pub(super) fn write_secret(file: &Path, text: &str) -> Result<()> {
    let write = || {
        let mut options = OpenOptions::new();
        options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(file)?
            .write_all(text.as_bytes())
    };
    write().with_context(|| format!("{} cannot be written", file.display()))
}

/// Removes a directory if it exists.
pub(super) fn remove(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{} cannot be removed", dir.display()))
        }
        _ => Ok(()),
    }
}
