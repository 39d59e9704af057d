//! Why a server cannot be used. The text names the server or the setting, what went wrong, and the remedy;
//! addresses are shown without secrets.

use std::fmt;

/// Why a server cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A setting is invalid.
    #[error("{0}")]
    Setting(String),
    /// It is unreachable, or authentication failed.
    #[error("{0}")]
    Unavailable(Unavailable),
    /// It refused a request, or is not set up.
    #[error("{0}")]
    Refused(String),
}

/// A server that is unreachable, or where authentication failed.
#[derive(Debug)]
pub struct Unavailable {
    /// Its name, such as `RabbitMQ`.
    pub server: &'static str,
    /// The setting that holds its address.
    pub setting: &'static str,
    /// Its address, without secrets.
    pub address: String,
    /// What went wrong.
    pub cause: String,
}

impl fmt::Display for Unavailable {
    /// The first line says what is wrong; the second one gives the remedy.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { server, setting, address, cause } = self;
        let failed = if self.is_authentication() { "authentication failed: " } else { "" };
        write!(f, "{server} at {address}: {failed}{cause}\n{} ({setting})", self.remedy())
    }
}

impl Unavailable {
    /// The remedy for the usual meaning of the cause. The texts that it looks for are those of the
    /// operating system, RabbitMQ, Redis and PostgreSQL.
    fn remedy(&self) -> &'static str {
        let says = |text: &str| self.cause.contains(text);
        if says("refused (os error") {
            "nothing listens at this address: start the server, or correct host and port"
        } else if says("lookup") || says("Name or service") {
            "the host name does not resolve: correct it"
        } else if says("database \"") && says("does not exist") {
            "create the database, then run `verbatim setup`"
        } else if says("permission denied") || says("no permissions") || says("refused for user") {
            "give this user the permission that it lacks"
        } else if says("pg_hba.conf") {
            "let PostgreSQL's pg_hba.conf admit this user and host"
        } else if self.is_authentication() {
            "correct user and password"
        } else if says("does not exist") {
            "run `verbatim setup`: the schema lacks something"
        } else if says("read-only") || says("READONLY") {
            "use the address of the server that accepts writes"
        } else if says("lock timeout") {
            "another transaction holds a lock: try again when it has ended"
        } else if says("advanced from") {
            "nothing was changed, and the sequence is repaired: run the command again"
        } else if says("Redis Cluster") {
            "one URL means a single server, several mean nodes of one Redis Cluster"
        } else if says("vhost") {
            "create the virtual host, and give the user permissions in it"
        } else {
            "check that the server is running and that the address is right"
        }
    }

    /// Whether the server rejected user or password.
    fn is_authentication(&self) -> bool {
        let texts = ["password", "Password", "role \"", "Login was refused", "WRONGPASS", "NOAUTH"];
        texts.iter().any(|text| self.cause.contains(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unreachable_server_is_named_with_its_address_setting_and_remedy() {
        let unavailable = Unavailable {
            server: "PostgreSQL",
            setting: "DATABASE_URL",
            address: "postgres://***@db:5432/verbatim".to_owned(),
            cause: "Connection refused (os error 111)".to_owned(),
        };
        assert_eq!(
            Fault::Unavailable(unavailable).to_string(),
            "PostgreSQL at postgres://***@db:5432/verbatim: Connection refused (os error 111)\n\
             nothing listens at this address: start the server, or correct host and port \
             (DATABASE_URL)"
        );
    }

    #[test]
    fn the_remedy_is_that_of_the_cause() {
        let login = "correct user and password";
        let permission = "give this user the permission that it lacks";
        let create = "create the database, then run `verbatim setup`";
        let setup = "run `verbatim setup`: the schema lacks something";
        let writes = "use the address of the server that accepts writes";
        for (cause, remedy) in [
            ("error returned from database: password authentication failed for user \"u\"", login),
            ("error returned from database: role \"u\" does not exist", login),
            ("error returned from database: database \"v\" does not exist", create),
            ("error returned from database: relation \"messages\" does not exist", setup),
            ("error returned from database: column m.id does not exist", setup),
            ("error returned from database: permission denied for table messages", permission),
            ("error returned from database: permission denied for database \"v\"", permission),
            (
                "error returned from database: permission denied for function pg_control_system",
                permission,
            ),
            (
                "error returned from database: cannot execute INSERT in a read-only transaction",
                writes,
            ),
            ("the server is read-only (a standby, or default_transaction_read_only)", writes),
            (
                "error returned from database: canceling statement due to lock timeout",
                "another transaction holds a lock: try again when it has ended",
            ),
            (
                "error returned from database: no pg_hba.conf entry for host \"10.0.0.1\", user \"u\", \
                 database \"v\", no encryption",
                "let PostgreSQL's pg_hba.conf admit this user and host",
            ),
            (
                "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. For details \
                 see the broker logfile.",
                login,
            ),
            (
                "ACCESS_REFUSED - access to queue 'bot.state' in vhost '/' refused for user 'u'",
                permission,
            ),
            ("NOT_ALLOWED - access to vhost '/' refused for user 'u'", permission),
            (
                "NOT_ALLOWED - vhost v not found",
                "create the virtual host, and give the user permissions in it",
            ),
            ("Password authentication failed - AuthenticationFailed", login),
            ("WRONGPASS invalid username-password pair or user is disabled.", login),
            ("NOAUTH Authentication required.", login),
            ("NoPerm: User u has no permissions to run the 'zadd' command", permission),
            ("READONLY You can't write against a read only replica.", writes),
            (
                "the number of a new row was taken: sequence audit_log_id_seq advanced from 1 to 55",
                "nothing was changed, and the sequence is repaired: run the command again",
            ),
            (
                "no connection within 3 s",
                "check that the server is running and that the address is right",
            ),
        ] {
            let (server, setting, address) = ("a server", "ITS_URL", "its address".to_owned());
            let unavailable = Unavailable { server, setting, address, cause: cause.to_owned() };
            assert_eq!(unavailable.remedy(), remedy, "{cause}");
            let text = unavailable.to_string();
            assert_eq!(text.contains("authentication failed: "), remedy == login, "{text}");
        }
    }
}
