//! PostgreSQL as the conversation-api uses it: with a role that sees the rows of one tenant at a time.
//!
//! The only way to a [`Database`] is [`ApiDatabase::of`], which takes a tenant, so no statement can run without one. Row-level
//! security then enforces in PostgreSQL what the statements ask for anyway.

use std::time::Duration;

use chrono::{DateTime, Utc};
use domain::ids::TenantId;
use sqlx::{FromRow, Row as _};

use crate::api_role::{self, ApiRoleKind};
use crate::connection_settings::AUDIT_CHAIN;
use crate::{
    Database, Limits, NewAuditEntry, Result, SchemaError, Settings, Statements, TenantKey, pooler,
};

/// The connections of the role of the API. Cheap to clone.
#[derive(Clone)]
pub struct ApiDatabase {
    database: Database,
    key: TenantKey,
}

/// A key whose secret was presented.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct PresentedKey {
    /// Its tenant, or [`crate::EVERY_TENANT`].
    pub tenant_id: String,
    /// What it is for.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<String>,
    /// From which networks it is accepted; empty: from everywhere.
    pub networks: Vec<String>,
    /// Another number after each change.
    pub version: i64,
    /// Since when it is refused.
    pub revoked_at: Option<DateTime<Utc>>,
    /// Until when this secret of it is accepted.
    pub accepted_until: Option<DateTime<Utc>>,
}

/// A request with a signature.
#[derive(Debug, Clone)]
pub struct SignedRequest<'a> {
    /// The id of the key.
    pub key: &'a str,
    /// No other request of the key has it.
    pub nonce: &'a str,
    /// What was signed.
    pub text: String,
    /// HMAC-SHA-256 of it.
    pub signature: [u8; 32],
    /// How long the nonce is remembered.
    pub keep_nonce: Duration,
}

/// What PostgreSQL knows of the nonce of a signed request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nonce {
    /// No request of the key had it; now it is stored.
    New,
    /// A request of the key had it.
    Used,
    /// The request was signed before the last failover or restore of PostgreSQL, which may have lost its nonce.
    Unknown,
}

impl ApiDatabase {
    /// Creates the pool. It connects on first use.
    ///
    /// # Errors
    /// The URL cannot be parsed.
    pub fn open(settings: &Settings, key: TenantKey, statements: Statements) -> Result<Self> {
        Ok(Self { database: Database::open_as_role(settings, statements)?, key })
    }

    /// The rows of this tenant.
    #[must_use]
    pub fn of(&self, tenant: &TenantId) -> Database {
        self.database.of_tenant(self.key.signed(tenant))
    }

    /// The same server, on one connection of its own, with these limits: an answer does not wait for those to others.
    #[must_use]
    pub fn apart(&self, limits: Limits) -> Self {
        Self { database: self.database.apart(limits), key: self.key.clone() }
    }

    /// For statements that read no rows of tenants.
    pub(crate) fn untenanted(&self) -> &Database {
        &self.database
    }

    /// Host and port of the server; `None` if it is a socket directory.
    #[must_use]
    pub fn address(&self) -> Option<(&str, u16)> {
        self.database.address()
    }

    /// Checks that PostgreSQL answers a request as it answers those of tenants: with row-level security, and a signature
    /// that it accepts.
    ///
    /// # Errors
    /// It does not.
    pub async fn probe(&self) -> Result<()> {
        let query = "SELECT verbatim_tenant(), count(*) FROM (SELECT FROM conversations LIMIT 1) AS any_row";
        let seen: (String, i64) = self.of_no_tenant().value(sqlx::query_as(query)).await?;
        debug_assert_eq!(seen, (String::new(), 0));
        Ok(())
    }

    /// Fails if the schema is missing or too old, if a pooler would mix up statements, if the role may read or change more or
    /// less than it must, or if PostgreSQL does not accept the signature of a tenant.
    ///
    /// # Errors
    /// One of these, with its remedy; or PostgreSQL failed.
    pub async fn verify(&self) -> Result<(), SchemaError> {
        if self.database.keeps_statements() && pooler::is_found(&self.database).await? {
            return Err(SchemaError::Pooler(ApiRoleKind::Tenants.setting()));
        }
        api_role::verify(&self.database, ApiRoleKind::Tenants).await?;
        self.of_no_tenant().verify_signature().await
    }

    /// Sees no rows: no tenant has this name.
    fn of_no_tenant(&self) -> Database {
        self.database.of_tenant(self.key.signed_for_every_tenant())
    }

    /// Writes entries to the audit log, all or none.
    ///
    /// # Errors
    /// PostgreSQL failed.
    pub async fn audit(&self, entries: &[NewAuditEntry]) -> Result<()> {
        let query = sqlx::query("SELECT verbatim_audit($1, $2, $3, $4, $5, $6)")
            .bind(self.key.signed_audit_chain(*AUDIT_CHAIN))
            .bind(entries.iter().map(|it| it.actor.as_str()).collect::<Vec<_>>())
            .bind(entries.iter().map(|it| it.action).collect::<Vec<_>>())
            .bind(entries.iter().map(|it| self.signed(it.tenant.as_ref())).collect::<Vec<_>>())
            .bind(entries.iter().map(|it| it.subject.as_deref()).collect::<Vec<_>>())
            .bind(entries.iter().map(|it| it.detail.to_string()).collect::<Vec<_>>());
        self.of_no_tenant().execute(query).await.map(drop)
    }

    fn signed(&self, tenant: Option<&TenantId>) -> String {
        tenant.map_or_else(|| self.key.signed_for_every_tenant(), |tenant| self.key.signed(tenant))
    }

    /// The key with this id, if it accepts a secret with this hash. It may be revoked or expired.
    ///
    /// # Errors
    /// PostgreSQL failed.
    pub async fn api_key(&self, id: &str, secret_hash: &[u8; 32]) -> Result<Option<PresentedKey>> {
        let query = sqlx::query_as("SELECT * FROM verbatim_api_key($1, $2)")
            .bind(id)
            .bind(secret_hash.as_slice());
        Ok(self.database.values(query).await?.pop())
    }

    /// The key that signed a request, and what is known of its nonce. `None`: it did not sign it.
    ///
    /// # Errors
    /// PostgreSQL failed.
    pub async fn signed_request(
        &self,
        request: &SignedRequest<'_>,
    ) -> Result<Option<(PresentedKey, Nonce)>> {
        let query = sqlx::query(
            "SELECT * FROM verbatim_signed_request($1, $2, $3, $4, interval '1 second' * $5)",
        )
        .bind(request.key)
        .bind(request.nonce)
        .bind(&request.text)
        .bind(request.signature.as_slice())
        .bind(request.keep_nonce.as_secs_f64());
        let Some(row) = self.of_no_tenant().rows(query).await?.pop() else { return Ok(None) };
        let nonce = match row.try_get("is_first")? {
            Some(true) => Nonce::New,
            Some(false) => Nonce::Used,
            None => Nonce::Unknown,
        };
        Ok(Some((PresentedKey::from_row(&row)?, nonce)))
    }

    /// The versions of those of these keys that are not revoked.
    ///
    /// # Errors
    /// PostgreSQL failed.
    pub async fn api_key_versions(&self, ids: &[&str]) -> Result<Vec<(String, i64)>> {
        let query =
            sqlx::query_as("SELECT id, version FROM verbatim_api_key_versions($1)").bind(ids);
        self.database.values(query).await
    }

    /// Records when keys were last used.
    ///
    /// # Errors
    /// PostgreSQL failed.
    pub async fn api_keys_used(&self, used: &[(&str, DateTime<Utc>)]) -> Result<()> {
        let query = sqlx::query("SELECT verbatim_api_keys_used($1, $2)")
            .bind(used.iter().map(|(id, _)| *id).collect::<Vec<_>>())
            .bind(used.iter().map(|(_, at)| *at).collect::<Vec<_>>());
        self.database.execute(query).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use testkit::TestEnv;

    use super::*;
    use crate::{ApiRole, ApiRoleKind, Error};

    /// A database with the role, and a function that opens it with one connection.
    async fn role() -> (TestEnv, impl Fn() -> ApiDatabase) {
        let env = TestEnv::new().await;
        let settings = |url: &str| Settings {
            url: url.to_owned(),
            application: "test".to_owned(),
            connections: 1,
            time_out: Duration::from_secs(10),
            lock_time_out: Duration::from_secs(1),
        };
        let owner = Database::open(&settings(&env.database_url)).unwrap();
        owner.migrate(|| {}).await.unwrap();
        let (kind, name) = (ApiRoleKind::Tenants, env.api_role());
        let role = ApiRole { kind, name, password: Some("s3cret".to_owned()) };
        let key = TenantKey::new([1; 32]);
        owner.set_up_api_role(&role, std::slice::from_ref(&key)).await.unwrap();
        let (_, address) = env.database_url.rsplit_once('@').unwrap();
        let url = format!("postgres://{}:s3cret@{address}", role.name);
        let open =
            move || ApiDatabase::open(&settings(&url), key.clone(), Statements::Prepared).unwrap();
        (env, open)
    }

    /// The value of a setting in the next transaction.
    async fn setting(database: &Database, name: &str) -> String {
        let query = sqlx::query_as("SELECT current_setting($1)").bind(name);
        let (value,): (String,) = database.value(query).await.unwrap();
        value
    }

    #[tokio::test]
    async fn what_a_statement_sets_for_its_session_ends_before_the_next_transaction() {
        let (env, open) = role().await;
        let api = open();
        let tenant = api.of(&TenantId::new("acme").unwrap());
        for (name, value) in [
            ("search_path", "pg_temp"),
            ("row_security", "off"),
            ("statement_timeout", "1ms"),
            ("enable_indexscan", "off"),
            ("application_name", "another"),
            ("TimeZone", "Asia/Kolkata"),
            ("verbatim.tenant", "of another"),
            ("default_transaction_read_only", "on"),
            ("default_transaction_isolation", "serializable"),
        ] {
            let before = setting(&tenant, name).await;
            let injected = sqlx::query("SELECT set_config($1, $2, false)").bind(name).bind(value);
            tenant.execute(injected).await.unwrap();
            // A transaction that fails does not bring it back.
            let failing = sqlx::query("SELECT 1 / (SELECT 0)");
            assert!(tenant.execute(failing).await.is_err());
            let query = sqlx::query_as(
                "SELECT current_setting('transaction_read_only'), current_setting('transaction_isolation'), current_setting($1)",
            );
            let next: (String, String, String) = tenant.value(query.bind(name)).await.unwrap();
            let expected = ("off".to_owned(), "read committed".to_owned(), before);
            assert_eq!(next, expected, "{name}");
        }
        // Also those of no tenant, such as of a key.
        let injected = sqlx::query("SELECT set_config('search_path', 'pg_temp', false)");
        tenant.execute(injected).await.unwrap();
        assert_eq!(api.api_key("k1", &[0; 32]).await.unwrap(), None);
        let lock = sqlx::query("SELECT pg_advisory_lock(7)");
        tenant.execute(lock).await.unwrap();
        api.probe().await.unwrap();
        let free = env.psql("SELECT pg_try_advisory_lock(7)").await.unwrap();
        assert_eq!(free, "t");
    }

    #[tokio::test]
    async fn a_transaction_that_was_cancelled_while_it_began_leaves_nothing_on_its_connection() {
        let (env, open) = role().await;
        let api = open();
        let tenant = api.of(&TenantId::new("acme").unwrap());
        // The connection is in a transaction that failed, as after a cancel between BEGIN and its end.
        let failed = tenant
            .within(async |connection| {
                let halfway = "BEGIN; SELECT 1 / (SELECT 0); COMMIT; BEGIN";
                let begun = sqlx::Connection::begin_with(connection, halfway).await;
                begun.map(drop).map_err(Error::NotBegun)
            })
            .await;
        assert!(failed.is_err());
        for _ in 0..3 {
            api.probe().await.unwrap();
        }
        // Also of a connection that is found in such a transaction.
        let found = tenant
            .within(async |connection| {
                sqlx::raw_sql("BEGIN").execute(&mut *connection).await?;
                sqlx::raw_sql("SELECT 1 / (SELECT 0)").execute(&mut *connection).await?;
                Ok(())
            })
            .await;
        assert!(found.is_err());
        let answers = [api.probe().await.is_ok(), api.probe().await.is_ok()];
        assert!(answers[1], "{answers:?}");
        drop(env);
    }

    #[tokio::test]
    async fn a_commit_of_the_api_is_durable_where_the_server_would_not_wait_for_it() {
        let (env, open) = role().await;
        for (server, expected) in
            [("off", "on"), ("local", "local"), ("remote_apply", "remote_apply")]
        {
            let set = format!("ALTER DATABASE {} SET synchronous_commit = {server}", env.name);
            env.psql(&set).await.unwrap();
            assert_eq!(setting(&open().of_no_tenant(), "synchronous_commit").await, expected);
        }
    }
}
