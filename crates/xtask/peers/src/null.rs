//! The baseline `null`: consumes and acknowledges, and does nothing else. The upper limit of throughput.

use anyhow::Result;
use futures_util::StreamExt;

use crate::broker::{Acknowledged, connect, consume, drain_ready};

pub(crate) async fn run(amqp_url: &str) -> Result<()> {
    let (_connection, channel) = connect(amqp_url).await?;
    let mut stream = consume(&channel).await?;
    let mut acknowledged = Acknowledged::default();
    while let Some(first) = stream.next().await {
        let mut batch = vec![first?];
        drain_ready(&mut stream, &mut batch)?;
        acknowledged.up_to_last_of(&batch).await?;
    }
    Ok(())
}
