//! The role of the conversation-api: what it may touch, how its sessions are set, and whether that is so.
//!
//! `verbatim setup` creates it and grants what is listed here; the API refuses to start if its role may touch anything
//! else. Row-level security is only as good as that: it does not apply to the owner of a table, to a superuser, to a role
//! with BYPASSRLS, nor to a view.

use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use crate::scram::stored_password;
use crate::{Database, Result, SchemaError, TenantKey};

/// The relations that the role may read. It may write none.
const READABLE: [&str; 10] = [
    "_sqlx_migrations",
    "conversation_stats",
    "conversations",
    "daily_stats",
    "dead_letters",
    "hot_epoch",
    "message_rows",
    "message_tokens",
    "session_events",
    "sessions",
];

/// Those of them that have no rows of tenants, and so no row-level security.
const OF_NO_TENANT: [&str; 2] = ["_sqlx_migrations", "hot_epoch"];

/// The functions of the schema that it may call.
const CALLABLE: [&str; 4] = [
    "verbatim_api_key(text,bytea)",
    "verbatim_api_key_versions(text[])",
    "verbatim_api_keys_used(text[],timestamp with time zone[])",
    "verbatim_tenant()",
];

/// What its sessions are set to; `connection_settings.rs` says why, for those of the workers. The limits are the ceiling:
/// each transaction sets its own.
const SESSION: [(&str, &str); 11] = [
    ("TimeZone", "UTC"),
    ("bytea_output", "hex"),
    ("default_transaction_isolation", "read committed"),
    ("enable_seqscan", "off"),
    ("idle_in_transaction_session_timeout", "30s"),
    ("jit", "off"),
    ("lock_timeout", "2s"),
    ("plan_cache_mode", "force_generic_plan"),
    ("row_security", "on"),
    ("standard_conforming_strings", "on"),
    ("statement_timeout", "30s"),
];

/// Only one `verbatim setup` changes roles at a time: two would fail with "tuple concurrently updated".
const LOCK: i64 = 0x0076_6572_6261_7469;

/// The role, as `API_DATABASE_URL` names it.
#[derive(Clone)]
pub struct ApiRole {
    /// Its name.
    pub name: String,
    /// Its password; `None` where PostgreSQL authenticates it in another way.
    pub password: Option<String>,
}

/// What was done with the role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApiRoleChange {
    /// It was created, with its grants and settings.
    Created,
    /// Grants, settings or keys differed and were set.
    Updated,
    /// Nothing differed.
    AlreadyThere,
}

impl Database {
    /// Creates the role of the API where it is missing, and sets its grants, its settings, and the keys with which it signs
    /// tenants. The password of a role that exists stays.
    ///
    /// # Errors
    /// The role may do what no role of the API may; this connection may not create roles; or PostgreSQL failed.
    pub async fn set_up_api_role(
        &self,
        role: &ApiRole,
        keys: &[TenantKey],
    ) -> Result<ApiRoleChange, SchemaError> {
        let done = self
            .in_transaction(async |connection| {
                sqlx::query("SELECT pg_advisory_xact_lock($1)")
                    .bind(LOCK)
                    .execute(&mut *connection)
                    .await?;
                let exists = exists(connection, role).await?;
                if !exists {
                    create(connection, role).await?;
                }
                let granted = grant(connection, &role.name).await?;
                let set = set(connection, &role.name).await?;
                let stored = store(connection, keys).await?;
                Ok(match (exists, granted || set || stored) {
                    (false, _) => ApiRoleChange::Created,
                    (true, true) => ApiRoleChange::Updated,
                    (true, false) => ApiRoleChange::AlreadyThere,
                })
            })
            .await;
        done.map_err(|error| match error.sqlstate().as_deref() {
            Some("42501") => SchemaError::NotPermitted { role: role.name.clone(), source: error },
            _ => error.into(),
        })
    }
}

async fn exists(connection: &mut PgConnection, role: &ApiRole) -> Result<bool> {
    let query = "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)";
    Ok(sqlx::query_scalar(query).bind(&role.name).fetch_one(connection).await?)
}

async fn create(connection: &mut PgConnection, role: &ApiRole) -> Result<()> {
    let salt = *Uuid::new_v4().as_bytes();
    let stored = role.password.as_deref().map(|password| stored_password(password, salt));
    let statement: String = sqlx::query_scalar(
        "SELECT format('CREATE ROLE %I LOGIN NOINHERIT NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION \
                        NOBYPASSRLS PASSWORD %L', $1, $2)",
    )
    .bind(&role.name)
    .bind(stored)
    .fetch_one(&mut *connection)
    .await?;
    execute(connection, statement).await
}

/// Grants what is listed above and revokes all else, if anything differs; returns whether it did.
async fn grant(connection: &mut PgConnection, role: &str) -> Result<bool> {
    let wanted = sorted(
        READABLE.iter().map(|name| format!("SELECT on {name}")),
        CALLABLE.iter().map(|name| format!("EXECUTE on {name}")),
    );
    let granted: Vec<String> = sqlx::query_scalar(
        "SELECT acl.privilege_type || ' on ' || object.name
         FROM (SELECT c.relname::text AS name, c.relacl AS acl FROM pg_class c
               WHERE c.relnamespace = current_schema()::regnamespace
               UNION ALL
               SELECT c.relname || '.' || a.attname, a.attacl FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
               WHERE c.relnamespace = current_schema()::regnamespace AND a.attacl IS NOT NULL
               UNION ALL
               SELECT p.proname || '(' || replace(oidvectortypes(p.proargtypes), ', ', ',') || ')', p.proacl FROM pg_proc p
               WHERE p.pronamespace = current_schema()::regnamespace) AS object,
              aclexplode(object.acl) AS acl
         WHERE acl.grantee = (SELECT oid FROM pg_roles WHERE rolname = $1)",
    )
    .bind(role)
    .fetch_all(&mut *connection)
    .await?;
    if sorted(granted.into_iter(), std::iter::empty()) == wanted {
        return Ok(false);
    }
    let statement: String = sqlx::query_scalar(
        "SELECT format('REVOKE ALL ON ALL TABLES IN SCHEMA %1$I FROM %2$I;
                        REVOKE ALL ON ALL SEQUENCES IN SCHEMA %1$I FROM %2$I;
                        REVOKE ALL ON ALL FUNCTIONS IN SCHEMA %1$I FROM %2$I;
                        GRANT USAGE ON SCHEMA %1$I TO %2$I;
                        GRANT CONNECT ON DATABASE %3$I TO %2$I;
                        GRANT SELECT ON ' || (SELECT string_agg(format('%I', name), ', ') FROM unnest($2::text[]) AS name)
                        || ' TO %2$I; GRANT EXECUTE ON FUNCTION ' || array_to_string($3::text[], ', ') || ' TO %2$I',
                       current_schema(), $1, current_database())",
    )
    .bind(role)
    .bind(READABLE.as_slice())
    .bind(CALLABLE.as_slice())
    .fetch_one(&mut *connection)
    .await?;
    execute(connection, statement).await?;
    Ok(true)
}

/// Sets the settings of its sessions in this database, if one differs; returns whether one did.
async fn set(connection: &mut PgConnection, role: &str) -> Result<bool> {
    // `pg_temp` is last: else a temporary table would stand before ours.
    let schema: String = sqlx::query_scalar("SELECT format('%I, pg_temp', current_schema())")
        .fetch_one(&mut *connection)
        .await?;
    let settings = || SESSION.into_iter().chain([("search_path", schema.as_str())]);
    let wanted =
        sorted(settings().map(|(name, value)| format!("{name}={value}")), std::iter::empty());
    let found: Vec<String> = sqlx::query_scalar(
        "SELECT unnest(setconfig) FROM pg_db_role_setting
         WHERE setrole = (SELECT oid FROM pg_roles WHERE rolname = $1)
           AND setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())",
    )
    .bind(role)
    .fetch_all(&mut *connection)
    .await?;
    if sorted(found.into_iter(), std::iter::empty()) == wanted {
        return Ok(false);
    }
    let statement: String = sqlx::query_scalar(
        "SELECT string_agg(format('ALTER ROLE %I IN DATABASE %I ', $1, current_database()) || change, '; ' ORDER BY n)
         FROM (SELECT 'RESET ALL' AS change, 0 AS n
               UNION ALL
               SELECT CASE name WHEN 'search_path' THEN 'SET search_path = ' || value
                                ELSE format('SET %I = %L', name, value) END, n
               FROM unnest($2::text[], $3::text[]) WITH ORDINALITY AS s (name, value, n)) AS changes",
    )
    .bind(role)
    .bind(settings().map(|(name, _)| name).collect::<Vec<_>>())
    .bind(settings().map(|(_, value)| value).collect::<Vec<_>>())
    .fetch_one(&mut *connection)
    .await?;
    execute(connection, statement).await?;
    Ok(true)
}

/// Stores the keys, and removes those that are no longer valid; returns whether one differed.
async fn store(connection: &mut PgConnection, keys: &[TenantKey]) -> Result<bool> {
    let blocks: Vec<_> = keys.iter().map(TenantKey::blocks).collect();
    let changed = sqlx::query(
        "WITH wanted AS (SELECT * FROM unnest($1::bytea[], $2::bytea[]) AS k (inner_block, outer_block)),
              removed AS (DELETE FROM api_tenant_keys WHERE inner_block NOT IN (SELECT inner_block FROM wanted)
                          RETURNING 1),
              added AS (INSERT INTO api_tenant_keys SELECT * FROM wanted ON CONFLICT DO NOTHING RETURNING 1)
         SELECT FROM removed UNION ALL SELECT FROM added",
    )
    .bind(blocks.iter().map(|[inner, _]| inner.as_slice()).collect::<Vec<_>>())
    .bind(blocks.iter().map(|[_, outer]| outer.as_slice()).collect::<Vec<_>>())
    .fetch_all(connection)
    .await?;
    Ok(!changed.is_empty())
}

async fn execute(connection: &mut PgConnection, statements: String) -> Result<()> {
    sqlx::raw_sql(AssertSqlSafe(statements)).execute(connection).await?;
    Ok(())
}

fn sorted(some: impl Iterator<Item = String>, others: impl Iterator<Item = String>) -> Vec<String> {
    let mut all: Vec<String> = some.chain(others).collect();
    all.sort();
    all
}

/// Fails unless the role of this connection may touch what is listed above and nothing else, whether by grants, by
/// memberships or as an owner, and unless row-level security applies to it. Extensions are left out: some grant their own
/// views and functions to everyone.
pub(crate) async fn verify(database: &Database) -> Result<(), SchemaError> {
    let query = sqlx::query_scalar(
        "SELECT fault FROM (
             SELECT attribute AS fault FROM pg_roles,
                    unnest(ARRAY[CASE WHEN rolsuper THEN 'SUPERUSER' END, CASE WHEN rolbypassrls THEN 'BYPASSRLS' END,
                                 CASE WHEN rolcreaterole THEN 'CREATEROLE' END,
                                 CASE WHEN rolcreatedb THEN 'CREATEDB' END,
                                 CASE WHEN rolreplication THEN 'REPLICATION' END]) AS attribute
             WHERE rolname = current_user AND attribute IS NOT NULL
             UNION ALL
             -- Also where it does not inherit their privileges: SET ROLE takes them.
             SELECT 'member of ' || pg_get_userbyid(roleid) FROM pg_auth_members
             WHERE member = (SELECT oid FROM pg_roles WHERE rolname = current_user)
             UNION ALL
             SELECT privilege || ' on ' || name AS fault
             FROM (SELECT c.oid, c.relname::text AS name, privilege
                   FROM pg_class c, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER'])
                        AS privilege
                   WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
                     AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')) AS r
             WHERE has_table_privilege(oid, privilege) <> (privilege = 'SELECT' AND name = ANY ($1))
             UNION ALL
             SELECT 'row-level security of ' || c.relname
             FROM pg_class c
             WHERE c.relnamespace = current_schema()::regnamespace AND c.relname = ANY ($1)
               AND row_security_active(c.oid) = (c.relname = ANY ($2))
             UNION ALL
             SELECT 'EXECUTE on ' || signature
             FROM (SELECT p.oid, p.proname || '(' || replace(oidvectortypes(p.proargtypes), ', ', ',') || ')' AS signature
                   FROM pg_proc p
                   WHERE p.pronamespace = current_schema()::regnamespace
                     AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')) AS f
             WHERE has_function_privilege(oid, 'EXECUTE') <> (signature = ANY ($3))
             UNION ALL
             SELECT 'CREATE on schema ' || current_schema() WHERE has_schema_privilege(current_schema(), 'CREATE'))
             AS faults (fault)
         LIMIT 20",
    )
    .bind(READABLE.as_slice())
    .bind(OF_NO_TENANT.as_slice())
    .bind(CALLABLE.as_slice());
    let faults: Vec<String> =
        database.statement(async |connection| Ok(query.fetch_all(connection).await?)).await?;
    match faults.is_empty() {
        true => Ok(()),
        false => Err(SchemaError::ApiRole(faults.join(", "))),
    }
}
