//! Deleting single messages.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use conversation::{Deleted, Swept, ToSave};
use domain::action::Action;
use domain::failure::{Done, Outcome};
use fixtures::{
    Replica, action, at_once, closed, closer, ids, key, refresh, sql, stores, sweep, to_save,
};
use serde_json::json;
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt as _};

const ERASED: Outcome = Ok(Done::Erased);

async fn delete(replica: &Replica, action_id: &str, message: &str) -> Deleted {
    delete_all(replica, &[("s", action_id, message)]).await[0]
}

/// Deletes messages in one batch: the session, the id of the action and the message of each.
async fn delete_all(replica: &Replica, deletions: &[(&str, &str, &str)]) -> Vec<Deleted> {
    let actions = deletions.iter().map(|(session, action_id, message)| {
        let body = json!({
            "action_type": "conversation.delete_message", "tenant_id": "acme", "session_id": session,
            "action_id": action_id, "message_id": message,
        });
        let Action::DeleteMessage(common, payload) = action(&body) else { panic!("a deletion") };
        (common, payload.message_id)
    });
    let actions: Vec<_> = actions.collect();
    let deletions: Vec<_> = actions.iter().map(|(common, message)| (common, message)).collect();
    let deleted = replica.deletions.delete(&deletions).await.unwrap();
    deleted.into_iter().map(Result::unwrap).collect()
}

async fn save(replica: &Replica, id: &str, extra: serde_json::Value) -> Outcome {
    let mut fields = json!({"content": format!("text of {id}")});
    fields.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    replica.save(&[to_save("s", id, &fields)]).await.pop().unwrap()
}

#[tokio::test]
async fn a_deleted_message_is_read_nowhere_and_is_not_saved_again() {
    let (env, replica) = stores().await;
    for n in 1..=3 {
        let at = format!("2026-11-20T10:00:0{n}Z");
        save(&replica, &format!("m{n}"), json!({"timestamp": at})).await.unwrap();
    }
    assert_eq!(ids(&replica.read_both(&key("s"), 10).await), ["m1", "m2", "m3"]);
    assert_eq!(delete(&replica, "d1", "m2").await, Deleted::Now);
    assert_eq!(ids(&replica.read_both(&key("s"), 10).await), ["m1", "m3"]);
    // A redelivery, and a message that says something else, in one batch with a new one.
    let batch = [
        to_save("s", "m2", &json!({"content": "text of m2", "timestamp": "2026-11-20T10:00:02Z"})),
        to_save("s", "m4", &json!({"timestamp": "2026-11-20T10:00:04Z"})),
        to_save("s", "m2", &json!({"content": "other", "timestamp": "2026-11-20T10:00:02Z"})),
    ];
    assert_eq!(replica.save(&batch).await, [ERASED, Ok(Done::Applied), ERASED]);
    assert_eq!(ids(&replica.read_both(&key("s"), 10).await), ["m1", "m3", "m4"]);
    assert_eq!(delete(&replica, "d1", "m2").await, Deleted::Before);
    assert_eq!(delete(&replica, "d2", "m2").await, Deleted::ByAnother);
    let said = "SELECT count(*) FROM message_rows WHERE message_rows::text LIKE '%text of m2%'";
    assert_eq!(sql(&env, said).await, "0");
    assert_eq!(
        sql(&env, "SELECT string_agg(concat_ws('|', id, deleted_by), ',') FROM deleted_messages")
            .await,
        "m2|d1"
    );
}

#[tokio::test]
async fn a_message_that_comes_after_its_deletion_is_not_saved() {
    let (env, replica) = stores().await;
    assert_eq!(delete(&replica, "d1", "late").await, Deleted::Now);
    assert_eq!(sql(&env, "SELECT count(*) FROM messages").await, "0");
    assert_eq!(save(&replica, "late", json!({})).await, ERASED);
    assert_eq!(save(&replica, "m1", json!({})).await, Ok(Done::Applied));
    assert_eq!(ids(&replica.read_both(&key("s"), 10).await), ["m1"]);
}

#[tokio::test]
async fn of_two_deletions_at_once_one_is_carried_out() {
    let (env, replica) = stores().await;
    let other = Replica::of(&env);
    for n in 0..20 {
        let id = format!("m{n}");
        save(&replica, &id, json!({})).await.unwrap();
        let (one, two) = (format!("a{n}"), format!("b{n}"));
        let (one, two) = tokio::join!(delete(&replica, &one, &id), delete(&other, &two, &id));
        let mut both = [format!("{one:?}"), format!("{two:?}")];
        both.sort();
        assert_eq!(both, ["ByAnother", "Now"]);
    }
}

#[tokio::test]
async fn deletions_of_one_batch_are_carried_out_like_single_ones() {
    let (env, replica) = stores().await;
    let call = json!([{"id": "a", "type": "function"}, {"id": "b", "type": "function"}]);
    for session in ["one by one", "together"] {
        let messages = [
            ("m1", json!({})),
            ("ask", json!({"role": "assistant", "tool_calls": call})),
            ("a", json!({"role": "tool", "tool_call_id": "a"})),
            ("b", json!({"role": "tool", "tool_call_id": "b"})),
            ("gone", json!({})),
        ];
        let messages = messages.map(|(id, mut fields)| {
            fields["content"] = format!("text of {id}").into();
            to_save(session, id, &fields)
        });
        replica.save(&messages).await;
        delete_all(&replica, &[(session, "d0", "gone")]).await;
    }
    let deletions = [
        ("d2", "m1"),
        ("d1", "m1"),
        ("d2", "m1"),
        ("d3", "unknown"),
        ("d4", "a"),
        ("d5", "gone"),
        ("d0", "gone"),
        ("d6", "ask"),
        ("d6", "b"),
    ];
    let of = |session| deletions.map(|(action, message)| (session, action, message));
    let mut one_by_one = Vec::new();
    for deletion in of("one by one") {
        one_by_one.extend(delete_all(&replica, &[deletion]).await);
    }
    let together = delete_all(&replica, &of("together")).await;
    assert_eq!(together, one_by_one);
    use Deleted::{Before, ByAnother, Now};
    assert_eq!(together, [Now, ByAnother, Before, Now, Now, ByAnother, Before, Now, Now]);
    let stored = async |session: &str| {
        let stored = format!(
            "SELECT string_agg(concat_ws('|', m.id, m.content, m.tool_calls::text, m.tool_call_id, m.deleted_by, t.tokens), ', '
                               ORDER BY m.id)
             FROM conversations c JOIN message_rows m ON m.conversation = c.number
             LEFT JOIN message_tokens t ON t.conversation = m.conversation AND t.id = m.id
             WHERE c.id = '{}'",
            key(session).conversation
        );
        sql(&env, &stored).await
    };
    let expected = "a||d4|0, ask||d6|0, b||d6|0, gone||d0|0, m1||d2|0, unknown||d3";
    assert_eq!(stored("one by one").await, expected);
    assert_eq!(stored("together").await, expected);
}

#[tokio::test]
async fn deleting_fifty_messages_takes_as_many_statements_as_deleting_two() {
    let statements = Statements::default();
    // As in `reading.rs`: with a second dispatcher, tracing-core (0.1) asks this one for call sites that another test
    // reaches first.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let subscriber = tracing_subscriber::registry().with(statements.clone());
    let _subscriber = tracing::subscriber::set_default(subscriber);
    let (_env, replica) = stores().await;
    let ids: Vec<String> = (0..54).map(|n| format!("m{n}")).collect();
    let messages: Vec<_> = ids.iter().map(|id| to_save("s", id, &json!({}))).collect();
    replica.save(&messages).await;
    let deletions: Vec<_> = ids.iter().map(|id| ("s", "d", id.as_str())).collect();
    let mut counts = Vec::new();
    // The first batch also makes a connection.
    for batch in [&deletions[..2], &deletions[2..4], &deletions[4..]] {
        let before = statements.count();
        let deleted = delete_all(&replica, batch).await;
        assert!(deleted.iter().all(|it| *it == Deleted::Now), "{deleted:?}");
        counts.push(statements.count() - before);
    }
    assert!(counts[1] > 3, "statements are counted: {counts:?}");
    assert_eq!(counts[1], counts[2]);
}

/// Counts the statements that are sent to PostgreSQL on this thread.
#[derive(Clone, Default)]
struct Statements(Arc<AtomicUsize>);

impl Statements {
    fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl<S: tracing::Subscriber> Layer<S> for Statements {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == "sqlx::query" {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[tokio::test]
async fn a_message_that_is_deleted_while_it_is_saved_is_read_nowhere() {
    let (env, replica) = stores().await;
    save(&replica, "first", json!({"timestamp": "2026-11-20T10:00:00Z"})).await.unwrap();
    for n in 0..30 {
        let id = format!("m{n}");
        let action = format!("d{n}");
        let (saved, deleted) =
            tokio::join!(save(&replica, &id, json!({})), delete(&replica, &action, &id));
        assert!(saved.is_ok(), "{saved:?}");
        assert_eq!(deleted, Deleted::Now);
        assert_eq!(ids(&replica.read(&key("s"), 10).await.messages), ["first"], "{n}");
    }
    assert_eq!(sql(&env, "SELECT count(*) FROM messages").await, "1");
}

#[tokio::test]
async fn what_a_slow_saver_appends_after_a_deletion_is_not_read() {
    let (env, replica) = stores().await;
    for n in 1..=2 {
        let at = format!("2026-11-20T10:00:0{n}Z");
        save(&replica, &format!("m{n}"), json!({"timestamp": at})).await.unwrap();
    }
    replica.read_both(&key("s"), 10).await;
    // A saver has committed a message, and appends it to the copy only when it was deleted and the copy loaded again.
    let slow = to_save("s", "slow", &json!({"timestamp": "2026-11-20T10:00:03Z"}));
    let row = database::SaveRow::new(&slow.common.key, &slow.common.session, &slow.message);
    let (follow, each) = (database::HotWrites::Follow, database::Wanted::Each);
    replica.database.save(&[row], follow, &|| 7, each).await.unwrap();
    assert_eq!(delete(&replica, "d1", "slow").await, Deleted::Now);
    assert_eq!(ids(&replica.read_both(&key("s"), 10).await), ["m1", "m2"]);
    let late = [(key("s"), vec![&slow.message])];
    replica.hot.append_renewing(&late, |_| true).await.unwrap();
    for _ in 0..3 {
        assert_eq!(ids(&replica.read(&key("s"), 10).await.messages), ["m1", "m2"]);
    }
    // The read that found it loaded the copy again, without it.
    assert_eq!(ids(&replica.read_both(&key("s"), 10).await), ["m1", "m2"]);
    assert_eq!(sql(&env, "SELECT count(*) FROM messages").await, "2");
}

#[tokio::test]
async fn no_half_of_a_tool_pair_is_left() {
    let (env, replica) = stores().await;
    let call = |id: &str| json!({"id": id, "type": "function"});
    let messages = [
        (
            "ask",
            json!({"role": "assistant", "content": "Let me look.", "tool_calls": [call("a"), call("b")], "item": {"x": 1}}),
        ),
        ("a", json!({"role": "tool", "content": "result a", "tool_call_id": "a"})),
        ("b", json!({"role": "tool", "content": "result b", "tool_call_id": "b"})),
        ("again", json!({"role": "assistant", "tool_calls": [call("c")]})),
        (
            "c",
            json!({"role": "tool", "content": "result c", "tool_call_id": "c", "metadata": {"k": 1}}),
        ),
        ("branch", json!({"role": "assistant", "tool_calls": [call("d")]})),
        ("branch2", json!({"role": "assistant", "tool_calls": [call("d")]})),
        ("d", json!({"role": "tool", "content": "result d", "tool_call_id": "d"})),
    ];
    for (n, (id, extra)) in messages.iter().enumerate() {
        let mut extra = extra.clone();
        extra["timestamp"] = format!("2026-11-20T10:00:0{n}Z").into();
        save(&replica, id, extra).await.unwrap();
    }
    for id in ["a", "again", "branch"] {
        assert_eq!(delete(&replica, &format!("delete {id}"), id).await, Deleted::Now);
    }
    let stored = "SELECT string_agg(concat_ws('|', id, content, tool_calls::text, tool_call_id, item::text, metadata::text),
                                    ', ' ORDER BY created_at) FROM messages";
    assert_eq!(
        sql(&env, stored).await,
        r#"ask|Let me look.|[{"id":"b","type":"function"}], b|result b|b, c|, branch2|text of branch2|[{"id":"d","type":"function"}], d|result d|d"#
    );
    // The last result of a message that only called.
    assert_eq!(delete(&replica, "delete b", "b").await, Deleted::Now);
    let last = "SELECT concat_ws('|', content, tool_calls::text) FROM messages WHERE id = 'ask'";
    assert_eq!(sql(&env, last).await, "Let me look.");
    // What was sent is still recognised.
    let mut extra = messages[0].1.clone();
    extra["timestamp"] = "2026-11-20T10:00:00Z".into();
    assert_eq!(save(&replica, "ask", extra).await, Ok(Done::Duplicate));
    replica.read_both(&key("s"), 10).await;
}

#[tokio::test]
async fn an_archived_conversation_is_counted_again_without_the_deleted_message() {
    let (env, replica) = stores().await;
    let closer = closer(&env, &replica, at_once()).await;
    for n in 1..=3 {
        let at = format!("2026-11-20T10:00:0{n}Z");
        save(&replica, &format!("m{n}"), json!({"timestamp": at})).await.unwrap();
    }
    replica.sessions.record(&[action(&closed("acme", "s", &json!({})))]).await.unwrap();
    let counts =
        "SELECT concat_ws('|', status, message_count, total_tokens > 0) FROM conversations";
    while sweep(&closer).await != Swept::default() {}
    assert_eq!(sql(&env, counts).await, "archived|3|t");
    let tokens = sql(&env, "SELECT total_tokens FROM conversations").await;
    delete(&replica, "d1", "m3").await;
    while sweep(&closer).await != Swept::default() {}
    assert_eq!(sql(&env, counts).await, "archived|2|t");
    let fewer = format!("SELECT total_tokens < {tokens} FROM conversations");
    assert_eq!(sql(&env, &fewer).await, "t");
    refresh(&replica.statistics).await;
    let statistics = "SELECT concat_ws('|', message_count, total_tokens = (SELECT total_tokens FROM conversations))
                      FROM conversation_stats";
    assert_eq!(sql(&env, statistics).await, "2|t");
    // Without any message it has no statistics.
    delete(&replica, "d2", "m1").await;
    delete(&replica, "d3", "m2").await;
    while sweep(&closer).await != Swept::default() {}
    let archived = "SELECT concat_ws('|', status, message_count, total_tokens) FROM conversations";
    assert_eq!(sql(&env, archived).await, "archived|0|0");
    assert_eq!(sql(&env, "SELECT bool_or(reopened) FROM conversations").await, "f");
    refresh(&replica.statistics).await;
    assert_eq!(sql(&env, "SELECT count(*) FROM conversation_stats").await, "0");
    let days = "SELECT concat_ws('|', conversations, messages, tokens) FROM daily_stats";
    assert_eq!(sql(&env, days).await, "0|0|0");
}

#[tokio::test]
async fn an_atomic_action_is_saved_without_its_deleted_message() {
    let (env, replica) = stores().await;
    delete(&replica, "d1", "m2").await;
    let messages = ["m1", "m2", "m3"].map(|id| to_save("s", id, &json!({})));
    let to_save = |message| ToSave { atomic: true, ..ToSave::alone(0, message) };
    let outcomes = replica.saver.save_units(&messages.each_ref().map(to_save)).await.unwrap();
    assert_eq!(outcomes, [Ok(Done::Applied), ERASED, Ok(Done::Applied)]);
    let ids = "SELECT string_agg(id, ' ' ORDER BY id) FROM messages";
    assert_eq!(sql(&env, ids).await, "m1 m3");
}
