//! What a message may ask of the gateway.

/// What a message with events may ask of its receiver.
///
/// The specification wants every event of at most 64 KiB to be forwarded, whatever it is made of; with lower limits than
/// those here a gateway does not do that.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct EventLimits {
    /// Size of a message's body, in bytes; 8 MiB unless set. So much for data, too.
    pub max_body_bytes: usize,
    /// How many events come in a batch; 1,000 unless set.
    pub max_batch_events: usize,
    /// Size of an event's attributes, names and values together as text, in bytes; 64 KiB unless set. So much for one of
    /// them, too.
    pub max_attributes_bytes: usize,
}

impl EventLimits {
    /// The size of an event that every receiver is to take, in bytes, by the specification.
    pub const INTEROPERABLE_EVENT_BYTES: usize = 64 * 1024;

    /// Sets the size of a message's body, in bytes.
    #[must_use]
    pub fn with_max_body_bytes(mut self, max: usize) -> Self {
        self.max_body_bytes = max;
        self
    }

    /// Sets how many events come in a batch.
    #[must_use]
    pub fn with_max_batch_events(mut self, max: usize) -> Self {
        self.max_batch_events = max;
        self
    }

    /// Sets the size of an event's attributes, in bytes.
    #[must_use]
    pub fn with_max_attributes_bytes(mut self, max: usize) -> Self {
        self.max_attributes_bytes = max;
        self
    }
}

impl Default for EventLimits {
    fn default() -> Self {
        Self {
            max_body_bytes: 8 * 1024 * 1024,
            max_batch_events: 1000,
            max_attributes_bytes: Self::INTEROPERABLE_EVENT_BYTES,
        }
    }
}
