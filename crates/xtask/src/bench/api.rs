//! `bench api`: how long requests to the conversation-api take on a large archive, while the fleet saves messages.
//!
//! Requests are sent at a steady rate. A time counts from the moment when the request was due, so that a slow answer makes
//! those after it late too. The whole is done twice, with a tenth of the archive and with all of it: the cost of a request
//! must not grow with the archive.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::Value;
use testkit::fleet::Worker;
use testkit::http::Connection;
use testkit::wait::until;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::archive::{self, LARGE, LONG, SMALL};
use super::environment::{Environment, Load};
use super::report::{Goal, Table, goals, quantile};
use crate::say;

/// The options of `bench api`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Number of archived messages. A fifth are the only ones of their conversations, all of one tenant; a tenth are one
    /// conversation; the others are in conversations of 35
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1_000..))]
    messages: u64,
    /// Requests per second. Searches, statistics of 30 days and a filter that nothing matches: a tenth of these; statistics
    /// of 366 days: a hundredth
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// For how long each kind of request is sent, in seconds
    #[arg(long, default_value_t = 10)]
    seconds: u32,
    /// Messages per second that the fleet saves meanwhile
    #[arg(long, default_value_t = 1_000)]
    saved: u64,
    /// Requests for ids of another tenant, and as many for ids that never were
    #[arg(long, default_value_t = 10_000)]
    ids: u32,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// How many connections the clients have.
const CONNECTIONS: usize = 32;

/// Requests of each kind before those that are measured.
const WARM_UP: usize = 32;

/// How long the API may take to start, and the fleet to save its last messages.
const LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug, Serialize)]
struct Summary {
    tenth: Vec<Measured>,
    whole: Vec<Measured>,
    ids: Ids,
    goals: Vec<Goal>,
}

/// Times of one kind of request, in milliseconds.
#[derive(Debug, Clone, Serialize)]
struct Measured {
    kind: &'static str,
    p50: f64,
    p99: f64,
    max: f64,
    bytes: usize,
    /// What p99 may be at most.
    limit: f64,
}

/// Medians of requests that find nothing, in milliseconds.
#[derive(Debug, Serialize)]
struct Ids {
    of_another_tenant: f64,
    never_used: f64,
}

/// A kind of request: its name, its limit, and the path of the nth one.
struct Request {
    kind: &'static str,
    limit: f64,
    /// It is sent so many times less often than the others.
    rarer: u32,
    key: Key,
    path: Arc<dyn Fn(usize) -> String + Send + Sync>,
}

/// Whose key.
#[derive(Debug, Clone, Copy)]
enum Key {
    Large,
    Small,
}

/// The API and its keys.
struct Api {
    _process: Worker,
    address: SocketAddr,
    large: String,
    small: String,
}

pub(crate) async fn run(options: &Options) -> Result<()> {
    let environment = Environment::open_with_api().await?;
    let api = Api::start(&environment).await?;
    archive::fill(&environment, 0, options.messages / 10).await?;
    let tenth = measure_all(&environment, &api, options, options.messages / 10).await?;
    archive::fill(&environment, options.messages / 10, options.messages).await?;
    let whole = measure_all(&environment, &api, options, options.messages).await?;
    let ids = measure_ids(&api, options.ids).await?;
    let goals = reached(&tenth, &whole, &ids);
    let summary = Summary { tenth, whole, ids, goals };
    if options.json {
        say::line(&serde_json::to_string_pretty(&summary)?);
    } else {
        summary.print(options);
    }
    Ok(())
}

impl Api {
    async fn start(environment: &Environment) -> Result<Self> {
        let file = environment.fleet.dir().join("api.listen");
        let settings = [
            ("VERBATIM_API_LISTEN", "127.0.0.1:0"),
            ("VERBATIM_API_LISTEN_FILE", file.to_str().context("a path in UTF-8")?),
            ("VERBATIM_KEY_RATE", "1000000"),
            ("VERBATIM_KEY_BURST", "1000000"),
        ];
        let process = environment.fleet.start_with("conversation-api", &settings)?;
        let address = until("the API to listen", LIMIT, async || {
            let text = std::fs::read_to_string(&file).map_err(|error| error.to_string())?;
            text.trim().parse().map_err(|error| format!("{text:?}: {error}"))
        });
        let address = address.await?;
        let key = async |tenant: &str| -> Result<String> {
            let create = [
                "keys", "create", "--tenant", tenant, "--name", "bench", "--scope", "read",
                "--json",
            ];
            let created: Value =
                serde_json::from_str(&environment.command("verbatim", &create).await?)?;
            Ok(created["key"].as_str().context("a key")?.to_owned())
        };
        let (large, small) = (key(LARGE).await?, key(SMALL).await?);
        Ok(Self { _process: process, address, large, small })
    }

    fn key(&self, key: Key) -> String {
        format!(
            "Bearer {}",
            match key {
                Key::Large => &self.large,
                Key::Small => &self.small,
            }
        )
    }

    /// The cursor of the page in the middle of the long conversation.
    async fn cursor_in_the_middle(&self, messages: u64) -> Result<String> {
        let mut connection = Connection::open(self.address).await?;
        let authorization = self.key(Key::Large);
        let mut cursor = String::new();
        for _ in 0..(messages / 2 / 100).max(1) {
            let path = format!("/api/conversations/{LONG}/full?limit=100{cursor}");
            let response = connection.get(&path, &[("authorization", &authorization)]).await?;
            ensure!(response.status == 200, "{path}: {response:?}");
            let page: Value = serde_json::from_str(&response.body)?;
            let next = page["next"].as_str().context("a conversation with more messages")?;
            cursor = format!("&cursor={next}");
        }
        Ok(cursor)
    }
}

/// Every kind of request.
fn requests(middle: String) -> Vec<Request> {
    let list = |kind, query: fn(usize) -> String| Request {
        kind,
        limit: 100.0,
        rarer: 1,
        key: Key::Large,
        path: Arc::new(move |n| format!("/api/conversations/list/{LARGE}?limit=50{}", query(n))),
    };
    let transcript = |kind, key, path: Arc<dyn Fn(usize) -> String + Send + Sync>| Request {
        kind,
        limit: 50.0,
        rarer: 1,
        key,
        path,
    };
    // What reads more than a page.
    let rare = |request| Request { rarer: 10, ..request };
    vec![
        list("list", |_| String::new()),
        list("list by status", |_| "&status=archived".to_owned()),
        list("list by agent", |n| format!("&agent_id=a{}", n % archive::AGENTS)),
        list("list by user", |n| format!("&user_id=u{}", n % archive::USERS)),
        list("list by model", |n| format!("&model=m{}", n % archive::MODELS)),
        list("list of a day", |n| {
            let day = n % 28 + 1;
            format!("&from=2026-01-{day:02}T00:00:00Z&to=2026-01-{day:02}T23:59:59Z")
        }),
        rare(list("list by a model that nothing has", |_| "&model=none".to_owned())),
        rare(list("search for a frequent word", |_| "&text=said".to_owned())),
        rare(list("search for a rare word", |n| format!("&text=rare{}", n * 7_919 % 100_000))),
        Request {
            kind: "statistics of 30 days",
            limit: 100.0,
            rarer: 10,
            key: Key::Large,
            path: Arc::new(|_| {
                format!("/api/conversations/stats/{LARGE}?from=2026-02-01&to=2026-03-02")
            }),
        },
        Request {
            kind: "statistics of 366 days",
            limit: 100.0,
            rarer: 100,
            key: Key::Large,
            path: Arc::new(|_| {
                format!("/api/conversations/stats/{LARGE}?from=2026-01-01&to=2026-12-31")
            }),
        },
        transcript(
            "a conversation of 35 messages",
            Key::Small,
            Arc::new(|n| format!("/api/conversations/o{}/full", n % archive::READ * 20)),
        ),
        transcript(
            "the last 500 messages of many",
            Key::Large,
            Arc::new(|_| format!("/api/conversations/{LONG}/full?limit=500&order=desc")),
        ),
        transcript(
            "100 messages in the middle of many",
            Key::Large,
            Arc::new(move |_| format!("/api/conversations/{LONG}/full?limit=100{middle}")),
        ),
    ]
}

async fn measure_all(
    environment: &Environment,
    api: &Api,
    options: &Options,
    messages: u64,
) -> Result<Vec<Measured>> {
    let requests = requests(api.cursor_in_the_middle(messages / 10).await?);
    let seconds = u64::from(options.seconds + 2) * requests.len() as u64;
    let load = Load {
        messages: options.saved * seconds,
        conversations: 500,
        body_bytes: 515,
        // Other messages than those of the run before.
        from: messages * 1_000,
        batch: 1,
    };
    let saver = environment.fleet.start("message-save-worker")?;
    let publisher = environment.peer("steady", |command| {
        let confirms = environment.fleet.dir().join("api.confirms");
        command.args([
            "--rate",
            &options.saved.to_string(),
            "--run",
            &format!("api{:04}", messages % 9_973),
        ]);
        command.args(["--count", &load.messages.to_string()]);
        command.args(load.shape()).arg("--out").arg(confirms);
    })?;
    let mut all = Vec::new();
    for request in &requests {
        let measured = measure(api, request, options).await?;
        say::note(&format!(
            "{messages} messages, {}: p50 {:.1} ms, p99 {:.1} ms, {} bytes",
            measured.kind, measured.p50, measured.p99, measured.bytes
        ));
        all.push(measured);
    }
    ensure!(publisher.exited().is_none_or(|status| status.success()), "{}", publisher.log_tail());
    drop(publisher);
    saver.stop(LIMIT).await?;
    environment.purge().await?;
    Ok(all)
}

async fn measure(api: &Api, request: &Request, options: &Options) -> Result<Measured> {
    let rate = (options.rate / request.rarer).max(1);
    let count = usize::try_from(rate * options.seconds)?;
    let authorization = api.key(request.key);
    let next = Arc::new(AtomicUsize::new(0));
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(Connection::open(api.address).await?);
    }
    for n in 0..WARM_UP {
        let connection = &mut connections[n % CONNECTIONS];
        connection.get(&(request.path)(n), &[("authorization", &authorization)]).await?;
    }
    let began = Instant::now();
    let mut clients = JoinSet::new();
    for mut connection in connections {
        let (next, path) = (Arc::clone(&next), Arc::clone(&request.path));
        let authorization = authorization.clone();
        clients.spawn(async move {
            let (mut times, mut bytes) = (Vec::new(), 0);
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= count {
                    return anyhow::Ok((times, bytes));
                }
                let due = began + Duration::from_secs(1) * u32::try_from(n)? / rate;
                sleep_until(due).await;
                let path = path(n);
                let response = connection.get(&path, &[("authorization", &authorization)]).await?;
                ensure!(response.status == 200, "{path}: {response:?}");
                times.push(due.elapsed().as_secs_f64() * 1_000.0);
                bytes = response.body.len();
            }
        });
    }
    let (mut times, mut bytes) = (Vec::new(), 0);
    for client in clients.join_all().await {
        let (of_client, last): (Vec<f64>, usize) = client?;
        times.extend(of_client);
        bytes = bytes.max(last);
    }
    Ok(Measured {
        kind: request.kind,
        p50: quantile(&mut times, 0.5),
        p99: quantile(&mut times, 0.99),
        max: quantile(&mut times, 1.0),
        bytes,
        limit: request.limit,
    })
}

/// Times of requests for conversations of another tenant and for ones that never were, in turn.
async fn measure_ids(api: &Api, count: u32) -> Result<Ids> {
    let authorization = api.key(Key::Small);
    let mut connection = Connection::open(api.address).await?;
    let (mut foreign, mut unused) = (Vec::new(), Vec::new());
    for n in 0..count {
        // Which of the two comes first alternates.
        for is_foreign in [n % 2 == 0, n % 2 != 0] {
            let prefix = if is_foreign { "l" } else { "x" };
            let path = format!("/api/conversations/{prefix}{}/full", n as usize % archive::READ);
            let began = Instant::now();
            let response = connection.get(&path, &[("authorization", &authorization)]).await?;
            let time = began.elapsed().as_secs_f64() * 1_000.0;
            ensure!(response.status == 404, "{path}: {response:?}");
            if is_foreign { foreign.push(time) } else { unused.push(time) }
        }
    }
    let (of_another_tenant, never_used) = (quantile(&mut foreign, 0.5), quantile(&mut unused, 0.5));
    Ok(Ids { of_another_tenant, never_used })
}

fn reached(tenth: &[Measured], whole: &[Measured], ids: &Ids) -> Vec<Goal> {
    let limits =
        whole.iter().map(|it| Goal::at_most(format!("{}, p99, ms", it.kind), it.p99, it.limit));
    let growth = tenth.iter().zip(whole).map(|(tenth, whole)| {
        let what = format!("{}, p50 with ten times the archive", whole.kind);
        Goal::at_most(what, whole.p50 / tenth.p50, 1.5)
    });
    let difference = (ids.of_another_tenant / ids.never_used - 1.0).abs();
    let ids = Goal::at_most("ids of another tenant and unused ones, difference", difference, 0.05);
    limits.chain(growth).chain([ids]).collect()
}

impl Summary {
    fn print(&self, options: &Options) {
        let Options { messages, rate, saved, .. } = options;
        say::heading(&format!(
            "{rate} requests/s on {messages} archived messages, while the fleet saves {saved} messages/s"
        ));
        goals(&self.goals);
        let mut table =
            Table::new(["milliseconds", "p50", "p99", "max", "bytes", "a tenth: p50", "p99"]);
        for (tenth, whole) in self.tenth.iter().zip(&self.whole) {
            let number = |number: f64| format!("{number:.1}");
            table.row([
                whole.kind.to_owned(),
                number(whole.p50),
                number(whole.p99),
                number(whole.max),
                whole.bytes.to_string(),
                number(tenth.p50),
                number(tenth.p99),
            ]);
        }
        table.print();
        let Ids { of_another_tenant, never_used } = self.ids;
        say::aside(&format!(
            "Medians of {} requests each, in turn: a conversation of another tenant {of_another_tenant:.3} ms, one that never \
             was {never_used:.3} ms.",
            options.ids
        ));
    }
}
