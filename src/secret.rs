//! What is wiped from memory when it goes: keys, passwords, and the buffers in which they come. The only file that names
//! zeroize.
//!
//! Copies that others make (the loop behind the gate, the system) are out of reach.

/// A text or bytes that are wiped when they are dropped.
pub type Secret<T> = zeroize::Zeroizing<T>;

/// Wipes a value in its place.
pub fn wipe(value: &mut (impl zeroize::Zeroize + ?Sized)) {
    value.zeroize();
}
