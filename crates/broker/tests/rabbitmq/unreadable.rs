//! The client library closes its connection at a message that it cannot parse. Other messages are handled
//! nevertheless.

use broker::topology::WorkQueue;
use broker::{Settings, Source};
use metrics::{Counter, DeliveryOutcome};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Bench, Script};

const QUEUE: &str = WorkQueue::Session.name();

#[tokio::test]
async fn messages_beside_an_unreadable_one_are_handled_and_not_quarantined() {
    let bench = Bench::new().await;
    bench.publish(QUEUE, 0..20).await;
    publish_unreadable(&bench.url, QUEUE).await;
    bench.publish(QUEUE, 20..40).await;
    bench.eventually_ready(QUEUE, 41).await;
    let script = Script::default();
    let running = bench.run(Source::work(WorkQueue::Session), &script, Settings::default());
    script.has_handled(40).await;
    drop(running);
    let outcome = DeliveryOutcome::Quarantined;
    let quarantined = Counter::Deliveries { queue: QUEUE, outcome };
    assert_eq!(bench.metrics.count(quarantined), 0);
}

/// Publishes a message whose id is not UTF-8, frame by frame, because no client library can.
async fn publish_unreadable(url: &str, queue: &str) {
    let (credentials, rest) = url.strip_prefix("amqp://").unwrap().split_once('@').unwrap();
    let (address, vhost) = rest.split_once('/').unwrap();
    let (user, password) = credentials.split_once(':').unwrap();
    let mut broker = TcpStream::connect(address).await.unwrap();
    broker.write_all(b"AMQP\x00\x00\x09\x01").await.unwrap();
    expect(&mut broker, (10, 10)).await;
    let login = [b"\0", user.as_bytes(), b"\0", password.as_bytes()].concat();
    let start_ok =
        [&0u32.to_be_bytes()[..], &short(b"PLAIN"), &long(&login), &short(b"en_US")].concat();
    method(&mut broker, 0, (10, 11), &start_ok).await;
    expect(&mut broker, (10, 30)).await;
    // One channel, frames of 128 KiB, no heartbeats.
    let tune_ok = [&[0, 1][..], &131_072u32.to_be_bytes(), &[0, 0]].concat();
    method(&mut broker, 0, (10, 31), &tune_ok).await;
    let open = [&short(vhost.as_bytes())[..], &[0, 0]].concat();
    method(&mut broker, 0, (10, 40), &open).await;
    expect(&mut broker, (10, 41)).await;
    method(&mut broker, 1, (20, 10), &[0]).await;
    expect(&mut broker, (20, 11)).await;

    let publish = [&[0, 0][..], &short(b""), &short(queue.as_bytes()), &[0]].concat();
    method(&mut broker, 1, (60, 40), &publish).await;
    // Class, weight, size of the body, then the flag of `message-id` and the property.
    let body = b"{}";
    let header =
        [&[0, 60, 0, 0][..], &(body.len() as u64).to_be_bytes(), &[0, 0x80], &short(b"\xff\xfe")]
            .concat();
    frame(&mut broker, 2, 1, &header).await;
    frame(&mut broker, 3, 1, body).await;
    // The reply to `channel.close` shows that the publish was received.
    let close = [&200u16.to_be_bytes()[..], &short(b"done"), &[0; 4]].concat();
    method(&mut broker, 1, (20, 40), &close).await;
    expect(&mut broker, (20, 41)).await;
}

fn short(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()], text].concat()
}

fn long(text: &[u8]) -> Vec<u8> {
    [&u32::try_from(text.len()).unwrap().to_be_bytes()[..], text].concat()
}

async fn method(broker: &mut TcpStream, channel: u16, (class, id): (u16, u16), arguments: &[u8]) {
    let payload = [&class.to_be_bytes()[..], &id.to_be_bytes(), arguments].concat();
    frame(broker, 1, channel, &payload).await;
}

async fn frame(broker: &mut TcpStream, kind: u8, channel: u16, payload: &[u8]) {
    let frame = [&[kind][..], &channel.to_be_bytes(), &long(payload), &[0xCE]].concat();
    broker.write_all(&frame).await.unwrap();
}

/// Reads a frame, which must be this method.
async fn expect(broker: &mut TcpStream, (class, id): (u16, u16)) {
    let mut head = [0; 7];
    broker.read_exact(&mut head).await.unwrap();
    let size = u32::from_be_bytes(head[3..7].try_into().unwrap());
    let mut rest = vec![0; size as usize + 1];
    broker.read_exact(&mut rest).await.unwrap();
    let found = [&class.to_be_bytes()[..], &id.to_be_bytes()].concat();
    assert_eq!(rest[..4], found, "{:?}", String::from_utf8_lossy(&rest));
}
