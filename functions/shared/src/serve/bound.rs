//! How many connections there may be at once, and which one goes when there are too many.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::sync::Notify;

use super::activity::Activity;

/// Most connections, however many descriptors there may be: each takes memory.
const MOST: usize = 4_096;
/// Fewest, however few descriptors there may be.
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

/// A connection's place among the open ones, until it is dropped.
pub(super) struct Slot {
    connections: Arc<Connections>,
    id: u64,
    pub(super) activity: Arc<Activity>,
}

impl Connections {
    pub(super) fn new(bound: usize) -> Arc<Self> {
        Arc::new(Self { bound, open: Mutex::default(), freed: Notify::new() })
    }

    /// Takes one more in. When there are too many, the one that has been idle for longest is asked to end.
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

    /// Waits until there are fewer than may be, while all of them are busy.
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
    /// Idle ones go first, then those whose requests are still coming; never one whose request is being worked on.
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

/// How many connections the process' limit of descriptors allows: a quarter of them is left for stores and files.
pub(super) fn by_descriptors() -> usize {
    let limit = getrlimit(Resource::Nofile).current.map_or(MOST, |n| usize::try_from(n).unwrap_or(MOST));
    (limit - limit / 4).clamp(FEWEST, MOST)
}

/// Raises the soft limit of descriptors to the hard one, which is what servers are given to use.
pub(super) fn raise_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Refused in some sandboxes: then the soft limit is the bound.
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
