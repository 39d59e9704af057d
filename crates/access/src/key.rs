//! The text of an API key: `vbt_<id>_<secret>_<checksum>`.
//!
//! The id is shown in lists and logs. The secret is stored as its SHA-256 alone. The checksum tells a mistyped or truncated
//! key, and lets a scanner of secrets tell a key from a text that looks like one, without asking a server.

use std::fmt;

use sha2::{Digest as _, Sha256};

/// The regular expression of a key, for scanners of secrets.
pub const PATTERN: &str = "vbt_[0-9A-Za-z]{8}_[0-9A-Za-z]{32}_[0-9A-Za-z]{6}";

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const PREFIX: &str = "vbt";
const ID: usize = 8;
/// 62^32 is 190 bits: nobody finds a secret by trying, nor by a table of hashes.
const SECRET: usize = 32;
const CHECKSUM: usize = 6;

/// A key. It is shown by its id; only [`Self::expose`] has all of it.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey {
    text: String,
}

/// Why a text is not a key. It quotes nothing of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    /// It does not have the form of a key.
    #[error("it does not have the form vbt_<8 characters>_<32 characters>_<6 characters>")]
    Form,
    /// A character is wrong or missing.
    #[error("its checksum does not match: a character is mistyped, or a part is missing")]
    Checksum,
}

impl ApiKey {
    /// A new key with a random id and secret.
    ///
    /// # Errors
    /// The operating system gives no random bytes.
    pub fn generate() -> Result<Self, getrandom::Error> {
        Self::with_secret(&random(ID)?)
    }

    /// The key with this id and a new secret.
    ///
    /// # Errors
    /// The operating system gives no random bytes.
    pub fn with_secret(id: &str) -> Result<Self, getrandom::Error> {
        let body = format!("{PREFIX}_{id}_{}", random(SECRET)?);
        Ok(Self { text: format!("{body}_{}", checksum(&body)) })
    }

    /// The key of this text.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Self, InvalidKey> {
        let parts: Vec<&str> = text.split('_').collect();
        let is_of = |part: &str, length| {
            part.len() == length && part.bytes().all(|byte| byte.is_ascii_alphanumeric())
        };
        let [PREFIX, id, secret, sum] = parts[..] else { return Err(InvalidKey::Form) };
        if !is_of(id, ID) || !is_of(secret, SECRET) || !is_of(sum, CHECKSUM) {
            return Err(InvalidKey::Form);
        }
        let key = Self { text: text.to_owned() };
        if checksum(&text[..text.len() - CHECKSUM - 1]) == sum {
            Ok(key)
        } else {
            Err(InvalidKey::Checksum)
        }
    }

    /// The part that is shown.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.text[PREFIX.len() + 1..][..ID]
    }

    /// The part that nobody stores.
    fn secret(&self) -> &str {
        &self.text[PREFIX.len() + 1 + ID + 1..][..SECRET]
    }

    /// The hash by which its secret is stored.
    #[must_use]
    pub fn secret_hash(&self) -> [u8; 32] {
        database::secret_hash(self.secret())
    }

    /// The whole text, to show it once to whoever created it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}_{}_…", self.id())
    }
}

/// The first characters of the SHA-256 of what stands before.
fn checksum(body: &str) -> String {
    let digest = Sha256::digest(body.as_bytes());
    digest.iter().take(CHECKSUM).map(|byte| character(*byte % 62)).collect()
}

/// Random characters, each with the same probability.
fn random(length: usize) -> Result<String, getrandom::Error> {
    // The largest multiple of 62 below 256: what lies above would make some characters more likely.
    const FAIR: u8 = 248;
    let mut text = String::with_capacity(length);
    while text.len() < length {
        let mut bytes = [0; 64];
        getrandom::fill(&mut bytes)?;
        let fair = bytes.iter().filter(|byte| **byte < FAIR).map(|byte| character(byte % 62));
        text.extend(fair.take(length - text.len()));
    }
    Ok(text)
}

fn character(index: u8) -> char {
    char::from(ALPHABET[usize::from(index)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_was_generated_and_matches_the_published_pattern() {
        let pattern = regex::Regex::new(&format!("^{PATTERN}$")).unwrap();
        for _ in 0..1_000 {
            let key = ApiKey::generate().unwrap();
            assert!(pattern.is_match(key.expose()), "{}", key.expose());
            assert_eq!(ApiKey::parse(key.expose()), Ok(key.clone()));
            let rotated = ApiKey::with_secret(key.id()).unwrap();
            assert_eq!(rotated.id(), key.id());
            assert_ne!(rotated.secret_hash(), key.secret_hash());
        }
    }

    /// Keys that were given out stay valid.
    #[test]
    fn the_form_of_a_key_is_fixed() {
        let key = ApiKey::parse("vbt_Ab3dEf9h_0123456789ABCDEFGHIJKLMNOPQRSTUV_VWxZyT").unwrap();
        assert_eq!(key.id(), "Ab3dEf9h");
        let hex: String = key.secret_hash().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "41ba696bc2822924f7cba0ce211bfddfe653ceb3c981255a1775bebf110bf42d");
    }

    #[test]
    fn every_change_of_one_character_is_noticed_and_nothing_of_a_key_is_shown() {
        let key = ApiKey::generate().unwrap();
        let text = key.expose();
        for at in 0..text.len() {
            let other = if text.as_bytes()[at] == b'x' { 'y' } else { 'x' };
            let mut changed: Vec<char> = text.chars().collect();
            changed[at] = other;
            let changed: String = changed.into_iter().collect();
            assert!(ApiKey::parse(&changed).is_err(), "{changed} for {text}");
        }
        for bad in
            ["", "vbt", "vbt_", "vbt_a_b_c", &text[1..], &text[..text.len() - 1], "vbt_éééé_x_y"]
        {
            assert_eq!(ApiKey::parse(bad), Err(InvalidKey::Form), "{bad}");
        }
        assert!(!format!("{key:?}").contains(key.secret()));
    }
}
