//! Pictures and small files beside the pages: embedded ones, and the logo that a host has set.

use crate::http::{Answer, Response};
use crate::random;

const CARD: &[u8] = include_bytes!("card.png");
const FAVICON: &[u8] = include_bytes!("favicon.ico");
const ROBOTS: &str = "User-agent: *\nDisallow: /\n";

/// The largest logo, in bytes.
pub const LOGO_MAX: usize = 64 * 1024;

/// `GET /invite/card.png`: the picture for previews of links.
pub fn card() -> Answer {
    Answer::new("asset", respond("image/png", CARD.to_vec()))
}

/// `GET /favicon.ico`.
pub fn favicon() -> Answer {
    Answer::new("asset", respond("image/x-icon", FAVICON.to_vec()))
}

/// `GET /robots.txt`: invites are for those who got them.
pub fn robots() -> Answer {
    Answer::new("asset", respond("text/plain; charset=utf-8", ROBOTS.into()))
}

/// A file that may be kept for a day, and that can do nothing even when it is opened by itself.
pub fn respond(media_type: &'static str, bytes: Vec<u8>) -> Response {
    Response::new(200)
        .with("Cache-Control", "public, max-age=86400")
        .with("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; sandbox")
        .with("X-Content-Type-Options", "nosniff")
        .with_body(media_type, bytes)
}

/// Checks a logo and gives back the text that is stored: PNG, or SVG without anything that acts or loads.
pub fn check_logo(bytes: &[u8]) -> Result<String, String> {
    if bytes.len() > LOGO_MAX {
        return Err(format!("it has {} bytes (at most {LOGO_MAX})", bytes.len()));
    }
    if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
        return Ok(format!("image/png;{}", random::base64(bytes)));
    }
    let text = std::str::from_utf8(bytes).ok().filter(|text| text.contains("<svg"));
    let text = text.ok_or("it is neither a PNG nor an SVG file")?;
    let lower = text.to_ascii_lowercase();
    let acting = ["<!entity", "<!doctype", "javascript:", "<?xml-stylesheet", "@import"];
    if let Some(found) = acting.iter().find(|sign| lower.contains(**sign)) {
        return Err(format!("the SVG holds '{found}' (save it as plain SVG, without scripts and entities)"));
    }
    let ends = |c: char| c.is_ascii_whitespace() || "<>\"'/:=".contains(c);
    // An element may have a prefix, and an attribute a space before its `=`.
    let elements =
        lower.split('<').skip(1).filter_map(|tag| tag.split(|c| c != ':' && ends(c)).next()?.rsplit(':').next());
    let attributes = lower.split('=').filter_map(|before| before.trim_end().rsplit(ends).next());
    let mut found = elements.filter(|name| ["script", "foreignobject", "iframe"].contains(name));
    let mut handlers = attributes.filter(|name| name.starts_with("on"));
    if let Some(found) = found.next().or_else(|| handlers.next()) {
        return Err(format!("the SVG holds '{}' (save it as plain SVG, without scripts)", found.escape_debug()));
    }
    let links = lower.split("href").skip(1).filter_map(|rest| rest.trim_start().strip_prefix('='));
    if links.chain(lower.split("url(").skip(1)).any(|address| !is_inside(address)) {
        return Err("the SVG points to something outside of itself (embed it)".to_owned());
    }
    Ok(format!("image/svg+xml;{}", random::base64(bytes)))
}

/// Whether an address is one within the same file, or an embedded picture.
fn is_inside(address: &str) -> bool {
    let address = address.trim_start().trim_start_matches(['"', '\'']);
    ["#", "data:image/png", "data:image/jpeg"].iter().any(|inside| address.starts_with(inside))
}

/// The media type and the bytes of a stored logo.
pub fn read_logo(stored: &str) -> Option<(&'static str, Vec<u8>)> {
    let (media_type, text) = stored.split_once(';')?;
    let media_type = ["image/png", "image/svg+xml"].into_iter().find(|known| *known == media_type)?;
    Some((media_type, random::from_base64(text)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logo_that_acts_or_loads_is_refused() {
        let svg = |inner: &str| format!("<svg xmlns=\"http://www.w3.org/2000/svg\">{inner}</svg>");
        let good = svg("<path d='M0 0h1'/><use href=\"#a\" fill='url(\"#b\")'/>");
        let stored = check_logo(good.as_bytes()).unwrap();
        assert_eq!(read_logo(&stored).unwrap(), ("image/svg+xml", good.into_bytes()));
        assert!(check_logo(b"\x89PNG\r\n\x1a\n....").is_ok());
        for bad in [
            "<script>alert(1)</script>",
            "<path onload=\"x\"/>",
            "<path\nonclick='x'/>",
            "<a href=\"javascript:alert(1)\">x</a>",
            "<image href=\"https://x.example/x.png\"/>",
            "<image xlink:href = 'http://x'/>",
            "<foreignObject/>",
            "<style>@import 'x'</style>",
            "<rect fill=\"url(http://x)\"/>",
            "<SCRIPT/>",
            "<path/onload=x>",
            "<path onload = 'x'/>",
            "<s:script xmlns:s='http://www.w3.org/2000/svg'/>",
            "<rect fill=\"url('//x.example')\"/>",
        ] {
            assert!(check_logo(svg(bad).as_bytes()).is_err(), "{bad}");
        }
        assert!(check_logo(b"GIF89a").is_err());
        assert!(check_logo(&vec![b'x'; LOGO_MAX + 1]).is_err());
        assert_eq!(read_logo("text/html;PHA+"), None);
    }
}
