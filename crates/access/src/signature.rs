//! Requests that are signed with a key, in place of sending the key: whoever reads a request on its way learns nothing with
//! which to make another one.
//!
//! ```text
//! Authorization: Verbatim-HMAC-SHA256 key=ID, timestamp=SECONDS, nonce=NONCE, digest=HEX, signature=HEX
//! ```
//!
//! `digest` is the SHA-256 of the body. The signature is the HMAC-SHA-256 (RFC 2104) of the lines below, joined by line
//! feeds. Its key is the SHA-256 of the secret part of the API key, which is all that PostgreSQL stores of the secret; it
//! checks the signature, so the API sees neither.
//!
//! ```text
//! verbatim-hmac-sha256
//! SECONDS
//! NONCE
//! METHOD
//! path and query as they are sent
//! HEX of the digest
//! ```

use std::time::Duration;

use chrono::{DateTime, Utc};
use database::SignedRequest;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};

use crate::ApiKey;

/// The scheme of the header `Authorization`.
pub const SCHEME: &str = "Verbatim-HMAC-SHA256";

/// How long a nonce may be.
const NONCE: std::ops::RangeInclusive<usize> = 16..=64;

/// What a request says about its signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestSignature {
    /// The id of the key.
    pub(crate) key: String,
    /// Seconds since 1970.
    timestamp: i64,
    nonce: String,
    /// SHA-256 of the body.
    digest: [u8; 32],
    signature: [u8; 32],
}

/// Why the header is not that of a signed request. It quotes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSignature {
    /// A parameter is missing.
    #[error(
        "the parameter {0} is missing; it must have key, timestamp, nonce, digest and signature"
    )]
    Missing(&'static str),
    /// A parameter is there twice, or no such parameter exists.
    #[error(
        "a parameter is unknown or there twice; it must have key, timestamp, nonce, digest and signature"
    )]
    Unknown,
    /// The key is no id.
    #[error("key must be the id of a key: the 8 characters after `vbt_`")]
    Key,
    /// The timestamp is no number.
    #[error("timestamp must be a whole number of seconds since 1970")]
    Timestamp,
    /// The nonce has another form.
    #[error("nonce must have 16 to 64 of the characters A-Z, a-z, 0-9, - and _")]
    Nonce,
    /// A hash has another form.
    #[error("{0} must have 64 hexadecimal digits")]
    Hash(&'static str),
}

impl RequestSignature {
    /// What stands after the scheme.
    ///
    /// # Errors
    /// It has another form.
    pub fn parse(text: &str) -> Result<Self, InvalidSignature> {
        let names = ["key", "timestamp", "nonce", "digest", "signature"];
        let mut values: [Option<&str>; 5] = [None; 5];
        for parameter in text.split(',') {
            let (name, value) =
                parameter.trim().split_once('=').ok_or(InvalidSignature::Unknown)?;
            let position = names.iter().position(|it| *it == name);
            let slot = position.and_then(|position| values.get_mut(position));
            match slot {
                Some(slot @ None) => *slot = Some(value.trim_matches('"')),
                _ => return Err(InvalidSignature::Unknown),
            }
        }
        let value = |n: usize| values[n].ok_or(InvalidSignature::Missing(names[n]));
        let (key, timestamp, nonce) = (value(0)?, value(1)?, value(2)?);
        // What is no id asks nothing of PostgreSQL.
        let is_id = key.len() == 8 && key.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let is_number = (1..=12).contains(&timestamp.len())
            && timestamp.bytes().all(|byte| byte.is_ascii_digit());
        let timestamp = timestamp.parse().ok().filter(|_| is_number);
        let is_nonce = NONCE.contains(&nonce.len())
            && nonce.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        Ok(Self {
            key: is_id.then(|| key.to_owned()).ok_or(InvalidSignature::Key)?,
            timestamp: timestamp.ok_or(InvalidSignature::Timestamp)?,
            nonce: is_nonce.then(|| nonce.to_owned()).ok_or(InvalidSignature::Nonce)?,
            digest: hash(value(3)?).ok_or(InvalidSignature::Hash("digest"))?,
            signature: hash(value(4)?).ok_or(InvalidSignature::Hash("signature"))?,
        })
    }

    /// The id of the key that signed it, as it says.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Whether this is the body that was signed.
    #[must_use]
    pub fn is_of_body(&self, body: &[u8]) -> bool {
        <[u8; 32]>::from(Sha256::digest(body)) == self.digest
    }

    /// Whether it was made at most this long before or after this time.
    pub(crate) fn is_fresh(&self, now: DateTime<Utc>, window: Duration) -> bool {
        now.timestamp().abs_diff(self.timestamp) <= window.as_secs()
    }

    /// For PostgreSQL, which checks it. The nonce is remembered for so long that the timestamp is too old afterwards on every
    /// replica.
    pub(crate) fn request<'a>(
        &'a self,
        method: &str,
        target: &str,
        window: Duration,
    ) -> SignedRequest<'a> {
        SignedRequest {
            key: &self.key,
            nonce: &self.nonce,
            text: text(self.timestamp, &self.nonce, method, target, &self.digest),
            signature: self.signature,
            keep_nonce: window * 2 + Duration::from_secs(60),
        }
    }
}

/// The header `Authorization` of a request that is signed with this key, as a client makes it.
#[must_use]
pub fn authorization(
    key: &ApiKey,
    (method, target): (&str, &str),
    body: &[u8],
    timestamp: i64,
    nonce: &str,
) -> String {
    let digest = Sha256::digest(body).into();
    let text = text(timestamp, nonce, method, target, &digest);
    // Any length of key is accepted.
    let mac = Hmac::<Sha256>::new_from_slice(&key.secret_hash()).map(|mac| mac.chain_update(text));
    let signature = mac.map(|mac| mac.finalize().into_bytes()).unwrap_or_default();
    format!(
        "{SCHEME} key={}, timestamp={timestamp}, nonce={nonce}, digest={}, signature={}",
        key.id(),
        hex(&digest),
        hex(&signature)
    )
}

fn text(timestamp: i64, nonce: &str, method: &str, target: &str, digest: &[u8; 32]) -> String {
    format!("verbatim-hmac-sha256\n{timestamp}\n{nonce}\n{method}\n{target}\n{}", hex(digest))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn hash(text: &str) -> Option<[u8; 32]> {
    let mut hash = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (n, byte) in hash.iter_mut().enumerate() {
        let digits = text.get(2 * n..2 * n + 2)?;
        *byte = u8::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'))?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> ApiKey {
        ApiKey::parse("vbt_Ab3dEf9h_0123456789abcdefghijABCDEFGHIJ01_iF7hTF").unwrap()
    }

    /// What clients compute.
    #[test]
    fn a_signature_is_fixed() {
        let header = authorization(
            &key(),
            ("POST", "/api/actions?wait=durable"),
            b"{}",
            1_764_500_000,
            "0123456789abcdef",
        );
        assert_eq!(
            header,
            "Verbatim-HMAC-SHA256 key=Ab3dEf9h, timestamp=1764500000, nonce=0123456789abcdef, \
             digest=44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a, signature=afb935ee6fdea976021d5086424199ba6f025e0f0da1afafc496f7f137f76003"
        );
    }

    #[test]
    fn a_header_is_read_as_it_was_made_and_every_other_one_is_refused() {
        let header = authorization(&key(), ("GET", "/"), b"", 1_764_500_000, "0123456789abcdef");
        let header = header.strip_prefix(SCHEME).unwrap().trim();
        let parsed = RequestSignature::parse(header).unwrap();
        assert_eq!((parsed.key.as_str(), parsed.timestamp), ("Ab3dEf9h", 1_764_500_000));
        assert!(parsed.is_of_body(b"") && !parsed.is_of_body(b" "));
        let now = |seconds| DateTime::from_timestamp(seconds, 0).unwrap();
        let window = Duration::from_secs(300);
        assert!(parsed.is_fresh(now(1_764_500_300), window));
        assert!(parsed.is_fresh(now(1_764_499_700), window));
        assert!(!parsed.is_fresh(now(1_764_500_301), window));
        assert!(!parsed.is_fresh(now(1_764_499_699), window));
        for (from, to, fault) in [
            ("key=", "kee=", InvalidSignature::Unknown),
            ("key=Ab3dEf9h", "key=Ab3dEf9", InvalidSignature::Key),
            ("key=Ab3dEf9h", "key=Ab3dEf9'", InvalidSignature::Key),
            ("nonce=0123456789abcdef, ", "", InvalidSignature::Missing("nonce")),
            (
                "timestamp=1764500000",
                "timestamp=1764500000, timestamp=1",
                InvalidSignature::Unknown,
            ),
            ("timestamp=1764500000", "timestamp=now", InvalidSignature::Timestamp),
            ("timestamp=1764500000", "timestamp=", InvalidSignature::Timestamp),
            ("timestamp=1764500000", "timestamp=+1764500000", InvalidSignature::Timestamp),
            ("timestamp=1764500000", "timestamp=-1764500000", InvalidSignature::Timestamp),
            ("timestamp=1764500000", "timestamp=1764500000.0", InvalidSignature::Timestamp),
            ("timestamp=1764500000", "timestamp=1e9", InvalidSignature::Timestamp),
            ("timestamp=1764500000", "timestamp=9999999999999", InvalidSignature::Timestamp),
            ("nonce=0123456789abcdef", "nonce=short", InvalidSignature::Nonce),
            ("nonce=0123456789abcdef", "nonce=0123456789abcde\u{fc}", InvalidSignature::Nonce),
            ("signature=", "signature=+", InvalidSignature::Hash("signature")),
            ("digest=", "digest=0", InvalidSignature::Hash("digest")),
        ] {
            let changed = header.replacen(from, to, 1);
            assert_eq!(RequestSignature::parse(&changed), Err(fault), "{changed}");
        }
        assert_eq!(RequestSignature::parse(""), Err(InvalidSignature::Unknown));
    }
}
