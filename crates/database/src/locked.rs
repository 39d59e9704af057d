//! Which conversations other transactions have locked.

use std::collections::HashSet;

use domain::ids::ConversationKey;

use crate::rows::{BindKeys as _, key_of};
use crate::{Database, Result};

impl Database {
    /// Those of these conversations whose rows another transaction has locked at this moment. Asking waits for no row.
    ///
    /// # Errors
    /// PostgreSQL failed, or a lock on the whole table did not end in time.
    pub async fn locked_conversations<'a>(
        &self,
        keys: impl Iterator<Item = &'a ConversationKey> + Clone,
    ) -> Result<HashSet<ConversationKey>> {
        // A row that exists and that `free` could not lock is locked by another transaction.
        let query = sqlx::query(
            "WITH wanted AS (SELECT DISTINCT * FROM unnest($1::text[], $2::text[]) AS k (tenant_id, id)),
                  free AS (SELECT c.tenant_id, c.id FROM wanted JOIN conversations c USING (tenant_id, id)
                           FOR NO KEY UPDATE OF c SKIP LOCKED)
             SELECT c.tenant_id, c.id FROM wanted JOIN conversations c USING (tenant_id, id)
             EXCEPT SELECT tenant_id, id FROM free",
        );
        let rows = self.rows(query.bind_keys(keys)).await?;
        rows.iter().map(key_of).collect()
    }
}
