//! Scans all hot copies, to compare them with PostgreSQL.
//!
//! It uses `SCAN`, one server after the other, so Redis runs other commands in between. A copy that
//! exists during the whole scan is returned at least once and possibly twice. A copy that is
//! created or removed during the scan may be returned or not (Redis manual, SCAN).

use domain::ids::{ConversationKey, TenantId};
use redis::{Value, from_redis_value};

use crate::error::Error;
use crate::keys;
use crate::store::HotStore;

/// The number of keys that Redis examines for one page: some tens of microseconds.
const PAGE: usize = 500;

/// The position of a scan. It is valid only for the connection on which the scan began: another
/// connection may be another server.
#[derive(Debug, Clone)]
pub struct ScanCursor {
    serial: u64,
    server: usize,
    cursor: String,
}

/// A page of a scan.
#[derive(Debug)]
pub struct ScanPage {
    /// Conversations that have a copy, whether usable or not.
    pub keys: Vec<ConversationKey>,
    /// Keys that match the pattern of hot copies but are not the key of any conversation. This
    /// program writes no such key.
    pub unknown_keys: Vec<String>,
    /// The cursor of the next page; `None` at the end.
    pub next: Option<ScanCursor>,
}

impl HotStore {
    /// One page of the copies of one tenant or of all, from the beginning or from a cursor.
    ///
    /// # Errors
    /// Redis is unavailable, or the connection changed since the last page. Then the scan must be
    /// started again.
    pub async fn scan(
        &self,
        tenant: Option<&TenantId>,
        from: Option<ScanCursor>,
    ) -> Result<ScanPage, Error> {
        let connection = self.connections.get().await?;
        let serial = connection.serial();
        let ScanCursor { server, cursor, .. } = match from {
            Some(cursor) if cursor.serial != serial => {
                return Err(Error::NotServing(
                    "the connection changed during the scan; start the scan again".into(),
                ));
            }
            Some(cursor) => cursor,
            None => ScanCursor { serial, server: 0, cursor: "0".to_owned() },
        };
        let Some(link) = connection.links().nth(server) else {
            return Ok(ScanPage { keys: vec![], unknown_keys: vec![], next: None });
        };
        let mut scan = redis::cmd("SCAN");
        scan.arg(&cursor).arg("MATCH").arg(keys::pattern(tenant)).arg("COUNT").arg(PAGE);
        let reply = link.call(&scan).await?;
        let (cursor, names) = read(reply)?;
        let next = match cursor.as_str() {
            "0" if server + 1 == connection.links().count() => None,
            "0" => Some(ScanCursor { serial, server: server + 1, cursor }),
            _ => Some(ScanCursor { serial, server, cursor }),
        };
        let mut page =
            ScanPage { keys: Vec::with_capacity(names.len()), unknown_keys: vec![], next };
        for name in names {
            match keys::conversation_of(&name) {
                Some(key) => page.keys.push(key),
                None => page.unknown_keys.push(name),
            }
        }
        Ok(page)
    }
}

fn read(reply: Value) -> Result<(String, Vec<String>), Error> {
    let (cursor, names): (String, Vec<Vec<u8>>) =
        from_redis_value(reply).map_err(redis::RedisError::from)?;
    Ok((cursor, names.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect()))
}
