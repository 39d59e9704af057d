//! What the demo plays: three conversations, from the first word to the archive.
//!
//! Everything goes through the public doors: actions are published to RabbitMQ with the `verbatim`
//! command, and looked at with it. What is printed is what it printed.

use std::time::{Duration, SystemTime};

use anyhow::{Result, bail};
use serde_json::{Value, json};
use testkit::wait::until;

use super::agents::{self, Session};
use crate::say;
use crate::stage::Stage;

/// Settings of every process in the demo: half a minute of grace is too long to watch.
pub(super) const SETTINGS: [(&str, &str); 3] = [
    ("VERBATIM_CLOSE_GRACE", "3s"),
    ("VERBATIM_CLOSE_INTERVAL", "250ms"),
    ("VERBATIM_STATISTICS_INTERVAL", "500ms"),
];

/// Longer than any step takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

/// Plays it.
pub(super) async fn play(stage: &mut Stage) -> Result<()> {
    stage
        .start(&[
            "message-save-worker",
            "message-save-worker",
            "persistence-migration-worker",
            "statistics-worker",
        ])
        .await?;
    say::line(
        "two message-save-workers, a persistence-migration-worker and a statistics-worker are ready",
    );
    // Unique to this run: the servers may be somebody's, and have seen a demo before.
    let run = run_id();
    let booking = agents::booking(&run);
    let support = agents::support(&run);
    let meals = agents::meals(&run);
    let sessions = [&booking, &support, &meals];

    say::heading("\n1. Three agents of two tenants publish what is said");
    publish(stage, sessions.iter().flat_map(|session| session.conversation()).collect()).await?;
    for session in sessions {
        saved(stage, session).await?;
    }
    list(stage, &sessions).await?;

    say::heading("\n2. Durable in PostgreSQL, hot in Redis: a reader is served by the copy");
    // The first reader loads the copy; everybody after is served by it.
    show(stage, &booking, &[]).await?;
    show_to_all(stage, &booking, &["--source", "redis"]).await?;

    say::heading(
        "\n3. A fourth agent calls its role `bot`: refused by name, kept as a dead letter",
    );
    publish_unchecked(stage, agents::malformed(&run)).await?;
    let letter = dead_letter(stage, &run).await?;
    let show = ["dead-letters", "show", &letter];
    indented(&first_paragraph(&stage.verbatim(&show, "").await?));
    say::line(&format!("  (body, headers and a remedy: verbatim {})", show.join(" ")));

    say::heading("\n4. All three sessions close; each conversation waits 3 s for a reconnection");
    publish(stage, sessions.iter().map(|session| session.closed()).collect()).await?;
    closing(stage, &sessions).await?;
    say::line(&format!("  {} reconnects within the grace period", support.session));
    publish(stage, vec![support.opened()]).await?;
    status(stage, &booking, "archived").await?;
    status(stage, &meals, "archived").await?;
    let still = look(stage, &support).await?;
    if still["status"] != "active" {
        bail!("the reconnection did not withdraw the close: {still}");
    }
    list(stage, &sessions).await?;
    say::line("  the reconnection withdrew its close: that conversation is still active");

    say::heading(
        "\n5. It says goodbye and closes for good; the archive has all three, with statistics",
    );
    publish(stage, vec![support.goodbye(), support.closed()]).await?;
    status(stage, &support, "archived").await?;
    for session in sessions {
        counted(stage, session).await?;
    }
    list(stage, &sessions).await?;
    show_to_all(stage, &support, &["--source", "postgresql"]).await
}

async fn publish(stage: &Stage, actions: Vec<Value>) -> Result<()> {
    let lines: String = actions.iter().map(|action| format!("{action}\n")).collect();
    indented(&stage.verbatim(&["publish", "-"], &lines).await?);
    Ok(())
}

async fn publish_unchecked(stage: &Stage, action: Value) -> Result<()> {
    let said = stage.verbatim(&["publish", "--no-lint", "-"], &format!("{action}\n")).await?;
    indented(&said);
    Ok(())
}

/// Waits until every message of a session is stored.
async fn saved(stage: &Stage, session: &Session) -> Result<()> {
    let wanted = session.conversation().len() - 1;
    until(format!("{wanted} messages of {}", session.session), LIMIT, async || {
        let found = look(stage, session).await.map_err(|error| error.to_string())?;
        if found["message_count"] == json!(wanted) { Ok(()) } else { Err(found.to_string()) }
    })
    .await?;
    Ok(())
}

/// Waits until all have been asked to close.
async fn closing(stage: &Stage, sessions: &[&Session]) -> Result<()> {
    for session in sessions {
        until(format!("a close request of {}", session.session), LIMIT, async || {
            let found = look(stage, session).await.map_err(|error| error.to_string())?;
            if found["close_requested_at"].is_null() { Err(found.to_string()) } else { Ok(()) }
        })
        .await?;
    }
    Ok(())
}

/// Waits for a status.
async fn status(stage: &Stage, session: &Session, wanted: &str) -> Result<()> {
    until(format!("{} to be {wanted}", session.session), LIMIT, async || {
        let found = look(stage, session).await.map_err(|error| error.to_string())?;
        if found["status"] == wanted { Ok(()) } else { Err(found.to_string()) }
    })
    .await?;
    Ok(())
}

/// Waits for the statistics of a session's conversation.
async fn counted(stage: &Stage, session: &Session) -> Result<()> {
    until(format!("statistics of {}", session.session), LIMIT, async || {
        let shown = show(stage, session, &[]).await.map_err(|error| error.to_string())?;
        if shown["statistics"].is_null() { Err(shown["status"].to_string()) } else { Ok(()) }
    })
    .await?;
    Ok(())
}

/// Waits for this run's dead letter; its id.
async fn dead_letter(stage: &Stage, run: &str) -> Result<String> {
    let letter = until("the dead letter", LIMIT, async || {
        let letters = stage.ask(&["dead-letters", "list"]).await.map_err(|e| e.to_string())?;
        let ours = letters["dead_letters"].as_array().into_iter().flatten().find(|letter| {
            letter["session_id"].as_str().is_some_and(|session| session.ends_with(run))
        });
        ours.and_then(|letter| letter["id"].as_str().map(str::to_owned))
            .ok_or_else(|| letters.to_string())
    })
    .await?;
    Ok(letter)
}

/// The row of a session's conversation.
async fn look(stage: &Stage, session: &Session) -> Result<Value> {
    let arguments =
        ["conversation", "list", "--tenant", session.tenant, "--session", &session.session];
    let rows = stage.ask(&arguments).await?;
    match rows.as_array().map(Vec::as_slice) {
        Some([row]) => Ok(row.clone()),
        _ => bail!("no conversation of {} yet", session.session),
    }
}

async fn show(stage: &Stage, session: &Session, more: &[&str]) -> Result<Value> {
    let arguments =
        ["conversation", "show", "--tenant", session.tenant, "--session", &session.session];
    stage.ask(&[&arguments, more].concat()).await
}

async fn show_to_all(stage: &Stage, session: &Session, more: &[&str]) -> Result<()> {
    let arguments =
        ["conversation", "show", "--tenant", session.tenant, "--session", &session.session];
    indented(&stage.verbatim(&[&arguments, more].concat(), "").await?);
    Ok(())
}

async fn list(stage: &Stage, sessions: &[&Session]) -> Result<()> {
    for session in sessions {
        let row = look(stage, session).await?;
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
