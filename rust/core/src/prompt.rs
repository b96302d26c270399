//! The first prompt, which a listing shows: taken from a serialised message without decoding it.

use crate::json;
use bytes::Bytes;

/// Longest prompt, in code points.
const FIRST_PROMPT: usize = 200;

/// The text of a user message, cut.
pub(crate) fn prompt_of(message: &[u8]) -> Option<Bytes> {
    let (mut user, mut text) = (false, None);
    json::members::<json::Fault>(message, 0, |key, at| {
        let value = json::value(message, at)?;
        match key.of(message) {
            br#""role""# => user = value.of(message) == br#""user""#,
            br#""content""# => text = text_of(value.of(message)),
            _ => {}
        }
        Ok(value.end)
    })
    .ok()?;
    text.filter(|_| user)
}

fn text_of(content: &[u8]) -> Option<Bytes> {
    if content.first() == Some(&b'"') {
        return Some(cut_string(content));
    }
    let mut found = None;
    json::elements::<json::Fault>(content, 0, |block| {
        let block = block.of(content);
        if found.is_none() && block.first() == Some(&b'{') {
            let (mut is_text, mut text) = (false, None);
            json::members::<json::Fault>(block, 0, |key, at| {
                let value = json::value(block, at)?;
                match key.of(block) {
                    br#""type""# => is_text = value.of(block) == br#""text""#,
                    br#""text""# => text = Some(value.of(block)),
                    _ => {}
                }
                Ok(value.end)
            })?;
            found = text.filter(|t| is_text && t.first() == Some(&b'"')).map(cut_string);
        }
        Ok(())
    })
    .ok()?;
    found
}

/// Cuts a string token to 200 code points; an escape counts as one, a pair of surrogate escapes as one.
fn cut_string(token: &[u8]) -> Bytes {
    let body = token.get(1..token.len().saturating_sub(1)).unwrap_or_default();
    let mut at = 0;
    for _ in 0..FIRST_PROMPT {
        let rest = body.get(at..).unwrap_or_default();
        at += match rest {
            [] => break,
            [b'\\', b'u', b'd' | b'D', b'8' | b'9' | b'a' | b'b' | b'A' | b'B', _, _, b'\\', b'u', b'd' | b'D', b'c'..=b'f' | b'C'..=b'F', ..] => {
                12
            }
            [b'\\', b'u', ..] => 6,
            [b'\\', ..] => 2,
            [first, ..] => match first {
                0..=0x7f => 1,
                0x80..=0xdf => 2,
                0xe0..=0xef => 3,
                _ => 4,
            },
        };
    }
    let mut out = Vec::with_capacity(at + 2);
    out.push(b'"');
    out.extend_from_slice(body.get(..at.min(body.len())).unwrap_or_default());
    out.push(b'"');
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Head, Session, SessionId};

    #[test]
    fn first_prompts() {
        for (message, expected) in [
            (r#"{"role": "user", "content": "hi"}"#, r#""hi""#),
            (r#"{"content": [{"type": "image"}, {"type": "text", "text": "a\nb"}], "role": "user"}"#, r#""a\nb""#),
            (r#"{"role": "assistant", "content": "hi"}"#, "null"),
            (r#"{"role": "user", "content": [{"type": "tool_result", "text": "no"}]}"#, "null"),
            (r#"{"role": "user", "content": 7}"#, "null"),
            (r#"{"role": "user"}"#, "null"),
        ] {
            let mut session = Session::new(SessionId::new("s").unwrap(), Head::default());
            session.append(&[message]);
            assert_eq!(&session.first_prompt()[..], expected.as_bytes(), "{message}");
        }
        let long = format!(r#""{}""#, "é\\n\\ud83d\\ude00".repeat(100));
        let cut = cut_string(long.as_bytes());
        let text: String = serde_json::from_slice(&cut).unwrap();
        assert_eq!(text.chars().count(), 200);
    }
}
