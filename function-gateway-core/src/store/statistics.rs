//! Figures over executions in a form that stores keep and add up: one [`Rollup`] for each function and minute.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    ErrorClass, InvocationRecord, InvocationState, Quantiles, Statistics, StatisticsQuery, TimedPhase, Timestamp,
};

/// How often durations of each length occurred, in whole microseconds.
///
/// Quantiles read from it are off by at most 1/32 (3.2 %), and exact below 32 microseconds. Buckets are as in an HDR
/// histogram: 16 to each power of two, so adding takes integer arithmetic only. Adding histograms up gives the same as
/// one that had recorded everything.
///
/// Its serialized form is a list of pairs of bucket and count, without the empty ones.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<(u16, u64)>", into = "Vec<(u16, u64)>")]
pub struct Histogram {
    /// Sorted by bucket, without empty ones.
    buckets: Vec<(u16, u64)>,
}

impl Histogram {
    /// Each power of two is split into 2 to this power of buckets.
    const SPLIT_BITS: u32 = 4;
    const SPLIT: u64 = 1 << Self::SPLIT_BITS;
    /// Below this each value has a bucket of its own.
    const EXACT: u64 = 2 * Self::SPLIT;
    const LAST_BUCKET: u16 = Self::bucket(u64::MAX);

    #[expect(clippy::cast_possible_truncation, reason = "the greatest bucket is 975")]
    const fn bucket(micros: u64) -> u16 {
        if micros < Self::EXACT {
            return micros as u16;
        }
        let shift = micros.ilog2() - Self::SPLIT_BITS;
        // The top bits run from SPLIT to 2 * SPLIT - 1 at each shift.
        (shift as u64 * Self::SPLIT + (micros >> shift)) as u16
    }

    /// The middle of a bucket.
    fn middle(bucket: u16) -> u64 {
        let bucket = u64::from(bucket.min(Self::LAST_BUCKET));
        if bucket < Self::EXACT {
            return bucket;
        }
        let shift = bucket / Self::SPLIT - 1;
        let top = bucket % Self::SPLIT + Self::SPLIT;
        (top << shift) + ((1 << shift) >> 1)
    }

    fn add(&mut self, bucket: u16, count: u64) {
        match self.buckets.binary_search_by_key(&bucket, |(known, _)| *known) {
            Ok(at) => {
                if let Some((_, known)) = self.buckets.get_mut(at) {
                    *known = known.saturating_add(count);
                }
            }
            Err(at) => self.buckets.insert(at, (bucket, count)),
        }
    }

    /// Adds one duration.
    pub fn record(&mut self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.add(Self::bucket(micros), 1);
    }

    /// Adds what another one holds.
    pub fn merge(&mut self, other: &Self) {
        for (bucket, count) in &other.buckets {
            self.add(*bucket, *count);
        }
    }

    /// How many durations it holds.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// The duration that so many of 100 did not exceed (the nearest rank); `None` where it is empty.
    #[must_use]
    pub fn percentile(&self, percent: u8) -> Option<Duration> {
        let rank = (u128::from(self.count()) * u128::from(percent.min(100))).div_ceil(100).max(1);
        let mut seen = 0;
        let (bucket, _) = self.buckets.iter().find(|(_, count)| {
            seen += u128::from(*count);
            seen >= rank
        })?;
        Some(Duration::from_micros(Self::middle(*bucket)))
    }

    /// Its count and usual quantiles; all zero where it is empty.
    #[must_use]
    pub fn quantiles(&self) -> Quantiles {
        let at = |percent| self.percentile(percent).unwrap_or_default();
        Quantiles::new(self.count(), at(50), at(95), at(99))
    }
}

impl From<Vec<(u16, u64)>> for Histogram {
    /// Reads the serialized form. A bucket that does not exist counts as the last one.
    fn from(pairs: Vec<(u16, u64)>) -> Self {
        let mut histogram = Self::default();
        for (bucket, count) in pairs.into_iter().filter(|(_, count)| *count > 0) {
            histogram.add(bucket.min(Self::LAST_BUCKET), count);
        }
        histogram
    }
}

impl From<Histogram> for Vec<(u16, u64)> {
    fn from(histogram: Histogram) -> Self {
        histogram.buckets
    }
}

/// A minute of wall-clock time, counted from the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Minute(i64);

impl Minute {
    const MICROS: i64 = 60_000_000;

    /// Takes a number of minutes since the Unix epoch.
    #[must_use]
    pub fn new(minutes: i64) -> Self {
        Self(minutes)
    }

    /// The minutes since the Unix epoch.
    #[must_use]
    pub fn get(self) -> i64 {
        self.0
    }

    /// The minute that a time lies in.
    #[must_use]
    pub fn of(time: Timestamp) -> Self {
        Self(time.as_micros().div_euclid(Self::MICROS))
    }

    /// The minutes that a query asks for: from the first, up to but without the second.
    #[must_use]
    pub fn range(query: &StatisticsQuery) -> std::ops::Range<Self> {
        let end = Self::of(query.until);
        let starts_there = end.0.checked_mul(Self::MICROS) == Some(query.until.as_micros());
        Self::of(query.from)..if starts_there { end } else { Self(end.0.saturating_add(1)) }
    }
}

/// Figures over the executions of one function that ended in one minute, or over any that were added up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollup {
    by_state: BTreeMap<InvocationState, u64>,
    by_class: BTreeMap<ErrorClass, u64>,
    phases: BTreeMap<TimedPhase, Histogram>,
}

impl Rollup {
    /// Adds an execution that has ended.
    pub fn record(&mut self, record: &InvocationRecord) {
        *self.by_state.entry(record.state).or_default() += 1;
        if let Some(failure) = &record.failure {
            *self.by_class.entry(failure.class).or_default() += 1;
        }
        for phase in TimedPhase::ALL {
            if let Some(duration) = record.timings.get(phase) {
                self.phases.entry(phase).or_default().record(duration);
            }
        }
    }

    /// Adds what another one holds.
    pub fn merge(&mut self, other: &Self) {
        for (state, count) in &other.by_state {
            let known = self.by_state.entry(*state).or_default();
            *known = known.saturating_add(*count);
        }
        for (class, count) in &other.by_class {
            let known = self.by_class.entry(*class).or_default();
            *known = known.saturating_add(*count);
        }
        for (phase, histogram) in &other.phases {
            self.phases.entry(*phase).or_default().merge(histogram);
        }
    }

    /// The figures as they are shown.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        Statistics {
            count: self.by_state.values().fold(0, |sum, count| sum.saturating_add(*count)),
            by_state: self.by_state.clone(),
            by_class: self.by_class.clone(),
            phases: self.phases.iter().map(|(phase, histogram)| (*phase, histogram.quantiles())).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(values: &[u64]) -> Histogram {
        let mut histogram = Histogram::default();
        for value in values {
            histogram.record(Duration::from_micros(*value));
        }
        histogram
    }

    /// Values of every order of magnitude.
    fn micros() -> impl Strategy<Value = u64> {
        (0_u32..64, any::<u64>()).prop_map(|(shift, value)| value >> shift)
    }

    #[test]
    fn an_empty_histogram_has_no_quantiles() {
        assert_eq!(Histogram::default().percentile(50), None);
        assert_eq!(Histogram::default().quantiles(), Quantiles::default());
    }

    #[test]
    fn its_stored_form_is_short_pairs() {
        let histogram = of(&[3, 3, 40]);
        assert_eq!(serde_json::to_string(&histogram).unwrap(), "[[3,2],[36,1]]");
        let damaged: Histogram = serde_json::from_str("[[65535,1],[3,1],[3,1],[7,0]]").unwrap();
        assert_eq!(damaged.count(), 3);
        assert_eq!(damaged.percentile(50), Some(Duration::from_micros(3)));
    }

    #[test]
    fn a_query_is_widened_to_whole_minutes() {
        let at = |seconds: i64| Timestamp::from_micros(seconds * 1_000_000);
        let range = |from, until| Minute::range(&StatisticsQuery::new(at(from), at(until)));
        assert_eq!(range(61, 119), Minute(1)..Minute(2));
        assert_eq!(range(60, 120), Minute(1)..Minute(2));
        assert_eq!(range(60, 121), Minute(1)..Minute(3));
        assert_eq!(range(-1, 0), Minute(-1)..Minute(0));
        let all = StatisticsQuery::new(Timestamp::from_micros(i64::MIN), Timestamp::from_micros(i64::MAX));
        assert!(Minute::range(&all).contains(&Minute(0)));
    }

    proptest! {
        #[test]
        fn quantiles_are_within_5_percent_of_the_exact_ones(mut values in prop::collection::vec(micros(), 1..300)) {
            let histogram = of(&values);
            values.sort_unstable();
            for percent in [1_u8, 50, 95, 99, 100] {
                let rank = (values.len() * usize::from(percent)).div_ceil(100).max(1);
                let exact = u128::from(values[rank - 1]);
                let read = histogram.percentile(percent).unwrap().as_micros();
                prop_assert!(read.abs_diff(exact) * 20 <= exact, "{percent} %: {read} for {exact}");
            }
        }

        #[test]
        fn adding_up_equals_recording_all(
            one in prop::collection::vec(micros(), 0..100),
            two in prop::collection::vec(micros(), 0..100),
        ) {
            let mut merged = of(&one);
            merged.merge(&of(&two));
            let all = of(&[one, two].concat());
            prop_assert_eq!(&merged, &all);
            let text = serde_json::to_string(&all).unwrap();
            prop_assert_eq!(serde_json::from_str::<Histogram>(&text).unwrap(), all);
        }

        #[test]
        fn buckets_follow_each_other(value in micros()) {
            let (here, next) = (Histogram::bucket(value), Histogram::bucket(value.saturating_add(1)));
            prop_assert!(next == here || next == here + 1);
            prop_assert_eq!(Histogram::bucket(Histogram::middle(here)), here);
        }
    }
}
