//! Windows over a history, computed by a scan.

use domain::{Point, Window};

/// The points of a window, newest first. `points` come oldest first.
pub(crate) fn select(points: impl DoubleEndedIterator<Item = Point>, window: &Window) -> Vec<Point> {
    let inside = points.rev().filter(|point| {
        let time = point.time.timestamp();
        window.from_s().is_none_or(|from| time >= from)
            && window.to_s().is_none_or(|to| time < to)
            && window.above.is_none_or(|above| point.user_count > above)
            && window.below.is_none_or(|below| point.user_count < below)
    });
    let mut inside: Vec<_> = inside.collect();
    if let Some(step) = window.step_s {
        inside.dedup_by_key(|point| point.time.timestamp().div_euclid(step));
    }
    inside.truncate(window.limit);
    inside
}
