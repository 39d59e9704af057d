//! A source of random numbers that is passed to whatever needs one, so that tests can choose the numbers.

use std::sync::Arc;

use uuid::Uuid;

/// A source of random numbers for generations and epochs. Clones share it.
#[derive(Clone)]
pub struct RandomSource(Arc<dyn Fn() -> i64 + Send + Sync>);

impl RandomSource {
    /// A source that returns what `next` returns.
    pub fn new(next: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(next))
    }

    /// The operating system's randomness.
    #[must_use]
    pub fn random() -> Self {
        // Of a version 4 UUID all but 6 bits are random; folding spreads them over all 64.
        Self::new(|| {
            let (high, low) = Uuid::new_v4().as_u64_pair();
            (high ^ low.rotate_left(32)).cast_signed()
        })
    }

    /// The next number.
    #[must_use]
    pub fn next(&self) -> i64 {
        (self.0)()
    }
}
