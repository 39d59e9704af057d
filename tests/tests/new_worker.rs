//! `cargo xtask new worker` in a copy of the workspace: what it touches, and that its worker builds and works.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use broker::Publication;
use serde_json::{Value, json};
use system_tests::{Counts, Scenario};
use testkit::place::{profile_dir, workspace};

const WORKER: &str = "webhook-worker";
const REOPENED: &str = "conversation.reopened";
const QUEUE: &str = "conversation.webhook";

/// The most files that one more worker touches.
const MOST_FILES: usize = 6;

/// The files of the workspace that git knows, with their contents, without those that are deleted.
fn files() -> BTreeMap<PathBuf, Vec<u8>> {
    let mut list = Command::new("git");
    let list = list.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let output = list.current_dir(workspace()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).unwrap();
    let names = names.split('\0').filter(|name| !name.is_empty());
    names
        .filter_map(|name| Some((name.into(), std::fs::read(workspace().join(name)).ok()?)))
        .collect()
}

/// Runs cargo, and fails with its output.
fn cargo(arguments: &[&str], environment: &[(&str, &Path)], dir: &Path) {
    let mut command = testkit::cargo::command(arguments);
    command.envs(environment.iter().copied()).current_dir(dir);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn one_more_worker_touches_six_files_builds_consumes_and_is_listed() {
    let copy = workspace().join("target/tmp/new-worker");
    // One that an interrupted run left.
    std::fs::remove_dir_all(&copy).ok();
    let before = files();
    for (name, content) in &before {
        let path = copy.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    let new = ["run", "--quiet", "--package", "xtask", "--", "new", "worker", "webhook"];
    let dir = ["--workspace", copy.to_str().unwrap()];
    cargo(&[&new[..], &dir].concat(), &[], &workspace());

    let is_changed = |path: &Path| {
        let name = path.strip_prefix(&copy).unwrap();
        before.get(name) != Some(&std::fs::read(path).unwrap())
    };
    let mut changed = Vec::new();
    walk(&copy, &mut |path| changed.extend(is_changed(path).then(|| path.to_owned())));
    assert!((1..=MOST_FILES).contains(&changed.len()), "{changed:#?}");
    let compose = std::fs::read_to_string(copy.join("docker-compose.yml")).unwrap();
    let compose: Value = serde_saphyr::from_str(&compose).unwrap();
    assert_eq!(compose["services"][WORKER]["command"], json!([WORKER]));

    // The dependencies are those of the workspace, compiled already; what cargo makes of the copy is its own.
    let (target, build) = (copy.join("target"), workspace().join("target"));
    let dirs = [("CARGO_TARGET_DIR", &*target), ("CARGO_BUILD_BUILD_DIR", &*build)];
    let build = ["build", "--offline", "--bin", WORKER, "--bin", "verbatim"];
    tokio::task::spawn_blocking({
        let (copy, dirs) = (copy.clone(), dirs.map(|(name, dir)| (name, dir.to_owned())));
        move || cargo(&build, &dirs.each_ref().map(|(name, dir)| (*name, &**dir)), &copy)
    })
    .await
    .unwrap();
    let programs = target.join(profile_dir().file_name().unwrap());
    let scenario = Scenario::of_programs(programs).await;
    let set_up = scenario.verbatim(&["setup"]).await;
    assert!(set_up.status.success(), "{set_up:?}");
    let worker = scenario.start(WORKER).await;
    let event = json!({
        "event_type": REOPENED, "tenant_id": "t", "conversation_id": "c", "session_id": "s",
        "reopened_at": "2026-11-20T10:00:00Z",
    });
    let event = Publication::event(REOPENED, event.to_string().into_bytes());
    scenario.agent().send(vec![event]).await;
    let labels = [("queue", QUEUE), ("outcome", "applied")];
    Counts::reach(&worker, "verbatim_deliveries_total", &labels, 1.0).await;
    let queues = scenario.verbatim(&["queues", "--json"]).await;
    let queues: Value = serde_json::from_slice(&queues.stdout).unwrap();
    let listed = queues.as_array().unwrap().iter().find(|it| it["queue"] == QUEUE).unwrap();
    assert_eq!((&listed["worker"], &listed["consumers"]), (&json!(WORKER), &json!(1)));
    scenario.drain([worker]).await;
    std::fs::remove_dir_all(&copy).unwrap();
}

fn walk(dir: &Path, each: &mut impl FnMut(&Path)) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { walk(&path, each) } else { each(&path) }
    }
}
