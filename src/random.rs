//! Bytes from the operating system's generator, as text that needs no escaping in a URL; and bytes as text at all.
//!
//! The only file that names getrandom and base64. Knows nothing of what the bytes are for.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

use crate::error::{Error, Result};
use crate::secret::Secret;

/// `N` random bytes as base64url without padding (RFC 4648 section 5): letters, digits, `-` and `_`. The first one is no
/// `-`, so that nobody's command line takes it for an option.
pub fn base64url<const N: usize>() -> Result<String> {
    // It could become a key's secret.
    let mut bytes = Secret::new([0; N]);
    loop {
        getrandom::fill(bytes.as_mut())
            .map_err(|error| Error::internal(format!("the system gives no random bytes: {error}")))?;
        let text = URL_SAFE_NO_PAD.encode(bytes.as_slice());
        if !text.starts_with('-') {
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
            assert!(!text.starts_with('-'), "{text}");
            assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'), "{text}");
        }
        // One in 64 would be.
        assert!((0..2_000).all(|_| !base64url::<6>().unwrap().starts_with('-')), "an id was taken for an option");
        let different: std::collections::HashSet<_> = texts.iter().collect();
        assert_eq!(different.len(), texts.len());
    }
}
