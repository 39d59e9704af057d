//! The signature with which the conversation-api says, in each transaction, whose rows it may see.
//!
//! Row-level security reads the tenant from the setting `verbatim.tenant` (`migrations/0002_access.sql`). The setting is the
//! HMAC-SHA-256 of the tenant in hexadecimal digits, a colon, and the tenant. A statement that was injected into the
//! API has no key, so it cannot name another tenant. The value is bound as a parameter, so that no other session of the
//! role reads it in `pg_stat_activity`.

use std::fmt::Write as _;

use domain::ids::TenantId;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// The block of SHA-256, to which HMAC pads its key (RFC 2104).
const BLOCK: usize = 64;

/// A key for signatures. It is derived from `API_SECRET`, never that secret itself.
#[derive(Clone)]
pub struct TenantKey([u8; 32]);

impl TenantKey {
    /// A key of these bytes.
    #[must_use]
    pub fn new(key: [u8; 32]) -> Self {
        Self(key)
    }

    /// The value of `verbatim.tenant` for this tenant.
    pub(crate) fn signed(&self, tenant: &TenantId) -> String {
        self.signed_name(tenant.as_str())
    }

    /// The value for every tenant, and for what is of no tenant: an empty name, which no tenant has.
    pub(crate) fn signed_for_every_tenant(&self) -> String {
        self.signed_name("")
    }

    /// A chain of the audit log, for `verbatim_audit`. No tenant's name has a line feed, so neither stands for the other.
    pub(crate) fn signed_audit_chain(&self, chain: Uuid) -> String {
        self.signed_name(&format!("audit chain\n{chain}"))
    }

    fn signed_name(&self, name: &str) -> String {
        let mut hmac = Hmac::<Sha256>::new(&self.block(0).into());
        hmac.update(name.as_bytes());
        let mut signed = String::with_capacity(2 * 32 + 1 + name.len());
        for byte in hmac.finalize().into_bytes() {
            // Writing to a `String` does not fail.
            write!(signed, "{byte:02x}").ok();
        }
        signed.push(':');
        signed.push_str(name);
        signed
    }

    /// What PostgreSQL stores of it: the key padded to a block, combined with the bytes that RFC 2104 names for the inner
    /// and the outer hash.
    pub(crate) fn blocks(&self) -> [[u8; BLOCK]; 2] {
        [self.block(0x36), self.block(0x5c)]
    }

    fn block(&self, combined_with: u8) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        block[..self.0.len()].copy_from_slice(&self.0);
        block.map(|byte| byte ^ combined_with)
    }
}

impl std::fmt::Debug for TenantKey {
    /// Shows nothing of the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TenantKey")
    }
}

/// The hash by which a secret of an API key is stored.
#[must_use]
pub fn secret_hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}
