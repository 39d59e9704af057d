//! A signed request is accepted once, also where a failover loses its nonce.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use access::{
    ApiKey, Authenticator, NotAuthenticated, RequestSignature, SCHEME, Secrets, authorization,
};
use database::{ApiRole, ApiRoleKind, Database};
use domain::clock::Clock;
use domain::time::Timestamp;
use testkit::proxy::Proxy;
use testkit::servers::{BaseBackup, Kind, Server, Servers};
use testkit::wait::eventually;
use uuid::Uuid;

use crate::{GRACE, actor, authenticator, new_key, settings};

const LIMIT: Duration = Duration::from_secs(60);

/// Microseconds since 1970.
#[expect(clippy::disallowed_methods, reason = "PostgreSQL has the time of the system, too")]
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_micros()).unwrap()
}

/// What a client signs now.
fn signed(key: &ApiKey) -> RequestSignature {
    let nonce = Uuid::new_v4().simple().to_string();
    let header = authorization(key, ("GET", "/list"), b"", now() / 1_000_000, &nonce);
    RequestSignature::parse(header.strip_prefix(SCHEME).unwrap().trim()).unwrap()
}

async fn sent(replica: &Authenticator, request: &RequestSignature) -> Result<(), NotAuthenticated> {
    let address = "192.0.2.7".parse().unwrap();
    replica.signed(request, ("GET", "/list"), address).await.map(drop)
}

async fn reaches(server: &Server, query: &str, expected: &str) {
    eventually(query, LIMIT, async || match server.psql("postgres", query).await {
        Ok(found) if found == expected => Ok(()),
        found => Err(format!("{found:?}")),
    })
    .await;
}

#[tokio::test]
async fn a_promoted_standby_that_lacks_a_nonce_accepts_no_request_twice() {
    let servers = Servers::start(&[Kind::PostgreSql]).await.unwrap();
    let primary = servers.get(Kind::PostgreSql);
    let standby = primary.base_backup("standby", BaseBackup::Standby).await.unwrap();
    standby.start().await.unwrap();
    let proxy = Proxy::before(&primary.url()).await.unwrap();
    let owner = Database::open(&settings(proxy.url(), Duration::from_secs(5))).unwrap();
    owner.migrate(|| {}).await.unwrap();
    let secrets = Secrets::new(["a secret of the test of failovers"]).unwrap();
    let password = Some("s3cret".to_owned());
    let role = ApiRole { kind: ApiRoleKind::Tenants, name: "api".to_owned(), password };
    owner.set_up_api_role(&role, &secrets.tenant_keys()).await.unwrap();
    let (_, at) = proxy.url().rsplit_once('@').unwrap();
    let url = format!("postgres://api:s3cret@{at}");
    let clock = Clock::new(|| Timestamp::from_micros(now()).unwrap());
    let replica = authenticator(&url, &secrets, clock, GRACE, [1_000, 1_000]);
    let key = ApiKey::generate().unwrap();
    owner.create_api_key(&new_key(&key), &actor()).await.unwrap();
    let first = signed(&key);
    sent(&replica, &first).await.unwrap();

    reaches(&standby, "SELECT count(*) FROM api_nonces", "1").await;
    let disconnect = "ALTER SYSTEM SET primary_conninfo = ''";
    standby.psql("postgres", disconnect).await.unwrap();
    standby.psql("postgres", "SELECT pg_reload_conf()").await.unwrap();
    reaches(&standby, "SELECT count(*) FROM pg_stat_wal_receiver", "0").await;
    let lost = signed(&key);
    sent(&replica, &lost).await.unwrap();
    primary.kill().await.unwrap();
    assert_eq!(standby.psql("postgres", "SELECT pg_promote()").await.unwrap(), "t");
    proxy.lead_to(&standby.url()).await.unwrap();

    assert_eq!(standby.psql("postgres", "SELECT count(*) FROM api_nonces").await.unwrap(), "1");
    for request in [&lost, &first] {
        eventually("PostgreSQL to refuse the request", LIMIT, async || {
            match sent(&replica, request).await {
                Err(NotAuthenticated::NonceUnknown) => Ok(()),
                Err(NotAuthenticated::Unavailable(error)) => Err(error.to_string()),
                other => panic!("{other:?}"),
            }
        })
        .await;
    }
    // What is signed from the next second on is accepted, once.
    let new = eventually("a request that is signed again to be accepted", LIMIT, async || {
        let request = signed(&key);
        sent(&replica, &request).await.map_err(|error| error.to_string())?;
        Ok(request)
    })
    .await;
    let again = sent(&replica, &new).await;
    assert!(matches!(again, Err(NotAuthenticated::Replayed)), "{again:?}");
}
