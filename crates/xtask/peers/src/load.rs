//! The load: messages published with confirms, as agents do.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use chrono::Utc;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::body::Shape;
use crate::broker::connect;

const EXCHANGE: &str = "domain.actions";
const SAVE: &str = "conversation.save_message";
const SEVERAL: &str = "conversation.save_messages";
const CLOSE: &str = "conversation.session_closed";

/// Maximum number of unconfirmed publishes.
const WINDOW: usize = 1024;

/// The interval of the steady publisher. Messages that are due by then are published together.
const TICK: Duration = Duration::from_millis(1);

/// Publishes a number of messages as fast as they are confirmed.
#[derive(Debug, clap::Args)]
pub(crate) struct Preload {
    /// Number of messages to publish
    #[arg(long)]
    count: u64,
    /// Number of the first message
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Publish session ends instead of messages; the count is the number of conversations
    #[arg(long)]
    close: bool,
    #[command(flatten)]
    shape: Shape,
}

/// Publishes at a constant rate, independent of confirms.
#[derive(Debug, clap::Args)]
pub(crate) struct Steady {
    /// Messages per second
    #[arg(long)]
    rate: u64,
    /// Number of messages to publish
    #[arg(long)]
    count: u64,
    #[command(flatten)]
    shape: Shape,
}

pub(crate) async fn preload(amqp_url: &str, preload: &Preload) -> Result<()> {
    let (_connection, channel) = confirming(amqp_url).await?;
    let mut confirms = FuturesUnordered::new();
    let batch = if preload.close { 1 } else { preload.shape.batch };
    if !preload.count.is_multiple_of(batch) {
        bail!("--count {} is no multiple of --batch {batch}", preload.count);
    }
    let (from, count) = (preload.from / batch, preload.count / batch);
    for n in from..from + count {
        if confirms.len() == WINDOW {
            confirms.next().await.transpose()?;
        }
        let (key, body) = if preload.close {
            (CLOSE, preload.shape.close(n))
        } else {
            (if batch == 1 { SAVE } else { SEVERAL }, preload.shape.action(n))
        };
        confirms.push(publish(&channel, key, body));
    }
    while confirms.next().await.transpose()?.is_some() {}
    Ok(())
}

pub(crate) async fn steady(amqp_url: &str, steady: &Steady, out: &Path) -> Result<()> {
    let (_connection, channel) = confirming(amqp_url).await?;
    let mut confirms = FuturesUnordered::new();
    let mut confirmed = Vec::with_capacity(usize::try_from(steady.count)?);
    let (began, mut sent) = (Instant::now(), 0);
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    while (confirmed.len() as u64) < steady.count {
        tokio::select! {
            biased;
            Some(n) = confirms.next() => confirmed.push((n?, Utc::now().timestamp_micros())),
            _ = ticks.tick(), if sent < steady.count => {
                let due = u64::try_from(began.elapsed().as_micros())? * steady.rate / 1_000_000;
                for n in sent..due.min(steady.count) {
                    let confirm = publish(&channel, SAVE, steady.shape.body(n));
                    confirms.push(async move { confirm.await.map(|()| n) });
                }
                sent = sent.max(due.min(steady.count));
            }
        }
    }
    let mut text = String::with_capacity(confirmed.len() * 64);
    for (n, at) in confirmed {
        text.push_str(&format!("{}\t{at}\n", steady.shape.message_id(n)));
    }
    Ok(std::fs::File::create(out)?.write_all(text.as_bytes())?)
}

async fn confirming(amqp_url: &str) -> Result<(lapin::Connection, Channel)> {
    let (connection, channel) = connect(amqp_url).await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok((connection, channel))
}

async fn publish(channel: &Channel, key: &'static str, body: String) -> Result<()> {
    const PERSISTENT: u8 = 2;
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    let properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_delivery_mode(PERSISTENT);
    let sent = channel
        .basic_publish(EXCHANGE.into(), key.into(), options, body.as_bytes(), properties)
        .await?;
    let confirmation = sent.await?;
    let accepted = confirmation.is_ack();
    if !accepted || confirmation.take_message().is_some() {
        bail!("RabbitMQ refused or returned a message; run `verbatim setup` first");
    }
    Ok(())
}
