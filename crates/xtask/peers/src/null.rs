//! The baseline `null`: consumes and acknowledges, and does nothing else. The upper limit of throughput.

use anyhow::Result;
use futures_util::StreamExt;

use crate::broker::{Acknowledged, Deliveries, connect, consume, drain_ready};

pub(crate) async fn run(amqp_url: &str, deliveries: Deliveries) -> Result<()> {
    let (_connection, channel) = connect(amqp_url).await?;
    let mut stream = consume(&channel, deliveries).await?;
    let mut acknowledged = Acknowledged::of(deliveries);
    while let Some(first) = stream.next().await {
        let mut batch = vec![first?];
        drain_ready(&mut stream, &mut batch, deliveries)?;
        acknowledged.up_to_last_of(&batch).await?;
    }
    Ok(())
}
