//! TLS: every client of the fleet speaks it through rustls with ring.

/// Makes ring the provider of cryptography for this process. Must come before the first connection;
/// [`crate::run()`] does it, other binaries and tests call it themselves. Harmless when repeated.
pub fn install_crypto() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // The only way to fail is that another thread was faster, with the same provider.
        rustls::crypto::ring::default_provider().install_default().unwrap_or_default();
    }
}
