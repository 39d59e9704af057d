//! The roles of the conversation-api: what each may touch, how its sessions are set, and whether that is so.
//!
//! `verbatim setup` creates them and grants what is listed here; the API refuses to start if a role may touch anything
//! else. Row-level security is only as good as that: it does not apply to the owner of a table, to a superuser, to a role
//! with BYPASSRLS, nor to a view.

use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use crate::scram::stored_password;
use crate::{Database, Result, SchemaError, TenantKey};

/// What a role may do.
struct Rights {
    /// The relations that it may read.
    readable: &'static [&'static str],
    /// What else it may do.
    changes: &'static [Change],
    /// The functions of the schema that it may call.
    callable: &'static [&'static str],
}

/// What a role may do with columns of a relation.
struct Change {
    privilege: &'static str,
    relation: &'static str,
    columns: &'static [&'static str],
}

/// For the keys of tenants, and for what operators read of one tenant. It changes nothing.
const OF_TENANTS: Rights = Rights {
    readable: &[
        "_sqlx_migrations",
        "conversation_stats",
        "conversations",
        "daily_stats",
        "hot_epoch",
        "message_rows",
        "message_tokens",
        "session_events",
        "sessions",
    ],
    changes: &[],
    callable: &[
        "verbatim_api_key(text,bytea)",
        "verbatim_api_key_versions(text[])",
        "verbatim_api_keys_used(text[],timestamp with time zone[])",
        "verbatim_audit(text,text[],text[],text[],text[],text[])",
        "verbatim_conversations_with_words(text[],text,text,text,timestamp with time zone,timestamp with time zone,\
         timestamp with time zone,text,integer,integer)",
        "verbatim_signed_request(text,text,text,bytea,interval)",
        "verbatim_tenant()",
    ],
};

/// For the scope `operate`: dead letters. It reads messages to see whether a replay has stored one. What arrived stays as
/// it arrived, and an entry of the audit log is numbered and dated by the log.
const OF_OPERATORS: Rights = Rights {
    readable: &["_sqlx_migrations", "conversations", "dead_letters", "message_rows"],
    changes: &[
        Change {
            privilege: "INSERT",
            relation: "audit_log",
            columns: &["action", "actor", "detail", "subject", "tenant_id"],
        },
        Change {
            privilege: "UPDATE",
            relation: "dead_letters",
            columns: &[
                "replay_fault",
                "replay_lease_until",
                "replay_run",
                "replay_tried_at",
                "status",
                "status_changed_at",
                "status_reason",
            ],
        },
    ],
    callable: &["verbatim_tenant()"],
};

/// Relations that have no rows of tenants, and so no row-level security.
const OF_NO_TENANT: [&str; 2] = ["_sqlx_migrations", "hot_epoch"];

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

/// Which of the two roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApiRoleKind {
    /// That of `API_DATABASE_URL`: reads the rows of one tenant at a time.
    Tenants,
    /// That of `API_OPERATOR_DATABASE_URL`: sees dead letters and changes them.
    Operators,
}

/// A role, as a URL names it.
#[derive(Clone)]
pub struct ApiRole {
    /// Which of the two.
    pub kind: ApiRoleKind,
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
    /// Fails if PostgreSQL does not accept the signature with which this database sees rows.
    pub(crate) async fn verify_signature(&self) -> Result<(), SchemaError> {
        let query = sqlx::query_as("SELECT verbatim_tenant()");
        let seen: Result<(String,)> = self.value(query).await;
        seen.map(drop).map_err(|error| match error.is_missing_privilege() {
            true => SchemaError::TenantKey,
            false => error.into(),
        })
    }

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
                // Only one `verbatim setup` changes roles at a time: two would fail with "tuple concurrently updated".
                sqlx::query("LOCK TABLE api_tenant_keys IN SHARE ROW EXCLUSIVE MODE")
                    .execute(&mut *connection)
                    .await?;
                let exists = exists(connection, role).await?;
                if !exists {
                    create(connection, role).await?;
                }
                let granted = grant(connection, role).await?;
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
async fn grant(connection: &mut PgConnection, role: &ApiRole) -> Result<bool> {
    let rights = role.kind.rights();
    let wanted = sorted(
        rights.of_relations().into_iter().chain(rights.of_columns()),
        rights.callable.iter().map(|name| format!("EXECUTE on {name}")),
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
    .bind(&role.name)
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
                        ' || (SELECT string_agg(format('GRANT %s TO %%2$I; ', privilege), '')
                              FROM unnest($2::text[]) AS privilege)
                        || 'GRANT EXECUTE ON FUNCTION ' || array_to_string($3::text[], ', ') || ' TO %2$I',
                       current_schema(), $1, current_database())",
    )
    .bind(&role.name)
    .bind(rights.statements())
    .bind(rights.callable)
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

impl ApiRoleKind {
    fn rights(self) -> &'static Rights {
        match self {
            Self::Tenants => &OF_TENANTS,
            Self::Operators => &OF_OPERATORS,
        }
    }

    /// The setting with its URL.
    #[must_use]
    pub fn setting(self) -> &'static str {
        match self {
            Self::Tenants => "API_DATABASE_URL",
            Self::Operators => "API_OPERATOR_DATABASE_URL",
        }
    }
}

impl Rights {
    /// Each as `SELECT on conversations`.
    fn of_relations(&self) -> Vec<String> {
        self.readable.iter().map(|name| format!("SELECT on {name}")).collect()
    }

    /// Each as `UPDATE on dead_letters.status`.
    fn of_columns(&self) -> Vec<String> {
        let of_change = |Change { privilege, relation, columns }: &Change| {
            let named = |column| format!("{privilege} on {relation}.{column}");
            columns.iter().map(named).collect::<Vec<_>>()
        };
        self.changes.iter().flat_map(of_change).collect()
    }

    /// Each as GRANT says it.
    fn statements(&self) -> Vec<String> {
        let of_change = |Change { privilege, relation, columns }: &Change| {
            format!("{privilege} ({}) ON {relation}", columns.join(", "))
        };
        self.of_relations().into_iter().chain(self.changes.iter().map(of_change)).collect()
    }

    /// The relations of which it has any right.
    fn relations(&self) -> Vec<&str> {
        self.readable.iter().copied().chain(self.changes.iter().map(|it| it.relation)).collect()
    }
}

/// Fails unless the role of this connection may touch what is listed above and nothing else, whether by grants, by
/// memberships or as an owner, and unless row-level security applies to it. Extensions are left out: some grant their own
/// views and functions to everyone.
pub(crate) async fn verify(database: &Database, kind: ApiRoleKind) -> Result<(), SchemaError> {
    match database.verify_schema_version().await {
        Err(SchemaError::Database(error)) if error.is_missing_privilege() => {
            let faults = "SELECT on _sqlx_migrations".to_owned();
            return Err(SchemaError::ApiRole { setting: kind.setting(), faults });
        }
        other => other?,
    }
    let rights = kind.rights();
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
             SELECT fault
             FROM (SELECT c.oid, c.relname::text AS name, privilege
                   FROM pg_class c, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER'])
                        AS privilege
                   WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
                     AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')) AS r
             CROSS JOIN LATERAL (
                 SELECT privilege || ' on ' || name AS fault
                 WHERE has_table_privilege(oid, privilege) <> (privilege || ' on ' || name = ANY ($1))
                 UNION ALL
                 SELECT privilege || ' on ' || name || '.' || a.attname
                 FROM pg_attribute a
                 WHERE a.attrelid = oid AND a.attnum > 0 AND NOT a.attisdropped
                   AND privilege IN ('SELECT', 'INSERT', 'UPDATE', 'REFERENCES') AND NOT has_table_privilege(oid, privilege)
                   AND has_column_privilege(oid, a.attnum, privilege)
                       <> (privilege || ' on ' || name || '.' || a.attname = ANY ($4))) AS faults
             UNION ALL
             SELECT 'row-level security of ' || c.relname
             FROM pg_class c
             WHERE c.relnamespace = current_schema()::regnamespace AND c.relname = ANY ($5)
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
    .bind(rights.of_relations())
    .bind(OF_NO_TENANT.as_slice())
    .bind(rights.callable)
    .bind(rights.of_columns())
    .bind(rights.relations())
    .persistent(database.keeps_statements());
    let faults: Vec<String> =
        database.statement(async |connection| Ok(query.fetch_all(connection).await?)).await?;
    match faults.is_empty() {
        true => Ok(()),
        false => Err(SchemaError::ApiRole { setting: kind.setting(), faults: faults.join(", ") }),
    }
}
