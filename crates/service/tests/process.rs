//! Signals, exit codes and log lines of a real process.

#![expect(clippy::expect_used, reason = "helpers of tests, outside of the tests themselves")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// Longer than any step takes on a busy machine.
const OVERDUE_AFTER: Duration = Duration::from_secs(30);

struct TestProcess {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl TestProcess {
    fn start(flags: &[&str]) -> Self {
        // Cargo builds examples together with tests, into a sibling of the tests' directory.
        let mut path: PathBuf = std::env::current_exe().expect("this test");
        path.pop();
        path.pop();
        let mut child = Command::new(path.join("examples/idle"))
            .args(["--log-format=json"])
            .args(flags)
            .env_clear()
            .env("VERBATIM_LISTEN", "127.0.0.1:0")
            .stderr(Stdio::piped())
            .spawn()
            .expect("the example starts");
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let (send, lines) = channel();
        std::thread::spawn(move || {
            stderr.lines().map_while(Result::ok).try_for_each(|line| send.send(line)).ok();
        });
        Self { child, lines, seen: Vec::new() }
    }

    /// Waits for a line that contains the text.
    fn wait_for(&mut self, text: &str) {
        while !self.seen.iter().any(|line| line.contains(text)) {
            match self.lines.recv_timeout(OVERDUE_AFTER) {
                Ok(line) => self.seen.push(line),
                Err(error) => panic!("no line with {text:?} ({error}) after {:#?}", self.seen),
            }
        }
    }

    /// The response of the process, headers included.
    fn fetch(&mut self, path: &str) -> String {
        self.wait_for("\"address\"");
        let address = self.seen.iter().find_map(|line| {
            line.split_once("\"address\":\"")?.1.split_once('"').map(|(address, _)| address)
        });
        let mut stream = TcpStream::connect(address.expect("logged")).expect("it listens");
        stream.set_read_timeout(Some(OVERDUE_AFTER)).expect("a timeout");
        write!(stream, "GET {path} HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n")
            .expect("sent");
        let mut response = String::new();
        stream.read_to_string(&mut response).expect("a response");
        response
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let status = Command::new("kill").args(["-s", name, &pid]).status().expect("kill runs");
        assert!(status.success());
    }

    /// The exit code, after the end of standard error.
    fn code(mut self) -> Option<i32> {
        while let Ok(line) = self.lines.recv_timeout(OVERDUE_AFTER) {
            self.seen.push(line);
        }
        let status = self.child.try_wait().expect("a child");
        if status.is_none() {
            self.child.kill().expect("a child");
        }
        self.child.wait().expect("a child").code()
    }
}

#[test]
fn sigterm_drains_and_exits_with_zero() {
    let mut process = TestProcess::start(&["--work=50ms"]);
    process.wait_for("\"started\"");
    process.signal("TERM");
    process.wait_for("shutdown complete after");
    assert_eq!(process.code(), Some(0));
}

#[test]
fn a_task_beyond_the_drain_deadline_ends_with_code_3() {
    let mut process = TestProcess::start(&["--work=1h", "--drain-deadline=50ms"]);
    process.wait_for("\"started\"");
    process.signal("INT");
    process.wait_for("shutdown aborted by the drain deadline");
    assert_eq!(process.code(), Some(3));
}

#[test]
fn a_second_signal_ends_with_code_4() {
    let mut process = TestProcess::start(&["--work=1h"]);
    process.wait_for("\"started\"");
    process.signal("TERM");
    process.wait_for("received SIGTERM; shutting down");
    process.signal("TERM");
    process.wait_for("shutdown aborted by a second signal");
    assert_eq!(process.code(), Some(4));
}

#[test]
fn a_panic_is_logged_with_its_location_and_the_task_restarts() {
    let mut process = TestProcess::start(&["--first=panic"]);
    process.wait_for("panic at crates/service/examples/idle.rs:");
    process.wait_for("restarting in 100 ms");
    process.wait_for("task idle restarted");
    process.wait_for("\"started\"");
    process.wait_for("\"idle\"");
    let metrics = process.fetch("/metrics");
    for line in [
        "verbatim_panics_total 1",
        "verbatim_task_restarts_total{cause=\"panicked\",task=\"idle\"} 1",
    ] {
        assert!(metrics.lines().any(|found| found == line), "no {line} in\n{metrics}");
    }
    let build = format!(
        "verbatim_build_info{{process=\"message-save-worker\",version=\"{}\"}} 1",
        service::VERSION
    );
    assert!(metrics.contains(&build), "no {build} in\n{metrics}");
    process.signal("TERM");
    assert_eq!(process.code(), Some(0));
}

#[test]
fn a_panic_at_the_start_ends_with_code_1_and_no_line_has_its_formatted_message() {
    let mut process = TestProcess::start(&["--first=panic-in-build"]);
    process.wait_for("panic at crates/service/examples/idle.rs:");
    process.wait_for("cannot start: panicked");
    process.wait_for("shutdown complete");
    assert!(!process.seen.iter().any(|line| line.contains("words of")), "{:?}", process.seen);
    assert_eq!(process.code(), Some(1));
}

#[test]
fn a_process_serves_its_own_route_beside_the_built_in_ones() {
    let mut process = TestProcess::start(&[]);
    process.wait_for("\"started\"");
    for (path, status) in [("/idle", 200), ("/readyz", 200), ("/unknown", 404)] {
        let response = process.fetch(path);
        assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {response}");
    }
    process.signal("TERM");
    assert_eq!(process.code(), Some(0));
}

#[test]
fn invalid_settings_end_with_code_2_and_one_line() {
    let mut process = TestProcess::start(&["--work=soon"]);
    process.wait_for("flag --work");
    assert_eq!(process.seen.len(), 1, "{:?}", process.seen);
    assert!(process.seen[0].starts_with("message-save-worker: flag --work: \"soon\": "));
    assert_eq!(process.code(), Some(2));
}

#[test]
fn a_taken_address_ends_with_code_1_and_a_line_that_names_the_setting() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound");
    let mut process = TestProcess::start(&[&format!("--listen={address}")]);
    process.wait_for(&format!("cannot listen on {address}"));
    process.wait_for("VERBATIM_LISTEN");
    assert_eq!(process.code(), Some(1));
}
