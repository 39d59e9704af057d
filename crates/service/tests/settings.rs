//! The sources of a setting's value, and the errors for invalid values.

#![expect(clippy::expect_used, reason = "helpers of tests, outside of the tests themselves")]

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use domain::fleet;
use domain::ids::TenantId;
use service::settings::{
    AmqpUserSettings, ConnectionSettings, LogFormat, ProcessSettings, Sources, Stop,
};
use tempfile::TempDir;

#[derive(Debug, clap::Args)]
struct Settings {
    #[command(flatten)]
    servers: ConnectionSettings,

    #[command(flatten)]
    users: AmqpUserSettings,

    /// Maximum number of messages in a batch
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=5000))]
    batch_size: u32,

    /// How long an incomplete batch waits for more messages
    #[arg(long, default_value = "5ms", value_parser = service::settings::duration)]
    linger: Duration,

    /// Maximum total size of unacknowledged bodies
    #[arg(long, default_value = "64MiB", value_parser = service::settings::bytes)]
    max_inflight_bytes: usize,

    /// A setting that no other process has
    #[arg(long, default_value_t = 3)]
    own_number: u32,
}

const AMQP: &str = "amqp://guest:s3cret@rabbit:5672/%2f";
const REDIS: &str = "redis://:s3cret@redis:6379/0";
const DATABASE: &str = "postgres://verbatim:s3cret@db:5432/verbatim";

/// The sources of a process's settings, with the three URLs in the environment.
struct Start {
    directory: TempDir,
    sources: Sources,
}

impl Start {
    fn new() -> Self {
        let sources =
            Sources { arguments: vec!["message-save-worker".into()], ..Sources::default() };
        let directory = tempfile::tempdir().expect("a directory");
        Self { directory, sources }
            .env("AMQP_URL", AMQP)
            .env("REDIS_URL", REDIS)
            .env("DATABASE_URL", DATABASE)
    }

    fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.sources.environment.insert(name.into(), value.into());
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.sources.environment.remove(&OsString::from(name));
        self
    }

    fn flags(mut self, flags: &[&str]) -> Self {
        self.sources.arguments.extend(flags.iter().map(OsString::from));
        self
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).expect("writable");
        path
    }

    fn file(self, yaml: &str) -> Self {
        let path = self.write("fleet.yaml", yaml);
        self.env("VERBATIM_CONFIG", path)
    }

    fn load(&self) -> Result<(ProcessSettings, Settings), Stop> {
        service::load_settings::<Settings>(fleet::MESSAGE_SAVE_WORKER, &self.sources)
            .map(|(common, own, _)| (common, own))
    }

    fn own(&self) -> Settings {
        self.load().unwrap_or_else(|stop| panic!("{stop}")).1
    }

    fn process(&self) -> ProcessSettings {
        self.load().unwrap_or_else(|stop| panic!("{stop}")).0
    }

    /// The error, without the directory's name.
    fn error(&self) -> String {
        match self.load() {
            Err(Stop::Invalid(error)) => {
                let text = error.to_string();
                assert!(!text.contains("s3cret"), "a secret in: {text}");
                text.replace(&format!("{}/", self.directory.path().display()), "")
            }
            other => panic!("expected an error, got {other:?}"),
        }
    }
}

#[test]
fn defaults_are_in_the_binary() {
    let start = Start::new();
    let (own, process) = (start.own(), start.process());
    assert_eq!(own.batch_size, 500);
    assert_eq!(own.linger, Duration::from_millis(5));
    assert_eq!(own.max_inflight_bytes, 64 << 20);
    assert_eq!(process.listen.listen.to_string(), "0.0.0.0:9464");
    assert_eq!((process.drain_deadline, process.threads), (Duration::from_secs(25), 2));
    assert_eq!((process.log.log_level.as_str(), process.log.log_format), ("info", LogFormat::Auto));
}

#[test]
fn a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default() {
    let start = Start::new().file("message-save-worker:\n  batch_size: 100\n");
    assert_eq!(start.own().batch_size, 100);
    let start = start.env("VERBATIM_BATCH_SIZE", "200");
    assert_eq!(start.own().batch_size, 200);
    let start = start.flags(&["--batch-size", "300"]);
    assert_eq!(start.own().batch_size, 300);
}

#[test]
fn an_empty_variable_is_not_set() {
    let start = Start::new().env("VERBATIM_BATCH_SIZE", "").env("VERBATIM_CONFIG", "");
    assert_eq!(start.own().batch_size, 500);
}

#[test]
fn the_config_flag_beats_the_config_variable() {
    let start = Start::new().file("log_level: warn\n");
    let other = start.write("other.yaml", "log_level: debug\n");
    let start = start.flags(&["--config", other.to_str().expect("UTF-8")]);
    assert_eq!(start.process().log.log_level, "debug");
}

#[test]
fn one_file_holds_the_settings_of_every_process() {
    let start = Start::new().file(
        "log_format: json\n\
         message-save-worker:\n  batch_size: 7\n  log_level: debug\n\
         statistics-worker:\n  retention: any value\n\
         persistence-migration-worker:\n",
    );
    assert_eq!(start.own().batch_size, 7);
    let process = start.process();
    assert_eq!(
        (process.log.log_format, process.log.log_level.as_str()),
        (LogFormat::Json, "debug")
    );
}

#[test]
fn the_section_of_a_process_beats_the_top_level() {
    let start = Start::new().file("message-save-worker:\n  log_level: debug\nlog_level: warn\n");
    assert_eq!(start.process().log.log_level, "debug");
}

#[test]
fn several_brokers_come_from_a_comma_list_or_a_yaml_list() {
    let start = Start::new().env("AMQP_URL", "amqp://one,amqps://two");
    let hosts: Vec<String> =
        start.own().servers.amqp.amqp_url.iter().map(ToString::to_string).collect();
    assert_eq!(hosts, ["amqp://one", "amqps://two"]);
    let start = Start::new().without("AMQP_URL").file("amqp_url:\n  - amqp://a\n  - amqp://b\n");
    assert_eq!(start.own().servers.amqp.amqp_url.len(), 2);
}

#[test]
fn users_and_their_tenants_come_from_a_text_or_a_mapping_of_the_file() {
    let text = "crm-bot=acme,globex%3Beu;gateway=*";
    let starts = [
        Start::new().env("VERBATIM_AMQP_USERS", text),
        Start::new().flags(&["--amqp-users", text]),
        Start::new().file(&format!("amqp_users: {text}\n")),
        Start::new().file("amqp_users: {crm-bot: [acme, globex;eu], gateway: [\"*\"]}\n"),
        Start::new()
            .file("amqp_users:\n  crm-bot:\n    - acme\n    - globex;eu\n  gateway: \"*\"\n"),
        Start::new().file(
            "message-save-worker:\n  amqp_users: {crm-bot: [acme, globex;eu], gateway: [\"*\"]}\n",
        ),
    ];
    for start in starts {
        let users = start.own().users.amqp_users.expect("a mapping");
        let may = |user, tenant| users.check(Some(user), &TenantId::new(tenant).expect("an id"));
        for (user, tenant, is_listed) in [
            ("crm-bot", "acme", true),
            ("crm-bot", "globex;eu", true),
            ("crm-bot", "initech", false),
            ("gateway", "initech", true),
            ("guest", "acme", false),
        ] {
            assert_eq!(may(user, tenant).is_ok(), is_listed, "{user} {tenant}");
        }
    }
    assert!(Start::new().own().users.amqp_users.is_none());
    assert!(Start::new().env("VERBATIM_AMQP_USERS", "").own().users.amqp_users.is_none());
}

#[test]
fn invalid_users_are_refused_with_the_setting_the_fault_and_the_remedy() {
    let cases = [
        Start::new().env("VERBATIM_AMQP_USERS", "crm-bot"),
        Start::new().flags(&["--amqp-users", "crm-bot=acme,*"]),
        Start::new().file("amqp_users: {}\n"),
        Start::new().file("log_level: info\namqp_users: {crm-bot: []}\n"),
        Start::new().file("amqp_users: [crm-bot, gateway]\n"),
        Start::new().file("amqp_users:\n  crm-bot:\n    tenants: [acme]\n"),
        Start::new().env("VERBATIM_AMQP_USERS", "crm-bot=100%"),
    ];
    let errors: Vec<String> = cases.iter().map(Start::error).collect();
    insta::assert_snapshot!(errors.join("\n"), @r#"
    environment variable VERBATIM_AMQP_USERS: "crm-bot": "crm-bot" is not of the form user=tenant,tenant: separate users by ;
    flag --amqp-users: "crm-bot=acme,*": the user "crm-bot" has * beside other tenants: * alone is every tenant
    fleet.yaml:1: amqp_users: "": it lists no user, so no action would be accepted: list one, or remove the setting
    fleet.yaml:2: amqp_users: "crm-bot=": the user "crm-bot" has no tenant: list its tenants, or * for every tenant, or leave the user out
    fleet.yaml:1: amqp_users: it maps users to tenants, as in `crm-bot: [acme, globex]`
    fleet.yaml:2: amqp_users.crm-bot: a user has a list of tenants, as in `crm-bot: [acme, globex]`
    environment variable VERBATIM_AMQP_USERS: "crm-bot=100%": "100%" has a % that begins no percent-encoded UTF-8: write % itself as %25
    "#);
}

#[test]
fn a_secret_may_come_from_a_file() {
    let start = Start::new().without("AMQP_URL");
    let secret = start.write("amqp", &format!("{AMQP}\n"));
    let start = start.env("AMQP_URL_FILE", secret.clone());
    assert_eq!(start.own().servers.amqp.amqp_url[0].expose(), AMQP);
    let yaml = format!("amqp_url_file: {}\n", secret.display());
    let start = start.without("AMQP_URL_FILE").file(&yaml);
    assert_eq!(start.own().servers.amqp.amqp_url[0].expose(), AMQP);
}

#[test]
fn a_secret_that_is_given_twice_is_refused() {
    let start = Start::new().env("DATABASE_URL_FILE", "/run/secrets/database");
    assert_eq!(
        start.error(),
        "both environment variable DATABASE_URL and environment variable DATABASE_URL_FILE are \
         set: set only one of them"
    );
    let start = Start::new().without("REDIS_URL");
    let secret = start.write("redis", REDIS);
    let yaml = format!("redis_url: {REDIS}\nredis_url_file: {}\n", secret.display());
    assert_eq!(
        start.file(&yaml).error(),
        "both fleet.yaml:1: redis_url and fleet.yaml:2: redis_url_file are set: set only one of them"
    );
}

#[test]
fn a_missing_file_of_a_secret_is_named() {
    let start = Start::new().without("REDIS_URL").env("REDIS_URL_FILE", "/nowhere/redis");
    assert_eq!(
        start.error(),
        "environment variable REDIS_URL_FILE: cannot read /nowhere/redis: \
         No such file or directory (os error 2)"
    );
}

#[test]
fn every_missing_url_is_named_with_an_example() {
    let start = Start::new().without("AMQP_URL").without("DATABASE_URL");
    insta::assert_snapshot!(start.error(), @r#"
    AMQP_URL is not set. Set it, for example to amqp://user:password@host:5672/vhost (or AMQP_URL_FILE to the path of a file that holds it, or amqp_url in the YAML file, or --amqp-url)
    DATABASE_URL is not set. Set it, for example to postgres://user:password@host:5432/verbatim (or DATABASE_URL_FILE to the path of a file that holds it, or database_url in the YAML file, or --database-url)
    "#);
}

#[test]
fn an_invalid_value_is_named_with_its_source() {
    let cases = [
        Start::new().env("VERBATIM_BATCH_SIZE", "many"),
        Start::new().flags(&["--batch-size", "5001"]),
        Start::new().file("message-save-worker:\n  batch_size: 0\n"),
        Start::new().env("VERBATIM_LINGER", "30"),
        Start::new().file("log_format: xml\n"),
        Start::new().flags(&["--log-level=inof"]),
        Start::new().env("VERBATIM_LISTEN", "9464"),
        Start::new().file("log_level: [info, debug]\n"),
        Start::new().file("log_level:\n  deep: info\n"),
        Start::new().file("message-save-worker: fast\n"),
        Start::new().flags(&["--max-inflight-bytes", "64MB"]),
    ];
    let errors: Vec<String> = cases.iter().map(Start::error).collect();
    insta::assert_snapshot!(errors.join("\n"), @r#"
    environment variable VERBATIM_BATCH_SIZE: "many": invalid digit found in string
    flag --batch-size: "5001": 5001 is not in 1..=5000
    fleet.yaml:2: batch_size: "0": 0 is not in 1..=5000
    environment variable VERBATIM_LINGER: "30": a duration needs a unit, such as 30s or 30ms
    fleet.yaml:1: log_format: "xml": it must be one of auto, json, pretty
    flag --log-level: "inof": "inof" is not a level; use one of off, error, warn, info, debug, trace
    environment variable VERBATIM_LISTEN: "9464": invalid socket address syntax
    fleet.yaml:1: log_level: it takes one value, not a list
    fleet.yaml:1: log_level: it takes a value, not a section or list
    fleet.yaml:1: message-save-worker: it is a section: put the settings below it, indented
    flag --max-inflight-bytes: "64MB": unknown unit MB; use B, KiB, MiB or GiB
    "#);
}

#[test]
fn an_invalid_url_is_named_but_not_shown() {
    let cases = [
        Start::new().env("DATABASE_URL", "mysql://u:s3cret@h/d"),
        Start::new().env("REDIS_URL", "redis://:s3@s3cret@h"),
        Start::new().file("amqp_url: guest:s3cret@rabbit\n"),
        Start::new().flags(&["--amqp-url", "guest:s3cret@rabbit"]),
        Start::new().flags(&["--database-url=u:s3cret@db"]),
        Start::new().env("DATABASE_URL", "postgres://u:s3cret@h/d?sslmod=verify-full"),
        Start::new().env("DATABASE_URL", "postgres://u:s3cret@h/d?sslmode=on"),
        Start::new().env("DATABASE_URL", "postgres://u:s3cret@h/d?sslmode=require&sslmode=disable"),
        Start::new()
            .env("AMQP_URL", "amqps://u:s3cret@a/v,amqps://u:s3cret@b/v?cacertfile=/ca.pem"),
        Start::new().env("REDIS_URL", "rediss://:s3cret@h/0?ssl_cert_reqs=none"),
        Start::new().file("database_url: postgres://h/d?password=s3&cret\n"),
    ];
    let errors: Vec<String> = cases.iter().map(Start::error).collect();
    insta::assert_snapshot!(errors.join("\n"), @r#"
    environment variable DATABASE_URL: it must start with postgres:// or postgresql://
    environment variable REDIS_URL: it has an @ after the host: percent-encode user name and password (@ as %40, / %2F, ? %3F, # %23, : %3A, comma %2C)
    fleet.yaml:1: amqp_url: it must start with amqp:// or amqps://
    flag --amqp-url: it must start with amqp:// or amqps://
    flag --database-url: it must start with postgres:// or postgresql://
    environment variable DATABASE_URL: unknown parameter sslmod; did you mean sslmode?
    environment variable DATABASE_URL: parameter sslmode must be one of disable, prefer, require, verify-ca, verify-full
    environment variable DATABASE_URL: sslmode is given twice
    environment variable AMQP_URL: parameter cacertfile would have no effect: amqps:// verifies the server's certificate with the certificates of the operating system, or with those that the environment variable SSL_CERT_FILE names
    environment variable REDIS_URL: parameter ssl_cert_reqs would have no effect: rediss:// verifies the server's certificate with the certificates of the operating system, or with those that the environment variable SSL_CERT_FILE names
    fleet.yaml:1: database_url: it has an unknown parameter, whose name is not shown because it may be a part of a password: percent-encode passwords (& as %26, ? as %3F)
    "#);
}

#[test]
fn an_unknown_name_is_refused_with_the_nearest_known_one() {
    let cases = [
        Start::new().file("log_levle: info\n"),
        Start::new().file("message-save-worker:\n  batchsize: 5\n"),
        Start::new().file("message-saver:\n  batch_size: 5\n"),
        Start::new().file("own_number: 5\n"),
        Start::new().file("xyzzy: 5\n"),
        Start::new().file("config: other.yaml\n"),
        Start::new().flags(&["--batchsize", "5"]),
    ];
    let errors: Vec<String> = cases.iter().map(Start::error).collect();
    insta::assert_snapshot!(errors.join("\n"), @r#"
    fleet.yaml:1: log_levle: unknown setting; did you mean log_level?
    fleet.yaml:2: batchsize: unknown setting; did you mean batch_size?
    fleet.yaml:1: message-saver: unknown setting; did you mean message-save-worker?
    fleet.yaml:1: own_number: unknown setting at the top level: put it into the section message-save-worker
    fleet.yaml:1: xyzzy: unknown setting
    fleet.yaml:1: config: unknown setting in a file: use the flag --config or VERBATIM_CONFIG
    unexpected argument '--batchsize' found; a similar argument exists: '--batch-size'
    "#);
}

#[test]
fn a_missing_or_invalid_yaml_file_is_refused() {
    let start = Start::new().env("VERBATIM_CONFIG", "/nowhere/fleet.yaml");
    assert_eq!(
        start.error(),
        "cannot read the configuration file /nowhere/fleet.yaml: \
         No such file or directory (os error 2)"
    );
    let start = Start::new().file("database_url: postgres://u:s3cret@h/d\nlog_level: [info\n");
    assert!(start.error().starts_with("fleet.yaml:"), "{}", start.error());
}

#[test]
fn settings_can_be_logged_without_their_secrets() {
    let start = Start::new().env("DATABASE_URL", "postgres://u:s3cret@primary/d");
    let text = format!("{:?} {:?}", start.own(), start.process());
    assert!(!text.contains("s3cret"), "{text}");
    assert!(text.contains("amqp://***@rabbit:5672") && text.contains("primary"), "{text}");
}

#[test]
fn help_shows_every_setting_with_default_and_variable_and_no_secret() {
    let file = "message-save-worker:\n  batch_size: 77\nunknown: 1\n";
    let start = Start::new().file(file).flags(&["--help"]);
    let Err(Stop::Answer(help)) = start.load() else { panic!("no help") };
    let help = help.to_string();
    assert!(!help.contains("s3cret") && !help.contains("77"), "{help}");
    assert!(help.starts_with("Consumes conversation.save_message"), "{help}");
    for text in [
        "--amqp-url",
        "AMQP_URL",
        "--database-url",
        "VERBATIM_BATCH_SIZE",
        "[default: 500]",
        "VERBATIM_MAX_INFLIGHT_BYTES",
        "[default: 64MiB]",
        "VERBATIM_LISTEN",
        "[default: 0.0.0.0:9464]",
        "VERBATIM_DRAIN_DEADLINE",
        "[default: 25s]",
        "VERBATIM_LOG_FORMAT",
        "--config",
    ] {
        assert!(help.contains(text), "{text} is missing in\n{help}");
    }
}
