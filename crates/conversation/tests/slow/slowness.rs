//! Makes one conversation slow, or locks its row, until the test says otherwise.

use std::time::Duration;

use database::{Database, Settings};
use fixtures::{LIMIT, Replica, database_settings, key, sql};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use testkit::TestEnv;
use testkit::wait::eventually;
use tokio::task::JoinHandle;

/// Tasks that end with the test.
pub(crate) struct Background(Vec<JoinHandle<()>>);

impl Background {
    pub(crate) fn new(tasks: impl IntoIterator<Item = JoinHandle<()>>) -> Self {
        Self(tasks.into_iter().collect())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

/// A replica with this time limit for a unit of work. Steps with others have a fifth of it.
pub(crate) fn hasty(env: &TestEnv, time_out: Duration) -> Replica {
    let settings = Settings { time_out, ..database_settings(&env.database_url) };
    Replica::on(Database::open(&settings).unwrap(), &env.redis_url)
}

pub(crate) async fn until_sql(env: &TestEnv, statement: &str, expected: &str) {
    eventually(statement, LIMIT, async || {
        let found = sql(env, statement).await;
        if found == expected { Ok(()) } else { Err(found) }
    })
    .await;
}

/// Statements that wait until the gate is open, in whatever session.
pub(crate) struct Gate<'a>(&'a TestEnv);

impl<'a> Gate<'a> {
    async fn new(env: &'a TestEnv) -> Self {
        sql(
            env,
            "CREATE TABLE gate (open bool);
             CREATE FUNCTION pass() RETURNS bool LANGUAGE plpgsql AS $$ BEGIN
                 PERFORM pg_advisory_lock_shared(4711);
                 WHILE NOT EXISTS (SELECT FROM gate) LOOP PERFORM pg_sleep(0.02); END LOOP;
                 PERFORM pg_advisory_unlock_shared(4711);
                 RETURN true;
             END $$",
        )
        .await;
        Self(env)
    }

    /// Whoever reads a message of this conversation waits.
    pub(crate) async fn on_reads_of(env: &'a TestEnv, session: &str) -> Self {
        let gate = Self::new(env).await;
        let id = key(session).conversation;
        let number = sql(env, &format!("SELECT number FROM conversations WHERE id = '{id}'")).await;
        sql(
            env,
            &format!(
                "ALTER TABLE message_rows RENAME TO stored_rows;
                 CREATE VIEW message_rows AS SELECT * FROM stored_rows
                 WHERE CASE WHEN conversation = {number} THEN pass() ELSE true END"
            ),
        )
        .await;
        gate
    }

    /// Whoever writes such a row waits.
    pub(crate) async fn on_writes(env: &'a TestEnv, event: &str, condition: &str) -> Self {
        let gate = Self::new(env).await;
        sql(
            env,
            &format!(
                "CREATE FUNCTION wait_for_gate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                     PERFORM pass(); RETURN NEW;
                 END $$;
                 CREATE TRIGGER gate {event} FOR EACH ROW WHEN ({condition})
                 EXECUTE FUNCTION wait_for_gate()"
            ),
        )
        .await;
        gate
    }

    pub(crate) async fn until_waited_at(&self) {
        let waiting = "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711
                       AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        until_sql(self.0, waiting, "t").await;
    }

    pub(crate) async fn open(&self) {
        sql(self.0, "INSERT INTO gate VALUES (true)").await;
    }
}

/// A transaction of another session that holds a lock.
pub(crate) struct Lock(PgConnection);

/// Takes a lock in another session.
pub(crate) async fn lock(env: &TestEnv, statement: &str) -> Lock {
    let mut other = PgConnection::connect(&env.database_url).await.unwrap();
    sqlx::query("BEGIN").execute(&mut other).await.unwrap();
    sqlx::query(AssertSqlSafe(statement)).execute(&mut other).await.unwrap();
    Lock(other)
}

impl Lock {
    pub(crate) async fn release(mut self) {
        sqlx::query("ROLLBACK").execute(&mut self.0).await.unwrap();
    }
}
