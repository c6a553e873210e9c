//! What is wiped from memory when it goes: keys, passwords, and the buffers in which they come. The only file that names
//! zeroize.
//!
//! A buffer that grows moves, and would leave what it held behind: here are the ways to make and to fill one without that.
//! Copies that others make (the loop behind the gate, libraries that decode, the system) are out of reach.

/// A text or bytes that are wiped when they are dropped.
pub type Secret<T> = zeroize::Zeroizing<T>;

/// Wipes a value in its place.
pub fn wipe(value: &mut (impl zeroize::Zeroize + ?Sized)) {
    value.zeroize();
}

/// Some pieces as one text.
pub fn concat(pieces: &[&str]) -> Secret<String> {
    let mut text = Secret::new(String::with_capacity(pieces.iter().map(|piece| piece.len()).sum()));
    pieces.iter().for_each(|piece| text.push_str(piece));
    text
}

/// Makes room for this many bytes more, and no more than that.
pub fn reserve(buffer: &mut Secret<Vec<u8>>, more: usize) {
    let needed = buffer.len() + more;
    if needed > buffer.capacity() {
        let mut larger = Secret::new(Vec::with_capacity(needed));
        larger.extend_from_slice(buffer);
        *buffer = larger;
    }
}

/// How often these bytes are in the memory of this process. They come with each bit turned, so as not to be found themselves.
#[cfg(test)]
pub fn copies_in_memory(turned: &[u8]) -> usize {
    use std::io::BufRead as _;
    use std::os::unix::fs::FileExt as _;
    use std::sync::{Mutex, PoisonError};

    // Two that look at the same time would find what the other one has just read.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one_at_a_time = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut chunk, zeros) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    let memory = std::fs::File::open("/proc/self/mem").unwrap();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let own = chunk.as_ptr() as u64..chunk.as_ptr() as u64 + chunk.len() as u64;
    let mut found = 0;
    for line in maps.lines().filter(|line| line.contains(" rw-p ")) {
        let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        let [mut at, end] = [start, end].map(|address| u64::from_str_radix(address, 16).unwrap());
        while at < end {
            if own.contains(&at) {
                at = own.end;
                continue;
            }
            let stop = if at < own.start { end.min(own.start) } else { end };
            let length = chunk.len().min((stop - at) as usize);
            // A thread that has ended takes its stack with it.
            if memory.read_at(&mut chunk[..length], at).unwrap_or(0) < length {
                break;
            }
            if chunk[..length] != zeros[..length] {
                let mut rest = &chunk[..length];
                while rest.skip_until(!turned[0]).is_ok_and(|skipped| skipped > 0) {
                    let is_next = |(byte, turned): (&u8, &u8)| *byte == !turned;
                    found += usize::from(rest.len() >= turned.len() - 1 && rest.iter().zip(&turned[1..]).all(is_next));
                }
            }
            // What lies across two chunks is found as well.
            at += if at + length as u64 >= stop { length } else { length + 1 - turned.len() } as u64;
        }
    }
    chunk.fill(0);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_that_grew_is_nowhere_once_it_is_dropped() {
        let mut secret: Secret<Vec<u8>> = Secret::new(random(64));
        // The first bytes of freed memory are used for other things.
        let turned: Vec<u8> = secret.iter().skip(32).map(|byte| !byte).collect();
        assert_eq!(copies_in_memory(&turned), 1, "the one copy is found");
        for _ in 0..12 {
            let more = secret.len();
            reserve(&mut secret, more);
            secret.resize(2 * more, b'x');
        }
        assert_eq!(copies_in_memory(&turned), 1);
        drop(secret);
        assert_eq!(copies_in_memory(&turned), 0);
    }

    fn random(length: usize) -> Vec<u8> {
        let text = Secret::new(crate::random::base64url::<48>().unwrap());
        text.as_bytes()[..length].to_vec()
    }
}
