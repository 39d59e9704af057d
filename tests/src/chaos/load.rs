//! Agents that publish and readers that read, whatever breaks, and the books of what was confirmed.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use domain::ids::ConversationKey;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::plan::Plan;
use crate::{Agent, Ledger, Scenario, TestReader, at, closed, key, message, opened};

/// How long what is left may take once nothing breaks any more: a lease of a closer that was killed
/// (30 s), and a backlog.
pub(super) const SETTLE: Duration = Duration::from_secs(180);

/// Each has a connection of its own.
const PUBLISHERS: usize = 4;
/// Conversations of a publisher that go on at the same time.
const SIDE_BY_SIDE: usize = 25;
/// Messages of a conversation; then its session closes.
const LENGTH: usize = 100;
/// One session in so many never closes: its conversation is read from Redis at the end.
const STAYS_OPEN: usize = 4;
/// Messages that are published at once, at most.
const AT_ONCE: usize = 500;
/// Between two looks at what is due.
const TICK: Duration = Duration::from_millis(50);
/// Between two reads.
const GLANCE: Duration = Duration::from_millis(25);
/// Content of a message, in bytes: with its other fields an action has some 500.
const CONTENT_BYTES: usize = 300;
const TENANT: &str = "chaos";

/// What was confirmed, and what readers saw.
#[derive(Default)]
pub(super) struct Books {
    pub(super) ledger: Ledger,
    /// Conversations whose session has closed.
    pub(super) closed: usize,
    /// Transcripts that were out of order or had a message twice.
    pub(super) misread: Vec<String>,
    begun: Vec<ConversationKey>,
}

/// Publishers and a reader at work.
pub(super) struct Load {
    books: Rc<RefCell<Books>>,
    publishers: JoinSet<()>,
    reader: JoinSet<()>,
    over: watch::Sender<bool>,
}

/// How many messages each publisher sends, and how fast.
#[derive(Clone, Copy)]
struct Pace {
    messages: usize,
    lasts: Duration,
}

impl Load {
    pub(super) fn start(scenario: &Scenario, plan: &Plan) -> Self {
        let books = Rc::new(RefCell::new(Books::default()));
        let (over, is_over) = watch::channel(false);
        let pace = Pace { messages: plan.messages.div_ceil(PUBLISHERS), lasts: plan.lasts };
        let mut publishers = JoinSet::new();
        for number in 0..PUBLISHERS {
            let agent = scenario.agent();
            publishers.spawn_local(publish(
                number,
                agent,
                pace,
                Rc::clone(&books),
                is_over.clone(),
            ));
        }
        let mut reader = JoinSet::new();
        reader.spawn_local(read(scenario.reader(), Rc::clone(&books)));
        Self { books, publishers, reader, over }
    }

    /// Lets the publishers publish what is left of their messages, and returns the books.
    pub(super) async fn finish(mut self) -> Books {
        self.over.send_replace(true);
        while let Some(ended) = self.publishers.join_next().await {
            ended.expect("a publisher that publishes all");
        }
        self.reader.shutdown().await;
        self.books.take()
    }
}

/// Publishes at its pace while things break, and then what is left at once.
async fn publish(
    publisher: usize,
    agent: Agent,
    pace: Pace,
    books: Rc<RefCell<Books>>,
    over: watch::Receiver<bool>,
) {
    let (began, mut sent) = (Instant::now(), 0);
    loop {
        let is_over = *over.borrow();
        let due = if is_over { pace.messages } else { pace.due(began.elapsed()) };
        if sent >= due {
            if is_over {
                return;
            }
            sleep(TICK).await;
            continue;
        }
        let until = due.min(sent + AT_ONCE);
        // The newest first: the order of a conversation is that of its timestamps.
        let actions: Vec<Value> = (sent..until).rev().flat_map(|n| actions(publisher, n)).collect();
        agent.insist(&actions).await;
        books.borrow_mut().enter(&actions);
        sent = until;
    }
}

impl Pace {
    /// How many are to have been sent by now. After its time it goes on at the same pace.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counts far below 2^52"
    )]
    fn due(self, elapsed: Duration) -> usize {
        (self.messages as f64 * elapsed.as_secs_f64() / self.lasts.as_secs_f64()) as usize
    }
}

impl Books {
    fn enter(&mut self, actions: &[Value]) {
        let of = |name| actions.iter().filter(move |action| action["action_type"] == name);
        self.ledger.confirm(of("conversation.save_message"));
        self.begun.extend(of("conversation.session_opened").map(key));
        self.closed += of("conversation.session_closed").count();
    }
}

/// The `n`th message of a publisher, after its session's opening if it is the first one, before its
/// closing if it is the last one.
fn actions(publisher: usize, n: usize) -> Vec<Value> {
    let (lap, place) = (n / SIDE_BY_SIDE, n % SIDE_BY_SIDE);
    // Apart from each other, so that some session opens or closes at any time.
    let step = lap + place * LENGTH / SIDE_BY_SIDE;
    let (generation, turn) = (step / LENGTH, step % LENGTH);
    let session = format!("s{publisher}-{generation}-{place}");
    let moment = |tenth: i64| json!({"timestamp": at(i64::try_from(n).unwrap() * 10 + tenth)});
    let mut extra = moment(0);
    extra["content"] = format!("{n:>CONTENT_BYTES$}").into();
    let mut actions = vec![message(TENANT, &session, &format!("m{publisher}-{n}"), &extra)];
    if turn == 0 || lap == 0 {
        actions.insert(0, opened(TENANT, &session, &moment(-1)));
    }
    if turn == LENGTH - 1 && place % STAYS_OPEN != 0 {
        actions.push(closed(TENANT, &session, &moment(1)));
    }
    actions
}

/// Reads one conversation after the other, those of late; so there are hot copies to be missed.
async fn read(reader: TestReader, books: Rc<RefCell<Books>>) {
    for n in 0.. {
        sleep(GLANCE).await;
        let of_late = PUBLISHERS * SIDE_BY_SIDE;
        let key = {
            let books = books.borrow();
            let newest = books.begun.iter().rev().take(of_late);
            newest.clone().nth(n * 7 % of_late.max(1)).cloned()
        };
        let Some(key) = key else { continue };
        // Both stores may be away: then a reader is told so.
        let Ok(Some(transcript)) = reader.glance(&key).await else { continue };
        let order: Vec<_> = transcript.messages.iter().map(|it| (it.created_at, &it.id)).collect();
        if !order.is_sorted_by(|a, b| a < b) {
            books
                .borrow_mut()
                .misread
                .push(format!("{key} from {:?}: {order:?}", transcript.source));
        }
    }
}
