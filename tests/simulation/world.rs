//! What the components of one run share: the random decisions, the clock, the trace, and what was covered.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use chrono::{DateTime, Utc};
use fastrand::Rng;
use tokio::time::Instant;

/// When each run begins, milliseconds since 1970 UTC.
const START_MS: i64 = 1_700_000_000_000;
/// Of a thousand calls of a seam, how many meet a fault.
const FAULTS_PER_MILLE: u32 = 60;

/// Where a component calls another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Seam {
    Append,
    Count,
    Store,
    Tick,
    Read,
    Consume,
    Poll,
    Commit,
    Request,
    Group,
    Client,
}

/// What can go wrong there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Fails, and has no effect.
    Refused,
    /// Has its effect, and fails.
    AnswerLost,
    /// Takes a while, so that calls overtake each other.
    Delayed,
    /// Fails, and has its effect later.
    LateEffect,
    /// Has a part of its effect, and fails.
    PartlyDone,
    /// The process dies before the call.
    DiesBefore,
    /// The process dies after the effect and before the answer.
    DiesAfter,
    /// A page of records is taken from the log, and then the consumer fails.
    PageLost,
    /// The log takes a living consumer for dead.
    Expired,
    /// The caller stops waiting.
    GivenUp,
}

/// A defect that is built into a component, to see that the checks find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defect {
    CommitsBeforeDelivery,
    CountsDuplicates,
    AcknowledgesBeforeAppend,
    RetriesRefusals,
    CommitsLostPartitions,
    LongestNameByBytes,
    TickSkipsLateCommits,
    CommitsBeforeDeadLetter,
    ListsResolvedDeadLetters,
    LeavesLocksBehind,
}

impl Defect {
    pub const ALL: [Self; 10] = [
        Self::CommitsBeforeDelivery,
        Self::CountsDuplicates,
        Self::AcknowledgesBeforeAppend,
        Self::RetriesRefusals,
        Self::CommitsLostPartitions,
        Self::LongestNameByBytes,
        Self::TickSkipsLateCommits,
        Self::CommitsBeforeDeadLetter,
        Self::ListsResolvedDeadLetters,
        Self::LeavesLocksBehind,
    ];
}

/// How often each fault occurred at each seam.
pub type Coverage = BTreeMap<(Seam, Fault), u64>;

/// The world of one run.
pub struct World {
    rng: Mutex<Rng>,
    started: Instant,
    trace: Mutex<Vec<String>>,
    coverage: Mutex<Coverage>,
    violation: Mutex<Option<String>>,
    is_calm: AtomicBool,
    next_process: AtomicU64,
    defect: Option<Defect>,
}

impl World {
    /// Everything that is decided by chance follows from the seed.
    pub fn new(seed: u64, defect: Option<Defect>) -> Self {
        fastrand::seed(seed);
        Self {
            rng: Mutex::new(Rng::with_seed(seed)),
            started: Instant::now(),
            trace: Mutex::default(),
            coverage: Mutex::default(),
            violation: Mutex::default(),
            is_calm: AtomicBool::new(false),
            next_process: AtomicU64::new(1),
            defect,
        }
    }

    pub fn has(&self, defect: Defect) -> bool {
        self.defect == Some(defect)
    }

    /// Milliseconds since 1970 UTC.
    pub fn now_ms(&self) -> i64 {
        START_MS + i64::try_from(self.started.elapsed().as_millis()).unwrap()
    }

    pub fn now(&self) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(self.now_ms()).unwrap()
    }

    /// A number from zero up to and without `end`.
    pub fn below(&self, end: usize) -> usize {
        lock(&self.rng).usize(..end)
    }

    pub fn per_mille(&self, n: u32) -> bool {
        lock(&self.rng).u32(..1_000) < n
    }

    pub fn bytes16(&self) -> u128 {
        lock(&self.rng).u128(..)
    }

    /// A duration of less than so many milliseconds.
    pub fn within_ms(&self, end: u64) -> Duration {
        Duration::from_millis(lock(&self.rng).u64(..end.max(1)))
    }

    /// Whether a call meets one of these faults, and which.
    pub fn draw(&self, seam: Seam, faults: &[Fault]) -> Option<Fault> {
        if self.is_calm() || !self.per_mille(FAULTS_PER_MILLE) {
            return None;
        }
        let fault = faults[self.below(faults.len())];
        self.cover(seam, fault);
        Some(fault)
    }

    pub fn cover(&self, seam: Seam, fault: Fault) {
        *lock(&self.coverage).entry((seam, fault)).or_default() += 1;
    }

    pub fn coverage(&self) -> Coverage {
        lock(&self.coverage).clone()
    }

    /// From now on nothing fails any more.
    pub fn calm_down(&self) {
        self.is_calm.store(true, Relaxed);
    }

    pub fn is_calm(&self) -> bool {
        self.is_calm.load(Relaxed)
    }

    pub fn next_process(&self) -> u64 {
        self.next_process.fetch_add(1, Relaxed)
    }

    /// Adds a line to the trace.
    pub fn log(&self, who: &str, what: fmt::Arguments<'_>) {
        let line = format!("{:>8} ms  {who:<12} {what}", self.now_ms() - START_MS);
        lock(&self.trace).push(line);
    }

    pub fn trace(&self) -> Vec<String> {
        lock(&self.trace).clone()
    }

    /// A promise was broken; the first one counts.
    pub fn violate(&self, what: String) {
        self.log("check", format_args!("VIOLATED: {what}"));
        lock(&self.violation).get_or_insert(what);
    }

    pub fn violation(&self) -> Option<String> {
        lock(&self.violation).clone()
    }
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
