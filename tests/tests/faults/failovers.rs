//! A PostgreSQL that fails over to its standby under load; the workers keep running.

use system_tests::{Counts, LIMIT, PublishedActions, SAVER, Scenario, TestReader};
use testkit::servers::{BaseBackup, Kind, Servers};

use crate::{load, proxy, publish, until_stored};

#[tokio::test]
async fn a_failover_to_a_synchronous_standby_under_load_loses_and_duplicates_nothing() {
    let servers = Servers::start(&[Kind::PostgreSql]).await.unwrap();
    let mut scenario = Scenario::with_own(servers).await;
    let standby = {
        let primary = scenario.server(Kind::PostgreSql);
        let standby = primary.base_backup("standby", BaseBackup::Standby).await.unwrap();
        standby.start().await.unwrap();
        for setting in
            ["ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()"]
        {
            scenario.sql(setting).await;
        }
        standby
    };
    let synchronous = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
    scenario.until_sql(synchronous, "1").await;

    let address = proxy(&scenario.database_url).await;
    let settings = [("DATABASE_URL", address.url())];
    let (agent, mut published) = (scenario.agent(), PublishedActions::default());
    let reader = TestReader::of(address.url(), &scenario.redis_url);
    let (one, two) =
        tokio::join!(scenario.start_with(SAVER, &settings), scenario.start_with(SAVER, &settings));
    let messages = load("failover", 3_000, 20);
    publish(&agent, &mut published, &messages[..1_000]).await;
    until_stored(&scenario, 1_000).await;
    published.reconcile(&scenario, &reader).await;
    let epoch = scenario.sql("SELECT epoch FROM hot_epoch").await;
    let failover = async {
        until_stored(&scenario, 1_200).await;
        scenario.server(Kind::PostgreSql).kill().await.unwrap();
        assert_eq!(standby.psql("postgres", "SELECT pg_promote()").await.unwrap(), "t");
        address.lead_to(&standby.url()).await.unwrap();
    };
    tokio::join!(agent.publish_all(&messages[1_000..]), failover);
    published.add_confirmed(&messages[1_000..]);
    scenario.promoted(standby);

    published.reconcile(&scenario, &reader).await;
    assert_eq!(scenario.sql("SELECT count(*) FROM dead_letters").await, "0");
    assert_ne!(scenario.sql("SELECT epoch FROM hot_epoch").await, epoch);
    let mut epochs = 0.0;
    for worker in [&one, &two] {
        worker.ready(LIMIT).await.unwrap();
        let counts = Counts::of(worker).await;
        assert_eq!(counts.sum("verbatim_retries_total", &[("class", "retryable")]), 0.0);
        let cause = [("cause", "postgresql")];
        epochs += counts.sum("verbatim_hot_epoch_changes_total", &cause);
    }
    let logs = [one.log(), two.log()].concat();
    let changed = "PostgreSQL server changed (timeline 1 → 2); all hot copies invalidated";
    // The reader of the test may have been first.
    assert!(epochs <= 1.0 && logs.matches(changed).count() <= 1, "{epochs} {logs}");
    scenario.finish([one, two]).await;
}
