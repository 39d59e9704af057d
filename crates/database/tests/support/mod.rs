//! The schema, and a role of the conversation-api.

use std::time::Duration;

use database::{ApiRole, ApiRoleChange, ApiRoleKind, Database, Settings, TenantKey};
use testkit::TestEnv;

/// Five connections.
pub(crate) fn settings(url: &str) -> Settings {
    Settings {
        url: url.to_owned(),
        application: "test".to_owned(),
        connections: 5,
        time_out: Duration::from_secs(30),
        lock_time_out: Duration::from_millis(200),
    }
}

/// The schema, as its owner.
pub(crate) async fn migrated(env: &TestEnv) -> Database {
    let owner = Database::open(&settings(&env.database_url)).unwrap();
    owner.migrate(|| {}).await.unwrap();
    owner
}

/// Creates a role of the API with this key; returns it with its URL.
pub(crate) async fn api_role(
    env: &TestEnv,
    owner: &Database,
    kind: ApiRoleKind,
    key: &TenantKey,
) -> (ApiRole, String) {
    let name = match kind {
        ApiRoleKind::Tenants => env.api_role(),
        ApiRoleKind::Operators => env.operator_role(),
    };
    let (_, address) = env.database_url.rsplit_once('@').unwrap();
    let url = format!("postgres://{name}:s3cret@{address}");
    let role = ApiRole { kind, name, password: Some("s3cret".to_owned()) };
    let created = owner.set_up_api_role(&role, std::slice::from_ref(key)).await.unwrap();
    assert_eq!(created, ApiRoleChange::Created);
    (role, url)
}
