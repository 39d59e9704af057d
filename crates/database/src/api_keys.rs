//! API keys: who may call the conversation-api, for which tenant, and what for.
//!
//! The owner of the tables creates, lists, rotates and revokes them. The role of the API only asks whether a secret is
//! that of a key (`migrations/0002_access.sql`): it never sees a hash. Every change is audited in the same statement.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::json;
use sqlx::types::Json;

use crate::rows::from_row;
use crate::{Actor, Database, Result};

/// The tenant of a key of an operator: every tenant.
pub const EVERY_TENANT: &str = "*";

/// A key to create.
#[derive(Debug, Clone)]
pub struct NewApiKey {
    /// The part that is shown.
    pub id: String,
    /// Its tenant, or [`EVERY_TENANT`].
    pub tenant: String,
    /// What it is for, in the words of who created it.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<String>,
    /// From which networks, in CIDR notation; empty: from everywhere.
    pub networks: Vec<String>,
    /// [`crate::secret_hash`] of its secret.
    pub secret_hash: [u8; 32],
    /// Until when it is accepted.
    pub expires_at: Option<DateTime<Utc>>,
}

/// A key as lists show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ApiKeyView {
    /// The part that is shown.
    pub id: String,
    /// Its tenant, or `*`.
    pub tenant_id: String,
    /// What it is for.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<String>,
    /// From which networks it is accepted; empty: from everywhere.
    pub networks: Vec<String>,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// Until when it is accepted.
    pub expires_at: Option<DateTime<Utc>>,
    /// Until when the secret before the last rotation is accepted.
    pub previous_until: Option<DateTime<Utc>>,
    /// Since when it is refused.
    pub revoked_at: Option<DateTime<Utc>>,
    /// When it was last used, up to a few seconds old.
    pub last_used_at: Option<DateTime<Utc>>,
}

from_row! { ApiKeyView:
    id, tenant_id, name, scopes, networks, created_at, expires_at, previous_until, revoked_at, last_used_at
}

/// The columns of an [`ApiKeyView`].
const COLUMNS: &str = "id, tenant_id, name, scopes, networks, created_at, expires_at, previous_until, revoked_at, \
     last_used_at";

impl Database {
    /// Stores a key.
    ///
    /// # Errors
    /// PostgreSQL failed; also if there is a key with this id.
    pub async fn create_api_key(&self, key: &NewApiKey, actor: &Actor) -> Result<()> {
        let detail = json!({
            "name": key.name, "scopes": key.scopes, "networks": key.networks, "expires_at": key.expires_at,
        });
        let query = sqlx::query(
            "WITH created AS (
                 INSERT INTO api_keys (id, tenant_id, name, scopes, networks, secret_hash, expires_at)
                 VALUES ($1, $2, $3, $4, $5, $6, $7)
                 RETURNING id, tenant_id)
             INSERT INTO audit_log (actor, action, tenant_id, subject, detail)
             SELECT $8, 'key.create', tenant_id, id, $9 FROM created",
        )
        .bind(&key.id)
        .bind(&key.tenant)
        .bind(&key.name)
        .bind(&key.scopes)
        .bind(&key.networks)
        .bind(key.secret_hash.as_slice())
        .bind(key.expires_at)
        .bind(&actor.name)
        .bind(Json(detail));
        self.execute(query).await.map(drop)
    }

    /// The keys, of one tenant or of all, in the order in which they were created.
    ///
    /// # Errors
    /// PostgreSQL failed.
    pub async fn api_keys(&self, tenant: Option<&str>) -> Result<Vec<ApiKeyView>> {
        let query = format!(
            "SELECT {COLUMNS} FROM api_keys WHERE $1 IS NULL OR tenant_id = $1 ORDER BY created_at, id"
        );
        self.values(sqlx::query_as(sqlx::AssertSqlSafe(query)).bind(tenant)).await
    }

    /// Replaces the secret of a key. The one before is accepted until then. `None`: no key has this id, or it is revoked.
    ///
    /// # Errors
    /// PostgreSQL failed.
    pub async fn rotate_api_key(
        &self,
        id: &str,
        secret_hash: [u8; 32],
        previous_until: DateTime<Utc>,
        actor: &Actor,
    ) -> Result<Option<ApiKeyView>> {
        let change = "previous_secret_hash = secret_hash, previous_until = $4, secret_hash = $5";
        let query = changed("key.rotate", change);
        let query = sqlx::query_as(sqlx::AssertSqlSafe(query))
            .bind(id)
            .bind(&actor.name)
            .bind(Json(json!({ "previous_until": previous_until })))
            .bind(previous_until)
            .bind(secret_hash.as_slice());
        Ok(self.values(query).await?.pop())
    }

    /// Revokes a key: each replica of the API refuses it within seconds. `None`: no key has this id, or it was revoked
    /// before.
    ///
    /// # Errors
    /// PostgreSQL failed.
    pub async fn revoke_api_key(
        &self,
        id: &str,
        reason: Option<&str>,
        actor: &Actor,
    ) -> Result<Option<ApiKeyView>> {
        let query = changed("key.revoke", "revoked_at = clock_timestamp()");
        let query = sqlx::query_as(sqlx::AssertSqlSafe(query))
            .bind(id)
            .bind(&actor.name)
            .bind(Json(json!({ "reason": reason })));
        Ok(self.values(query).await?.pop())
    }
}

/// The statement that changes the key `$1` in this way, unless it is revoked, and audits that. `$2` is the actor, `$3` the
/// detail.
fn changed(action: &str, change: &str) -> String {
    format!(
        "WITH changed AS (
             UPDATE api_keys SET {change}, version = version + 1
             WHERE id = $1 AND revoked_at IS NULL
             RETURNING {COLUMNS}),
              audited AS (
             INSERT INTO audit_log (actor, action, tenant_id, subject, detail)
             SELECT $2, '{action}', tenant_id, id, $3 FROM changed)
         SELECT {COLUMNS} FROM changed"
    )
}
