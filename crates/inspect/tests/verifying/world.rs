//! Servers with conversations, and what a verifier finds in them.

use std::time::Duration;

use conversation::{ClaimCriteria, Closer, RandomSource};
use database::Scope;
use fixtures::{
    Replica, at_once, closer, default_criteria, endpoints, hot_store, key, refresh, sql, stores,
    sweep, to_save,
};
use inspect::{
    Finding, Kind, RepairOutcome, Repairs, Section, Verified, Verifier, VerifyProgress,
    VerifyingSettings,
};
use metrics::Metrics;
use serde_json::json;
use testkit::TestEnv;

/// All sections but queues: no statistics-worker runs here, so the closers' events stay queued.
pub(crate) const STORED: [Section; 5] =
    [Section::HotCopies, Section::Conversations, Section::Days, Section::Words, Section::Integrity];

pub(crate) struct World {
    pub(crate) env: TestEnv,
    pub(crate) replica: Replica,
    pub(crate) closer: Closer,
    pub(crate) overdue_after: Duration,
}

impl World {
    pub(crate) async fn new() -> Self {
        let (env, replica) = stores().await;
        let closer = closer(&env, &replica, at_once()).await;
        Self { env, replica, closer, overdue_after: Duration::from_secs(60) }
    }

    /// Three messages a second apart, and two in another conversation.
    pub(crate) async fn with_messages() -> Self {
        let world = Self::new().await;
        let at = |id: &str, second: u8| {
            to_save("s", id, &json!({"timestamp": format!("2026-11-20T10:00:0{second}Z")}))
        };
        world.replica.save(&[at("m1", 1), at("m2", 2), at("m3", 3)]).await;
        world.replica.save(&[to_save("t", "t1", &json!({})), to_save("t", "t2", &json!({}))]).await;
        world
    }

    /// [`Self::with_messages`], and both conversations have a hot copy that readers use.
    pub(crate) async fn with_copies() -> Self {
        let world = Self::with_messages().await;
        world.replica.read_both(&key("s"), 10).await;
        world.replica.read_both(&key("t"), 10).await;
        world
    }

    /// [`Self::with_messages`], archived, with statistics and words.
    pub(crate) async fn archived() -> Self {
        let world = Self::with_messages().await;
        world.sql("UPDATE conversations SET close_requested_at = now()").await;
        world.fleet().await;
        assert_eq!(world.sql("SELECT count(*) FROM conversation_stats").await, "2");
        assert_eq!(world.sql("SELECT count(*) FROM conversation_words").await, "2");
        world
    }

    /// Does what a fleet would have done by now.
    pub(crate) async fn fleet(&self) {
        sweep(&self.closer).await;
        refresh(&self.replica.statistics).await;
        while self.replica.words.write().await.unwrap() > 0 {}
    }

    pub(crate) async fn sql(&self, statement: &str) -> String {
        sql(&self.env, statement).await
    }

    pub(crate) fn verifier(&self, repairs: Repairs) -> Verifier {
        self.verifier_at(&self.env.redis_url, repairs)
    }

    pub(crate) fn verifier_at(&self, redis_url: &str, repairs: Repairs) -> Verifier {
        let database = self.replica.database.clone();
        let hot = hot_store(&database, redis_url, &Metrics::new());
        let endpoints = endpoints(&self.env.amqp_url);
        let ClaimCriteria { grace, idle, .. } = default_criteria();
        let settings =
            VerifyingSettings { grace, idle, overdue_after: self.overdue_after, repairs };
        Verifier::new(database, hot, endpoints, RandomSource::random(), settings)
    }

    pub(crate) async fn findings(&self, sections: &[Section]) -> Vec<Finding> {
        run(&self.verifier(Repairs::None), &Scope::default(), sections).await.0
    }

    /// Asserts that the same is found without and with repairs, and that all is repaired.
    pub(crate) async fn repaired(&self, sections: &[Section]) -> Vec<Finding> {
        let mut found = self.findings(sections).await;
        let actor = Repairs::By("the night shift".to_owned());
        let repaired = run(&self.verifier(actor), &Scope::default(), sections).await.0;
        for finding in &mut found {
            assert_eq!(finding.repair_outcome, RepairOutcome::NotRequested, "{finding:?}");
            finding.repair_outcome = RepairOutcome::Done;
        }
        assert_eq!(repaired, found);
        found
    }

    pub(crate) async fn is_clean(&self) {
        assert_eq!(self.findings(&STORED).await, []);
    }
}

pub(crate) async fn run(
    verifier: &Verifier,
    scope: &Scope,
    sections: &[Section],
) -> (Vec<Finding>, Vec<Verified>) {
    let mut found = Vec::new();
    let ended = verifier
        .run(scope, sections, &mut |progress| {
            if let VerifyProgress::Found(finding) = progress {
                found.push(finding.clone());
            }
        })
        .await;
    (found, ended)
}

/// Exactly one finding of a kind, about a session's conversation.
pub(crate) fn one(found: &[Finding], kind: Kind, session: &str) -> Finding {
    let [finding] = found else { panic!("{found:#?}") };
    let place = (finding.kind, finding.tenant_id.as_deref(), finding.conversation_id.as_deref());
    assert_eq!(
        place,
        (kind, Some("acme"), Some(key(session).conversation.as_str())),
        "{finding:?}"
    );
    finding.clone()
}
