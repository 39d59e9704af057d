//! The remedies for what real servers reply.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use broker::topology::{self, TopologyError};
use database::Actor;
use service::settings::{AmqpSettings, DatabaseSettings, ServerUrl};
use stores::{Broker, COMMAND_TIMEOUT, DatabaseServer, Fault, RedisServer};
use testkit::TestEnv;

const LOGIN: &str = "correct user and password";
const PERMISSION: &str = "give this user the permission that it lacks";

fn assert_remedy(fault: &Fault, remedy: &str) {
    let text = fault.to_string();
    assert!(text.lines().last().unwrap().contains(remedy), "{text}");
}

fn database(url: &str) -> DatabaseSettings {
    DatabaseSettings { database_url: ServerUrl::postgresql(url).unwrap() }
}

/// The URL with another user.
fn with_user(url: &str, user: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap();
    let (_, server) = rest.split_once('@').unwrap_or(("", rest));
    format!("{scheme}://{user}@{server}")
}

#[tokio::test]
async fn a_refusal_of_postgresql_has_its_remedy() {
    let env = TestEnv::new().await;
    let (url, name) = (&env.database_url, &env.name);
    let opened = async |url: &str| DatabaseServer::open(&database(url)).await.err().unwrap();
    let missing = url.replace(name.as_str(), "missing");
    assert_remedy(&opened(&missing).await, "create the database");
    assert_remedy(&opened(&with_user(url, "nobody:wrong")).await, LOGIN);

    let server = DatabaseServer::of_command(&database(url), COMMAND_TIMEOUT).unwrap();
    server.database.migrate(|| {}).await.unwrap();
    env.psql(&format!("CREATE ROLE {name} LOGIN PASSWORD 'right'")).await.unwrap();
    assert_remedy(&opened(&with_user(url, &format!("{name}:right"))).await, PERMISSION);
    env.psql(&format!("DROP ROLE {name}")).await.unwrap();

    let read_only = format!("ALTER DATABASE {name} SET default_transaction_read_only = on");
    env.psql(&read_only).await.unwrap();
    let server = DatabaseServer::of_command(&database(url), COMMAND_TIMEOUT).unwrap();
    let actor = Actor { name: "test".to_owned(), run: uuid::Uuid::nil(), tenant: None };
    let error = server.database.record_run(&actor, "test", &serde_json::json!({})).await;
    assert_remedy(&server.failure(&error.unwrap_err()), "accepts writes");
}

#[tokio::test]
async fn a_refusal_of_rabbitmq_has_its_remedy() {
    let env = TestEnv::new().await;
    let (server, _) = env.amqp_url.rsplit_once('/').unwrap();
    for (url, remedy) in [
        (with_user(&env.amqp_url, "nobody:wrong"), LOGIN),
        (format!("{server}/missing"), "create the virtual host"),
    ] {
        let broker = Broker::of(&AmqpSettings { amqp_url: vec![ServerUrl::amqp(&url).unwrap()] });
        let broker = broker.unwrap();
        let Err(TopologyError::Unavailable(error)) = topology::verify(&broker.endpoints).await
        else {
            panic!("{url} can be used");
        };
        assert_remedy(&broker.failure(&error), remedy);
    }
}

#[tokio::test]
async fn a_refusal_of_redis_has_its_remedy() {
    let env = TestEnv::new().await;
    for node in env.redis().nodes() {
        let reply = node.redis(&["ACL", "SETUSER", "limited", "on", ">right", "+ping"]).await;
        assert_eq!(reply.unwrap(), "+OK");
    }
    let stores = DatabaseServer::of_command(&database(&env.database_url), COMMAND_TIMEOUT);
    let stores = stores.unwrap();
    for (user, remedy) in [("limited:wrong", LOGIN), ("limited:right", PERMISSION)] {
        let urls = env.redis_url.split(',').map(|url| with_user(url, user));
        let urls: Vec<_> = urls.map(|url| ServerUrl::redis(&url).unwrap()).collect();
        let redis = RedisServer::reading(&urls, &stores.database).unwrap();
        let error = redis.hot.probe().await.unwrap_err();
        assert_remedy(&redis.failure(&error), remedy);
    }
}
