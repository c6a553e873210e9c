//! `doctor`.

use std::path::Path;

use super::print;
use crate::doctor::{Level, examine};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::json;
use crate::log;
use crate::store::become_owner;

/// Prints what each check finds, as soon as it does; as JSON at the end. Fails where something is wrong.
pub fn doctor(db: &Path, host: &Host, json: bool) -> Result<()> {
    // So that root sees what `serve` would.
    become_owner(db)?;
    let (mut errors, mut objects) = (0, Vec::new());
    examine(db, host, log::now(), &mut |finding| {
        errors += usize::from(finding.level == Level::Error);
        let (level, help) = (finding.level.word(), finding.help.as_deref());
        if json {
            objects.push(json::finding(finding.check, level, &finding.text, help));
            return Ok(());
        }
        let help = help.map_or_else(String::new, |help| format!(" ({help})"));
        print(&format!("{level:<8} {:<12} {}{help}\n", finding.check, finding.text))
    })?;
    if json {
        print(&format!("{}\n", json::array(objects)))?;
    }
    match errors {
        0 => Ok(()),
        1 => Err(Error::refused(format!("something is wrong with {host}: 1 error"))),
        _ => Err(Error::refused(format!("something is wrong with {host}: {errors} errors"))),
    }
}
