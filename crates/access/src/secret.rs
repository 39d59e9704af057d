//! `API_SECRET`: one secret that all replicas of the conversation-api and `verbatim setup` share, and the keys derived from
//! it.
//!
//! A key for each purpose is derived, so that a signature made for one is worth nothing for another. While the secret is
//! rotated, several are given: the first one signs, all of them are accepted.

use database::TenantKey;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

/// What a key derived from the secret signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The tenant of a transaction in PostgreSQL.
    Tenant,
    /// Cursors of lists.
    Cursor,
    /// ETags.
    ETag,
}

impl Purpose {
    const fn label(self) -> &'static str {
        match self {
            Self::Tenant => "verbatim 1 tenant",
            Self::Cursor => "verbatim 1 cursor",
            Self::ETag => "verbatim 1 etag",
        }
    }
}

/// The secrets of a rotation, or the only one.
#[derive(Clone)]
pub struct Secrets {
    /// The one that signs.
    first: Vec<u8>,
    /// Those that are accepted too.
    others: Vec<Vec<u8>>,
}

impl Secrets {
    /// The secrets of the setting, in its order; `None` if there is none.
    #[must_use]
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let mut secrets = secrets.into_iter().map(|secret| secret.as_bytes().to_vec());
        Some(Self { first: secrets.next()?, others: secrets.collect() })
    }

    /// The key with which this process signs tenants.
    #[must_use]
    pub fn signing_tenant_key(&self) -> TenantKey {
        TenantKey::new(derived(&self.first, Purpose::Tenant))
    }

    /// The keys whose signatures of tenants PostgreSQL is to accept.
    #[must_use]
    pub fn tenant_keys(&self) -> Vec<TenantKey> {
        self.all().map(|secret| TenantKey::new(derived(secret, Purpose::Tenant))).collect()
    }

    /// The signature of these parts. Each part is preceded by its length, so that parts cannot be shifted into one another.
    #[must_use]
    pub fn sign(&self, purpose: Purpose, parts: &[&[u8]]) -> [u8; 32] {
        hmac(&self.first, purpose, parts).finalize().into_bytes().into()
    }

    /// Whether one of the secrets made this signature. Takes as long for a wrong one as for a right one.
    #[must_use]
    pub fn verify(&self, purpose: Purpose, parts: &[&[u8]], signature: &[u8]) -> bool {
        self.all().fold(false, |valid, secret| {
            valid | hmac(secret, purpose, parts).verify_slice(signature).is_ok()
        })
    }

    fn all(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::once(&self.first).chain(&self.others).map(Vec::as_slice)
    }
}

impl std::fmt::Debug for Secrets {
    /// Shows nothing of them.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets")
    }
}

fn derived(secret: &[u8], purpose: Purpose) -> [u8; 32] {
    keyed(secret).chain_update(purpose.label()).finalize().into_bytes().into()
}

fn hmac(secret: &[u8], purpose: Purpose, parts: &[&[u8]]) -> Hmac<Sha256> {
    parts.iter().fold(keyed(&derived(secret, purpose)), |hmac, part| {
        hmac.chain_update((part.len() as u64).to_be_bytes()).chain_update(part)
    })
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    // HMAC takes keys of any length, so this fails for none.
    Hmac::<Sha256>::new_from_slice(key).unwrap_or_else(|_| Hmac::<Sha256>::new(&[0; 64].into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(list: &[&str]) -> Secrets {
        Secrets::new(list.iter().copied()).unwrap()
    }

    #[test]
    fn a_signature_is_worth_nothing_for_another_purpose_other_parts_or_another_secret() {
        let one = secrets(&["a secret of at least 32 characters"]);
        let parts: [&[u8]; 2] = [b"ab", b"c"];
        let signature = one.sign(Purpose::Cursor, &parts);
        assert!(one.verify(Purpose::Cursor, &parts, &signature));
        assert!(!one.verify(Purpose::ETag, &parts, &signature));
        assert!(!one.verify(Purpose::Cursor, &[b"a", b"bc"], &signature));
        assert!(!one.verify(Purpose::Cursor, &[b"abc"], &signature));
        assert!(!one.verify(Purpose::Cursor, &parts, &signature[..31]));
        assert!(!one.verify(Purpose::Cursor, &parts, b""));
        assert!(!secrets(&["another secret of 32 characters…"]).verify(
            Purpose::Cursor,
            &parts,
            &signature
        ));
    }

    #[test]
    fn while_the_secret_is_rotated_the_first_signs_and_both_are_accepted() {
        let (old, both) = (secrets(&["old"]), secrets(&["new", "old"]));
        let new = secrets(&["new"]);
        assert!(both.verify(Purpose::Cursor, &[b"x"], &old.sign(Purpose::Cursor, &[b"x"])));
        assert!(new.verify(Purpose::Cursor, &[b"x"], &both.sign(Purpose::Cursor, &[b"x"])));
        assert!(!old.verify(Purpose::Cursor, &[b"x"], &both.sign(Purpose::Cursor, &[b"x"])));
        assert_eq!(both.tenant_keys().len(), 2);
        assert!(Secrets::new([]).is_none());
    }
}
