//! TLS by certificate files that are replaced while the API runs.

use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256,
    date_time_ymd,
};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use system_tests::{ApiServer, LIMIT, Scenario};
use testkit::http::{self, Response};
use testkit::process::Signal;
use testkit::wait::eventually;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::{archived, with_status};

const FULL: &str = "/api/conversations/c0/full";

/// How often the files are read in these tests.
const RELOAD: (&str, &str) = ("VERBATIM_API_TLS_RELOAD", "50ms");

/// An authority, the files of the API, and a client that trusts the authority.
struct Tls {
    issuer: Issuer<'static, KeyPair>,
    client: TlsConnector,
    certificate: PathBuf,
    key: PathBuf,
}

/// A certificate of the authority, and its key, in PEM.
struct Pair {
    certificate: String,
    key: String,
    der: CertificateDer<'static>,
}

impl Tls {
    /// With the files in a directory of this scenario; they are not there yet.
    fn new(scenario: &Scenario) -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = key_pair();
        let own = params.self_signed(&key).unwrap();
        let dir = scenario.dir().join("tls");
        std::fs::create_dir(&dir).unwrap();
        Self {
            client: connector(Some(own.der())),
            issuer: Issuer::new(params, key),
            certificate: dir.join("tls.crt"),
            key: dir.join("tls.key"),
        }
    }

    /// A certificate for 127.0.0.1 that expires on the first day of this year.
    fn pair(&self, expires: i32) -> Pair {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(expires, 1, 1);
        let key = key_pair();
        let signed = params.signed_by(&key, &self.issuer).unwrap();
        Pair {
            certificate: signed.pem(),
            key: key.serialize_pem(),
            der: signed.der().clone().into_owned(),
        }
    }

    fn write(&self, pair: &Pair) {
        std::fs::write(&self.certificate, &pair.certificate).unwrap();
        write_key(&self.key, &pair.key);
    }

    fn settings(&self) -> [(&str, &str); 3] {
        [
            ("VERBATIM_API_TLS_CERTIFICATE", self.certificate.to_str().unwrap()),
            ("VERBATIM_API_TLS_KEY", self.key.to_str().unwrap()),
            RELOAD,
        ]
    }

    /// A replica with a valid pair.
    async fn start(&self, scenario: &Scenario, more: &[(&str, &str)]) -> (ApiServer, Pair) {
        let pair = self.pair(2100);
        self.write(&pair);
        (ApiServer::start(scenario, &[&self.settings(), more].concat()).await, pair)
    }

    async fn connect(&self, api: &ApiServer) -> anyhow::Result<TlsStream<TcpStream>> {
        connect(&self.client, api.address).await
    }

    /// The certificate that a new connection gets.
    async fn served(&self, api: &ApiServer) -> CertificateDer<'static> {
        let stream = self.connect(api).await.unwrap();
        let (_, connection) = stream.get_ref();
        assert_eq!(connection.alpn_protocol(), Some(b"http/1.1".as_slice()));
        connection.peer_certificates().unwrap()[0].clone()
    }

    /// Waits until new connections get this certificate.
    async fn serving(&self, api: &ApiServer, pair: &Pair, limit: Duration) {
        eventually("the new certificate", limit, async || {
            let served = self.served(api).await;
            if served == pair.der { Ok(()) } else { Err("another one is served".to_owned()) }
        })
        .await;
    }

    async fn get(&self, api: &ApiServer, key: &str, path: &str) -> Response {
        let bearer = format!("Bearer {key}");
        let headers = [("authorization", bearer.as_str())];
        let connect = async || self.connect(api).await;
        http::request_over(connect, "127.0.0.1", "GET", path, &headers, "").await.unwrap()
    }
}

fn key_pair() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

fn write_key(path: &Path, key: &str) {
    std::fs::write(path, key).unwrap();
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
}

/// A client that trusts this authority alone.
fn connector(authority: Option<&CertificateDer<'static>>) -> TlsConnector {
    service::install_crypto();
    let mut roots = RootCertStore::empty();
    if let Some(authority) = authority {
        roots.add(authority.clone()).unwrap();
    }
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    TlsConnector::from(Arc::new(config))
}

async fn connect(
    client: &TlsConnector,
    address: SocketAddr,
) -> anyhow::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    Ok(client.connect(ServerName::try_from("127.0.0.1")?, stream).await?)
}

/// The status line of an answer to a request that keeps its connection.
async fn ask(stream: &mut BufReader<TlsStream<TcpStream>>) -> String {
    stream.write_all(b"GET /llms.txt HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let (mut status, mut length) = (String::new(), 0);
    stream.read_line(&mut status).await.unwrap();
    loop {
        let mut header = String::new();
        stream.read_line(&mut header).await.unwrap();
        if let Some(value) = header.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if header.trim().is_empty() {
            break;
        }
    }
    stream.read_exact(&mut vec![0; length]).await.unwrap();
    status.trim().to_owned()
}

#[tokio::test]
async fn https_is_served_and_its_expiry_is_a_metric() {
    let scenario = Scenario::new().await;
    let tls = Tls::new(&scenario);
    let (api, pair) = tls.start(&scenario, &[("VERBATIM_API_LISTEN", "0.0.0.0:0")]).await;
    archived(&scenario, "acme", 1, 1).await;
    let key = api.key("acme", &["read"]).await;
    with_status(&tls.get(&api, &key, FULL).await, 200);
    assert_eq!(tls.served(&api).await, pair.der);
    let refused = connect(&connector(None), api.address).await.unwrap_err();
    assert!(refused.to_string().contains("UnknownIssuer"), "{refused}");
    let metrics = api.worker.get("/metrics").await.unwrap().body;
    // 2100-01-01.
    let line = "verbatim_tls_certificate_expires_timestamp_seconds 4102444800\n";
    assert!(metrics.contains(line), "{metrics}");
    let log = api.worker.log();
    assert!(log.contains("https://0.0.0.0:") && !log.contains("without TLS"), "{log}");
    assert!(!log.contains("every user of this machine may read"), "{log}");
}

#[tokio::test]
async fn a_replaced_certificate_is_served_within_seconds_and_open_connections_go_on() {
    let scenario = Scenario::new().await;
    let mut tls = Tls::new(&scenario);
    // As Kubernetes mounts a secret: the files are behind a symlink, which is replaced.
    let dir = tls.certificate.parent().unwrap().to_owned();
    let publish = |version: &str, pair: &Pair| {
        let of_version = dir.join(version);
        std::fs::create_dir(&of_version).unwrap();
        std::fs::write(of_version.join("tls.crt"), &pair.certificate).unwrap();
        write_key(&of_version.join("tls.key"), &pair.key);
        symlink(version, dir.join("next")).unwrap();
        std::fs::rename(dir.join("next"), dir.join("data")).unwrap();
    };
    tls.certificate = dir.join("data/tls.crt");
    tls.key = dir.join("data/tls.key");
    let (old, new) = (tls.pair(2100), tls.pair(2101));
    publish("1", &old);
    let settings = &tls.settings()[..2];
    let api = ApiServer::start(&scenario, settings).await;
    let mut open = BufReader::new(tls.connect(&api).await.unwrap());
    assert_eq!(ask(&mut open).await, "HTTP/1.1 200 OK");
    assert_eq!(tls.served(&api).await, old.der);
    publish("2", &new);
    // The files are read every 5 s.
    tls.serving(&api, &new, Duration::from_secs(10)).await;
    assert_eq!(ask(&mut open).await, "HTTP/1.1 200 OK");
    let metrics = api.worker.get("/metrics").await.unwrap().body;
    // 2101-01-01.
    let line = "verbatim_tls_certificate_expires_timestamp_seconds 4133980800\n";
    assert!(metrics.contains(line), "{metrics}");
}

#[tokio::test]
async fn a_pair_that_cannot_be_served_leaves_the_old_one_in_service_and_is_logged_once() {
    let scenario = Scenario::new().await;
    let tls = Tls::new(&scenario);
    let (api, old) = tls.start(&scenario, &[]).await;
    let other = tls.pair(2101);
    let half = &other.certificate[..other.certificate.len() / 2];
    let expired = tls.pair(2020);
    let certificate = tls.certificate.display().to_string();
    let (crt, key) = (tls.certificate.as_path(), tls.key.as_path());
    let write = |path: &Path, text: &str| std::fs::write(path, text).unwrap();
    // One file after the other is replaced; each step has another fault.
    let steps: [(&dyn Fn(), &str); 6] = [
        (&|| write(crt, &other.certificate), "is not that of the first certificate"),
        (&|| write(crt, half), "the file is incomplete"),
        (&|| write(crt, ""), "has no certificate"),
        (&|| std::fs::remove_file(crt).unwrap(), "cannot read"),
        (&|| tls.write(&expired), "the certificate expired at 2020-01-01"),
        (&|| write(key, "no key"), "the certificate expired at 2020-01-01"),
    ];
    for (step, fault) in steps {
        step();
        eventually("the fault in the log", LIMIT, async || {
            let log = api.worker.log();
            let line = log.lines().find(|line| line.contains(fault)).map(str::to_owned);
            line.filter(|line| line.contains(&certificate)).ok_or(log)
        })
        .await;
        assert_eq!(tls.served(&api).await, old.der, "{fault}");
    }
    tls.write(&other);
    tls.serving(&api, &other, LIMIT).await;
    let log = api.worker.log();
    let lines = log.lines().filter(|line| line.contains("The certificate in service stays"));
    assert_eq!(lines.count(), 5, "{log}");
    // A key that everybody may read is served, with a warning.
    std::fs::set_permissions(key, Permissions::from_mode(0o644)).unwrap();
    eventually("the warning", LIMIT, async || {
        let log = api.worker.log();
        if log.contains("every user of this machine may read") { Ok(()) } else { Err(log) }
    })
    .await;
    let log = api.worker.log();
    assert!(!log.contains("PRIVATE KEY"), "{log}");
}

#[tokio::test]
async fn at_start_a_pair_that_cannot_be_served_or_one_file_alone_stops_the_process() {
    let scenario = Scenario::new().await;
    let tls = Tls::new(&scenario);
    let (pair, expired) = (tls.pair(2100), tls.pair(2020));
    let [certificate, key, _] = tls.settings();
    let mismatched = Pair { key: expired.key.clone(), ..tls.pair(2100) };
    let swapped =
        Pair { certificate: pair.key.clone(), key: pair.certificate.clone(), ..tls.pair(2100) };
    let both = [certificate, key];
    for (settings, files, fault) in [
        (&both[..1], &pair, "VERBATIM_API_TLS_KEY is not: set both, or neither"),
        (&both[1..], &pair, "VERBATIM_API_TLS_CERTIFICATE is not: set both, or neither"),
        (&both, &expired, "the certificate expired at 2020-01-01T00:00:00+00:00: renew it"),
        (&both, &mismatched, "is not that of the first certificate"),
        (&both, &swapped, "has no certificate: write it in PEM"),
    ] {
        tls.write(files);
        let process = ApiServer::process(&scenario, &scenario.database_url, settings).await;
        let status = process.wait(LIMIT).await.unwrap();
        let log = process.log_tail();
        assert_eq!(status.code(), Some(1), "{fault}: {log}");
        assert!(log.contains(fault), "{fault}: {log}");
    }
}

#[tokio::test]
async fn clients_without_a_handshake_keep_nobody_waiting_and_are_disconnected() {
    let scenario = Scenario::new().await;
    let tls = Tls::new(&scenario);
    let (api, _) = tls.start(&scenario, &[("VERBATIM_HEADER_TIMEOUT", "2s")]).await;
    let key = api.key("acme", &["read"]).await;
    let mut slow = Vec::new();
    for sent in [&b""[..], b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\x00\x00"] {
        let mut stream = TcpStream::connect(api.address).await.unwrap();
        stream.write_all(sent).await.unwrap();
        slow.push(stream);
    }
    let asked = Instant::now();
    with_status(&tls.get(&api, &key, FULL).await, 404);
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    for mut stream in slow {
        let mut received = Vec::new();
        let ended = tokio::time::timeout(LIMIT, stream.read_to_end(&mut received)).await;
        assert!(ended.is_ok(), "a connection without a handshake is open");
    }
    with_status(&tls.get(&api, &key, FULL).await, 404);
}

#[tokio::test]
async fn a_stop_waits_for_no_handshake() {
    let scenario = Scenario::new().await;
    let tls = Tls::new(&scenario);
    let (api, _) = tls.start(&scenario, &[]).await;
    let mut half = TcpStream::connect(api.address).await.unwrap();
    half.write_all(b"\x16\x03\x01").await.unwrap();
    let mut open = BufReader::new(tls.connect(&api).await.unwrap());
    ask(&mut open).await;
    let began = Instant::now();
    api.worker.signal(Signal::Terminate).unwrap();
    let status = api.worker.wait(LIMIT).await.unwrap();
    assert!(status.success(), "{status}: {}", api.worker.log_tail());
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    // The client learns that nothing is missing: TLS is closed, not cut.
    assert_eq!(open.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn http_without_tls_is_refused_with_what_to_do() {
    let scenario = Scenario::new().await;
    let tls = Tls::new(&scenario);
    let (api, _) = tls.start(&scenario, &[]).await;
    let key = api.key("acme", &["read"]).await;
    let refused = api.get(&key, FULL).await;
    assert_eq!(refused.status, 400, "{refused:?}");
    assert!(refused.body.contains("https://"), "{refused:?}");
}
