//! Redis, plainly: one connection, or one to each master of a cluster and a pipeline for each.

use anyhow::{Context, Result};
use futures_util::future::try_join_all;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Pipeline};

/// The masters, by the last slot of each of their ranges.
pub(crate) struct Masters {
    connections: Vec<MultiplexedConnection>,
    ranges: Vec<(u16, usize)>,
}

impl Masters {
    pub(crate) async fn open(urls: &str) -> Result<Self> {
        let (mut connections, mut ranges) = (Vec::new(), Vec::new());
        for (n, url) in urls.split(',').enumerate() {
            let client = redis::Client::open(url)?;
            // The client's default of 500 ms is short for a run whose instructions are counted.
            let patient = AsyncConnectionConfig::new().set_response_timeout(None);
            let mut connection =
                client.get_multiplexed_async_connection_with_config(&patient).await?;
            if urls.contains(',') {
                let nodes: String =
                    redis::cmd("CLUSTER").arg("NODES").query_async(&mut connection).await?;
                let own = nodes.lines().find(|line| line.contains("myself,master"));
                let own = own.context("every URL of a cluster must be a master's")?;
                for range in own.split(' ').skip(8) {
                    let last = range.rsplit_once('-').map_or(range, |(_, last)| last);
                    ranges.push((last.parse()?, n));
                }
            }
            connections.push(connection);
        }
        ranges.sort_unstable();
        Ok(Self { connections, ranges })
    }

    /// An empty pipeline for each master.
    pub(crate) fn pipelines(&self) -> Vec<Pipeline> {
        self.connections.iter().map(|_| redis::pipe()).collect()
    }

    /// The number of the master that has the keys with a hash tag.
    pub(crate) fn of(&self, tag: &str) -> usize {
        let slot = crc16(tag.as_bytes()) % 16_384;
        let range = self.ranges.partition_point(|(last, _)| *last < slot);
        self.ranges.get(range).map_or(0, |(_, master)| *master)
    }

    /// Runs the pipelines that are not empty, all at once.
    pub(crate) async fn run(&self, pipelines: &[Pipeline]) -> Result<()> {
        let filled = self.connections.iter().zip(pipelines).filter(|(_, it)| !it.is_empty());
        try_join_all(filled.map(async |(connection, pipeline)| {
            pipeline.query_async::<()>(&mut connection.clone()).await
        }))
        .await?;
        Ok(())
    }
}

/// CRC-16/XMODEM, by which Redis Cluster finds a key's slot (its specification, appendix A).
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |mut crc: u16, byte| {
        crc ^= u16::from(*byte) << 8;
        for _ in 0..8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
        }
        crc
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_specifications() {
        assert_eq!(crc16(b"123456789"), 0x31c3);
    }
}
