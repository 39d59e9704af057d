//! Walking over all hot copies, for whoever compares them with PostgreSQL.
//!
//! By `SCAN`, one server after the other, so Redis serves others in between. A copy that is there
//! all the while is told at least once; it may be told twice, and one that comes or goes may be told
//! or not (Redis manual, SCAN).

use domain::ids::{ConversationKey, TenantId};
use redis::{Value, from_redis_value};

use crate::error::Error;
use crate::{HotStore, keys};

/// Keys that Redis looks at for one step: some tens of microseconds.
const STEP: usize = 500;

/// Where a walk has come to. Another connection may be another server, so it does not outlive one.
#[derive(Debug, Clone)]
pub struct ScanCursor {
    serial: u64,
    /// Which of the connection's servers.
    server: usize,
    cursor: String,
}

/// A step of a walk.
#[derive(Debug)]
pub struct ScanPage {
    /// Conversations that have a copy, whatever it holds.
    pub keys: Vec<ConversationKey>,
    /// Keys among the copies that are no conversation's. This program writes none.
    pub unknown_keys: Vec<String>,
    /// Where it goes on; `None` at the end.
    pub next: Option<ScanCursor>,
}

impl HotStore {
    /// One step: the copies of one tenant or of all, from the beginning or from where the last step ended.
    ///
    /// # Errors
    /// Redis is away, or was between two steps: then the walk begins anew.
    pub async fn scan(
        &self,
        tenant: Option<&TenantId>,
        from: Option<ScanCursor>,
    ) -> Result<ScanPage, Error> {
        let connection = self.connections.get().await?;
        let serial = connection.serial();
        let ScanCursor { server, cursor, .. } = match from {
            Some(place) if place.serial != serial => {
                return Err(Error::NotServing(
                    "it is not the connection that the walk began on".into(),
                ));
            }
            Some(place) => place,
            None => ScanCursor { serial, server: 0, cursor: "0".to_owned() },
        };
        let Some(link) = connection.links().nth(server) else {
            return Ok(ScanPage { keys: vec![], unknown_keys: vec![], next: None });
        };
        let mut scan = redis::cmd("SCAN");
        scan.arg(&cursor).arg("MATCH").arg(keys::pattern(tenant)).arg("COUNT").arg(STEP);
        let reply = link.call(&scan).await?;
        let (cursor, names) = read(reply)?;
        let next = match cursor.as_str() {
            "0" if server + 1 == connection.links().count() => None,
            "0" => Some(ScanCursor { serial, server: server + 1, cursor }),
            _ => Some(ScanCursor { serial, server, cursor }),
        };
        let mut step =
            ScanPage { keys: Vec::with_capacity(names.len()), unknown_keys: vec![], next };
        for name in names {
            match keys::conversation_of(&name) {
                Some(key) => step.keys.push(key),
                None => step.unknown_keys.push(name),
            }
        }
        Ok(step)
    }
}

fn read(reply: Value) -> Result<(String, Vec<String>), Error> {
    let (cursor, names): (String, Vec<Vec<u8>>) =
        from_redis_value(reply).map_err(redis::RedisError::from)?;
    Ok((cursor, names.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect()))
}
