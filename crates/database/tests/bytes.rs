//! What is read of large messages.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use database::{Database, HotWrites, Page, SaveRow, Saved, Settings, Wanted};
use domain::ids::{ConversationKey, SessionId};
use domain::json::Json;
use domain::message::{Content, Details, Message};
use fixtures::stored;
use testkit::TestEnv;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy};
use tokio::net::{TcpListener, TcpStream};

const LARGE: usize = 500_000;

fn open(url: &str) -> Database {
    let settings = Settings {
        url: url.to_owned(),
        application: "test".to_owned(),
        connections: 1,
        time_out: Duration::from_secs(20),
        lock_time_out: Duration::from_secs(2),
    };
    Database::open(&settings).unwrap()
}

async fn save(database: &Database, messages: &[Message]) -> Vec<Saved> {
    let (key, session) = (key(), SessionId::new("s").unwrap());
    let row = |message| SaveRow::new(&key, &session, message);
    let rows: Vec<_> = messages.iter().map(row).collect();
    database.save(&rows, HotWrites::Follow, &|| 7, Wanted::Each).await.unwrap().rows
}

fn key() -> ConversationKey {
    ConversationKey::parse("acme", "c").unwrap()
}

#[tokio::test]
async fn a_page_ends_at_its_bytes_in_whatever_field_they_are() {
    let env = TestEnv::new().await;
    let database = open(&env.database_url);
    database.migrate(|| {}).await.unwrap();
    let text = || Some("x".repeat(LARGE));
    let json = || Json::parse(format!("[\"{}\"]", "x".repeat(LARGE))).ok();
    let plain = |n: usize| stored(&format!("m{n:02}"), i64::try_from(n).unwrap());
    let detailed = |n, details: Details| Message { details: details.boxed(), ..plain(n) };
    let large = [
        Message { content: Content::Text(text().unwrap()), ..plain(0) },
        Message {
            content: Content::Parts { json: json().unwrap(), text: String::new() },
            ..plain(1)
        },
        Message { tool_calls: json(), ..plain(2) },
        Message { tool_call_id: text(), ..plain(3) },
        Message { model_name: text(), ..plain(4) },
        Message { metadata: json(), ..plain(5) },
        detailed(6, Details { item: json(), ..Details::default() }),
        detailed(7, Details { usage: json(), ..Details::default() }),
        detailed(8, Details { finish_reason: text(), ..Details::default() }),
        detailed(9, Details { response_id: text(), ..Details::default() }),
        detailed(10, Details { context_hash: text(), ..Details::default() }),
    ];
    save(&database, &large).await;
    let page = |newest| Page { newest, max_bytes: LARGE, before: None };
    for later in &large[1..] {
        let page = Page { before: Some(later.position()), ..page(10) };
        let read = database.read(&key(), &page).await.unwrap().messages;
        assert_eq!(read.len(), 1, "the page before {} has more than one large message", later.id);
    }
    assert_eq!(database.read(&key(), &page(2)).await.unwrap().messages.len(), 1);
}

#[tokio::test]
async fn a_conflict_does_not_read_the_message_that_is_stored() {
    let env = TestEnv::new().await;
    let database = open(&env.database_url);
    database.migrate(|| {}).await.unwrap();
    let message = |n: usize, content: &str| Message {
        content: Content::Text(content.to_owned()),
        ..stored(&format!("m{n:02}"), 1)
    };
    let large: Vec<_> = (0..20).map(|n| message(n, &"x".repeat(LARGE))).collect();
    assert_eq!(save(&database, &large).await, vec![Saved::New; 20]);

    let (url, bytes) = counted(&env.database_url).await;
    let small: Vec<_> = (0..20).map(|n| message(n, "small")).collect();
    assert_eq!(save(&open(&url), &small).await, vec![Saved::Conflict; 20]);
    let bytes = bytes.load(Ordering::Relaxed);
    assert!(bytes > 100 && bytes < LARGE, "PostgreSQL sent {bytes} bytes");
}

/// A URL that leads to the same server, and the number of bytes that came from there.
async fn counted(url: &str) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (before, rest) = url.split_once("127.0.0.1:").unwrap();
    let (port, after) = rest.split_once('/').unwrap();
    let port: u16 = port.parse().unwrap();
    let here = listener.local_addr().unwrap().port();
    let bytes = Arc::new(AtomicUsize::new(0));
    let counter = bytes.clone();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = server.into_split();
            let counter = counter.clone();
            tokio::spawn(async move { copy(&mut from_client, &mut to_server).await });
            tokio::spawn(async move {
                let mut chunk = vec![0; 64 << 10];
                loop {
                    let read = from_server.read(&mut chunk).await.unwrap_or(0);
                    counter.fetch_add(read, Ordering::Relaxed);
                    if read == 0 || to_client.write_all(&chunk[..read]).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    (format!("{before}127.0.0.1:{here}/{after}"), bytes)
}
