//! The table: a line for each thing that was measured, a column for each program.

use std::fmt;

use crate::load::Outcome;

/// The columns, and the names by which measurements find theirs.
pub const INVITED: &str = "invited";
pub const PROSODY_SQLITE: &str = "Prosody, SQLite";
pub const PROSODY: &str = "Prosody, default store";
pub const EJABBERD: &str = "ejabberd, SQLite";
pub const POOL: &str = "no store";
pub const BARE: &str = "tiny_http";
pub const SYNC: &str = "fdatasync";
const COLUMNS: [&str; 7] = [INVITED, PROSODY_SQLITE, PROSODY, EJABBERD, POOL, BARE, SYNC];

/// Which of two figures is the better one.
#[derive(Clone, Copy)]
pub enum Better {
    More,
    Less,
}

/// What one program was measured at, once in each round.
pub type Samples = (&'static str, Vec<f64>);

#[derive(Default)]
pub struct Table {
    lines: Vec<String>,
    /// How much of a processor the load generator took in each run at full speed, and how many requests failed.
    runs: Vec<(&'static str, f64, usize)>,
}

impl Table {
    /// A line of medians, each with how many times better `invited` is.
    pub fn add(&mut self, what: &str, better: Better, samples: &[Samples]) {
        let figure = |name| {
            let found = samples.iter().find(|(column, values)| *column == name && !values.is_empty());
            found.map(|(_, values)| median(values))
        };
        let ours = figure(INVITED);
        let cells = COLUMNS.map(|name| match (figure(name), ours) {
            (None, _) => String::new(),
            (Some(theirs), Some(ours)) if name != INVITED => {
                let times = match better {
                    Better::More => ours / theirs,
                    Better::Less => theirs / ours,
                };
                format!("{} ({}×)", number(theirs), number(times))
            }
            (Some(value), _) => format!("**{}**", number(value)),
        });
        self.push(what, &cells.join(" | "));
    }

    /// A line that is about `invited` alone, in words.
    pub fn say(&mut self, what: &str, text: &str) {
        self.push(what, &format!("**{text}**{}", " |".repeat(COLUMNS.len() - 1)));
    }

    /// Notes how a run at full speed went.
    pub fn note(&mut self, name: &'static str, outcome: &Outcome) {
        self.runs.push((name, outcome.share, outcome.failures));
    }

    fn push(&mut self, what: &str, cells: &str) {
        let line = format!("| {what} | {cells} |");
        eprintln!("{line}");
        self.lines.push(line);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| | {} |\n|---|{}", COLUMNS.join(" | "), "---:|".repeat(COLUMNS.len()))?;
        self.lines.iter().try_for_each(|line| writeln!(f, "{line}"))?;
        let names = COLUMNS.into_iter().filter(|name| self.runs.iter().any(|(found, ..)| found == name));
        let notes = names.map(|name| {
            let runs = || self.runs.iter().filter(move |(found, ..)| *found == name);
            let most = runs().map(|(_, share, _)| share * 100.0).fold(0.0, f64::max);
            let failed: usize = runs().map(|(.., failures)| failures).sum();
            let failed = if failed > 0 { format!(" ({failed} requests not answered)") } else { String::new() };
            format!("{name} {most:.0} %{failed}")
        });
        let notes: Vec<String> = notes.collect();
        if !notes.is_empty() {
            writeln!(f, "\nThe load generator took, of one processor at most: {}.", notes.join(", "))?;
        }
        Ok(())
    }
}

/// The value in the middle.
pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

/// Three digits that count, and commas between thousands.
pub fn number(value: f64) -> String {
    let decimals = match value {
        _ if value >= 100.0 => 0,
        _ if value >= 10.0 => 1,
        _ => 2,
    };
    let text = format!("{value:.decimals$}");
    if value < 1000.0 {
        return text;
    }
    let groups: Vec<&str> = text.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).unwrap()).collect();
    groups.join(",")
}
