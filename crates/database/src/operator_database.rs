//! PostgreSQL as the conversation-api uses it for operators: dead letters, of one tenant or of all.
//!
//! As in [`crate::ApiDatabase`] each transaction names whose rows it sees, and row-level security enforces that.

use domain::ids::TenantId;

use crate::api_role::{self, ApiRoleKind};
use crate::{Database, Result, SchemaError, Settings, Statements, TenantKey, pooler};

/// The connections of the role of the API for operators. Cheap to clone.
#[derive(Clone)]
pub struct OperatorDatabase {
    database: Database,
    key: TenantKey,
}

impl OperatorDatabase {
    /// Creates the pool. It connects on first use.
    ///
    /// # Errors
    /// The URL cannot be parsed.
    pub fn open(settings: &Settings, key: TenantKey, statements: Statements) -> Result<Self> {
        Ok(Self { database: Database::open_as_role(settings, statements)?, key })
    }

    /// The dead letters of this tenant; with `None` those of every tenant, and those that name none.
    #[must_use]
    pub fn of(&self, tenant: Option<&TenantId>) -> Database {
        let every = || self.key.signed_for_every_tenant();
        self.database.of_tenant(tenant.map_or_else(every, |tenant| self.key.signed(tenant)))
    }

    /// As [`crate::ApiDatabase::verify`].
    ///
    /// # Errors
    /// As there.
    pub async fn verify(&self) -> Result<(), SchemaError> {
        if self.database.keeps_statements() && pooler::is_found(&self.database).await? {
            return Err(SchemaError::Pooler(ApiRoleKind::Operators.setting()));
        }
        api_role::verify(&self.database, ApiRoleKind::Operators).await?;
        self.of(None).verify_signature().await
    }
}
