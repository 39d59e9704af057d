//! What operators see of running workers: `verify` without findings under load, and traces of messages.

#![expect(clippy::unwrap_used, reason = "a failure here is the failure of the test")]

use std::time::Duration;

use broker::Endpoints;
use conversation::RandomSource;
use database::{Database, Scope};
use domain::status::ConversationStatus;
use fixtures::{database_settings, endpoints, hot_store};
use hot_store::HotStore;
use inspect::{
    Finding, MatchKind, Repairs, Section, State, Tracer, Verifier, VerifyProgress,
    VerifyingSettings,
};
use metrics::Metrics;
use serde_json::json;
use system_tests::{Scenario, ServerSet, at, closed, key_of, message};

/// Conversations of the load, and messages of each.
const CONVERSATIONS: usize = 60;
const MESSAGES: usize = 20;

fn stores(scenario: &Scenario) -> (Database, HotStore, Endpoints) {
    let database = Database::open(&database::Settings {
        time_out: Duration::from_secs(30),
        lock_time_out: Duration::from_secs(5),
        ..database_settings(&scenario.database_url)
    });
    let database = database.unwrap();
    let hot = hot_store(&database, &scenario.redis_url, &Metrics::new());
    (database, hot, endpoints(&scenario.amqp_url))
}

async fn verify(scenario: &Scenario) -> Vec<Finding> {
    let (database, hot, endpoints) = stores(scenario);
    let settings = VerifyingSettings {
        grace: Duration::from_millis(500),
        idle: fixtures::default_criteria().idle,
        overdue_after: Duration::from_secs(60),
        repairs: Repairs::None,
    };
    let verifier = Verifier::new(database, hot, endpoints, RandomSource::random(), settings);
    let mut found = Vec::new();
    let ended = verifier
        .run(&Scope::default(), &Section::ALL, &mut |progress| {
            if let VerifyProgress::Found(finding) = progress {
                found.push(finding.clone());
            }
        })
        .await;
    for section in ended {
        assert_eq!(section.incomplete, None, "{:?}", section.section);
    }
    found
}

#[tokio::test]
async fn a_fleet_under_load_has_no_findings_and_a_trace_names_who_saved_a_message() {
    let servers = ServerSet::own().await;
    let scenario = &servers.scenario;
    let (agent, reader) = (scenario.agent(), scenario.reader());
    // Meanwhile: messages are saved, readers load hot copies, sessions close, late messages reopen
    // conversations, and `verify` runs.
    let load = async {
        for n in 0..MESSAGES {
            let batch: Vec<_> = (0..CONVERSATIONS)
                .map(|c| {
                    let micros = i64::try_from(n).unwrap() * 1_000_000;
                    let extra = json!({"timestamp": at(micros), "agent_id": format!("a{}", c % 3)});
                    message("load", &format!("s{c}"), &format!("m{n}-{c}"), &extra)
                })
                .collect();
            agent.publish_all(&batch).await;
            let c = n % CONVERSATIONS;
            agent.publish(&closed("load", &format!("s{c}"), &json!({"satisfaction": 4}))).await;
            for message in &batch[..10] {
                let stored = "SELECT count(*) > 0 FROM messages WHERE conversation_id = '";
                let id = key_of(message).conversation;
                scenario.until_sql(&format!("{stored}{id}'"), "true").await;
                reader.transcript(&key_of(message)).await;
            }
        }
    };
    let watch = async {
        for round in 0..3 {
            let found = verify(scenario).await;
            assert!(found.is_empty(), "round {round}: {found:#?}");
        }
    };
    tokio::join!(load, watch);
    let all = (CONVERSATIONS * MESSAGES).to_string();
    scenario.until_sql("SELECT count(*) FROM messages", &all).await;

    // A message that cannot be decoded, and a conversation that is archived.
    let bad = message("load", "s-bad", "m-bad", &json!({"role": "bot"}));
    agent.publish(&bad).await;
    scenario.until_sql("SELECT count(*) FROM dead_letters", "1").await;
    let good = message("load", "s-good", "m-good", &json!({"agent_id": "a"}));
    agent.publish(&good).await;
    scenario.until_sql("SELECT count(*) FROM messages WHERE id = 'm-good'", "1").await;
    agent.publish(&closed("load", "s-good", &json!({"reason": "done"}))).await;
    reader.reaches(&key_of(&good), ConversationStatus::Archived).await;
    let writers = "SELECT count(*) FROM writers w
                   WHERE EXISTS (SELECT FROM message_rows m WHERE m.saved_by = w.id)
                      AND process = 'message-save-worker'";
    assert!(["1", "2"].contains(&&*scenario.sql(writers).await), "one or both savers");
    let unsigned = "SELECT count(*) FROM message_rows WHERE saved_by IS NULL";
    assert_eq!(scenario.sql(unsigned).await, "0");

    let (database, hot, endpoints) = stores(scenario);
    let tracer = Tracer::new(database, Some(hot), Some(endpoints));
    let traced = tracer.trace("m-good", None, &mut |_| {}).await.unwrap();
    let [item] = &traced.items[..] else { panic!("{traced:#?}") };
    assert_eq!((item.matched, item.state), (MatchKind::Message, State::Archived));
    let saved = item.timeline.iter().find(|moment| moment.what == "saved").unwrap();
    let pids = servers.savers.each_ref().map(|saver| format!(":{},", saver.pid()));
    assert!(pids.iter().any(|pid| saved.text.contains(pid)), "{saved:?}, {pids:?}");
    let asked = item.timeline.iter().find(|moment| moment.what == "close requested").unwrap();
    assert_eq!(asked.text, "its last session closed; reason: done");
    let traced = tracer.trace("m-bad", None, &mut |_| {}).await.unwrap();
    let [item] = &traced.items[..] else { panic!("{traced:#?}") };
    assert_eq!(item.state, State::DeadLetter);
    let given_up = item.timeline.iter().find(|moment| moment.what == "dead-lettered").unwrap();
    assert!(
        given_up.text.starts_with("schema (role) in conversation.save_message: "),
        "{given_up:?}"
    );
    let found = verify(scenario).await;
    assert!(found.is_empty(), "{found:#?}");
}
