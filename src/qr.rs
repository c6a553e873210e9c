//! A link as a QR code. The only file that names qrcodegen.

use qrcodegen::{Mask, QrCode, QrCodeEcc, QrSegment, Version};

/// The light margin that readers need, in modules (ISO/IEC 18004 section 5.3.8).
const MARGIN: i32 = 4;

/// A QR code for a terminal; none where the text is too long for one. Two rows of modules a line, dark on light whatever the colours of the terminal are.
pub fn terminal(text: &str) -> Option<String> {
    let code = encode(text)?;
    let mut out = String::new();
    let mut y = -MARGIN;
    while y < code.size() + MARGIN {
        // Black on bright white, set and reset on each line.
        out.push_str("\x1b[30;107m");
        for x in -MARGIN..code.size() + MARGIN {
            out.push(match (code.get_module(x, y), code.get_module(x, y + 1)) {
                (true, true) => '█',
                (true, false) => '▀',
                (false, true) => '▄',
                (false, false) => ' ',
            });
        }
        out.push_str("\x1b[0m\n");
        y += 2;
    }
    Some(out)
}

/// A QR code for a page.
pub struct Svg {
    /// Its size in modules, with the margin.
    pub size: i32,
    /// The path that draws its dark modules, with a line as wide as one, its middle half a module below the numbers.
    pub path: String,
}

/// A QR code for a page; none where the text is too long for one.
pub fn svg(text: &str) -> Option<Svg> {
    let code = encode(text)?;
    let numbers: Vec<String> = (0..=code.size() + MARGIN).map(|number| number.to_string()).collect();
    let mut path = String::with_capacity(4096);
    for y in 0..code.size() {
        path.extend(["M0 ", &numbers[(y + MARGIN) as usize]]);
        // Where the line is, and where the next dark module may be.
        let (mut end, mut x) = (-MARGIN, 0);
        while x < code.size() {
            let dark = (x..code.size()).take_while(|x| code.get_module(*x, y)).count();
            if dark > 0 {
                path.extend(["m", &numbers[(x - end) as usize], " 0h", &numbers[dark]]);
                end = x + dark as i32;
            }
            x += (dark as i32).max(1);
        }
    }
    Some(Svg { size: code.size() + 2 * MARGIN, path })
}

/// Every reader takes every mask; to try all eight for the one that looks best takes most of the time of a page.
const MASK: u8 = 2;

fn encode(text: &str) -> Option<QrCode> {
    let (smallest, largest) = (Version::MIN, Version::MAX);
    QrCode::encode_segments_advanced(
        &QrSegment::make_segments(text),
        QrCodeEcc::Medium,
        smallest,
        largest,
        Some(Mask::new(MASK)),
        true,
    )
    .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_equally_wide_and_have_a_margin() {
        let text = terminal("https://example.com/invite?T-_1abcdefghijkl").unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let inner = |line: &str| line.strip_prefix("\x1b[30;107m").unwrap().strip_suffix("\x1b[0m").unwrap().to_owned();
        let width = inner(lines[0]).chars().count();
        assert!(lines.iter().all(|line| inner(line).chars().count() == width));
        assert!(inner(lines[0]).trim().is_empty() && inner(lines[1]).trim().is_empty());
        assert!(lines.iter().all(|line| inner(line).starts_with("    ") && inner(line).ends_with("    ")));
        assert!(terminal(&"x".repeat(5_000)).is_none() && svg(&"x".repeat(5_000)).is_none());
    }
}
