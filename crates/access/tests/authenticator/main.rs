//! Which keys are accepted, on a real PostgreSQL.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod failover;
mod refused;
mod signed;

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use access::{
    ApiKey, Authenticator, AuthenticatorSettings, Caller, NotAuthenticated, RefusalLimits, Scope,
    Secrets, TenantOfCaller,
};
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

use crate::signed::{accepted_signed, signed_at};

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
        let (_, name) = self.env.database_url.rsplit_once('/').unwrap();
        let url = format!(
            "postgres://{}:s3cret@127.0.0.1:{}/{name}",
            self.env.api_role(),
            self.proxy.port()
        );
        let micros = Arc::clone(&self.micros);
        let clock =
            Clock::new(move || Timestamp::from_micros(micros.load(Ordering::Relaxed)).unwrap());
        authenticator(&url, &self.secrets, clock, grace, refused)
    }

    async fn key(&self, change: impl FnOnce(&mut NewApiKey)) -> ApiKey {
        let key = ApiKey::generate().unwrap();
        let mut new = new_key(&key);
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

fn authenticator(
    url: &str,
    secrets: &Secrets,
    clock: Clock,
    grace: Duration,
    refused: [u32; 2],
) -> Authenticator {
    let settings = settings(url, Duration::from_secs(2));
    let database =
        ApiDatabase::open(&settings, secrets.signing_tenant_key(), Statements::Prepared).unwrap();
    let [rate, burst] = refused.map(|number| NonZeroU32::new(number).unwrap());
    let refusals = RefusalLimits { rate, burst };
    let settings = AuthenticatorSettings { grace, signature_window: WINDOW, refusals };
    Authenticator::new(database, clock, settings)
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

fn new_key(key: &ApiKey) -> NewApiKey {
    NewApiKey {
        id: key.id().to_owned(),
        tenant: "acme".to_owned(),
        name: "CRM".to_owned(),
        scopes: vec!["read".to_owned()],
        networks: vec![],
        secret_hash: key.secret_hash(),
        expires_at: None,
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
        assert_eq!(
            refused,
            "the key has expired, or its secret was rotated; `verbatim keys list` shows which"
        );
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
