//! RabbitMQ blocks publishers in a memory alarm, and closes channels by its `consumer_timeout`.

use std::sync::Arc;
use std::time::Duration;

use broker::{Publication, PublishError, Publisher};
use domain::status::ConversationStatus;
use fixtures::endpoints;
use metrics::Metrics;
use serde_json::json;
use system_tests::{
    COLLECTOR, Counts, LIMIT, MIGRATION, PublishedActions, SAVER, Scenario, closed, key_of, message,
};
use testkit::servers::{Kind, Servers};
use testkit::wait::eventually;

use crate::{SAVES, load, proxy, publish, stored, until_holding, until_stored};

#[tokio::test]
async fn while_a_memory_alarm_blocks_publishers_saving_continues_and_publishes_wait() {
    let servers = Servers::start(&[Kind::RabbitMq]).await.unwrap();
    let scenario = Scenario::with_own(servers).await;
    let (agent, reader, mut published) =
        (scenario.agent(), scenario.reader(), PublishedActions::default());
    let database = proxy(&scenario.database_url).await;
    let cut_off = [("DATABASE_URL", database.url())];
    let (saver, migration, collector) = tokio::join!(
        scenario.start_with(SAVER, &cut_off),
        scenario.start(MIGRATION),
        scenario.start(COLLECTOR),
    );
    scenario.poison("22023", "m00150").await;
    let closing = message("alarm", "closing", "closing", &json!({}));
    agent.publish(&closing).await;
    until_stored(&scenario, 1).await;
    database.cut().await.unwrap();
    publish(&agent, &mut published, &load("alarm", 300, 4)).await;
    until_holding(&saver).await;
    agent.publish(&closed("alarm", "closing", &json!({}))).await;
    let server = scenario.server(Kind::RabbitMq);
    server.rabbitmqctl(&["set_vm_memory_high_watermark", "0"]).await.unwrap();
    let endpoints = endpoints(&scenario.amqp_url);
    let publisher = Publisher::with_timeout(endpoints, Metrics::new(), Duration::from_secs(2));
    eventually("publishers to be blocked", LIMIT, async || {
        let event = Arc::new(Publication::event("conversation.test", b"{}".to_vec()));
        match publisher.publish_all([event]).await.remove(0) {
            Err(PublishError::Blocked) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;

    database.restore().await.unwrap();
    until_stored(&scenario, 300).await;
    // The dead letter is held, and the log has the reason.
    let blocked = [("outcome", "blocked")];
    Counts::reach(&saver, "verbatim_publishes_total", &blocked, 1.0).await;
    let holds = [("queue", SAVES), ("dependency", "rabbitmq")];
    Counts::reach(&saver, "verbatim_holds_total", &holds, 1.0).await;
    assert!(saver.log().contains("RabbitMQ blocks publishers"), "{}", saver.log_tail());
    assert_eq!(scenario.sql("SELECT count(*) FROM dead_letters").await, "0");

    server.rabbitmqctl(&["set_vm_memory_high_watermark", "0.6"]).await.unwrap();
    reader.reaches(&key_of(&closing), ConversationStatus::Archived).await;
    published.add_confirmed(&[closing]);
    scenario.until_sql("SELECT count(*) FROM dead_letters", "1").await;
    assert_eq!(stored(&scenario).await, 300);
    for worker in [&saver, &migration, &collector] {
        worker.ready(LIMIT).await.unwrap();
    }
    let counts = Counts::of(&saver).await;
    assert_eq!(counts.sum("verbatim_retries_total", &[("class", "retryable")]), 0.0);
    scenario.finish([saver, migration, collector]).await;
}

#[tokio::test]
async fn a_consumer_timeout_in_an_outage_costs_one_redelivery_however_long_the_outage_lasts() {
    /// Longer than `consumer_timeout` here, several times.
    const OUTAGE: Duration = Duration::from_secs(8);
    let servers = Servers::start(&[Kind::RabbitMq]).await.unwrap();
    // By default 30 min, checked every minute; here 3 s, checked every 0.5 s.
    let short_timeout = "application:set_env(rabbit, consumer_timeout, 3000), \
                     application:set_env(rabbit, channel_tick_interval, 500).";
    servers.get(Kind::RabbitMq).rabbitmqctl(&["eval", short_timeout]).await.unwrap();
    let scenario = Scenario::with_own(servers).await;
    let (agent, reader, mut published) =
        (scenario.agent(), scenario.reader(), PublishedActions::default());
    let database = proxy(&scenario.database_url).await;
    // The second saver requeues its deliveries before the timeout, as in production.
    let cut_off = [("DATABASE_URL", database.url())];
    let in_time = [("DATABASE_URL", database.url()), ("VERBATIM_HOLD_LIMIT", "500ms")];
    let (saver, requeuing) =
        tokio::join!(scenario.start_with(SAVER, &cut_off), scenario.start_with(SAVER, &in_time));
    database.cut().await.unwrap();
    publish(&agent, &mut published, &load("timeout", 50, 4)).await;
    tokio::join!(until_holding(&saver), until_holding(&requeuing));
    let cause = |cause| [("queue", SAVES), ("cause", cause)];
    let restarts = "verbatim_consumer_restarts_total";
    Counts::reach(&saver, restarts, &cause("error"), 1.0).await;
    let log = saver.log();
    assert!(log.contains("PRECONDITION_FAILED") && log.contains("timed out"), "{log}");
    tokio::time::sleep(OUTAGE).await;
    // Every consumer of the outage has timed out; from here on batches may be slow.
    let default = "application:set_env(rabbit, consumer_timeout, 1800000).";
    scenario.server(Kind::RabbitMq).rabbitmqctl(&["eval", default]).await.unwrap();
    database.restore().await.unwrap();
    published.reconcile(&scenario, &reader).await;
    let applied = [("queue", SAVES), ("outcome", "applied")];
    let (one, two) = eventually("both savers to acknowledge all messages", LIMIT, async || {
        let (one, two) = tokio::join!(Counts::of(&saver), Counts::of(&requeuing));
        let [first, second] = [&one, &two].map(|it| it.sum("verbatim_deliveries_total", &applied));
        if first + second == 50.0 { Ok((one, two)) } else { Err(format!("{first} and {second}")) }
    })
    .await;
    assert_eq!(one.sum(restarts, &cause("error")), 1.0);
    assert_eq!((two.sum(restarts, &cause("hold")), two.sum(restarts, &cause("error"))), (1.0, 0.0));
    let sum = |name, labels: &[_]| one.sum(name, labels) + two.sum(name, labels);
    assert_eq!(sum("verbatim_redeliveries_total", &[("queue", SAVES)]), 50.0);
    assert_eq!(sum("verbatim_deliveries_total", &[("outcome", "quarantined")]), 0.0);
    assert_eq!(scenario.sql("SELECT count(*) FROM dead_letters").await, "0");
    scenario.finish([saver, requeuing]).await;
}
