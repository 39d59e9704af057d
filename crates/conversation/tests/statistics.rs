//! What the statistics of days promise: one row for each agent and model, and averages that can be combined.

use conversation::Closer;
use domain::action::SaveMessage;
use fixtures::{
    Replica, action, applied, at_once, closer, feedback, refresh, sql, stores, sweep, to_save,
};
use serde_json::json;
use testkit::TestEnv;

struct World {
    env: TestEnv,
    replica: Replica,
    closer: Closer,
}

impl World {
    async fn new() -> Self {
        let (env, replica) = stores().await;
        let closer = closer(&env, &replica, at_once()).await;
        Self { env, replica, closer }
    }

    /// Closes everything and refreshes the statistics; returns how many conversations and days were computed.
    async fn archive(&self) -> (usize, usize) {
        self.sql("UPDATE conversations SET close_requested_at = now() WHERE status = 'active'")
            .await;
        while sweep(&self.closer).await.archived > 0 {}
        refresh(&self.replica.statistics).await
    }

    async fn sql(&self, statement: &str) -> String {
        sql(&self.env, statement).await
    }

    /// A conversation of that day whose user waits for this long for each answer.
    async fn answered_after(&self, session: &str, day: u8, seconds: &[u32]) {
        let mut messages = Vec::new();
        for (n, seconds) in seconds.iter().enumerate() {
            let at = |role: &str, second: u32| {
                let time = format!("2026-11-{day}T10:0{n}:{second:02}Z");
                to_save(session, &format!("{role}{n}"), &json!({"role": role, "timestamp": time}))
            };
            messages.extend([at("user", 0), at("assistant", *seconds)]);
        }
        self.replica.save(&messages).await;
    }
}

fn of_model(session: &str, id: &str, model: &str) -> SaveMessage {
    to_save(session, id, &json!({"agent_id": "ada", "model_name": model}))
}

#[tokio::test]
async fn two_models_of_one_agent_have_rows_of_their_own() {
    let world = World::new().await;
    let messages = [
        of_model("s", "s1", "gpt-5"),
        of_model("t", "t1", "gpt-5"),
        of_model("t", "t2", "gpt-5"),
        of_model("u", "u1", "claude"),
        to_save("v", "v1", &json!({"agent_id": "ada"})),
    ];
    world.replica.save(&messages).await;
    assert_eq!(world.archive().await, (4, 3));
    assert_eq!(
        world
            .sql(
                "SELECT agent_id, model_name, conversations, messages FROM daily_stats
                 ORDER BY model_name"
            )
            .await,
        "ada||1|1\nada|claude|1|1\nada|gpt-5|2|3"
    );
}

#[tokio::test]
async fn a_conversation_counts_for_the_model_of_its_newest_message_that_names_one() {
    let world = World::new().await;
    let at = |id: &str, minute: u8, extra: serde_json::Value| {
        let mut fields = json!({"timestamp": format!("2026-11-20T10:0{minute}:00Z")});
        fields.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        to_save("s", id, &fields)
    };
    let messages = [
        at("m1", 1, json!({"model_name": "old"})),
        at("m2", 2, json!({"model_name": "new"})),
        at("m3", 3, json!({})),
    ];
    world.replica.save(&messages).await;
    world.archive().await;
    let models = "SELECT s.model_name, d.model_name FROM conversation_stats s, daily_stats d";
    assert_eq!(world.sql(models).await, "new|new");
}

#[tokio::test]
async fn a_conversation_whose_model_changes_changes_both_rows() {
    let world = World::new().await;
    let at = |id: &str, minute: u8, model: &str| {
        let time = format!("2026-11-20T10:0{minute}:00Z");
        to_save("s", id, &json!({"agent_id": "ada", "model_name": model, "timestamp": time}))
    };
    world.replica.save(&[at("m1", 1, "first")]).await;
    assert_eq!(world.archive().await, (1, 1));
    world.replica.save(&[at("m2", 2, "second")]).await;
    assert_eq!(world.archive().await, (1, 2));
    let rows =
        "SELECT model_name, conversations, messages, dirty FROM daily_stats ORDER BY model_name";
    assert_eq!(world.sql(rows).await, "first|0|0|f\nsecond|1|2|f");
    // An older message of another model moves nothing.
    world.replica.save(&[at("m0", 0, "third")]).await;
    assert_eq!(world.archive().await, (1, 1));
    assert_eq!(world.sql(rows).await, "first|0|0|f\nsecond|1|3|f");
}

#[tokio::test]
async fn the_response_time_of_a_day_is_weighted_by_the_pairs() {
    let world = World::new().await;
    world.answered_after("s", 20, &[2, 4, 6]).await;
    world.answered_after("t", 20, &[20]).await;
    // Without a pair it has no response time, and no weight.
    world.replica.save(&[to_save("u", "u1", &json!({"timestamp": "2026-11-20T11:00:00Z"}))]).await;
    assert_eq!(world.archive().await, (3, 1));
    let conversations = "SELECT avg_response_seconds, responses FROM conversation_stats
                         ORDER BY responses DESC";
    assert_eq!(world.sql(conversations).await, "4|3\n20|1\n|0");
    let day = "SELECT conversations, avg_response_seconds, responses FROM daily_stats";
    assert_eq!(world.sql(day).await, "3|8|4");
}

#[tokio::test]
async fn a_day_without_pairs_and_ratings_has_no_averages_of_them() {
    let world = World::new().await;
    world.replica.save(&[to_save("s", "m1", &json!({}))]).await;
    world.archive().await;
    let day = "SELECT avg_response_seconds IS NULL, responses, avg_satisfaction IS NULL, ratings
               FROM daily_stats";
    assert_eq!(world.sql(day).await, "t|0|t|0");
}

#[tokio::test]
async fn averages_of_several_days_can_be_combined() {
    let world = World::new().await;
    world.answered_after("s", 20, &[2, 4, 6]).await;
    world.answered_after("t", 21, &[20]).await;
    world.answered_after("u", 21, &[10, 30]).await;
    world.answered_after("v", 21, &[50]).await;
    let rated = [("s", 5), ("t", 1), ("u", 3)].map(|(session, satisfaction)| {
        action(&feedback("acme", session, &json!({"satisfaction": satisfaction})))
    });
    assert_eq!(world.replica.sessions.record(&rated).await.unwrap(), vec![applied(); 3]);
    assert_eq!(world.archive().await, (4, 2));
    let combined = "SELECT sum(avg_duration_seconds * conversations) / sum(conversations),
                           sum(avg_response_seconds * responses) / sum(responses),
                           sum(avg_satisfaction * ratings) / sum(ratings) FROM daily_stats";
    let exact = "SELECT avg(duration_seconds),
                        sum(avg_response_seconds * responses) / sum(responses),
                        avg(satisfaction)::float8 FROM conversation_stats";
    assert_eq!(world.sql(combined).await, world.sql(exact).await);
    let response = "SELECT sum(avg_response_seconds * responses) / sum(responses) FROM daily_stats";
    let seconds: f64 = world.sql(response).await.parse().unwrap();
    assert!((seconds - 122.0 / 7.0).abs() < 1e-9, "{seconds}");
}

#[tokio::test]
async fn a_model_with_a_name_that_no_index_can_hold_has_statistics_like_any_other() {
    let world = World::new().await;
    // Of three bytes each, and such that compression does not help.
    let name: String = (0..20_000_u32)
        .map(|n| char::from_u32(0x4E00 + n.wrapping_mul(2_654_435_761) % 0x5000).unwrap())
        .collect();
    let longest = "i".repeat(512);
    let message = json!({"agent_id": longest, "model_name": name});
    let message = to_save("s", "m1", &message);
    world.replica.save(&[message, of_model("t", "t1", "gpt-5")]).await;
    assert_eq!(world.archive().await, (2, 2));
    let cut: String = name.chars().take(256).collect();
    let rows = "SELECT model_name, conversations FROM daily_stats ORDER BY model_name";
    assert_eq!(world.sql(rows).await, format!("gpt-5|1\n{cut}|1"));
}
