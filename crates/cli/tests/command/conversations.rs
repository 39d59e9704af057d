//! `verbatim conversation`.

use domain::ids::{ConversationKey, SessionId, TenantId};
use fixtures::body;
use serde_json::{Value, json};

use crate::support::{Verbatim, prepared, save};

fn conversation(session: &str) -> String {
    let key = ConversationKey::of_session(
        TenantId::new("acme").unwrap(),
        &SessionId::new(session).unwrap(),
    );
    key.conversation.to_string()
}

fn ids(shown: &Value) -> Vec<&str> {
    let messages = shown["messages"].as_array().unwrap();
    messages.iter().map(|message| message["id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn conversations_are_listed_by_tenant_status_agent_and_session() {
    let (env, verbatim) = prepared().await;
    let other = body("s", "m-1", &json!({"tenant_id": "umbrella"}));
    let agent = body("t", "m-2", &json!({"agent_id": "a-7", "timestamp": "2026-11-20T11:00:00Z"}));
    save(&env, &[body("s", "m-1", &json!({})), other, agent]).await;

    let all = verbatim.json(&["conversation", "list"]).await;
    assert_eq!(all.as_array().unwrap().len(), 3);
    assert_eq!(all[0]["session_id"], "t", "the newest comes first: {all}");
    let of = async |arguments: &[&str]| {
        let arguments = [&["conversation", "list"], arguments].concat();
        let found = verbatim.json(&arguments).await;
        let found = found.as_array().unwrap().iter();
        found.map(|row| format!("{}/{}", row["tenant_id"], row["session_id"])).collect::<Vec<_>>()
    };
    assert_eq!(of(&["--tenant", "umbrella"]).await, [r#""umbrella"/"s""#]);
    assert_eq!(of(&["--agent", "a-7"]).await, [r#""acme"/"t""#]);
    assert_eq!(of(&["--tenant", "acme", "--session", "s"]).await, [r#""acme"/"s""#]);
    assert_eq!(of(&["--status", "archived"]).await, [""; 0]);
    assert_eq!(of(&["--limit", "2"]).await.len(), 2);
    let text = verbatim.run(&["conversation", "list", "--limit", "1"]).await.out;
    assert!(text.contains("the newest 1 conversation; --limit shows more"), "{text}");
}

#[tokio::test]
async fn a_transcript_comes_from_redis_once_loaded_and_is_the_same_from_postgresql() {
    let (env, verbatim) = prepared().await;
    let messages: Vec<Value> = (0..5)
        .map(|n| {
            let time = format!("2026-11-20T10:00:0{n}Z");
            body("s", &format!("m-{n}"), &json!({"timestamp": time, "metadata": {"n": n}}))
        })
        .collect();
    save(&env, &messages).await;
    let show = ["conversation", "show", "--tenant", "acme"];
    let of_session = [&show[..], &["--session", "s"]].concat();

    let first = verbatim.json(&of_session).await;
    assert_eq!((&first["source"], &first["degraded"]), (&json!("postgresql"), &json!(false)));
    let second = verbatim.json(&of_session).await;
    assert_eq!(second["source"], "redis", "the first read loaded the hot copy");
    assert_eq!(first["messages"], second["messages"]);
    assert_eq!(ids(&second), ["m-0", "m-1", "m-2", "m-3", "m-4"]);
    assert_eq!(second["messages"][3]["metadata"], json!({"n": 3}));
    assert_eq!(second["conversation"]["id"], conversation("s"));
    assert_eq!(second["conversation"]["status"], "active");

    let id = conversation("s");
    for source in ["redis", "postgresql"] {
        let arguments = [&show[..], &[&id, "--source", source, "--last", "2"]].concat();
        let shown = verbatim.json(&arguments).await;
        assert_eq!(shown["source"], source);
        assert_eq!(ids(&shown), ["m-3", "m-4"]);
    }
    let text = verbatim.run(&[&of_session[..], &["--last", "2"]].concat()).await.out;
    assert!(text.contains("the newest 2 of 5 messages, from the hot copy in Redis"), "{text}");
    assert!(text.contains("2026-11-20 10:00:04.000  user  m-4\n  content of m-4\n"), "{text}");
}

#[tokio::test]
async fn a_conversation_with_an_id_of_its_own_is_found_by_its_session() {
    let (env, verbatim) = prepared().await;
    save(&env, &[body("s", "m-1", &json!({"conversation_id": "case/7"}))]).await;
    let show = ["conversation", "show", "--tenant", "acme", "--session", "s"];
    let shown = verbatim.json(&show).await;
    assert_eq!(shown["conversation"]["id"], "case/7");

    save(&env, &[body("s", "m-1", &json!({"conversation_id": "case/8"}))]).await;
    let ran = verbatim.run(&show).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains("session s began 2 conversations"), "{ran:?}");
    assert!(ran.err.contains("case/7") && ran.err.contains("case/8"), "{ran:?}");

    let cases = (9..30).map(|n| body("s", "m-1", &json!({"conversation_id": format!("case/{n}")})));
    save(&env, &cases.collect::<Vec<_>>()).await;
    let ran = verbatim.run(&show).await;
    assert!(ran.err.contains("session s began more than 20 conversations"), "{ran:?}");
    assert_eq!(ran.err.matches("case/").count(), 20, "{ran:?}");
}

#[tokio::test]
async fn a_missing_conversation_or_hot_copy_is_named_and_exits_with_1() {
    let (env, verbatim) = prepared().await;
    let ran = verbatim.run(&["conversation", "show", "--tenant", "acme", "c-1"]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains("tenant acme has no conversation c-1"), "{ran:?}");
    assert_eq!(verbatim.run(&["conversation", "list"]).await.out, "no conversations\n");

    save(&env, &[body("s", "m-1", &json!({}))]).await;
    let show = ["conversation", "show", "--tenant", "acme", "--session", "s", "--source", "redis"];
    let ran = verbatim.run(&show).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains("Redis has no usable hot copy: "), "{ran:?}");
}

#[tokio::test]
async fn with_redis_unreachable_the_transcript_comes_from_postgresql_with_the_error() {
    let (env, verbatim) = prepared().await;
    save(&env, &[body("s", "m-1", &json!({}))]).await;
    let show = ["conversation", "show", "--tenant", "acme", "--session", "s"];
    let without_redis = Verbatim::default()
        .with("DATABASE_URL", &env.database_url)
        .with("REDIS_URL", "redis://127.0.0.1:9/0");
    let shown = without_redis.json(&show).await;
    assert_eq!(shown["source"], "postgresql");
    assert!(shown["redis_error"].is_string(), "{shown}");
    assert_eq!(ids(&shown), ["m-1"]);
    let ran = without_redis.run(&[&show[..], &["--source", "redis"]].concat()).await;
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(ran.err.contains("Redis at redis://127.0.0.1:9/0"), "{ran:?}");

    let without = Verbatim::default().with("DATABASE_URL", &env.database_url);
    let shown = without.json(&show).await;
    assert_eq!((&shown["source"], &shown["redis_error"]), (&json!("postgresql"), &json!(null)));
    let ran = without.run(&[&show[..], &["--source", "redis"]].concat()).await;
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.err.contains("REDIS_URL: it is not set"), "{ran:?}");
    drop(verbatim);
}

#[tokio::test]
async fn an_archived_conversation_is_shown_with_its_statistics() {
    let (env, verbatim) = prepared().await;
    let answer = json!({"role": "assistant", "timestamp": "2026-11-20T10:00:02Z"});
    save(&env, &[body("s", "m-1", &json!({})), body("s", "m-2", &answer)]).await;
    // The state after a close.
    env.psql(
        "INSERT INTO message_tokens SELECT conversation, id, 5 FROM message_rows;
         UPDATE conversations SET status = 'archived', message_count = 2, total_tokens = 10,
             closed_at = now(), finalised_at = now(), close_reason = 'user_left', satisfaction = 4",
    )
    .await
    .unwrap();
    let statistics = conversation::Statistics::new(
        &fixtures::database(&env.database_url),
        metrics::Metrics::new(),
        fixtures::unthrottled(),
    );
    assert_eq!(fixtures::refresh(&statistics).await, (1, 1));

    let show = ["conversation", "show", "--tenant", "acme", "--session", "s"];
    let shown = verbatim.json(&show).await;
    assert_eq!(shown["statistics"]["total_tokens"], 10);
    assert_eq!(shown["statistics"]["avg_response_seconds"], 2.0);
    assert_eq!(shown["conversation"]["close_reason"], "user_left");
    let text = verbatim.run(&show).await.out;
    assert!(text.contains("2 messages (1 user, 1 assistant), 10 tokens"), "{text}");
    assert!(text.contains("(user_left)") && text.contains("4 of 5"), "{text}");
}
