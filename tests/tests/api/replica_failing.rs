//! A read replica that is stopped, promoted, replaced, or not as the API needs it.

use std::time::Duration;

use system_tests::{ApiServer, LIMIT, Scenario};
use testkit::proxy::Proxy;
use testkit::servers::Kind;
use testkit::wait::eventually;
use tokio::time::Instant;

use crate::replica::{LIST, OFTEN, Replicated, servers, standby_of};
use crate::with_status;

/// An insert of a conversation of the tenant.
fn insert(id: &str) -> String {
    format!(
        "INSERT INTO conversations (tenant_id, id, session_id, created_at, hot_generation)
         VALUES ('acme', '{id}', 's', now(), 1)"
    )
}

#[tokio::test]
async fn while_the_replica_is_stopped_or_frozen_the_primary_answers_and_says_so() {
    let replicated = Replicated::new(&[]).await;
    let (standby, api) = (&replicated.standby, &replicated.api);
    let unused = || api.worker.log().matches("is not used; the primary answers").count();
    // While the role was not there yet.
    let at_the_start = unused();
    for round in 0..2 {
        if round == 0 {
            standby.kill().await.unwrap();
        } else {
            standby.freeze().unwrap();
        }
        let started = Instant::now();
        // The first answer, too.
        let first = replicated.list().await;
        assert_eq!(first.server, "primary", "round {round}");
        assert!(started.elapsed().as_secs() < 4, "{:?}", started.elapsed());
        replicated.scenario.sql(&insert(&format!("during-{round}"))).await;
        let answer = replicated.list().await;
        assert_eq!((answer.server.as_str(), answer.conversations.len()), ("primary", 4 + round));
        replicated.until_metric("verbatim_read_replica_used 0").await;
        if round == 0 {
            standby.start().await.unwrap();
        } else {
            standby.thaw().unwrap();
        }
        replicated
            .until_read("the replica", |it| {
                it.server == "replica" && it.conversations.len() == 4 + round
            })
            .await;
    }
    assert_eq!(unused() - at_the_start, 2, "{}", api.worker.log());
}

#[tokio::test]
async fn a_promoted_replica_never_answers_whatever_is_written_to_it() {
    let replicated = Replicated::new(&[]).await;
    let standby = &replicated.standby;
    let promote = async {
        assert_eq!(standby.psql("postgres", "SELECT pg_promote()").await.unwrap().trim(), "t");
        standby.psql("postgres", &insert("foreign")).await.unwrap();
    };
    let read = async {
        replicated
            .until_read("the primary", |answer| {
                assert!(!answer.conversations.contains(&"foreign".to_owned()), "{answer:?}");
                answer.server == "primary"
            })
            .await;
        for _ in 0..20 {
            let answer = replicated.list().await;
            assert_eq!((answer.server.as_str(), answer.conversations.len()), ("primary", 3));
        }
    };
    tokio::join!(promote, read);
    replicated.until_metric("verbatim_read_replica_used 0").await;
    for _ in 0..20 {
        let answer = replicated.list().await;
        assert_eq!((answer.server.as_str(), answer.conversations.len()), ("primary", 3));
    }
    replicated.until_log("it was promoted").await;
}

#[tokio::test]
async fn after_a_failover_of_the_primary_a_replica_of_the_old_one_never_answers() {
    let (scenario, first) = servers().await;
    let old = scenario.server(Kind::PostgreSql);
    let replica = standby_of(old, "replica").await;
    let proxy = Proxy::before(&scenario.database_url).await.unwrap();
    let url = ApiServer::url_of_role(&scenario, &replica.url());
    let settings = [[("API_DATABASE_READ_URL", url.as_str())].as_slice(), &OFTEN].concat();
    let api = ApiServer::launch(&scenario, proxy.url(), &settings).await;
    api.worker.ready(LIMIT).await.unwrap();
    let replicated = Replicated::with(scenario, first, api).await;
    assert_eq!(
        replicated.standby.psql("postgres", "SELECT pg_promote()").await.unwrap().trim(),
        "t"
    );
    proxy.lead_to(&replicated.standby.url()).await.unwrap();
    replicated.until_read("the new primary", |answer| answer.server == "primary").await;
    // The old primary goes on, and its replica follows it, beyond the position of the new one.
    let filler = "SELECT pg_logical_emit_message(true, 'test', repeat('x', 4000000))";
    replicated.scenario.sql(filler).await;
    replicated.scenario.sql(&insert("lost")).await;
    eventually("the row on the replica", LIMIT, async || {
        let count = "SELECT count(*) FROM conversations WHERE id = 'lost'";
        let count = replica.psql("postgres", count).await.map_err(|error| error.to_string())?;
        if count.trim() == "1" { Ok(()) } else { Err(count) }
    })
    .await;
    // The API asks both servers several times meanwhile.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(1) {
        let answer = replicated.list().await;
        assert_eq!((answer.server.as_str(), answer.conversations.len()), ("primary", 3));
    }
    replicated.until_log("it replays timeline 1, and the primary writes timeline 2").await;
}

#[tokio::test]
async fn while_the_primary_is_unavailable_the_replica_answers_until_it_is_too_old() {
    let (scenario, standby) = servers().await;
    let proxy = Proxy::before(&scenario.database_url).await.unwrap();
    let url = ApiServer::url_of_role(&scenario, &standby.url());
    let settings = [
        ("API_DATABASE_READ_URL", url.as_str()),
        ("VERBATIM_REPLICA_MAX_LAG", "4s"),
        ("VERBATIM_API_DATABASE_TIMEOUT", "1s"),
    ];
    let settings = [settings.as_slice(), &OFTEN].concat();
    let api = ApiServer::launch(&scenario, proxy.url(), &settings).await;
    api.worker.ready(LIMIT).await.unwrap();
    let replicated = Replicated::with(scenario, standby, api).await;
    proxy.cut().await.unwrap();
    let cut = Instant::now();
    let (mut answers, mut last) = (0, Duration::ZERO);
    let response = loop {
        let asked = cut.elapsed();
        let response = replicated.api.get(&replicated.key, LIST).await;
        if response.status != 200 {
            break response;
        }
        let lag = response.header("verbatim-replica-lag-ms").unwrap();
        let lag = Duration::from_millis(lag.parse().unwrap());
        assert!(lag >= asked && lag >= last, "{lag:?} {asked:?} {last:?}");
        (answers, last) = (answers + 1, lag);
        assert!(asked < LIMIT, "{response:?}");
    };
    with_status(&response, 503);
    assert!(answers > 5 && cut.elapsed().as_secs() >= 3, "{answers} {:?}", cut.elapsed());
    proxy.restore().await.unwrap();
    eventually("the replica", LIMIT, async || {
        let response = replicated.api.get(&replicated.key, LIST).await;
        match response.header("verbatim-served-by") {
            Some("replica") => Ok(()),
            _ => Err(format!("{response:?}")),
        }
    })
    .await;
}

#[tokio::test]
async fn a_query_that_recovery_cancels_on_the_replica_is_repeated_on_the_primary() {
    let replicated = Replicated::new(&[]).await;
    let (scenario, standby) = (&replicated.scenario, &replicated.standby);
    for setting in ["ALTER SYSTEM SET max_standby_streaming_delay = 0", "SELECT pg_reload_conf()"] {
        standby.psql("postgres", setting).await.unwrap();
    }
    let on_the_standby = async |what: &str, sql: &str| {
        eventually(what, LIMIT, async || {
            let found = standby.psql("postgres", sql).await.map_err(|error| error.to_string())?;
            if found.trim() == "t" { Ok(()) } else { Err(found) }
        })
        .await;
    };
    let locked = |granted: &str| {
        format!(
            "SELECT count(*) > 0 FROM pg_locks WHERE relation = 'api_tenant_keys'::regclass AND {granted}"
        )
    };
    // Recovery holds a lock for which the query will wait. Next it will need the table that the query reads, before it
    // replays the end of the first transaction. On the primary both transactions have ended.
    scenario
        .while_open("LOCK TABLE api_tenant_keys IN ACCESS EXCLUSIVE MODE", async {
            on_the_standby("the lock on the standby", &locked("granted")).await;
            replicated.pause().await;
            scenario.sql("BEGIN; LOCK TABLE conversations IN ACCESS EXCLUSIVE MODE; COMMIT").await;
        })
        .await;
    let conflict = async {
        on_the_standby("the query to wait", &locked("NOT granted")).await;
        replicated.resume().await;
    };
    let (answer, ()) = tokio::join!(replicated.list(), conflict);
    let cancelled =
        "SELECT confl_lock > 0 FROM pg_stat_database_conflicts WHERE datname = 'postgres'";
    on_the_standby("the conflict", cancelled).await;
    assert_eq!((answer.server.as_str(), answer.conversations.len()), ("primary", 3));
    replicated.until_metric("verbatim_stale_reads_total{server=\"primary_repeated\"} 1").await;
}

#[tokio::test]
async fn a_replica_of_another_cluster_keeps_the_api_from_starting_and_a_wrong_password_does_not() {
    let (scenario, standby) = servers().await;
    let other = Scenario::new().await;
    // Sets up the role there.
    let _other_api = ApiServer::start(&other, &[]).await;
    let url = ApiServer::url_of_role(&other, &other.database_url);
    let settings = [("API_DATABASE_READ_URL", url.as_str())];
    let process = ApiServer::process(&scenario, &scenario.database_url, &settings).await;
    let status = process.wait(LIMIT).await.unwrap();
    let log = process.log_tail();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("API_DATABASE_READ_URL") && log.contains("another cluster"), "{log}");

    let url = ApiServer::url_of_role(&scenario, &standby.url()).replace(":s3cret@", ":wr0ng@");
    let settings = [("API_DATABASE_READ_URL", url.as_str())];
    let api = ApiServer::start(&scenario, &settings).await;
    let key = api.key("acme", &["read"]).await;
    let response = api.get(&key, LIST).await;
    with_status(&response, 200);
    assert_eq!(response.header("verbatim-served-by"), Some("primary"));
    let log = eventually("the log line", LIMIT, async || {
        let log = api.worker.log();
        if log.contains("is not used") { Ok(log) } else { Err(log) }
    })
    .await;
    assert!(log.contains("correct user and password"), "{log}");
    assert!(!log.contains("wr0ng"), "{log}");
}
