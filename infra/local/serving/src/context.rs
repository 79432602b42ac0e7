//! What all functions of one runtime share.

use std::sync::Arc;

use framework::supervise::TaskRegistry;
use tokio::sync::broadcast;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{process::Launcher, status::Change};

/// Shared by all functions; cheap to clone.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) launcher: Arc<dyn Launcher>,
    pub(crate) changes: broadcast::Sender<Change>,
    pub(crate) tasks: TaskTracker,
    pub(crate) supervised: TaskRegistry,
    /// Cancelled when the runtime shuts down.
    pub(crate) stop: CancellationToken,
}

impl Context {
    pub(crate) fn announce(&self, change: Change) {
        // An error only means that nobody subscribed.
        let _ = self.changes.send(change);
    }
}
