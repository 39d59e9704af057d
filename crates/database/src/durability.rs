//! Whether a server keeps what it reports as committed, and can store every text.
//!
//! Checked when a worker starts and by `verbatim setup`. `synchronous_commit` is not checked: every connection raises
//! it (`connection_settings.rs`). `fsync` and `full_page_writes` cannot be set for a connection.

use crate::{Database, SchemaError};

/// What the settings of a server must promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequiredDurability {
    /// A commit survives a crash of the machine: `fsync` and `full_page_writes` are on.
    Durable,
    /// It survives at least a crash of PostgreSQL. For tests, and for storage that does by itself what these settings
    /// do.
    Any,
}

impl Database {
    /// Fails if the database cannot store every text, or if the server's settings do not promise what is required.
    pub async fn verify_server(&self, required: RequiredDurability) -> Result<(), SchemaError> {
        let query = sqlx::query_as(
            "SELECT current_setting('server_encoding'), current_setting('fsync'),
                    current_setting('full_page_writes')",
        );
        let (encoding, fsync, full_page_writes): (String, String, String) =
            self.value(query).await?;
        if encoding != "UTF8" {
            return Err(SchemaError::Encoding(encoding));
        }
        let off = [("fsync", fsync), ("full_page_writes", full_page_writes)];
        let off = off.into_iter().filter(|(_, value)| value != "on");
        let off: Vec<String> = off.map(|(name, value)| format!("{name} = {value}")).collect();
        if required == RequiredDurability::Durable && !off.is_empty() {
            return Err(SchemaError::NotDurable(off.join(" and ")));
        }
        Ok(())
    }
}
