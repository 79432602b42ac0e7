//! Merges two histories: the speed layer's points as far back as it keeps them, the batch layer's before that.

use domain::{Failure, History, Point, Window};

/// Points of both layers, newest first, strictly falling in `user_count`, at most `window.limit`.
pub async fn newest_first(
    speed: &dyn History,
    batch: &dyn History,
    window: Window,
) -> Result<Vec<Point>, Failure> {
    let Some(seam) = speed.oldest().await? else {
        return batch.points(window).await;
    };
    // The batch layer's count at the seam. Speed points that do not exceed it add nothing, for example while lost views
    // are being rebuilt.
    let before = Window { to: Some(seam.time), limit: 1, ..Window::default() };
    let floor = batch.points(before).await?.pop().map(|p| p.user_count);
    let newer = Window { above: window.above.max(floor), ..window };
    let mut points = speed.points(newer).await?;
    if points.len() < window.limit && window.from.is_none_or(|from| from < seam.time) {
        let older = Window {
            to: Some(window.to.map_or(seam.time, |to| to.min(seam.time))),
            below: lower(window.below, points.last().map(|p| p.user_count)),
            limit: window.limit - points.len(),
            ..window
        };
        points.extend(batch.points(older).await?);
    }
    if let Some(step) = window.step_s {
        // If the seam lies inside a step, both layers have a last point in it; the newer one wins.
        points.dedup_by_key(|p| p.time.timestamp().div_euclid(step));
    }
    Ok(points)
}

fn lower(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use chrono::{DateTime, Utc};
    use domain::Store;
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    /// A history in memory, oldest first, as either layer keeps one.
    struct Layer(Vec<Point>);

    impl Layer {
        fn of(points: &[(i64, u64)]) -> Self {
            let point = |&(seconds, user_count)| Point { id: Uuid::nil(), time: at(seconds), user_count };
            Self(points.iter().map(point).collect())
        }

        fn window(&self, w: Window) -> Vec<Point> {
            let inside = |p: &&Point| {
                w.from.is_none_or(|t| p.time >= t)
                    && w.to.is_none_or(|t| p.time < t)
                    && w.above.is_none_or(|n| p.user_count > n)
                    && w.below.is_none_or(|n| p.user_count < n)
            };
            let mut points: Vec<_> = self.0.iter().rev().filter(inside).cloned().collect();
            if let Some(step) = w.step_s {
                points.dedup_by_key(|p| p.time.timestamp().div_euclid(step));
            }
            points.truncate(w.limit);
            points
        }
    }

    #[async_trait]
    impl Store for Layer {
        async fn ready(&self) -> Result<(), Failure> {
            Ok(())
        }
    }

    #[async_trait]
    impl History for Layer {
        async fn points(&self, window: Window) -> Result<Vec<Point>, Failure> {
            Ok(self.window(window))
        }

        async fn oldest(&self) -> Result<Option<Point>, Failure> {
            Ok(self.0.first().cloned())
        }
    }

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).unwrap()
    }

    async fn merged(speed: &[(i64, u64)], batch: &[(i64, u64)], window: Window) -> Vec<u64> {
        let points = newest_first(&Layer::of(speed), &Layer::of(batch), window).await.unwrap();
        points.into_iter().map(|p| p.user_count).collect()
    }

    const ALL: Window = Window { from: None, to: None, above: None, below: None, step_s: None, limit: 1_000 };

    #[tokio::test]
    async fn the_batch_layer_answers_for_what_the_speed_layer_forgot() {
        let speed = [(130, 5), (150, 6), (190, 9)];
        let batch = [(10, 1), (70, 4), (150, 6), (190, 9)];
        assert_eq!(merged(&speed, &batch, ALL).await, [9, 6, 5, 4, 1]);
        assert_eq!(merged(&speed, &batch, Window { limit: 4, ..ALL }).await, [9, 6, 5, 4]);
        assert_eq!(merged(&speed, &batch, Window { to: Some(at(130)), ..ALL }).await, [4, 1]);
        assert_eq!(
            merged(&speed, &batch, Window { from: Some(at(70)), below: Some(6), ..ALL }).await,
            [5, 4]
        );
    }

    #[tokio::test]
    async fn lost_views_that_count_anew_never_make_the_history_fall() {
        let batch = [(10, 1), (70, 4)];
        assert_eq!(merged(&[], &batch, ALL).await, [4, 1]);
        assert_eq!(merged(&[(500, 2)], &batch, ALL).await, [4, 1]);
        assert_eq!(merged(&[(500, 2), (501, 4), (600, 5)], &batch, ALL).await, [5, 4, 1]);
    }

    #[tokio::test]
    async fn a_step_that_both_layers_know_is_answered_once() {
        let window = Window { step_s: Some(100), ..ALL };
        assert_eq!(merged(&[(150, 5), (199, 6), (210, 7)], &[(10, 1), (120, 4)], window).await, [7, 6, 1]);
    }

    proptest! {
        /// Whatever the speed layer trimmed, answers grow strictly and pages put together are the whole.
        #[test]
        fn pages_put_together_are_the_whole_history(
            gaps in prop::collection::vec((0_i64..100, 1_u64..4), 1..60),
            trimmed in 0_usize..60,
            limit in 1_usize..10,
        ) {
            let mut now = (0, 0);
            let truth: Vec<_> = gaps.into_iter().map(|(dt, dn)| { now = (now.0 + dt, now.1 + dn); now }).collect();
            let mut batch = truth.clone();
            batch.reverse();
            batch.dedup_by_key(|p| p.0 / 60);
            batch.reverse();
            let speed = &truth[trimmed.min(truth.len() - 1)..];
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let whole = runtime.block_on(merged(speed, &batch, ALL));
            prop_assert!(whole.is_sorted_by(|a, b| a > b));
            prop_assert_eq!(whole[0], truth.last().unwrap().1);
            let mut pages = Vec::new();
            loop {
                let window = Window { limit, below: pages.last().copied(), ..ALL };
                let page = runtime.block_on(merged(speed, &batch, window));
                if page.is_empty() { break }
                pages.extend(page);
            }
            prop_assert_eq!(pages, whole);
        }
    }
}
