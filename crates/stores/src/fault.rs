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
        } else if says("does not exist") && says("database") {
            "create the database, then run `verbatim setup`"
        } else if self.is_authentication() {
            "correct user and password"
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
        let texts = ["password", "ACCESS", "WRONGPASS", "NOAUTH"];
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
    fn a_rejected_login_is_reported_as_failed_authentication() {
        let unavailable = Unavailable {
            server: "Redis",
            setting: "REDIS_URL",
            address: "redis://***@cache:6379/0".to_owned(),
            cause: "WRONGPASS invalid username-password pair".to_owned(),
        };
        assert_eq!(
            Fault::Unavailable(unavailable).to_string(),
            "Redis at redis://***@cache:6379/0: authentication failed: WRONGPASS invalid \
             username-password pair\ncorrect user and password (REDIS_URL)"
        );
    }
}
