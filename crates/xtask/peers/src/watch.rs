//! Records when Redis received each message of a run, by Redis's clock (`MONITOR`).

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::body::RunName;

/// Length of a message id.
const ID: usize = 36;

/// The bytes after the id in a member of a hot copy, as `MONITOR` escapes them: NUL and the format byte.
const AFTER_ID: &[u8] = b"\\x00\\x01";

/// The messages to wait for, and the file for their times.
#[derive(Debug, clap::Args)]
pub(crate) struct Watch {
    /// URL of Redis
    #[arg(long, env = "REDIS_URL", hide_env_values = true)]
    redis_url: String,
    /// The run of the messages
    #[arg(long)]
    run: RunName,
    /// Number of messages to wait for
    #[arg(long)]
    count: usize,
    /// File for the message ids and their times
    #[arg(long)]
    out: PathBuf,
}

pub(crate) async fn run(watch: &Watch) -> Result<()> {
    let client = redis::Client::open(watch.redis_url.as_str())?;
    let info = client.get_connection_info();
    let redis::ConnectionAddr::Tcp(host, port) = info.addr() else {
        bail!("REDIS_URL must use plain TCP (redis://)")
    };
    let password = info.redis_settings().password().unwrap_or_default();
    let mut stream = TcpStream::connect((host.as_str(), *port)).await?;
    stream.write_all(format!("AUTH {password}\r\nMONITOR\r\n").as_bytes()).await?;
    let mut lines = BufReader::with_capacity(1 << 20, stream);
    let mut line = Vec::new();
    for _ in 0..2 {
        line.clear();
        lines.read_until(b'\n', &mut line).await?;
        ensure!(
            line == b"+OK\r\n",
            "unexpected reply of Redis: {:?}",
            String::from_utf8_lossy(&line)
        );
    }
    println!("watching");
    let run = format!("-{}-", watch.run);
    let mut times = HashMap::with_capacity(watch.count);
    while times.len() < watch.count {
        line.clear();
        if lines.read_until(b'\n', &mut line).await? == 0 {
            bail!("Redis closed the connection");
        }
        record(&line, &run, &mut times)
            .context("Redis sent a line that is not output of MONITOR")?;
    }
    let mut text = String::with_capacity(times.len() * 64);
    for (id, at) in times {
        writeln!(text, "{id}\t{at}")?;
    }
    Ok(std::fs::write(&watch.out, text)?)
}

/// Records the first append of each message of a run from a line such as
/// `+1700000000.123456 [0 127.0.0.1:5000] "ZADD" "messages:{a/b}" "17…" "id\x00\x01{…}"`.
fn record(line: &[u8], run: &str, times: &mut HashMap<String, i64>) -> Option<()> {
    let at = std::str::from_utf8(line.get(1..18)?).ok()?.replace('.', "").parse().ok()?;
    let marks = line.windows(AFTER_ID.len()).enumerate();
    for (end, _) in marks.filter(|(_, bytes)| *bytes == AFTER_ID) {
        let id = std::str::from_utf8(line.get(end.checked_sub(ID)?..end)?).unwrap_or_default();
        if id.contains(run) {
            times.entry(id.to_owned()).or_insert(at);
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_append_of_a_message_of_the_run_counts() {
        let id = |run: &str| format!("0123abcd-{run}-{:018}", 7);
        let (ours, other) = (id("run00001"), id("other001"));
        let mut times = HashMap::new();
        for (second, ids) in [(10, vec![&other]), (11, vec![&ours, &other]), (12, vec![&ours])] {
            let member = |id: &&String| format!(" \"17\" \"{id}\\x00\\x01{{}}\"");
            let members: String = ids.iter().map(member).collect();
            let line =
                format!("+17000000{second}.000001 [0 127.0.0.1:1] \"ZADD\" \"k\"{members}\r\n");
            record(line.as_bytes(), "-run00001-", &mut times).unwrap();
        }
        assert_eq!(times, HashMap::from([(ours, 1_700_000_011_000_001)]));
    }
}
