//! TLS with the certificate and the key of two files, which are read again while the process runs.
//!
//! The files are read every few seconds and compared with what is in service. So it does not matter how they are replaced:
//! written in place, renamed, or behind a symlink, as Kubernetes does it.
//!
//! Invariant: a pair is served only if key and certificate belong together and the certificate is valid at that time.
//! Otherwise the pair that is in service stays.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use chrono::DateTime;
use domain::clock::Clock;
use metrics::{Gauge, Metrics};
use rustls::ServerConfig;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use service::Service;
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The two files, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    /// The certificate of the server, then those of the authorities between it and the root.
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// TLS with the pair that is in service.
pub(crate) struct Tls {
    files: TlsFiles,
    pair: RwLock<Pair>,
    clock: Clock,
    metrics: Metrics,
}

/// What the files contained when they were read.
#[derive(PartialEq, Eq)]
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    /// Whether users beside owner and group may read the key.
    is_key_public: bool,
}

/// A certificate and its key.
struct Pair {
    contents: Contents,
    acceptor: TlsAcceptor,
    /// In seconds since 1970.
    expires_at: i64,
}

impl Tls {
    /// Puts the pair of these files into service.
    ///
    /// # Errors
    /// It cannot be served. The error names the file, the fault and the remedy.
    pub(crate) async fn open(service: &Service, files: TlsFiles) -> anyhow::Result<Self> {
        let clock = service.clock().clone();
        let pair = files.read().await.and_then(|contents| files.pair(contents, &clock))?;
        let metrics = service.metrics().clone();
        let tls = Self { files, pair: RwLock::new(pair), clock, metrics };
        tls.report();
        Ok(tls)
    }

    /// For the next handshake.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        self.pair.read().unwrap_or_else(PoisonError::into_inner).acceptor.clone()
    }

    /// Reads the files this often, until the process stops.
    pub(crate) fn watch(self: &Arc<Self>, service: &Service, every: Duration) {
        let tls = Arc::clone(self);
        service.support("tls-files", move |stopping| {
            let tls = Arc::clone(&tls);
            async move {
                let watch = async {
                    let mut fault = Fault::default();
                    loop {
                        tokio::time::sleep(every).await;
                        if let Some(text) = fault.note(tls.reload().await) {
                            tracing::warn!("{text}. The certificate in service stays");
                        }
                    }
                };
                stopping.run_until_cancelled(watch).await;
                Ok(())
            }
        });
    }

    /// Puts the pair of the files into service, if it is another one.
    async fn reload(&self) -> anyhow::Result<()> {
        let contents = self.files.read().await?;
        if self.pair.read().unwrap_or_else(PoisonError::into_inner).contents == contents {
            return Ok(());
        }
        let pair = self.files.pair(contents, &self.clock)?;
        *self.pair.write().unwrap_or_else(PoisonError::into_inner) = pair;
        self.report();
        Ok(())
    }

    /// Says which pair is in service.
    fn report(&self) {
        let pair = self.pair.read().unwrap_or_else(PoisonError::into_inner);
        // Exact up to 2^53 seconds.
        self.metrics.set(Gauge::TlsCertificateExpires, pair.expires_at as f64);
        tracing::info!(
            expires_at = time(pair.expires_at),
            "serving the certificate of {}",
            self.files.certificate.display()
        );
        if pair.contents.is_key_public {
            tracing::warn!(
                "every user of this machine may read the private key {}: chmod o-r; in Kubernetes set defaultMode of the \
                 secret to 0440",
                self.files.key.display()
            );
        }
    }
}

/// Why the pair of the files is not in service.
#[derive(Default)]
struct Fault {
    text: String,
    is_logged: bool,
}

impl Fault {
    /// Returns the fault if it is to be logged now: once, and not the first time that it is seen, because files are replaced one
    /// after the other.
    fn note(&mut self, reloaded: anyhow::Result<()>) -> Option<String> {
        let text = reloaded.map_or_else(|error| format!("{error:#}"), |()| String::new());
        if text != self.text {
            *self = Self { text, is_logged: false };
            return None;
        }
        let is_new = !text.is_empty() && !self.is_logged;
        self.is_logged |= is_new;
        is_new.then_some(text)
    }
}

impl TlsFiles {
    async fn read(&self) -> anyhow::Result<Contents> {
        let of = async |path: &Path| {
            tokio::fs::read(path).await.with_context(|| {
                format!("cannot read {}: correct its path or its permissions", path.display())
            })
        };
        let (certificate, key) = (of(&self.certificate).await?, of(&self.key).await?);
        let mode = tokio::fs::metadata(&self.key).await.map_or(0, |it| it.permissions().mode());
        Ok(Contents { certificate, key, is_key_public: mode & 0o004 != 0 })
    }

    fn pair(&self, contents: Contents, clock: &Clock) -> anyhow::Result<Pair> {
        let (certificate, key) = (self.certificate.display(), self.key.display());
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&contents.certificate)
            .collect::<Result<_, _>>()
            .map_err(|error| faulty_pem(&self.certificate, &error))?;
        let Some(first) = chain.first() else {
            bail!(
                "{certificate} has no certificate: write it in PEM, with those of the authorities behind it"
            );
        };
        let expires_at = validity(first, clock).with_context(|| certificate.to_string())?;
        let private = match PrivateKeyDer::from_pem_slice(&contents.key) {
            Ok(private) => private,
            Err(pem::Error::NoItemsFound) => bail!(
                "{key} has no private key: write it in PEM (PKCS#8, PKCS#1 or SEC1), without a passphrase"
            ),
            Err(error) => return Err(faulty_pem(&self.key, &error)),
        };
        let mut config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(chain, private)
            .map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => anyhow::anyhow!(
                    "the key of {key} is not that of the first certificate of {certificate}: replace both"
                ),
                error => anyhow::Error::new(error)
                    .context(format!("{certificate} and {key} cannot be served: replace both")),
            })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Pair { contents, acceptor: TlsAcceptor::from(Arc::new(config)), expires_at })
    }
}

/// Until when a certificate is valid, in seconds since 1970.
///
/// # Errors
/// It is not valid now.
fn validity(certificate: &CertificateDer<'_>, clock: &Clock) -> anyhow::Result<i64> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).context("the first certificate is not X.509")?;
    let validity = parsed.validity();
    let (from, until) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    let now = clock.now().micros() / 1_000_000;
    ensure!(now <= until, "the certificate expired at {}: renew it", time(until));
    ensure!(
        from <= now,
        "the certificate is valid from {} on: correct the clock of this machine, or wait",
        time(from)
    );
    Ok(until)
}

/// Not the error's own text: it may contain a part of the key.
fn faulty_pem(path: &Path, error: &pem::Error) -> anyhow::Error {
    let fault = match error {
        pem::Error::MissingSectionEnd { .. } => "a section has no end; the file is incomplete",
        pem::Error::Base64Decode(_) => "a section is not Base64",
        _ => "it is malformed",
    };
    anyhow::anyhow!("{} is not PEM: {fault}: write it again", path.display())
}

fn time(seconds: i64) -> String {
    DateTime::from_timestamp(seconds, 0).map_or_else(|| seconds.to_string(), |it| it.to_rfc3339())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_logged_once_when_it_is_seen_for_the_second_time() {
        let mut fault = Fault::default();
        let mut log = |text: &str| match text {
            "" => fault.note(Ok(())),
            text => fault.note(Err(anyhow::anyhow!("{text}"))),
        };
        let seen = ["", "", "a", "a", "a", "b", "a", "a", "", "b", "b", "b", "", "b", "b"];
        let logged: Vec<_> = seen.into_iter().map(|text| log(text).unwrap_or_default()).collect();
        assert_eq!(logged, ["", "", "", "a", "", "", "", "a", "", "", "b", "", "", "", "b"]);
    }
}
