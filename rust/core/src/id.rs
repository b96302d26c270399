//! Session ids and their file names (docs/format.md, section 6).

use crate::error::{Error, Result};
use sha2::{Digest, Sha256};
use std::fmt;
use std::sync::Arc;

/// Longest id, in characters.
pub const MAX_ID_CHARS: usize = 4096;
/// Longest stem that is not cut, in bytes.
const MAX_STEM: usize = 180;
const CUT_STEM: usize = 140;

/// A checked session id: 1 to 4,096 characters, no NUL.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(Arc<str>);

impl SessionId {
    /// Checks an id.
    pub fn new(id: impl Into<String>) -> Result<SessionId> {
        let id = id.into();
        if id.is_empty() {
            return Err(Error::InvalidId("it is empty".into()));
        }
        let chars = id.chars().count();
        if chars > MAX_ID_CHARS {
            return Err(Error::InvalidId(format!("it has {chars} characters, at most {MAX_ID_CHARS} are allowed")));
        }
        if id.contains('\0') {
            return Err(Error::InvalidId("it contains a NUL character".into()));
        }
        Ok(SessionId(id.into()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The file name without its ending, one-to-one.
    pub fn stem(&self) -> String {
        let mut stem = String::with_capacity(self.0.len());
        let escape_first = is_reserved_on_windows(&self.0);
        let last = self.0.len() - 1;
        for (i, byte) in self.0.bytes().enumerate() {
            let plain =
                byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_') || (byte == b'.' && i != 0 && i != last);
            if plain && !(i == 0 && escape_first) {
                stem.push(char::from(byte));
            } else {
                push_percent(&mut stem, byte);
            }
        }
        if stem.len() > MAX_STEM {
            let mut cut = CUT_STEM;
            // Never in the middle of a %XX.
            for back in 1..=2 {
                if stem.as_bytes().get(cut - back) == Some(&b'%') {
                    cut -= back;
                    break;
                }
            }
            stem.truncate(cut);
            stem.push_str("%-");
            for byte in Sha256::digest(self.0.as_bytes()).iter().take(16) {
                stem.push_str(&format!("{byte:02x}"));
            }
        }
        stem
    }

    /// The stem that A3S Code uses, where it differs from ours and is a plain file name.
    pub fn a3s_stem(&self) -> Option<String> {
        let stem = self.0.replace(['/', '\\'], "_");
        // Longer, and there is no room left for the endings of the files beside it.
        let plain = !stem.starts_with('.') && stem.len() <= 200 && !stem.chars().any(char::is_control);
        (plain && stem != self.stem()).then_some(stem)
    }
}

fn push_percent(out: &mut String, byte: u8) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    out.push('%');
    for nibble in [byte >> 4, byte & 15] {
        out.push(char::from(HEX.get(usize::from(nibble)).copied().unwrap_or(b'0')));
    }
}

fn is_reserved_on_windows(id: &str) -> bool {
    let name = id.split('.').next().unwrap_or_default().to_ascii_uppercase();
    if matches!(name.as_str(), "CON" | "PRN" | "AUX" | "NUL") {
        return true;
    }
    let Some(digit) = name.strip_prefix("COM").or_else(|| name.strip_prefix("LPT")) else { return false };
    digit.len() == 1 && digit.bytes().all(|b| b.is_ascii_digit())
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stem(id: &str) -> String {
        SessionId::new(id).unwrap().stem()
    }

    #[test]
    fn stems_are_plain_file_names() {
        for (id, expected) in [
            ("my-session", "my-session"),
            ("..", "%2E%2E"),
            (".hidden", "%2Ehidden"),
            ("v1.2", "v1.2"),
            ("end.", "end%2E"),
            ("end ", "end%20"),
            ("/etc/passwd", "%2Fetc%2Fpasswd"),
            ("a/b", "a%2Fb"),
            ("a_b", "a_b"),
            ("CON", "%43ON"),
            ("con.txt", "%63on.txt"),
            ("Lpt9", "%4Cpt9"),
            ("COM10", "COM10"),
            ("é", "%C3%A9"),
            ("a%2Fb", "a%252Fb"),
        ] {
            assert_eq!(stem(id), expected, "{id:?}");
        }
    }

    #[test]
    fn long_ids_are_cut_and_stay_apart() {
        let (a, b) = (stem(&"é".repeat(200)), stem(&("é".repeat(199) + "è")));
        assert_ne!(a, b);
        for s in [&a, &b] {
            assert!(s.len() <= MAX_STEM, "{}", s.len());
            let (head, _) = s.split_once("%-").unwrap();
            assert_eq!(head.len() % 3, 0, "cut inside of an escape: {head}");
        }
    }

    #[test]
    fn bad_ids_are_refused() {
        for id in ["", "a\0b"] {
            assert!(matches!(SessionId::new(id), Err(Error::InvalidId(_))), "{id:?}");
        }
        assert!(SessionId::new("x".repeat(MAX_ID_CHARS)).is_ok());
        assert!(SessionId::new("x".repeat(MAX_ID_CHARS + 1)).is_err());
    }
}
