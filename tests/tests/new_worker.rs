//! `cargo xtask new worker` in a copy of the workspace: what it touches, and that its worker builds and works.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use broker::Publication;
use serde_json::{Value, json};
use system_tests::{Counts, Scenario};
use testkit::place::{profile_dir, workspace};

const WORKER: &str = "webhook-worker";
const REOPENED: &str = "conversation.reopened";
const QUEUE: &str = "conversation.webhook";

/// The most files that one more worker touches.
const MOST_FILES: usize = 6;

/// The files of the workspace with their contents, without what is built.
fn files() -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(workspace()).unwrap() {
        let path = entry.unwrap().path();
        let mut add = |path: &Path| {
            let name = path.strip_prefix(workspace()).unwrap().to_owned();
            files.insert(name, std::fs::read(path).unwrap());
        };
        if path.is_file() {
            add(&path);
        } else if !path.ends_with("target") && !path.ends_with(".git") {
            walk(&path, &mut add);
        }
    }
    files
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

    let target = copy.join("target");
    let building = tokio::task::spawn_blocking({
        let (copy, target) = (copy.clone(), target.clone());
        move || {
            take_dependencies(&target.join(profile_dir().file_name().unwrap()));
            let build = ["build", "--offline", "--bin", WORKER, "--bin", "verbatim"];
            cargo(&build, &[("CARGO_TARGET_DIR", &target)], &copy);
        }
    });
    building.await.unwrap();
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

/// Takes over the compiled dependencies of this workspace. Of its own crates nothing is taken over, because cargo
/// gives those of the copy the same names.
fn take_dependencies(profile: &Path) {
    let mut metadata = testkit::cargo::command(&["metadata", "--offline", "--no-deps"]);
    let metadata = metadata.args(["--format-version", "1"]).output().unwrap().stdout;
    let metadata: Value = serde_json::from_slice(&metadata).unwrap();
    let packages = metadata["packages"].as_array().unwrap().iter();
    let own: Vec<String> =
        packages.map(|it| it["name"].as_str().unwrap().replace('-', "_")).collect();
    let is_own = |name: &str| {
        let name = name.strip_prefix("lib").unwrap_or(name).replace('-', "_");
        own.iter().any(|own| name.starts_with(&format!("{own}_")))
    };
    for folder in ["deps", ".fingerprint", "build"] {
        let from = profile_dir().join(folder);
        walk(&from, &mut |path| {
            let name = path.strip_prefix(&from).unwrap();
            let first = name.components().next().unwrap().as_os_str().to_str().unwrap();
            let is_program = folder == "deps" && path.extension().is_none();
            if is_own(first) || is_program {
                return;
            }
            let to = profile.join(folder).join(name);
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            // Libraries are never changed in place; what cargo notes about them is.
            match folder {
                "deps" => std::fs::hard_link(path, to).unwrap(),
                _ => {
                    let modified = path.metadata().unwrap().modified().unwrap();
                    std::fs::copy(path, &to).unwrap();
                    std::fs::File::open(to).unwrap().set_modified(modified).unwrap();
                }
            }
        });
    }
}

fn walk(dir: &Path, each: &mut impl FnMut(&Path)) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { walk(&path, each) } else { each(&path) }
    }
}
