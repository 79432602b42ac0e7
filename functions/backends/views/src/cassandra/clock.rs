//! The clock of history points: Cassandra's, so that the clocks of counting processes do not matter.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Maximum age of the server's time: after a suspend the process must not continue with the old one.
const MAX_AGE: Duration = Duration::from_secs(60);

/// Seconds since 1970 UTC.
#[derive(Clone)]
pub(super) enum Clock {
    /// The server's last time, and the monotonic time elapsed since.
    Server(Arc<Mutex<Option<(i64, Instant)>>>),
    /// A clock of the caller's.
    Own(Arc<dyn Fn() -> i64 + Send + Sync>),
}

impl Clock {
    pub(super) fn of_server() -> Self {
        Self::Server(Arc::default())
    }

    /// Sets the server's time, milliseconds since 1970.
    pub(super) fn set(&self, server_ms: i64) {
        if let Self::Server(last) = self {
            let now = Some((server_ms, Instant::now()));
            *last.lock().unwrap_or_else(PoisonError::into_inner) = now;
        }
    }

    /// Whether to query the server before using `now`.
    pub(super) fn is_stale(&self) -> bool {
        match self {
            Self::Server(last) => {
                let last = last.lock().unwrap_or_else(PoisonError::into_inner);
                last.is_none_or(|(_, at)| at.elapsed() > MAX_AGE)
            }
            Self::Own(_) => false,
        }
    }

    /// The current time; the local clock's until the server was queried.
    pub(super) fn now(&self) -> i64 {
        let last = match self {
            Self::Own(clock) => return clock(),
            Self::Server(last) => *last.lock().unwrap_or_else(PoisonError::into_inner),
        };
        match last {
            Some((ms, at)) => {
                let passed = i64::try_from(at.elapsed().as_millis()).unwrap_or(0);
                ms.saturating_add(passed).div_euclid(1_000)
            }
            None => chrono::Utc::now().timestamp(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_time_replaces_the_local_clocks() {
        let clock = Clock::of_server();
        assert!(clock.is_stale());
        clock.set(5_900);
        assert!((5..65).contains(&clock.now()) && !clock.is_stale());
        let own = Clock::Own(Arc::new(|| 7));
        own.set(5_900);
        assert_eq!((own.now(), own.is_stale()), (7, false));
    }
}
