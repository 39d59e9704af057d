//! `--help` and errors of the command line.

use crate::support::Verbatim;

#[tokio::test]
async fn without_arguments_it_lists_its_commands() {
    let verbatim = Verbatim::default();
    let ran = verbatim.run(&[]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.out, verbatim.run(&["--help"]).await.out);
    for command in
        ["setup", "publish", "lint", "conversation", "queues", "dead-letters", "verify", "trace"]
    {
        assert!(ran.out.contains(&format!("\n  {command} ")), "{command}: {ran:?}");
    }
}

#[tokio::test]
async fn a_mistyped_command_or_flag_exits_with_2_and_suggests_the_right_one() {
    let verbatim = Verbatim::default();
    let ran = verbatim.run(&["queue"]).await;
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.err.contains("queues"), "{ran:?}");
    let ran = verbatim.run(&["lint", "-", "--jsn"]).await;
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.err.contains("--json"), "{ran:?}");
    let ran = verbatim.run(&["conversation", "list", "--status", "open"]).await;
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.err.contains("active, closing, archived"), "{ran:?}");
}

#[tokio::test]
async fn help_shows_no_secret_from_the_environment() {
    let verbatim = Verbatim::default().with("AMQP_URL", "amqp://user:hunter2@host");
    let ran = verbatim.run(&["queues", "--help"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.out.contains("AMQP_URL") && !ran.out.contains("hunter2"), "{ran:?}");
}
