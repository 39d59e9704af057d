//! The user that PostgreSQL runs as.

use anyhow::{Context, Result, bail};

use crate::place;

/// The user and group that the server runs as.
#[derive(Debug, Clone, Copy)]
pub(super) struct User {
    pub(super) id: u32,
    pub(super) group: u32,
}

/// The user to run as; `None` is the user of this process.
pub(super) fn user() -> Result<Option<User>> {
    if place::user_id()? != 0 {
        return Ok(None);
    }
    let users = std::fs::read_to_string("/etc/passwd")?;
    let fields = users
        .lines()
        .find_map(|line| line.strip_prefix("postgres:"))
        .context("PostgreSQL refuses to run as root, and there is no user `postgres`")?;
    let mut numbers = fields.split(':').skip(1).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(id)), Some(Ok(group))) => Ok(Some(User { id, group })),
        _ => bail!("the user `postgres` has no numeric ids"),
    }
}
