//! A record of the log in Kafka's form. How events become records, and back, is in `event`.

use bytes::Bytes;

/// Key, headers and value, as Kafka knows them; the log adds partition, offset and time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// What picks the partition: a user's id.
    pub key: Option<Bytes>,
    /// In order; names are as given (`ce_id`, `content-type`, …).
    pub headers: Vec<(String, Bytes)>,
    /// The data; `None` is a tombstone.
    pub value: Option<Bytes>,
}

impl Record {
    /// The first header of that name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&Bytes> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v)
    }

    /// Bytes of its key, headers and value, and of the memory that lists the headers.
    #[must_use]
    pub fn size(&self) -> usize {
        let header =
            |(name, value): &(String, Bytes)| size_of::<(String, Bytes)>() + name.len() + value.len();
        let bytes = |field: &Option<Bytes>| field.as_ref().map_or(0, Bytes::len);
        bytes(&self.key) + bytes(&self.value) + self.headers.iter().map(header).sum::<usize>()
    }
}
