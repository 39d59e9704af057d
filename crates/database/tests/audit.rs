//! The audit log: whatever writes an entry continues a chain, and whatever was changed later is found.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::time::Duration;

use database::{
    Actor, ApiDatabase, ApiRoleKind, AuditFilter, AuditFinding, AuditReport, Database,
    NewAuditEntry, Statements, TenantKey,
};
use domain::ids::TenantId;
use serde_json::json;
use sqlx::{Connection as _, PgConnection};
use support::{api_role, migrated, settings};
use testkit::TestEnv;
use uuid::Uuid;

struct Log {
    env: TestEnv,
    owner: Database,
    api: ApiDatabase,
}

impl Log {
    async fn new() -> Self {
        let env = TestEnv::new().await;
        let owner = migrated(&env).await;
        let key = TenantKey::new([1; 32]);
        let (_, url) = api_role(&env, &owner, ApiRoleKind::Tenants, &key).await;
        let api = ApiDatabase::open(&settings(&url), key, Statements::Prepared).unwrap();
        Self { env, owner, api }
    }

    /// Entries of this process, of the API and of two sessions of psql.
    async fn fill(&self) {
        let actor = Actor { name: "ops".to_owned(), run: Uuid::nil(), tenant: tenant("acme") };
        for n in 0..3 {
            self.owner.record_run(&actor, "test.run", &json!({ "n": n, "x": "ü" })).await.unwrap();
        }
        let read = |name: Option<TenantId>, subject: Option<&str>| NewAuditEntry {
            actor: "key".to_owned(),
            action: "conversation.read",
            tenant: name,
            subject: subject.map(str::to_owned),
            detail: json!({ "messages": 5 }),
        };
        let entries = [
            read(tenant("acme"), Some("c1")),
            read(tenant("globex"), Some("c2")),
            read(tenant("acme"), None),
            read(None, Some("")),
        ];
        self.api.audit(&entries).await.unwrap();
        for name in ["first", "second"] {
            let insert = format!(
                "INSERT INTO audit_log (actor, action) SELECT '{name}', 'by_hand.' || n FROM generate_series(1, 3) AS n"
            );
            self.sql(&insert).await;
        }
    }

    async fn sql(&self, sql: &str) -> String {
        self.env.psql(sql).await.unwrap()
    }

    /// What the owner of the tables does to hide something.
    async fn tamper(&self, sql: &str) {
        self.sql(&format!(
            "ALTER TABLE audit_log DISABLE TRIGGER USER; ALTER TABLE audit_checkpoints DISABLE TRIGGER USER; {sql};
             ALTER TABLE audit_log ENABLE TRIGGER USER; ALTER TABLE audit_checkpoints ENABLE TRIGGER USER"
        ))
        .await;
    }

    async fn verified(&self) -> AuditReport {
        self.owner.verify_audit(&[], |_| {}).await.unwrap()
    }
}

fn tenant(name: &str) -> Option<TenantId> {
    Some(TenantId::new(name).unwrap())
}

#[tokio::test]
async fn all_entries_of_a_process_are_one_chain_and_a_session_of_its_own_has_another() {
    let log = Log::new().await;
    log.fill().await;
    let chains =
        "SELECT string_agg(n || ' ' || process, ', ' ORDER BY n DESC, chain) FROM audit_chains";
    assert_eq!(log.sql(chains).await, "7 test, 3 psql, 3 psql");
    let report = log.verified().await;
    assert_eq!((report.entries, report.chains, report.found), (13, 3, 0), "{report:?}");
    let of_globex = AuditFilter { tenant: Some("globex".to_owned()), ..AuditFilter::default() };
    let found = log.owner.audit_entries(&of_globex, 10).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].subject.as_deref(), Some("c2"));
    let by_hand = AuditFilter { action: Some("by_hand".to_owned()), ..AuditFilter::default() };
    let found = log.owner.audit_entries(&by_hand, 4).await.unwrap();
    let actions: Vec<&str> = found.iter().map(|it| it.action.as_str()).collect();
    assert_eq!(actions, ["by_hand.3", "by_hand.1", "by_hand.2", "by_hand.3"]);
}

#[tokio::test]
async fn entries_that_are_written_at_once_take_numbers_in_a_row() {
    let log = Log::new().await;
    let entry = |n: usize| NewAuditEntry {
        actor: "key".to_owned(),
        action: "conversation.read",
        tenant: tenant("acme"),
        subject: Some(n.to_string()),
        detail: json!(null),
    };
    let writes = (0..64).map(|n| {
        let (api, entries) = (log.api.clone(), [entry(n), entry(n), entry(n)]);
        async move { api.audit(&entries).await.unwrap() }
    });
    futures_util::future::join_all(writes).await;
    let report = log.verified().await;
    assert_eq!((report.entries, report.chains, report.found), (192, 1, 0), "{report:?}");
}

#[tokio::test]
async fn nobody_changes_an_entry_by_mistake() {
    let log = Log::new().await;
    log.fill().await;
    for change in [
        "UPDATE audit_log SET actor = 'nobody'",
        "DELETE FROM audit_log",
        "TRUNCATE audit_log",
        "DELETE FROM audit_checkpoints",
    ] {
        let refused = log.env.psql(change).await.unwrap_err().to_string();
        assert!(refused.contains("append-only"), "{change}: {refused}");
    }
}

#[tokio::test]
async fn a_changed_a_removed_and_a_moved_entry_are_found() {
    let log = Log::new().await;
    log.fill().await;
    log.owner.checkpoint_audit().await.unwrap().unwrap();
    log.sql(
        "CREATE TABLE kept_log AS TABLE audit_log; CREATE TABLE kept_chains AS TABLE audit_chains;
             CREATE TABLE kept_checkpoints AS TABLE audit_checkpoints",
    )
    .await;
    let of_api = "chain = (SELECT chain FROM audit_chains WHERE process = 'test')";
    for (change, found) in [
        (format!("UPDATE audit_log SET actor = 'nobody' WHERE n = 2 AND {of_api}"), "EntryChanged"),
        (format!("UPDATE audit_log SET detail = '{{}}' WHERE n = 1 AND {of_api}"), "EntryChanged"),
        (format!("UPDATE audit_log SET tenant_id = NULL WHERE n = 5 AND {of_api}"), "EntryChanged"),
        (format!("UPDATE audit_log SET at = at + interval '1 microsecond' WHERE n = 5 AND {of_api}"), "EntryChanged"),
        // Two places change hands.
        (
            format!(
                "UPDATE audit_log SET n = -n WHERE n IN (2, 3) AND {of_api};
                 UPDATE audit_log SET n = CASE n WHEN -2 THEN 3 ELSE 2 END WHERE n < 0"
            ),
            "EntryChanged",
        ),
        (format!("DELETE FROM audit_log WHERE n = 1 AND {of_api}"), "EntriesRemoved"),
        (format!("DELETE FROM audit_log WHERE n = 4 AND {of_api}"), "EntriesRemoved"),
        (format!("DELETE FROM audit_log WHERE n = 7 AND {of_api}"), "EntriesRemoved"),
        (format!("DELETE FROM audit_log WHERE {of_api}"), "EntriesRemoved"),
        // The list of chains was changed with it: the checkpoint knows.
        (
            format!(
                "DELETE FROM audit_log WHERE n = 7 AND {of_api};
                 UPDATE audit_chains c SET n = 6, hash = (SELECT hash FROM audit_log l WHERE l.chain = c.chain AND l.n = 6)
                 WHERE c.n = 7"
            ),
            "NotAsRecorded",
        ),
        (
            format!("DELETE FROM audit_log WHERE {of_api}; DELETE FROM audit_chains WHERE n = 7"),
            "NotAsRecorded",
        ),
        ("DELETE FROM audit_chains WHERE n = 7".to_owned(), "ChainUnknown"),
        ("UPDATE audit_chains SET hash = '' WHERE n = 7".to_owned(), "EndChanged"),
        // The chain would be kept out of every later checkpoint.
        ("UPDATE audit_chains SET checked_n = 9223372036854775807 WHERE n = 7".to_owned(), "NeverRecorded"),
        ("DELETE FROM audit_checkpoints".to_owned(), "NeverRecorded"),
        // Entries behind the end, before the first, and of a chain without entries.
        (
            "INSERT INTO audit_log (at, actor, action, chain, n, hash)
             SELECT now(), 'a', 'b', chain, 8, '' FROM audit_chains WHERE n = 7"
                .to_owned(),
            "EntriesAdded",
        ),
        (
            "INSERT INTO audit_log (at, actor, action, chain, n, hash)
             VALUES (now(), 'a', 'b', '00000000-0000-0000-0000-000000000000', -5, '')"
                .to_owned(),
            "EntriesAdded",
        ),
        (
            "INSERT INTO audit_chains (chain, process, n, hash) VALUES (gen_random_uuid(), 'empty', 0, '');
             INSERT INTO audit_log (at, actor, action, chain, n, hash)
             SELECT now(), 'a', 'b', chain, 1, '' FROM audit_chains WHERE n = 0"
                .to_owned(),
            "EntriesAdded",
        ),
        ("UPDATE audit_checkpoints SET chains = '[]'".to_owned(), "CheckpointChanged"),
        ("UPDATE audit_checkpoints SET at = now()".to_owned(), "CheckpointChanged"),
        ("UPDATE audit_checkpoints SET n = 2".to_owned(), "CheckpointsRemoved"),
    ] {
        log.tamper(&change).await;
        let report = log.verified().await;
        let findings = format!("{:?}", report.findings);
        assert!(findings.contains(found), "{change}: {findings}");
        log.tamper(
            "DELETE FROM audit_log; INSERT INTO audit_log OVERRIDING SYSTEM VALUE TABLE kept_log;
             DELETE FROM audit_chains; INSERT INTO audit_chains TABLE kept_chains;
             DELETE FROM audit_checkpoints; INSERT INTO audit_checkpoints TABLE kept_checkpoints",
        )
        .await;
        let report = log.verified().await;
        assert_eq!(report.findings, [], "{change}");
    }
}

#[tokio::test]
async fn whoever_computes_all_hashes_again_is_found_by_a_checkpoint_that_was_kept_outside() {
    let log = Log::new().await;
    log.fill().await;
    let kept = log.owner.checkpoint_audit().await.unwrap().unwrap();
    assert_eq!((kept.n, kept.chains), (1, 3));
    let kept = [(kept.n, kept.hash.to_uppercase())];
    let report = log.owner.verify_audit(&kept, |_| {}).await.unwrap();
    assert_eq!((report.checkpoints, report.found), (1, 0), "{report:?}");
    assert_eq!(report.last_checkpoint, Some(format!("1:{}", kept[0].1.to_lowercase())));
    // The log is written again without its first entry, as if it had always been so.
    log.tamper(
        "CREATE TABLE kept AS TABLE audit_log; DELETE FROM audit_log; DELETE FROM audit_chains;
         DELETE FROM audit_checkpoints; ALTER TABLE audit_log ENABLE TRIGGER USER;
         INSERT INTO audit_log (actor, action, tenant_id, subject, detail)
         SELECT actor, action, tenant_id, subject, detail FROM kept ORDER BY id OFFSET 1",
    )
    .await;
    log.owner.checkpoint_audit().await.unwrap().unwrap();
    assert_eq!(log.verified().await.found, 0);
    let report = log.owner.verify_audit(&kept, |_| {}).await.unwrap();
    assert_eq!(report.findings, [AuditFinding::NotTheCheckpoint { n: 1 }]);
    let unknown = [(7, String::new())];
    let report = log.owner.verify_audit(&unknown, |_| {}).await.unwrap();
    assert_eq!(report.findings, [AuditFinding::NotTheCheckpoint { n: 7 }]);
}

#[tokio::test]
async fn a_checkpoint_waits_for_no_writer_and_no_writer_for_a_checkpoint() {
    let log = Log::new().await;
    log.fill().await;
    let mut writer = PgConnection::connect(&log.env.database_url).await.unwrap();
    let mut writing = writer.begin().await.unwrap();
    sqlx::query("UPDATE audit_chains SET process = process").execute(&mut *writing).await.unwrap();
    let first = log.owner.checkpoint_audit().await.unwrap().unwrap();
    assert_eq!((first.n, first.chains), (1, 3));
    writing.rollback().await.unwrap();
    assert_eq!(log.verified().await.found, 0);
    // The chains were held: the next checkpoint records their ends again.
    log.tamper("UPDATE audit_checkpoints SET at = at - interval '1 hour'").await;
    let second = log.owner.checkpoint_audit().await.unwrap().unwrap();
    assert_eq!((second.n, second.chains), (2, 3));
}

#[tokio::test]
async fn a_checkpoint_is_made_when_there_is_something_new_and_by_one_process_alone() {
    let log = Log::new().await;
    assert_eq!(log.owner.checkpoint_audit().await.unwrap(), None);
    assert_eq!(log.owner.audit_checkpoint_lag().await.unwrap(), Duration::ZERO);
    log.fill().await;
    assert!(log.owner.audit_checkpoint_lag().await.unwrap() > Duration::ZERO);
    let makes = (0..8).map(|_| log.owner.checkpoint_audit());
    let made = futures_util::future::join_all(makes).await;
    let made: Vec<_> = made.into_iter().filter_map(Result::unwrap).collect();
    assert_eq!(made.len(), 1, "{made:?}");
    let earlier = "UPDATE audit_checkpoints SET at = at - interval '1 hour'";
    log.tamper(earlier).await;
    assert_eq!(log.owner.checkpoint_audit().await.unwrap(), None, "nothing was written since");
    assert_eq!(log.owner.audit_checkpoint_lag().await.unwrap(), Duration::ZERO);
    log.sql("INSERT INTO audit_log (actor, action) VALUES ('a', 'b')").await;
    let lag = log.owner.audit_checkpoint_lag().await.unwrap();
    assert!((3_600..3_700).contains(&lag.as_secs()), "{lag:?}");
    let second = log.owner.checkpoint_audit().await.unwrap().unwrap();
    assert_eq!((second.n, second.chains), (2, 1));
}
