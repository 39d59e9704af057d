//! Which keys are accepted, on a real PostgreSQL.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use access::{
    ApiKey, Authenticator, AuthenticatorSettings, Caller, NotAuthenticated, RefusalLimits,
    RequestSignature, SCHEME, Scope, Secrets, TenantOfCaller, authorization,
};
use chrono::DateTime;
use database::{
    Actor, ApiDatabase, ApiRole, ApiRoleKind, Database, EVERY_TENANT, NewApiKey, Settings,
    Statements,
};
use domain::clock::Clock;
use domain::time::Timestamp;
use sqlx::{Connection as _, PgConnection};
use testkit::TestEnv;
use testkit::proxy::Proxy;
use testkit::wait::eventually;
use uuid::Uuid;

/// The time at which the tests' clock starts.
const START: i64 = 1_700_000_000_000_000;

struct Fixture {
    env: TestEnv,
    owner: Database,
    secrets: Secrets,
    /// Between the API and PostgreSQL.
    proxy: Proxy,
    micros: Arc<AtomicI64>,
}

impl Fixture {
    async fn new() -> Self {
        let env = TestEnv::new().await;
        let owner = Database::open(&settings(&env.database_url, Duration::from_secs(10))).unwrap();
        owner.migrate(|| {}).await.unwrap();
        let secrets = Secrets::new(["a secret of the test of the keys"]).unwrap();
        let role = ApiRole {
            kind: ApiRoleKind::Tenants,
            name: env.api_role(),
            password: Some("s3cret".to_owned()),
        };
        owner.set_up_api_role(&role, &secrets.tenant_keys()).await.unwrap();
        let proxy = Proxy::before(&env.database_url).await.unwrap();
        Self { env, owner, secrets, proxy, micros: Arc::new(AtomicI64::new(START)) }
    }

    /// As one replica of the API has it.
    fn replica(&self, grace: Duration) -> Authenticator {
        self.replica_with(grace, [10, 50])
    }

    /// With a rate and a burst of refused credentials.
    fn replica_with(&self, grace: Duration, refused: [u32; 2]) -> Authenticator {
        let [rate, burst] = refused.map(|number| NonZeroU32::new(number).unwrap());
        let (_, name) = self.env.database_url.rsplit_once('/').unwrap();
        let url = format!(
            "postgres://{}:s3cret@127.0.0.1:{}/{name}",
            self.env.api_role(),
            self.proxy.port()
        );
        let settings = settings(&url, Duration::from_secs(2));
        let database =
            ApiDatabase::open(&settings, self.secrets.signing_tenant_key(), Statements::Prepared)
                .unwrap();
        let micros = Arc::clone(&self.micros);
        let clock =
            Clock::new(move || Timestamp::from_micros(micros.load(Ordering::Relaxed)).unwrap());
        Authenticator::new(
            database,
            clock,
            AuthenticatorSettings {
                grace,
                signature_window: WINDOW,
                refusals: RefusalLimits { rate, burst },
            },
        )
    }

    async fn key(&self, change: impl FnOnce(&mut NewApiKey)) -> ApiKey {
        let key = ApiKey::generate().unwrap();
        let mut new = NewApiKey {
            id: key.id().to_owned(),
            tenant: "acme".to_owned(),
            name: "CRM".to_owned(),
            scopes: vec!["read".to_owned()],
            networks: vec![],
            secret_hash: key.secret_hash(),
            expires_at: None,
        };
        change(&mut new);
        self.owner.create_api_key(&new, &actor()).await.unwrap();
        key
    }

    async fn revoke(&self, key: &ApiKey) {
        assert!(self.owner.revoke_api_key(key.id(), None, &actor()).await.unwrap().is_some());
    }

    /// Holds the locks of a statement until the connection is dropped.
    async fn held(&self, statement: &'static str) -> PgConnection {
        let mut connection = PgConnection::connect(&self.env.database_url).await.unwrap();
        sqlx::raw_sql("BEGIN").execute(&mut connection).await.unwrap();
        sqlx::raw_sql(statement).execute(&mut connection).await.unwrap();
        connection
    }
}

fn settings(url: &str, time_out: Duration) -> Settings {
    Settings {
        url: url.to_owned(),
        application: "test".to_owned(),
        connections: 3,
        time_out,
        lock_time_out: Duration::from_secs(1),
    }
}

fn actor() -> Actor {
    Actor { name: "test".to_owned(), run: Uuid::new_v4(), tenant: None }
}

fn here() -> IpAddr {
    "192.0.2.7".parse().unwrap()
}

const WINDOW: Duration = Duration::from_secs(300);

const GRACE: Duration = Duration::from_secs(900);

async fn accepted(replica: &Authenticator, key: &ApiKey) -> Result<Arc<Caller>, String> {
    replica.caller(key, here()).await.map_err(|error| error.to_string())
}

#[tokio::test]
async fn a_key_names_its_tenant_and_scopes_and_another_secret_is_unknown() {
    let fixture = Fixture::new().await;
    let replica = fixture.replica(GRACE);
    let key = fixture.key(|_| {}).await;
    for _ in 0..2 {
        let caller = accepted(&replica, &key).await.unwrap();
        assert!(matches!(&caller.tenant, TenantOfCaller::One(tenant) if tenant.as_str() == "acme"));
        assert!(caller.may(Scope::Read) && !caller.may(Scope::Write));
        // The same id, while the right secret is remembered.
        let other = ApiKey::with_secret(key.id()).unwrap();
        assert_eq!(accepted(&replica, &other).await.unwrap_err(), "the key is unknown");
    }
    let operator = fixture.key(|key| key.tenant = EVERY_TENANT.to_owned()).await;
    assert_eq!(accepted(&replica, &operator).await.unwrap().tenant, TenantOfCaller::Every);
    // Of a newer version: it allows nothing that this one does not know.
    let newer = fixture.key(|key| key.scopes = vec!["everything".to_owned()]).await;
    assert!(accepted(&replica, &newer).await.unwrap().scopes.is_empty());
    let unreadable = fixture.key(|key| key.networks = vec!["everywhere".to_owned()]).await;
    assert!(accepted(&replica, &unreadable).await.is_err());
}

#[tokio::test]
async fn a_revoked_or_rotated_key_stops_on_every_replica_with_its_next_refresh() {
    let fixture = Fixture::new().await;
    let replicas = [fixture.replica(GRACE), fixture.replica(GRACE)];
    let (revoked, rotated) = (fixture.key(|_| {}).await, fixture.key(|_| {}).await);
    for replica in &replicas {
        for key in [&revoked, &rotated] {
            accepted(replica, key).await.unwrap();
        }
        replica.refresh().await.unwrap();
    }
    fixture.revoke(&revoked).await;
    let new = ApiKey::with_secret(rotated.id()).unwrap();
    let until = chrono::DateTime::from_timestamp_micros(START + 10_000_000);
    let actor = actor();
    let done =
        fixture.owner.rotate_api_key(rotated.id(), new.secret_hash(), until.unwrap(), &actor);
    assert!(done.await.unwrap().is_some());
    for replica in &replicas {
        replica.refresh().await.unwrap();
        assert_eq!(accepted(replica, &revoked).await.unwrap_err(), "the key was revoked");
        accepted(replica, &rotated).await.unwrap();
        accepted(replica, &new).await.unwrap();
    }
    fixture.micros.fetch_add(10_000_000, Ordering::Relaxed);
    for replica in &replicas {
        let refused = accepted(replica, &rotated).await.unwrap_err();
        assert_eq!(refused, "the key has expired, or its secret was rotated");
        accepted(replica, &new).await.unwrap();
    }
}

#[tokio::test]
async fn a_key_stops_when_it_expires_and_outside_of_its_networks() {
    let fixture = Fixture::new().await;
    let replica = fixture.replica(GRACE);
    let expiring = fixture
        .key(|key| key.expires_at = chrono::DateTime::from_timestamp_micros(START + 1))
        .await;
    accepted(&replica, &expiring).await.unwrap();
    fixture.micros.fetch_add(1, Ordering::Relaxed);
    assert!(matches!(replica.caller(&expiring, here()).await, Err(NotAuthenticated::Expired)));

    let networks = ["192.0.2.0/24", "2001:db8::/32"].map(str::to_owned).to_vec();
    let bound = fixture.key(|key| key.networks = networks).await;
    for (address, is_accepted) in [
        ("192.0.2.255", true),
        ("::ffff:192.0.2.1", true),
        ("192.0.3.0", false),
        ("2001:db8::1", true),
        ("2001:db9::1", false),
    ] {
        let caller = replica.caller(&bound, address.parse().unwrap()).await;
        assert_eq!(caller.is_ok(), is_accepted, "{address}: {caller:?}");
    }
}

#[tokio::test]
async fn while_postgresql_is_unavailable_a_confirmed_key_goes_on_for_the_grace_period() {
    let fixture = Fixture::new().await;
    let (lasting, closed) = (fixture.replica(GRACE), fixture.replica(Duration::ZERO));
    let (known, unknown) = (fixture.key(|_| {}).await, fixture.key(|_| {}).await);
    for replica in [&lasting, &closed] {
        accepted(replica, &known).await.unwrap();
    }
    fixture.proxy.cut().await.unwrap();
    lasting.refresh().await.unwrap_err();
    closed.refresh().await.unwrap_err();
    accepted(&lasting, &known).await.unwrap();
    for (replica, key) in [(&lasting, &unknown), (&closed, &known)] {
        let refused = replica.caller(key, here()).await;
        assert!(matches!(refused, Err(NotAuthenticated::Unavailable(_))), "{refused:?}");
    }
    // Revoked meanwhile: it stops when PostgreSQL answers again.
    fixture.revoke(&known).await;
    fixture.proxy.restore().await.unwrap();
    lasting.refresh().await.unwrap();
    assert_eq!(accepted(&lasting, &known).await.unwrap_err(), "the key was revoked");
}

#[tokio::test]
async fn a_revoked_key_stops_within_five_seconds_while_requests_hold_every_pooled_connection() {
    let fixture = Fixture::new().await;
    let replica = fixture.replica(GRACE);
    let (key, signer) = (fixture.key(|_| {}).await, fixture.key(|_| {}).await);
    accepted(&replica, &key).await.unwrap();
    replica.refresh().await.unwrap();
    // Signed requests wait for this lock, until their time is over. More than there are connections do, all the time.
    let held = fixture.held("LOCK TABLE api_nonces IN ACCESS EXCLUSIVE MODE").await;
    let keep_holding = async |n: usize| {
        for m in 0.. {
            let request = signed_at(&signer, 0, &format!("nonce-of-the-request-{n}-{m}"));
            let refused = accepted_signed(&replica, &request).await.unwrap_err();
            assert!(refused.contains("PostgreSQL is unavailable"), "{refused}");
        }
    };
    let stops = async {
        let waiting =
            "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'api_nonces'::regclass";
        eventually("every connection to be held", Duration::from_secs(30), async || match fixture
            .env
            .psql(waiting)
            .await
            .unwrap()
            .as_str()
        {
            "3" => Ok(()),
            other => Err(format!("{other} wait")),
        })
        .await;
        fixture.revoke(&key).await;
        eventually("the key to be refused", Duration::from_secs(5), async || {
            replica.refresh().await.ok();
            // A key that is no longer remembered cannot be looked up either: refused all the same.
            replica.caller(&key, here()).await.map(drop).err().ok_or("it is accepted".to_owned())
        })
        .await;
    };
    let holding = futures_util::future::join_all((0..20).map(keep_holding));
    tokio::select! {
        _ = holding => {}
        () = stops => {}
    }
    held.close().await.unwrap();
    assert_eq!(accepted(&replica, &key).await.unwrap_err(), "the key was revoked");
}

#[tokio::test]
async fn the_time_of_the_last_use_is_recorded_with_the_refresh() {
    let fixture = Fixture::new().await;
    let replica = fixture.replica(GRACE);
    let key = fixture.key(|_| {}).await;
    let last_used = async || fixture.owner.api_keys(None).await.unwrap()[0].last_used_at;
    accepted(&replica, &key).await.unwrap();
    assert_eq!(last_used().await, None);
    replica.refresh().await.unwrap();
    assert_eq!(last_used().await, chrono::DateTime::from_timestamp_micros(START));
}

/// Unknown keys of this address, until one is not looked up; returns how many were.
async fn burst_of_unknown_keys(replica: &Authenticator, address: IpAddr) -> usize {
    for n in 0..100 {
        match replica.caller(&ApiKey::generate().unwrap(), address).await {
            Err(NotAuthenticated::Unknown) => {}
            Err(NotAuthenticated::TooMany(wait)) if wait <= Duration::from_secs(1) => return n,
            other => panic!("{other:?}"),
        }
    }
    panic!("100 unknown keys were looked up");
}

#[tokio::test]
async fn after_a_burst_of_unknown_keys_an_address_waits_and_postgresql_is_not_asked() {
    let fixture = Fixture::new().await;
    let replica = fixture.replica_with(GRACE, [1, 5]);
    let elsewhere: IpAddr = "192.0.2.8".parse().unwrap();
    let (remembered, valid) = (fixture.key(|_| {}).await, fixture.key(|_| {}).await);
    accepted(&replica, &remembered).await.unwrap();
    // One more, if a second passes meanwhile.
    let looked_up = burst_of_unknown_keys(&replica, here()).await;
    assert!((5..8).contains(&looked_up), "{looked_up}");
    // Also what is valid would have to be looked up.
    let stopped = replica.caller(&valid, here()).await;
    assert!(matches!(stopped, Err(NotAuthenticated::TooMany(_))), "{stopped:?}");
    accepted(&replica, &remembered).await.unwrap();
    replica.caller(&valid, elsewhere).await.unwrap();
    // It is remembered now, whatever the address.
    accepted(&replica, &valid).await.unwrap();
    let next = fixture.key(|_| {}).await;
    eventually("the address to be accepted again", Duration::from_secs(10), async || {
        accepted(&replica, &next).await.map(drop)
    })
    .await;
    // Those at once are all looked up, and the address waits for the longer: 95 s.
    let unknown: Vec<_> = (0..100).map(|_| ApiKey::generate().unwrap()).collect();
    futures_util::future::join_all(unknown.iter().map(|key| accepted(&replica, key))).await;
    // Without PostgreSQL the answer is the same: it is not asked.
    fixture.proxy.cut().await.unwrap();
    let stopped = replica.caller(&ApiKey::generate().unwrap(), here()).await;
    assert!(matches!(stopped, Err(NotAuthenticated::TooMany(_))), "{stopped:?}");
}

/// What a client sends for `GET /list`, at the time of the tests' clock moved by so many seconds.
fn signed_at(key: &ApiKey, seconds: i64, nonce: &str) -> RequestSignature {
    let now = START / 1_000_000 + seconds;
    let header = authorization(key, ("GET", "/list?a=b"), b"", now, nonce);
    RequestSignature::parse(header.strip_prefix(SCHEME).unwrap().trim()).unwrap()
}

async fn accepted_signed(
    replica: &Authenticator,
    signature: &RequestSignature,
) -> Result<Arc<Caller>, String> {
    let signed = replica.signed(signature, ("GET", "/list?a=b"), here()).await;
    signed.map_err(|error| error.to_string())
}

const NONCE: &str = "nonce-of-the-first-request";

#[tokio::test]
async fn a_signed_request_is_accepted_once_whatever_the_replica() {
    let fixture = Fixture::new().await;
    let (first, second) = (fixture.replica(GRACE), fixture.replica(GRACE));
    let key = fixture.key(|_| {}).await;
    let request = signed_at(&key, 0, NONCE);
    let caller = accepted_signed(&first, &request).await.unwrap();
    assert_eq!((caller.key.as_str(), caller.may(Scope::Read)), (key.id(), true));
    for replica in [&first, &second] {
        let replayed = accepted_signed(replica, &request).await.unwrap_err();
        assert!(replayed.contains("nonce was received before"), "{replayed}");
    }
    // Another key may use the same nonce; the same key signs other requests.
    let other = fixture.key(|_| {}).await;
    accepted_signed(&second, &signed_at(&other, 0, NONCE)).await.unwrap();
    // Of several at once one is accepted.
    let request = signed_at(&key, 0, "nonce-of-the-second-request");
    let replicas = [&first, &second, &first, &second, &first, &second];
    let all = replicas.map(|replica| accepted_signed(replica, &request));
    let accepted = futures_util::future::join_all(all).await.iter().filter(|it| it.is_ok()).count();
    assert_eq!(accepted, 1);
}

#[tokio::test]
async fn a_signature_of_something_else_or_of_another_time_is_refused() {
    let fixture = Fixture::new().await;
    let replica = fixture.replica(GRACE);
    let (key, other) = (fixture.key(|_| {}).await, fixture.key(|_| {}).await);
    for (seconds, is_accepted) in [(-301, false), (-300, true), (300, true), (301, false)] {
        let request = signed_at(&key, seconds, &format!("nonce-of-the-second-{seconds}"));
        let accepted = accepted_signed(&replica, &request).await;
        assert_eq!(accepted.is_ok(), is_accepted, "{seconds}: {accepted:?}");
    }
    let request = signed_at(&key, 0, NONCE);
    for (method, target) in [("POST", "/list?a=b"), ("GET", "/list?a=c"), ("GET", "/list")] {
        let refused = replica.signed(&request, (method, target), here()).await.unwrap_err();
        assert!(matches!(refused, NotAuthenticated::Signature), "{method} {target}: {refused}");
    }
    // The parts of the header belong together.
    let header = authorization(&key, ("GET", "/list?a=b"), b"", START / 1_000_000, NONCE);
    for (from, to) in [
        (key.id(), other.id()),
        (key.id(), "AAAAAAAA"),
        (NONCE, "another-nonce-as-long"),
        ("digest=e", "digest=f"),
        ("timestamp=1700000000", "timestamp=1700000001"),
    ] {
        let changed = header.replacen(from, to, 1);
        assert_ne!(changed, header);
        let changed =
            RequestSignature::parse(changed.strip_prefix(SCHEME).unwrap().trim()).unwrap();
        let refused = replica.signed(&changed, ("GET", "/list?a=b"), here()).await.unwrap_err();
        assert!(matches!(refused, NotAuthenticated::Signature), "{from}: {refused}");
    }
    // A refused one uses no nonce up.
    accepted_signed(&replica, &request).await.unwrap();
}

#[tokio::test]
async fn who_signed_lately_goes_on_signing_behind_an_address_of_many_wrong_signatures() {
    let fixture = Fixture::new().await;
    let replica = fixture.replica_with(GRACE, [1, 5]);
    let (signer, newcomer) = (fixture.key(|_| {}).await, fixture.key(|_| {}).await);
    let signed = async |key: &ApiKey, n: usize| {
        let request = signed_at(key, 0, &format!("nonce-of-the-request-{n}"));
        replica.signed(&request, ("GET", "/list?a=b"), here()).await
    };
    signed(&signer, 0).await.unwrap();
    let refused = async |key: &ApiKey| {
        for n in 0..100 {
            match signed(key, 1_000 + n).await {
                Err(NotAuthenticated::Signature) => {}
                Err(NotAuthenticated::TooMany(_)) => return n,
                other => panic!("{other:?}"),
            }
        }
        panic!("100 wrong signatures were checked");
    };
    assert!((5..8).contains(&refused(&ApiKey::generate().unwrap()).await));
    for n in 1..50 {
        signed(&signer, n).await.unwrap();
    }
    let stopped = signed(&newcomer, 0).await;
    assert!(matches!(stopped, Err(NotAuthenticated::TooMany(_))), "{stopped:?}");
    // Wrong signatures that name the signer are limited, too.
    let forged = ApiKey::with_secret(signer.id()).unwrap();
    assert!((5..8).contains(&refused(&forged).await));
}

#[tokio::test]
async fn a_key_that_is_rotated_revoked_or_restricted_signs_as_it_is_accepted() {
    let fixture = Fixture::new().await;
    let replica = fixture.replica(GRACE);
    let key = fixture.key(|_| {}).await;
    let rotated = ApiKey::with_secret(key.id()).unwrap();
    let until = DateTime::from_timestamp(START / 1_000_000 + 60, 0).unwrap();
    let done = fixture.owner.rotate_api_key(key.id(), rotated.secret_hash(), until, &actor()).await;
    assert!(done.unwrap().is_some());
    for (n, key) in [&key, &rotated].into_iter().enumerate() {
        accepted_signed(&replica, &signed_at(key, 0, &format!("nonce-of-key-number-{n}")))
            .await
            .unwrap();
    }
    fixture.micros.fetch_add(61_000_000, Ordering::Relaxed);
    let old = accepted_signed(&replica, &signed_at(&key, 61, "nonce-of-the-old-secret")).await;
    assert!(old.unwrap_err().contains("expired"));
    fixture.revoke(&rotated).await;
    let revoked =
        accepted_signed(&replica, &signed_at(&rotated, 61, "nonce-of-a-revoked-key")).await;
    assert!(revoked.unwrap_err().contains("revoked"));
    let elsewhere = fixture.key(|new| new.networks = vec!["10.0.0.0/8".to_owned()]).await;
    let refused = accepted_signed(&replica, &signed_at(&elsewhere, 61, NONCE)).await.unwrap_err();
    assert!(refused.contains("address"), "{refused}");
    // Nonces cannot be checked without PostgreSQL: closed, whatever was accepted before.
    let other = fixture.key(|_| {}).await;
    accepted_signed(&replica, &signed_at(&other, 61, NONCE)).await.unwrap();
    fixture.proxy.cut().await.unwrap();
    let away = accepted_signed(&replica, &signed_at(&other, 61, "nonce-while-it-is-cut")).await;
    assert!(away.unwrap_err().contains("PostgreSQL is unavailable"));
}

#[tokio::test]
async fn a_signed_request_does_not_wait_for_who_has_locked_the_row_of_its_key() {
    let fixture = Fixture::new().await;
    let replica = fixture.replica(GRACE);
    let key = fixture.key(|_| {}).await;
    let held = fixture.held("SELECT FROM api_keys FOR UPDATE").await;
    accepted_signed(&replica, &signed_at(&key, 0, NONCE)).await.unwrap();
    held.close().await.unwrap();
    let last_used = async || fixture.owner.api_keys(None).await.unwrap()[0].last_used_at;
    assert_eq!(last_used().await, None);
    accepted_signed(&replica, &signed_at(&key, 0, "nonce-of-the-next-request")).await.unwrap();
    assert!(last_used().await.is_some());
}

#[tokio::test]
async fn nonces_are_removed_when_their_timestamps_are_too_old() {
    let fixture = Fixture::new().await;
    let replica = fixture.replica(GRACE);
    let key = fixture.key(|_| {}).await;
    for n in 0..5 {
        accepted_signed(&replica, &signed_at(&key, 0, &format!("nonce-of-the-request-{n}")))
            .await
            .unwrap();
    }
    let kept = "SELECT bool_and(expires_at BETWEEN now() + interval '10 min' AND now() + interval '12 min') FROM api_nonces";
    assert_eq!(fixture.env.psql(kept).await.unwrap(), "t");
    fixture.env.psql("UPDATE api_nonces SET expires_at = now() - interval '1 s'").await.unwrap();
    accepted_signed(&replica, &signed_at(&key, 0, "nonce-of-the-last-request")).await.unwrap();
    assert_eq!(fixture.env.psql("SELECT count(*) FROM api_nonces").await.unwrap(), "1");
}
