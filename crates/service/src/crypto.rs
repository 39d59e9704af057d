//! TLS: every client of the fleet uses rustls with the crypto provider ring.

/// Installs ring as the crypto provider of this process. Call it before the first connection:
/// [`crate::run()`] does, other binaries and tests call it themselves. Repeated calls have no effect.
pub fn install_crypto() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Fails only if another thread has just installed the same provider.
        rustls::crypto::ring::default_provider().install_default().unwrap_or_default();
    }
}
