//! Publishes messages that no client library can send: properties and routing keys of any bytes.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The largest frame, RabbitMQ's default.
const FRAME_MAX: u32 = 131_072;
/// The longest property list that fits a frame, in bytes: without the head and the end of the frame, and without
/// class, weight and body size.
pub const LONGEST_PROPERTIES: usize = FRAME_MAX as usize - 8 - 12;

/// A channel of a connection of its own, frame by frame (AMQP 0-9-1, 4.2.3).
#[derive(Debug)]
pub struct RawAmqp {
    broker: TcpStream,
}

impl RawAmqp {
    /// Connects to `amqp://user:password@host:port/vhost`, and opens a channel with confirms.
    pub async fn connect(url: &str) -> Self {
        let (credentials, rest) = url.strip_prefix("amqp://").unwrap().split_once('@').unwrap();
        let (address, vhost) = rest.split_once('/').unwrap();
        let (user, password) = credentials.split_once(':').unwrap();
        let mut channel = Self { broker: TcpStream::connect(address).await.unwrap() };
        channel.broker.write_all(b"AMQP\x00\x00\x09\x01").await.unwrap();
        channel.expect((10, 10)).await;
        let login = [b"\0", user.as_bytes(), b"\0", password.as_bytes()].concat();
        let start_ok = [&[0; 4][..], &short(b"PLAIN"), &long(&login), &short(b"en_US")].concat();
        channel.method(0, (10, 11), &start_ok).await;
        channel.expect((10, 30)).await;
        // One channel, no heartbeats.
        let tune_ok = [&[0, 1][..], &FRAME_MAX.to_be_bytes(), &[0, 0]].concat();
        channel.method(0, (10, 31), &tune_ok).await;
        let open = [&short(vhost.as_bytes())[..], &[0, 0]].concat();
        channel.method(0, (10, 40), &open).await;
        channel.expect((10, 41)).await;
        channel.method(1, (20, 10), &[0]).await;
        channel.expect((20, 11)).await;
        channel.method(1, (85, 10), &[0]).await;
        channel.expect((85, 11)).await;
        channel
    }

    /// Publishes a message and waits for its confirm. `properties` is the encoded list, see [`properties`].
    pub async fn publish(
        &mut self,
        exchange: &str,
        routing_key: &[u8],
        properties: &[u8],
        body: &[u8],
    ) {
        let publish =
            [&[0, 0][..], &short(exchange.as_bytes()), &short(routing_key), &[0]].concat();
        self.method(1, (60, 40), &publish).await;
        let size = (body.len() as u64).to_be_bytes();
        self.frame(2, 1, &[&[0, 60, 0, 0][..], &size, properties].concat()).await;
        for part in body.chunks(FRAME_MAX as usize - 8) {
            self.frame(3, 1, part).await;
        }
        self.expect((60, 80)).await;
    }

    /// Publishes a message to a queue. Whether RabbitMQ confirmed it: if not, it has closed the connection.
    pub async fn is_accepted(&mut self, queue: &str, properties: &[u8], body: &[u8]) -> bool {
        let publish = [&[0, 0][..], &short(b""), &short(queue.as_bytes()), &[0]].concat();
        let method = [&[0, 60, 0, 40][..], &publish].concat();
        let size = (body.len() as u64).to_be_bytes();
        let header = [&[0, 60, 0, 0][..], &size, properties].concat();
        let frames = [(1, method.as_slice()), (2, &header), (3, body)];
        let frames: Vec<_> =
            frames.iter().map(|(kind, payload)| frame(*kind, 1, payload)).collect();
        if self.broker.write_all(&frames.concat()).await.is_err() {
            return false;
        }
        self.method_name().await.is_ok_and(|name| name == [0, 60, 0, 80])
    }

    async fn method(&mut self, channel: u16, (class, id): (u16, u16), arguments: &[u8]) {
        let payload = [&class.to_be_bytes()[..], &id.to_be_bytes(), arguments].concat();
        self.frame(1, channel, &payload).await;
    }

    async fn frame(&mut self, kind: u8, channel: u16, payload: &[u8]) {
        self.broker.write_all(&frame(kind, channel, payload)).await.unwrap();
    }

    /// Reads a frame, which must be this method.
    async fn expect(&mut self, (class, id): (u16, u16)) {
        let expected = [&class.to_be_bytes()[..], &id.to_be_bytes()].concat();
        assert_eq!(self.method_name().await.unwrap()[..], expected);
    }

    /// Reads a frame; class and id of its method.
    async fn method_name(&mut self) -> io::Result<[u8; 4]> {
        let mut head = [0; 7];
        self.broker.read_exact(&mut head).await?;
        let [.., a, b, c, d] = head;
        let mut rest = vec![0; u32::from_be_bytes([a, b, c, d]) as usize + 1];
        self.broker.read_exact(&mut rest).await?;
        Ok(rest[..4].try_into().unwrap())
    }
}

fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    [&[kind][..], &channel.to_be_bytes(), &long(payload), &[0xCE]].concat()
}

/// The encoded properties of a persistent message with this id and these headers, if they are not empty.
#[must_use]
pub fn properties(message_id: Option<&[u8]>, headers: &[u8]) -> Vec<u8> {
    const HEADERS: u16 = 1 << 13;
    const DELIVERY_MODE: u16 = 1 << 12;
    const MESSAGE_ID: u16 = 1 << 7;
    let mut flags = DELIVERY_MODE;
    let mut fields = Vec::new();
    if !headers.is_empty() {
        flags |= HEADERS;
        fields.extend(long(headers));
    }
    fields.push(2);
    if let Some(id) = message_id {
        flags |= MESSAGE_ID;
        fields.extend(short(id));
    }
    [&flags.to_be_bytes()[..], &fields].concat()
}

/// A header whose value is a text.
#[must_use]
pub fn text_header(name: &[u8], value: &[u8]) -> Vec<u8> {
    [&short(name)[..], b"S", &long(value)].concat()
}

/// A header whose value is a list in a list, and so on, this many levels deep.
#[must_use]
pub fn nested_header(name: &[u8], depth: usize) -> Vec<u8> {
    /// The type and the length of a list.
    const HEAD: usize = 5;
    let mut header = short(name);
    for inner in (1..depth).rev() {
        header.push(b'A');
        let bytes = (inner - 1) * HEAD + 1;
        header.extend(u32::try_from(bytes).unwrap().to_be_bytes());
    }
    header.push(b'V');
    header
}

fn short(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()], text].concat()
}

fn long(text: &[u8]) -> Vec<u8> {
    [&u32::try_from(text.len()).unwrap().to_be_bytes()[..], text].concat()
}
