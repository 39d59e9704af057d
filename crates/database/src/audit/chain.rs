//! The hash of an entry, as `verbatim_audit_hash()` in `migrations/0003_audit.sql` computes it.

use chrono::{DateTime, Utc};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::rows::from_row;

/// An entry with its place in its chain.
#[derive(Debug, Clone)]
pub(super) struct ChainedEntry {
    pub(super) chain: Uuid,
    pub(super) n: i64,
    pub(super) id: i64,
    pub(super) at: DateTime<Utc>,
    pub(super) actor: String,
    pub(super) action: String,
    pub(super) tenant_id: Option<String>,
    pub(super) subject: Option<String>,
    /// As text: its bytes are hashed.
    pub(super) detail: Option<String>,
    pub(super) hash: Vec<u8>,
}

from_row! { ChainedEntry: chain, n, id, at, actor, action, tenant_id, subject, detail, hash }

/// The columns of a [`ChainedEntry`].
pub(super) const CHAINED: &str =
    "chain, n, id, at, actor, action, tenant_id, subject, detail::text AS detail, hash";

impl ChainedEntry {
    /// Its hash after an entry with the hash `previous`, which is empty for the first.
    pub(super) fn hash_after(&self, previous: &[u8]) -> Vec<u8> {
        hash(
            previous,
            [
                Some(self.chain.to_string().as_str()),
                Some(&self.n.to_string()),
                Some(&self.id.to_string()),
                Some(&self.at.timestamp_micros().to_string()),
                Some(&self.actor),
                Some(&self.action),
                self.tenant_id.as_deref(),
                self.subject.as_deref(),
                self.detail.as_deref(),
            ],
        )
    }
}

/// SHA-256 of the hash before and of these values, each with its length, so that no two lists of values give the same text.
pub(super) fn hash<const N: usize>(previous: &[u8], values: [Option<&str>; N]) -> Vec<u8> {
    let mut hash = Sha256::new_with_prefix(previous);
    for value in values {
        match value {
            Some(value) => hash.update(format!("{}:{value}", value.len())),
            None => hash.update("-"),
        }
    }
    hash.finalize().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Entries that were written stay valid.
    #[test]
    fn the_hash_of_an_entry_is_fixed() {
        let entry = ChainedEntry {
            chain: Uuid::nil(),
            n: 2,
            id: 7,
            at: DateTime::from_timestamp_micros(1_764_500_000_000_001).unwrap(),
            actor: "ops@night".to_owned(),
            action: "dead_letter.discard".to_owned(),
            tenant_id: Some("acmé".to_owned()),
            subject: None,
            detail: Some("{\"why\": \"test\"}".to_owned()),
            hash: Vec::new(),
        };
        let hex: String = entry.hash_after(&[1; 32]).iter().map(|it| format!("{it:02x}")).collect();
        assert_eq!(hex, "d516a863bbd75a8a436e9c8a2cac9d9d91084ef03895b98510c4df477b962a00");
        let moved = ChainedEntry { n: 3, ..entry.clone() };
        let renamed =
            ChainedEntry { subject: entry.tenant_id.clone(), tenant_id: None, ..entry.clone() };
        for other in [moved, renamed] {
            assert_ne!(other.hash_after(&[1; 32]), entry.hash_after(&[1; 32]));
        }
    }
}
