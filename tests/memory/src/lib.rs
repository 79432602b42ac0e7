//! The stores in memory, as models: the same traits, the same contract suites, and no I/O. A simulation runs the real
//! functions and event sources on them, with a clock and with delays that it decides.

mod history;
mod log;
mod master;
mod views;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use crate::{
    log::MemoryLog,
    master::{Defects, MemoryMaster},
    views::MemoryViews,
};

/// A clock: milliseconds since 1970 UTC.
pub type Clock = std::sync::Arc<dyn Fn() -> i64 + Send + Sync>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
