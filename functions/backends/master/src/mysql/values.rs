//! Values of statements and rows.

use sqlx::{Row, mysql::MySqlRow};
use uuid::Uuid;

/// Pads to a power of two by repeating the last item, so that few distinct statements exist and stay prepared. Closing
/// one costs 40 ms: the server sends no answer, and TCP delays the next statement until it acknowledges.
pub(super) fn padded<T>(items: &[T]) -> impl Iterator<Item = &T> {
    let more = items.len().next_power_of_two() - items.len();
    items.iter().chain(items.last().into_iter().cycle().take(more))
}

/// The 16 bytes of a column as an id.
pub(super) fn uuid(row: &MySqlRow, column: usize) -> Result<Uuid, sqlx::Error> {
    Uuid::from_slice(row.try_get(column)?).map_err(|e| sqlx::Error::Decode(e.into()))
}
