//! Limits the number of connections, and chooses which one to close when there are too many.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::sync::Notify;

use super::activity::Activity;

/// Maximum, even with many descriptors: each connection uses memory.
const MOST: usize = 4_096;
/// Minimum, even with few descriptors.
const FEWEST: usize = 16;

/// The open connections of one listener.
pub(super) struct Connections {
    bound: usize,
    open: Mutex<Open>,
    freed: Notify,
}

#[derive(Default)]
struct Open {
    next: u64,
    connections: HashMap<u64, Arc<Activity>>,
}

/// A connection's slot, held until dropped.
pub(super) struct Slot {
    connections: Arc<Connections>,
    id: u64,
    pub(super) activity: Arc<Activity>,
}

impl Connections {
    pub(super) fn new(bound: usize) -> Arc<Self> {
        Arc::new(Self { bound, open: Mutex::default(), freed: Notify::new() })
    }

    /// Adds a connection. If there are too many, asks the one that has been idle longest to close.
    pub(super) fn admit(self: &Arc<Self>) -> Slot {
        let activity = Arc::new(Activity::new());
        let mut open = self.lock();
        if open.connections.len() >= self.bound {
            open.evict_one();
        }
        let id = open.next;
        open.next += 1;
        open.connections.insert(id, activity.clone());
        Slot { connections: self.clone(), id, activity }
    }

    /// Asks the connection that has been idle for longest to end.
    pub(super) fn evict_one(&self) {
        self.lock().evict_one();
    }

    /// Waits for a free slot while all connections are busy.
    pub(super) async fn room(&self) {
        loop {
            let freed = self.freed.notified();
            if self.lock().connections.len() <= self.bound {
                return;
            }
            freed.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    /// Idle connections first, then those still sending a request; never one whose request is being processed.
    fn evict_one(&mut self) {
        let evictable = self.connections.values().filter(|activity| {
            !activity.is_evicted() && (activity.requests() == 0 || activity.only_receiving())
        });
        if let Some(oldest) = evictable.min_by_key(|a| (a.requests() > 0, a.last_moved())) {
            oldest.evict();
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.connections.lock().connections.remove(&self.id);
        self.connections.freed.notify_waiters();
    }
}

/// The limit derived from the process's descriptors: a quarter is reserved for stores and files.
pub(super) fn by_descriptors() -> usize {
    let limit = getrlimit(Resource::Nofile).current.map_or(MOST, |n| usize::try_from(n).unwrap_or(MOST));
    (limit - limit / 4).clamp(FEWEST, MOST)
}

/// Raises the soft descriptor limit to the hard one, as servers should.
pub(super) fn raise_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Some sandboxes refuse this; then the soft limit applies.
    let _ = setrlimit(Resource::Nofile, limit);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evicted(slots: &[Slot]) -> Vec<bool> {
        slots.iter().map(|slot| slot.activity.is_evicted()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_idle_connection_goes_and_none_that_is_worked_for() {
        let connections = Connections::new(3);
        let mut slots = Vec::new();
        for _ in 0..3 {
            slots.push(connections.admit());
            tokio::time::advance(std::time::Duration::from_secs(1)).await;
        }
        let oldest = slots[0].activity.clone();
        let working = oldest.request();
        slots.push(connections.admit());
        assert_eq!(evicted(&slots), [false, true, false, false]);
        slots.push(connections.admit());
        assert_eq!(evicted(&slots), [false, true, true, false, false]);
        drop(working);
    }

    #[tokio::test]
    async fn a_request_that_still_comes_goes_before_one_that_is_worked_for() {
        let connections = Connections::new(2);
        let (working, receiving) = (connections.admit(), connections.admit());
        let _requests = (working.activity.request(), receiving.activity.request());
        let body = receiving.activity.receiving();
        let third = connections.admit();
        let _third_request = third.activity.request();
        assert!(receiving.activity.is_evicted() && !working.activity.is_evicted());
        drop(body);
        // All are worked for: the next client waits, and nobody goes.
        let fourth = connections.admit();
        assert!(![&working, &third, &fourth].iter().any(|slot| slot.activity.is_evicted()));
    }

    #[tokio::test]
    async fn there_is_room_again_once_one_has_ended() {
        let connections = Connections::new(1);
        let (first, second) = (connections.admit(), connections.admit());
        let room = connections.room();
        tokio::pin!(room);
        assert!(futures_util::poll!(&mut room).is_pending());
        drop(first);
        room.await;
        drop(second);
    }
}
