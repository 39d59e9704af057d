//! A secret of one line. No log line and no error shows it.

use std::fmt;

/// The shortest secret, in bytes. 32 characters of `openssl rand -hex` have 128 bits.
const SHORTEST: usize = 32;

/// A secret, shown as `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// Why a text is no secret. The error does not contain the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSecret {
    /// It can be guessed.
    #[error(
        "it has {0} bytes; it must have at least {SHORTEST}, such as those that `openssl rand -hex 32` prints"
    )]
    Short(usize),
    /// White space or a control character.
    #[error("it contains white space or a control character")]
    Space,
}

impl Secret {
    /// A secret of at least 32 bytes without white space.
    ///
    /// # Errors
    /// It is shorter, or has other characters.
    pub fn parse(text: &str) -> Result<Self, InvalidSecret> {
        let text = text.trim();
        if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(InvalidSecret::Space);
        }
        if text.len() < SHORTEST {
            return Err(InvalidSecret::Short(text.len()));
        }
        Ok(Self(text.to_owned()))
    }

    /// The secret itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_secret_is_refused_and_none_is_shown() {
        let secret = Secret::parse("0123456789abcdef0123456789abcdef\n").unwrap();
        assert_eq!(format!("{secret} {secret:?}"), "*** ***");
        assert_eq!(secret.expose().len(), 32);
        let short = Secret::parse("hunter2").unwrap_err();
        assert_eq!(short, InvalidSecret::Short(7));
        assert!(!short.to_string().contains("hunter2"));
        let spaced = "0123456789abcdef 0123456789abcdef";
        assert_eq!(Secret::parse(spaced), Err(InvalidSecret::Space));
    }
}
