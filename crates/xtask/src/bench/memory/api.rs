//! The load of the conversation-api: clients that ask for as much as they may, send as much as they may, and do not read.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use domain::fleet;
use serde::Serialize;
use serde_json::Value;
use testkit::fleet::Worker;
use testkit::wait::until;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::super::archive::{self, LARGE};
use super::super::containers::Container;
use super::super::environment::Environment;
use super::super::report::{Goal, Table};
use super::super::usage;
use super::limits::{IDLE, LIMIT, MARGIN, MIB};
use crate::say;

/// Conversations of the tenant [`LARGE`], each with as many bytes of messages as a page may have (4 MiB).
const TALK: &str = "talk";
const CONTROLS: &str = "controls";

/// Clients that read what they asked for.
const CLIENTS: usize = 64;
/// Clients whose bodies all have memory at once (64 MiB by default).
const PUBLISHERS: usize = 8;
/// Clients that read nothing. The API accepts 1 024 connections.
const SLOW_CLIENTS: usize = 1_000;
/// Requests of a client, one after another.
const REQUESTS: usize = 4;
/// How long clients that read nothing wait. After 30 s without a write the API closes their connections.
const WAITS: Duration = Duration::from_secs(20);
/// The default of `VERBATIM_MAX_REQUEST_BYTES`.
const LARGEST_REQUEST: usize = 8 << 20;
/// What a client that reads nothing has in its socket, in bytes.
const RECEIVED: u32 = 4_096;

/// What clients do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Load {
    Idle,
    Transcripts,
    Controls,
    SlowTranscripts,
    Lists,
    SlowLists,
    Searches,
    Bodies,
    Actions,
    Array,
    Fields,
}

impl Load {
    const ALL: [Self; 11] = [
        Self::Idle,
        Self::Array,
        Self::Fields,
        Self::Bodies,
        Self::Actions,
        Self::Transcripts,
        Self::Controls,
        Self::SlowTranscripts,
        Self::Lists,
        Self::SlowLists,
        Self::Searches,
    ];

    const fn title(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Transcripts => "500 messages of 8 KiB",
            Self::Controls => "messages of control characters",
            Self::SlowTranscripts => "500 messages, not read",
            Self::Lists => "lists of 200",
            Self::SlowLists => "lists of 200, not read",
            Self::Searches => "searches",
            Self::Bodies => "8 actions of 1 MiB",
            Self::Actions => "1 000 actions of 8 KiB",
            Self::Array => "an array of 4 million numbers",
            Self::Fields => "an action of a million fields",
        }
    }

    /// The path that is read; `None`: a body is sent.
    fn path(self) -> Option<String> {
        let transcript = |id: &str| Some(format!("/api/conversations/{id}/full?limit=500"));
        let list = |query: &str| Some(format!("/api/conversations/list/{LARGE}?limit=200{query}"));
        match self {
            Self::Transcripts | Self::SlowTranscripts => transcript(TALK),
            Self::Controls => transcript(CONTROLS),
            Self::Lists | Self::SlowLists => list("&agent_id=wide"),
            Self::Searches => list("&text=said+what"),
            Self::Idle | Self::Bodies | Self::Actions | Self::Array | Self::Fields => None,
        }
    }

    const fn is_slow(self) -> bool {
        matches!(self, Self::SlowTranscripts | Self::SlowLists)
    }

    /// The body that is sent.
    fn body(self) -> String {
        let actions = |count: usize, bytes: usize| {
            let content = "x".repeat(bytes - 200);
            let action = |n| {
                format!(
                    "{{\"action_type\":\"conversation.save_message\",\"session_id\":\"s\",\"role\":\"user\",\
                     \"message_id\":\"m{n}\",\"content\":\"{content}\"}}"
                )
            };
            format!("[{}]", (0..count).map(action).collect::<Vec<_>>().join(","))
        };
        match self {
            Self::Bodies => actions(8, LARGEST_REQUEST / 8 - 8),
            Self::Actions => actions(1_000, 8_192),
            Self::Array => format!("[{}0]", "0,".repeat(LARGEST_REQUEST / 2 - 2)),
            Self::Fields => {
                let mut body = String::from("{\"a\":0");
                let mut n = 0;
                while body.len() < LARGEST_REQUEST - 20 {
                    body.push_str(&format!(",\"{n:x}\":0"));
                    n += 1;
                }
                body + "}"
            }
            _ => String::new(),
        }
    }
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(super) struct Measured {
    /// Peak resident memory in MiB, by load, with the statuses of the answers.
    peaks: Vec<(Load, u64, String)>,
    /// The memory limit of its container in MiB.
    container: u64,
}

pub(super) async fn measure(environment: &Environment, compose: &str) -> Result<Measured> {
    let name = fleet::CONVERSATION_API.name();
    let container = Container::of(name, compose)?;
    environment.clear().await?;
    fill(environment).await?;
    let key = ["keys", "create", "--tenant", LARGE, "--name", "bench", "--json"];
    let key = [&key[..], &["--scope", "read,write"]].concat();
    let created: Value = serde_json::from_str(&environment.command("verbatim", &key).await?)?;
    let key = created["key"].as_str().context("a key")?;
    let mut peaks = Vec::new();
    for load in Load::ALL {
        environment.purge().await?;
        let (peak, statuses) = peak(environment, &container, key, load).await?;
        say::note(&format!("{name}, {}: {peak} MiB; {statuses}", load.title()));
        peaks.push((load, peak, statuses));
    }
    environment.purge().await?;
    Ok(Measured { peaks, container: container.memory })
}

/// Conversations with as many bytes in a page as possible, and 200 whose rows in a list are wide.
async fn fill(environment: &Environment) -> Result<()> {
    archive::fill(environment, 0, 10_000).await?;
    let wide = "'wide', repeat('u', 512), repeat('m', 256), repeat('t', 256), repeat('r', 256)";
    environment
        .sql(&format!(
            "INSERT INTO conversations (tenant_id, id, session_id, created_at, hot_generation, agent_id, user_id, model_name,
                                        tenant_tier, close_reason, status, finalised_at)
             SELECT '{LARGE}', id, repeat('s', 512), '2026-02-01', 1, {wide}, 'archived', now()
             FROM (SELECT rpad('w' || n, 512, 'i') AS id FROM generate_series(1, 200) AS n
                   UNION ALL SELECT unnest(ARRAY['{TALK}', '{CONTROLS}'])) AS ids;
             INSERT INTO message_rows (conversation, created_at, received_at, id, role, content, body_hash)
             SELECT number, created_at + n * interval '1 second', now(), 'm' || n, 'user', repeat('x', 8000), ''
             FROM conversations, generate_series(1, 500) AS n WHERE tenant_id = '{LARGE}' AND id = '{TALK}';
             INSERT INTO message_rows (conversation, created_at, received_at, id, role, content, body_hash)
             SELECT number, created_at + n * interval '1 second', now(), 'm' || n, 'user', repeat(chr(1), 170000), ''
             FROM conversations, generate_series(1, 24) AS n WHERE tenant_id = '{LARGE}' AND id = '{CONTROLS}'"
        ))
        .await
        .map(drop)
}

/// The peak resident memory of a replica under this load, in MiB, and what it answered.
async fn peak(
    environment: &Environment,
    container: &Container,
    key: &str,
    load: Load,
) -> Result<(u64, String)> {
    let file = environment.fleet.dir().join("memory.listen");
    std::fs::remove_file(&file).ok();
    let settings = container.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let own = [
        ("VERBATIM_API_LISTEN", "127.0.0.1:0"),
        ("VERBATIM_API_LISTEN_FILE", file.to_str().context("a path in UTF-8")?),
        ("VERBATIM_KEY_RATE", "1000000"),
        ("VERBATIM_KEY_BURST", "1000000"),
    ];
    let settings: Vec<_> = settings.chain(own).collect();
    let process = environment.fleet.start_with(fleet::CONVERSATION_API.name(), &settings)?;
    let address = until("the API to listen", LIMIT, async || {
        let text = std::fs::read_to_string(&file).map_err(|error| error.to_string())?;
        text.trim().parse().map_err(|error| format!("{text:?}: {error}"))
    });
    let address: SocketAddr = address.await?;
    process.ready(LIMIT).await?;
    let statuses = match load {
        Load::Idle => {
            sleep(IDLE).await;
            String::new()
        }
        load if load.is_slow() => slow(address, key, load).await?,
        load => busy(address, key, load, &process).await?,
    };
    let peak = usage::peak_memory(process.pid())?.div_ceil(MIB);
    if let Some(status) = process.exited() {
        bail!("the API ended with {status}:\n{}", process.log_tail());
    }
    Ok((peak, statuses))
}

/// The text of a request.
fn request(key: &str, load: Load) -> String {
    let (path, body) = match load.path() {
        Some(path) => (format!("GET {path}"), String::new()),
        None => ("POST /api/actions".to_owned(), load.body()),
    };
    format!(
        "{path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nauthorization: Bearer {key}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Requests whose answers are read; returns how many have which status.
async fn busy(address: SocketAddr, key: &str, load: Load, process: &Worker) -> Result<String> {
    let request: std::sync::Arc<str> = request(key, load).into();
    let count = match load {
        Load::Bodies | Load::Actions | Load::Array | Load::Fields => PUBLISHERS,
        _ => CLIENTS,
    };
    let mut clients = JoinSet::new();
    for _ in 0..count {
        let request = std::sync::Arc::clone(&request);
        clients.spawn(async move {
            let mut statuses = Vec::new();
            for _ in 0..REQUESTS {
                let answer = timeout(LIMIT, exchange(address, &request)).await;
                // A connection that breaks in the middle is no answer; a process that ended is an error.
                statuses.push(answer.context("no answer in time")?.unwrap_or(0));
            }
            anyhow::Ok(statuses)
        });
    }
    let mut counts = std::collections::BTreeMap::<u16, usize>::new();
    while let Some(client) = clients.join_next().await {
        let statuses = client?.with_context(|| process.log_tail())?;
        statuses.into_iter().for_each(|status| *counts.entry(status).or_default() += 1);
    }
    let counts = counts.iter().map(|(status, count)| match status {
        0 => format!("{count} without an answer"),
        status => format!("{count} × {status}"),
    });
    Ok(counts.collect::<Vec<_>>().join(", "))
}

/// Sends a request, reads all of the answer and throws it away; returns its status.
async fn exchange(address: SocketAddr, request: &str) -> Result<u16> {
    let mut stream = TcpStream::connect(address).await?;
    // An answer may come before all is sent.
    let sent = stream.write_all(request.as_bytes()).await;
    let mut buffer = vec![0; 65_536];
    let mut status = None;
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            sent?;
            return status.context("no answer");
        }
        if status.is_none() {
            let text = String::from_utf8_lossy(&buffer[..read]);
            status = text.split(' ').nth(1).and_then(|it| it.parse().ok());
        }
    }
}

/// Requests whose answers nobody reads.
async fn slow(address: SocketAddr, key: &str, load: Load) -> Result<String> {
    let request = request(key, load);
    let mut streams = Vec::new();
    for _ in 0..SLOW_CLIENTS {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(RECEIVED)?;
        let mut stream = socket.connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        streams.push(stream);
    }
    sleep(WAITS).await;
    ensure!(!streams.is_empty(), "no connection");
    Ok(format!("{SLOW_CLIENTS} clients read nothing"))
}

impl Measured {
    fn largest(&self) -> u64 {
        self.peaks.iter().map(|(_, peak, _)| *peak).max().unwrap_or(0)
    }

    #[expect(clippy::cast_precision_loss, reason = "MiB, far below 2^52")]
    pub(super) fn margin(&self) -> Goal {
        let ratio = self.container as f64 / self.largest() as f64;
        let name = fleet::CONVERSATION_API.name();
        Goal::at_least(format!("{name}, container / largest"), ratio, MARGIN)
    }

    pub(super) fn print(&self) {
        say::heading("peak resident memory of a freshly started conversation-api, MiB");
        let mut table = Table::new(["", "MiB", "answers"]);
        for (load, peak, statuses) in &self.peaks {
            table.row([load.title().to_owned(), peak.to_string(), statuses.clone()]);
        }
        table.row(["container".to_owned(), self.container.to_string(), String::new()]);
        table.print();
        for line in LEGEND {
            say::aside(line);
        }
    }
}

/// What the rows are.
const LEGEND: [&str; 3] = [
    "64 clients with 4 requests each read pages of 4 MiB, lists and searches. 1 000 clients ask and read nothing for 20 s.",
    "8 clients send bodies of 8 MiB, 4 each, which is all the memory for bodies: RabbitMQ confirms them (202), or they are",
    "parsed and refused (422). Not counted is what the kernel holds for sockets.",
];
