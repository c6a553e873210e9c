//! Bytes from the operating system's generator, as text that needs no escaping in a URL; and bytes as text at all.
//!
//! The only file that names getrandom and base64. Knows nothing of what the bytes are for.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

use crate::error::{Error, Result};
use crate::secret::Secret;

/// `N` random bytes as base64url without padding (RFC 4648 section 5): letters, digits, `-` and `_`. The first one is no
/// `-`, which a command line takes for an option, and the last one is a letter or a digit: what finds links in texts
/// leaves out a mark at the end.
pub fn base64url<const N: usize>() -> Result<String> {
    // It could become a key's secret.
    let mut bytes = Secret::new([0; N]);
    loop {
        getrandom::fill(bytes.as_mut())
            .map_err(|error| Error::internal(format!("the system gives no random bytes: {error}")))?;
        let text = URL_SAFE_NO_PAD.encode(bytes.as_slice());
        if !text.starts_with('-') && !text.ends_with(['-', '_']) {
            return Ok(text);
        }
    }
}

/// Any bytes as base64 with padding (RFC 4648 section 4).
pub fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// The bytes of such a text.
pub fn from_base64(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_url_safe_unpadded_and_different() {
        let texts: Vec<String> = (0..1_000).map(|_| base64url::<12>().unwrap()).collect();
        for text in &texts {
            assert_eq!(text.len(), 16);
            assert!(!text.starts_with('-') && !text.ends_with(['-', '_']), "{text}");
            assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'), "{text}");
        }
        // One in 64 would begin so, and one in 32 end so.
        assert!(
            (0..2_000).map(|_| base64url::<6>().unwrap()).all(|id| !id.starts_with('-') && !id.ends_with(['-', '_']))
        );
        let different: std::collections::HashSet<_> = texts.iter().collect();
        assert_eq!(different.len(), texts.len());
    }
}
