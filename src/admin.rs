//! What the admin's programs can ask, on sockets of their own: `GET /healthz` and `GET /metrics`.
//!
//! Knows no SQL.

use crate::error::Result;
use crate::http::{Answer, Response};
use crate::metrics::Text;
use crate::routes::App;

const TEXT: &str = "text/plain; charset=utf-8";

/// The media type of Prometheus' text format.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// `GET /healthz`: 200 where an invite could be written now, since a row has just been; else 503 with the reason.
pub fn health(app: &App) -> Answer {
    let response = |status| Response::new(status).with("Cache-Control", "no-store");
    match app.writer.write(|tx| tx.probe()) {
        Ok(()) => Answer::new("healthy", response(200).with_body(TEXT, "ok\n")),
        Err(error) => {
            let response = response(503).with("Retry-After", "5").with_body(TEXT, format!("{error}\n"));
            Answer { detail: Some(error.to_string()), ..Answer::new("unavailable", response) }
        }
    }
}

/// `GET /metrics`.
pub fn metrics(app: &App) -> Result<Answer> {
    let mut text = Text::default();
    let name = text.family("invited_build_info", "gauge", "The version of this program, as a label.");
    text.sample(name, &[("version", &env!("CARGO_PKG_VERSION"))], &1);
    app.metrics.write(&mut text);
    let store = app.readers.take();
    let tallies = store.tallies()?;
    let name = text.family("invited_invites_made_total", "counter", "Invites made, whoever made them.");
    for tally in &tallies {
        text.sample(name, &[("host", &tally.host)], &tally.made);
    }
    let help = "Invites that can't be used any more, by how they ended.";
    let name = text.family("invited_invites_ended_total", "counter", help);
    for tally in &tallies {
        for (state, count) in [("used", tally.used), ("expired", tally.expired), ("revoked", tally.revoked)] {
            text.sample(name, &[("host", &tally.host), ("state", &state)], &count);
        }
    }
    let help = "Invites that can be used, with those whose time is over until the hourly clean-up.";
    let name = text.family("invited_invites_pending", "gauge", help);
    for tally in &tallies {
        text.sample(name, &[("host", &tally.host)], &tally.pending());
    }
    text.gauge("invited_writer_queue", "Writes that wait for the disk or for their turn.", app.writer.queued());
    text.gauge("invited_registrations_under_way", "Registrations that the XMPP server is asked for.", app.desk.busy());
    let (database, log) = store.sizes();
    text.gauge("invited_database_bytes", "Size of the database.", database);
    text.gauge("invited_database_wal_bytes", "Size of its write-ahead log.", log);
    let response = Response::new(200).with("Cache-Control", "no-store").with_body(METRICS, text.into_bytes());
    Ok(Answer::new("metrics", response))
}
