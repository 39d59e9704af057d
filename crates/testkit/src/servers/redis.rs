//! How a private Redis is started and asked.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Durability, binaries, remove, secret, write_secret};
use crate::guard::{Guard, Mark};
use crate::ports;

/// One Redis, running or not.
#[derive(Debug)]
pub(super) struct Redis {
    pub(super) port: u16,
    mark: Mark,
    dir: PathBuf,
    password: String,
    durability: Durability,
}

impl Redis {
    pub(super) fn prepare(guard: &Guard, dir: PathBuf, durability: Durability) -> Result<Self> {
        binaries::redis()?;
        let mark = guard.mark().clone();
        Ok(Self { port: ports::free(), mark, dir, password: secret(), durability })
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
        let Self { port, password, .. } = self;
        let settings = format!(
            "bind 127.0.0.1\n\
             port {port}\n\
             requirepass {password}\n\
             save \"\"\n\
             appendonly {append_only}\n\
             # A changed title would overwrite the environment, and the guard's mark in it.\n\
             set-proc-title no\n"
        );
        write_secret(&config, &settings)?;
        let mut command = self.mark.command(binaries::redis()?);
        command.arg(config).current_dir(data);
        Ok((command, self.dir.join("log")))
    }

    pub(super) fn wipe(&self) -> Result<()> {
        remove(&self.dir.join("data"))
    }

    pub(super) async fn probe(&self) -> Result<(), String> {
        let exchange = async {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
            let request = format!("AUTH {}\r\nPING\r\n", self.password);
            stream.write_all(request.as_bytes()).await?;
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).await?;
            std::io::Result::Ok(answer)
        };
        match exchange.await {
            Ok(answer) if answer == *b"+OK\r\n+PONG\r\n" => Ok(()),
            Ok(answer) => Err(format!("it says {:?}", String::from_utf8_lossy(&answer))),
            Err(error) => Err(error.to_string()),
        }
    }
}
