//! A short seeded run of `cargo xtask chaos`; the long one with `--deep`. A program of its own: the long run times
//! recoveries, so no other test of this package may run meanwhile.

use std::rc::Rc;
use std::time::Duration;

use system_tests::chaos::{self, Plan, Size};
use testkit::environment::deep;

#[tokio::test]
async fn random_faults_lose_and_duplicate_no_message() {
    let (messages, minutes) = if deep() { (200_000, 5) } else { (20_000, 1) };
    let plan = Plan::new(23, Size { messages, lasts: Duration::from_secs(60 * minutes) });
    let report = chaos::run(&plan, &(Rc::new(|line: &str| println!("{line}")) as _)).await;
    println!("{report}");
    assert_eq!(report.damage(), [], "{report}");
    // A short run shares the processors with other tests.
    if deep() {
        assert_eq!(report.late(), [""; 0], "{report}");
    }
}
