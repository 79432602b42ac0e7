//! What a consumer does with its partitions, and whether it takes records of them.

use std::collections::BTreeSet;

/// Where a consumer is between its opening and its end. `Idle` → `Joining` → `Reading` ⇄ `Revoking`; without a group it
/// goes from `Idle` to `Reading`.
#[derive(Debug)]
pub(super) enum State {
    /// It was never polled: it answers positions, and is no member of the group.
    Idle,
    /// It subscribed, and waits for its first assignment.
    Joining,
    /// It reads the partitions that it owns, which may be none.
    Reading,
    /// The last poll reported these partitions as revoked; the next one releases them.
    Revoking(Vec<i32>),
}

impl State {
    /// Whether the owned partitions are known.
    pub(super) fn has_assignment(&self) -> bool {
        matches!(self, Self::Reading | Self::Revoking(_))
    }
}

/// Whether records are wanted. `pause` and `resume` cannot fail, so librdkafka learns of them in the next poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    /// Records are wanted, and librdkafka fetches them.
    Running,
    /// None are wanted from the next poll on.
    Pausing,
    /// None are wanted, and librdkafka fetches none.
    Paused,
    /// Records are wanted again from the next poll on.
    Resuming,
}

impl Flow {
    /// The flow after a call of `pause`.
    pub(super) fn paused(self) -> Self {
        match self {
            Self::Running | Self::Pausing => Self::Pausing,
            Self::Paused | Self::Resuming => Self::Paused,
        }
    }

    /// The flow after a call of `resume`.
    pub(super) fn resumed(self) -> Self {
        match self {
            Self::Running | Self::Pausing => Self::Running,
            Self::Paused | Self::Resuming => Self::Resuming,
        }
    }

    /// Whether librdkafka has paused the assigned partitions.
    pub(super) fn is_paused(self) -> bool {
        matches!(self, Self::Paused | Self::Resuming)
    }
}

/// The partitions of a consumer.
#[derive(Debug, Default)]
pub(super) struct Assignment {
    /// Those that it may commit: assigned, and neither released nor lost.
    pub(super) owned: BTreeSet<i32>,
    /// Those that were read to their end; may contain partitions that it owned before.
    pub(super) at_end: BTreeSet<i32>,
}

impl Assignment {
    pub(super) fn add(&mut self, partitions: &[i32]) {
        self.owned.extend(partitions);
        self.at_end.retain(|partition| !partitions.contains(partition));
    }

    pub(super) fn remove(&mut self, partitions: &[i32]) {
        self.owned.retain(|partition| !partitions.contains(partition));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn librdkafka_is_told_of_a_pause_only_if_one_lasts_until_the_next_poll() {
        assert_eq!(Flow::Running.paused().resumed(), Flow::Running);
        assert_eq!(Flow::Paused.resumed().paused(), Flow::Paused);
        for flow in [Flow::Running, Flow::Pausing, Flow::Paused, Flow::Resuming] {
            assert_eq!(flow.paused().is_paused(), flow.is_paused(), "{flow:?}");
            assert_eq!(flow.resumed().is_paused(), flow.is_paused(), "{flow:?}");
            assert_eq!(flow.paused().paused(), flow.paused());
            assert_eq!(flow.resumed().resumed(), flow.resumed());
        }
    }
}
