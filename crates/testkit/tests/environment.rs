//! Test environments are isolated from each other, and leave nothing behind when their owner dies.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use testkit::TestEnv;
use testkit::servers::{Kind, Servers};
use testkit::wait::eventually;

const SOON: Duration = Duration::from_secs(10);

#[tokio::test]
async fn two_environments_share_nothing() {
    let (one, two) = tokio::join!(TestEnv::new(), TestEnv::new());
    one.psql("CREATE TABLE mine (word text)").await.unwrap();
    assert!(two.psql("SELECT * FROM mine").await.is_err());
    let queue = format!("/api/queues/{}/mine", one.name);
    one.management().request("PUT", &queue, r#"{"durable":true}"#).await.unwrap();
    let hosts = two.management().get(&format!("/api/queues/{}", two.name)).await.unwrap();
    assert_eq!(hosts, serde_json::json!([]));
    assert_ne!(one.redis_url, two.redis_url);
    assert!(one.amqp_url.ends_with(&one.name) && one.database_url.ends_with(&one.name));
}

#[tokio::test]
async fn a_dropped_environment_removes_its_virtual_host_and_database() {
    let (dropped, other) = tokio::join!(TestEnv::new(), TestEnv::new());
    let name = dropped.name.clone();
    drop(dropped);
    eventually("the end of the virtual host and the database", SOON, async || {
        let hosts = other.management().get("/api/vhosts").await.map_err(|e| e.to_string())?;
        let databases =
            other.psql("SELECT datname FROM pg_database").await.map_err(|e| e.to_string())?;
        let seen = format!("{hosts} {databases}");
        if seen.contains(&name) { Err(seen) } else { Ok(()) }
    })
    .await;
}

/// The variable with which a test of this file starts itself as an owner that will die.
const ROLE: &str = "VERBATIM_TEST_ROLE";

/// The owner: starts servers, prints their process ids, and ends as `ending` says.
async fn be_an_owner(ending: &str) {
    let servers = Servers::start(&[Kind::Redis, Kind::PostgreSql]).await.unwrap();
    let pids = [Kind::Redis, Kind::PostgreSql].map(|kind| servers.get(kind).pid().unwrap());
    println!("owns {} {}", pids[0], pids[1]);
    assert_ne!(ending, "panic", "intended by the test");
    std::future::pending::<()>().await;
}

/// Starts this test as an owner; returns it with the directory and processes that it owns.
fn owner(test: &str, ending: &str) -> (Child, PathBuf, Vec<PathBuf>) {
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(ROLE, ending)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(owner.stdout.take().unwrap()).lines();
    let line =
        lines.find_map(|line| line.unwrap().split_once("owns ").map(|(_, pids)| pids.to_owned()));
    let pids: Vec<_> =
        line.unwrap().split(' ').map(|pid| PathBuf::from(format!("/proc/{pid}"))).collect();
    // A panicking owner may have ended already: then its directory is removed as well.
    let dir = fs::read_link(pids[0].join("cwd")).unwrap_or_default();
    (owner, dir, pids)
}

async fn nothing_is_left(mut owner: Child, dir: PathBuf, pids: Vec<PathBuf>) {
    owner.wait().unwrap();
    eventually("the end of the servers", SOON, async || {
        let left: Vec<_> = pids.iter().chain([&dir]).filter(|path| path.exists()).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
}

#[tokio::test]
async fn a_killed_owner_leaves_nothing_behind() {
    if let Ok(ending) = std::env::var(ROLE) {
        return be_an_owner(&ending).await;
    }
    let (mut child, dir, pids) = owner("a_killed_owner_leaves_nothing_behind", "kill");
    child.kill().unwrap();
    nothing_is_left(child, dir, pids).await;
}

#[tokio::test]
async fn an_interrupted_owner_leaves_nothing_behind() {
    if let Ok(ending) = std::env::var(ROLE) {
        return be_an_owner(&ending).await;
    }
    let (child, dir, pids) = owner("an_interrupted_owner_leaves_nothing_behind", "interrupt");
    let interrupt = format!("kill -s INT {}", child.id());
    assert!(Command::new("sh").args(["-c", &interrupt]).status().unwrap().success());
    nothing_is_left(child, dir, pids).await;
}

#[tokio::test]
async fn a_panicking_owner_leaves_nothing_behind() {
    if let Ok(ending) = std::env::var(ROLE) {
        return be_an_owner(&ending).await;
    }
    let (child, dir, pids) = owner("a_panicking_owner_leaves_nothing_behind", "panic");
    nothing_is_left(child, dir, pids).await;
}
