//! Registering with the queue.

use lapin::options::{BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;

use crate::connection::{Error, request};

/// Registers a consumer. The prefetch applies to this consumer and cannot be changed later
/// (`basic.qos` with `global: false`).
pub(super) async fn consume(
    channel: &lapin::Channel,
    queue: &'static str,
    prefetch: u16,
) -> Result<lapin::Consumer, Error> {
    let qos = channel.basic_qos(prefetch, BasicQosOptions { global: false });
    request("set the prefetch", qos).await?;
    let options = BasicConsumeOptions::default();
    let consume = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default());
    request("start a consumer", consume).await
}
