//! The collector on a real PostgreSQL: what it refuses is stored with less, and nothing else waits for it.

use std::collections::BTreeMap;

use broker::StoredDelivery;
use conversation::LimitedDatabase;
use domain::amqp_users::AmqpUsers;
use domain::decode::DEFAULT_MAX_BODY_BYTES;
use domain::ids::{ConversationKey, MAX_ID_BYTES, SessionId, TenantId};
use fixtures::{declared, received_at, sql, stores};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection, raw_sql};
use testkit::TestEnv;
use uuid::Uuid;

use super::*;

async fn collector() -> (TestEnv, DeadLetterCollector) {
    let (env, replica) = stores().await;
    let collector = DeadLetterCollector::new(
        WorkQueue::SaveMessage,
        LimitedDatabase::of_batches(&replica.database),
        Publisher::new(declared(&env.amqp_url).await, replica.metrics.clone()),
        replica.metrics.clone(),
        Decoder { max_body_bytes: DEFAULT_MAX_BODY_BYTES, users: AmqpUsers::default() },
        RandomSource::random(),
    );
    (env, collector)
}

/// A refused message with this body and, of its sender, these headers, in this attempt to store it.
fn delivery(body: &str, headers: &Value, attempt: u32) -> Delivery {
    let stored = StoredDelivery {
        headers: headers.clone(),
        delivery: json!({"properties": {}, "headers": {
            "x-verbatim-queue": "conversation.save_message", "x-verbatim-reason": "schema",
            "x-verbatim-detail": "refused by the test", "x-verbatim-attempt": attempt,
        }}),
        ..StoredDelivery::default()
    };
    Delivery::from_stored(body.into(), &stored, received_at())
}

/// The text that was stored of each body, and what was not stored.
async fn not_stored(env: &TestEnv) -> BTreeMap<String, String> {
    let rows = "SELECT coalesce(json_object_agg(
                    convert_from(body, 'UTF8'),
                    concat_ws('|', error, headers, coalesce(not_stored->>'columns', 'whole'), not_stored->>'error')
                )::text, '{}') FROM dead_letters";
    serde_json::from_str(&sql(env, rows).await).unwrap()
}

/// PostgreSQL refuses, with this SQLSTATE, the dead letters for which this condition is true.
async fn refuse(env: &TestEnv, condition: &str, sqlstate: &str) {
    let trigger = format!(
        "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             IF {condition} THEN RAISE EXCEPTION 'refused it' USING ERRCODE = '{sqlstate}'; END IF;
             RETURN NEW;
         END $$;
         CREATE OR REPLACE TRIGGER refuse BEFORE INSERT ON dead_letters
             FOR EACH ROW EXECUTE FUNCTION refuse()"
    );
    env.psql(&trigger).await.unwrap();
}

/// A text that does not compress, as a signed token.
fn random_text(bytes: usize) -> String {
    let ids = std::iter::repeat_with(Uuid::new_v4).flat_map(Uuid::into_bytes);
    ids.filter(u8::is_ascii_alphanumeric).take(bytes).map(char::from).collect()
}

#[tokio::test]
async fn a_lock_that_lasts_holds_dead_letters_and_is_no_attempt_of_any() {
    let (env, collector) = collector().await;
    let items = ["one", "two"].map(|body| {
        let stored = StoredDelivery::default();
        collector.decode(&Delivery::from_stored(body.into(), &stored, received_at())).unwrap()
    });

    let mut other = PgConnection::connect(&env.database_url).await.unwrap();
    raw_sql("BEGIN; LOCK TABLE dead_letters").execute(&mut other).await.unwrap();
    let held = collector.handle(&items).await;
    assert_eq!(held.unwrap_err().dependency, Dependency::PostgreSql);

    raw_sql("COMMIT").execute(&mut other).await.unwrap();
    let stored = collector.handle(&items).await.unwrap();
    assert!(stored.iter().all(Result::is_ok), "{stored:?}");
    let copies = "SELECT string_agg(copies::text, ',') FROM dead_letters";
    assert_eq!(sql(&env, copies).await, "1,1");
}

#[tokio::test]
async fn an_id_that_no_action_may_have_is_no_column_of_a_dead_letter() {
    let (env, collector) = collector().await;
    let body = |session: &str| json!({"tenant_id": "acme", "session_id": session}).to_string();
    // Each of the first is too large for an entry of an index, 2704 bytes.
    let token = random_text(3_000);
    let bodies = [
        body(&token),
        json!({"tenant_id": token, "conversation_id": "c"}).to_string(),
        json!({"data": {"conversation_id": token, "session_id": "s"}}).to_string(),
        json!({"message_id": token, "action_id": "a"}).to_string(),
        body(&"s".repeat(MAX_ID_BYTES)),
        body("s\u{0}"),
    ];
    let items: Vec<Item> = bodies
        .iter()
        .map(|body| collector.decode(&delivery(body, &json!({}), 1)).unwrap())
        .collect();
    let handled = collector.handle(&items).await.unwrap();
    assert!(handled.iter().all(Result::is_ok), "{handled:?}");
    let mut stored = Vec::new();
    for body in &bodies {
        let row = format!(
            "SELECT concat_ws('|', coalesce(tenant_id, '-'), coalesce(conversation_id, '-'),
                 coalesce(session_id, '-'), coalesce(message_id, '-'), not_stored)
             FROM dead_letters WHERE body = convert_to('{body}', 'UTF8')"
        );
        stored.push(sql(&env, &row).await);
    }
    let of_session = |session: &str| {
        let (tenant, session) = (TenantId::new("acme").unwrap(), SessionId::new(session).unwrap());
        ConversationKey::of_session(tenant, &session).conversation
    };
    let longest = "s".repeat(MAX_ID_BYTES);
    let expected = [
        "acme|-|-|-".to_owned(),
        "-|c|-|-".to_owned(),
        "-|-|s|-".to_owned(),
        "-|-|-|a".to_owned(),
        format!("acme|{}|{longest}|-", of_session(&longest)),
        "acme|-|-|-".to_owned(),
    ];
    assert_eq!(stored, expected);
}

#[tokio::test]
async fn what_postgresql_refuses_is_left_out_and_named_and_other_dead_letters_are_stored_whole() {
    let (env, collector) = collector().await;
    refuse(
        &env,
        "NEW.headers::text LIKE '%bad%' OR NEW.body = 'worse' AND NEW.error <> ''",
        "22023",
    )
    .await;
    let cases =
        [("good", "fine"), ("one", "bad"), ("two", "fine"), ("worse", "bad"), ("three", "fine")];
    let items = cases.map(|(body, header)| {
        collector.decode(&delivery(body, &json!({"x-custom": header}), 1)).unwrap()
    });
    let handled = collector.handle(&items).await.unwrap();
    assert!(handled.iter().all(Result::is_ok), "{handled:?}");
    let whole = r#"refused by the test|{"x-custom":"fine"}|whole"#;
    let stored = not_stored(&env).await;
    let of = |body: &str| stored[body].as_str();
    assert_eq!([of("good"), of("two"), of("three")], [whole; 3]);
    let error = "error returned from database: refused it";
    let without = |body: &str, expected: &str| {
        assert!(of(body).starts_with(&format!("{expected}|{error}")), "{body}: {}", of(body));
    };
    without("one", r#"refused by the test|{}|["headers"]"#);
    without("worse", r#"|{}|["headers","error","delivery"]"#);
}

#[tokio::test]
async fn after_an_error_of_no_known_class_everything_is_tried_three_times() {
    let (env, collector) = collector().await;
    refuse(&env, "NEW.headers::text LIKE '%bad%'", "P0001").await;
    for attempt in 1..=3 {
        let bad = delivery("bad", &json!({"x-custom": "bad"}), attempt);
        let good = delivery(&format!("good {attempt}"), &json!({}), attempt);
        let items = [bad, good].map(|it| collector.decode(&it).unwrap());
        let handled = collector.handle(&items).await.unwrap();
        assert!(matches!(&handled[0], Err(Failure::Retry(_))), "{handled:?}");
        assert!(handled[1].is_ok(), "{handled:?}");
    }
    let item = collector.decode(&delivery("bad", &json!({"x-custom": "bad"}), 4)).unwrap();
    let handled = collector.handle(&[item]).await.unwrap();
    assert!(handled[0].is_ok(), "{handled:?}");
    let stored = not_stored(&env).await;
    assert!(stored["bad"].starts_with(r#"refused by the test|{}|["headers"]|"#), "{stored:?}");

    // What PostgreSQL refuses in any form is retried for ever.
    refuse(&env, "NEW.body = 'refused'", "P0001").await;
    let item = collector.decode(&delivery("refused", &json!({}), 50)).unwrap();
    let handled = collector.handle(&[item]).await.unwrap();
    assert!(matches!(&handled[0], Err(Failure::Retry(_))), "{handled:?}");
    // If it refuses every dead letter, it is unavailable.
    refuse(&env, "true", "P0001").await;
    let item = collector.decode(&delivery("another", &json!({}), 50)).unwrap();
    assert!(collector.handle(&[item]).await.is_err());
}

/// Text that may be in the place of an id: usual, random and long, or any.
fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z0-9-]{1,40}",
        (1_usize..6_000).prop_map(random_text),
        any::<String>(),
        "[a-z\0\u{1}]{1,5}",
    ]
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any_text().prop_map(Value::from),
    ];
    leaf.prop_recursive(20, 60, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("[a-z$\0]{1,6}", inner, 0..3)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

/// A body with some of the fields that are read, or any bytes.
fn any_body() -> impl Strategy<Value = Vec<u8>> {
    let names = [
        "tenant_id",
        "conversation_id",
        "session_id",
        "message_id",
        "action_id",
        "action_type",
        "timestamp",
        "data",
    ];
    let value = prop_oneof![3 => any_text().prop_map(Value::from), 1 => any_json()];
    let fields = prop::collection::btree_map(prop::sample::select(names.to_vec()), value, 0..8);
    let flat = fields.prop_map(|fields| json!(fields));
    prop_oneof![
        flat.clone().prop_map(|fields| fields.to_string().into_bytes()),
        flat.prop_map(|fields| json!({"data": fields}).to_string().into_bytes()),
        any::<Vec<u8>>(),
        Just(br#"{"tenant_id":"t","session_id":"s","number":1e999999}"#.to_vec()),
        (1_usize..200_000).prop_map(|depth| "[".repeat(depth).into_bytes()),
    ]
}

/// Headers of the fleet and of RabbitMQ, as they are and forged.
fn any_headers() -> impl Strategy<Value = Value> {
    let names = [
        "x-verbatim-id",
        "x-verbatim-conversation",
        "x-verbatim-timestamp-us",
        "x-verbatim-received-us",
        "x-verbatim-attempt",
        "x-verbatim-reasons",
        "x-verbatim-first-failed-us",
        "x-verbatim-last-failed-us",
        "x-verbatim-exchange",
        "x-verbatim-routing-key",
        "x-verbatim-queue",
        "x-verbatim-reason",
        "x-verbatim-field",
        "x-verbatim-detail",
        "x-verbatim-replays",
        "x-death",
        "x-custom",
        "traceparent",
    ];
    let death = json!([{"queue": "conversation.save_message", "reason": "delivery_limit", "count": 1,
                        "exchange": "domain.actions", "routing-keys": ["k"], "time": 1_700_000_000}]);
    let value = prop_oneof![
        any_text().prop_map(Value::from),
        any_json(),
        Just(Value::from("schema")),
        Just(death),
    ];
    prop::collection::btree_map(prop::sample::select(names.to_vec()), value, 0..10)
        .prop_map(|fields| json!(fields))
}

prop_compose! {
    fn any_delivery()(
        body in any_body(),
        headers in any_headers(),
        own in any_headers(),
        message_id in any_text(),
        exchange in prop_oneof![Just(""), Just("domain.actions"), Just("domain.retry.30000")],
        copied: bool,
    ) -> Delivery {
        let properties = json!({"message_id": message_id, "correlation_id": message_id});
        let mut delivery = json!({"exchange": exchange, "headers": own});
        if copied {
            delivery["properties"] = properties.clone();
        }
        let stored = StoredDelivery { properties, headers, left_out: None, delivery };
        Delivery::from_stored(body, &stored, received_at())
    }
}

#[tokio::test]
async fn any_delivery_is_stored_as_one_dead_letter_that_can_be_read() {
    let (env, collector) = collector().await;
    let mut runner = TestRunner::default();
    let batches = prop::collection::vec(any_delivery(), 1..8);
    for _ in 0..150 {
        let batch = batches.new_tree(&mut runner).unwrap().current();
        let records: Vec<_> = batch
            .iter()
            .map(|it| read_dead_letter(WorkQueue::SaveMessage, it, 1 << 20).0)
            .collect();
        let stored = collector.storage.database.batches().store_dead_letters(&records, &[]).await;
        assert!(stored.is_ok(), "{stored:?}: {batch:?}");
        for record in &records {
            let read =
                collector.storage.database.batches().dead_letter(record.dead_letter.id).await;
            let read = read.unwrap_or_else(|error| panic!("{error}: {record:?}")).unwrap();
            let is_same = records.iter().any(|it| it.message.body == read.message.body);
            assert!(is_same && read.state.not_stored.is_none(), "{read:?}");
        }
    }
    assert_ne!(sql(&env, "SELECT count(*) FROM dead_letters").await, "0");
}
