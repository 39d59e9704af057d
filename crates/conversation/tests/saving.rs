//! What saving promises: once, in order, byte for byte, in both stores.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use conversation::Source;
use domain::action::Identity;
use domain::failure::{DeadLetterReason, Dependency, Done, Failure, Outcome};
use domain::failure_policy::SLOW_LIMITS;
use domain::message::Content;
use fixtures::{
    Replica, action_received, applied, at_the_same_time, duplicate, ids, key, redis, saving, sql,
    stores, to_save,
};
use metrics::{Counter, TransactionRetry};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

fn is_conflict(outcome: &Outcome) -> bool {
    matches!(outcome, Err(Failure::DeadLetter(refusal)) if refusal.reason == DeadLetterReason::Conflict)
}

#[tokio::test]
async fn a_saved_message_is_durable_and_hot() {
    let (env, replica) = stores().await;
    let saved = replica.save(&[to_save("s", "m1", &json!({"role": "assistant"}))]).await;
    assert_eq!(saved, [applied()]);
    assert_eq!(sql(&env, "SELECT count(*) FROM messages").await, "1");
    let messages = replica.read_both(&key("s"), 10).await;
    assert_eq!(ids(&messages), ["m1"]);
    assert_eq!(messages[0].content.text(), "content of m1");
    assert_eq!(replica.metrics.count(Counter::MessagesSaved), 1);
}

#[tokio::test]
async fn the_expiry_of_a_hot_copy_is_renewed_at_the_first_message_after_a_minute_and_by_a_duplicate()
 {
    let (env, replica) = stores().await;
    let name = format!("messages:{{{}}}", key("s"));
    let expires = async || redis(&env, &["TTL", &name]).await > 80_000;
    let never_again = async || assert_eq!(redis(&env, &["PERSIST", &name]).await, 1);

    replica.save(&[to_save("s", "m1", &json!({}))]).await;
    assert!(expires().await, "at the first message");
    never_again().await;
    replica.save(&[to_save("s", "m2", &json!({}))]).await;
    assert!(!expires().await, "less than a minute later");
    sql(&env, "UPDATE conversations SET touched_at = touched_at - interval '61 s'").await;
    replica.save(&[to_save("s", "m3", &json!({}))]).await;
    assert!(expires().await, "a minute later");
    never_again().await;
    replica.save(&[to_save("s", "m3", &json!({}))]).await;
    assert!(expires().await, "the first saver may have crashed before it renewed the expiry");
    assert_eq!(ids(&replica.read_both(&key("s"), 10).await), ["m1", "m2", "m3"]);
}

#[tokio::test]
async fn ten_deliveries_of_one_message_store_it_once() {
    let (env, replica) = stores().await;
    let other = Replica::of(&env);
    let one = to_save("s", "m1", &json!({}));
    // Five in one batch, then five on two replicas.
    let saved = replica.save(&vec![one.clone(); 5]).await;
    assert_eq!(saved[0], applied());
    assert_eq!(saved[1..], vec![duplicate(); 4]);
    for replica in [&replica, &other, &replica, &other, &other] {
        assert_eq!(replica.save(std::slice::from_ref(&one)).await, [duplicate()]);
    }
    assert_eq!(ids(&replica.read_both(&key("s"), 10).await), ["m1"]);
    assert_eq!(sql(&env, "SELECT count(*) FROM messages").await, "1");
}

#[tokio::test]
async fn a_duplicate_that_differs_in_timestamp_or_metadata_changes_nothing() {
    let (_env, replica) = stores().await;
    replica.save(&[to_save("s", "m1", &json!({"metadata": {"try": 1}}))]).await;
    for extra in [
        json!({"timestamp": "2026-11-20T11:11:11Z"}),
        json!({"metadata": {"try": 2}}),
        json!({"tokens_estimate": 99, "processing_time_ms": 12.5}),
        json!({"agent_id": "somebody else"}),
    ] {
        assert_eq!(replica.save(&[to_save("s", "m1", &extra)]).await, [duplicate()]);
    }
    let messages = replica.read_both(&key("s"), 10).await;
    assert_eq!(messages.len(), 1);
    assert_eq!(messages[0].created_at.to_string(), "2026-11-20T10:00:00.000000Z");
    assert_eq!(messages[0].metadata.as_ref().unwrap().as_str(), r#"{"try":1}"#);
}

#[tokio::test]
async fn the_same_id_with_different_content_is_a_conflict_and_the_first_stays() {
    let (_env, replica) = stores().await;
    replica.save(&[to_save("s", "m1", &json!({}))]).await;
    for extra in [
        json!({"content": "different content"}),
        json!({"role": "assistant"}),
        json!({"tool_calls": [{"id": "c1"}]}),
        json!({"tool_call_id": "c1"}),
        json!({"content": [{"type": "text", "text": "content of m1"}]}),
    ] {
        let saved = replica.save(&[to_save("s", "m1", &extra.clone())]).await;
        assert!(is_conflict(&saved[0]), "{extra}: {saved:?}");
    }
    let messages = replica.read_both(&key("s"), 10).await;
    assert_eq!(ids(&messages), ["m1"]);
    assert_eq!(messages[0].content.text(), "content of m1");
}

#[tokio::test]
async fn conflicting_content_in_one_batch_leaves_the_first_and_its_duplicates() {
    let (_env, replica) = stores().await;
    let first = to_save("s", "m1", &json!({"content": "first"}));
    let second = to_save("s", "m1", &json!({"content": "second"}));
    let batch = [first.clone(), second.clone(), to_save("s", "m2", &json!({})), first, second];
    let saved = replica.save(&batch).await;
    assert_eq!((&saved[0], &saved[2], &saved[3]), (&applied(), &applied(), &duplicate()));
    assert!(is_conflict(&saved[1]) && is_conflict(&saved[4]), "{saved:?}");
    let messages = replica.read_both(&key("s"), 10).await;
    assert_eq!(messages[0].content.text(), "first");
}

#[tokio::test]
async fn two_replicas_with_conflicting_content_at_once_store_exactly_one() {
    let (env, one) = stores().await;
    let two = Replica::of(&env);
    for round in 0..20 {
        let id = format!("m{round}");
        let savers = [one.saver.clone(), two.saver.clone()];
        let results = at_the_same_time(2, |n| {
            let saver = savers[n].clone();
            let batch = [to_save("s", &id, &json!({"content": format!("by replica {n}")}))];
            async move { saver.save(&batch).await.unwrap().remove(0) }
        })
        .await;
        let winner = results.iter().position(|outcome| *outcome == applied()).expect("one applied");
        assert!(is_conflict(&results[1 - winner]), "{results:?}");
        let messages = one.read_both(&key("s"), 1000).await;
        let stored = messages.iter().find(|m| m.id.as_str() == id).unwrap();
        assert_eq!(stored.content.text(), format!("by replica {winner}"));
    }
}

#[tokio::test]
async fn many_batches_over_the_same_conversations_never_deadlock_or_lose() {
    let (env, one) = stores().await;
    let two = Replica::of(&env);
    let savers = [one.saver.clone(), two.saver.clone()];
    let results = at_the_same_time(8, |n| {
        let saver = savers[n % 2].clone();
        // Every batch touches all of the same conversations, in another order.
        let mut batch: Vec<_> = (0..100)
            .map(|i| to_save(&format!("s{}", i % 20), &format!("m{i}"), &json!({})))
            .collect();
        batch.rotate_left(n * 11);
        async move { saver.save(&batch).await.unwrap() }
    })
    .await;
    let applied_count = results.iter().flatten().filter(|o| **o == applied()).count();
    assert_eq!(applied_count, 100, "each message is new exactly once");
    assert_eq!(sql(&env, "SELECT count(*) FROM messages").await, "100");
}

#[tokio::test]
async fn messages_read_by_time_then_id_whoever_saved_them_and_in_whatever_order() {
    let (env, one) = stores().await;
    let two = Replica::of(&env);
    let at = |id: &str, time: &str| {
        to_save("s", id, &json!({"timestamp": format!("2026-11-20T10:00:{time}Z")}))
    };
    one.save(&[at("late", "09"), at("b", "05"), at("ab", "05")]).await;
    two.save(&[at("early", "01"), at("a", "05"), at("é", "05"), at("Z", "05")]).await;
    one.save(&[at("micro", "05.000001"), at("a\u{1f600}", "05")]).await;
    let expected = ["early", "Z", "a", "ab", "a\u{1f600}", "b", "é", "micro", "late"];
    for replica in [&one, &two] {
        assert_eq!(ids(&replica.read_both(&key("s"), 100).await), expected);
    }
}

#[tokio::test]
async fn two_tenants_with_one_session_id_share_nothing() {
    let (_env, replica) = stores().await;
    let ours = to_save("s", "m1", &json!({"content": "ours"}));
    let theirs = to_save("s", "m1", &json!({"tenant_id": "other", "content": "theirs"}));
    assert_eq!(replica.save(&[ours.clone(), theirs.clone()]).await, [applied(), applied()]);
    assert_ne!(ours.common.key, theirs.common.key);
    for (save, content) in [(ours, "ours"), (theirs, "theirs")] {
        let messages = replica.read_both(&save.common.key, 10).await;
        assert_eq!(messages.len(), 1);
        assert_eq!(messages[0].content.text(), content);
    }
}

#[tokio::test]
async fn two_tenants_with_one_explicit_conversation_id_share_nothing() {
    let (_env, replica) = stores().await;
    let in_tenant = |tenant: &str, conversation: &str| {
        to_save(
            "s",
            "m1",
            &json!({
                "tenant_id": tenant, "conversation_id": conversation, "content": format!("{tenant} {conversation}")
            }),
        )
    };
    let batch = [
        in_tenant("a", "b/c"),
        in_tenant("a/b", "c"),
        in_tenant("a%2Fb", "c"),
        in_tenant("a", "{c}"),
        in_tenant("{a", "c}"),
        in_tenant("a:b", "c"),
        in_tenant("a", "b:c"),
        in_tenant("a", "c"),
    ];
    assert_eq!(replica.save(&batch).await, vec![applied(); batch.len()]);
    for save in &batch {
        let messages = replica.read_both(&save.common.key, 10).await;
        assert_eq!(messages.len(), 1, "{:?}", save.common.key);
        assert_eq!(messages[0].content, save.message.content);
    }
}

#[tokio::test]
async fn any_legal_id_is_stored_and_read_byte_for_byte() {
    let (_env, replica) = stores().await;
    let strange: Vec<String> = [
        ":",
        "/",
        "{}",
        "{a}:{b}",
        "a b",
        "%",
        "%2F",
        "\\",
        "'",
        "\"",
        "*",
        "?",
        "[x]",
        ";--",
        "ñ",
        "漢字",
        "\u{1f468}\u{200d}\u{1f469}",
        "e\u{301}",
        "\u{feff}x",
        "-inf",
        "..",
        "\u{10ffff}",
    ]
    .iter()
    .map(ToString::to_string)
    .chain(["x".repeat(128), "é".repeat(64), "😀".repeat(32)])
    .collect();
    for id in &strange {
        let save = to_save(
            "s",
            id,
            &json!({
                "tenant_id": id, "session_id": id, "agent_id": id, "user_id": id, "conversation_id": id,
            }),
        );
        assert_eq!(replica.save(std::slice::from_ref(&save)).await, [applied()], "{id:?}");
        assert_eq!(replica.save(std::slice::from_ref(&save)).await, [duplicate()], "{id:?}");
        let messages = replica.read_both(&save.common.key, 10).await;
        assert_eq!(messages, [save.message], "{id:?}");
    }
}

#[tokio::test]
async fn empty_content_tool_calls_and_parts_come_back_as_they_were_sent() {
    let (env, replica) = stores().await;
    let calls = r#"[{"id":"c1","type":"function","function":{"name":"f","arguments":"{\"b\": 1.0,  \"a\":2}"}}]"#;
    let batch = [
        to_save("s", "1-empty", &json!({"content": ""})),
        to_save(
            "s",
            "2-calls",
            &json!({
                "role": "assistant", "content": null,
                "tool_calls": serde_json::from_str::<serde_json::Value>(calls).unwrap(),
            }),
        ),
        to_save("s", "3-result", &json!({"role": "tool", "tool_call_id": "c1", "content": "42"})),
        to_save(
            "s",
            "4-parts",
            &json!({"content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
                {"type": "text", "text": "And this?"},
            ]}),
        ),
        to_save(
            "s",
            "5-meta",
            &json!({"metadata": {"z": 1, "a": [null, true, 1.50]}, "extra": "kept"}),
        ),
    ];
    assert_eq!(replica.save(&batch).await, vec![applied(); 5]);
    let messages = replica.read_both(&key("s"), 10).await;
    for (read, sent) in messages.iter().zip(&batch) {
        assert_eq!(*read, sent.message);
    }
    assert!(matches!(&messages[3].content, Content::Parts { .. }));
    assert_eq!(
        sql(&env, "SELECT content FROM messages WHERE id = '4-parts'").await,
        "What is this?\nAnd this?"
    );
}

#[tokio::test]
async fn a_message_of_a_mebibyte_is_stored_whole() {
    let (_env, replica) = stores().await;
    let content = "a".repeat(1_000_000);
    let save = to_save("s", "big", &json!({"content": content}));
    assert_eq!(replica.save(std::slice::from_ref(&save)).await, [applied()]);
    assert_eq!(replica.read_both(&key("s"), 10).await, [save.message]);
}

#[tokio::test]
async fn one_poisoned_row_in_a_batch_of_500_saves_the_other_499() {
    let (env, replica) = stores().await;
    poison(&env, "22023").await;
    let mut batch: Vec<_> = (0..500)
        .map(|i| to_save(&format!("s{}", i % 7), &format!("m{i:03}"), &json!({})))
        .collect();
    batch[321] = to_save("s6", "poisoned", &json!({"content": "poison"}));
    let saved = replica.save(&batch).await;
    let splits = Counter::TransactionRetries { class: TransactionRetry::Split };
    assert!((8..=9).contains(&replica.metrics.count(splits)), "{}", replica.metrics.count(splits));
    let refused: Vec<usize> =
        (0..500).filter(|i| matches!(saved[*i], Err(Failure::DeadLetter(_)))).collect();
    assert_eq!(refused, [321], "{:?}", saved[321]);
    assert_eq!(saved.iter().filter(|outcome| **outcome == applied()).count(), 499);
    assert_eq!(sql(&env, "SELECT count(*) FROM messages").await, "499");
    let hot: usize = {
        let mut n = 0;
        for session in 0..7 {
            n += replica.read_both(&key(&format!("s{session}")), 1000).await.len();
        }
        n
    };
    assert_eq!(hot, 499);
}

#[tokio::test]
async fn an_unclassified_error_is_retried_for_its_own_message_alone() {
    let (env, replica) = stores().await;
    poison(&env, "P0001").await;
    let batch = [
        to_save("s", "m1", &json!({})),
        to_save("s", "m2", &json!({"content": "poison"})),
        to_save("s", "m3", &json!({})),
    ];
    let saved = replica.save(&batch).await;
    assert_eq!((&saved[0], &saved[2]), (&applied(), &applied()));
    let Err(Failure::Retry(cause)) = &saved[1] else { panic!("{saved:?}") };
    let error = cause.to_string();
    assert!(error.contains("poisoned by the test"), "{error}");
}

#[tokio::test]
async fn a_batch_that_is_too_slow_for_one_transaction_is_saved_in_parts() {
    let (env, replica) = stores().await;
    sql(
        &env,
        "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN PERFORM pg_sleep(0.03); RETURN NEW; END $$;
         CREATE TRIGGER dawdle BEFORE INSERT ON message_rows FOR EACH ROW EXECUTE FUNCTION dawdle()",
    )
    .await;
    let hasty = database::Database::open(&database::Settings {
        url: env.database_url.clone(),
        application: "test".to_owned(),
        connections: 5,
        time_out: std::time::Duration::from_secs(1),
        lock_time_out: std::time::Duration::from_secs(1),
    })
    .unwrap();
    let saver = conversation::Saver::new(
        &hasty,
        replica.hot.clone(),
        replica.metrics.clone(),
        conversation::RandomSource::random(),
    );
    let batch: Vec<_> = (0..100).map(|i| to_save("s", &format!("m{i:03}"), &json!({}))).collect();
    assert_eq!(saver.save(&batch).await.unwrap(), vec![applied(); 100]);
    assert_eq!(replica.read_both(&key("s"), 1000).await.len(), 100);
}

#[tokio::test]
async fn a_message_that_stays_locked_fails_alone_and_those_beside_it_are_saved() {
    let (env, replica) = stores().await;
    // lock_not_available, as after lock_timeout.
    poison(&env, "55P03").await;
    let locked = to_save("s", "m2", &json!({"content": "poison"}));
    let batch = [to_save("s", "m1", &json!({})), locked, to_save("s", "m3", &json!({}))];
    let saved = replica.saver.save(&batch).await.unwrap();
    assert!(matches!(&saved[1], Err(Failure::Locked(_))), "{saved:?}");
    let stored = replica.read_both(&key("s"), 10).await;
    assert_eq!(stored.iter().map(|it| it.id.as_str()).collect::<Vec<_>>(), ["m1", "m3"]);
}

/// Locks the row of a conversation until the connection is dropped.
async fn lock(env: &testkit::TestEnv, session: &str) -> PgConnection {
    let mut holder = PgConnection::connect(&env.database_url).await.unwrap();
    let lock =
        format!("BEGIN; SELECT FROM conversations WHERE session_id = '{session}' FOR UPDATE");
    sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut holder).await.unwrap();
    holder
}

fn splits(replica: &Replica) -> u64 {
    replica.metrics.count(Counter::TransactionRetries { class: TransactionRetry::Split })
}

#[tokio::test]
async fn messages_of_a_conversation_that_stays_locked_are_not_tried_with_their_batch() {
    let (env, replica) = stores().await;
    let message = |session, id| to_save(session, id, &json!({}));
    replica.save(&[message("locked", "m1"), message("free", "m1")]).await;
    let holder = lock(&env, "locked").await;
    let locked = |outcome: &Outcome| matches!(outcome, Err(Failure::Locked(_)));
    let slow = replica.saver.with_time_limit(SLOW_LIMITS[0]);
    let saved = slow.save(&[message("locked", "m2")]).await.unwrap();
    assert!(locked(&saved[0]), "{saved:?}");
    let batch = [message("locked", "m3"), message("free", "m3")];
    let saved = replica.saver.save(&batch).await.unwrap();
    assert!(locked(&saved[0]) && saved[1] == applied(), "{saved:?}");
    assert_eq!(splits(&replica), 0, "it was not tried");
    drop(holder);
}

#[tokio::test]
async fn messages_of_one_locked_conversation_are_set_aside_together() {
    let (env, replica) = stores().await;
    let message = |session: &str, id: usize| to_save(session, &format!("m{id}"), &json!({}));
    replica.save(&[message("locked", 0)]).await;
    let _holder = lock(&env, "locked").await;
    let others = (0..28).map(|n| message(&format!("s{n}"), n));
    let batch: Vec<_> = (1..=100).map(|n| message("locked", n)).chain(others).collect();
    let saved = replica.saver.save(&batch).await.unwrap();
    assert!(saved[..100].iter().all(|it| matches!(it, Err(Failure::Locked(_)))), "{saved:?}");
    assert_eq!(saved[100..], vec![applied(); 28]);
    assert!(splits(&replica) <= 6, "{} splits", splits(&replica));
}

#[tokio::test]
async fn on_a_slow_server_no_message_is_slow_by_itself() {
    let (env, replica) = stores().await;
    let slow = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
                BEGIN PERFORM pg_sleep(0.3); RETURN NEW; END $$;
                CREATE TRIGGER slow BEFORE INSERT ON message_rows FOR EACH ROW EXECUTE FUNCTION slow()";
    sql(&env, slow).await;
    let batch: Vec<_> = (0..12).map(|n| to_save("s", &format!("m{n}"), &json!({}))).collect();
    assert_eq!(replica.save(&batch).await, vec![applied(); 12]);
    assert!(splits(&replica) > 0, "the whole batch takes too long");
}

#[tokio::test]
async fn what_fails_at_the_commit_or_for_the_saving_process_is_blamed_on_no_message() {
    let fails = "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
                 BEGIN RAISE EXCEPTION 'made by the test' USING ERRCODE = 'XX001'; END $$;";
    for trigger in [
        "CREATE CONSTRAINT TRIGGER fail AFTER INSERT ON message_rows DEFERRABLE INITIALLY DEFERRED
         FOR EACH ROW EXECUTE FUNCTION fail()",
        "CREATE TRIGGER fail BEFORE INSERT ON writers FOR EACH ROW EXECUTE FUNCTION fail()",
    ] {
        let (env, replica) = stores().await;
        let database = replica.database.clone().saving_as("test", "an-instance".to_owned());
        let replica = Replica::on(database, &env.redis_url);
        sql(&env, &format!("{fails} {trigger}")).await;
        let batch = [to_save("s", "m1", &json!({})), to_save("s", "m2", &json!({}))];
        let error = replica.saver.save(&batch).await.unwrap_err();
        assert_eq!(error.dependency, Dependency::PostgreSql);
    }
}

/// Makes PostgreSQL refuse messages whose content is `poison`, with this SQLSTATE.
async fn poison(env: &testkit::TestEnv, sqlstate: &str) {
    sql(
        env,
        &format!(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN
                 IF NEW.content = 'poison' THEN
                     RAISE EXCEPTION 'poisoned by the test' USING ERRCODE = '{sqlstate}';
                 END IF;
                 RETURN NEW;
             END $$;
             CREATE TRIGGER refuse BEFORE INSERT ON message_rows FOR EACH ROW EXECUTE FUNCTION refuse()"
        ),
    )
    .await;
}

#[tokio::test]
async fn an_id_that_is_missing_is_derived_from_the_timestamp_or_else_random() {
    let (env, replica) = stores().await;
    let body = |extra: serde_json::Value| {
        let mut body = json!({
            "action_type": "conversation.save_message", "tenant_id": "acme", "session_id": "s",
            "role": "user", "content": "yes",
        });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        saving(action_received(&body, "2026-11-20T12:00:00Z"))
    };
    let timed = || body(json!({"timestamp": "2026-11-20T10:00:00Z"}));
    assert_eq!(timed().identity, Identity::Derived);
    assert_eq!(replica.save(&[timed()]).await, [applied()]);
    assert_eq!(replica.save(&[timed()]).await, [duplicate()]);
    let second_yes = body(json!({"timestamp": "2026-11-20T10:00:00.5Z"}));
    assert_eq!(replica.save(&[second_yes]).await, [applied()], "two honest yes are two messages");

    let anonymous = || body(json!({}));
    assert_eq!(anonymous().identity, Identity::Random { redelivered: false });
    assert_eq!(replica.save(&[anonymous(), anonymous()]).await, [applied(), applied()]);
    assert_eq!(replica.metrics.count(Counter::MessagesWithoutIdentity), 2);
    let named = body(json!({"message_id": "named"}));
    assert_eq!(replica.save(&[named]).await, [applied()]);
    assert_eq!(replica.metrics.count(Counter::MessagesWithoutIdentity), 2);
    assert_eq!(replica.metrics.count(Counter::MessagesWithoutTimestamp), 3);
    assert_eq!(sql(&env, "SELECT count(*) FROM messages").await, "5");
}

#[tokio::test]
async fn messages_sent_before_an_erasure_are_not_saved_and_later_ones_are() {
    let (env, replica) = stores().await;
    let conversation = key("s").conversation;
    sql(
        &env,
        &format!(
            "INSERT INTO tombstones (tenant_id, kind, subject, erased_at) VALUES
             ('acme', 'conversation', '{conversation}', '2026-11-20T10:00:00Z'),
             ('acme', 'user', 'gone', '2026-11-20T10:30:00Z')"
        ),
    )
    .await;
    let at = |id: &str, time: &str, user: &str| {
        to_save("s", id, &json!({"timestamp": format!("2026-11-20T{time}Z"), "user_id": user}))
    };
    let saved = replica
        .save(&[
            at("before", "09:59:59", "here"),
            at("at", "10:00:00", "here"),
            at("after", "10:00:01", "here"),
            at("user", "10:29:00", "gone"),
        ])
        .await;
    let erased = Ok(Done::Erased);
    assert_eq!(saved, [erased.clone(), erased.clone(), applied(), erased]);
    assert_eq!(ids(&replica.read_both(&key("s"), 10).await), ["after"]);
}

#[tokio::test]
async fn a_redelivery_appends_what_a_saver_that_crashed_after_its_commit_did_not() {
    let (env, replica) = stores().await;
    replica.save(&[to_save("s", "m1", &json!({}))]).await;
    assert_eq!(ids(&replica.read_both(&key("s"), 10).await), ["m1"]);

    // A replica commits and crashes before it appends in Redis: nothing was acknowledged.
    let unappended = to_save("s", "m2", &json!({"timestamp": "2026-11-20T10:00:01Z"}));
    let (common, message) = (&unappended.common, &unappended.message);
    let row = database::SaveRow::new(&common.key, &common.session, message);
    replica
        .database
        .save(&[row], database::HotWrites::Follow, &|| 7, database::Wanted::Each)
        .await
        .unwrap();
    assert_eq!(sql(&env, "SELECT count(*) FROM messages").await, "2");

    // The broker delivers it again; another replica finds a duplicate and completes the copy.
    let other = Replica::of(&env);
    assert_eq!(other.save(&[unappended]).await, [duplicate()]);
    let read = replica.read(&key("s"), 10).await;
    assert_eq!((read.source, ids(&read.messages)), (Source::HotCopy, vec!["m1", "m2"]));
}

#[tokio::test]
async fn new_conversations_are_saved_after_a_restore_that_left_the_sequences_behind() {
    let (env, replica) = stores().await;
    for n in 0..10 {
        replica.save(&[to_save(&format!("old-{n}"), "m", &json!({}))]).await;
    }
    let restored = async || {
        // As `pg_restore --data-only` of a dump without sequences leaves them.
        let reset = "SELECT setval('conversations_number_seq', 1, false)";
        assert_eq!(sql(&env, reset).await, "1");
    };
    restored().await;
    let messages: Vec<_> = (0..10).map(|n| to_save(&format!("new-{n}"), "m", &json!({}))).collect();
    assert_eq!(replica.save(&messages).await, vec![applied(); 10]);
    restored().await;
    let opened = fixtures::action(&fixtures::opened("acme", "opened", &json!({})));
    assert_eq!(replica.sessions.record(&[opened]).await.unwrap(), [applied()]);
    let numbers = "SELECT count(*), count(DISTINCT number) FROM conversations";
    assert_eq!(sql(&env, numbers).await, "21|21");

    restored().await;
    let advanced = replica.database.advance_sequences().await.unwrap();
    let advanced: Vec<_> = advanced.iter().map(|it| it.sequence.as_str()).collect();
    assert_eq!(advanced, ["conversations_number_seq"]);
    assert!(replica.database.advance_sequences().await.unwrap().is_empty());

    // A number that only a message has is taken, too: its next owner would get the message.
    sql(&env, "UPDATE message_rows SET conversation = 1000 WHERE conversation = 1").await;
    assert_eq!(replica.database.advance_sequences().await.unwrap()[0].to, 1000);
}
