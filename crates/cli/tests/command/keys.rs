//! `verbatim keys`, and the role that `verbatim setup` creates for the API.

use access::ApiKey;
use serde_json::json;
use testkit::TestEnv;

use crate::support::{Verbatim, prepared};

const SECRET: &str = "a-secret-of-more-than-32-characters";

fn api_url(env: &TestEnv, role: &str) -> String {
    let (_, address) = env.database_url.rsplit_once('@').unwrap();
    format!("postgres://{role}:p%40ss@{address}")
}

fn with_api(env: &TestEnv) -> Verbatim {
    Verbatim::of(env)
        .with("API_DATABASE_URL", &api_url(env, &env.api_role()))
        .with("API_OPERATOR_DATABASE_URL", &api_url(env, &env.operator_role()))
        .with("API_SECRET", SECRET)
}

#[tokio::test]
async fn setup_creates_the_role_of_the_api_once_and_shows_no_secret() {
    let env = TestEnv::new().await;
    let verbatim = with_api(&env);
    let first = verbatim.json(&["setup"]).await;
    let roles = [env.api_role(), env.operator_role()];
    let created = roles.clone().map(|name| json!({ "name": name, "state": "created" }));
    assert_eq!(first["api_roles"], json!(created));
    let second = verbatim.run(&["setup"]).await;
    assert_eq!(second.code, 0, "{second:?}");
    for name in roles {
        assert!(second.out.contains(&format!("{name}: already there")), "{second:?}");
    }
    env.psql(&format!("GRANT SELECT ON audit_log TO {}", env.api_role())).await.unwrap();
    let third = verbatim.json(&["setup"]).await;
    let states = third["api_roles"].as_array().unwrap().iter().map(|it| &it["state"]);
    assert_eq!(states.collect::<Vec<_>>(), ["updated", "already_there"]);
    let same = with_api(&env).with("API_OPERATOR_DATABASE_URL", &api_url(&env, &env.api_role()));
    let ran = same.run(&["setup"]).await;
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.err.contains("both name the same user"), "{ran:?}");

    // A role with another password, and a secret that is too short.
    let (head, tail) = env.database_url.rsplit_once('@').unwrap();
    let wrong =
        format!("{}:hunter2@{tail}", head.replace(head, &format!("postgres://{}", env.api_role())));
    let ran = with_api(&env).with("API_DATABASE_URL", &wrong).run(&["setup"]).await;
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(!ran.err.contains("hunter2") && !ran.err.contains(SECRET), "{ran:?}");
    let ran = with_api(&env).with("API_SECRET", "hunter2").run(&["setup"]).await;
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.err.contains("API_SECRET: it has 7 bytes; it must have at least 32"), "{ran:?}");
    assert!(!ran.err.contains("hunter2"), "{ran:?}");
    for (name, missing) in [("API_SECRET", "API_DATABASE_URL"), ("API_DATABASE_URL", "API_SECRET")]
    {
        let value = if name == "API_SECRET" { SECRET } else { "postgres://u@127.0.0.1:9/d" };
        let ran = Verbatim::of(&env).with(name, value).run(&["setup"]).await;
        assert_ne!(ran.code, 0, "{ran:?}");
        assert!(ran.err.contains(&format!("{missing} is not set, but {name} is")), "{ran:?}");
    }
}

#[tokio::test]
async fn a_key_is_created_listed_rotated_and_revoked() {
    let (_env, verbatim) = prepared().await;
    let create =
        ["keys", "create", "--tenant", "acme", "--name", "CRM", "--scope", "write,read,read"];
    let created = verbatim.json(&create).await;
    let key = ApiKey::parse(created["key"].as_str().unwrap()).unwrap();
    assert_eq!(created["id"], key.id());
    assert_eq!(created["scopes"], json!(["read", "write"]));
    let text = verbatim.run(&[
        "keys",
        "create",
        "--every-tenant",
        "--name",
        "on call",
        "--scope",
        "operate",
    ]);
    let text = text.await.out;
    assert!(text.contains("for every tenant") && text.contains("it is not stored"), "{text}");

    let listed = verbatim.json(&["keys", "list", "--tenant", "acme"]).await;
    assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");
    assert_eq!(listed[0]["name"], "CRM");
    let all = verbatim.run(&["keys", "list"]).await.out;
    assert!(all.contains("every tenant") && all.contains("CRM"), "{all}");
    assert!(!all.contains(key.expose()), "{all}");

    let rotated = verbatim.json(&["keys", "rotate", &format!("vbt_{}", key.id())]).await;
    let new = ApiKey::parse(rotated["key"].as_str().unwrap()).unwrap();
    assert_eq!(new.id(), key.id());
    assert_ne!(new.secret_hash(), key.secret_hash());
    let revoked = verbatim.run(&["keys", "revoke", key.id(), "--why", "leaked"]).await;
    assert_eq!(revoked.code, 0, "{revoked:?}");
    for arguments in [["keys", "revoke", key.id()], ["keys", "rotate", key.id()]] {
        let again = verbatim.run(&arguments).await;
        assert_eq!(again.code, 1, "{again:?}");
        assert!(again.err.contains("or it is revoked"), "{again:?}");
    }
    // A whole key on the command line is not repeated.
    let pasted = verbatim.run(&["keys", "revoke", new.expose()]).await;
    assert_eq!(pasted.code, 2, "{pasted:?}");
    let star = ["keys", "create", "--tenant", "*", "--name", "n", "--scope", "read"];
    let refused = verbatim.run(&star).await;
    assert!(refused.err.contains("use --every-tenant"), "{refused:?}");
    let past = [&create[..], &["--expires", "2020-01-01T00:00:00Z"]].concat();
    assert_eq!(verbatim.run(&past).await.code, 2);
}

#[tokio::test]
async fn the_audit_log_is_listed_and_a_removed_entry_is_found() {
    let (env, verbatim) = prepared().await;
    let verbatim = verbatim.with("VERBATIM_ACTOR", "night shift");
    for name in ["one", "two"] {
        let create = ["keys", "create", "--tenant", "acme", "--name", name, "--scope", "read"];
        verbatim.json(&create).await;
    }
    let listed = verbatim.json(&["audit", "list", "--tenant", "acme", "--action", "key"]).await;
    let actors: Vec<_> = listed.as_array().unwrap().iter().map(|it| &it["actor"]).collect();
    assert_eq!(actors, ["night shift", "night shift"]);
    let none = verbatim.run(&["audit", "list", "--since", "2036-01-01T00:00:00Z"]).await;
    assert_eq!((none.code, none.out.as_str()), (0, "no entries match\n"));
    let report = verbatim.json(&["audit", "verify"]).await;
    assert_eq!((&report["entries"], &report["chains"]), (&json!(2), &json!(2)), "{report}");
    env.psql("ALTER TABLE audit_log DISABLE TRIGGER USER; DELETE FROM audit_log WHERE detail->>'name' = 'one'")
        .await
        .unwrap();
    let ran = verbatim.run(&["audit", "verify"]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.out.contains("entries 1 to 1 of chain") && ran.out.contains("1 finding"),
        "{ran:?}"
    );
    let wrong = verbatim.run(&["audit", "verify", "--checkpoint", "7:abc"]).await;
    assert_eq!(wrong.code, 2, "{wrong:?}");
}
