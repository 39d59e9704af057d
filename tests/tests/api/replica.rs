//! Statistics and lists from a read replica: how stale they are, and what a reader of its own write gets.

use std::time::Duration;

use serde_json::{Value, json};
use system_tests::{ApiServer, LIMIT, SAVER, Scenario};
use testkit::environment::deep;
use testkit::http::Response;
use testkit::servers::{BaseBackup, Kind, Server, Servers};
use testkit::wait::eventually;
use tokio::time::Instant;

use crate::{archived, ids, with_status};

pub(crate) const LIST: &str = "/api/conversations/list/acme";
const DURABLE: &str = "/api/actions?wait=durable";
const STATS: &str = "/api/conversations/stats/acme";
const AGENT: &str = "/api/agents/ada/stats";
const FULL: &str = "/api/conversations/c0/full";

/// A key may ask as often as these tests do.
pub(crate) const OFTEN: [(&str, &str); 2] =
    [("VERBATIM_KEY_RATE", "10000"), ("VERBATIM_KEY_BURST", "10000")];

/// A primary, its standby, and an API that reads both.
pub(crate) struct Replicated {
    pub(crate) scenario: Scenario,
    pub(crate) standby: Server,
    pub(crate) api: ApiServer,
    pub(crate) key: String,
}

impl Replicated {
    /// With three conversations of the tenant, and these settings of the API. The API uses the standby.
    pub(crate) async fn new(settings: &[(&str, &str)]) -> Self {
        let (scenario, standby) = servers().await;
        let url = ApiServer::url_of_role(&scenario, &standby.url());
        let read = [[("API_DATABASE_READ_URL", url.as_str())].as_slice(), &OFTEN].concat();
        let api = ApiServer::start(&scenario, &[&read, settings].concat()).await;
        Self::with(scenario, standby, api).await
    }

    pub(crate) async fn with(scenario: Scenario, standby: Server, api: ApiServer) -> Self {
        archived(&scenario, "acme", 3, 1).await;
        let key = api.key("acme", &["read", "write"]).await;
        let replicated = Self { scenario, standby, api, key };
        replicated
            .until_read("the three conversations of the replica", |answer| {
                answer.lag.is_some() && answer.conversations == ["c2", "c1", "c0"]
            })
            .await;
        replicated
    }

    /// A list without a position.
    pub(crate) async fn list(&self) -> Answered {
        Answered::of(&self.api.get(&self.key, LIST).await)
    }

    /// Lists until an answer is as expected.
    pub(crate) async fn until_read(
        &self,
        what: &str,
        is_so: impl Fn(&Answered) -> bool,
    ) -> Answered {
        eventually(what, LIMIT, async || {
            let response = self.api.get(&self.key, LIST).await;
            // While the primary changes.
            let seen = || format!("{response:?}; {}", self.api.worker.log_tail());
            if response.status == 503 {
                return Err(seen());
            }
            let answer = Answered::of(&response);
            if is_so(&answer) { Ok(answer) } else { Err(seen()) }
        })
        .await
    }

    /// Saves a message durably; returns the position after it, and the id of its conversation.
    async fn write(&self, session: &str) -> (String, String) {
        let action = json!({"action_type": "conversation.save_message", "session_id": session, "role": "user",
                            "content": "hello"});
        let response = self.api.post(&self.key, DURABLE, &[], &action).await;
        let answer = with_status(&response, 200);
        let position = response.header("verbatim-after").unwrap().to_owned();
        (position, answer["actions"][0]["conversation_id"].as_str().unwrap().to_owned())
    }

    /// A list that has to have what was written before this position.
    async fn list_after(&self, position: &str) -> Answered {
        let headers = [("verbatim-after", position)];
        Answered::of(&self.api.get_with(&self.key, LIST, &headers).await)
    }

    pub(crate) async fn pause(&self) {
        self.standby.psql("postgres", "SELECT pg_wal_replay_pause()").await.unwrap();
        eventually("the replay to pause", LIMIT, async || {
            let state = self.standby.psql("postgres", "SELECT pg_get_wal_replay_pause_state()");
            let state = state.await.map_err(|error| error.to_string())?;
            if state.trim() == "paused" { Ok(()) } else { Err(state) }
        })
        .await;
    }

    pub(crate) async fn resume(&self) {
        self.standby.psql("postgres", "SELECT pg_wal_replay_resume()").await.unwrap();
    }

    /// Waits until the log of the API has this text.
    pub(crate) async fn until_log(&self, text: &str) {
        eventually(text, LIMIT, async || {
            let log = self.api.worker.log();
            if log.contains(text) { Ok(()) } else { Err(log) }
        })
        .await;
    }

    /// Waits until a metric of the API has this line.
    pub(crate) async fn until_metric(&self, line: &str) {
        eventually(line, LIMIT, async || {
            let metrics = self.api.worker.get("/metrics").await.map_err(|it| it.to_string())?.body;
            if metrics.lines().any(|it| it == line) {
                return Ok(());
            }
            let lines = metrics.lines().filter(|it| it.contains("re") && !it.starts_with('#'));
            let lines = lines.filter(|it| it.contains("stale_reads") || it.contains("replica"));
            Err(lines.collect::<Vec<_>>().join("\n"))
        })
        .await;
    }
}

/// A primary with schema, and a standby that streams from it.
pub(crate) async fn servers() -> (Scenario, Server) {
    let servers = Servers::start(&[Kind::PostgreSql]).await.unwrap();
    let scenario = Scenario::with_own(servers).await;
    let standby = standby_of(scenario.server(Kind::PostgreSql), "standby").await;
    (scenario, standby)
}

pub(crate) async fn standby_of(primary: &Server, name: &str) -> Server {
    let standby = primary.base_backup(name, BaseBackup::Standby).await.unwrap();
    standby.start().await.unwrap();
    standby
}

/// An answer with status 200.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) server: String,
    /// How old it may be.
    pub(crate) lag: Option<Duration>,
    pub(crate) conversations: Vec<String>,
    next: Value,
}

impl Answered {
    fn of(response: &Response) -> Self {
        let body = with_status(response, 200);
        let header = |name| response.header(name);
        let server = header("verbatim-served-by").unwrap().to_owned();
        let lag =
            header("verbatim-replica-lag-ms").map(|it| Duration::from_millis(it.parse().unwrap()));
        assert_eq!(lag.is_some(), server == "replica", "{response:?}");
        Self { server, lag, conversations: ids(&body["conversations"]), next: body["next"].clone() }
    }
}

#[tokio::test]
async fn while_the_replay_stands_still_answers_say_how_stale_they_are_and_a_writer_gets_its_write()
{
    let (most, paused) = if deep() { ("40s", 30) } else { ("4s", 3) };
    let replicated = Replicated::new(&[("VERBATIM_REPLICA_MAX_LAG", most)]).await;
    let _saver = replicated.scenario.start(SAVER).await;
    replicated.pause().await;
    let (position, id) = replicated.write("during-the-pause").await;
    let written = Instant::now();
    let (mut answers, mut last) = (0, Duration::ZERO);
    while written.elapsed() < Duration::from_secs(paused) {
        let asked = written.elapsed();
        let answer = replicated.list().await;
        let lag = answer.lag.unwrap_or_else(|| panic!("{answer:?} after {asked:?}"));
        assert!(!answer.conversations.contains(&id), "{answer:?}");
        // The write, which is missing, is as old as that.
        assert!(lag >= asked, "{answer:?}, {asked:?} after the write");
        assert!(lag >= last, "{answer:?} after one that was {last:?} old");
        (answers, last) = (answers + 1, lag);
        let own = replicated.list_after(&position).await;
        assert_eq!(own.server, "primary");
        assert!(own.conversations.contains(&id), "{own:?}");
    }
    assert!(answers > 5, "{answers}");
    // Too old.
    let late = replicated.until_read("the primary", |answer| answer.server == "primary").await;
    assert!(late.conversations.contains(&id), "{late:?}");
    replicated.until_metric("verbatim_read_replica_used 0").await;
    replicated.until_log("VERBATIM_REPLICA_MAX_LAG behind").await;
    replicated.resume().await;
    let again = replicated.until_read("the replica", |answer| answer.server == "replica").await;
    assert!(again.conversations.contains(&id), "{again:?}");
    let own = replicated.list_after(&position).await;
    assert_eq!(own.server, "replica");
    replicated.until_metric("verbatim_read_replica_used 1").await;
}

#[tokio::test]
async fn a_reader_of_its_own_write_waits_for_the_replica_and_no_longer_than_it_may() {
    let replicated = Replicated::new(&[("VERBATIM_REPLICA_WAIT", "20s")]).await;
    let _saver = replicated.scenario.start(SAVER).await;
    replicated.pause().await;
    let (position, id) = replicated.write("s").await;
    let resume = async {
        replicated.until_metric("verbatim_read_replica_used 1").await;
        replicated.resume().await;
    };
    let started = Instant::now();
    let (own, ()) = tokio::join!(replicated.list_after(&position), resume);
    assert!(own.server == "replica" && own.conversations.contains(&id), "{own:?}");
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    // Of another cluster and of another timeline a position says nothing: the primary answers at once.
    let parts: Vec<&str> = position.split('-').collect();
    for other in [
        format!("1-{}-{}-{}", "0".repeat(16), parts[2], parts[3]),
        format!("1-{}-{}-{}", parts[1], "00000009", parts[3]),
    ] {
        let started = Instant::now();
        let answer = replicated.list_after(&other).await;
        assert_eq!(answer.server, "primary", "{other}");
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    }
    replicated.until_metric("verbatim_stale_reads_total{server=\"primary_behind\"} 2").await;
}

#[tokio::test]
async fn transcripts_are_of_the_primary_and_statistics_and_lists_of_the_replica() {
    let replicated = Replicated::new(&[]).await;
    let api = &replicated.api;
    for path in [LIST, STATS, AGENT] {
        let response = api.get(&replicated.key, path).await;
        with_status(&response, 200);
        assert_eq!(response.header("verbatim-served-by"), Some("replica"), "{path}");
        assert!(response.header("verbatim-replica-lag-ms").is_some(), "{path}");
    }
    replicated.pause().await;
    replicated.scenario.sql("UPDATE message_rows SET content = 'changed'").await;
    let response = api.get(&replicated.key, FULL).await;
    let page = with_status(&response, 200);
    assert_eq!(page["messages"][0]["content"], "changed");
    assert_eq!(response.header("verbatim-served-by"), None);
    // Its tenant alone.
    let globex = api.key("globex", &["read"]).await;
    let response = api.get(&globex, "/api/conversations/list/globex").await;
    assert_eq!(with_status(&response, 200)["conversations"], json!([]));
    assert_eq!(response.header("verbatim-served-by"), Some("replica"));
    with_status(&api.get(&globex, LIST).await, 404);
}

#[tokio::test]
async fn a_list_that_the_primary_began_is_not_continued_by_a_replica_that_is_behind() {
    let replicated = Replicated::new(&[]).await;
    let page = |cursor: &Value| match cursor.as_str() {
        Some(cursor) => format!("{LIST}?limit=2&cursor={cursor}"),
        None => format!("{LIST}?limit=2"),
    };
    let get = async |cursor: &Value, headers: &[(&str, &str)]| {
        let path = page(cursor);
        Answered::of(&replicated.api.get_with(&replicated.key, &path, headers).await)
    };
    // All pages are of the replica.
    let first = get(&Value::Null, &[]).await;
    let second = get(&first.next, &[]).await;
    assert_eq!((first.server.as_str(), second.server.as_str()), ("replica", "replica"));
    assert_eq!([first.conversations, second.conversations].concat(), ["c2", "c1", "c0"]);
    // A conversation that belongs to the second page, which the replica lacks.
    replicated.pause().await;
    replicated
        .scenario
        .sql(
            "INSERT INTO conversations (tenant_id, id, session_id, created_at, hot_generation)
              VALUES ('acme', 'late', 's', '2026-01-01', 1)",
        )
        .await;
    let unknown = format!("1-{}-00000001-{}", "0".repeat(16), "0".repeat(16));
    let first = get(&Value::Null, &[("verbatim-after", &unknown)]).await;
    let second = get(&first.next, &[]).await;
    assert_eq!((first.server.as_str(), second.server.as_str()), ("primary", "primary"));
    assert_eq!([first.conversations, second.conversations].concat(), ["c2", "c1", "late", "c0"]);
    // Between two pages the replica goes on; and it may not go back.
    let first = get(&Value::Null, &[]).await;
    replicated.resume().await;
    let second = get(&first.next, &[]).await;
    assert_eq!((first.server.as_str(), second.server.as_str()), ("replica", "replica"));
}

#[tokio::test]
async fn without_a_replica_no_position_is_returned_and_a_position_that_is_none_is_refused() {
    let (scenario, api) = crate::started().await;
    let _saver = scenario.start(SAVER).await;
    let key = api.key("acme", &["read", "write"]).await;
    let action = json!({"action_type": "conversation.save_message", "session_id": "s", "role": "user",
                        "content": "hello"});
    let response = api.post(&key, DURABLE, &[], &action).await;
    with_status(&response, 200);
    assert_eq!(response.header("verbatim-after"), None);
    let some = format!("1-{}-00000001-{}", "0".repeat(16), "0".repeat(16));
    let answer = Answered::of(&api.get_with(&key, LIST, &[("verbatim-after", &some)]).await);
    assert_eq!(answer.server, "primary");
    for bad in ["", "0/16B374D8", &some.to_uppercase()[1..]] {
        let problem = with_status(&api.get_with(&key, LIST, &[("verbatim-after", bad)]).await, 422);
        assert!(problem["detail"].as_str().unwrap().contains("Verbatim-After"), "{problem}");
    }
}
