//! Savers added and replaced under load.

use system_tests::{Counts, PublishedActions, SAVER, Scenario};
use testkit::fleet::Worker;

use crate::{load, proxy, publish, until_stored};

const SAVED: &str = "verbatim_messages_saved_total";

/// How many deliveries RabbitMQ may be sending when a consumer with a full prefetch or an empty queue is cancelled, on
/// a machine that is busy.
const SENDING: usize = 20;

#[tokio::test]
async fn savers_added_and_replaced_under_load_share_it_and_drain_what_was_delivered() {
    let scenario = Scenario::new().await;
    let (agent, reader, mut published) =
        (scenario.agent(), scenario.reader(), PublishedActions::default());
    let redis = proxy(&scenario.redis_url).await;
    let behind_it = [("REDIS_URL", redis.url())];
    let start = async || scenario.start_with(SAVER, &behind_it).await;
    let messages = load("scale", 16_000, 40);
    let mut parts = messages.chunks(2_000);
    let mut savers: Vec<Worker> = Vec::new();
    for replicas in [1, 2, 4] {
        while savers.len() < replicas {
            savers.push(start().await);
        }
        let before = saved(&savers).await;
        publish(&agent, &mut published, parts.next().unwrap()).await;
        until_stored(&scenario, published.len()).await;
        for (saver, before) in savers.iter().zip(before) {
            Counts::reach(saver, SAVED, &[], before + 1.0).await;
        }
    }

    // A rolling restart: each new saver is ready before the old one drains.
    let mut redelivered = 0.0;
    let drains = 2 * savers.len();
    for saver in &mut savers {
        let leaving = std::mem::replace(saver, start().await);
        let leaves = async {
            let before = saved([&leaving]).await[0];
            Counts::reach(&leaving, SAVED, &[], before + 1.0).await;
            redelivered += redeliveries([&leaving]).await;
            scenario.drain([leaving]).await;
        };
        tokio::join!(publish(&agent, &mut published, parts.next().unwrap()), leaves);
    }
    until_stored(&scenario, published.len()).await;

    // All savers drain at once while Redis does not respond.
    redis.freeze();
    let before = published.len();
    publish(&agent, &mut published, parts.next().unwrap()).await;
    until_stored(&scenario, before + 1).await;
    redelivered += redeliveries(&savers).await;
    scenario.drain(savers).await;
    redis.restore().await.unwrap();

    let last = start().await;
    published.reconcile(&scenario, &reader).await;
    assert_eq!(published.len(), 16_000);
    redelivered += redeliveries([&last]).await;
    // RabbitMQ requeues what it is sending at the moment of a cancel. Without the drain it would requeue whole
    // prefetches.
    assert!(
        redelivered <= (SENDING * drains) as f64,
        "{redelivered} messages redelivered after {drains} drains"
    );
    assert_eq!(scenario.sql("SELECT count(*) FROM dead_letters").await, "0");
    scenario.finish([last]).await;
}

async fn saved(savers: impl IntoIterator<Item = &Worker>) -> Vec<f64> {
    sums(savers, SAVED).await
}

async fn redeliveries(savers: impl IntoIterator<Item = &Worker>) -> f64 {
    sums(savers, "verbatim_redeliveries_total").await.iter().sum()
}

async fn sums(savers: impl IntoIterator<Item = &Worker>, name: &str) -> Vec<f64> {
    let mut sums = Vec::new();
    for saver in savers {
        sums.push(Counts::of(saver).await.sum(name, &[]));
    }
    sums
}
