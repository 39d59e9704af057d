//! The steps of the demo: conversations, from the first message until they are archived.
//!
//! Actions are published and results are read with the `verbatim` command; the demo prints its output.

use std::time::{Duration, SystemTime};

use anyhow::{Result, bail};
use serde_json::{Value, json};
use testkit::wait::until;

use super::agents::{self, Session};
use crate::local_system::LocalSystem;
use crate::say;

/// Settings of every process in the demo: shorter intervals, so that the demo takes half a minute.
pub(super) const SETTINGS: [(&str, &str); 3] = [
    ("VERBATIM_CLOSE_GRACE", "3s"),
    ("VERBATIM_CLOSE_INTERVAL", "250ms"),
    ("VERBATIM_STATISTICS_INTERVAL", "500ms"),
];

/// Timeout of a step; on a busy machine steps take seconds.
const LIMIT: Duration = Duration::from_secs(20);

/// Runs all steps.
pub(super) async fn run(system: &mut LocalSystem) -> Result<()> {
    say::line(&system.start_fleet().await?);
    // Unique per run: the servers may contain the data of an earlier demo.
    let run = run_id();
    let booking = agents::booking(&run);
    let support = agents::support(&run);
    let meals = agents::meals(&run);
    let sessions = [&booking, &support, &meals];

    say::heading("\n1. Three agents of two tenants publish their messages to RabbitMQ");
    publish(system, sessions.iter().flat_map(|session| session.conversation()).collect()).await?;
    for session in sessions {
        saved(system, session).await?;
    }
    list(system, &sessions).await?;

    say::heading("\n2. The messages are in PostgreSQL; a reader gets the hot copy from Redis");
    // The first read loads the hot copy into Redis; later reads use it.
    show(system, &booking, &[]).await?;
    print_conversation(system, &booking, &["--source", "redis"]).await?;

    say::heading(
        "\n3. A fourth agent sends the invalid role `bot`: its message becomes a dead letter with the reason",
    );
    publish_unchecked(system, agents::malformed(&run)).await?;
    let id = dead_letter(system, &run).await?;
    let show = ["dead-letters", "show", &id];
    indented(&first_paragraph(&system.verbatim(&show, "").await?));
    say::line(&format!("  (verbatim {} also shows body, headers and remedy)", show.join(" ")));

    say::heading(
        "\n4. A fifth agent has no ids: it sends its whole list after each answer, and each message is saved once",
    );
    let (answers, session) = (agents::list(), format!("ferry-{run}"));
    for end in [2, 4, 4] {
        let list = Value::from(answers[..end].to_vec());
        let output = system.verbatim(&sync(&session, &[]), &list.to_string()).await?;
        indented(&output);
    }

    say::heading("\n5. A message is deleted; its id stays used, so no redelivery brings it back");
    delete_first(system, &session, &answers).await?;

    say::heading(
        "\n6. The first three sessions close; each conversation waits 3 s for a reconnection",
    );
    publish(system, sessions.iter().map(|session| session.closed()).collect()).await?;
    closing(system, &sessions).await?;
    say::line(&format!("  session {} reconnects within these 3 s", support.session));
    publish(system, vec![support.opened()]).await?;
    status(system, &booking, "archived").await?;
    status(system, &meals, "archived").await?;
    let still = conversation(system, &support).await?;
    if still["status"] != "active" {
        bail!("the reconnection did not cancel the close: {still}");
    }
    list(system, &sessions).await?;
    say::line("  the reconnection cancelled the close: that conversation is still active");

    say::heading(
        "\n7. The reconnected session ends too: all three conversations are archived, with statistics",
    );
    publish(system, vec![support.last_message(), support.closed()]).await?;
    status(system, &support, "archived").await?;
    for session in sessions {
        counted(system, session).await?;
    }
    list(system, &sessions).await?;
    print_conversation(system, &support, &["--source", "postgresql"]).await
}

async fn publish(system: &LocalSystem, actions: Vec<Value>) -> Result<()> {
    let lines: String = actions.iter().map(|action| format!("{action}\n")).collect();
    indented(&system.verbatim(&["publish", "-"], &lines).await?);
    Ok(())
}

async fn publish_unchecked(system: &LocalSystem, action: Value) -> Result<()> {
    let output = system.verbatim(&["publish", "--no-lint", "-"], &format!("{action}\n")).await?;
    indented(&output);
    Ok(())
}

/// The arguments by which a list from standard input is saved.
fn sync<'a>(session: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let usual = ["sync", "-", "--tenant", agents::LIST_TENANT, "--session", session];
    [&usual, more].concat()
}

/// Deletes the first message of the list, sends the whole list again, and waits until the others are left.
async fn delete_first(system: &LocalSystem, session: &str, list: &[Value]) -> Result<()> {
    let tenant = agents::LIST_TENANT;
    let of_conversation = ["conversation", "show", "--tenant", tenant, "--session", session];
    let shown = system.json(&of_conversation).await?;
    let Some(first) = shown["messages"][0]["id"].as_str() else {
        bail!("the list has no message: {shown}")
    };
    publish(system, vec![agents::delete(tenant, session, first)]).await?;
    until("the deletion", LIMIT, async || {
        let shown = system.json(&of_conversation).await.map_err(|error| error.to_string())?;
        let left = shown["messages"].as_array().map(Vec::len);
        if left == Some(list.len() - 1) { Ok(()) } else { Err(shown["messages"].to_string()) }
    })
    .await?;
    let list = Value::from(list.to_vec()).to_string();
    let report = system.verbatim(&sync(session, &["--json"]), &list).await?;
    let report: Value = serde_json::from_str(&report)?;
    if report["new"] != json!([]) {
        bail!("the deleted message came back: {report}");
    }
    indented(&system.verbatim(&of_conversation, "").await?);
    Ok(())
}

/// Waits until every message of a session is stored.
async fn saved(system: &LocalSystem, session: &Session) -> Result<()> {
    let wanted = session.conversation().len() - 1;
    until(format!("{wanted} messages of {}", session.session), LIMIT, async || {
        let found = conversation(system, session).await.map_err(|error| error.to_string())?;
        if found["message_count"] == json!(wanted) { Ok(()) } else { Err(found.to_string()) }
    })
    .await?;
    Ok(())
}

/// Waits until every conversation has a close request.
async fn closing(system: &LocalSystem, sessions: &[&Session]) -> Result<()> {
    for session in sessions {
        until(format!("a close request of {}", session.session), LIMIT, async || {
            let found = conversation(system, session).await.map_err(|error| error.to_string())?;
            if found["close_requested_at"].is_null() { Err(found.to_string()) } else { Ok(()) }
        })
        .await?;
    }
    Ok(())
}

/// Waits until a session's conversation has a status.
async fn status(system: &LocalSystem, session: &Session, wanted: &str) -> Result<()> {
    until(format!("{} to be {wanted}", session.session), LIMIT, async || {
        let found = conversation(system, session).await.map_err(|error| error.to_string())?;
        if found["status"] == wanted { Ok(()) } else { Err(found.to_string()) }
    })
    .await?;
    Ok(())
}

/// Waits for the statistics of a session's conversation.
async fn counted(system: &LocalSystem, session: &Session) -> Result<()> {
    until(format!("statistics of {}", session.session), LIMIT, async || {
        let shown = show(system, session, &[]).await.map_err(|error| error.to_string())?;
        if shown["statistics"].is_null() { Err(shown["status"].to_string()) } else { Ok(()) }
    })
    .await?;
    Ok(())
}

/// Waits for this run's dead letter; returns its id.
async fn dead_letter(system: &LocalSystem, run: &str) -> Result<String> {
    let id = until("the dead letter", LIMIT, async || {
        let list = system.json(&["dead-letters", "list"]).await.map_err(|e| e.to_string())?;
        let of_this_run =
            list["dead_letters"].as_array().into_iter().flatten().find(|dead_letter| {
                dead_letter["session_id"].as_str().is_some_and(|session| session.ends_with(run))
            });
        of_this_run
            .and_then(|dead_letter| dead_letter["id"].as_str().map(str::to_owned))
            .ok_or_else(|| list.to_string())
    })
    .await?;
    Ok(id)
}

/// A session's conversation, as `conversation list` returns it.
async fn conversation(system: &LocalSystem, session: &Session) -> Result<Value> {
    let arguments =
        ["conversation", "list", "--tenant", session.tenant, "--session", &session.session];
    let rows = system.json(&arguments).await?;
    match rows.as_array().map(Vec::as_slice) {
        Some([row]) => Ok(row.clone()),
        _ => bail!("session {} has no conversation yet", session.session),
    }
}

async fn show(system: &LocalSystem, session: &Session, more: &[&str]) -> Result<Value> {
    let arguments =
        ["conversation", "show", "--tenant", session.tenant, "--session", &session.session];
    system.json(&[&arguments, more].concat()).await
}

async fn print_conversation(system: &LocalSystem, session: &Session, more: &[&str]) -> Result<()> {
    let arguments =
        ["conversation", "show", "--tenant", session.tenant, "--session", &session.session];
    indented(&system.verbatim(&[&arguments, more].concat(), "").await?);
    Ok(())
}

async fn list(system: &LocalSystem, sessions: &[&Session]) -> Result<()> {
    for session in sessions {
        let row = conversation(system, session).await?;
        let line = format!(
            "  {:<8} {:<14} {:<20} {:<14} {:>2} messages  {}",
            row["status"].as_str().unwrap_or_default(),
            session.tenant,
            session.session,
            row["agent_id"].as_str().unwrap_or_default(),
            row["message_count"],
            row["total_tokens"].as_i64().map_or_else(String::new, |n| format!("{n:>3} tokens")),
        );
        say::line(line.trim_end());
    }
    Ok(())
}

fn first_paragraph(text: &str) -> String {
    text.split("\n\n").next().unwrap_or_default().to_owned()
}

fn indented(text: &str) {
    for line in text.lines() {
        say::line(format!("  {line}").trim_end());
    }
}

/// A suffix for session ids that no earlier demo had.
fn run_id() -> String {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{:06x}", since.as_millis() & 0xff_ffff)
}
