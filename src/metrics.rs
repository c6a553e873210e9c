//! What the server counts of itself while it runs, and Prometheus' text format (version 0.0.4).
//!
//! In memory alone. Label values are words of this program and names of hosts, never what a client sent, so that there is
//! a bound to them.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The upper bounds of a histogram's buckets, in microseconds, and as they are written, in seconds.
const BUCKETS: [(u64, &str); 12] = [
    (500, "0.0005"),
    (1_000, "0.001"),
    (2_500, "0.0025"),
    (5_000, "0.005"),
    (10_000, "0.01"),
    (25_000, "0.025"),
    (50_000, "0.05"),
    (100_000, "0.1"),
    (250_000, "0.25"),
    (1_000_000, "1"),
    (5_000_000, "5"),
    (10_000_000, "10"),
];

/// The counters of this process.
#[derive(Default)]
pub struct Metrics {
    requests: Mutex<Requests>,
    /// By status and reason.
    refused: Mutex<BTreeMap<(u16, &'static str), u64>>,
    /// Connections at this moment.
    connections: AtomicUsize,
}

#[derive(Default)]
struct Requests {
    /// By endpoint, status and reason.
    answered: BTreeMap<(&'static str, u16, &'static str), u64>,
    /// By endpoint.
    took: BTreeMap<&'static str, Histogram>,
}

/// How long some requests took.
#[derive(Default)]
struct Histogram {
    /// Of each bucket what is in no smaller one; the last is for all beyond.
    counts: [u64; BUCKETS.len() + 1],
    micros: u64,
}

impl Metrics {
    /// A request was answered. All but the time are words of ours.
    pub fn answered(&self, endpoint: &'static str, status: u16, reason: &'static str, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BUCKETS.iter().position(|(bound, _)| micros <= *bound).unwrap_or(BUCKETS.len());
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.answered.entry((endpoint, status, reason)).or_default() += 1;
        let histogram = requests.took.entry(endpoint).or_default();
        histogram.counts[bucket] += 1;
        histogram.micros = histogram.micros.saturating_add(micros);
    }

    /// The gate refused a request.
    pub fn refused(&self, status: u16, reason: &'static str) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner).entry((status, reason)).or_default() += 1;
    }

    /// A connection came.
    pub fn came(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    /// A connection went.
    pub fn went(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// Writes all of it down.
    pub fn write(&self, text: &mut Text) {
        let name = text.family("invited_requests_total", "counter", "Requests answered.");
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        for ((endpoint, status, reason), count) in &requests.answered {
            text.sample(name, &[("endpoint", endpoint), ("status", status), ("reason", reason)], count);
        }
        let help = "How long it took to answer a request, from when a worker had it, waiting for the disk included.";
        text.family("invited_request_duration_seconds", "histogram", help);
        for (endpoint, histogram) in &requests.took {
            let mut sum = 0;
            for (count, bound) in histogram.counts.iter().zip(BUCKETS.iter().map(|(_, bound)| *bound).chain(["+Inf"])) {
                sum += count;
                let labels: [(&str, &dyn Display); 2] = [("endpoint", endpoint), ("le", &bound)];
                text.sample("invited_request_duration_seconds_bucket", &labels, &sum);
            }
            let seconds = Duration::from_micros(histogram.micros).as_secs_f64();
            text.sample("invited_request_duration_seconds_sum", &[("endpoint", endpoint)], &seconds);
            text.sample("invited_request_duration_seconds_count", &[("endpoint", endpoint)], &sum);
        }
        drop(requests);
        let help = "Requests refused by the gate, before anything else read them.";
        let name = text.family("invited_gate_refused_total", "counter", help);
        for ((status, reason), count) in self.refused.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            text.sample(name, &[("status", status), ("reason", reason)], count);
        }
        text.gauge("invited_open_connections", "Connections at this moment.", self.connections.load(Ordering::Relaxed));
    }
}

/// Metrics as text.
#[derive(Default)]
pub struct Text(String);

impl Text {
    /// Begins a family of samples and returns its name. The help is one line without backslashes.
    pub fn family<'a>(&mut self, name: &'a str, kind: &str, help: &str) -> &'a str {
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        name
    }

    /// A family of one sample that goes up and down.
    pub fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "gauge", help);
        self.sample(name, &[], &value);
    }

    /// One sample of the family that was begun last.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &dyn Display)], value: &dyn Display) {
        self.0.push_str(name);
        for (number, (label, value)) in labels.iter().enumerate() {
            let value = value.to_string().replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{label}=\"{value}\"", if number == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    /// All that was written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0.into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_values_are_escaped() {
        let mut text = Text::default();
        text.sample("x", &[("a", &"q\" b\\ n\n"), ("b", &200)], &1.5);
        text.gauge("y", "Why.", 2);
        let expected = "x{a=\"q\\\" b\\\\ n\\n\",b=\"200\"} 1.5\n# HELP y Why.\n# TYPE y gauge\ny 2\n";
        assert_eq!(String::from_utf8(text.into_bytes()).unwrap(), expected);
    }

    #[test]
    fn buckets_hold_all_that_is_smaller_and_their_bounds_are_what_is_written() {
        for (micros, seconds) in BUCKETS {
            assert_eq!(Duration::from_micros(micros).as_secs_f64(), seconds.parse::<f64>().unwrap());
        }
        let metrics = Metrics::default();
        for micros in [500, 501, 10_000_001] {
            metrics.answered("/", 200, "home", Duration::from_micros(micros));
        }
        let mut text = Text::default();
        metrics.write(&mut text);
        let text = String::from_utf8(text.into_bytes()).unwrap();
        for (bound, count) in [("0.0005", 1), ("0.001", 2), ("10", 2), ("+Inf", 3)] {
            let line = format!("invited_request_duration_seconds_bucket{{endpoint=\"/\",le=\"{bound}\"}} {count}\n");
            assert!(text.contains(&line), "{line}{text}");
        }
        assert!(text.contains("_sum{endpoint=\"/\"} 10.001002\n"), "{text}");
    }
}
