//! Starts and queries a private Redis.

mod membership;

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub(super) use self::membership::{Member, Membership};
use super::binaries;
use super::files::{remove, secret, write_secret};
use super::kind::Durability;
use crate::guard::{Guard, Mark};
use crate::ports;

/// One Redis server, running or stopped.
#[derive(Debug)]
pub(super) struct Redis {
    pub(super) port: u16,
    pub(super) mark: Mark,
    pub(super) dir: PathBuf,
    pub(super) password: String,
    pub(super) durability: Durability,
    /// Its role in a cluster.
    pub(super) membership: Option<Membership>,
}

impl Redis {
    pub(super) fn prepare(guard: &Guard, dir: PathBuf, durability: Durability) -> Result<Self> {
        binaries::redis()?;
        let mark = guard.mark().clone();
        let (port, password) = (ports::free(), secret());
        Ok(Self { port, mark, dir, password, durability, membership: None })
    }

    pub(super) fn url(&self) -> String {
        format!("redis://:{}@127.0.0.1:{}/0", self.password, self.port)
    }

    pub(super) fn command(&self) -> Result<(Command, PathBuf)> {
        let data = self.dir.join("data");
        std::fs::create_dir_all(&data)?;
        let config = self.dir.join("redis.conf");
        let append_only = match self.durability {
            Durability::Fast => "no",
            Durability::Durable => "yes",
        };
        let cluster = match &self.membership {
            Some(membership) => membership.settings(&self.dir)?,
            None => String::new(),
        };
        let Self { port, password, .. } = self;
        let settings = format!(
            "bind 127.0.0.1\n\
             port {port}\n\
             requirepass {password}\n\
             masterauth {password}\n\
             save \"\"\n\
             appendonly {append_only}\n\
             # Changing the process title would overwrite the environment with the guard's mark.\n\
             set-proc-title no\n\
             {cluster}"
        );
        write_secret(&config, &settings)?;
        let mut command = self.mark.command(binaries::redis()?);
        command.arg(config).current_dir(data);
        Ok((command, self.dir.join("log")))
    }

    /// Removes all data; in a cluster also the state of the cluster.
    pub(super) fn wipe(&self) -> Result<()> {
        remove(&self.dir.join("data"))
    }

    pub(super) async fn probe(&self) -> Result<(), String> {
        let reply = async |command: &[&str]| self.execute(command).await.map_err(|e| e.to_string());
        let pong = reply(&["PING"]).await?;
        if pong != "+PONG" {
            return Err(format!("the reply to PING is {pong:?}"));
        }
        match &self.membership {
            None => Ok(()),
            Some(_) => match reply(&["CLUSTER", "INFO"]).await? {
                info if info.contains("cluster_state:ok\r\n") => Ok(()),
                other => Err(format!("the cluster is not ready: {other:?}")),
            },
        }
    }

    /// Runs one command; returns the raw reply (RESP 2) without the last line break.
    pub(super) async fn execute(&self, words: &[&str]) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        let words = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len()));
        let command = format!("*{}\r\n{}", words.len(), words.collect::<String>());
        let request = format!("AUTH {}\r\n{command}QUIT\r\n", self.password);
        stream.write_all(request.as_bytes()).await?;
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).await?;
        let reply = String::from_utf8_lossy(&reply);
        let own = reply.strip_prefix("+OK\r\n").and_then(|it| it.strip_suffix("\r\n+OK\r\n"));
        own.map(str::to_owned)
            .ok_or_else(|| std::io::Error::other(format!("unexpected reply {reply:?}")))
    }
}
