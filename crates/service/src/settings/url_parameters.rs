//! The parameters in the query of a server's URL: those that its client honours, and no others.
//!
//! The client libraries ignore a parameter that they do not know or cannot do. With a mistyped `sslmode` the
//! connection would have no TLS, and nothing would show it. So such a URL is refused.
//!
//! No error contains the value of a parameter. An unknown name is shown only where it cannot be a part of a password
//! whose `&` or `?` is not percent-encoded.

use std::collections::BTreeSet;
use std::fmt;

/// The parameters of the URLs of one server.
pub(super) struct Parameters {
    /// What the client honours.
    honoured: &'static [Honoured],
    /// What other clients honour and this one does not, and what to do instead.
    ignored: &'static [(&'static str, &'static str)],
}

/// A parameter that the client honours.
struct Honoured {
    /// Its names; the first one stands for all.
    names: &'static [&'static str],
    values: Values,
}

/// The values of a parameter.
enum Values {
    Text,
    Number,
    Port,
    OneOf(&'static [&'static str]),
}

/// Why a parameter is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InvalidParameter {
    /// No client has it.
    Unknown {
        /// Its name; `None` if it may be a part of a password.
        name: Option<String>,
        /// The most similar name that is known.
        nearest: Option<&'static str>,
        /// All that are known.
        known: Vec<&'static str>,
    },
    /// The client would ignore it.
    Ignored {
        /// Its name.
        name: &'static str,
        /// What to do instead.
        remedy: &'static str,
    },
    /// It is given twice, or the URL says the same before its query.
    Twice(String),
    /// Its value is none of those that the client honours.
    Value {
        /// Its name.
        name: String,
        /// What the value must be.
        wanted: String,
    },
    /// It has an effect only together with another one.
    Without {
        /// Its name.
        name: &'static str,
        /// The other one, with its values.
        other: &'static str,
    },
    /// `options` sets what Verbatim sets itself.
    OwnSetting(&'static str),
}

const AMQP_TLS: &str = "amqps:// verifies the server's certificate with the certificates of the operating system, \
     or with those that the environment variable SSL_CERT_FILE names";
const REDIS_TLS: &str = "rediss:// verifies the server's certificate with the certificates of the operating system, \
     or with those that the environment variable SSL_CERT_FILE names";
const NO_CLIENT_CERTIFICATE: &str = "client certificates are not supported; use user and password";
const REMOVE: &str = "the client library cannot do it; remove the parameter";

/// RabbitMQ. amq-protocol-uri 10.6.3 (`src/lib.rs`, `FromStr for AMQPUri`) reads five parameters. lapin 4.12.3 uses
/// these three (`src/configuration.rs`, `src/auth.rs`) and `heartbeat`, which the crate `broker` sets itself; it does
/// not use `connection_timeout` with a connector of its own. RabbitMQ's clients in Erlang know the others
/// (<https://www.rabbitmq.com/docs/uri-query-parameters>).
pub(super) const AMQP: Parameters = Parameters {
    honoured: &[
        Honoured { names: &["frame_max"], values: Values::Number },
        Honoured { names: &["channel_max"], values: Values::Number },
        Honoured {
            names: &["auth_mechanism"],
            values: Values::OneOf(&[
                "plain",
                "amqplain",
                "anonymous",
                "external",
                "rabbit-cr-demo",
            ]),
        },
    ],
    ignored: &[
        ("heartbeat", "Verbatim always negotiates 8 s; remove the parameter"),
        ("connection_timeout", "Verbatim always waits 3 s for an address; remove the parameter"),
        ("cacertfile", AMQP_TLS),
        ("verify", AMQP_TLS),
        ("server_name_indication", AMQP_TLS),
        ("depth", AMQP_TLS),
        ("fail_if_no_peer_cert", AMQP_TLS),
        ("versions", AMQP_TLS),
        ("ssl", AMQP_TLS),
        ("ssl_options", AMQP_TLS),
        ("sslmode", AMQP_TLS),
        ("certfile", NO_CLIENT_CERTIFICATE),
        ("keyfile", NO_CLIENT_CERTIFICATE),
        ("password", NO_CLIENT_CERTIFICATE),
    ],
};

/// Redis. redis 1.8.1 (`src/connection.rs`, `url_to_tcp_connection_info`) reads only `protocol`, which the crate
/// `hot-store` sets itself.
pub(super) const REDIS: Parameters = Parameters {
    honoured: &[],
    ignored: &[
        ("protocol", "Verbatim always uses RESP2; remove the parameter"),
        ("db", "write the number as the path of the URL, as in redis://host:6379/3"),
        ("username", "write the user before the host, as in redis://user:password@host"),
        ("password", "write the password before the host, as in redis://:password@host"),
        ("ssl", REDIS_TLS),
        ("tls", REDIS_TLS),
        ("ssl_cert_reqs", REDIS_TLS),
        ("ssl_ca_certs", REDIS_TLS),
        ("ssl_check_hostname", REDIS_TLS),
        ("ssl_certfile", NO_CLIENT_CERTIFICATE),
        ("ssl_keyfile", NO_CLIENT_CERTIFICATE),
    ],
};

/// PostgreSQL. sqlx-postgres 0.9.0 (`src/options/parse.rs`) reads these, and `application_name`, which the crate
/// `database` sets itself. `sslmode=allow` is left out: `src/connection/tls.rs` takes it for `disable`. libpq knows
/// the others (<https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS>).
pub(super) const POSTGRESQL: Parameters = Parameters {
    honoured: &[
        Honoured {
            names: &["sslmode", "ssl-mode"],
            values: Values::OneOf(&["disable", "prefer", "require", "verify-ca", "verify-full"]),
        },
        Honoured { names: &["sslrootcert", "ssl-root-cert", "ssl-ca"], values: Values::Text },
        Honoured { names: &["sslcert", "ssl-cert"], values: Values::Text },
        Honoured { names: &["sslkey", "ssl-key"], values: Values::Text },
        Honoured { names: &["host", "hostaddr"], values: Values::Text },
        Honoured { names: &["port"], values: Values::Port },
        Honoured { names: &["dbname"], values: Values::Text },
        Honoured { names: &["user"], values: Values::Text },
        Honoured { names: &["password"], values: Values::Text },
        Honoured { names: &["options"], values: Values::Text },
        Honoured { names: &["statement-cache-capacity"], values: Values::Number },
    ],
    ignored: &[
        ("application_name", "Verbatim sets it to the name of the process; remove the parameter"),
        ("client_encoding", "Verbatim always uses UTF8; remove the parameter"),
        ("connect_timeout", "VERBATIM_DATABASE_TIMEOUT is the limit; remove the parameter"),
        ("currentSchema", "use options[search_path]"),
        ("search_path", "use options[search_path]"),
        ("schema", "use options[search_path]"),
        ("target_session_attrs", "use the address of the server that accepts writes"),
        ("load_balance_hosts", "use the address of the server that accepts writes"),
        ("sslpassword", "use a key without a password"),
        ("channel_binding", REMOVE),
        ("fallback_application_name", REMOVE),
        ("gssdelegation", REMOVE),
        ("gssencmode", REMOVE),
        ("gsslib", REMOVE),
        ("keepalives", REMOVE),
        ("keepalives_count", REMOVE),
        ("keepalives_idle", REMOVE),
        ("keepalives_interval", REMOVE),
        ("krbsrvname", REMOVE),
        ("passfile", REMOVE),
        ("replication", REMOVE),
        ("require_auth", REMOVE),
        ("requirepeer", REMOVE),
        ("service", REMOVE),
        ("sslcertmode", REMOVE),
        ("sslcompression", REMOVE),
        ("sslcrl", REMOVE),
        ("sslcrldir", REMOVE),
        ("sslnegotiation", REMOVE),
        ("sslsni", REMOVE),
        ("ssl_max_protocol_version", REMOVE),
        ("ssl_min_protocol_version", REMOVE),
        ("tcp_user_timeout", REMOVE),
    ],
};

/// Parameters of PostgreSQL's sessions that the crate `database` sets on every connection, except `search_path`,
/// which it leaves to the URL.
const OWN_SETTINGS: [&str; 13] = [
    "array_nulls",
    "bytea_output",
    "default_transaction_isolation",
    "enable_seqscan",
    "idle_in_transaction_session_timeout",
    "jit",
    "lock_timeout",
    "plan_cache_mode",
    "row_security",
    "standard_conforming_strings",
    "statement_timeout",
    "TimeZone",
    "transform_null_equals",
];

/// Parameters whose value is a secret.
const SECRETS: [&str; 2] = ["password", "sslpassword"];

impl Parameters {
    /// Checks a query, the text after `?`.
    pub(super) fn check(&self, query: &str) -> Result<(), InvalidParameter> {
        let mut given = BTreeSet::new();
        let mut after_secret = false;
        for (name, value) in pairs(query) {
            let canonical = self.canonical(name, after_secret)?;
            if !given.insert(canonical) {
                return Err(InvalidParameter::Twice(name.to_owned()));
            }
            self.check_value(canonical, value)?;
            after_secret = SECRETS.contains(&canonical);
        }
        Ok(())
    }

    /// The first of the names of a parameter that the client honours.
    fn canonical<'a>(
        &self,
        name: &'a str,
        after_secret: bool,
    ) -> Result<&'a str, InvalidParameter> {
        if let Some(honoured) = self.honoured.iter().find(|it| it.names.contains(&name)) {
            return Ok(honoured.names[0]);
        }
        let takes_options = self.honoured.iter().any(|it| it.names.contains(&"options"));
        if takes_options && of_options(name).is_some() {
            return Ok(name);
        }
        if let Some(&(name, remedy)) = self.ignored.iter().find(|(known, _)| *known == name) {
            return Err(InvalidParameter::Ignored { name, remedy });
        }
        let known = self.honoured.iter().map(|it| it.names[0]);
        Err(InvalidParameter::Unknown {
            name: Some(name.to_owned()).filter(|name| !after_secret && is_name(name)),
            nearest: if after_secret { None } else { nearest(name, known.clone()) },
            known: known.collect(),
        })
    }

    fn check_value(&self, name: &str, value: &str) -> Result<(), InvalidParameter> {
        let Some(honoured) = self.honoured.iter().find(|it| it.names[0] == name) else {
            return Ok(());
        };
        let wanted = match honoured.values {
            Values::Text if !value.is_empty() => return Ok(()),
            Values::Number if value.parse::<u32>().is_ok() => return Ok(()),
            Values::Port if value.parse::<u16>().is_ok_and(|port| port > 0) => return Ok(()),
            Values::OneOf(all) if all.iter().any(|it| it.eq_ignore_ascii_case(value)) => {
                return Ok(());
            }
            Values::Text => "a text".to_owned(),
            Values::Number => "a whole number".to_owned(),
            Values::Port => "1 to 65535".to_owned(),
            Values::OneOf(all) => format!("one of {}", all.join(", ")),
        };
        Err(InvalidParameter::Value { name: name.to_owned(), wanted })
    }
}

/// What the parameters of a PostgreSQL URL must have in common with each other and with the rest of the URL: `given`
/// has the names of the parameters that the URL says before its query.
pub(super) fn check_postgresql(query: &str, given: &[&str]) -> Result<(), InvalidParameter> {
    if let Some((name, _)) = pairs(query)
        .find(|(name, _)| given.contains(name) || (*name == "hostaddr" && given.contains(&"host")))
    {
        return Err(InvalidParameter::Twice(name.to_owned()));
    }
    let find = |names: &[&str]| pairs(query).find(|(name, _)| names.contains(name));
    let mode = find(&["sslmode", "ssl-mode"]).map_or("", |(_, value)| value);
    let verifies = ["verify-ca", "verify-full"].iter().any(|it| it.eq_ignore_ascii_case(mode));
    // libpq verifies with `require`, too, where it has a root certificate. sqlx does not.
    if !verifies && find(&["sslrootcert", "ssl-root-cert", "ssl-ca"]).is_some() {
        let other = "sslmode=verify-ca or sslmode=verify-full";
        return Err(InvalidParameter::Without { name: "sslrootcert", other });
    }
    let sets = |(name, value): (&str, &str), own: &&&str| match of_options(name) {
        Some(of_options) => of_options.eq_ignore_ascii_case(own),
        None => {
            let (value, own) = (value.to_lowercase(), own.to_lowercase());
            // Either may be in the URL: `%3D` is an equals sign.
            name == "options" && ["=", "%3d"].iter().any(|it| value.contains(&format!("{own}{it}")))
        }
    };
    let own = pairs(query).find_map(|pair| OWN_SETTINGS.iter().find(|own| sets(pair, own)));
    own.map_or(Ok(()), |own| Err(InvalidParameter::OwnSetting(own)))
}

/// `lock_timeout` of `options[lock_timeout]`.
fn of_options(name: &str) -> Option<&str> {
    name.strip_prefix("options[")?.strip_suffix(']')
}

fn pairs(query: &str) -> impl Iterator<Item = (&str, &str)> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

/// Whether a text has the form of a parameter's name.
fn is_name(text: &str) -> bool {
    const LONGEST: usize = 40;
    text.len() <= LONGEST
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-.[]".contains(c))
}

fn nearest(name: &str, known: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    // clap uses the same threshold for its suggestions.
    const SIMILAR: f64 = 0.7;
    known
        .map(|it| (strsim::jaro_winkler(name, it), it))
        .filter(|(similarity, _)| *similarity > SIMILAR)
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .map(|(_, it)| it)
}

impl fmt::Display for InvalidParameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { name: None, .. } => f.write_str(
                "it has an unknown parameter, whose name is not shown because it may be a part of a password: \
                 percent-encode passwords (& as %26, ? as %3F)",
            ),
            Self::Unknown { name: Some(name), nearest: Some(nearest), .. } => {
                write!(f, "unknown parameter {name}; did you mean {nearest}?")
            }
            Self::Unknown { name: Some(name), known, .. } if known.is_empty() => {
                write!(f, "unknown parameter {name}: these URLs take no parameters")
            }
            Self::Unknown { name: Some(name), known, .. } => {
                write!(f, "unknown parameter {name}; these URLs take {}", known.join(", "))
            }
            Self::Ignored { name, remedy } => {
                write!(f, "parameter {name} would have no effect: {remedy}")
            }
            Self::Twice(name) => write!(f, "{name} is given twice"),
            Self::Value { name, wanted } => write!(f, "parameter {name} must be {wanted}"),
            Self::Without { name, other } => {
                write!(f, "parameter {name} would have no effect without {other}")
            }
            Self::OwnSetting(name) => {
                write!(f, "options may not set {name}, which Verbatim sets itself")
            }
        }
    }
}

impl std::error::Error for InvalidParameter {}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(parameters: &Parameters, query: &str) -> String {
        parameters.check(query).expect_err(query).to_string()
    }

    #[test]
    fn a_mistyped_parameter_is_refused_with_the_nearest_name() {
        let expected = "unknown parameter sslmod; did you mean sslmode?";
        assert_eq!(refused(&POSTGRESQL, "sslmod=verify-full"), expected);
        let expected = "unknown parameter frame-max; did you mean frame_max?";
        assert_eq!(refused(&AMQP, "frame-max=8192"), expected);
        let expected =
            "unknown parameter sslmod; these URLs take frame_max, channel_max, auth_mechanism";
        assert_eq!(refused(&AMQP, "sslmod=verify-full"), expected);
        let expected = "unknown parameter x: these URLs take no parameters";
        assert_eq!(refused(&REDIS, "x=1"), expected);
    }

    #[test]
    fn a_parameter_that_the_client_ignores_is_refused_with_a_remedy() {
        let text = refused(&AMQP, "cacertfile=/etc/ca.pem");
        assert!(text.starts_with("parameter cacertfile would have no effect: amqps://"), "{text}");
        for (parameters, query, remedy) in [
            (&AMQP, "heartbeat=30", "8 s"),
            (&AMQP, "certfile=/c", "client certificates are not supported"),
            (&REDIS, "db=3", "redis://host:6379/3"),
            (&REDIS, "ssl_cert_reqs=none", "rediss://"),
            (&POSTGRESQL, "channel_binding=require", "remove the parameter"),
            (&POSTGRESQL, "target_session_attrs=read-write", "accepts writes"),
        ] {
            let text = refused(parameters, query);
            assert!(text.contains(remedy), "{query}: {text}");
        }
    }

    #[test]
    fn a_value_that_the_client_does_not_honour_is_refused() {
        for query in ["sslmode=on", "sslmode=allow", "sslmode=", "sslmode"] {
            let expected =
                "parameter sslmode must be one of disable, prefer, require, verify-ca, verify-full";
            assert_eq!(refused(&POSTGRESQL, query), expected, "{query}");
        }
        assert_eq!(refused(&POSTGRESQL, "port=0"), "parameter port must be 1 to 65535");
        assert_eq!(refused(&AMQP, "frame_max=big"), "parameter frame_max must be a whole number");
        assert!(AMQP.check("frame_max=8192&auth_mechanism=PLAIN&channel_max=9").is_ok());
        assert!(POSTGRESQL.check("sslmode=disable&options[geqo]=off&&host=/run").is_ok());
    }

    #[test]
    fn a_parameter_given_twice_is_refused_under_each_of_its_names() {
        for query in ["sslmode=require&sslmode=disable", "sslmode=require&ssl-mode=require"] {
            assert!(refused(&POSTGRESQL, query).ends_with("mode is given twice"), "{query}");
        }
        assert_eq!(refused(&AMQP, "frame_max=1&frame_max=1"), "frame_max is given twice");
        let twice = check_postgresql("hostaddr=10.0.0.1", &["host"]).expect_err("two hosts");
        assert_eq!(twice.to_string(), "hostaddr is given twice");
        assert!(POSTGRESQL.check("options[a]=1&options[b]=1").is_ok());
    }

    #[test]
    fn a_root_certificate_that_verifies_nothing_is_refused() {
        for mode in ["", "&sslmode=require", "&ssl-mode=prefer"] {
            let query = format!("sslrootcert=/ca.pem{mode}");
            let error = check_postgresql(&query, &[]).expect_err(&query).to_string();
            assert!(error.contains("sslmode=verify-full"), "{error}");
        }
        assert!(check_postgresql("sslmode=verify-ca&sslrootcert=/ca.pem", &[]).is_ok());
    }

    #[test]
    fn options_that_the_fleet_sets_itself_are_refused() {
        for query in ["options[lock_timeout]=1s", "options=-c%20Lock_Timeout%3D1s"] {
            let error = check_postgresql(query, &[]).expect_err(query);
            assert_eq!(error, InvalidParameter::OwnSetting("lock_timeout"), "{query}");
        }
        assert!(check_postgresql("options[search_path]=verbatim", &[]).is_ok());
    }

    #[test]
    fn a_name_that_may_be_a_part_of_a_password_is_not_shown() {
        for query in ["password=s3&cret=1", "user=u&password=s3&cret", "cret%40=1", "4cret"] {
            let text = refused(&POSTGRESQL, query);
            assert!(!text.contains("cret") && text.contains("%26"), "{query}: {text}");
        }
    }
}
