//! A replica of the conversation-api, and the keys with which a test calls it.

use std::net::SocketAddr;

use access::{ApiKey, Secrets};
use database::{Actor, ApiRole, ApiRoleKind, Database, EVERY_TENANT, NewApiKey};
use fixtures::{LIMIT, database};
use serde_json::Value;
use testkit::fleet::Worker;
use testkit::http::{self, Response};
use testkit::wait::eventually;
use uuid::Uuid;

use crate::scenario::{API, Scenario};

/// The secret of the API in tests.
const SECRET: &str = "a-secret-of-the-tests-of-the-api";

/// The password of its role.
const PASSWORD: &str = "s3cret";

/// One replica.
pub struct ApiServer {
    /// The process.
    pub worker: Worker,
    /// Where it serves the API.
    pub address: SocketAddr,
    owner: Database,
}

impl ApiServer {
    /// Starts a replica with these settings, and waits until it is ready.
    ///
    /// # Panics
    /// When it does not become ready.
    pub async fn start(scenario: &Scenario, settings: &[(&str, &str)]) -> Self {
        let server = Self::launch(scenario, &scenario.database_url, settings).await;
        server.worker.ready(LIMIT).await.expect("an API that becomes ready");
        server
    }

    /// [`Self::start`], which reaches PostgreSQL at this URL, as through a proxy; does not wait until it is ready.
    ///
    /// # Panics
    /// When the role cannot be set up, or nothing listens in time.
    pub async fn launch(
        scenario: &Scenario,
        database_url: &str,
        settings: &[(&str, &str)],
    ) -> Self {
        let file = scenario.dir().join(format!("api-{}", Uuid::new_v4()));
        let listen = ("VERBATIM_API_LISTEN_FILE", file.to_str().expect("UTF-8"));
        let worker = Self::process(scenario, database_url, &[&[listen], settings].concat()).await;
        let address = eventually("the API to listen", LIMIT, async || {
            let text = std::fs::read_to_string(&file)
                .map_err(|error| format!("{error}; {}", worker.log_tail()))?;
            text.parse().map_err(|error| format!("{text:?}: {error}"))
        })
        .await;
        Self { worker, address, owner: database(&scenario.database_url) }
    }

    /// The process alone, of which nothing is expected.
    ///
    /// # Panics
    /// When the role cannot be set up.
    pub async fn process(
        scenario: &Scenario,
        database_url: &str,
        settings: &[(&str, &str)],
    ) -> Worker {
        Self::set_up(scenario).await;
        let own = Self::access(scenario, database_url);
        let own = own.iter().map(|(name, value)| (*name, value.as_str()));
        let own = own.chain([("VERBATIM_API_LISTEN", "127.0.0.1:0")]);
        let settings: Vec<_> = own.chain(settings.iter().copied()).collect();
        scenario.launch(API, &settings)
    }

    /// Sets up its roles in PostgreSQL.
    ///
    /// # Panics
    /// When they cannot be set up.
    pub async fn set_up(scenario: &Scenario) {
        let keys = Secrets::new([SECRET]).expect("one").tenant_keys();
        let owner = database(&scenario.database_url);
        for kind in ROLES {
            owner.set_up_api_role(&role(kind, scenario), &keys).await.expect("the role");
        }
    }

    /// The settings with which a replica reaches PostgreSQL at this URL.
    pub(crate) fn access(scenario: &Scenario, database_url: &str) -> [(&'static str, String); 3] {
        let [url, operator_url] = ROLES.map(|kind| url_of(&role(kind, scenario), database_url));
        [
            ("API_DATABASE_URL", url),
            ("API_OPERATOR_DATABASE_URL", operator_url),
            ("API_SECRET", SECRET.to_owned()),
        ]
    }

    /// PostgreSQL with the roles of the API, which the first replica has set up: for tenants, and for operators.
    #[must_use]
    pub fn database_urls(scenario: &Scenario) -> [String; 2] {
        ROLES.map(|kind| url_of(&role(kind, scenario), &scenario.database_url))
    }

    /// The URL with which the role of the API for tenants reaches a PostgreSQL at this URL.
    ///
    /// # Panics
    /// When the URL has another form.
    #[must_use]
    pub fn url_of_role(scenario: &Scenario, database_url: &str) -> String {
        url_of(&role(ApiRoleKind::Tenants, scenario), database_url)
    }

    /// A new key of a tenant, with these scopes.
    ///
    /// # Panics
    /// When it cannot be stored.
    pub async fn key(&self, tenant: &str, scopes: &[&str]) -> String {
        let key = ApiKey::generate().expect("random bytes");
        let new = NewApiKey {
            id: key.id().to_owned(),
            tenant: tenant.to_owned(),
            name: "test".to_owned(),
            scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
            networks: vec![],
            secret_hash: key.secret_hash(),
            expires_at: None,
        };
        self.owner.create_api_key(&new, &actor()).await.expect("a new key");
        key.expose().to_owned()
    }

    /// A new key of an operator, for every tenant.
    ///
    /// # Panics
    /// As [`Self::key`].
    pub async fn operator_key(&self, scopes: &[&str]) -> String {
        self.key(EVERY_TENANT, scopes).await
    }

    /// Revokes a key.
    ///
    /// # Panics
    /// When there is no such key.
    pub async fn revoke(&self, key: &str) {
        let key = ApiKey::parse(key).expect("a key");
        let revoked = self.owner.revoke_api_key(key.id(), None, &actor()).await;
        assert!(revoked.expect("the database").is_some(), "no key {}", key.id());
    }

    /// Gets a path with a key.
    ///
    /// # Panics
    /// When there is no response.
    pub async fn get(&self, key: &str, path: &str) -> Response {
        self.get_with(key, path, &[]).await
    }

    /// [`Self::get`] with further headers.
    ///
    /// # Panics
    /// As [`Self::get`].
    pub async fn get_with(&self, key: &str, path: &str, headers: &[(&str, &str)]) -> Response {
        let bearer = format!("Bearer {key}");
        let headers = [&[("authorization", bearer.as_str())], headers].concat();
        self.request("GET", path, &headers).await
    }

    /// Sends a request without a key.
    ///
    /// # Panics
    /// When there is no response.
    pub async fn request(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Response {
        self.send(method, path, headers, "").await
    }

    /// Sends a request with a body.
    ///
    /// # Panics
    /// When there is no response.
    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Response {
        http::request(self.address, method, path, headers, body).await.expect("a response")
    }

    /// Posts a JSON document with a key, and further headers.
    ///
    /// # Panics
    /// When there is no response.
    pub async fn post(
        &self,
        key: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> Response {
        let bearer = format!("Bearer {key}");
        let headers = [&[("authorization", bearer.as_str())], headers].concat();
        self.send("POST", path, &headers, &body.to_string()).await
    }

    /// Gets a path, expects status 200, and parses the answer.
    ///
    /// # Panics
    /// When the status is another one.
    pub async fn json(&self, key: &str, path: &str) -> Value {
        let response = self.get(key, path).await;
        assert_eq!(response.status, 200, "{path}: {response:?}");
        serde_json::from_str(&response.body).expect("JSON")
    }
}

/// The roles of the API.
const ROLES: [ApiRoleKind; 2] = [ApiRoleKind::Tenants, ApiRoleKind::Operators];

fn role(kind: ApiRoleKind, scenario: &Scenario) -> ApiRole {
    let (_, name) = scenario.database_url.rsplit_once('/').expect("a database");
    let suffix = match kind {
        ApiRoleKind::Tenants => "api",
        ApiRoleKind::Operators => "operator",
    };
    ApiRole { kind, name: format!("{name}_{suffix}"), password: Some(PASSWORD.to_owned()) }
}

fn url_of(role: &ApiRole, database_url: &str) -> String {
    let (_, address) = database_url.rsplit_once('@').expect("a user");
    format!("postgres://{}:{PASSWORD}@{address}", role.name)
}

fn actor() -> Actor {
    Actor { name: "test".to_owned(), run: Uuid::new_v4(), tenant: None }
}
