//! The activity of one connection, for its watchdog and the connection limit.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

/// The activity of one connection. Times are monotonic.
pub(super) struct Activity {
    opened: Instant,
    /// Milliseconds after `opened` when bytes last went either way.
    moved: AtomicU64,
    /// Milliseconds after `opened` when a request last began or ended.
    asked: AtomicU64,
    /// Milliseconds after `opened` when the connection is cut unconditionally.
    cut_at: AtomicU64,
    requests: AtomicUsize,
    receiving: AtomicUsize,
    any_request: AtomicBool,
    evicted: AtomicBool,
    eviction: Notify,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self {
            opened: Instant::now(),
            moved: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            cut_at: AtomicU64::new(u64::MAX),
            requests: AtomicUsize::new(0),
            receiving: AtomicUsize::new(0),
            any_request: AtomicBool::new(false),
            evicted: AtomicBool::new(false),
            eviction: Notify::new(),
        }
    }

    /// Bytes went either way.
    pub(super) fn moved(&self) {
        self.moved.store(self.age_ms(), Ordering::Relaxed);
    }

    /// How long no bytes went either way.
    pub(super) fn still_for(&self) -> Duration {
        self.since(&self.moved)
    }

    /// How long no request has begun or ended; since the opening, if none ever did.
    pub(super) fn idle_for(&self) -> Duration {
        self.since(&self.asked)
    }

    /// Whether a request ever came.
    pub(super) fn any_request(&self) -> bool {
        self.any_request.load(Ordering::Relaxed)
    }

    /// Requests that are not answered.
    pub(super) fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    /// Whether there are requests and the bodies of all of them are still coming.
    pub(super) fn only_receiving(&self) -> bool {
        let requests = self.requests();
        requests > 0 && self.receiving.load(Ordering::Relaxed) >= requests
    }

    /// A request, until the guard is dropped.
    pub(super) fn request(&self) -> impl Drop + use<'_> {
        self.any_request.store(true, Ordering::Relaxed);
        self.asked.store(self.age_ms(), Ordering::Relaxed);
        Guard::new(&self.requests, Some(self))
    }

    /// The reading of a request's body, until the guard is dropped.
    pub(super) fn receiving(&self) -> impl Drop + use<'_> {
        Guard::new(&self.receiving, None)
    }

    /// Cuts the connection after a delay, whatever the client still sends.
    pub(super) fn cut_after(&self, wait: Duration) {
        self.cut_at.fetch_min(self.age_ms() + millis(wait), Ordering::Relaxed);
    }

    /// Whether it was said that the connection ends with its last answer.
    pub(super) fn ends(&self) -> bool {
        self.cut_at.load(Ordering::Relaxed) < u64::MAX
    }

    /// Whether it is time to cut the connection.
    pub(super) fn is_overdue(&self) -> bool {
        self.age_ms() >= self.cut_at.load(Ordering::Relaxed)
    }

    /// Asks the connection to end at once, since there are too many.
    pub(super) fn evict(&self) {
        self.evicted.store(true, Ordering::Relaxed);
        self.eviction.notify_one();
    }

    /// Whether it was asked to end.
    pub(super) fn is_evicted(&self) -> bool {
        self.evicted.load(Ordering::Relaxed)
    }

    /// Waits until it is asked to end.
    pub(super) async fn eviction(&self) {
        self.eviction.notified().await;
    }

    /// How long ago bytes last moved, for the choice of whom to evict: those without a request go first.
    pub(super) fn last_moved(&self) -> Instant {
        self.opened + Duration::from_millis(self.moved.load(Ordering::Relaxed))
    }

    fn age_ms(&self) -> u64 {
        millis(self.opened.elapsed())
    }

    fn since(&self, at: &AtomicU64) -> Duration {
        Duration::from_millis(self.age_ms().saturating_sub(at.load(Ordering::Relaxed)))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Counts one more as long as it lives.
struct Guard<'a> {
    counter: &'a AtomicUsize,
    request_of: Option<&'a Activity>,
}

impl<'a> Guard<'a> {
    fn new(counter: &'a AtomicUsize, request_of: Option<&'a Activity>) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self { counter, request_of }
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.counter.fetch_sub(1, Ordering::Relaxed);
        if let Some(activity) = self.request_of {
            activity.asked.store(activity.age_ms(), Ordering::Relaxed);
        }
    }
}
