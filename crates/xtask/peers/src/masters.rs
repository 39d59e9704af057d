//! Redis: one connection, or one connection and one pipeline for each master of a cluster.

use anyhow::{Context, Result};
use futures_util::future::try_join_all;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Pipeline};

/// Connections to the masters. `ranges` has the last slot of each slot range, and its master.
pub(crate) struct Masters {
    connections: Vec<MultiplexedConnection>,
    ranges: Vec<(u16, usize)>,
}

impl Masters {
    pub(crate) async fn open(urls: &str) -> Result<Self> {
        let (mut connections, mut ranges) = (Vec::new(), Vec::new());
        for (n, url) in urls.split(',').enumerate() {
            let client = redis::Client::open(url)?;
            // No timeout: the default of 500 ms is too short under valgrind.
            let config = AsyncConnectionConfig::new().set_response_timeout(None);
            let mut connection =
                client.get_multiplexed_async_connection_with_config(&config).await?;
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

    /// The index of the master of the keys with this hash tag.
    pub(crate) fn of(&self, tag: &str) -> usize {
        let slot = crc16(tag.as_bytes()) % 16_384;
        let range = self.ranges.partition_point(|(last, _)| *last < slot);
        self.ranges.get(range).map_or(0, |(_, master)| *master)
    }

    /// Runs the pipelines that are not empty, concurrently.
    pub(crate) async fn run(&self, pipelines: &[Pipeline]) -> Result<()> {
        let filled = self.connections.iter().zip(pipelines).filter(|(_, it)| !it.is_empty());
        try_join_all(filled.map(async |(connection, pipeline)| {
            pipeline.query_async::<()>(&mut connection.clone()).await
        }))
        .await?;
        Ok(())
    }
}

/// CRC-16/XMODEM, with which Redis Cluster computes the slot of a key (its specification, appendix A).
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
    fn the_checksum_matches_the_specification() {
        assert_eq!(crc16(b"123456789"), 0x31c3);
    }
}
