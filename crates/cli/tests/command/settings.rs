//! Where settings come from, and the errors for settings that are missing or wrong.

use testkit::TestEnv;

use crate::support::{Verbatim, prepared};

#[tokio::test]
async fn each_command_needs_only_the_servers_that_it_uses() {
    let verbatim = Verbatim::default();
    for (arguments, needed) in [
        (&["setup"][..], &["AMQP_URL", "DATABASE_URL"][..]),
        (&["publish", "-"], &["AMQP_URL"]),
        (&["queues"], &["AMQP_URL"]),
        (&["conversation", "list"], &["DATABASE_URL"]),
        (&["conversation", "show", "--tenant", "t", "c"], &["DATABASE_URL"]),
        (&["dead-letters", "list"], &["DATABASE_URL"]),
        (&["verify"], &["AMQP_URL", "REDIS_URL", "DATABASE_URL"]),
        (&["trace", "m"], &["DATABASE_URL"]),
        (&["dead-letters", "show", "00000000-0000-0000-0000-000000000000"], &["DATABASE_URL"]),
    ] {
        let ran = verbatim.run(arguments).await;
        assert_eq!(ran.code, 2, "{ran:?}");
        let named: Vec<_> = ["AMQP_URL", "REDIS_URL", "DATABASE_URL"]
            .into_iter()
            .filter(|name| ran.err.contains(&format!("{name} is not set")))
            .collect();
        assert_eq!(named, needed, "{arguments:?}: {ran:?}");
    }
}

#[tokio::test]
async fn the_fleets_yaml_file_serves_the_command_line_too() {
    let env = TestEnv::new().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("fleet.yaml");
    let yaml = format!(
        "amqp_url: {}\ndatabase_url: {}\nallow_fsync_off: true\nlog_level: info\nmessage-save-worker:\n  \
         batch_size: 5\n",
        env.amqp_url, env.database_url
    );
    std::fs::write(&file, yaml).unwrap();
    let file = file.to_str().unwrap();
    let ran = Verbatim::default().run(&["setup", "--config", file]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let ran = Verbatim::default().with("VERBATIM_CONFIG", file).run(&["queues"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
}

#[tokio::test]
async fn a_database_without_a_schema_is_reported_to_need_setup() {
    let env = TestEnv::new().await;
    for arguments in [["conversation", "list"], ["dead-letters", "list"]] {
        let ran = Verbatim::of(&env).run(&arguments).await;
        assert_eq!(ran.code, 1, "{ran:?}");
        assert!(ran.err.contains("run `verbatim setup`"), "{ran:?}");
    }
}

#[tokio::test]
async fn a_database_that_does_not_exist_is_named() {
    let env = TestEnv::new().await;
    let url = format!("{}_nowhere", env.database_url);
    let ran = Verbatim::of(&env).with("DATABASE_URL", &url).run(&["conversation", "list"]).await;
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(ran.err.contains("_nowhere\" does not exist"), "{ran:?}");
    assert!(ran.err.contains("create the database"), "{ran:?}");
}

#[tokio::test]
async fn a_closed_pipe_is_not_an_error() {
    let (_env, verbatim) = prepared().await;
    for arguments in [&["queues"][..], &["dead-letters", "export", "--all"]] {
        let mut child = verbatim.command(arguments).spawn().unwrap();
        drop(child.stdout.take());
        let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
        let output = output.await.unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert_eq!(output.stderr, b"", "{output:?}");
    }
}

#[tokio::test]
async fn colours_are_used_only_where_requested() {
    let (_env, verbatim) = prepared().await;
    let colours = |out: &str| out.contains('\u{1b}');
    assert!(!colours(&verbatim.run(&["queues"]).await.out), "a pipe has none");
    assert!(colours(&verbatim.run(&["queues", "--color", "always"]).await.out));
    let always = ["queues", "--json", "--color", "always"];
    assert!(!colours(&verbatim.run(&always).await.out), "JSON has none");
}
