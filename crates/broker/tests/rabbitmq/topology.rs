//! Declaring and verifying the topology.

use std::collections::BTreeMap;

use broker::Endpoints;
use broker::topology::{self, Argument, Purpose, Queue, TopologyError, WorkQueue};
use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use testkit::TestEnv;

use crate::support::raw_channel;

async fn empty() -> (TestEnv, Endpoints) {
    let env = TestEnv::new().await;
    let endpoints = Endpoints::parse(&env.amqp_url, "test").unwrap();
    (env, endpoints)
}

/// Declares a queue of the fleet with changed arguments.
async fn declare_changed(env: &TestEnv, queue: Queue, change: impl FnOnce(&mut FieldTable)) {
    let mut arguments = FieldTable::default();
    for (name, argument) in queue.arguments() {
        let value = match argument {
            Argument::Text(text) => AMQPValue::LongString(text.into()),
            Argument::Number(number) => AMQPValue::LongLongInt(number),
        };
        arguments.insert(name.into(), value);
    }
    change(&mut arguments);
    let (_connection, channel) = raw_channel(&env.amqp_url).await;
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(queue.name.into(), options, arguments).await.unwrap();
}

fn work_queue() -> Queue {
    let save = WorkQueue::SaveMessage;
    Queue { name: save.name(), purpose: Purpose::Work(save) }
}

/// Removes these arguments.
fn without(names: &'static [&str]) -> impl FnOnce(&mut FieldTable) {
    move |arguments| {
        let kept = arguments.inner().iter().filter(|(name, _)| !names.contains(&name.as_str()));
        let kept: BTreeMap<_, _> =
            kept.map(|(name, value)| (name.clone(), value.clone())).collect();
        *arguments = kept.into();
    }
}

async fn differences(endpoints: &Endpoints) -> Vec<String> {
    match topology::verify(endpoints).await {
        Err(TopologyError::Differs(differences)) => {
            differences.iter().map(ToString::to_string).collect()
        }
        other => panic!("the topology should differ: {other:?}"),
    }
}

#[tokio::test]
async fn declaring_twice_changes_nothing_and_passes_verify() {
    let (_env, endpoints) = empty().await;
    topology::declare(&endpoints).await.unwrap();
    topology::declare(&endpoints).await.unwrap();
    topology::verify(&endpoints).await.unwrap();
}

#[tokio::test]
async fn verify_reports_everything_missing_on_an_empty_broker_and_creates_nothing() {
    let (_env, endpoints) = empty().await;
    for _ in 0..2 {
        let differences = differences(&endpoints).await;
        assert_eq!(differences.len(), topology::queues().len() + topology::EXCHANGES.len());
        assert!(differences.iter().all(|text| text.ends_with("is missing; run `verbatim setup`")));
    }
}

#[tokio::test]
async fn a_queue_without_dead_letters_is_refused_by_name() {
    let (env, endpoints) = empty().await;
    // The routing key cannot be given without the exchange.
    let names = &["x-dead-letter-exchange", "x-dead-letter-routing-key"];
    declare_changed(&env, work_queue(), without(names)).await;
    let error = topology::declare(&endpoints).await.unwrap_err().to_string();
    assert!(
        error.contains("queue `conversation.save_message`: `x-dead-letter-exchange` is absent"),
        "{error}"
    );
    let verified = differences(&endpoints).await;
    assert_eq!(verified.len(), 1, "{verified:?}");
}

#[tokio::test]
async fn every_argument_against_the_loss_of_messages_is_verified() {
    // The arguments that are left out: first the one to be reported, then those that RabbitMQ does not
    // accept without it.
    let cases: [&'static [&str]; 5] = [
        &["x-queue-type", "x-delivery-limit", "x-dead-letter-strategy"],
        &["x-overflow"],
        &["x-delivery-limit"],
        &["x-dead-letter-strategy"],
        &["x-dead-letter-routing-key"],
    ];
    for names in cases {
        let (env, endpoints) = empty().await;
        declare_changed(&env, work_queue(), without(names)).await;
        let differences = differences(&endpoints).await;
        let queue = "queue `conversation.save_message`";
        let named = |text: &String| text.starts_with(queue) && text.contains("must be `");
        assert!(differences.iter().any(named), "{names:?}: {differences:?}");
        let found = differences.iter().find(|text| named(text)).cloned().unwrap_or_default();
        eprintln!("{names:?}: {found}");
    }
}

#[tokio::test]
async fn an_exchange_without_its_alternate_is_refused_by_name() {
    let (env, endpoints) = empty().await;
    let (_connection, channel) = raw_channel(&env.amqp_url).await;
    let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
    let topic = lapin::ExchangeKind::Topic;
    channel
        .exchange_declare("domain.actions".into(), topic, options, FieldTable::default())
        .await
        .unwrap();
    let error = topology::declare(&endpoints).await.unwrap_err().to_string();
    assert!(error.contains("exchange `domain.actions`: `alternate-exchange` is absent"), "{error}");
}

#[tokio::test]
async fn every_known_action_reaches_its_queue_and_an_unknown_one_the_unrouted_queue() {
    let bench = crate::support::Bench::new().await;
    let mut expected = BTreeMap::<&str, u32>::new();
    for binding in topology::bindings() {
        if binding.exchange == topology::ACTIONS {
            let action = broker::Publication::action(binding.key, b"{}".to_vec());
            bench.publisher.publish(action).await.unwrap();
            *expected.entry(binding.queue).or_default() += 1;
        }
    }
    let unknown = broker::Publication::action("conversation.save_mesage", b"{}".to_vec());
    bench.publisher.publish(unknown).await.unwrap();
    expected.insert(topology::UNROUTED, 1);
    for (queue, count) in expected {
        bench.eventually_ready(queue, count).await;
    }
}

#[tokio::test]
async fn a_worker_binds_the_unrouted_queue_again_at_its_start() {
    let bench = crate::support::Bench::new().await;
    let name = || topology::UNROUTED.into();
    bench.raw.queue_unbind(name(), name(), "".into(), FieldTable::default()).await.unwrap();
    bench.raw.confirm_select(Default::default()).await.unwrap();
    let mistyped = async |body: &[u8]| {
        let (exchange, key) = (topology::ACTIONS.into(), "conversation.save_mesage".into());
        let (options, properties) = Default::default();
        let publish = bench.raw.basic_publish(exchange, key, options, body, properties);
        let confirm = publish.await.unwrap().await.unwrap();
        assert!(confirm.is_ack(), "{confirm:?}");
    };
    mistyped(b"lost").await;
    topology::verify_and_bind(&bench.endpoints).await.unwrap();
    mistyped(b"caught").await;
    assert_eq!(bench.take(topology::UNROUTED).await.data, b"caught");
}

#[tokio::test]
async fn the_depth_of_every_queue_is_reported_and_a_missing_one_is_named() {
    let bench = crate::support::Bench::new().await;
    let queue = WorkQueue::SaveMessage;
    bench.publish(queue.name(), 0..3).await;
    bench.eventually_ready(queue.name(), 3).await;
    bench.raw.queue_delete(queue.suspect().into(), Default::default()).await.unwrap();
    let inspector = broker::inspect::Inspector::new(bench.endpoints.clone());
    let depths = inspector.depths().await.unwrap();
    assert_eq!(depths.len(), topology::queues().len());
    for (name, depth) in depths {
        let ready = depth.map(|depth| depth.ready);
        let expected = match name {
            name if name == queue.name() => Some(3),
            name if name == queue.suspect() => None,
            _ => Some(0),
        };
        assert_eq!(ready, expected, "{name}");
    }
}

#[tokio::test]
async fn a_queue_whose_depth_is_refused_is_not_missing() {
    let (env, endpoints) = empty().await;
    let (_connection, channel) = raw_channel(&env.amqp_url).await;
    let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
    channel.queue_declare(work_queue().name.into(), options, FieldTable::default()).await.unwrap();
    let error = broker::inspect::Inspector::new(endpoints).depths().await.unwrap_err();
    let text = domain::causes::with_causes(&error);
    assert!(text.contains("RESOURCE_LOCKED") && text.contains(work_queue().name), "{text}");
}

#[tokio::test]
async fn a_binding_that_the_user_must_not_make_is_named() {
    let (env, _) = empty().await;
    let put = async |path: String, body: &str| {
        env.management().request("PUT", &path, body).await.unwrap();
    };
    put(format!("/api/users/{}", env.name), r#"{"password":"hunter2","tags":""}"#).await;
    // To bind a queue needs the permission to read from the exchange.
    let all_but_read = r#"{"configure":".*","write":".*","read":"^(?!conversation\\.events)"}"#;
    put(format!("/api/permissions/{0}/{0}", env.name), all_but_read).await;
    let (_, host) = env.amqp_url.rsplit_once('@').unwrap();
    let url = format!("amqp://{}:hunter2@{host}", env.name);
    let declared = topology::declare(&Endpoints::parse(&url, "test").unwrap()).await;
    env.management().request("DELETE", &format!("/api/users/{}", env.name), "").await.unwrap();
    let Err(TopologyError::Differs(differences)) = declared else { panic!("{declared:?}") };
    let text = differences[0].to_string();
    assert!(text.starts_with("queue `conversation.statistics`: "), "{text}");
    assert!(text.contains("ACCESS_REFUSED") && text.contains("'conversation.events'"), "{text}");
}

#[tokio::test]
async fn a_refused_login_reports_the_brokers_reply_without_the_password() {
    let env = TestEnv::new().await;
    let (server, _) = env.amqp_url.rsplit_once('/').unwrap();
    let (scheme, rest) = server.split_once("://").unwrap();
    let (_, host) = rest.rsplit_once('@').unwrap();
    let urls = [
        (format!("{server}/no-such-vhost"), "no-such-vhost"),
        (format!("{scheme}://guest:hunter2@{host}/%2f"), "ACCESS_REFUSED"),
    ];
    for (url, expected) in urls {
        let endpoints = Endpoints::parse(&url, "test").unwrap();
        let error = topology::verify(&endpoints).await.unwrap_err();
        let text = domain::causes::with_causes(&error);
        assert!(text.contains(expected) && !text.contains("hunter2"), "{text}");
    }
}
