//! JSON as session files need it: a scanner that keeps tokens as they are, and a writer.

mod number;
mod scan;
mod stops;
mod string;
mod write;

pub use number::push_float;
pub use scan::{check_utf8, elements, members, respace, string_text, value, Fault, Member, Value};
pub use string::{Strings, Text};
pub use write::{push_string, Writer};

/// Deepest nesting of a message or of a head field.
pub const MAX_DEPTH: usize = 512;
