//! The form in which PostgreSQL stores a password: so `verbatim setup` sends no password, which the server might log with
//! the statement.
//!
//! RFC 5802 and 7677, and `src/common/scram-common.c` of PostgreSQL (`scram_build_secret`).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};

/// PostgreSQL's default.
const ITERATIONS: u32 = 4096;

/// What PostgreSQL stores for this password. ASCII alone: for other characters the password would have to be normalised
/// (SASLprep), and PostgreSQL would compare another one.
pub(crate) fn stored_password(password: &str, salt: [u8; 16]) -> String {
    let mut block = hmac(password.as_bytes(), &[&salt, &1u32.to_be_bytes()]);
    let mut salted = block;
    for _ in 1..ITERATIONS {
        block = hmac(password.as_bytes(), &[&block]);
        salted.iter_mut().zip(block).for_each(|(salted, byte)| *salted ^= byte);
    }
    let stored_key = Sha256::digest(hmac(&salted, &[b"Client Key"]));
    let server_key = hmac(&salted, &[b"Server Key"]);
    let (salt, stored, server) =
        (STANDARD.encode(salt), STANDARD.encode(stored_key), STANDARD.encode(server_key));
    format!("SCRAM-SHA-256${ITERATIONS}:{salt}${stored}:{server}")
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    // HMAC takes keys of any length: `new_from_slice` fails for none.
    let Ok(mut hmac) = Hmac::<Sha256>::new_from_slice(key) else { return [0; 32] };
    parts.iter().for_each(|part| hmac.update(part));
    hmac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 7677, section 3: user `user`, password `pencil`. The client's proof there follows from the
    /// stored key, the server's signature from the server key.
    #[test]
    fn the_stored_form_is_that_of_the_rfc() {
        let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap().try_into().unwrap();
        let stored = stored_password("pencil", salt);
        let keys = stored.strip_prefix("SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$").unwrap();
        let (_, server_key) = keys.split_once(':').unwrap();
        let server_key = STANDARD.decode(server_key).unwrap();
        let message = "n=user,r=rOprNGfwEbeRWgbNEkqO,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                       s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let signature = hmac(&server_key, &[message.as_bytes()]);
        assert_eq!(STANDARD.encode(signature), "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    }
}
